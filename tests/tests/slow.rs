//! Clients that stand still for a while, against real nodes.

use mesh_tests::Cluster;
use mesh_tests::cluster::Node;
use serde_json::json;

/// A counter of a node.
async fn counter(node: &Node, name: &str) -> u64 {
    let metrics = node.admin("/metrics").await.unwrap().body;
    let lines = metrics.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Far more passes than its socket, its queue and the tail at its edge hold.
#[tokio::test]
async fn a_client_that_does_not_read_for_a_while_then_reads_all_of_it() {
    const MORE: usize = 60;
    let cluster = Cluster::start_with(2, &[("LIMITS__ROOM_LOG_BYTES_MAX", "64MiB")]).await;
    let edge = &cluster.nodes[0];
    let mut reader = cluster.nodes[1].client("reader").await;
    let mut publisher = cluster.nodes[1].client("publisher").await;
    let mut still = edge.client("still").await;
    // Of four rooms not all are owned by its own edge.
    let rooms = ["a", "b", "c", "d"];
    for client in [&mut reader, &mut publisher, &mut still] {
        for room in rooms {
            client.join(room).await;
        }
    }
    let text = "x".repeat(50_000);
    let mut published = 0;
    let mut left = MORE;
    while left > 0 {
        assert!(published < 900, "it is never behind");
        for room in rooms {
            publisher.say(room, "say", json!([published, text])).await;
            assert_eq!(reader.arguments(1).await[0][0], published);
            published += 1;
        }
        if counter(edge, "meshd_clients_behind_total").await > 0 {
            left -= rooms.len();
        }
    }
    let mut next = [0, 1, 2, 3];
    for _ in 0..published {
        let event = still.event().await;
        let room = rooms.iter().position(|room| event["room"] == *room).unwrap();
        assert_eq!(event["args"][0][0], next[room], "room {}", rooms[room]);
        next[room] += rooms.len();
    }
    assert!(counter(edge, "meshd_older_fetches_total").await > 0);
    publisher.say("a", "say", json!([published])).await;
    assert_eq!(still.event().await["args"][0][0], published);
    assert!(still.is_alive().await);
}
