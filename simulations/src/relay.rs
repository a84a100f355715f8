//! A network between real nodes that can be cut.
//!
//! Belongs here: one UDP door per node, passing datagrams on between doors, cutting and mending ways.
//! Stays out: who is cut from whom, and when (`kill9`).
//! Method: a node advertises its door and listens elsewhere. What node `i` sends to the door of node `j`
//! goes on to `j` from the door of `i`, so that each knows the other by its door alone. A cut way drops
//! what comes on it, one datagram after another, without a word to either side.
//! Invariants: only datagrams of nodes that were placed are passed on; all doors are on loopback; the
//! threads end with the relay.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::SockRef;

/// Larger than any datagram of a node.
const DATAGRAM_BYTES_MAX: usize = 64 << 10;

/// A door looks this often whether it is to be shut.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What may wait at a door; more is lost, as at a switch. As much as at a node.
const QUEUE_BYTES: usize = 4 << 20;

/// The doors of all nodes.
#[derive(Debug)]
pub(crate) struct Relay {
    doors: Arc<Doors>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Doors {
    sockets: Vec<UdpSocket>,
    addresses: Vec<SocketAddr>,
    /// Where the nodes listen.
    homes: RwLock<Vec<Option<SocketAddr>>>,
    /// By sender × receiver.
    cut: Vec<AtomicBool>,
    shut: AtomicBool,
}

impl Relay {
    /// Opens a door for each of `count` nodes.
    ///
    /// # Errors
    /// Those of the sockets and threads.
    pub(crate) fn open(count: usize) -> io::Result<Self> {
        let sockets = (0..count).map(|_| door()).collect::<io::Result<Vec<_>>>()?;
        let addresses = sockets.iter().map(UdpSocket::local_addr).collect::<io::Result<_>>()?;
        let doors = Arc::new(Doors {
            sockets,
            addresses,
            homes: RwLock::new(vec![None; count]),
            cut: std::iter::repeat_with(AtomicBool::default).take(count * count).collect(),
            shut: AtomicBool::new(false),
        });
        let mut relay = Self { doors: doors.clone(), threads: Vec::new() };
        for to in 0..count {
            let doors = doors.clone();
            let thread = std::thread::Builder::new().name(format!("relay/{to}"));
            relay.threads.push(thread.spawn(move || doors.serve(to))?);
        }
        Ok(relay)
    }

    /// The address that `node` is to advertise.
    pub(crate) fn door(&self, node: usize) -> SocketAddr {
        self.doors.addresses[node]
    }

    /// `node` listens at `home` now.
    pub(crate) fn place(&self, node: usize, home: SocketAddr) {
        self.doors.homes.write().unwrap_or_else(PoisonError::into_inner)[node] = Some(home);
    }

    /// Drops from now on what `from` sends to `to`.
    pub(crate) fn cut(&self, from: usize, to: usize) {
        self.doors.way(from, to).store(true, Ordering::Relaxed);
    }

    /// Passes everything on again.
    pub(crate) fn mend(&self) {
        for way in &self.doors.cut {
            way.store(false, Ordering::Relaxed);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.doors.shut.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing left to end.
            let _ = thread.join();
        }
    }
}

fn door() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let options = SockRef::from(&socket);
    // Less is given where the system allows no more: then bursts lose more.
    let _ = options.set_recv_buffer_size(QUEUE_BYTES);
    let _ = options.set_send_buffer_size(QUEUE_BYTES);
    socket.set_read_timeout(Some(LOOK_EVERY))?;
    Ok(socket)
}

impl Doors {
    fn way(&self, from: usize, to: usize) -> &AtomicBool {
        &self.cut[from * self.sockets.len() + to]
    }

    /// Passes on what comes to the door of `to`, until the relay is shut.
    fn serve(&self, to: usize) {
        let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
        while !self.shut.load(Ordering::Relaxed) {
            // An error is the time-out, or a node that does not listen now.
            let Ok((len, source)) = self.sockets[to].recv_from(&mut datagram) else { continue };
            let homes = self.homes.read().unwrap_or_else(PoisonError::into_inner);
            let Some(from) = homes.iter().position(|home| *home == Some(source)) else { continue };
            if let Some(home) = homes[to]
                && !self.way(from, to).load(Ordering::Relaxed)
            {
                // As on any network, a datagram may be lost.
                let _ = self.sockets[from].send_to(&datagram[..len], home);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(relay: &Relay, node: usize) -> UdpSocket {
        let home = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        home.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        relay.place(node, home.local_addr().unwrap());
        home
    }

    #[test]
    fn nodes_know_each_other_by_their_doors_and_a_cut_way_is_one_way() {
        let relay = Relay::open(3).unwrap();
        let homes = [home(&relay, 0), home(&relay, 1), home(&relay, 2)];
        let mut bytes = [0; 16];
        homes[0].send_to(b"one", relay.door(1)).unwrap();
        assert_eq!(homes[1].recv_from(&mut bytes).unwrap(), (3, relay.door(0)));
        relay.cut(0, 1);
        homes[0].send_to(b"lost", relay.door(1)).unwrap();
        homes[1].send_to(b"back", relay.door(0)).unwrap();
        assert_eq!(homes[0].recv_from(&mut bytes).unwrap(), (4, relay.door(1)));
        // A door takes one datagram after the other: this one was behind the one that is gone.
        homes[2].send_to(b"other", relay.door(1)).unwrap();
        assert_eq!(homes[1].recv_from(&mut bytes).unwrap(), (5, relay.door(2)));
        relay.mend();
        homes[0].send_to(b"again!", relay.door(1)).unwrap();
        assert_eq!(homes[1].recv_from(&mut bytes).unwrap(), (6, relay.door(0)));
    }
}
