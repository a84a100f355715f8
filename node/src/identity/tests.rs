use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use mesh_proto::shard::ProductRules;
use serde_json::{Value, json};

use super::testing::{Asking, identified};
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

/// `rooms` is the default, `chat` is a second one, `site` a proxy.
struct Door {
    products: Products,
    identity: Identity,
}

/// The same sources for all three.
fn door(required: bool, sources: impl Fn() -> Vec<UidSource>) -> Door {
    let rooms = Product::rooms(ProductRules::open("rooms"));
    let others = [Product::rooms(ProductRules::open("chat")), Product::proxy("site")];
    let products = Products::new(rooms, others, false);
    let policy = |name: &str| (Arc::from(name), UidPolicy { sources: sources(), required, insecure: false });
    let identity = Identity::new(["rooms", "chat", "site"].map(policy), 128);
    Door { products, identity }
}

fn with_jwt(settings: JwtSettings) -> Door {
    let policy = Arc::new(JwtPolicy::hs256(SECRET, settings).unwrap());
    door(true, || vec![UidSource::Jwt(policy.clone())])
}

/// `?uid=` for all.
fn with_query() -> Door {
    door(true, || vec![UidSource::Query("uid".into())])
}

impl Door {
    /// `product/uid`, or the refusal's code.
    fn admitted(&self, asking: &Asking) -> Result<String, &'static str> {
        match testing::admitted(&self.products, &self.identity, asking).client.admission {
            Ok(admission) => Ok(format!("{}/{}", admission.product.name, admission.uid)),
            Err(refusal) => {
                let codes = [UID_REQUIRED, UID_INVALID, PRODUCT_UNKNOWN];
                Err(codes.into_iter().find(|code| *code == refusal.code).expect("a code there is"))
            }
        }
    }

    /// The refusal of a token.
    fn refused(&self, token: &str) -> Refusal {
        let asking = Asking::by_query(&format!("token={token}"));
        testing::admitted(&self.products, &self.identity, &asking).client.admission.unwrap_err()
    }

    /// The uid of a proxied request, or the refusal's status and code.
    fn identified(&self, asking: &Asking) -> Result<Option<String>, (u16, String)> {
        let asked = Asking { target: format!("{}&product=site", asking.target), ..asking.clone() };
        match identified(&self.products, &self.identity, &asked) {
            Ok(identified) => Ok(identified.uid.map(|uid| uid.to_string())),
            Err(denied) => Err((denied.status, denied.code.into_owned())),
        }
    }
}

#[test]
fn on_loopback_the_uid_parameter_is_believed() {
    let door = with_query();
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
        let got = door.admitted(&Asking::by_query(query));
        assert_eq!(got.as_deref().map_err(|code| *code), expected, "{query}");
    }
}

#[test]
fn elsewhere_the_uid_parameter_is_not() {
    let foreign = Asking { loopback_listener: false, ..Asking::by_query("uid=alice") };
    assert_eq!(with_query().admitted(&foreign), Err(UID_REQUIRED));
    let signed = with_jwt(JwtSettings::default());
    assert_eq!(signed.admitted(&Asking::by_query("uid=alice")), Err(UID_REQUIRED));
    let none = Door { identity: Identity::new([], 128), ..signed };
    assert_eq!(none.admitted(&Asking::by_query("uid=alice")), Err(UID_REQUIRED));
}

#[test]
fn the_first_source_that_finds_something_decides() {
    let policy = Arc::new(JwtPolicy::hs256(SECRET, JwtSettings::default()).unwrap());
    let door = door(true, || {
        vec![
            UidSource::Jwt(policy.clone()),
            UidSource::Header("X-User".into()),
            UidSource::Cookie("user".into()),
            UidSource::Query("user".into()),
        ]
    });
    let token = token(&good_claims());
    for (query, headers, expected) in [
        (format!("token={token}&user=d"), "X-User: b\r\nCookie: user=c\r\n", Ok("rooms/alice")),
        ("user=d".into(), "X-User: b\r\nCookie: user=c\r\n", Ok("rooms/b")),
        ("user=d".into(), "Cookie: a=b; user=c\r\n", Ok("rooms/c")),
        ("user=d".into(), "Cookie: xuser=c; a=user=b\r\n", Ok("rooms/d")),
        (String::new(), "", Err(UID_REQUIRED)),
        // What is found and bad is not passed over.
        ("token=x&user=d".into(), "", Err(UID_INVALID)),
        ("user=d".into(), "X-User: b\r\nX-User: c\r\n", Err(UID_INVALID)),
        ("user=d".into(), "Cookie: user=b; user=b\r\n", Err(UID_INVALID)),
        ("user=d".into(), "Cookie: user=b\r\nCookie: user=c\r\n", Err(UID_INVALID)),
        ("user=d&user=e".into(), "", Err(UID_INVALID)),
        ("user=d".into(), "Cookie: user=\r\n", Err(UID_REQUIRED)),
        ("user=d".into(), "Cookie: user=%00\r\n", Err(UID_INVALID)),
        ("user=d".into(), "Cookie: user=%ff\r\n", Err(UID_INVALID)),
        (String::new(), "Cookie: user=\"a%20b+c\"\r\n", Ok("rooms/a b+c")),
    ] {
        let asking = Asking { headers: headers.into(), is_from_proxy: true, ..Asking::by_query(&query) };
        let got = door.admitted(&asking);
        assert_eq!(got.as_deref().map_err(|code| *code), expected, "{query} {headers:?}");
    }
    let forged = Asking::by_header("X-User: b");
    assert_eq!(door.admitted(&forged), Err(UID_REQUIRED), "from nobody that is trusted");
}

#[test]
fn a_proxied_request_without_a_uid_is_refused_by_a_status_of_its_own_or_goes_on() {
    let sources = || vec![UidSource::Query("uid".into())];
    let needs = door(true, sources);
    assert_eq!(needs.identified(&Asking::by_query("uid=a")), Ok(Some("a".into())));
    assert_eq!(needs.identified(&Asking::by_query("a=b")), Err((430, UID_REQUIRED.into())));
    assert_eq!(needs.identified(&Asking::by_query("uid=%00")), Err((430, UID_INVALID.into())));
    let does_without = door(false, sources);
    assert_eq!(does_without.identified(&Asking::by_query("a=b")), Ok(None));
    assert_eq!(does_without.identified(&Asking::by_query("uid=a")), Ok(Some("a".into())));
    assert_eq!(does_without.identified(&Asking::by_query("uid=%00")), Err((430, UID_INVALID.into())));
    // The machines of this node know nobody without a uid.
    assert_eq!(does_without.admitted(&Asking::by_query("a=b")), Err(UID_REQUIRED));
    assert_eq!(does_without.admitted(&Asking::by_query("product=site")), Err(UID_INVALID));
}

#[test]
fn an_anonymous_user_is_the_same_again_by_its_cookie_and_never_by_its_uid() {
    let door = door(true, || vec![UidSource::Anonymous(Some("mesh_uid".into()))]);
    let came = |headers: &str| {
        let asking = Asking { headers: headers.into(), ..Asking::by_query("uid=mallory") };
        let Admitted { client, set_cookie } = testing::admitted(&door.products, &door.identity, &asking);
        (client.admission.unwrap().uid.to_string(), set_cookie)
    };
    let (uid, set_cookie) = came("");
    let set_cookie = set_cookie.expect("a cookie");
    let (pair, attributes) = set_cookie.split_once("; ").unwrap();
    assert_eq!(attributes, "Path=/; Max-Age=31536000; HttpOnly; SameSite=Lax");
    assert!(uid.starts_with('~') && !uid.contains(pair.split_once('=').unwrap().1), "{uid} {pair}");
    let secure = Asking { is_secure: true, ..Asking::by_query("") };
    let secure = testing::admitted(&door.products, &door.identity, &secure).set_cookie;
    assert!(secure.is_some_and(|cookie| cookie.ends_with("; SameSite=Lax; Secure")));
    assert_eq!(came(&format!("Cookie: a=b; {pair}\r\n")), (uid.clone(), None));
    // Everybody may see the uid: it opens nothing. Nor does what we have not made.
    for forged in [&uid, &uid[1..], "x", ""] {
        let (other, set_cookie) = came(&format!("Cookie: mesh_uid={forged}\r\n"));
        assert!(other != uid && other.starts_with('~'), "{forged}");
        assert_eq!(set_cookie.is_none(), forged == &uid[1..], "{forged}");
    }
}

#[test]
fn without_a_cookie_each_connection_is_a_user_of_its_own() {
    let door = door(true, || vec![UidSource::Anonymous(None)]);
    let came = || testing::admitted(&door.products, &door.identity, &Asking::by_query(""));
    let (first, second) = (came(), came());
    assert!(first.set_cookie.is_none());
    assert_ne!(first.client.admission.unwrap().uid, second.client.admission.unwrap().uid);
}

#[test]
fn a_token_speaks_for_its_user_from_header_or_query() {
    let door = with_jwt(JwtSettings::default());
    let token = token(&good_claims());
    for asking in [
        Asking::by_header(&format!("Authorization: Bearer {token}")),
        Asking::by_header(&format!("authorization: bearer {token}")),
        Asking::by_query(&format!("token={token}")),
        Asking::by_query(&format!("token={token}&uid=mallory")),
    ] {
        assert_eq!(door.admitted(&asking).as_deref(), Ok("rooms/alice"), "{asking:?}");
    }
    assert_eq!(door.admitted(&Asking::by_header("Authorization: Basic YTpi")), Err(UID_REQUIRED));
    let twice = format!("Authorization: Bearer {token}\r\nAuthorization: Bearer {token}");
    assert_eq!(door.admitted(&Asking::by_header(&twice)), Err(UID_INVALID));
}

#[test]
fn tokens_that_lie_are_refused_and_not_repeated() {
    let door = with_jwt(JwtSettings::default());
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
        let refusal = door.refused(&token);
        assert_eq!(refusal.code, UID_INVALID, "{token}");
        assert!(!refusal.message.contains(&token), "{refusal:?}");
    }
    assert_eq!(door.refused(&token(&json!({"sub": "", "exp": now() + 600}))).code, UID_REQUIRED);
}

#[test]
fn issuer_and_audience_are_required_once_configured() {
    let door = with_jwt(JwtSettings {
        uid_claim: "user_id".into(),
        issuers: vec!["https://app.example".into()],
        audiences: vec!["rooms".into()],
    });
    let claims = |iss: Value, aud: Value| {
        let mut claims = json!({"user_id": 42, "exp": now() + 600, "iss": iss, "aud": aud});
        claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        door.admitted(&Asking::by_query(&format!("token={}", token(&claims))))
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
        let header = header.map(|(name, value)| format!("{name}: {value}\r\n")).unwrap_or_default();
        let text = format!("GET /?{query} HTTP/1.1\r\nHost: x\r\n{header}\r\n");
        let head = RequestHead::parse(text.as_bytes()).unwrap();
        let plain = carries_offsets(rule, ClientProtocol::Plain, &head);
        assert!(!plain, "the plain protocol has places of its own");
        let got = carries_offsets(rule, ClientProtocol::SocketIo, &head);
        assert_eq!(got, expected, "{rule:?} {query:?} {header:?}");
    }
}
