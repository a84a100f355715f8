use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use mesh_proto::shard::ClientProtocol;
use serde_json::{Value, json};

use super::*;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn token(claims: &Value) -> String {
    encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(SECRET)).unwrap()
}

fn good_claims() -> Value {
    json!({"sub": "alice", "exp": now() + 600})
}

fn products(unknown_is_default: bool) -> Arc<Products> {
    Arc::new(Products::new(ProductRules::open("rooms"), [ProductRules::open("chat")], unknown_is_default))
}

fn with_jwt(settings: JwtSettings) -> Identity {
    let policy = JwtPolicy::hs256(SECRET, settings).unwrap();
    Identity::new(products(false), [("rooms".into(), UidSource::Jwt(Box::new(policy)))], 128)
}

fn handshake(query: &str, authorization: Option<&str>) -> Handshake {
    Handshake {
        remote: ([127, 0, 0, 1], 1).into(),
        loopback_listener: true,
        path: "/ws".into(),
        query: query.into(),
        headers: authorization.map(|v| ("authorization".into(), v.into())).into_iter().collect(),
        protocol: ClientProtocol::Plain,
    }
}

/// `?uid=` for both products.
fn with_query(unknown_is_default: bool) -> Identity {
    let sources = ["rooms", "chat"].map(|name| (name.into(), UidSource::Query));
    Identity::new(products(unknown_is_default), sources, 128)
}

/// `product/uid`, or the refusal's code.
fn admitted(identity: &Identity, handshake: &Handshake) -> Result<String, &'static str> {
    match identity.admit(handshake).admission {
        Ok(admission) => Ok(format!("{}/{}", admission.product.name, admission.uid)),
        Err(refusal) => {
            let codes = [UID_REQUIRED, UID_INVALID, PRODUCT_UNKNOWN];
            Err(codes.into_iter().find(|code| *code == refusal.code).expect("a code there is"))
        }
    }
}

#[test]
fn on_loopback_the_uid_parameter_is_believed() {
    let identity = with_query(false);
    let long = format!("uid={}", "x".repeat(129));
    for (query, expected) in [
        ("uid=alice", Ok("rooms/alice")),
        ("product=chat&uid=al%20ice", Ok("chat/al ice")),
        ("product=&uid=a", Ok("rooms/a")),
        ("product=nope&uid=a", Err(PRODUCT_UNKNOWN)),
        ("product=%ff&uid=a", Err(PRODUCT_UNKNOWN)),
        ("", Err(UID_REQUIRED)),
        ("uid=", Err(UID_REQUIRED)),
        ("uid=a%00b", Err(UID_INVALID)),
        ("uid=a%0Ab", Err(UID_INVALID)),
        ("uid=%ff", Err(UID_INVALID)),
        (&long, Err(UID_INVALID)),
    ] {
        let got = admitted(&identity, &handshake(query, None));
        assert_eq!(got.as_deref().map_err(|code| *code), expected, "{query}");
    }
}

#[test]
fn elsewhere_the_uid_parameter_is_not() {
    let mut foreign = handshake("uid=alice", None);
    foreign.loopback_listener = false;
    let identity = with_query(false);
    assert_eq!(admitted(&identity, &foreign), Err(UID_REQUIRED));
    let no_source = with_jwt(JwtSettings::default());
    assert_eq!(admitted(&no_source, &handshake("product=chat&uid=alice", None)), Err(UID_REQUIRED));
    assert_eq!(admitted(&with_jwt(JwtSettings::default()), &handshake("uid=alice", None)), Err(UID_REQUIRED));
}

#[test]
fn an_unknown_product_may_be_the_default_one() {
    let identity = with_query(true);
    assert_eq!(admitted(&identity, &handshake("product=x&uid=a", None)).as_deref(), Ok("rooms/a"));
}

#[test]
fn a_token_speaks_for_its_user_from_header_or_query() {
    let identity = with_jwt(JwtSettings::default());
    let token = token(&good_claims());
    for handshake in [
        handshake("", Some(&format!("Bearer {token}"))),
        handshake("", Some(&format!("bearer {token}"))),
        handshake(&format!("token={token}"), None),
        handshake(&format!("token={token}&uid=mallory"), None),
    ] {
        assert_eq!(admitted(&identity, &handshake).as_deref(), Ok("rooms/alice"), "{handshake:?}");
    }
    let basic = handshake("", Some("Basic YTpi"));
    assert_eq!(admitted(&identity, &basic), Err(UID_REQUIRED));
}

fn refused(identity: &Identity, token: &str) -> Refusal {
    identity.admit(&handshake(&format!("token={token}"), None)).admission.unwrap_err()
}

#[test]
fn tokens_that_lie_are_refused_and_not_repeated() {
    let identity = with_jwt(JwtSettings::default());
    let unsigned = |alg: &str| {
        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{alg}","typ":"JWT"}}"#));
        format!("{header}.{}.", URL_SAFE_NO_PAD.encode(good_claims().to_string()))
    };
    let hs_signed_as_rs = {
        let signed = token(&good_claims());
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256","typ":"JWT"}"#);
        format!("{header}.{}", signed.split_once('.').unwrap().1)
    };
    let hs512 =
        encode(&Header::new(Algorithm::HS512), &good_claims(), &EncodingKey::from_secret(SECRET)).unwrap();
    let other_key =
        encode(&Header::new(Algorithm::HS256), &good_claims(), &EncodingKey::from_secret(b"other")).unwrap();
    let tampered = {
        let signed = token(&good_claims());
        let mut parts: Vec<&str> = signed.split('.').collect();
        let claims = URL_SAFE_NO_PAD.encode(json!({"sub": "admin", "exp": now() + 600}).to_string());
        parts[1] = &claims;
        parts.join(".")
    };
    for token in [
        unsigned("none"),
        unsigned("None"),
        unsigned("HS256"),
        hs_signed_as_rs,
        hs512,
        other_key,
        tampered,
        "canary".into(),
        "a.b.c".into(),
        token(&json!({"sub": "alice"})),
        token(&json!({"sub": "alice", "exp": "soon"})),
        token(&json!({"sub": "alice", "exp": now() - 60})),
        token(&json!({"sub": "alice", "exp": now() + 600, "nbf": now() + 60})),
        token(&json!({"sub": "alice", "exp": now() + 600, "aud": "elsewhere"})),
        token(&json!({"exp": now() + 600})),
        token(&json!({"sub": {"id": 1}, "exp": now() + 600})),
        token(&json!({"sub": 1.5, "exp": now() + 600})),
        token(&json!({"sub": "a\u{7}", "exp": now() + 600})),
        token(&json!({"sub": "x".repeat(129), "exp": now() + 600})),
    ] {
        let refusal = refused(&identity, &token);
        assert_eq!(refusal.code, UID_INVALID, "{token}");
        assert!(!refusal.message.contains(&token), "{refusal:?}");
    }
    assert_eq!(refused(&identity, &token(&json!({"sub": "", "exp": now() + 600}))).code, UID_REQUIRED);
}

#[test]
fn issuer_and_audience_are_required_once_configured() {
    let identity = with_jwt(JwtSettings {
        uid_claim: "user_id".into(),
        issuers: vec!["https://app.example".into()],
        audiences: vec!["rooms".into()],
    });
    let claims = |iss: Value, aud: Value| {
        let mut claims = json!({"user_id": 42, "exp": now() + 600, "iss": iss, "aud": aud});
        claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        admitted(&identity, &handshake(&format!("token={}", token(&claims)), None))
    };
    let ours = json!("https://app.example");
    assert_eq!(claims(ours.clone(), json!("rooms")).as_deref(), Ok("rooms/42"));
    assert_eq!(claims(ours.clone(), json!(["x", "rooms"])).as_deref(), Ok("rooms/42"));
    for (iss, aud) in [
        (json!("https://evil.example"), json!("rooms")),
        (Value::Null, json!("rooms")),
        (ours.clone(), json!("x")),
        (ours.clone(), Value::Null),
        (ours, json!(7)),
    ] {
        assert_eq!(claims(iss.clone(), aud.clone()), Err(UID_INVALID), "{iss} {aud}");
    }
}

#[test]
fn a_short_secret_is_no_secret() {
    assert_eq!(JwtPolicy::hs256(b"secret", JwtSettings::default()).unwrap_err(), WeakSecret { len: 6 });
    let policy = JwtPolicy::hs256(SECRET, JwtSettings::default()).unwrap();
    assert!(!format!("{policy:?}").contains("0123"));
}

#[test]
fn offsets_go_to_browsers_and_to_whom_asks() {
    use RecoveryRule::{Browser, Off, On};
    let chrome = ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/150.0");
    let python = ("user-agent", "python-requests/2.34.2");
    // What Python's WebSocket client sends in place of a user agent.
    let origin = ("origin", "http://127.0.0.1:4080");
    for (rule, query, header, expected) in [
        (Browser, "", Some(chrome), true),
        (Browser, "", Some(python), false),
        (Browser, "", Some(origin), false),
        (Browser, "", None, false),
        (Browser, "recovery=1", Some(python), true),
        (Browser, "recovery=0", Some(chrome), false),
        (On, "", None, true),
        (On, "recovery=0", Some(chrome), false),
        (Off, "recovery=1", Some(chrome), false),
    ] {
        let mut client = handshake(query, None);
        client.headers = header.map(|(name, value)| (name.into(), value.into())).into_iter().collect();
        assert!(!carries_offsets(rule, &client), "the plain protocol has places of its own");
        client.protocol = ClientProtocol::SocketIo;
        assert_eq!(carries_offsets(rule, &client), expected, "{rule:?} {query:?} {header:?}");
    }
}
