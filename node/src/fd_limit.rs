//! How many files and sockets this process may have open.
//!
//! Belongs here: raising the soft limit to the hard one, as every server does. Stays out: what the
//! descriptors are shared out for (`admission`).

#![allow(unsafe_code, reason = "getrlimit and setrlimit are only reachable through libc")]

use std::io;

/// Descriptors kept for links, admin, logs and files.
pub const RESERVED: u64 = 64;

/// Raises the soft limit to the hard limit and returns the limit then in force.
///
/// # Errors
/// When the limit cannot even be read. A limit that cannot be raised is returned as it is.
pub fn raise() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid, exclusive pointer for the whole call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
    // SAFETY: `raised` is a valid pointer for the whole call and is not kept.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
        limit = raised;
    }
    Ok(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_limit_is_known_and_not_lowered() {
        let first = super::raise().unwrap();
        assert!(first > super::RESERVED);
        assert_eq!(super::raise().unwrap(), first);
    }
}
