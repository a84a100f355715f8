//! Settings from all sources, and every way to get them wrong.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::product::{UidSource, Upstreams};
use super::*;

/// A directory of this test's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("meshd-config-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, mode: u32, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn file(path: &Path) -> Sources {
    Sources { file: Some(path.to_owned()), ..Sources::default() }
}

fn env(pairs: &[(&str, &str)]) -> Sources {
    let env = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Sources { env, ..Sources::default() }
}

/// The complaints about a file, without its directory.
fn complaints(scratch: &Scratch, text: &str) -> String {
    let path = scratch.file("meshd.toml", 0o644, text);
    let errors = Config::load(&file(&path)).expect_err("accepted").to_string();
    errors.replace(&format!("{}/", scratch.0.display()), "")
}

#[test]
fn without_any_source_everything_is_at_its_default() {
    assert_eq!(Config::load(&Sources::default()), Ok(Config::default()));
    let products = Config::default().products.0;
    assert_eq!(products.keys().collect::<Vec<_>>(), ["rooms"]);
    assert_eq!(products["rooms"].uid_sources(), [UidSource::Query("uid".into())]);
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file() {
    let scratch = Scratch::new("strength");
    let path = scratch.file(
        "meshd.toml",
        0o644,
        "[mesh]\ncluster = \"from-file\"\nprobe_period = \"150ms\"\n\n[log]\nfilter = \"warn\"\n",
    );
    let mut sources = file(&path);
    sources.env =
        env(&[("MESHD_MESH__CLUSTER", "from-env"), ("MESHD_LOG__FILTER", "debug"), ("MESHD_PORT", "x")]).env;
    sources.flags =
        vec![Flag { flag: "--set".into(), key: "mesh.cluster".into(), value: "from-flag".into() }];
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.mesh.cluster, "from-flag");
    assert_eq!(config.log.filter, "debug");
    assert_eq!(config.mesh.probe_period, Duration::from_millis(150));
    let origin = |key: &str| config.origins.of(key).to_string();
    assert_eq!(origin("mesh.cluster"), "flag --set");
    assert_eq!(origin("log.filter"), "env MESHD_LOG__FILTER");
    assert_eq!(origin("mesh.probe_period"), format!("{}:3", path.display()));
    assert_eq!(origin("mesh.probe_rtt"), "default");
}

#[test]
fn all_that_is_wrong_is_told_at_once_with_its_line() {
    let scratch = Scratch::new("all-errors");
    let text = r#"[mesh]
lisetn = "127.0.0.1:1"
probe_rtt = 35
vnodes = 1
seeds = ["mesh.internal"]
cluster = true
key = "secret"

[cliant]
listen = "127.0.0.1:1"

[limits]
message_bytes_max = "2TB"
json_depth_max = "deep"

[products.chat]
kind = "app"
colour = "blue"
"#;
    let expected = r#"meshd.toml:2: mesh.lisetn: unknown setting, did you mean mesh.listen?
meshd.toml:3: mesh.probe_rtt: 35 has no unit: write "35s" or "35ms" (allowed: 1ms to 5s)
meshd.toml:4: mesh.vnodes: 1 is out of range (allowed: 16 to 4096)
meshd.toml:5: mesh.seeds: "mesh.internal" is not HOST:PORT (allowed: a list of HOST:PORT)
meshd.toml:6: mesh.cluster: expected a text, found true (allowed: 1 to 64 of a-z A-Z 0-9 - _ .)
meshd.toml:7: mesh.key: a secret does not belong in this file (allowed: from the environment only)
meshd.toml:9: cliant: unknown setting, did you mean client.…?
meshd.toml:13: limits.message_bytes_max: "2TB" is not a size as "64KiB" (allowed: 1KiB to 64MiB)
meshd.toml:14: limits.json_depth_max: expected a whole number, found the text "deep" (allowed: 8 to 128)
meshd.toml:17: products.chat.kind: "app" is reserved for workers and webhooks, which this version has not: write handlers in Rust and embed the node (docs/handlers.md) (allowed: "rooms", "proxy")
meshd.toml:18: products.chat.colour: unknown setting, see docs/config.md"#;
    assert_eq!(complaints(&scratch, text), expected);
}

#[test]
fn settings_given_twice_and_broken_lines_are_told_together() {
    let scratch = Scratch::new("syntax");
    let told = complaints(&scratch, "[log]\nformat = \"json\"\nformat = \"text\"\n\n[mesh]\nlisten = \n");
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 2, "{told}");
    assert!(lines[0].starts_with("meshd.toml:3: \"format\": duplicate key"), "{told}");
    assert!(lines[1].starts_with("meshd.toml:6: "), "{told}");
}

#[test]
fn contradictions_name_both_settings_and_both_values() {
    let scratch = Scratch::new("contradictions");
    let text = r#"[mesh]
probe_rtt = "80ms"
suspect_for = "150ms"
[limits]
ping_timeout = "30s"
message_bytes_max = "4MiB"
[api]
listen = "127.0.0.1:4080"
"#;
    let expected = "\
meshd.toml:2: mesh.probe_rtt: 80ms does not go with mesh.probe_period = 90ms (allowed: less than half of mesh.probe_period)
meshd.toml:3: mesh.suspect_for: 150ms does not go with mesh.probe_period = 90ms (allowed: at least twice mesh.probe_period)
meshd.toml:5: limits.ping_timeout: 30s does not go with limits.ping_interval = 25s (allowed: less than limits.ping_interval)
meshd.toml:6: limits.inbound_bytes_max: 1MiB does not go with limits.message_bytes_max = 4MiB (allowed: at least limits.message_bytes_max)
meshd.toml:6: limits.room_log_bytes_max: 1MiB does not go with limits.message_bytes_max = 4MiB (allowed: at least limits.message_bytes_max)
meshd.toml:8: api.listen: 127.0.0.1:4080 does not go with client.listen = 127.0.0.1:4080 (allowed: another port than client.listen)";
    assert_eq!(complaints(&scratch, text), expected);
}

#[test]
fn a_trusted_proxy_is_an_address_or_a_network() {
    let scratch = Scratch::new("proxies");
    let text = "[client]\ntrusted_proxies = [\"10.0.0.0/8\", \"10.0.0.1/8\"]\n";
    let expected = "meshd.toml:2: client.trusted_proxies: \"10.0.0.1/8\" is no address and no network \
                    (allowed: as 192.0.2.1, 192.0.2.0/24 or 2001:db8::/32)";
    assert_eq!(complaints(&scratch, text), expected);
}

#[test]
fn a_listener_open_to_others_needs_its_secret() {
    let errors = Config::load(&env(&[
        ("MESHD_MESH__LISTEN", "10.0.0.1:4083"),
        ("MESHD_CLIENT__LISTEN", "0.0.0.0:4080"),
        ("MESHD_API__LISTEN", "10.0.0.1:4081"),
        ("MESHD_ADMIN__LISTEN", "10.0.0.1:4082"),
    ]));
    let errors = errors.unwrap_err().to_string();
    let expected = "\
env MESHD_ADMIN__LISTEN: admin.listen: 10.0.0.1:4082 can be reached from other hosts, and admin.token_file is not set (allowed: a loopback address without a token)
env MESHD_API__LISTEN: api.listen: 10.0.0.1:4081 can be reached from other hosts, and api.key_file is not set (allowed: a loopback address without a key)
env MESHD_CLIENT__LISTEN: products.rooms.identity: product rooms has no identity but what clients say, and client.listen = 0.0.0.0:4080 can be reached from other hosts: anyone could be anyone; set products.rooms.jwt_key_file (allowed: jwt with jwt_key_file; or insecure_identity = true)
env MESHD_MESH__LISTEN: mesh.listen: 10.0.0.1:4083 can be reached from other hosts, and there is no cluster key: make one with `(umask 077; meshctl keygen > FILE)`, copy it to every node and set mesh.key_file (allowed: a loopback address without a key)";
    assert_eq!(errors, expected);
}

#[test]
fn a_key_file_open_to_all_users_is_refused_and_never_shown() {
    let scratch = Scratch::new("open-key");
    let key = secrets::generate_cluster_key();
    let path = scratch.file("key", 0o644, key.expose());
    let set = [("MESHD_MESH__KEY_FILE", path.to_str().unwrap())];
    let told = Config::load(&env(&set)).unwrap_err().to_string();
    let name = path.display();
    let expected = format!(
        "env MESHD_MESH__KEY_FILE: mesh.key_file: {name} is open to every user of this host: chmod 600 {name}"
    );
    assert_eq!(told, expected);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(Config::load(&env(&set)).is_ok());
    fs::write(&path, "canary").unwrap();
    let told = Config::load(&env(&set)).unwrap_err().to_string();
    assert!(
        told.ends_with(
            "not a cluster key: 64 hex digits (make one with `(umask 077; meshctl keygen > FILE)`)"
        ),
        "{told}"
    );
    assert!(!told.contains("canary"));
}

#[test]
fn a_key_of_the_environment_works_and_is_not_shown() {
    let key = secrets::generate_cluster_key();
    let config = Config::load(&env(&[("MESHD_MESH__KEY", key.expose())])).unwrap();
    let shown = config.shown_as_text() + &format!("{config:?}");
    assert!(shown.contains("***") && !shown.contains(key.expose()));
    let secrets = secrets::read(&config, secrets::DevelopmentKey::Leave).unwrap();
    assert!(secrets.cluster.is_some());
}

#[test]
fn nodes_that_make_a_key_file_at_once_end_with_the_same() {
    let scratch = Scratch::new("key-race");
    let path = scratch.0.join("state/development.key");
    let keys: Vec<[u8; 4]> = std::thread::scope(|scope| {
        let make = || {
            secrets::make_key_file(&path).unwrap();
            secrets::read_cluster_key(&path).unwrap().fingerprint()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(keys.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn named_products_replace_the_default_one() {
    let scratch = Scratch::new("products");
    let jwt = scratch.file("jwt", 0o600, "0123456789abcdef0123456789abcdef\n");
    let text = format!(
        "[products.chat]\njwt_key_file = \"{}\"\njoin = \"own-tag\"\n[products.board]\ndurability = \"none\"\n",
        jwt.display()
    );
    let config = Config::load(&file(&scratch.file("meshd.toml", 0o644, &text))).unwrap();
    assert_eq!(config.products.0.keys().collect::<Vec<_>>(), ["board", "chat"]);
    assert_eq!(config.products.0["chat"].uid_sources(), [UidSource::Jwt]);
    let rules = config.products.0["chat"].rules("chat");
    assert_eq!(rules.join, mesh_proto::shard::JoinRule::OwnTag);
    assert!(rules.durable && !config.products.0["board"].rules("board").durable);
    let secrets = secrets::read(&config, secrets::DevelopmentKey::Leave).unwrap();
    assert_eq!(format!("{:?}", secrets.jwt_keys["chat"]), "[HS256]");
}

#[test]
fn settings_of_products_that_do_not_fit_are_told_with_their_line() {
    let scratch = Scratch::new("products-wrong");
    let text = r#"[client]
default_product = "shop"
[products.a]
kind = "proxy"
join = "nobody"
hosts = ["a.example", "bad host"]
paths = ["/a/"]
identity = ["jwt", "anonymous", "password"]
sticky_cookie = "a b"
[products.b]
kind = "proxy"
hosts = ["B.example"]
uid = "required"
balance = "uid"
check_path = "health"
check_status = ["600"]
check_timeout = "10s"
[products.c]
hosts = ["b.EXAMPLE"]
keep = "1m"
identity = ["anonymous", "header:X-User"]
[products.e]
hook_url = "https://app/auth"
identity = "hook"
[products.f]
hook_url = "http://app/auth"
identity = "anonymous"
[products.g]
identity = ["auth:user", "hook"]
hook_headers = ["a b"]
[products.d]
kind = "proxy"
upstreams = ["local:3000", "b:1", "b:1"]
pins = ["alice=c:1", "bob"]
identity = ["cookie:user", "header:X-User"]
jwt_key_file = "nowhere"
"#;
    let expected = r#"meshd.toml:2: client.default_product: there is no product "shop" (allowed: one of a, b, c, d, e, f, g, or "")
meshd.toml:4: products.a.upstreams: a proxy needs servers to pass requests on to (allowed: HOST:PORT, …; or local:PORT)
meshd.toml:5: products.a.join: does nothing with kind = "proxy" (allowed: kind = "rooms", or without it)
meshd.toml:6: products.a.hosts: "bad host" is no host name (allowed: a list of names as app.example.com or *.example.com)
meshd.toml:7: products.a.paths: "/a/" is no path from its root, in whole segments (allowed: a list of paths as /chat)
meshd.toml:8: products.a.identity: "password" is no source of uids (allowed: "auto", or a list of jwt, query:NAME, cookie:NAME, header:NAME, auth:NAME, hook, anonymous)
meshd.toml:9: products.a.sticky_cookie: "a b" is not a name (allowed: 1 to 64 of a-z A-Z 0-9 - _ . and few others, or "" for none)
meshd.toml:11: products.b.upstreams: a proxy needs servers to pass requests on to (allowed: HOST:PORT, …; or local:PORT)
meshd.toml:13: products.b.uid: "required", and there is no identity to find one (allowed: required with an identity)
meshd.toml:14: products.b.balance: "uid", and there is no identity to find one (allowed: uid with an identity, or sid)
meshd.toml:15: products.b.check_path: "health" is no path (allowed: a path as /health, or "")
meshd.toml:16: products.b.check_status: "600" is no status (allowed: as 200 or 200-399)
meshd.toml:17: products.b.check_timeout: 10s does not go with products.b.check_interval = 5s (allowed: at most products.b.check_interval)
meshd.toml:19: products.c.hosts: b.example chooses b too (allowed: each in one product)
meshd.toml:20: products.c.keep: does nothing with kind = "rooms" (allowed: kind = "proxy", or without it)
meshd.toml:21: products.c.identity: nothing behind item 1 is ever asked (allowed: anonymous as the last of the list)
meshd.toml:21: products.c.identity: "header:" is believed of trusted proxies only, and there are none (allowed: header: with client.trusted_proxies)
meshd.toml:23: products.e.hook_url: "https://app/auth" is no URL to ask at (allowed: http://HOST:PORT/PATH)
meshd.toml:26: products.f.hook_url: nobody asks there: hook is not in the list of identity (allowed: hook_url with hook in identity)
meshd.toml:29: products.g.hook_url: "hook" needs somebody to ask (allowed: http://HOST:PORT/PATH)
meshd.toml:30: products.g.hook_headers: "a b" is no name (allowed: a list of names)
meshd.toml:33: products.d.upstreams: the server beside each node stands alone (allowed: HOST:PORT, …; or one local:PORT)
meshd.toml:33: products.d.upstreams: b:1 stands there twice (allowed: each once)
meshd.toml:34: products.d.pins: "alice=c:1" pins nobody to an upstream there is (allowed: UID=HOST:PORT of upstreams)
meshd.toml:34: products.d.pins: "bob" pins nobody to an upstream there is (allowed: UID=HOST:PORT of upstreams)
meshd.toml:35: products.d.identity: what clients say of themselves is believed, so that keys for tokens protect nothing (allowed: jwt, or what clients say without a key for tokens)
meshd.toml:35: products.d.identity: "header:" is believed of trusted proxies only, and there are none (allowed: header: with client.trusted_proxies)
meshd.toml:36: products.d.jwt_key_file: nowhere: No such file or directory (os error 2)"#;
    let told = complaints(&scratch, text);
    for (told, expected) in told.lines().zip(expected.lines()) {
        assert_eq!(told, expected);
    }
    assert_eq!(told.lines().count(), expected.lines().count(), "{told}");
}

#[test]
fn a_token_in_a_cookie_needs_to_know_the_pages_that_may_connect() {
    let scratch = Scratch::new("cookie-token");
    let jwks =
        r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    let jwks = scratch.file("jwks.json", 0o644, jwks);
    let text = |origins: &str| {
        format!(
            "[client]\nlisten = \"0.0.0.0:4080\"\n{origins}[products.chat]\njwt_from = \"cookie:token\"\n\
             jwt_jwks_file = \"{}\"\n",
            jwks.display()
        )
    };
    let expected = "meshd.toml:4: products.chat.jwt_from: a browser sends cookies along with what any page asks \
                    for, and client.allowed_origins = * lets any page ask (allowed: cookie: with the pages \
                    listed in client.allowed_origins)";
    assert_eq!(complaints(&scratch, &text("")), expected);
    let listed = text("allowed_origins = [\"https://app.example\"]\n");
    let config = Config::load(&file(&scratch.file("meshd.toml", 0o644, &listed))).unwrap();
    assert_eq!(config.products.0["chat"].uid_sources(), [UidSource::Jwt]);
    // A set with a shared key in it is a secret.
    let shared = r#"{"keys": [{"kty": "oct", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"}]}"#;
    fs::write(&jwks, shared).unwrap();
    let told = complaints(&scratch, &listed);
    assert!(told.starts_with("meshd.toml:6: products.chat.jwt_jwks_file: "), "{told}");
    assert!(told.contains("is open to every user of this host") && !told.contains("MDEy"), "{told}");
}

#[test]
fn a_proxy_knows_its_users_its_upstreams_and_what_keeps_them_together() {
    let scratch = Scratch::new("proxies");
    let text = r#"[client]
trusted_proxies = ["10.0.0.0/8"]
default_product = "shop"
[products.shop]
kind = "proxy"
upstreams = ["a:1", "b:2"]
pins = ["a=b=a:1"]
identity = ["header:X-User", "anonymous"]
check_status = ["200", "300-399"]
[products.old]
kind = "proxy"
upstreams = ["local:3000"]
pins = ["alice=node-1"]
[products.mixed]
kind = "proxy"
upstreams = ["a:1"]
identity = "query:user"
uid = "optional"
balance = "sid"
"#;
    let config = Config::load(&file(&scratch.file("meshd.toml", 0o644, text))).unwrap();
    let [mixed, old, shop] = ["mixed", "old", "shop"].map(|name| &config.products.0[name]);
    assert_eq!(shop.uid_sources(), [UidSource::Header("X-User".into()), UidSource::Anonymous]);
    assert!(shop.requires_uid() && shop.balances_by_uid());
    assert_eq!(shop.upstreams(), Upstreams::Listed(&["a:1".into(), "b:2".into()]));
    assert_eq!(shop.pinned().collect::<Vec<_>>(), [("a=b", "a:1")]);
    assert_eq!(shop.good_statuses(), [200..=200, 300..=399]);
    assert_eq!(old.uid_sources(), []);
    assert!(!old.requires_uid() && !old.balances_by_uid());
    assert_eq!(old.upstreams(), Upstreams::Local(3_000));
    assert_eq!(mixed.uid_sources(), [UidSource::Query("user".into())]);
    assert!(!mixed.requires_uid() && !mixed.balances_by_uid());
}

#[test]
fn the_wide_preset_sets_what_nothing_else_sets() {
    let config =
        Config::load(&env(&[("MESHD_MESH__TIMING", "wan"), ("MESHD_MESH__SUSPECT_FOR", "2s")])).unwrap();
    assert_eq!(config.mesh.probe_period, Duration::from_millis(300));
    assert_eq!(config.mesh.suspect_for, Duration::from_secs(2));
    assert_eq!(config.origins.of("mesh.probe_period").to_string(), "preset wan");
    assert_eq!(Config::default().mesh.timing(), Timing::lan());
    let wan = Config::load(&env(&[("MESHD_MESH__TIMING", "wan")])).unwrap();
    assert_eq!(wan.mesh.timing(), Timing::wan());
}

#[test]
fn only_a_chosen_number_of_clients_is_held_against_the_descriptors() {
    let few = |sources: Sources| Sources { open_files_max: Some(1_024), ..sources };
    assert!(Config::load(&few(Sources::default())).is_ok());
    let told = Config::load(&few(env(&[("MESHD_CLIENT__CONNECTIONS_MAX", "1000")]))).unwrap_err();
    let expected = "env MESHD_CLIENT__CONNECTIONS_MAX: client.connections_max: 1000 clients need 1064 file \
                    descriptors, this process may open 1024 (ulimit -Hn) (allowed: at most 960)";
    assert_eq!(told.to_string(), expected);
}

#[test]
fn every_default_is_within_its_own_range_and_reads_back() {
    let config = Config::default();
    for name in SECTIONS {
        let section = config.section(name).unwrap();
        for key in section.keys() {
            let value = section.value(key.field).unwrap();
            let text = value.to_string();
            let optional = text.is_empty() && matches!(key.kind, Kind::Text | Kind::Path | Kind::Secret);
            assert!(optional || key.kind.parse_text(&text) == Ok(value), "{name}.{} = {text}", key.field);
        }
    }
}

#[test]
fn the_reference_in_docs_is_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/config.md");
    let text = reference::as_markdown();
    if std::env::var_os("MESHD_WRITE_DOCS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &text).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(written, text, "write it anew: MESHD_WRITE_DOCS=1 cargo test -p meshd reference");
}
