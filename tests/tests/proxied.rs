//! Unmodified Socket.IO servers behind three nodes, by the stock client: scenarios in `tests/js/proxied.mjs`.

use std::net::SocketAddr;

use mesh_tests::balancer::Balancer;
use mesh_tests::cluster::{Cluster, Node};
use mesh_tests::process::{Process, binary, run};
use mesh_tests::{http, js, until};

/// A Socket.IO server, and where it listens.
struct Server {
    process: Process,
    port: u16,
}

impl Server {
    async fn start(name: &str, port: u16) -> Self {
        let mut process = js::start("upstream.mjs", &[name, &port.to_string()]).await;
        let line = process.line("{\"port\":").await;
        let told: serde_json::Value = serde_json::from_str(&line).expect("a port");
        Self { process, port: u16::try_from(told["port"].as_u64().expect("a port")).expect("a port") }
    }

    fn addr(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }
}

const PRODUCT: [(&str, &str); 5] = [
    ("PRODUCTS__APP__KIND", "proxy"),
    ("PRODUCTS__APP__CHECK_PATH", "/health"),
    ("PRODUCTS__APP__CHECK_INTERVAL", "200ms"),
    ("PRODUCTS__APP__CHECK_TIMEOUT", "200ms"),
    ("PRODUCTS__APP__CHECK_FALL", "2"),
];

async fn servers() -> Vec<Server> {
    let mut servers = Vec::new();
    for name in ["a", "b", "c"] {
        servers.push(Server::start(name, 0).await);
    }
    servers
}

async fn three_nodes(servers: &[Server], more: &[(&str, &str)]) -> (Cluster, Balancer) {
    let upstreams: Vec<String> = servers.iter().map(|server| server.addr().to_string()).collect();
    let upstreams = upstreams.join(",");
    let settings = [&PRODUCT[..], &[("PRODUCTS__APP__UPSTREAMS", &upstreams)], more].concat();
    let cluster = Cluster::start_with(3, &settings).await;
    let balancer = Balancer::start(cluster.clients()).await;
    (cluster, balancer)
}

async fn ended_well(mut script: Process) {
    let status = script.ended().await;
    assert!(status.success(), "{status}: {:#?}", script.output().lines());
}

#[tokio::test]
async fn sessions_are_whole_by_every_transport_though_each_request_comes_by_another_node() {
    let servers = servers().await;
    let (_cluster, balancer) = three_nodes(&servers, &[]).await;
    let addr = balancer.addr().to_string();
    ended_well(js::start("proxied.mjs", &["transports", &addr]).await).await;
}

#[tokio::test]
async fn clients_of_a_server_that_dies_find_another_and_it_is_used_again_when_it_is_back() {
    let mut servers = servers().await;
    let (_cluster, balancer) = three_nodes(&servers, &[]).await;
    let addr = balancer.addr().to_string();
    let mut script = js::start("proxied.mjs", &["kill", &addr]).await;
    script.line("at ").await;
    servers[0].process.kill().await;
    script.tell("killed").await;
    script.line("moved").await;
    servers[0] = Server::start("a", servers[0].port).await;
    script.tell("back").await;
    ended_well(script).await;
}

#[tokio::test]
async fn all_devices_of_a_user_are_at_the_server_beside_one_node_and_move_when_that_dies() {
    let mut servers = vec![Server::start("n1", 0).await];
    let local = |server: &Server| format!("local:{}", server.port);
    let first = local(&servers[0]);
    let more = [("PRODUCTS__APP__UPSTREAMS", first.as_str()), ("PRODUCTS__APP__IDENTITY", "query")];
    let mut cluster = Cluster::start_with(1, &[&PRODUCT[..], &more].concat()).await;
    for name in ["n2", "n3"] {
        let server = Server::start(name, 0).await;
        let mut settings = cluster.settings_for(name);
        settings.insert("PRODUCTS__APP__UPSTREAMS".into(), local(&server));
        cluster.nodes.push(Node::start(name, settings).await);
        servers.push(server);
    }
    cluster.agreed().await;
    for node in &cluster.nodes {
        until("every node to know every server", || async {
            let upstreams = node.admin("/v1/upstreams").await?.json();
            let up = upstreams["upstreams"]
                .as_array()
                .map_or(0, |lines| lines.iter().filter(|line| line["state"] == "up").count());
            if up == 3 { Ok(()) } else { Err(upstreams.to_string()) }
        })
        .await;
    }
    // Clients are at the first two: the third and its server die together.
    let clients: Vec<String> = cluster.clients().iter().take(2).map(ToString::to_string).collect();
    let mut script = js::start("proxied.mjs", &["devices", &clients[0], &clients[1]]).await;
    script.line("at ").await;
    cluster.kill(2).await;
    servers[2].process.kill().await;
    script.tell("killed").await;
    ended_well(script).await;
}

#[tokio::test]
async fn an_upstream_is_drained_at_every_node_by_one_word_and_taken_back_by_another() {
    let servers = servers().await;
    let (cluster, balancer) = three_nodes(&servers, &[]).await;
    let (admin, drained) = (cluster.nodes[0].at.admin.to_string(), servers[0].addr().to_string());
    let meshctl = binary("meshctl");
    let states = |wanted: &'static str| {
        let (nodes, drained) = (&cluster.nodes, &drained);
        async move {
            for node in nodes {
                until(wanted, || async {
                    let answer = node.admin("/v1/upstreams").await?.json();
                    let lines = answer["upstreams"].as_array().cloned().unwrap_or_default();
                    let line =
                        lines.iter().find(|line| line["upstream"] == **drained).cloned().unwrap_or_default();
                    if line["state"] == wanted { Ok(()) } else { Err(answer.to_string()) }
                })
                .await;
            }
        }
    };
    states("up").await;
    let (code, text, _) = run(&meshctl, &["--admin", &admin, "upstreams", "drain", &drained]).await;
    assert!(code == 0 && text.contains("draining"), "{text}");
    states("draining").await;
    for _ in 0..12 {
        let answer = http::get(balancer.addr(), "/").await.unwrap();
        assert_ne!(answer.json()["name"], "a");
    }
    let (code, _, _) = run(&meshctl, &["--admin", &admin, "upstreams", "drain", &drained, "--cancel"]).await;
    assert_eq!(code, 0);
    states("up").await;
    let (code, _, said) = run(&meshctl, &["--admin", &admin, "upstreams", "drain", "nobody:1"]).await;
    assert!(code == 1 && said.contains("no upstream nobody:1"), "{said}");
    let metrics = cluster.nodes[0].admin("/metrics").await.unwrap().body;
    assert!(metrics.contains("meshd_upstreams{product=\"app\",state=\"up\"} 3\n"), "{metrics}");
}
