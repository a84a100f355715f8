//! A head start for the gossip thread: the one system call of this crate that std does not have.
//!
//! Why: a node whose gossip thread waits for a CPU longer than the suspicion time is declared down.

#![allow(unsafe_code, reason = "setpriority has no safe wrapper in std or in our dependencies")]

/// Nice value asked for: ahead of everything ordinary, behind what operators put at -20.
const NICE: libc::c_int = -10;

/// Raises the calling thread's priority; whether the kernel allowed it (root or CAP_SYS_NICE).
#[cfg(target_os = "linux")]
pub(crate) fn raise() -> bool {
    // SAFETY: takes integers only and touches no memory of ours. On Linux, 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) == 0 }
}

/// Elsewhere the call would move the whole process: left alone.
#[cfg(not(target_os = "linux"))]
pub(crate) fn raise() -> bool {
    let _ = NICE;
    false
}
