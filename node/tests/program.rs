//! The program from outside (exit codes, what it prints) and nodes embedded in this process.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::view::View;
use meshd::config::{Config, Flag, Sources, secrets};
use meshd::handles::ViewWatch;
use meshd::node::{Addresses, Ended, Node, Options, Running, StartError};

/// No wait in these tests takes longer; one that does fails with the last state.
const PATIENCE: Duration = Duration::from_secs(30);

/// `meshd` with nothing of this process's environment but a key.
fn meshd(key: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshd"));
    command.env_clear().env("MESHD_MESH__KEY", key).stdin(Stdio::null());
    command
}

fn fresh_key() -> String {
    secrets::generate_cluster_key().expose().to_owned()
}

/// Runs it to its end: exit code, standard output, standard error.
fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

const FREE_PORTS: [(&str, &str); 4] = [
    ("--listen", "127.0.0.1:0"),
    ("--api", "127.0.0.1:0"),
    ("--admin", "127.0.0.1:0"),
    ("--mesh", "127.0.0.1:0"),
];

fn free_ports(command: &mut Command) -> &mut Command {
    for (flag, address) in FREE_PORTS {
        command.args([flag, address]);
    }
    command.args(["--set", "node.shards=1", "--set", "drain.announce=0s"])
}

/// A node of its own process and where it listens.
fn supervised(key: &str, name: &str) -> (Child, Addresses) {
    let mut command = meshd(key);
    free_ports(&mut command).args(["--supervised", "--name", name]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, serde_json::from_str(&line).unwrap())
}

/// A node in this process.
fn embedded(key: &str, name: &str, seeds: &[&Running]) -> Running {
    let flag = |key: &str, value: &str| Flag { flag: "test".into(), key: key.into(), value: value.into() };
    let mut flags = vec![flag("node.name", name), flag("node.shards", "1"), flag("drain.announce", "0s")];
    for listener in ["client.listen", "api.listen", "admin.listen", "mesh.listen"] {
        flags.push(flag(listener, "127.0.0.1:0"));
    }
    let seeds: Vec<String> = seeds.iter().map(|node| node.addresses().mesh.to_string()).collect();
    flags.push(flag("mesh.seeds", &seeds.join(",")));
    let env = vec![("MESHD_MESH__KEY".to_owned(), key.to_owned())];
    let config = Config::load(&Sources { env, flags, ..Sources::default() }).unwrap();
    Node::start(config, Options::default()).unwrap()
}

/// Waits for a view; its digest.
fn wait_for(mut view: ViewWatch, what: &str, seen: impl Fn(&View) -> bool) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let last = view.clone();
    let found = runtime.block_on(async {
        let found = view.wait_for(|view: &Arc<View>| seen(view));
        tokio::time::timeout(PATIENCE, found).await.ok()?.ok().map(|view| view.ring.digest())
    });
    found.unwrap_or_else(|| panic!("no view with {what}; last: {:?}", last.borrow().nodes))
}

fn stop(node: Running) -> Ended {
    node.stopper().cancel();
    node.wait()
}

#[test]
fn settings_that_are_right_are_printed_with_their_origin() {
    let (code, out, err) = run(meshd(&fresh_key()).args(["--check-config", "--name", "a"]));
    assert_eq!((code, err.as_str()), (0, ""));
    let line = |key: &str| {
        let line = out.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("node.name"), "node.name a restart flag --name");
    assert_eq!(line("mesh.key "), "mesh.key *** restart env MESHD_MESH__KEY");
    assert_eq!(line("limits.message_bytes_max"), "limits.message_bytes_max 1MB restart default");
    assert_eq!(line("products.rooms.join"), "products.rooms.join anyone live default");
}

#[test]
fn wrong_settings_and_wrong_usage_end_with_2_and_start_nothing() {
    let (code, out, err) =
        run(meshd(&fresh_key()).args(["--set", "mesh.lisetn=x", "--set", "node.weight=0"]));
    assert_eq!((code, out.as_str()), (2, ""));
    let expected = "flag --set: mesh.lisetn: unknown setting, did you mean mesh.listen?\n\
                    flag --set: node.weight: 0 is out of range (allowed: 1 to 64)\n";
    assert_eq!(err, expected);
    let (code, _, err) = run(meshd(&fresh_key()).arg("--no-such-flag"));
    assert_eq!(code, 2);
    assert!(err.contains("--no-such-flag"), "{err}");
    let (code, _, err) = run(meshd(&fresh_key()).args(["--config", "/no/such/meshd.toml"]));
    assert_eq!(code, 2);
    assert!(err.starts_with("flag --config: /no/such/meshd.toml: cannot be read: No such file"), "{err}");
}

#[test]
fn a_port_in_use_ends_with_1_and_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (flag, what) in [("--listen", "clients"), ("--api", "the HTTP API"), ("--admin", "meshctl")] {
        let mut command = meshd(&fresh_key());
        for (other, free) in FREE_PORTS {
            command.args([other, if other == flag { &address } else { free }]);
        }
        let (code, _, err) = run(command.args(["--log", "text", "--set", "log.filter=warn"]));
        assert_eq!(code, 1, "{err}");
        let expected = format!("meshd: cannot listen for {what} on {address}: Address already in use");
        assert!(err.starts_with(&expected), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = meshd(&fresh_key());
    for (other, free) in FREE_PORTS {
        command.args([other, if other == "--mesh" { &address } else { free }]);
    }
    let (code, _, err) = run(command.args(["--set", "log.filter=warn"]));
    assert_eq!(code, 1, "{err}");
    let expected = format!("meshd: cannot bind the mesh port {address}: Address already in use");
    assert!(err.starts_with(&expected), "{err}");
}

#[test]
fn sigterm_ends_a_node_with_0() {
    let (mut child, _) = supervised(&fresh_key(), "a");
    let killed = Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_supervised_node_ends_with_its_supervisor() {
    let (mut child, _) = supervised(&fresh_key(), "a");
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_holder_of_a_name_ends_with_3_and_says_who_has_it() {
    let key = fresh_key();
    let holder = embedded(&key, "twin", &[]);
    wait_for(holder.view(), "the holder alone", |view| view.ring.nodes().len() == 1);
    let mut command = meshd(&key);
    let seed = holder.addresses().mesh.to_string();
    free_ports(&mut command).args(["--name", "twin", "--seed", &seed, "--set", "log.filter=error"]);
    let (code, _, err) = run(&mut command);
    assert_eq!(code, 3, "{err}");
    let last = err.lines().last().unwrap_or_default();
    assert!(last.starts_with(&format!("meshd: another node called twin lives at {seed}")), "{err}");
    assert_eq!(stop(holder), Ended::Stopped);
}

#[test]
fn three_nodes_find_each_other_and_one_leaves() {
    let key = fresh_key();
    let first = embedded(&key, "n1", &[]);
    let second = embedded(&key, "n2", &[&first]);
    let third = embedded(&key, "n3", &[&first, &second]);
    let nodes = [first, second, third];
    let digests: Vec<u64> = nodes
        .iter()
        .map(|node| wait_for(node.view(), "three on the ring", |view| view.ring.nodes().len() == 3))
        .collect();
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "{digests:x?}");
    let [first, second, third] = nodes;
    let view = third.view();
    let names: Vec<String> = view.borrow().nodes.iter().map(|node| node.name()).collect();
    assert_eq!(
        {
            let mut names = names;
            names.sort();
            names
        },
        ["n1", "n2", "n3"]
    );
    let clients: Vec<String> = view
        .borrow()
        .nodes
        .iter()
        .filter_map(|node| Some(node.record.as_ref()?.client_addr.clone()))
        .collect();
    assert!(clients.contains(&first.addresses().client.to_string()), "{clients:?}");
    assert_eq!(stop(second), Ended::Stopped);
    for view in [first.view(), third.view()] {
        wait_for(view, "two nodes left", |view| view.nodes.len() == 2 && view.ring.nodes().len() == 2);
    }
    assert_eq!([stop(third), stop(first)], [Ended::Stopped, Ended::Stopped]);
}

#[test]
fn a_taken_port_is_an_error_to_whoever_embeds_a_node() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = Config::default();
    config.client.listen = "127.0.0.1:0".parse().unwrap();
    config.api.listen = taken.local_addr().unwrap();
    config.mesh.key = meshd::config::SecretText::new(fresh_key());
    let error = Node::start(config, Options::default()).unwrap_err();
    assert!(matches!(error, StartError::Listen { what: "the HTTP API", .. }), "{error}");
}
