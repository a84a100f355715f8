//! The demo page and what it shows of the cluster.
//!
//! Belongs here: the page's files, `/demo/state.json`, who may read them.
//! Stays out: starting and killing nodes (`demo`), the chat itself, which is an ordinary client of the
//! plain protocol.
//! Units: places on the ring as fractions of the circle, 0 to 1, clockwise.
//! Invariants: answers only requests that name a loopback host, so that no page of the internet reads
//! the cluster through a visitor's browser; tells nothing secret even so.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::id::{NodeRef, Placement};
use mesh_proto::view::{NodeInfo, View};
use mesh_proto::wire::NodeStatus;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::handles::ViewWatch;
use crate::transport::head::RequestHead;
use crate::transport::{Response, Site, percent_decoded, query_values};

/// How often the counts that the page shows are asked for.
const COUNTS_PERIOD: Duration = Duration::from_millis(500);

/// Files of the page: path, content type, content.
const FILES: [(&str, &str, &str); 6] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/demo", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/demo/style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
    ("/demo/app.js", "text/javascript; charset=utf-8", include_str!("page/app.js")),
    ("/demo/mesh.js", "text/javascript; charset=utf-8", include_str!("page/mesh.js")),
    ("/demo/ring.js", "text/javascript; charset=utf-8", include_str!("page/ring.js")),
];

/// Scripts, styles and pictures from this node alone; connections to any other, because the page goes
/// on by another node when this one is gone.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                              connect-src 'self' http: ws:; base-uri 'none'; form-action 'self'; \
                              frame-ancestors 'none'";

/// Clients, sessions, rooms and ring digest of each node, as last heard.
pub type Counts = BTreeMap<NodeRef, NodeStatus>;

/// Answers the requests of the demo page. `control` is where nodes are killed and started, for those
/// who may.
pub fn site(view: ViewWatch, counts: watch::Receiver<Arc<Counts>>, control: Option<String>) -> Site {
    Arc::new(move |head| {
        if head.method != "GET" && head.method != "HEAD" || !names_loopback(head.header_text("host")?) {
            return None;
        }
        if head.path == "/demo/state.json" {
            let state = state(&view.borrow(), &counts.borrow(), control.as_deref(), head.query);
            return Some(readable_from_demo(head, Response::json(200, state.to_string())));
        }
        let (_, content_type, text) = *FILES.iter().find(|(path, ..)| *path == head.path)?;
        let body = Cow::Borrowed(text.as_bytes());
        let answer = Response { status: 200, content_type, body, headers: Vec::new() };
        Some(guarded(answer).with_header("Content-Security-Policy", CONTENT_POLICY))
    })
}

/// Keeps `counts` fresh by asking each node of the view, until nobody reads them. A node that does not
/// answer keeps its last counts until it leaves the view.
pub async fn keep_counts<F>(view: ViewWatch, counts: watch::Sender<Arc<Counts>>, ask: impl Fn(NodeRef) -> F)
where
    F: Future<Output = Option<NodeStatus>>,
{
    let mut tick = tokio::time::interval(COUNTS_PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !counts.is_closed() {
        tick.tick().await;
        let nodes: Vec<NodeRef> = view.borrow().nodes.iter().map(|n| n.node).collect();
        let mut fresh = Counts::new();
        for node in nodes {
            let answer = tokio::time::timeout(COUNTS_PERIOD, ask(node)).await.ok().flatten();
            if let Some(status) = answer.or_else(|| counts.borrow().get(&node).cloned()) {
                fresh.insert(node, status);
            }
        }
        counts.send_replace(Arc::new(fresh));
    }
}

/// The name a browser would resolve must be this machine's: a name that an attacker points at
/// 127.0.0.1 is not (DNS rebinding).
pub(super) fn names_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(""),
        None => host.split(':').next().unwrap_or(""),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn guarded(answer: Response) -> Response {
    answer.with_header("Cache-Control", "no-store").with_header("X-Content-Type-Options", "nosniff")
}

/// Lets a page that another node of this demo has served read the answer.
fn readable_from_demo(head: &RequestHead<'_>, answer: Response) -> Response {
    let origin = head.header_text("origin").filter(|origin| {
        let plain = origin.bytes().all(|b| b.is_ascii_graphic());
        plain && origin.strip_prefix("http://").is_some_and(names_loopback)
    });
    let answer = guarded(answer).with_header("Vary", "Origin");
    match origin {
        Some(origin) => answer.with_header("Access-Control-Allow-Origin", origin),
        None => answer,
    }
}

/// What the page draws.
fn state(view: &View, counts: &Counts, control: Option<&str>, query: &str) -> Value {
    let asked = |name| query_values(query, name).next().and_then(percent_decoded).unwrap_or_default();
    let (product, uid, room) = (asked("product"), asked("uid"), asked("room"));
    let shares: BTreeMap<NodeRef, f64> =
        view.ring.nodes().iter().map(|n| n.node).zip(view.ring.shares()).collect();
    let mut nodes: Vec<Value> = view
        .nodes
        .iter()
        .map(|node| node_json(node, counts.get(&node.node), shares.get(&node.node)))
        .collect();
    nodes.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    json!({
        "me": name_of(view, view.me),
        "digest": hex(view.ring.digest()),
        "nodes": nodes,
        "arcs": arcs(view),
        "uid": key_json(view, &uid, Placement::of_user(&product, &uid)),
        "room": key_json(view, &room, Placement::of_room(&product, "/", &room)),
        "control": control,
    })
}

fn node_json(node: &NodeInfo, counts: Option<&NodeStatus>, share: Option<&f64>) -> Value {
    let state =
        if node.suspect { "suspect".to_owned() } else { format!("{:?}", node.state()).to_lowercase() };
    json!({
        "name": node.name(),
        "state": state,
        "client": node.record.as_ref().map(|r| r.client_addr.as_str()),
        "share": share.copied().unwrap_or(0.0),
        "clients": counts.map_or(0, |c| c.clients),
        "sessions": counts.map_or(0, |c| c.sessions),
        "rooms": counts.map_or(0, |c| c.rooms),
        "digest": counts.map(|c| hex(c.ring_digest)),
    })
}

/// A key's place on the ring, its owner and its backup; nothing for an empty key.
fn key_json(view: &View, name: &str, placement: Placement) -> Option<Value> {
    let replicas = view.ring.replicas(placement, 2);
    let named = |at: usize| replicas.get(at).map(|&node| name_of(view, node));
    (!name.is_empty()).then(|| {
        json!({ "name": name, "hash": hex(placement.0), "at": fraction(placement.0), "owner": named(0), "backup": named(1) })
    })
}

/// The circle as (from, to, owner), clockwise, neighbours of one owner joined.
fn arcs(view: &View) -> Vec<(f64, f64, String)> {
    let mut arcs: Vec<(f64, f64, String)> = Vec::new();
    let mut push = |from: f64, to: f64, owner: NodeRef| {
        let owner = name_of(view, owner);
        match arcs.last_mut() {
            Some(last) if last.2 == owner && last.1 == from => last.1 = to,
            _ => arcs.push((from, to, owner)),
        }
    };
    let circle = view.ring.arcs();
    let owner = |index: u16| view.ring.nodes()[usize::from(index)].node;
    for &(from, to, index) in &circle {
        // The first arc begins at the last place: over the top of the circle.
        let from = if from >= to { 0 } else { from };
        push(fraction(from), fraction(to), owner(index));
    }
    if let (Some(&(_, _, first)), Some(&(_, last, _))) = (circle.first(), circle.last()) {
        push(fraction(last), 1.0, owner(first));
    }
    arcs
}

fn name_of(view: &View, node: NodeRef) -> String {
    view.node(node).map_or_else(|| format!("{:?}", node.id), NodeInfo::name)
}

fn hex(number: u64) -> String {
    format!("{number:016x}")
}

/// A place on the ring as a part of the circle, exact to a millionth: a picture needs no more.
#[expect(clippy::cast_precision_loss, reason = "a millionth of the circle")]
fn fraction(position: u64) -> f64 {
    ((position >> 11) as f64 / 2_f64.powi(53) * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use mesh_proto::id::NodeId;
    use mesh_proto::ring::VNODES_DEFAULT;
    use mesh_proto::view::{NodeRecord, NodeState};

    use super::*;

    fn view(names: &[&str]) -> Arc<View> {
        let nodes: Vec<NodeInfo> = names.iter().map(|name| node(name)).collect();
        Arc::new(View::new(1, nodes[0].node, nodes, VNODES_DEFAULT))
    }

    fn node(name: &str) -> NodeInfo {
        let node = NodeRef { id: NodeId::of_name(name), incarnation: 1 };
        let record = NodeRecord {
            node,
            version: 1,
            name: name.into(),
            state: NodeState::Active,
            client_addr: "127.0.0.1:1".into(),
            admin_addr: String::new(),
            api_addr: String::new(),
            shards: 1,
            software: String::new(),
        };
        let mesh_addr = ([127, 0, 0, 1], 1).into();
        NodeInfo { node, mesh_addr, zone: 0, weight: 1, suspect: false, record: Some(record.into()) }
    }

    fn asked(target: &str, headers: &str) -> Option<Response> {
        let view = watch::channel(view(&["a", "b", "c"])).1;
        let counts = watch::channel(Arc::new(Counts::new())).1;
        let head = format!("GET {target} HTTP/1.1\r\n{headers}\r\n");
        site(view, counts, None)(&RequestHead::parse(head.as_bytes()).unwrap())
    }

    #[test]
    fn the_state_names_owners_as_the_ring_does() {
        let answer =
            asked("/demo/state.json?product=rooms&uid=al%20ice&room=lobby", "Host: 127.0.0.1:8080\r\n");
        let state: Value = serde_json::from_slice(&answer.unwrap().body).unwrap();
        let view = view(&["a", "b", "c"]);
        let user = Placement::of_user("rooms", "al ice");
        assert_eq!(state["uid"]["owner"], name_of(&view, view.owner(user).unwrap()));
        assert_eq!(state["uid"]["backup"], name_of(&view, view.ring.backup(user).unwrap()));
        assert_eq!(state["nodes"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn arcs_cover_the_circle_once_and_agree_with_shares() {
        for names in [&["a"][..], &["a", "b", "c"]] {
            let view = view(names);
            let arcs = arcs(&view);
            assert_eq!((arcs[0].0, arcs.last().unwrap().1), (0.0, 1.0));
            assert!(arcs.windows(2).all(|w| w[0].1 == w[1].0), "no hole, no overlap");
            let shares = view.ring.shares();
            for (node, share) in view.ring.nodes().iter().zip(shares) {
                let name = name_of(&view, node.node);
                let drawn: f64 = arcs.iter().filter(|a| a.2 == name).map(|a| a.1 - a.0).sum();
                assert!((drawn - share).abs() < 1e-3, "{name}: {drawn} for {share}");
            }
        }
    }

    #[test]
    fn only_pages_of_this_machine_read_the_state() {
        let allowed = |origin: &str| {
            let headers = format!("Host: localhost:1\r\nOrigin: {origin}\r\n");
            let answer = asked("/demo/state.json", &headers).unwrap();
            answer.headers.iter().any(|(name, _)| *name == "Access-Control-Allow-Origin")
        };
        assert!(
            allowed("http://127.0.0.1:7001") && allowed("http://localhost:1") && allowed("http://[::1]:9")
        );
        assert!(
            !allowed("http://127.0.0.1.evil.example") && !allowed("https://evil.example") && !allowed("null")
        );
        assert!(asked("/", "Host: evil.example\r\n").is_none(), "a name that was made to point here");
    }

    #[test]
    fn the_page_is_whole_and_loads_nothing_from_elsewhere() {
        for (path, _, text) in FILES {
            let answer = asked(path, "Host: [::1]:8080\r\n").unwrap();
            assert_eq!(answer.body, text.as_bytes());
            for outside in ["https://", "//cdn", "@import", "eval("] {
                assert!(!text.contains(outside), "{path} holds {outside}");
            }
        }
        assert!(asked("/demo/nothing.js", "Host: localhost\r\n").is_none());
    }
}
