//! Whether the mesh thread keeps up with the socket it reads for the gossip thread.
//!
//! Belongs here: the look before timers fire. Stays out: reading (`endpoint`), timers (`gossip`).
//! Why: the gossip thread runs ahead of others where the kernel lets it, the mesh thread does not. When
//! the host is short of CPU, answers to this node's probes would lie unread in the socket while the
//! gossip thread takes their senders for dead. So its timers wait for the mesh thread; that they fire
//! late then tells the membership that this node is slow.
//! Invariants: timers wait at most [`WAITED_FOR`] at a time.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mesh_proto::time::Instant;

use super::endpoint::DatagramCounts;

/// Timers fire after this time even if nobody reads.
const WAITED_FOR: Duration = Duration::from_secs(2);

/// The mesh thread, as seen from the gossip thread.
pub(crate) struct Reader {
    /// The same socket; only peeked into.
    socket: UdpSocket,
    counts: Arc<DatagramCounts>,
    /// Datagrams were waiting: since when, and how often the mesh thread had looked by then.
    behind: Option<(Instant, u64)>,
}

impl Reader {
    pub(crate) fn new(socket: UdpSocket, counts: Arc<DatagramCounts>) -> Self {
        Self { socket, counts, behind: None }
    }

    /// Whether timers may fire: nothing waits in the socket, or the mesh thread has looked into it
    /// since that was first asked.
    pub(crate) fn keeps_up(&mut self, now: Instant) -> bool {
        let looks = self.counts.looks.load(Ordering::Relaxed);
        let waited =
            self.behind.is_some_and(|(since, before)| looks != before || now.since(since) >= WAITED_FOR);
        if waited || self.socket.peek_from(&mut [0]).is_err() {
            self.behind = None;
            return true;
        }
        self.behind.get_or_insert((now, looks));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_wait_while_nobody_reads_the_socket() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let counts = Arc::<DatagramCounts>::default();
        let mut reader = Reader::new(socket.try_clone().unwrap(), counts.clone());
        let at = |millis: u64| Instant::from_micros(millis * 1_000);
        assert!(reader.keeps_up(at(0)), "nothing waits");

        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        assert!(!reader.keeps_up(at(1)));
        assert!(!reader.keeps_up(at(1_000)));
        counts.looks.fetch_add(1, Ordering::Relaxed);
        assert!(reader.keeps_up(at(1_001)), "the mesh thread has had its turn");

        assert!(!reader.keeps_up(at(1_002)), "there is more, perhaps");
        assert!(reader.keeps_up(at(3_002)), "nobody waits for ever");

        assert!(!reader.keeps_up(at(3_003)));
        socket.recv(&mut [0]).unwrap();
        assert!(reader.keeps_up(at(3_004)), "all is read");
    }
}
