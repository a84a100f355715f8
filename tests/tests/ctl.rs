//! `meshctl` against real nodes: text for people, `--json` for scripts, exit codes for both.

use mesh_tests::Cluster;
use mesh_tests::cluster::status_names;
use mesh_tests::process::{binary, run};
use serde_json::Value;

async fn meshctl(args: &[&str]) -> (i32, String, String) {
    run(binary("meshctl"), args).await
}

/// Runs a command against the first node, in both forms; gives the text and the JSON.
async fn both(cluster: &Cluster, command: &[&str]) -> (i32, String, Value) {
    let admin = cluster.nodes[0].at.admin.to_string();
    let at = ["--admin", admin.as_str()];
    let (code, text, err) = meshctl(&[command, &at].concat()).await;
    let (json_code, json, json_err) = meshctl(&[command, &at, &["--json"]].concat()).await;
    assert_eq!(code, json_code, "{command:?}: {err}{json_err}");
    let json =
        serde_json::from_str(&json).unwrap_or_else(|e| panic!("{command:?} --json: {e}\n{json}{json_err}"));
    (code, text, json)
}

#[tokio::test]
async fn status_begins_with_problems_and_exits_1_when_there_are_any() {
    let mut cluster = Cluster::start(3).await;
    let (code, text, json) = both(&cluster, &["status"]).await;
    assert!(text.starts_with("problems: none"), "{text}");
    assert_eq!(code, 0, "{text}");
    assert_eq!(status_names(&json), ["n1", "n2", "n3"]);
    for name in ["n1", "n2", "n3"] {
        assert!(text.contains(name), "{text}");
    }
    cluster.kill(2).await;
    cluster.agreed().await;
    let (_, _, json) = both(&cluster, &["status"]).await;
    assert_eq!(status_names(&json), ["n1", "n2"]);
}

#[tokio::test]
async fn ring_says_who_owns_what_share_and_draws_it() {
    let cluster = Cluster::start(3).await;
    let (code, text, _json) = both(&cluster, &["ring"]).await;
    assert_eq!(code, 0);
    assert!(text.contains("n1") && text.contains('%'), "{text}");
    let file = std::env::temp_dir().join(format!("mesh-tests-ring-{}.svg", std::process::id()));
    let admin = cluster.nodes[1].at.admin.to_string();
    let (code, out, err) = meshctl(&["ring", "--svg", file.to_str().unwrap(), "--admin", &admin]).await;
    assert_eq!(code, 0, "{out}{err}");
    let svg = std::fs::read_to_string(&file).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>") && svg.contains("n3"));
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn explain_names_owner_backup_and_edges() {
    let cluster = Cluster::start(3).await;
    let mut alice = cluster.nodes[1].client("alice").await;
    alice.join("lobby").await;
    let (code, text, json) = both(&cluster, &["explain", "rooms", "alice"]).await;
    assert_eq!(code, 0, "{text}");
    for word in ["owner", "backup", "n2"] {
        assert!(text.contains(word), "no {word} in:\n{text}");
    }
    assert!(json["owner"].is_string() || json["owner"].is_object(), "{json}");
    let (code, text, _) = both(&cluster, &["explain", "rooms", "--room", "lobby"]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("owner") && text.contains("backup"), "{text}");
}

#[tokio::test]
async fn config_prints_every_value_with_its_origin() {
    let cluster = Cluster::start(1).await;
    let (code, text, _) = both(&cluster, &["config"]).await;
    assert_eq!(code, 0);
    assert!(text.contains("mesh.probe_period") && text.contains("default"), "{text}");
    assert!(text.contains("MESHD_NODE__NAME"), "{text}");
    assert!(!text.contains(cluster.key()), "the cluster key is printed");
}

#[tokio::test]
async fn keygen_prints_a_fresh_key_each_time() {
    let (code, first, err) = meshctl(&["keygen"]).await;
    assert_eq!(code, 0, "{err}");
    let (_, second, _) = meshctl(&["keygen"]).await;
    assert_ne!(first, second);
    let key = first.trim();
    assert!(key.len() == 64 && key.bytes().all(|b| b.is_ascii_hexdigit()), "{} bytes", key.len());
}

#[tokio::test]
async fn errors_are_one_line_and_not_0() {
    let nobody = ["status", "--admin", "127.0.0.1:1"];
    for (args, expected) in [(&nobody[..], None), (&["dance"], Some(2)), (&["status", "--nonsense"], Some(2))]
    {
        let (code, out, err) = meshctl(args).await;
        assert_ne!(code, 0, "{args:?}: {out}");
        assert!(expected.is_none_or(|expected| code == expected), "{args:?}: {code} {err}");
        assert!(!err.is_empty(), "{args:?}");
    }
    let (_, _, err) = meshctl(&nobody).await;
    assert_eq!(err.trim_end().lines().count(), 1, "{err}");
}

#[tokio::test]
async fn bad_settings_are_all_told_and_nothing_starts() {
    let file = std::env::temp_dir().join(format!("mesh-tests-config-{}.toml", std::process::id()));
    std::fs::write(&file, "[mesh]\nprobe_perod = \"1s\"\nhelpers = 900\n[node]\nweight = \"two\"\n").unwrap();
    let path = file.to_str().unwrap();
    let (code, out, err) = run(binary("meshd"), &["--config", path]).await;
    assert_eq!(code, 2, "{out}{err}");
    for told in [":2:", ":3:", ":5:", "probe_period", "helpers", "weight"] {
        assert!(err.contains(told), "no {told} in:\n{err}");
    }
    let (code, out, err) = run(binary("meshd"), &["--check-config"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("client.listen") && out.contains("default"), "{out}");
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_named_and_exits_1() {
    let cluster = Cluster::start(1).await;
    let taken = cluster.nodes[0].at.client.to_string();
    let args = [
        "--name",
        "late",
        "--listen",
        &taken,
        "--mesh",
        "127.0.0.1:0",
        "--api",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
    ];
    let (code, _, err) = run(binary("meshd"), &args).await;
    assert_eq!(code, 1, "{err}");
    assert!(err.contains(&taken), "{err}");
}
