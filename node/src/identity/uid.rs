//! What a uid may look like.
//!
//! Belongs here: one form for texts that look the same, and what no uid may hold.
//! Stays out: where it comes from (`sources`).
//! Invariants: whatever is hashed, compared or shown as a uid has passed here once. Letters are composed
//! (NFC, Unicode annex 15); nothing is trimmed and case is kept, for two users may differ by it.

use std::sync::Arc;

use mesh_proto::id::ANONYMOUS;
use unicode_normalization::UnicodeNormalization as _;

use super::{Denied, UID_INVALID, UID_REQUIRED};

/// The uid that a client comes by: as [`normal_uid`], and none that looks like an anonymous user.
///
/// # Errors
/// `uid_required` for an empty one, `uid_invalid` else.
pub fn check_uid(uid: &str, bytes_max: usize) -> Result<Arc<str>, Denied> {
    if uid.starts_with(ANONYMOUS) {
        return Err(Denied::uid(UID_INVALID, "uids that begin with ~ are for anonymous clients"));
    }
    normal_uid(uid, bytes_max)
}

/// The one form of a uid: composed, 1 to `bytes_max` bytes, no control characters.
///
/// # Errors
/// `uid_required` for an empty one, `uid_invalid` else.
pub fn normal_uid(uid: &str, bytes_max: usize) -> Result<Arc<str>, Denied> {
    if uid.is_empty() {
        return Err(Denied::uid(UID_REQUIRED, "the uid is empty: send one"));
    }
    if uid.chars().any(char::is_control) {
        return Err(Denied::uid(UID_INVALID, "the uid has control characters: send one without"));
    }
    let normal: Arc<str> = match uid.is_ascii() {
        true => uid.into(),
        false => uid.nfc().collect::<String>().into(),
    };
    if normal.len() > bytes_max {
        let message = format!("the uid is over {bytes_max} bytes: send a shorter one");
        return Err(Denied::uid(UID_INVALID, &message));
    }
    Ok(normal)
}
