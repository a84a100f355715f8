//! The keys under which tokens are believed.
//!
//! Belongs here: reading keys, each with the one algorithm it is for; finding the key of a token.
//! Stays out: reading files (`config::secrets`), what a token says (`jwt`).
//! Invariants: a key is for one algorithm, which follows from what the key is, never from what a token
//! says (RFC 8725 §3.1): a public key cannot be taken for a shared secret. Nothing here prints a key.
//! Source: RFC 7517 (JWK), RFC 7518 §3 (algorithms), RFC 5480 and RFC 8410 (public keys in PEM).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;

/// RFC 7518 §3.2: a shared secret is at least as long as the hash.
pub const JWT_SECRET_BYTES_MIN: usize = 32;

/// RFC 7518 §3.3.
const RSA_BITS_MIN: usize = 2_048;

/// Larger ones only cost time.
const RSA_BITS_MAX: usize = 8_192;

/// Keys of one file.
const KEYS_MAX: usize = 100;

/// Keys of one product.
#[derive(Clone, Default)]
pub struct TokenKeys(Vec<Key>);

#[derive(Clone)]
struct Key {
    /// By which tokens name it; one without is for all that name none, or any.
    kid: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// What is no key. Nothing of it is in the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoKey(String);

fn no_key<T>(why: impl Into<String>) -> Result<T, NoKey> {
    Err(NoKey(why.into()))
}

impl TokenKeys {
    /// Adds a shared secret, for HS256.
    ///
    /// # Errors
    /// Below [`JWT_SECRET_BYTES_MIN`] it could be found by trying.
    pub fn add_secret(&mut self, secret: &[u8]) -> Result<(), NoKey> {
        self.0.push(Key::secret(None, secret)?);
        Ok(())
    }

    /// Adds a public key in PEM (`BEGIN PUBLIC KEY`): RSA for RS256, P-256 for ES256, Ed25519 for EdDSA.
    ///
    /// # Errors
    /// When it is none of these.
    pub fn add_pem(&mut self, pem: &[u8]) -> Result<(), NoKey> {
        let Ok(info) = SubjectPublicKeyInfoDer::from_pem_slice(pem) else {
            return no_key("there is no -----BEGIN PUBLIC KEY----- in it (openssl pkey -pubout makes one)");
        };
        self.0.push(Key::of_public_key_info(&info)?);
        Ok(())
    }

    /// Adds the keys of a JWK set that sign with an algorithm known here. Whether one of them is secret.
    ///
    /// # Errors
    /// When it is no such set, has no such key, or has two under one name.
    pub fn add_jwks(&mut self, json: &[u8]) -> Result<bool, NoKey> {
        let Ok(JwkSet { keys }) = serde_json::from_slice(json) else {
            return no_key("it is no JWK set: {\"keys\": […]}");
        };
        if keys.len() > KEYS_MAX {
            return no_key(format!("it has more than {KEYS_MAX} keys"));
        }
        let alone = keys.len() == 1;
        let before = self.0.len();
        let mut secret = false;
        for (at, jwk) in keys.into_iter().enumerate() {
            let kid = jwk.kid.clone();
            let Some(key) = Key::of_jwk(jwk).map_err(|why| NoKey(format!("key {}: {why}", at + 1)))? else {
                continue;
            };
            if kid.is_none() && !alone {
                return no_key(format!("key {} has no kid, and is not the only one", at + 1));
            }
            if kid.is_some() && self.0.iter().any(|other| other.kid == kid) {
                return no_key(format!("key {} has the kid of another", at + 1));
            }
            secret |= key.algorithm == Algorithm::HS256;
            self.0.push(key);
        }
        if self.0.len() == before {
            return no_key("none of its keys signs with HS256, RS256, ES256 or EdDSA");
        }
        Ok(secret)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one key that a token may be signed under, which says that `algorithm` and `kid`. Without a
    /// `kid` there must be only one for the algorithm: nothing is tried in turn.
    pub(super) fn of_token(&self, algorithm: Algorithm, kid: Option<&str>) -> Option<&DecodingKey> {
        let fitting = || self.0.iter().filter(|key| key.algorithm == algorithm);
        let named = || fitting().find(|key| key.kid.as_deref() == kid);
        let mut nameless = fitting().filter(|key| kid.is_none() || key.kid.is_none());
        let only = match (nameless.next(), nameless.next()) {
            (Some(only), None) => Some(only),
            _ => None,
        };
        let found = if kid.is_some() { named().or(only) } else { only };
        found.map(|key| &key.key)
    }
}

impl fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| key.algorithm)).finish()
    }
}

/// RFC 7517 §5. What else stands in it is not ours.
#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    used_for: Option<String>,
    crv: Option<String>,
    k: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Key {
    fn secret(kid: Option<String>, secret: &[u8]) -> Result<Self, NoKey> {
        if secret.len() < JWT_SECRET_BYTES_MIN {
            let len = secret.len();
            return no_key(format!(
                "the secret has {len} bytes: {JWT_SECRET_BYTES_MIN} random ones are needed"
            ));
        }
        Ok(Self { kid, algorithm: Algorithm::HS256, key: DecodingKey::from_secret(secret) })
    }

    fn rsa(kid: Option<String>, modulus: &[u8], exponent: &[u8]) -> Result<Self, NoKey> {
        let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
        let modulus = &modulus[zeros..];
        let bits = modulus.len() * 8 - modulus.first().map_or(0, |first| first.leading_zeros() as usize);
        if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
            return no_key(format!("an RSA key of {bits} bits: {RSA_BITS_MIN} to {RSA_BITS_MAX} are taken"));
        }
        let key = DecodingKey::from_rsa_raw_components(modulus, exponent);
        Ok(Self { kid, algorithm: Algorithm::RS256, key })
    }

    /// `point` is uncompressed: 4, x, y.
    fn p256(kid: Option<String>, point: &[u8]) -> Result<Self, NoKey> {
        if point.len() != 65 || point[0] != 4 {
            return no_key("no point of P-256");
        }
        Ok(Self { kid, algorithm: Algorithm::ES256, key: DecodingKey::from_ec_der(point) })
    }

    fn ed25519(kid: Option<String>, point: &[u8]) -> Result<Self, NoKey> {
        if point.len() != 32 {
            return no_key("no point of Ed25519");
        }
        Ok(Self { kid, algorithm: Algorithm::EdDSA, key: DecodingKey::from_ed_der(point) })
    }

    /// `None` for a key that is for something else.
    fn of_jwk(jwk: Jwk) -> Result<Option<Self>, NoKey> {
        let algorithm = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("oct", _) => "HS256",
            ("RSA", _) => "RS256",
            ("EC", Some("P-256")) => "ES256",
            ("OKP", Some("Ed25519")) => "EdDSA",
            _ => return Ok(None),
        };
        if jwk.used_for.is_some_and(|used_for| used_for != "sig")
            || jwk.alg.is_some_and(|named| named != algorithm)
        {
            return Ok(None);
        }
        let bytes = |field: &str, text: Option<String>| {
            let bytes = text.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
            bytes.ok_or_else(|| NoKey(format!("its {field} is missing or no base64url")))
        };
        let key = match algorithm {
            "HS256" => Self::secret(jwk.kid, &bytes("k", jwk.k)?)?,
            "RS256" => Self::rsa(jwk.kid, &bytes("n", jwk.n)?, &bytes("e", jwk.e)?)?,
            "ES256" => Self::p256(jwk.kid, &[vec![4], bytes("x", jwk.x)?, bytes("y", jwk.y)?].concat())?,
            _ => Self::ed25519(jwk.kid, &bytes("x", jwk.x)?)?,
        };
        Ok(Some(key))
    }

    /// Of a SubjectPublicKeyInfo: SEQUENCE { SEQUENCE { algorithm, parameters }, BIT STRING }.
    fn of_public_key_info(info: &[u8]) -> Result<Self, NoKey> {
        /// The contents of the inner sequence, as DER has them.
        const RSA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00";
        const P256: &[u8] = b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
        const ED25519: &[u8] = b"\x06\x03\x2b\x65\x70";
        let parsed = || {
            let (mut info, _) = der(info, 0x30)?;
            let algorithm;
            (algorithm, info) = der(info, 0x30)?;
            let (bits, _) = der(info, 0x03)?;
            // No bits of the last byte are unused.
            Some((algorithm, bits.strip_prefix(&[0])?))
        };
        let Some((algorithm, key)) = parsed() else { return no_key("no public key in it") };
        match algorithm {
            P256 => Self::p256(None, key),
            ED25519 => Self::ed25519(None, key),
            RSA => {
                let numbers = || {
                    let (numbers, _) = der(key, 0x30)?;
                    let (modulus, rest) = der(numbers, 0x02)?;
                    let (exponent, _) = der(rest, 0x02)?;
                    Some((modulus, exponent))
                };
                let Some((modulus, exponent)) = numbers() else { return no_key("no RSA key in it") };
                Self::rsa(None, modulus, exponent)
            }
            _ => no_key("it is neither RSA nor P-256 nor Ed25519"),
        }
    }
}

/// One DER value with this tag, and what follows it (X.690 §8.1, lengths below 64 KiB).
fn der(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let (len, rest) = match rest.split_first()? {
        (len, rest) if *len < 0x80 => (usize::from(*len), rest),
        (0x81, [len, rest @ ..]) => (usize::from(*len), rest),
        (0x82, [high, low, rest @ ..]) => (usize::from(*high) << 8 | usize::from(*low), rest),
        _ => return None,
    };
    (first == tag && rest.len() >= len).then(|| rest.split_at(len))
}
