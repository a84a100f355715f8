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
    Some(Counts { clients, sessions: 2, rooms: 1, ring_digest, agrees, uptime_secs: 125 })
}

fn healthy() -> Status {
    Status {
        problems: Vec::new(),
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
        },
        Problem { what: "c is gone".into(), hurts: "nobody".into(), advice: "wait".into(), since_secs: 0 },
    ];
    sick.ring_agreed = Some(false);
    sick.nodes[0].counts = counts(3, false);
    sick.nodes[1] = NodeLine { state: "suspect".into(), ..node("b", 0.5, None) };
    let expected = "\
problems: 2
  b does not answer probes (for 1 min 15 s); hurts: users it owns may pause; do: look at its CPU
  c is gone (now); hurts: nobody; do: wait

2 nodes, ring c69eaadc96e1d0f4 NOT AGREED (seen from a, 0.1.0, up 2 min 5 s)

NODE  STATE    INCARNATION  ADDRESS          SHARE  CLIENTS  SESSIONS  ROOMS  UP         RING
a *   active   17           127.0.0.1:4083  33.4 %        3         2      1  2 min 5 s  0000000000000007 DIFFERS
b     suspect  17           127.0.0.1:4083  50.0 %        -         -      -  -          no answer
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
    };
    let expected = "\
key     user \"alice\" of product \"chat\"
hash    c52f2d85acb0e39f
owner   b, shard 1
backup  c
then    a
ring    c69eaadc96e1d0f4 (seen from a)

SESSION                 NAMESPACE  EDGE                          ROOMS  INBOUND  OWN LOG  TERM
BwcHBwcHBwcHBwcHBwcHBw  /          a shard 0                         2       10        4  3 by b
BwcHBwcHBwcHBwcHBwcHBw  /          none: waiting for its client      2       10        4  3 by b
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
    };
    let text = explained_as(Facts::Room(room));
    let expected = "\
log     9 entries, 900 bytes, the oldest 30 s old
newest  9
term    3 by b

EDGE       HAS TAKEN
a shard 0          8
";
    assert!(text.ends_with(expected), "{text}");
    assert!(explained_as(Facts::Nothing).ends_with("no session, no event, no member.\n"));
    assert!(explained_as(Facts::Unknown("no answer".into())).ends_with("did not say: no answer.\n"));
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
