//! Who may come in: counts and rates, decided before a byte of the request is read.
//!
//! Belongs here: connections per node and per address, handshakes per second of both, clients per
//! shard, refusals by reason.
//! Stays out: sockets (`listener`), requests (`transport`), users (`identity`, `mesh_proto`).
//! Owner: shared by the acceptor and every open client (whose [`ClientPlace`] frees its count from
//! the shard's thread); the one lock is held for a table lookup, never across anything else.
//! Invariants: every count taken is given back exactly once, by dropping the place; the table of
//! addresses holds those with open connections and those of the last second, nobody else.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_proto::id::ShardIx;
use mesh_proto::time::Instant;

use crate::fd_limit;
use crate::transport::Response;

/// Address table entries that are kept without looking for stale ones.
const SWEEP_ABOVE_MIN: usize = 1_024;

/// What is let in (DESIGN §15).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Open connections of this node, half-open handshakes included.
    pub connections_max: usize,
    /// Open connections of one address (IPv6: of one /64).
    pub connections_per_ip_max: u32,
    /// New connections per second of this node; a second's worth may come at once.
    pub handshakes_per_second: u32,
    /// New connections per second of one address; a second's worth may come at once.
    pub handshakes_per_ip_per_second: u32,
}

impl Default for AdmissionLimits {
    fn default() -> Self {
        Self {
            connections_max: 50_000,
            connections_per_ip_max: 1_000,
            handshakes_per_second: 2_000,
            handshakes_per_ip_per_second: 100,
        }
    }
}

impl AdmissionLimits {
    /// The same within what the operating system allows (`fd_limit::raise`): some descriptors stay
    /// reserved for links, admin and files, so that running out of them shows here first.
    #[must_use]
    pub fn within(self, descriptors_max: u64) -> Self {
        let free = usize::try_from(descriptors_max.saturating_sub(fd_limit::RESERVED)).unwrap_or(usize::MAX);
        if free < self.connections_max {
            tracing::warn!(
                wanted = self.connections_max,
                allowed = free,
                "fewer client connections than configured: raise the limit of open files"
            );
        }
        Self { connections_max: self.connections_max.min(free), ..self }
    }
}

/// Why a connection or request was refused. A closed set: it is a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Reason {
    /// The node has as many connections as it may.
    NodeFull,
    /// The node has taken as many handshakes this second as it may.
    NodeRate,
    /// The address has as many connections as it may.
    IpFull,
    /// The address has made as many handshakes this second as it may.
    IpRate,
    /// The node is draining.
    Draining,
    /// Every shard's queue is full.
    ShardBusy,
    /// No whole request head in time.
    HeadTimeout,
    /// A request head over a bound.
    HeadTooLarge,
    /// A request head that is none.
    Malformed,
    /// A request head in order that asks for something wrong.
    BadHandshake,
    /// A path we do not have.
    NotFound,
    /// Nobody that the product of the request lets in.
    Denied,
    /// What a product's requests are passed on to does not take them now.
    NoUpstream,
}

impl Reason {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 13] = [
        Self::NodeFull,
        Self::NodeRate,
        Self::IpFull,
        Self::IpRate,
        Self::Draining,
        Self::ShardBusy,
        Self::HeadTimeout,
        Self::HeadTooLarge,
        Self::Malformed,
        Self::BadHandshake,
        Self::NotFound,
        Self::Denied,
        Self::NoUpstream,
    ];

    /// Its label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NodeFull => "node_full",
            Self::NodeRate => "node_rate",
            Self::IpFull => "ip_full",
            Self::IpRate => "ip_rate",
            Self::Draining => "draining",
            Self::ShardBusy => "shard_busy",
            Self::HeadTimeout => "head_timeout",
            Self::HeadTooLarge => "head_too_large",
            Self::Malformed => "malformed",
            Self::BadHandshake => "bad_handshake",
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::NoUpstream => "no_upstream",
        }
    }

    /// What a client refused for the sake of the node or its neighbours is told: come back.
    #[must_use]
    pub fn busy_response(self) -> Response {
        let status = match self {
            Self::IpFull | Self::IpRate => 429,
            _ => 503,
        };
        let body = format!(r#"{{"error":{{"code":"{}","message":"come back in a moment"}}}}"#, self.as_str());
        Response::json(status, body).with_header("Retry-After", "1")
    }
}

/// The counts of one node's client port.
#[derive(Debug)]
pub struct Admission {
    limits: AdmissionLimits,
    open: AtomicUsize,
    draining: AtomicBool,
    clients: Box<[AtomicUsize]>,
    refused: [RefusalCount; Reason::ALL.len()],
    forwarded_ignored: AtomicU64,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct RefusalCount {
    total: AtomicU64,
    /// The second (from 1) in which it was last logged.
    logged: AtomicU64,
}

#[derive(Debug)]
struct Table {
    node: Rate,
    addresses: HashMap<AddressKey, Address>,
    sweep_above: usize,
    /// Whether the exemption of private peers has been mentioned.
    private_seen: bool,
}

#[derive(Debug, Default)]
struct Address {
    open: u32,
    rate: Rate,
}

/// An IPv4 address, or the /64 of an IPv6 one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct AddressKey(u64);

impl AddressKey {
    /// `None` for peers that limits per address do not apply to: what comes from loopback or from a
    /// private network is most likely many people behind one balancer.
    fn of(ip: IpAddr) -> Option<Self> {
        match ip.to_canonical() {
            IpAddr::V4(ip) if ip.is_loopback() || ip.is_private() || ip.is_link_local() => None,
            // No /64 in use begins with 48 zero bits, so the two kinds cannot meet.
            IpAddr::V4(ip) => Some(Self(u64::from(ip.to_bits()))),
            IpAddr::V6(ip) if is_private_v6(ip) => None,
            IpAddr::V6(ip) => Some(Self((ip.to_bits() >> 64) as u64)),
        }
    }
}

fn is_private_v6(ip: Ipv6Addr) -> bool {
    ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()
}

/// A token bucket holding one second's worth, as the moment at which it will be full again
/// (the "virtual scheduling" form of the leaky bucket, ITU-T I.371 annex A).
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    full_at_micros: u64,
}

impl Rate {
    const BURST_MICROS: u64 = 1_000_000;

    fn take(&mut self, now: Instant, per_second: u32) -> bool {
        let cost = Self::BURST_MICROS / u64::from(per_second.max(1));
        let now = now.as_micros();
        let full_at = self.full_at_micros.max(now) + cost;
        let allowed = full_at <= now + Self::BURST_MICROS;
        if allowed {
            self.full_at_micros = full_at;
        }
        allowed
    }

    fn is_full(self, now: Instant) -> bool {
        self.full_at_micros <= now.as_micros()
    }
}

impl Admission {
    /// Counts for a node with `shards` shards.
    #[must_use]
    pub fn new(limits: AdmissionLimits, shards: usize) -> Arc<Self> {
        let table = Table {
            node: Rate::default(),
            addresses: HashMap::new(),
            sweep_above: SWEEP_ABOVE_MIN,
            private_seen: false,
        };
        Arc::new(Self {
            limits,
            open: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            clients: (0..shards.max(1)).map(|_| AtomicUsize::new(0)).collect(),
            refused: std::array::from_fn(|_| RefusalCount::default()),
            forwarded_ignored: AtomicU64::new(0),
            table: Mutex::new(table),
        })
    }

    /// A place for a connection from `ip`.
    ///
    /// # Errors
    /// The reason it must wait; nothing is counted then but the refusal's reason (by the caller).
    pub fn admit(self: &Arc<Self>, ip: IpAddr, now: Instant) -> Result<ClientPlace, Reason> {
        self.admit_as(Some(ip), now)
    }

    /// A place for a connection of a proxy, which counts for an address when it is known for whom it stands.
    ///
    /// # Errors
    /// As [`Self::admit`].
    pub fn admit_proxy(self: &Arc<Self>, now: Instant) -> Result<ClientPlace, Reason> {
        self.admit_as(None, now)
    }

    fn admit_as(self: &Arc<Self>, ip: Option<IpAddr>, now: Instant) -> Result<ClientPlace, Reason> {
        if self.open.load(Ordering::Relaxed) >= self.limits.connections_max {
            return Err(Reason::NodeFull);
        }
        let mut table = self.lock();
        let key = ip.map_or(Ok(None), |ip| table.take(ip, now, &self.limits))?;
        if !table.node.take(now, self.limits.handshakes_per_second) {
            return Err(Reason::NodeRate);
        }
        if let Some(address) = key.and_then(|key| table.addresses.get_mut(&key)) {
            address.open += 1;
        }
        drop(table);
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(ClientPlace { admission: self.clone(), address: key, shard: None })
    }

    /// The shard with the fewest clients.
    #[must_use]
    pub fn emptiest_shard(&self) -> ShardIx {
        let counts = self.clients.iter().map(|count| count.load(Ordering::Relaxed));
        let (shard, _) = counts.enumerate().min_by_key(|&(_, count)| count).unwrap_or_default();
        ShardIx(u16::try_from(shard).unwrap_or(0))
    }

    /// Whether no new client may come in. Requests of clients that are in are still served.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Lets no new client in from now on, or no longer.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    /// Connections open, half-open handshakes included.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Refusals so far, by reason.
    pub fn refusals(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        let count = |reason: Reason| self.refused[reason as usize].total.load(Ordering::Relaxed);
        Reason::ALL.into_iter().map(move |reason| (reason, count(reason)))
    }

    /// Requests so far whose `X-Forwarded-*` nobody believed.
    #[must_use]
    pub fn forwarded_ignored(&self) -> u64 {
        self.forwarded_ignored.load(Ordering::Relaxed)
    }

    /// Counts one.
    pub fn count_forwarded_ignored(&self) {
        self.forwarded_ignored.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a refusal, and logs it unless one for the same reason was logged this second.
    pub fn count_refusal(&self, reason: Reason, ip: IpAddr, now: Instant) {
        let count = &self.refused[reason as usize];
        let total = count.total.fetch_add(1, Ordering::Relaxed) + 1;
        let second = now.as_micros() / 1_000_000 + 1;
        if count.logged.swap(second, Ordering::Relaxed) != second {
            tracing::debug!(reason = reason.as_str(), remote = %ip, total, "client refused");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // A panic while it was held can have left at most one count off by one.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Counts a handshake of an address, which may have one more connection.
    fn take(
        &mut self,
        ip: IpAddr,
        now: Instant,
        limits: &AdmissionLimits,
    ) -> Result<Option<AddressKey>, Reason> {
        let Some(key) = AddressKey::of(ip) else {
            if !ip.to_canonical().is_loopback() && !std::mem::replace(&mut self.private_seen, true) {
                tracing::warn!(
                    "clients from a private network: limits per address do not apply to them; if it is a \
                     balancer, name it in client.trusted_proxies"
                );
            }
            return Ok(None);
        };
        self.sweep(now);
        let address = self.addresses.entry(key).or_default();
        if address.open >= limits.connections_per_ip_max {
            return Err(Reason::IpFull);
        }
        if !address.rate.take(now, limits.handshakes_per_ip_per_second) {
            return Err(Reason::IpRate);
        }
        Ok(Some(key))
    }

    /// Drops addresses that have nothing open and have used nothing up; amortised over insertions.
    fn sweep(&mut self, now: Instant) {
        if self.addresses.len() < self.sweep_above {
            return;
        }
        self.addresses.retain(|_, address| address.open > 0 || !address.rate.is_full(now));
        self.sweep_above = (2 * self.addresses.len()).max(SWEEP_ABOVE_MIN);
    }
}

/// A connection's place in the counts of [`Admission`]. Dropped with the connection.
#[derive(Debug)]
pub struct ClientPlace {
    admission: Arc<Admission>,
    address: Option<AddressKey>,
    shard: Option<ShardIx>,
}

impl ClientPlace {
    /// It stands for this address from now on, as the head of its (next) request has it.
    ///
    /// # Errors
    /// The reason why that address must wait; the place counts for nobody then.
    pub fn stand_for(&mut self, ip: IpAddr, now: Instant) -> Result<(), Reason> {
        let admission = self.admission.clone();
        let mut table = admission.lock();
        if self.address.is_some() && self.address == AddressKey::of(ip) {
            return Ok(());
        }
        if let Some(address) = self.address.take().and_then(|key| table.addresses.get_mut(&key)) {
            address.open -= 1;
        }
        self.address = table.take(ip, now, &admission.limits)?;
        if let Some(address) = self.address.and_then(|key| table.addresses.get_mut(&key)) {
            address.open += 1;
        }
        Ok(())
    }

    /// Counts it as a client of `shard`.
    pub fn enter(&mut self, shard: ShardIx) {
        self.leave();
        if let Some(count) = self.admission.clients.get(usize::from(shard.0)) {
            count.fetch_add(1, Ordering::Relaxed);
            self.shard = Some(shard);
        }
    }

    fn leave(&mut self) {
        if let Some(shard) = self.shard.take() {
            self.admission.clients[usize::from(shard.0)].fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for ClientPlace {
    fn drop(&mut self) {
        self.leave();
        self.admission.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(key) = self.address
            && let Some(address) = self.admission.lock().addresses.get_mut(&key)
        {
            address.open -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn limits() -> AdmissionLimits {
        AdmissionLimits {
            connections_max: 4,
            connections_per_ip_max: 2,
            handshakes_per_second: 100,
            handshakes_per_ip_per_second: 3,
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_place_is_freed_when_it_is_dropped() {
        let admission = Admission::new(limits(), 1);
        let at = Instant::from_micros;
        let first = admission.admit(ip("192.0.2.1"), at(0)).unwrap();
        let _second = admission.admit(ip("192.0.2.1"), at(0)).unwrap();
        assert_eq!(admission.admit(ip("192.0.2.1"), at(0)).unwrap_err(), Reason::IpFull);
        drop(first);
        assert_eq!(admission.open(), 1);
        let _third = admission.admit(ip("192.0.2.1"), at(0)).unwrap();
        let _others = [
            admission.admit(ip("192.0.2.2"), at(0)).unwrap(),
            admission.admit(ip("192.0.2.3"), at(0)).unwrap(),
        ];
        assert_eq!(admission.admit(ip("192.0.2.4"), at(0)).unwrap_err(), Reason::NodeFull);
    }

    #[test]
    fn some_descriptors_stay_in_reserve() {
        assert_eq!(limits().within(66).connections_max, 2);
        assert_eq!(limits().within(u64::MAX), limits());
    }

    #[test]
    fn an_address_may_make_a_seconds_worth_of_handshakes_at_once() {
        let admission = Admission::new(limits(), 1);
        let tries = |micros: u64| {
            (0..5).filter(|_| admission.admit(ip("192.0.2.1"), Instant::from_micros(micros)).is_ok()).count()
        };
        assert_eq!(tries(0), 3);
        assert_eq!(tries(SECOND / 2), 1);
        assert_eq!(tries(10 * SECOND), 3);
    }

    #[test]
    fn the_node_has_a_rate_of_its_own_and_loopback_counts_for_it_only() {
        let limits = AdmissionLimits { handshakes_per_second: 10, ..limits() };
        let admission = Admission::new(limits, 1);
        let results: Vec<_> =
            (0..11).map(|_| admission.admit(ip("127.0.0.1"), Instant::ZERO).map(drop)).collect();
        assert!(results[..10].iter().all(Result::is_ok));
        assert_eq!(results[10], Err(Reason::NodeRate));
    }

    #[test]
    fn ipv6_counts_by_64_and_mapped_addresses_as_ipv4() {
        let key = |text: &str| AddressKey::of(ip(text));
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:2"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        for exempt in ["127.0.0.1", "10.1.2.3", "192.168.0.1", "::1", "fd00::1", "fe80::1", "::ffff:10.0.0.1"]
        {
            assert_eq!(key(exempt), None, "{exempt}");
        }
    }

    #[test]
    fn clients_go_to_the_emptiest_shard() {
        let admission = Admission::new(limits(), 2);
        let mut places: Vec<_> =
            (0..3).map(|_| admission.admit(ip("127.0.0.1"), Instant::ZERO).unwrap()).collect();
        for place in &mut places {
            place.enter(admission.emptiest_shard());
        }
        assert_eq!(admission.emptiest_shard(), ShardIx(1));
        places.remove(0);
        assert_eq!(admission.emptiest_shard(), ShardIx(0));
    }

    #[test]
    fn the_table_forgets_addresses_that_are_gone() {
        let limits = AdmissionLimits { handshakes_per_second: u32::MAX, ..limits() };
        let admission = Admission::new(limits, 1);
        for number in 0..100_000_u32 {
            let address = IpAddr::V4((0x5000_0000 + number).into());
            let now = Instant::from_micros(u64::from(number) * 500);
            let _ = admission.admit(address, now);
        }
        assert!(admission.lock().addresses.len() < 10_000);
    }

    #[test]
    fn refusals_are_counted_by_reason_and_told_with_a_time_to_come_back() {
        let admission = Admission::new(limits(), 1);
        admission.count_refusal(Reason::Draining, ip("127.0.0.1"), Instant::ZERO);
        let counted: Vec<_> = admission.refusals().filter(|&(_, count)| count > 0).collect();
        assert_eq!(counted, [(Reason::Draining, 1)]);
        assert_eq!(Reason::Draining.busy_response().status, 503);
        assert_eq!(Reason::IpRate.busy_response().status, 429);
    }
}
