//! Answers about the cluster: `/v1/status`, `/v1/ring`, `/v1/explain`, `/readyz`.
//!
//! Belongs here: facts into [`answers`]. Stays out: HTTP, how it is shown.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use mesh_proto::binding::{BindingClass, BindingKey};
use mesh_proto::id::{Address, NodeRef, Placement, RoomKey, ShardIx, Term};
use mesh_proto::view::{NodeInfo, NodeState, View};
use mesh_proto::wire::{
    Answer, Began, BindingFacts, CommandFailed, DrainPhase, DrainStatus, NodeStatus, OwnershipFacts,
    PROBLEMS_TOLD_MAX, ProblemTold, Query, RoomFacts, SessionFacts,
};
use tokio::time::timeout;

use super::AdminState;
use super::answers::{
    self, BindingLine, Counts, DrainLine, Explained, Facts, NodeLine, OwnershipLine, Problem, Ready,
    RingAnswer, RingNodeLine, RoomLine, SessionLine, Status, SubscriberLine,
};
use super::board::Snapshot;
use super::cluster::ANSWER_WITHIN;

/// Nodes named in an explanation beyond owner and backup.
const NEXT_NAMED: usize = 2;

/// The phase of a node that does not drain.
const SERVING: &str = "serving";

pub(super) async fn status(state: &AdminState) -> Status {
    let asked: Vec<NodeRef> = state.view.borrow().nodes.iter().map(|node| node.node).collect();
    let answers = join_all(asked.iter().map(|&node| async move {
        let answer = timeout(ANSWER_WITHIN, state.cluster.node_status(node)).await.ok().flatten();
        (node, answer)
    }))
    .await;
    let answers: BTreeMap<NodeRef, Option<NodeStatus>> = answers.into_iter().collect();
    // Read after the wait: a second is long enough for a node to go.
    let view = state.view.borrow().clone();
    let mut problems = Told::default();
    for problem in state.board.problems() {
        problems.add(&state.name, problem);
    }
    let shares = shares(&view);
    let mut nodes = Vec::with_capacity(view.nodes.len());
    let mut agreed = None;
    for node in &view.nodes {
        let answer = answers.get(&node.node);
        let status = answer.and_then(Option::as_ref);
        let counts = status.map(|status| counts(&view, status));
        if let Some(status) = status.filter(|_| node.node != view.me) {
            problems.add_all(&node.name(), status);
        }
        match &counts {
            Some(counts) if node.node != view.me => agreed = Some(agreed.unwrap_or(true) && counts.agrees),
            None if answer.is_some() && !node.suspect => problems.add(&state.name, silent(node)),
            _ => {}
        }
        let share = shares.get(&node.node).copied().unwrap_or(0.0);
        let drain =
            status.map(|status| drain_line(&view, node, &status.drain)).filter(|line| line.phase != SERVING);
        nodes.push(NodeLine { drain, counts, ..node_line(&view, node, share) });
    }
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let (problems, problems_untold) = problems.by_age();
    Status {
        problems,
        problems_untold,
        node: state.name.clone(),
        software: state.software.clone(),
        uptime_secs: state.started.elapsed().as_secs(),
        ring_digest: hex(view.ring.digest()),
        ring_agreed: agreed,
        nodes,
    }
}

/// Problems as several nodes tell them: what they agree on is told once.
#[derive(Default)]
struct Told {
    problems: Vec<Problem>,
    untold: u64,
}

impl Told {
    fn add(&mut self, by: &str, problem: Problem) {
        let same = |known: &&mut Problem| known.what == problem.what && known.advice == problem.advice;
        match self.problems.iter_mut().find(same) {
            Some(known) => {
                known.since_secs = known.since_secs.max(problem.since_secs);
                known.said_by.push(by.to_owned());
            }
            None => self.problems.push(Problem { said_by: vec![by.to_owned()], ..problem }),
        }
    }

    /// What a peer says of itself; bounded here too, whatever it sends.
    fn add_all(&mut self, by: &str, status: &NodeStatus) {
        for told in status.problems.iter().take(PROBLEMS_TOLD_MAX) {
            let ProblemTold { what, since_secs, hurts, advice } = told.clone();
            self.add(by, Problem { what, since_secs, hurts, advice, said_by: Vec::new() });
        }
        let told = status.problems.len().min(PROBLEMS_TOLD_MAX) as u64;
        self.untold += u64::from(status.problem_count).saturating_sub(told);
    }

    /// Oldest first, and how many were only counted.
    fn by_age(mut self) -> (Vec<Problem>, u64) {
        self.problems.sort_by_key(|problem| std::cmp::Reverse(problem.since_secs));
        for problem in &mut self.problems {
            problem.said_by.sort_unstable();
            problem.said_by.dedup();
        }
        (self.problems, self.untold)
    }
}

/// The drain of a node of the view.
pub(super) fn drain_line(view: &View, node: &NodeInfo, status: &DrainStatus) -> DrainLine {
    DrainLine {
        is_me: node.node == view.me,
        node: node.name(),
        incarnation: node.node.incarnation,
        phase: status.phase.as_str().into(),
        clients: status.clients,
        to_hand_over: status.to_hand_over,
        elapsed_ms: status.elapsed_ms,
    }
}

fn silent(node: &NodeInfo) -> Problem {
    Problem {
        what: format!("{} is up but did not answer this question within a second", node.name()),
        since_secs: 0,
        hurts: "its counts are missing here; if it stays so, what is sent to it waits".into(),
        advice: "ask again; look at its CPU and at the link to it".into(),
        said_by: Vec::new(),
    }
}

fn node_line(view: &View, node: &NodeInfo, share: f64) -> NodeLine {
    let record = node.record.as_deref();
    let text =
        |field: fn(&mesh_proto::view::NodeRecord) -> &String| record.map(field).cloned().unwrap_or_default();
    NodeLine {
        name: node.name(),
        id: hex(node.node.id.0),
        incarnation: node.node.incarnation,
        state: if node.suspect { "suspect".into() } else { state_word(node.state()).into() },
        mesh_addr: node.mesh_addr.to_string(),
        client_addr: text(|r| &r.client_addr),
        admin_addr: text(|r| &r.admin_addr),
        api_addr: text(|r| &r.api_addr),
        share,
        weight: node.weight,
        zone: node.zone,
        shards: record.map_or(0, |r| r.shards),
        software: text(|r| &r.software),
        is_me: node.node == view.me,
        counts: None,
        drain: None,
    }
}

fn counts(view: &View, status: &NodeStatus) -> Counts {
    Counts {
        clients: status.clients,
        sessions: status.sessions,
        rooms: status.rooms,
        ring_digest: hex(status.ring_digest),
        agrees: status.ring_digest == view.ring.digest(),
        uptime_secs: status.uptime_secs,
        copies_pending: status.safety.copies_pending,
        replication_lag_ops: status.safety.replication_lag_ops,
        to_hand_over: status.safety.to_hand_over,
        copies: status.safety.copies,
        backups_silent: status.safety.backups_silent,
        parked_sessions: status.safety.parked_sessions,
        history_bytes: status.safety.history_bytes,
    }
}

pub(super) fn state_word(state: NodeState) -> &'static str {
    match state {
        NodeState::Joining => "joining",
        NodeState::Active => "active",
        NodeState::Draining => "draining",
    }
}

pub(super) fn shares(view: &View) -> BTreeMap<NodeRef, f64> {
    view.ring.nodes().iter().map(|node| node.node).zip(view.ring.shares()).collect()
}

pub(super) fn ready(view: &View, snapshot: &Snapshot, drain: DrainPhase) -> Ready {
    let mut reasons = Vec::new();
    match view.node(view.me).map_or(NodeState::Joining, NodeInfo::state) {
        NodeState::Joining => reasons.push("joining: no seed has given the membership yet".to_owned()),
        NodeState::Draining => reasons.push("draining".to_owned()),
        NodeState::Active if drain != DrainPhase::Serving => reasons.push("draining".to_owned()),
        NodeState::Active if !snapshot.ring_settled => {
            reasons.push(format!("ring not agreed with: {}", snapshot.disagreeing.join(", ")));
        }
        NodeState::Active => {}
    }
    Ready { ready: reasons.is_empty(), reasons }
}

/// `with_arcs`: with the circle itself.
pub(super) fn ring(state: &AdminState, with_arcs: bool) -> RingAnswer {
    let view = state.view.borrow().clone();
    let shares = shares(&view);
    let mut order: Vec<(String, usize)> = (view.ring.nodes().iter().enumerate())
        .map(|(index, node)| (name_of(&view, node.node), index))
        .collect();
    order.sort();
    let mut place_of = vec![0; order.len()];
    for (place, (_, index)) in order.iter().enumerate() {
        place_of[*index] = place;
    }
    let arcs = arcs(&view, &place_of);
    let nodes = order.iter().enumerate().map(|(place, (name, index))| {
        let node = view.ring.nodes()[*index];
        RingNodeLine {
            name: name.clone(),
            incarnation: node.node.incarnation,
            share: shares.get(&node.node).copied().unwrap_or(0.0),
            weight: node.weight,
            zone: node.zone,
            arcs: u32::try_from(arcs.iter().filter(|arc| arc.node == place).count()).unwrap_or(u32::MAX),
        }
    });
    let nodes = nodes.collect();
    let arcs = if with_arcs { arcs } else { Vec::new() };
    RingAnswer { node: state.name.clone(), ring_digest: hex(view.ring.digest()), nodes, arcs }
}

/// The circle from 0 to 1, neighbouring arcs of one owner joined; the arc over 0 is cut in two.
fn arcs(view: &View, place_of: &[usize]) -> Vec<answers::Arc> {
    let mut joined: Vec<answers::Arc> = Vec::new();
    let mut add = |from: f64, to: f64, node: usize| match joined.last_mut() {
        Some(last) if last.node == node => last.to = to,
        _ => joined.push(answers::Arc { from, to, node }),
    };
    let ring_arcs = view.ring.arcs();
    let Some(&(last_from, _, _)) = ring_arcs.first() else { return joined };
    for (index, &(from, to, node)) in ring_arcs.iter().enumerate() {
        let from = if index == 0 { 0.0 } else { fraction(from) };
        add(from, fraction(to), place_of[usize::from(node)]);
    }
    // From the last place to the end of the circle the first place's owner goes on (or, alone, all).
    add(fraction(last_from), 1.0, place_of[usize::from(ring_arcs[0].2)]);
    joined
}

#[expect(clippy::cast_precision_loss, reason = "for drawing")]
fn fraction(position: u64) -> f64 {
    position as f64 / 2_f64.powi(64)
}

/// What is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    User { product: String, uid: String },
    Room { product: String, namespace: String, room: String },
    Binding { product: String, class: BindingClass, text: String },
}

pub(super) async fn explain(state: &AdminState, key: Key) -> Explained {
    let view = state.view.borrow().clone();
    // A user of a proxied product has no session, but may be bound.
    let mut otherwise = None;
    let (words, placement, query) = match key {
        Key::User { product, uid } => {
            let bound = BindingKey::new(&product.as_str().into(), BindingClass::Uid, &uid);
            otherwise = Some(Query::ExplainBinding(bound));
            (
                format!("user {uid:?} of product {product:?}"),
                Placement::of_user(&product, &uid),
                Query::ExplainUser { product: product.into(), uid: uid.into() },
            )
        }
        Key::Binding { product, class, text } => {
            let key = BindingKey::new(&product.as_str().into(), class, &text);
            let words = match class {
                BindingClass::Upstream => format!("upstream {text:?} of product {product:?}"),
                BindingClass::Uid => format!("user {text:?} of product {product:?}"),
                // It is a secret.
                BindingClass::Sid => format!("a session at an upstream of product {product:?}"),
            };
            (words, key.placement(), Query::ExplainBinding(key))
        }
        Key::Room { product, namespace, room } => {
            let key = RoomKey::new(&product.as_str().into(), &namespace.as_str().into(), &room);
            let words = match room.as_str() {
                "" => format!("everyone in namespace {namespace:?} of product {product:?}"),
                room => format!("room {room:?} in namespace {namespace:?} of product {product:?}"),
            };
            (words, key.placement(), Query::ExplainRoom(key))
        }
    };
    let ask = async |query| {
        let asked = timeout(ANSWER_WITHIN, state.shards.ask(ShardIx(0), query)).await;
        facts(&view, asked.unwrap_or(Err(CommandFailed::Timeout)))
    };
    let mut told = ask(query).await;
    if let (Facts::Nothing, Some(query)) = (&told, otherwise) {
        told = ask(query).await;
    }
    let replicas = view.ring.replicas(placement, 2 + NEXT_NAMED);
    let named = |node: &NodeRef| name_of(&view, *node);
    let shards = replicas.first().and_then(|owner| view.node(*owner)?.record.as_ref()).map(|r| r.shards);
    Explained {
        node: state.name.clone(),
        key: words,
        hash: hex(placement.0),
        ring_digest: hex(view.ring.digest()),
        owner: replicas.first().map(named),
        shard: shards.map(|shards| placement.shard(shards).0),
        backup: replicas.get(1).map(named),
        next: replicas.iter().skip(2).map(named).collect(),
        facts: told,
    }
}

fn facts(view: &View, answer: Result<Answer, CommandFailed>) -> Facts {
    match answer {
        Ok(Answer::User(sessions)) if sessions.is_empty() => Facts::Nothing,
        Ok(Answer::User(sessions)) => Facts::User(sessions.iter().map(|s| session_line(view, s)).collect()),
        Ok(Answer::Room(room)) => Facts::Room(room_line(view, &room)),
        Ok(Answer::Binding(binding)) => Facts::Binding(binding_line(view, &binding)),
        Ok(_) => Facts::Unknown("an answer of the wrong kind".into()),
        Err(CommandFailed::NotFound) => Facts::Nothing,
        Err(error) => Facts::Unknown(error.to_string()),
    }
}

fn session_line(view: &View, session: &SessionFacts) -> SessionLine {
    SessionLine {
        sid: session.sid.to_text(),
        namespace: session.namespace.to_string(),
        term: term_text(view, session.term),
        edge: session.edge.map(|edge| address_text(view, edge)),
        rooms: session.rooms,
        inbound: session.inbound,
        own_seq: session.own_seq,
        ownership: ownership_line(view, &session.ownership),
    }
}

fn room_line(view: &View, room: &RoomFacts) -> RoomLine {
    let subscribers = room
        .subscribers
        .iter()
        .map(|(edge, cursor)| SubscriberLine { edge: address_text(view, *edge), seq: cursor.seq });
    RoomLine {
        term: term_text(view, room.head.term),
        seq: room.head.seq,
        entries: room.entries,
        bytes: room.bytes,
        seconds_kept: room.seconds_kept,
        subscribers: subscribers.collect(),
        ownership: ownership_line(view, &room.ownership),
    }
}

fn binding_line(view: &View, binding: &BindingFacts) -> BindingLine {
    BindingLine {
        upstream: binding.upstream.to_string(),
        term: term_text(view, binding.at.term),
        decision: binding.at.seq,
        ends_in_secs: binding.ends_in_secs,
        ownership: ownership_line(view, &binding.ownership),
    }
}

fn ownership_line(view: &View, ownership: &OwnershipFacts) -> OwnershipLine {
    let (began, from) = match ownership.began {
        Began::New => ("new", None),
        Began::TakeOver { from } => ("take-over", Some(from)),
        Began::HandOver { from } => ("hand-over", Some(from)),
    };
    OwnershipLine {
        backup: ownership.backup.map(|node| name_of(view, node)),
        lag_ops: ownership.lag_ops,
        began: began.into(),
        from: from.map(|node| name_of(view, node)),
        since_secs: ownership.since_secs,
    }
}

fn term_text(view: &View, term: Term) -> String {
    if term == Term::NONE {
        "none".into()
    } else {
        format!("{} by {}", term.number, name_of(view, term.owner))
    }
}

fn address_text(view: &View, address: Address) -> String {
    format!("{} shard {}", name_of(view, address.node), address.shard.0)
}

fn name_of(view: &View, node: NodeRef) -> String {
    view.node(node).map_or_else(|| format!("{node:?} (gone)"), NodeInfo::name)
}

fn hex(number: u64) -> String {
    format!("{number:016x}")
}
