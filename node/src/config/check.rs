//! Rules between settings, and rules of safety.
//!
//! Belongs here: contradictions, and what a listener open to others must have.
//! Stays out: ranges of single settings (the table).
//! Invariants: a setting that could not be read is not complained about a second time; each
//! complaint names both settings and both values.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::origin::{ConfigError, Origin};
use super::product::{OF_PROXIES, OF_ROOMS, ProductConfig, UidSource, Upstreams, statuses};
use super::setting::{Value, is_name};
use super::{Config, secrets};
use crate::fd_limit;
use crate::identity::TokenPlace;
use crate::transport::proxies::TrustedProxies;
use crate::transport::tls::{CertificateFiles, Certificates};

/// Puts in the values of `mesh.timing = "wan"` that nothing else has set.
pub(super) fn apply_preset(config: &mut Config) {
    if config.mesh.timing != "wan" {
        return;
    }
    let wan: [(&str, u64); 4] =
        [("probe_period", 300), ("probe_rtt", 120), ("suspect_for", 1_200), ("gossip_period", 100)];
    for (field, millis) in wan {
        let key = format!("mesh.{field}");
        if config.origins.of(&key) == Origin::Default {
            super::Section::set(&mut config.mesh, field, Value::Time(Duration::from_millis(millis)));
            config.origins.set(&key, Origin::Preset("wan".into()));
        }
    }
}

/// Everything that does not fit together.
pub(super) fn check(config: &Config, open_files_max: Option<u64>, known: &[ConfigError]) -> Vec<ConfigError> {
    let mut checker = Checker { config, known, errors: Vec::new() };
    checker.names();
    checker.timing();
    checker.bounds();
    checker.descriptors(open_files_max);
    checker.mesh();
    checker.listeners();
    checker.products();
    checker.errors.extend(secrets::read(config, secrets::DevelopmentKey::Leave).err().unwrap_or_default());
    checker.errors
}

struct Checker<'c> {
    config: &'c Config,
    known: &'c [ConfigError],
    errors: Vec<ConfigError>,
}

impl Checker<'_> {
    /// Complains about `key`, unless it or one of `others` could not be read anyway.
    fn fail(&mut self, key: &str, others: &[&str], problem: String, allowed: &str) {
        let unread = |key: &str| self.known.iter().any(|error| error.key == key);
        if unread(key) || others.iter().any(|other| unread(other)) {
            return;
        }
        let origin = self.config.origins.of(key);
        let origin = match (origin, others.first()) {
            (Origin::Default, Some(other)) => self.config.origins.of(other),
            (origin, _) => origin,
        };
        let allowed = (!allowed.is_empty()).then(|| allowed.to_owned());
        self.errors.push(ConfigError { origin, key: key.to_owned(), problem, allowed });
    }

    fn show(&self, key: &str) -> String {
        let value = key.rsplit_once('.').and_then(|(section, field)| {
            self.config.section(section).and_then(|section| section.value(field))
        });
        value.map(|value| value.to_string()).unwrap_or_default()
    }

    /// `key` must be `rule` than `other`.
    fn compare(&mut self, key: &str, holds: bool, rule: &str, other: &str) {
        if !holds {
            let problem = format!("{} does not go with {other} = {}", self.show(key), self.show(other));
            self.fail(key, &[other], problem, &format!("{rule} {other}"));
        }
    }

    fn names(&mut self) {
        let name = &self.config.node.name;
        if !name.is_empty() && !is_name(name) {
            let problem = format!("\"{}\" is not a name", name.escape_debug());
            self.fail("node.name", &[], problem, "1 to 64 of a-z A-Z 0-9 - _ ., or \"\"");
        }
        if let Err(cause) = tracing_subscriber::EnvFilter::builder().parse(&self.config.log.filter) {
            let problem = format!("\"{}\": {cause}", self.config.log.filter);
            self.fail("log.filter", &[], problem, "levels as \"info\" or \"info,meshd::mesh=debug\"");
        }
    }

    fn timing(&mut self) {
        let mesh = &self.config.mesh;
        let (rtt, period, suspect) = (mesh.probe_rtt, mesh.probe_period, mesh.suspect_for);
        self.compare("mesh.probe_rtt", rtt * 2 < period, "less than half of", "mesh.probe_period");
        self.compare("mesh.suspect_for", suspect >= period * 2, "at least twice", "mesh.probe_period");
        let limits = &self.config.limits;
        let beats = limits.ping_timeout < limits.ping_interval;
        self.compare("limits.ping_timeout", beats, "less than", "limits.ping_interval");
    }

    fn bounds(&mut self) {
        let limits = &self.config.limits;
        let rules = [
            ("inbound_bytes_max", limits.inbound_bytes_max >= limits.message_bytes_max, "message_bytes_max"),
            (
                "room_log_bytes_max",
                limits.room_log_bytes_max >= limits.message_bytes_max,
                "message_bytes_max",
            ),
            (
                "room_logs_bytes_max",
                limits.room_logs_bytes_max >= limits.room_log_bytes_max,
                "room_log_bytes_max",
            ),
            ("tails_bytes_max", limits.tails_bytes_max >= limits.tail_bytes_max, "tail_bytes_max"),
            ("events_burst", limits.events_burst >= limits.events_per_second, "events_per_second"),
        ];
        for (key, holds, other) in rules {
            self.compare(&format!("limits.{key}"), holds, "at least", &format!("limits.{other}"));
        }
    }

    /// Only a number that somebody chose is refused; the default is lowered to what fits.
    fn descriptors(&mut self, open_files_max: Option<u64>) {
        let Some(max) = open_files_max else { return };
        let key = "client.connections_max";
        let wanted = self.config.client.connections_max as u64 + fd_limit::RESERVED;
        if wanted > max && self.config.origins.of(key) != Origin::Default {
            let problem = format!(
                "{} clients need {wanted} file descriptors, this process may open {max} (ulimit -Hn)",
                self.show(key)
            );
            self.fail(key, &[], problem, &format!("at most {}", max.saturating_sub(fd_limit::RESERVED)));
        }
    }

    fn mesh(&mut self) {
        let mesh = &self.config.mesh;
        let (has_key, has_file) = (!mesh.key.expose().is_empty(), mesh.key_file.is_some());
        if has_key && has_file {
            let problem = "set together with mesh.key: only one of them can be the key".into();
            self.fail("mesh.key_file", &["mesh.key"], problem, "mesh.key_file or mesh.key");
        }
        if !mesh.listen.ip().is_loopback() && !has_key && !has_file {
            let problem = format!(
                "{} can be reached from other hosts, and there is no cluster key: make one with \
                 `(umask 077; meshctl keygen > FILE)`, copy it to every node and set mesh.key_file",
                mesh.listen
            );
            self.fail(
                "mesh.listen",
                &["mesh.key_file", "mesh.key"],
                problem,
                "a loopback address without a key",
            );
        }
        if mesh.listen.ip().is_unspecified() && mesh.advertise.is_none() {
            let problem = format!("{} is no address other nodes could use: set mesh.advertise", mesh.listen);
            self.fail("mesh.listen", &["mesh.advertise"], problem, "an address of this host");
        }
        if let Some(advertise) = mesh.advertise
            && (advertise.ip().is_unspecified() || advertise.port() == 0)
        {
            let problem = format!("{advertise} is no address other nodes could use");
            self.fail("mesh.advertise", &[], problem, "the address and port that reach mesh.listen");
        }
        let abroad = mesh
            .seeds
            .iter()
            .find(|seed| seed.parse::<SocketAddr>().is_ok_and(|seed| !seed.ip().is_loopback()));
        if let Some(seed) = abroad.filter(|_| mesh.listen.ip().is_loopback()) {
            let problem = format!("{seed} cannot be reached from mesh.listen = {}", mesh.listen);
            self.fail("mesh.seeds", &["mesh.listen"], problem, "seeds on loopback, or another mesh.listen");
        }
    }

    fn listeners(&mut self) {
        let (client, api, admin) =
            (self.config.client.listen, self.config.api.listen, self.config.admin.listen);
        let pairs = [
            ("api.listen", api, "client.listen", client),
            ("admin.listen", admin, "client.listen", client),
            ("admin.listen", admin, "api.listen", api),
        ];
        let tls = self.config.client.tls_listen.map(|tls| {
            [("client.listen", client), ("api.listen", api), ("admin.listen", admin)]
                .map(|(other, taken)| ("client.tls_listen", tls, other, taken))
        });
        for (key, address, other, taken) in pairs.into_iter().chain(tls.into_iter().flatten()) {
            if clash(address, taken) {
                self.compare(key, false, "another port than", other);
            }
        }
        if !api.ip().is_loopback() && self.config.api.key_file.is_none() {
            let problem = format!("{api} can be reached from other hosts, and api.key_file is not set");
            self.fail("api.listen", &["api.key_file"], problem, "a loopback address without a key");
        }
        if !admin.ip().is_loopback() && self.config.admin.token_file.is_none() {
            let problem = format!("{admin} can be reached from other hosts, and admin.token_file is not set");
            self.fail("admin.listen", &["admin.token_file"], problem, "a loopback address without a token");
        }
        self.certificates();
        if let Err(bad) = TrustedProxies::from_list(&self.config.client.trusted_proxies) {
            let problem = format!("\"{}\" is no address and no network", bad.escape_debug());
            self.fail("client.trusted_proxies", &[], problem, "as 192.0.2.1, 192.0.2.0/24 or 2001:db8::/32");
        }
    }

    fn certificates(&mut self) {
        const KEY: &str = "client.tls_certificates";
        let listed = &self.config.client.tls_certificates;
        if listed.is_empty() != self.config.client.tls_listen.is_none() {
            let problem = "client.tls_listen and client.tls_certificates go together: one is not set";
            self.fail(KEY, &["client.tls_listen"], problem.into(), "both, or none");
        }
        let files: Vec<_> = listed.iter().map(|text| CertificateFiles::from_text(text)).collect();
        if let Err(error) = Certificates::read(&files) {
            self.fail(KEY, &[], error.to_string(), "PEM files: FILE with both, or CHAIN:KEY");
        }
    }

    fn products(&mut self) {
        let config = self.config;
        let default = &config.client.default_product;
        if !default.is_empty() && !config.products.0.contains_key(default) {
            let names: Vec<&str> = config.products.0.keys().map(String::as_str).collect();
            let allowed = format!("one of {}, or \"\"", names.join(", "));
            let problem = format!("there is no product \"{}\"", default.escape_debug());
            self.fail("client.default_product", &[], problem, &allowed);
        }
        for (name, product) in &config.products.0 {
            self.kind_of(name, product);
            self.identity(name, product);
            if product.is_proxy() {
                self.proxy(name, product);
            }
        }
        self.chosen_once("hosts", |product| product.hosts.iter().map(|h| h.to_ascii_lowercase()).collect());
        self.chosen_once("paths", |product| product.paths.clone());
    }

    /// Settings of the other kind would do nothing.
    fn kind_of(&mut self, name: &str, product: &ProductConfig) {
        let kind = format!("products.{name}.kind");
        let foreign: &[&str] = if product.is_proxy() { &OF_ROOMS } else { &OF_PROXIES };
        for field in foreign {
            let key = format!("products.{name}.{field}");
            if self.config.origins.of(&key) != Origin::Default {
                let (is, other) = if product.is_proxy() { ("proxy", "rooms") } else { ("rooms", "proxy") };
                let problem = format!("does nothing with kind = \"{is}\"");
                self.fail(&key, &[&kind], problem, &format!("kind = \"{other}\", or without it"));
            }
        }
    }

    fn identity(&mut self, name: &str, product: &ProductConfig) {
        let client = &self.config.client;
        let open = client.open_listener();
        let key = |field: &str| format!("products.{name}.{field}");
        let (identity, file) = (key("identity"), key("jwt_key_file"));
        let sources = product.uid_sources();
        if sources.contains(&UidSource::Jwt) && !product.has_jwt_key() {
            let problem = "\"jwt\" needs the key that signs the tokens: set jwt_key_file, jwt_public_key_file or \
                           jwt_jwks_file";
            self.fail(&identity, &[&file], problem.into(), "jwt with a key");
        }
        let from_cookie =
            || product.token_places().iter().any(|place| matches!(place, TokenPlace::Cookie(_)));
        if sources.contains(&UidSource::Jwt)
            && from_cookie()
            && !product.is_proxy()
            && open.is_some()
            && self.config.client.allowed_origins.iter().any(|origin| origin == "*")
        {
            let problem = "a browser sends cookies along with what any page asks for, and \
                           client.allowed_origins = * lets any page ask";
            let allowed = "cookie: with the pages listed in client.allowed_origins";
            self.fail(&key("jwt_from"), &["client.allowed_origins"], problem.into(), allowed);
        }
        let (hook, url) = (sources.contains(&UidSource::Hook), key("hook_url"));
        if product.hook().is_none() && (hook || !product.hook_url.is_empty()) {
            let problem = match product.hook_url.as_str() {
                "" => "\"hook\" needs somebody to ask".to_owned(),
                text => format!("\"{}\" is no URL to ask at", text.escape_debug()),
            };
            self.fail(&url, &[&identity], problem, "http://HOST:PORT/PATH");
        } else if !product.hook_url.is_empty() && !hook {
            let problem = "nobody asks there: hook is not in the list of identity".into();
            self.fail(&url, &[&identity], problem, "hook_url with hook in identity");
        }
        let hearsay = sources.iter().any(UidSource::is_hearsay);
        if hearsay && product.has_jwt_key() {
            let problem =
                "what clients say of themselves is believed, so that keys for tokens protect nothing";
            self.fail(
                &identity,
                &[&file],
                problem.into(),
                "jwt, or what clients say without a key for tokens",
            );
        } else if let Some((listener, address)) = open.filter(|_| hearsay && !product.insecure_identity) {
            let problem = format!(
                "product {name} has no identity but what clients say, and {listener} = {address} can be \
                 reached from other hosts: anyone could be anyone; set {file}"
            );
            let allowed = "jwt with jwt_key_file; or insecure_identity = true";
            self.fail(&identity, &[listener, &file], problem, allowed);
        }
        let last = sources.len().saturating_sub(1);
        if let Some(at) = sources.iter().position(|s| *s == UidSource::Anonymous).filter(|at| *at < last) {
            let problem = format!("nothing behind item {} is ever asked", at + 1);
            self.fail(&identity, &[], problem, "anonymous as the last of the list");
        }
        if sources.iter().any(|source| matches!(source, UidSource::Header(_)))
            && self.config.client.trusted_proxies.is_empty()
        {
            let problem = "\"header:\" is believed of trusted proxies only, and there are none".into();
            self.fail(&identity, &["client.trusted_proxies"], problem, "header: with client.trusted_proxies");
        }
        if product.uid == "required" && sources.is_empty() {
            let problem = "\"required\", and there is no identity to find one".into();
            self.fail(&key("uid"), &[&identity], problem, "required with an identity");
        }
    }

    fn proxy(&mut self, name: &str, product: &ProductConfig) {
        let key = |field: &str| format!("products.{name}.{field}");
        let upstreams = key("upstreams");
        if product.upstreams.is_empty() {
            let problem = "a proxy needs servers to pass requests on to".into();
            self.fail(&upstreams, &[&key("kind")], problem, "HOST:PORT, …; or local:PORT");
        }
        let local = |upstream: &String| upstream.starts_with("local:");
        if product.upstreams.len() > 1 && product.upstreams.iter().any(local) {
            let problem = "the server beside each node stands alone".into();
            self.fail(&upstreams, &[], problem, "HOST:PORT, …; or one local:PORT");
        }
        if let Some(twice) = repeated(&product.upstreams) {
            self.fail(&upstreams, &[], format!("{twice} stands there twice"), "each once");
        }
        for pin in &product.pins {
            let fits = pin.rsplit_once('=').is_some_and(|(uid, upstream)| {
                let known = || product.upstreams.iter().any(|listed| listed == upstream);
                let is_node = || matches!(product.upstreams(), Upstreams::Local(_)) && is_name(upstream);
                !uid.is_empty() && (is_node() || known())
            });
            if !fits {
                let problem = format!("\"{}\" pins nobody to an upstream there is", pin.escape_debug());
                self.fail(&key("pins"), &[&upstreams], problem, "UID=HOST:PORT of upstreams");
            }
        }
        let uids: Vec<String> = product.pinned().map(|(uid, _)| uid.to_owned()).collect();
        if let Some(twice) = repeated(&uids) {
            self.fail(
                &key("pins"),
                &[],
                format!("\"{}\" is pinned twice", twice.escape_debug()),
                "each once",
            );
        }
        if product.balance == "uid" && product.uid_sources().is_empty() {
            let problem = "\"uid\", and there is no identity to find one".into();
            self.fail(&key("balance"), &[&key("identity")], problem, "uid with an identity, or sid");
        }
        let path = &product.check_path;
        if !path.is_empty() && (!path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic())) {
            let problem = format!("\"{}\" is no path", path.escape_debug());
            self.fail(&key("check_path"), &[], problem, "a path as /health, or \"\"");
        }
        let bad = product.check_status.iter().find(|text| statuses(text).is_none());
        if let Some(bad) = bad.cloned().or_else(|| product.check_status.is_empty().then(String::new)) {
            let problem = format!("\"{}\" is no status", bad.escape_debug());
            self.fail(&key("check_status"), &[], problem, "as 200 or 200-399");
        }
        if product.check_timeout > product.check_interval {
            let (timeout, interval) = (key("check_timeout"), key("check_interval"));
            let value =
                |field| super::Section::value(product, field).map(|v| v.to_string()).unwrap_or_default();
            let problem = format!(
                "{} does not go with {interval} = {}",
                value("check_timeout"),
                value("check_interval")
            );
            self.fail(&timeout, &[&interval], problem, &format!("at most {interval}"));
        }
    }

    /// A host or a path chooses one product.
    fn chosen_once(&mut self, field: &str, of: fn(&ProductConfig) -> Vec<String>) {
        let config = self.config;
        let mut owners: BTreeMap<String, &str> = BTreeMap::new();
        for (name, product) in &config.products.0 {
            for item in of(product) {
                if let Some(other) = owners.insert(item.clone(), name) {
                    let problem = format!("{item} chooses {other} too");
                    let (key, other) =
                        (format!("products.{name}.{field}"), format!("products.{other}.{field}"));
                    self.fail(&key, &[&other], problem, "each in one product");
                }
            }
        }
    }
}

/// One that stands in the list more than once.
fn repeated(items: &[String]) -> Option<&String> {
    items.iter().enumerate().find(|(at, item)| items[..*at].contains(item)).map(|(_, item)| item)
}

/// Whether two TCP listeners could not both be bound.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    let same_host = |a: IpAddr, b: IpAddr| a == b || a.is_unspecified() || b.is_unspecified();
    a.port() != 0 && a.port() == b.port() && same_host(a.ip(), b.ip())
}
