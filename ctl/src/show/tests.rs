use meshd::admin::answers::{ConfigValue, Counts, RingNodeLine, SubscriberLine};

use super::*;

fn node(name: &str, share: f64, counts: Option<Counts>) -> NodeLine {
    NodeLine {
        name: name.into(),
        incarnation: 17,
        state: "active".into(),
        mesh_addr: "127.0.0.1:4083".into(),
        share,
        counts,
        ..NodeLine::default()
    }
}

fn counts(clients: u64, agrees: bool) -> Option<Counts> {
    let ring_digest = if agrees { "c69eaadc96e1d0f4" } else { "0000000000000007" };
    let ring_digest = ring_digest.into();
    let counts =
        Counts { clients, sessions: 2, rooms: 1, ring_digest, agrees, uptime_secs: 125, ..Counts::default() };
    Some(Counts { history_bytes: 6_000, ..counts })
}

fn healthy() -> Status {
    Status {
        problems: Vec::new(),
        problems_untold: 0,
        node: "a".into(),
        software: "0.1.0".into(),
        uptime_secs: 125,
        ring_digest: "c69eaadc96e1d0f4".into(),
        ring_agreed: Some(true),
        nodes: vec![
            NodeLine { is_me: true, ..node("a", 0.334, counts(1_200, true)) },
            node("b-long-name", 0.666, counts(7, true)),
        ],
    }
}

#[test]
fn a_healthy_status() {
    let expected = "\
problems: none

2 nodes, ring c69eaadc96e1d0f4 agreed by all (seen from a, 0.1.0, up 2 min 5 s)

NODE         STATE   INCARNATION  ADDRESS          SHARE  CLIENTS  SESSIONS  ROOMS  UP         RING
a *          active  17           127.0.0.1:4083  33.4 %     1200         2      1  2 min 5 s  c69eaadc96e1d0f4 agrees
b-long-name  active  17           127.0.0.1:4083  66.6 %        7         2      1  2 min 5 s  c69eaadc96e1d0f4 agrees

copies to fill 0, ops unconfirmed 0, history kept 11 KiB, parked sessions 0
";
    assert_eq!(status(&healthy()), expected);
}

#[test]
fn a_status_with_problems_begins_with_them() {
    let mut sick = healthy();
    sick.problems = vec![
        Problem {
            what: "b does not answer probes".into(),
            since_secs: 75,
            hurts: "users it owns may pause".into(),
            advice: "look at its CPU".into(),
            said_by: vec!["a".into(), "c".into()],
        },
        Problem {
            what: "c is gone".into(),
            hurts: "nobody".into(),
            advice: "wait".into(),
            ..Problem::default()
        },
    ];
    sick.problems_untold = 3;
    sick.ring_agreed = Some(false);
    let pending = |counts: Counts| Counts { copies_pending: 40, replication_lag_ops: 7, ..counts };
    sick.nodes[0].counts = counts(3, false).map(pending);
    let drain = DrainLine {
        node: "b".into(),
        phase: "closing".into(),
        clients: 120,
        to_hand_over: 5,
        elapsed_ms: 14_250,
        ..DrainLine::default()
    };
    sick.nodes[1] = NodeLine { state: "suspect".into(), drain: Some(drain), ..node("b", 0.5, None) };
    let expected = "\
problems: 2
  b does not answer probes (for 1 min 15 s, say a, c); hurts: users it owns may pause; do: look at its CPU
  c is gone (now); hurts: nobody; do: wait
  and 3 more: ask the nodes themselves

2 nodes, ring c69eaadc96e1d0f4 NOT AGREED (seen from a, 0.1.0, up 2 min 5 s)

NODE  STATE    INCARNATION  ADDRESS          SHARE  CLIENTS  SESSIONS  ROOMS  UP         RING
a *   active   17           127.0.0.1:4083  33.4 %        3         2      1  2 min 5 s  0000000000000007 DIFFERS
b     suspect  17           127.0.0.1:4083  50.0 %        -         -      -  -          no answer

drains: b  closing    120 clients left, 5 entities left, 14.2 s
re-replication: a has 40 copies to fill, 7 ops unconfirmed
copies to fill 40, ops unconfirmed 7, history kept 6000 B, parked sessions 0
";
    assert_eq!(status(&sick), expected);
}

#[test]
fn a_ring() {
    let line = |name: &str, share, arcs| RingNodeLine {
        name: name.into(),
        share,
        weight: 1,
        arcs,
        ..RingNodeLine::default()
    };
    let answer = RingAnswer {
        node: "a".into(),
        ring_digest: "c69eaadc96e1d0f4".into(),
        nodes: vec![line("a", 0.25, 110), line("b", 0.5, 190)],
        arcs: Vec::new(),
    };
    let expected = "\
ring c69eaadc96e1d0f4 (seen from a)

NODE   SHARE  WEIGHT  ZONE  ARCS
a     25.0 %       1     0   110  ████████████████████
b     50.0 %       1     0   190  ████████████████████████████████████████
";
    assert_eq!(ring(&answer), expected);
}

fn explained_as(facts: Facts) -> String {
    explained(&Explained {
        node: "a".into(),
        key: "user \"alice\" of product \"chat\"".into(),
        hash: "c52f2d85acb0e39f".into(),
        ring_digest: "c69eaadc96e1d0f4".into(),
        owner: Some("b".into()),
        shard: Some(1),
        backup: Some("c".into()),
        next: vec!["a".into()],
        facts,
    })
}

#[test]
fn an_explained_user() {
    let session = |edge: Option<&str>| SessionLine {
        sid: "BwcHBwcHBwcHBwcHBwcHBw".into(),
        namespace: "/".into(),
        term: "3 by b".into(),
        edge: edge.map(str::to_owned),
        rooms: 2,
        inbound: 10,
        own_seq: 4,
        ownership: OwnershipLine {
            backup: Some("c".into()),
            lag_ops: 2,
            began: "take-over".into(),
            from: Some("d".into()),
            since_secs: 61,
        },
    };
    let expected = "\
key     user \"alice\" of product \"chat\"
hash    c52f2d85acb0e39f
owner   b, shard 1
backup  c
then    a
ring    c69eaadc96e1d0f4 (seen from a)

SESSION                 NAMESPACE  EDGE                          ROOMS  INBOUND  OWN LOG  TERM    SINCE                                     BACKUP
BwcHBwcHBwcHBwcHBwcHBw  /          a shard 0                         2       10        4  3 by b  1 min 1 s, taken over from d, which went  c, 2 ops behind
BwcHBwcHBwcHBwcHBwcHBw  /          none: waiting for its client      2       10        4  3 by b  1 min 1 s, taken over from d, which went  c, 2 ops behind
";
    assert_eq!(explained_as(Facts::User(vec![session(Some("a shard 0")), session(None)])), expected);
}

#[test]
fn an_explained_room_and_keys_nobody_knows() {
    let room = RoomLine {
        term: "3 by b".into(),
        seq: 9,
        entries: 9,
        bytes: 900,
        seconds_kept: 30,
        subscribers: vec![SubscriberLine { edge: "a shard 0".into(), seq: 8 }],
        ownership: OwnershipLine {
            began: "hand-over".into(),
            from: Some("a".into()),
            ..OwnershipLine::default()
        },
    };
    let text = explained_as(Facts::Room(room));
    let expected = "\
log     9 entries, 900 bytes, the oldest 30 s old
newest  9
term    3 by b
since   0 s, handed over by a
backup  none

EDGE       HAS TAKEN
a shard 0          8
";
    assert!(text.ends_with(expected), "{text}");
    assert!(explained_as(Facts::Nothing).ends_with("no session, no event, no member, no binding.\n"));
    assert!(explained_as(Facts::Unknown("no answer".into())).ends_with("did not say: no answer.\n"));
}

#[test]
fn an_explained_binding() {
    let binding = |ends_in_secs| BindingLine {
        upstream: "10.0.0.1:3000".into(),
        term: "3 by b".into(),
        decision: 2,
        ends_in_secs,
        ownership: OwnershipLine {
            backup: Some("c".into()),
            began: "new".into(),
            ..OwnershipLine::default()
        },
    };
    let expected = "\
bound to  10.0.0.1:3000
decision  2, under term 3 by b
ends      in 30 s, unless it is used
since     0 s, began here
backup    c, has all
";
    let text = explained_as(Facts::Binding(binding(Some(30))));
    assert!(text.ends_with(expected), "{text}");
    assert!(explained_as(Facts::Binding(binding(None))).contains("ends      when it is lifted\n"));
}

#[test]
fn settings() {
    let value = |key: &str, value: &str, origin: &str| ConfigValue {
        key: key.into(),
        value: value.into(),
        origin: origin.into(),
        restart: true,
    };
    let answer = ConfigAnswer {
        node: "a".into(),
        values: vec![value("mesh.key", "***", "env MESHD_MESH__KEY"), value("node.name", "", "default")],
    };
    let expected = "\
SETTING    VALUE  SET BY               CHANGE NEEDS
mesh.key   ***    env MESHD_MESH__KEY  restart
node.name  \"\"     default              restart
";
    assert_eq!(config(&answer), expected);
}

#[test]
fn spans_read_well() {
    assert_eq!([0, 59, 61, 3_600, 90_000].map(span), ["0 s", "59 s", "1 min 1 s", "1 h 0 min", "1 d 1 h"]);
}

#[test]
fn what_happens_is_one_line_each() {
    let happened = Event {
        at_ms: 1_800_000_000_123,
        kind: "up".into(),
        node: "b".into(),
        text: "b is up".into(),
        ..Event::default()
    };
    assert_eq!(event(&happened), "08:00:00.123  up         b is up\n");
    let gone = DrainLine { node: "b".into(), phase: "gone".into(), elapsed_ms: 900, ..DrainLine::default() };
    assert_eq!(drain_step(&gone), "b  gone       ended, 0.9 s\n");
}
