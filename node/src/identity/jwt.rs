//! Tokens that a web application signs for its users.
//!
//! Belongs here: which tokens are believed, and which claim of them is the uid.
//! Stays out: where in a request a token stands (`sources`), reading keys (`keys`).
//! Invariants: a token is checked under one key, by that key's algorithm; `exp` is required.
//! Source: RFC 7519 §4.1, RFC 8725 §3 (JWT best practice).

use std::fmt;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde_json::{Map, Value};

use super::TokenKeys;

/// The algorithms that keys may be for.
const ALGORITHMS: [Algorithm; 4] = [Algorithm::HS256, Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];

/// Clocks of application and node may differ by so many seconds.
const LEEWAY_SECS: u64 = 10;

/// What an operator says about tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtSettings {
    /// The claim that holds the uid: a string or a whole number.
    pub uid_claim: String,
    /// Issuers believed; empty: any.
    pub issuers: Vec<String>,
    /// Audiences this node answers to; empty: tokens with an `aud` are refused (RFC 7519 §4.1.3).
    pub audiences: Vec<String>,
}

impl Default for JwtSettings {
    /// `sub`, which is what the standard has for it.
    fn default() -> Self {
        Self { uid_claim: "sub".into(), issuers: Vec::new(), audiences: Vec::new() }
    }
}

/// Checks tokens and finds the uid in them.
pub struct JwtPolicy {
    keys: TokenKeys,
    /// One for each algorithm: what a token says of its own is compared with the key it is checked under.
    validations: [Validation; 4],
    uid_claim: String,
}

impl JwtPolicy {
    /// Believes tokens signed under one of `keys`.
    #[must_use]
    pub fn new(keys: TokenKeys, settings: JwtSettings) -> Self {
        let validations = ALGORITHMS.map(|algorithm| {
            let mut validation = Validation::new(algorithm);
            validation.leeway = LEEWAY_SECS;
            validation.validate_nbf = true;
            let mut required = vec!["exp"];
            if !settings.issuers.is_empty() {
                validation.set_issuer(&settings.issuers);
                required.push("iss");
            }
            if !settings.audiences.is_empty() {
                validation.set_audience(&settings.audiences);
                required.push("aud");
            }
            validation.set_required_spec_claims(&required);
            validation
        });
        Self { keys, validations, uid_claim: settings.uid_claim }
    }

    /// The uid a token speaks for.
    ///
    /// # Errors
    /// Why the token is not believed. It carries nothing of the token.
    pub(super) fn uid(&self, token: &str) -> Result<String, TokenRefused> {
        let header = decode_header(token).map_err(|_| TokenRefused::NotSigned)?;
        // RFC 7515 §4.1.11: what must be understood is not understood here.
        if header.crit.is_some() {
            return Err(TokenRefused::NotSigned);
        }
        let validation = self.validations.iter().find(|v| v.algorithms == [header.alg]);
        let key = self.keys.of_token(header.alg, header.kid.as_deref());
        let (Some(validation), Some(key)) = (validation, key) else { return Err(TokenRefused::NotSigned) };
        let claims = decode::<Map<String, Value>>(token, key, validation)
            .map_err(|error| TokenRefused::from(error.kind()))?
            .claims;
        match claims.get(&self.uid_claim) {
            Some(Value::String(uid)) => Ok(uid.clone()),
            Some(Value::Number(uid)) if uid.is_u64() || uid.is_i64() => Ok(uid.to_string()),
            _ => Err(TokenRefused::NoUid),
        }
    }
}

impl fmt::Debug for JwtPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtPolicy").field("uid_claim", &self.uid_claim).finish_non_exhaustive()
    }
}

/// Why a token is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenRefused {
    /// Not a JWT, another algorithm, an unknown key, or signed by someone else: these are not told apart,
    /// so that nobody learns what would have passed.
    NotSigned,
    /// Past its `exp`, or before its `nbf`.
    Time,
    /// No `exp`.
    NoExpiry,
    /// For another audience, or by another issuer.
    NotForUs,
    /// The uid claim is missing, or no string or whole number.
    NoUid,
}

impl TokenRefused {
    /// One sentence saying what to do.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::NotSigned => "the token is not signed under a key of this service: get one from it",
            Self::Time => "the token is not valid now: get a new one and connect again",
            Self::NoExpiry => "the token has no exp claim: issue it with one",
            Self::NotForUs => {
                "the token is for another audience or by another issuer: get one for this service"
            }
            Self::NoUid => "the token does not name a user: issue it with the uid claim set",
        }
    }
}

impl From<&ErrorKind> for TokenRefused {
    fn from(kind: &ErrorKind) -> Self {
        match kind {
            ErrorKind::ExpiredSignature | ErrorKind::ImmatureSignature => Self::Time,
            ErrorKind::MissingRequiredClaim(claim) if claim == "exp" => Self::NoExpiry,
            ErrorKind::InvalidClaimFormat(claim) if claim == "exp" => Self::NoExpiry,
            ErrorKind::InvalidAudience | ErrorKind::InvalidIssuer | ErrorKind::MissingRequiredClaim(_) => {
                Self::NotForUs
            }
            _ => Self::NotSigned,
        }
    }
}
