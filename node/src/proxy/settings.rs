//! What an operator decides about a proxied product.
//!
//! Belongs here: the settings as the proxy uses them. Stays out: their text and checks (`config`).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::upstream::UpstreamConfig;

use crate::config::product::{ProductConfig, Upstreams};

/// Settings of one proxied product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its upstreams, and when they are fit.
    pub upstreams: UpstreamConfig,
    /// The port of the servers beside the nodes, where those are the upstreams.
    pub local: Option<u16>,
    /// Users with an upstream of their own.
    pub pins: BTreeMap<String, Arc<str>>,
    /// Whether the requests of one uid are kept together, else those of one Engine.IO session.
    pub by_uid: bool,
    /// Whether upstreams are sent their own name as `Host`, else the client's.
    pub own_host: bool,
    /// The query parameter that tells the uid.
    pub uid_query: Option<String>,
    /// Fields that only trusted peers may send, in lower case.
    pub identity_headers: Vec<String>,
    /// An answer must begin within this time.
    pub answer_timeout: Duration,
    /// An answer that has begun must go on within this time; zero: whenever it likes.
    pub stream_timeout: Duration,
    /// A connection must be taken within this time.
    pub connect_timeout: Duration,
    /// Links to one upstream that are kept without a request.
    pub idle_max: usize,
    /// The largest body of a request.
    pub body_bytes_max: u64,
    /// How long a user or a session stays with its upstream after its last use.
    pub keep: Duration,
    /// The cookie that keeps a client without a uid at its upstream.
    pub sticky_cookie: Option<String>,
    /// The field that names the upstream in answers.
    pub owner_header: Option<String>,
    /// The cookie that does.
    pub owner_cookie: Option<String>,
    /// The health check's request; `None`: a connection that is taken is enough.
    pub check: Option<CheckRequest>,
}

/// The request of a health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckRequest {
    /// Its method.
    pub method: http::Method,
    /// Its path.
    pub path: String,
    /// The statuses that are good answers.
    pub good: Vec<RangeInclusive<u16>>,
}

impl Settings {
    /// As an operator has written them. `identity_headers` are those of all products; the names of `local`
    /// upstreams follow from the cluster.
    #[must_use]
    pub fn of(product: &ProductConfig, identity_headers: &[String]) -> Self {
        let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let (names, local) = match product.upstreams() {
            Upstreams::Listed(names) => (names.iter().map(|name| Arc::from(name.as_str())).collect(), None),
            Upstreams::Local(port) => (Vec::new(), Some(port)),
        };
        let pins = product.pinned().map(|(uid, upstream)| (uid.to_owned(), Arc::from(upstream)));
        Self {
            upstreams: UpstreamConfig {
                names,
                interval: product.check_interval,
                timeout: product.check_timeout,
                rise: product.check_rise,
                fall: product.check_fall,
                eject_after: product.check_fall,
                ..UpstreamConfig::default()
            },
            local,
            pins: pins.collect(),
            by_uid: product.balances_by_uid(),
            own_host: product.host == "upstream",
            uid_query: some(&product.uid_query),
            identity_headers: identity_headers.to_vec(),
            answer_timeout: product.upstream_timeout,
            connect_timeout: product.connect_timeout,
            idle_max: product.idle_max,
            body_bytes_max: if product.body_bytes_max == 0 { u64::MAX } else { product.body_bytes_max },
            keep: product.keep,
            sticky_cookie: some(&product.sticky_cookie),
            owner_header: some(&product.owner_header),
            owner_cookie: some(&product.owner_cookie),
            check: some(&product.check_path).map(|path| CheckRequest {
                method: product.check_method.parse().unwrap_or(http::Method::GET),
                path,
                good: product.good_statuses(),
            }),
            ..Self::default()
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            upstreams: UpstreamConfig::default(),
            local: None,
            pins: BTreeMap::new(),
            by_uid: true,
            own_host: false,
            uid_query: None,
            identity_headers: Vec::new(),
            answer_timeout: Duration::from_secs(60),
            stream_timeout: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(5),
            idle_max: 64,
            body_bytes_max: u64::MAX,
            keep: Duration::from_secs(30),
            sticky_cookie: None,
            owner_header: None,
            owner_cookie: None,
            check: None,
        }
    }
}
