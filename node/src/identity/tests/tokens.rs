//! Tokens that speak for their users, and tokens that lie.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData as _, SignatureAlgorithm};
use serde_json::{Value, json};

use super::*;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A token of the shared secret.
pub(super) fn signed(claims: &Value) -> String {
    encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(SECRET)).unwrap()
}

pub(super) fn good_claims() -> Value {
    json!({"sub": "alice", "exp": now() + 600})
}

pub(super) fn secret() -> TokenKeys {
    let mut keys = TokenKeys::default();
    keys.add_secret(SECRET).unwrap();
    keys
}

/// An RSA key of 2,048 bits, made for these tests; its private half is nowhere.
const RSA_PUBLIC: &str = "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEArpSLovoD1jlG4tMRuHpL\n\
     yZD4p1n7D0BXcHEtQDdtkZh3aImBQ37nHOr+yU3k4dUXsAq0EEu1BTssx/m8fKpd\n\
     TIKT90HajYVAUt/mRew7hRmBp2GaC6IbMSHm2DWOyd3O4flIt+xYTN4MrS4vU36j\n\
     HYUo+RK/AnADstOsxrABAkS4wvAGoS7y/pYtFl6PPBWVNjdodDT7OVprcR9MOMEe\n\
     drJHwg2AvLo2TaNjc/10jcUbOav+LM4HrK7JN5Ne7tMVtEQVqNZivrNnimZjw3OP\n\
     cEHpetp7XIQLTX4tN0TUKmQAF+mdqnya4nh6Tk0sPxIkXQKdjJUGF8z+kCx/Waj5\n\
     GwIDAQAB";

/// The same as a JWK's `n`.
const RSA_MODULUS: &str = "rpSLovoD1jlG4tMRuHpLyZD4p1n7D0BXcHEtQDdtkZh3aImBQ37nHOr-yU3k4dUXsAq0EEu1BTssx_m8fKpdTIKT90HajYVAUt_m\
     Rew7hRmBp2GaC6IbMSHm2DWOyd3O4flIt-xYTN4MrS4vU36jHYUo-RK_AnADstOsxrABAkS4wvAGoS7y_pYtFl6PPBWVNjdodDT7\
     OVprcR9MOMEedrJHwg2AvLo2TaNjc_10jcUbOav-LM4HrK7JN5Ne7tMVtEQVqNZivrNnimZjw3OPcEHpetp7XIQLTX4tN0TUKmQA\
     F-mdqnya4nh6Tk0sPxIkXQKdjJUGF8z-kCx_Waj5Gw";

/// Signed under it for alice, `kid` r1, until 2100.
const RSA_TOKEN: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6InIxIn0.eyJzdWIiOiJhbGljZSIsImV4cCI6NDEwMjQ0NDgwMH0.EGbkG7XDoJChYlfAF1ob\
     TwSULoyjof4nwxLSThmTni5jGgjQU-w4mEJ_C_a772Es3hErZyiSbhxmw5mqHOvFS59vziujpggN8sHdi4j98eIQv4q7KZt0tl7b\
     eN1mv26C7BF45R-uWyI6lVgy6mUzzJaKlokvDzAMDteqrvvHxaJMau7ipUZdvKQVE9TvgIr0FHF50inwxcn7Lszu-9pj5GqqtqFi\
     SM22WF0V-Vk6hgpvDO-tnN0MK03VJm9G0d32edvUjFmpThkQWykWpLKm0jFGlDEfoyk8L6vwjJqnyJ-zzo0pxBgFzZFaz9TtPmd6\
     4KIao_ymfkbJyOh8wbbqpg";

/// One of 1,024 bits.
const RSA_SHORT: &str = "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQC4s0wsQxQ6Eio5228egC7l/m1O\n\
     uAIeex10MGtpXFfVMMM7ICrv/Ayl7wHAa8IbXdG/4BusPanQ9+BSgH3uog4yLK6O\n\
     Pz8uRYnp14DcElu4tIcFgxyeGla9SobHyt5hgpjYyaTnTMSp8+0zWEWMe4eM4b78\n\
     0i2z26D3hoUOGnmBmwIDAQAB";

const P384_PUBLIC: &str = "MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEg1FCfKI/ZIBKLkVwnkItEtpHyWezP51x\n\
     lVTaNWaPBjN7yViqVKZf/1FhBKo9aHBdGgkQ8YJSTqoxPo86z2FSiNQHxPHTVlJn\n\
     a0eq3l3oo+toAU3hQOGRm2wrO+SUEZjl";

fn pem(body: &str) -> String {
    format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n")
}

/// A fresh key pair, and tokens of it.
struct Signer {
    algorithm: Algorithm,
    pair: KeyPair,
}

impl Signer {
    fn new(algorithm: Algorithm) -> Self {
        let kind: &SignatureAlgorithm = match algorithm {
            Algorithm::ES256 => &PKCS_ECDSA_P256_SHA256,
            _ => &PKCS_ED25519,
        };
        Self { algorithm, pair: KeyPair::generate_for(kind).unwrap() }
    }

    fn pem(&self) -> String {
        pem(&STANDARD.encode(self.pair.subject_public_key_info()))
    }

    fn jwk(&self, kid: &str) -> Value {
        let raw = self.pair.der_bytes();
        let encoded = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match self.algorithm {
            Algorithm::ES256 => json!({
                "kty": "EC", "crv": "P-256", "kid": kid, "use": "sig",
                "x": encoded(&raw[1..33]), "y": encoded(&raw[33..]),
            }),
            _ => json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "alg": "EdDSA", "x": encoded(raw)}),
        }
    }

    fn token(&self, kid: Option<&str>) -> String {
        let der = self.pair.serialize_der();
        let key = match self.algorithm {
            Algorithm::ES256 => EncodingKey::from_ec_der(&der),
            _ => EncodingKey::from_ed_der(&der),
        };
        let header = Header { kid: kid.map(str::to_owned), ..Header::new(self.algorithm) };
        encode(&header, &good_claims(), &key).unwrap()
    }
}

fn rsa_jwk(kid: &str) -> Value {
    json!({"kty": "RSA", "kid": kid, "n": RSA_MODULUS, "e": "AQAB"})
}

impl Door {
    fn by_token(&self, token: &str) -> Result<String, &'static str> {
        self.admitted(&Asking::by_header(&format!("Authorization: Bearer {token}")))
    }
}

#[test]
fn tokens_are_believed_under_each_kind_of_public_key() {
    let signers = [Signer::new(Algorithm::ES256), Signer::new(Algorithm::EdDSA)];
    for signer in &signers {
        let mut keys = TokenKeys::default();
        keys.add_pem(signer.pem().as_bytes()).unwrap();
        let door = with_keys(keys, JwtSettings::default());
        assert_eq!(
            door.by_token(&signer.token(None)).as_deref(),
            Ok("rooms/alice"),
            "{:?}",
            signer.algorithm
        );
        assert_eq!(door.by_token(&signer.token(Some("any"))).as_deref(), Ok("rooms/alice"));
        assert_eq!(door.by_token(&Signer::new(signer.algorithm).token(None)), Err(UID_INVALID));
        assert_eq!(door.by_token(RSA_TOKEN), Err(UID_INVALID));
    }
    let mut keys = TokenKeys::default();
    keys.add_pem(pem(RSA_PUBLIC).as_bytes()).unwrap();
    let door = with_keys(keys, JwtSettings::default());
    assert_eq!(door.by_token(RSA_TOKEN).as_deref(), Ok("rooms/alice"));
    let (signed, signature) = RSA_TOKEN.rsplit_once('.').unwrap();
    assert_eq!(door.by_token(&format!("{signed}.A{}", &signature[1..])), Err(UID_INVALID));
}

#[test]
fn of_a_set_of_keys_the_token_names_its_own() {
    let (first, second, edwards) =
        (Signer::new(Algorithm::ES256), Signer::new(Algorithm::ES256), Signer::new(Algorithm::EdDSA));
    let strange = json!({"kty": "EC", "crv": "P-521", "kid": "s", "x": "", "y": ""});
    let encrypts = json!({"kty": "RSA", "use": "enc", "kid": "enc", "n": RSA_MODULUS, "e": "AQAB"});
    let pss = json!({"kty": "RSA", "alg": "PS256", "kid": "pss", "n": RSA_MODULUS, "e": "AQAB"});
    let set = [first.jwk("a"), second.jwk("b"), edwards.jwk("c"), rsa_jwk("r1"), strange, encrypts, pss];
    let mut keys = TokenKeys::default();
    assert_eq!(keys.add_jwks(json!({ "keys": set }).to_string().as_bytes()), Ok(false));
    let door = with_keys(keys, JwtSettings::default());
    for (token, expected) in [
        (first.token(Some("a")), Ok("rooms/alice")),
        (second.token(Some("b")), Ok("rooms/alice")),
        (edwards.token(Some("c")), Ok("rooms/alice")),
        (RSA_TOKEN.to_owned(), Ok("rooms/alice")),
        // The only one for its algorithm needs no name.
        (edwards.token(None), Ok("rooms/alice")),
        // Two may have signed it, and neither is tried.
        (first.token(None), Err(UID_INVALID)),
        (first.token(Some("b")), Err(UID_INVALID)),
        (first.token(Some("nope")), Err(UID_INVALID)),
        (first.token(Some("c")), Err(UID_INVALID)),
        (edwards.token(Some("nope")), Err(UID_INVALID)),
    ] {
        assert_eq!(door.by_token(&token).as_deref().map_err(|code| *code), expected, "{token}");
    }
}

#[test]
fn a_public_key_is_no_shared_secret() {
    // The oldest trick: the public key, which everybody has, as the key of an HMAC.
    let signer = Signer::new(Algorithm::ES256);
    let mut keys = TokenKeys::default();
    keys.add_pem(signer.pem().as_bytes()).unwrap();
    let alone = with_keys(keys.clone(), JwtSettings::default());
    keys.add_secret(SECRET).unwrap();
    let both = with_keys(keys, JwtSettings::default());
    for secret in
        [signer.pem().into_bytes(), signer.pair.subject_public_key_info(), signer.pair.der_bytes().into()]
    {
        let forged =
            encode(&Header::new(Algorithm::HS256), &good_claims(), &EncodingKey::from_secret(&secret))
                .unwrap();
        assert_eq!(alone.by_token(&forged), Err(UID_INVALID));
        assert_eq!(both.by_token(&forged), Err(UID_INVALID));
    }
    // Each key for its own algorithm.
    assert_eq!(both.by_token(&signed(&good_claims())).as_deref(), Ok("rooms/alice"));
    assert_eq!(both.by_token(&signer.token(None)).as_deref(), Ok("rooms/alice"));
    assert_eq!(alone.by_token(&signed(&good_claims())), Err(UID_INVALID));
}

#[test]
fn what_is_no_key_is_told_without_being_shown() {
    let pem_of = |text: &str| TokenKeys::default().add_pem(text.as_bytes());
    let jwks = |value: Value| TokenKeys::default().add_jwks(value.to_string().as_bytes()).map(drop);
    let short = TokenKeys::default().add_secret(b"canary");
    let secret = URL_SAFE_NO_PAD.encode(SECRET);
    let first = Signer::new(Algorithm::ES256).jwk("a");
    let mut nameless = first.clone();
    nameless.as_object_mut().unwrap().remove("kid");
    for (told, words) in [
        (short, "the secret has 6 bytes"),
        (pem_of(&pem(RSA_SHORT)), "1024 bits"),
        (pem_of(&pem(P384_PUBLIC)), "neither RSA nor P-256 nor Ed25519"),
        (pem_of(&pem("Y2FuYXJ5")), "no public key in it"),
        (pem_of("-----BEGIN PRIVATE KEY-----\nY2FuYXJ5\n-----END PRIVATE KEY-----\n"), "BEGIN PUBLIC KEY"),
        (pem_of("canary"), "BEGIN PUBLIC KEY"),
        (TokenKeys::default().add_jwks(b"canary").map(drop), "no JWK set"),
        (jwks(json!({"keys": []})), "none of its keys"),
        (jwks(json!({"keys": [{"kty": "RSA", "use": "enc"}]})), "none of its keys"),
        (jwks(json!({"keys": [{"kty": "oct", "k": "Y2FuYXJ5"}]})), "key 1: the secret has 6 bytes"),
        (
            jwks(json!({"keys": [{"kty": "RSA", "n": "canary!", "e": "AQAB"}]})),
            "key 1: its n is missing or no",
        ),
        (
            jwks(json!({"keys": [{"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"}]})),
            "no point of P-256",
        ),
        (jwks(json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}]})), "no point of Ed25519"),
        (jwks(json!({"keys": [first, first]})), "key 2 has the kid of another"),
        (jwks(json!({"keys": [first, nameless]})), "key 2 has no kid"),
    ] {
        let told = told.expect_err(words).to_string();
        assert!(told.contains(words) && !told.contains("canary") && !told.contains("Y2Fu"), "{told}");
    }
    let mut keys = TokenKeys::default();
    let shared = json!({"keys": [{"kty": "oct", "k": secret, "kid": "s"}]}).to_string();
    assert_eq!(keys.add_jwks(shared.as_bytes()), Ok(true));
    assert_eq!(format!("{keys:?}"), "[HS256]");
}

#[test]
fn a_token_speaks_for_its_user_from_header_or_query() {
    let door = with_jwt(JwtSettings::default());
    let token = signed(&good_claims());
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
        let signed = signed(&good_claims());
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256","typ":"JWT"}"#);
        format!("{header}.{}", signed.split_once('.').unwrap().1)
    };
    let hs512 =
        encode(&Header::new(Algorithm::HS512), &good_claims(), &EncodingKey::from_secret(SECRET)).unwrap();
    let other_key =
        encode(&Header::new(Algorithm::HS256), &good_claims(), &EncodingKey::from_secret(b"other")).unwrap();
    let tampered = {
        let signed = signed(&good_claims());
        let mut parts: Vec<&str> = signed.split('.').collect();
        let claims = URL_SAFE_NO_PAD.encode(json!({"sub": "admin", "exp": now() + 600}).to_string());
        parts[1] = &claims;
        parts.join(".")
    };
    let critical = {
        let header = json!({"alg": "HS256", "crit": ["exp"]}).to_string();
        let encoded = |text: String| URL_SAFE_NO_PAD.encode(text);
        let message = format!("{}.{}", encoded(header), encoded(good_claims().to_string()));
        let key = EncodingKey::from_secret(SECRET);
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
        format!("{message}.{signature}")
    };
    for token in [
        critical,
        unsigned("none"),
        unsigned("None"),
        unsigned("HS256"),
        hs_signed_as_rs,
        hs512,
        other_key,
        tampered,
        "canary".into(),
        "a.b.c".into(),
        signed(&json!({"sub": "alice"})),
        signed(&json!({"sub": "alice", "exp": "soon"})),
        signed(&json!({"sub": "alice", "exp": now() - 60})),
        signed(&json!({"sub": "alice", "exp": now() + 600, "nbf": now() + 60})),
        signed(&json!({"sub": "alice", "exp": now() + 600, "aud": "elsewhere"})),
        signed(&json!({"exp": now() + 600})),
        signed(&json!({"sub": {"id": 1}, "exp": now() + 600})),
        signed(&json!({"sub": 1.5, "exp": now() + 600})),
        signed(&json!({"sub": "a\u{7}", "exp": now() + 600})),
        signed(&json!({"sub": "x".repeat(129), "exp": now() + 600})),
    ] {
        let refusal = door.refused(&token);
        assert_eq!(refusal.code, UID_INVALID, "{token}");
        assert!(!refusal.message.contains(&token), "{refusal:?}");
    }
    assert_eq!(door.refused(&signed(&json!({"sub": "", "exp": now() + 600}))).code, UID_REQUIRED);
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
        door.admitted(&Asking::by_query(&format!("token={}", signed(&claims))))
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
