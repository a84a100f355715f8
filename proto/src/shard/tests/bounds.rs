//! What all rooms and sessions of a shard together may hold, and how much of it one sweep looks at.

use super::*;

/// Lets timers run for so long. The most of each of these that went in one step.
fn most_at_once(mesh: &mut Mesh, time: Duration, count: impl Fn(&ShardStats) -> [u64; 2]) -> [u64; 2] {
    let (end, mut most) = (mesh.now + time, [0, 0]);
    let counts = |mesh: &Mesh| count(&mesh.shards[&(0, 0)].stats());
    while let Some(due) = mesh.shards[&(0, 0)].next_deadline().filter(|due| *due <= end) {
        let before = counts(mesh);
        mesh.now = due.max(mesh.now);
        mesh.input((0, 0), Input::Timer);
        let after = counts(mesh);
        most = [0, 1].map(|i| most[i].max(before[i].saturating_sub(after[i])));
    }
    most
}

#[test]
fn all_rooms_together_remember_so_much_and_forget_the_oldest_of_all() {
    let limits = Limits { dedupe_entries_per_node_max: 20, ..Limits::default() };
    let mut mesh = Mesh::with(2, 1, limits, ProductRules::open("chat"));
    let publish = |mesh: &mut Mesh, n: usize| {
        mesh.wait(Duration::from_millis(10));
        let answer = mesh.query(0, api_publish(&format!("r{}", n % 7), "[\"e\"]", Some(&format!("k{n}"))));
        matches!(answer, Ok(Answer::Published { duplicate: true, .. }))
    };
    for n in 0..40 {
        assert!(!publish(&mut mesh, n), "new");
    }
    // Of seven rooms, each with a publisher: thirteen keys are left.
    assert!((28..40).all(|n| publish(&mut mesh, n)), "the last ones are known");
    assert!(!publish(&mut mesh, 0), "the first one is not");
}

#[test]
fn a_sweep_of_many_rooms_touches_so_many_at_a_time() {
    const ROOMS: u64 = 10_000;
    let limits =
        Limits { dedupe_window: second() * 10, room_log_age_max: second() * 10, ..Limits::default() };
    let mut mesh = Mesh::with(1, 1, limits, ProductRules::open("chat"));
    for n in 0..ROOMS {
        mesh.shards
            .get_mut(&(0, 0))
            .unwrap()
            .handle(mesh.now, Input::Query(n, api_publish(&format!("r{n}"), "[\"e\"]", Some("k"))));
    }
    mesh.drain((0, 0));
    assert_eq!(mesh.stats(|s| s.rooms), ROOMS);
    let entry = mesh.stats(|s| s.log_bytes) / ROOMS;
    let at_once = most_at_once(&mut mesh, second() * 30, |s| [s.log_bytes / entry, s.rooms]);
    assert_eq!(mesh.stats(|s| s.log_bytes + s.rooms), 0);
    assert!(at_once.iter().all(|count| (1..=4_096).contains(count)), "{at_once:?} entries and rooms at once");
}

#[test]
fn parked_sessions_are_counted_and_end_so_many_at_a_time() {
    const SESSIONS: u32 = 5_000;
    let limits = Limits { ping_interval: second() * 3_600, ..Limits::default() };
    let mut mesh = Mesh::with(1, 1, limits, ProductRules::open("chat"));
    let (now, product) = (mesh.now, mesh.rules.clone());
    let shard = mesh.shards.get_mut(&(0, 0)).unwrap();
    for n in 0..SESSIONS {
        let admission = Ok(Admission { product: product.clone(), uid: format!("u{n}").into() });
        let (protocol, transport) = (ClientProtocol::SocketIo, Transport::WebSocket);
        let new = NewClient { protocol, admission, offsets: true, transport };
        shard.handle(now, Input::ClientOpened(ClientIx(n), new));
        shard.handle(now, Input::ClientPacket(ClientIx(n), Packet::Text("40".into())));
    }
    mesh.drain((0, 0));
    assert_eq!((mesh.stats(|s| s.sessions), mesh.stats(|s| s.parked_sessions)), (u64::from(SESSIONS), 0));
    let shard = mesh.shards.get_mut(&(0, 0)).unwrap();
    for n in 0..SESSIONS {
        shard.handle(now, Input::ClientClosed(ClientIx(n), ClientGone::Closed));
    }
    mesh.drain((0, 0));
    assert_eq!(mesh.stats(|s| s.parked_sessions), u64::from(SESSIONS));
    let [at_once, _] = most_at_once(&mut mesh, second() * 130, |s| [s.parked_sessions, 0]);
    assert_eq!(mesh.stats(|s| s.parked_sessions), 0);
    assert!((1..=4_096).contains(&at_once), "{at_once} sessions at once");
}
