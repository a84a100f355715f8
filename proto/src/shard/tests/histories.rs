//! Rooms that could begin a second history while the first still lives somewhere.

use super::backups::history;
use super::*;
use crate::wire::Replication;

/// Three nodes; the room's owner is node 0, its backup node 1, and `owner` when only `alive` are there.
pub(super) fn room_of(mesh: &Mesh, alive: [bool; 3], owner: usize) -> String {
    let replicas = |alive: [bool; 3], room: &str| {
        let there = (0..3).filter(|n| alive[*n]).map(|n| mesh.nodes[n].id).collect::<Vec<_>>();
        let ring = mesh.view(0).ring.replicas(room_key(room).placement(), 3);
        ring.into_iter().map(|node| node.id).filter(|id| there.contains(id)).collect::<Vec<_>>()
    };
    (0..10_000)
        .map(|i| format!("r{i}"))
        .find(|room| {
            replicas([true; 3], room)[..2] == [mesh.nodes[0].id, mesh.nodes[1].id]
                && replicas(alive, room)[0] == mesh.nodes[owner].id
        })
        .unwrap()
}

/// Node 0, owner of the room, was declared down, and its backup is dead: node 2 is alone on the ring. Node 0
/// is back in another life and not on the ring yet.
pub(super) fn back_and_not_on_the_ring(mesh: &mut Mesh) {
    mesh.alive = vec![false, false, true];
    mesh.view_at(2);
    mesh.settle();
    mesh.alive[0] = true;
    mesh.nodes[0].incarnation = 2;
    mesh.joining = Some(0);
}

fn offers(envelope: &Envelope) -> bool {
    matches!(&envelope.body, Body::Rooms(Replication::Offer(_)))
}

#[test]
fn who_is_not_on_the_ring_yet_is_asked_for_what_it_holds() {
    let mut mesh = Mesh::new(3, 1);
    let room = room_of(&mesh, [false, false, true], 2);
    mesh.query(2, api_publish(&room, "[\"e\",1]", None)).unwrap();
    back_and_not_on_the_ring(&mut mesh);
    // The owner sees it before it sees the ring that names the owner.
    mesh.view_at(2);
    mesh.begin_query(2, 7, api_publish(&room, "[\"e\",2]", None));
    mesh.view_at(0);
    mesh.wait(second());
    assert!(mesh.answers.remove(&7).unwrap().is_ok());
    assert_eq!(history(&mut mesh, 2, &room), ["[\"e\",1]", "[\"e\",2]"]);
}

#[test]
fn who_never_sees_the_ring_is_not_waited_for() {
    let mut mesh = Mesh::new(3, 1);
    let room = room_of(&mesh, [false, false, true], 2);
    back_and_not_on_the_ring(&mut mesh);
    mesh.alive[2] = false;
    mesh.view_at(0);
    mesh.alive[2] = true;
    mesh.view_at(2);
    mesh.begin_query(2, 7, api_publish(&room, "[\"e\"]", None));
    mesh.wait(second());
    assert!(mesh.answers.remove(&7).unwrap().is_ok());
}

#[test]
fn who_offers_a_copy_while_it_is_looked_for_is_asked_as_well() {
    let mut mesh = Mesh::new(3, 1);
    let room = room_of(&mesh, [false, true, true], 1);
    mesh.query(2, api_publish(&room, "[\"e\",1]", None)).unwrap();
    // The backup starts again with nothing and is the owner; the ring has not changed for long.
    mesh.alive[0] = false;
    mesh.nodes[1].incarnation = 2;
    let empty = Mesh::new(3, 1).shards.remove(&(1, 0)).unwrap();
    mesh.shards.insert((1, 0), empty);
    mesh.view_at(1);
    mesh.view_at(2);
    mesh.wait(20 * second());
    mesh.cut = Some((2, 1));
    mesh.begin_query(1, 7, api_publish(&room, "[\"e\",2]", None));
    mesh.settle();
    // The former owner comes back with its copy while node 2 is being asked.
    mesh.alive[0] = true;
    mesh.nodes[0].incarnation = 2;
    mesh.joining = Some(0);
    for n in [2, 1, 0] {
        mesh.view_at(n);
    }
    mesh.settle();
    mesh.heal();
    mesh.wait(second());
    assert!(mesh.answers.remove(&7).unwrap().is_ok());
    assert_eq!(history(&mut mesh, 1, &room), ["[\"e\",1]", "[\"e\",2]"]);
}

#[test]
fn a_new_history_without_an_entry_is_not_the_base() {
    let mut mesh = Mesh::new(3, 1);
    let room = room_of(&mesh, [true, false, true], 0);
    mesh.query(1, api_publish(&room, "[\"old\"]", None)).unwrap();
    let member = mesh.client((0, 0), "bob");
    mesh.say(member, &format!("421[\"join\",\"{room}\"]"));
    mesh.take(member);
    mesh.query(2, api_publish(&room, "[\"e\",1]", None)).unwrap();
    mesh.alive = vec![false, false, true];
    mesh.view_at(2);
    mesh.settle();
    // Node 2 knows of no other when the member's edge asks it to serve the room; the offer takes its time.
    mesh.alive[0] = true;
    mesh.nodes[0].incarnation = 2;
    mesh.joining = Some(0);
    mesh.view_at(0);
    mesh.queue.retain(|(_, envelope)| !offers(envelope));
    mesh.settle();
    assert_eq!(mesh.stats(|s| s.gaps_total), 1, "node 2 has begun a new history");
    mesh.joining = None;
    mesh.view_at(2);
    mesh.view_at(0);
    mesh.wait(second());
    mesh.query(2, api_publish(&room, "[\"e\",2]", None)).unwrap();
    assert_eq!(history(&mut mesh, 0, &room), ["[\"old\"]", "[\"e\",1]", "[\"e\",2]"]);
    let got = mesh.take(member);
    assert_eq!(events(&got), ["42[\"e\",1]", "42[\"e\",2]"], "old is from before the join");
}

/// A room of node 0 with an event; bob joins it at node 2, which is then cut off and goes on with a history of
/// its own. When all see each other again, node 0 is in another life and the other history is the base.
fn merged_into_a_history_that_began_later(both: &[&str]) -> Vec<String> {
    let mut mesh = Mesh::new(3, 1);
    let room = room_of(&mesh, [false, false, true], 2);
    mesh.query(0, api_publish(&room, "[\"old\"]", None)).unwrap();
    let bob = mesh.client((2, 0), "bob");
    mesh.say(bob, &format!("421[\"join\",\"{room}\"]"));
    for event in both {
        mesh.query(0, api_publish(&room, event, None)).unwrap();
    }
    mesh.seen = Some(vec![[(0, 1), (1, 1)].into(), [(0, 1), (1, 1)].into(), [(2, 1)].into()]);
    mesh.sides = vec![0, 0, 1];
    (0..3).for_each(|n| mesh.show(n));
    mesh.settle();
    mesh.query(0, api_publish(&room, "[\"beside\"]", None)).unwrap();
    mesh.query(2, api_publish(&room, "[\"new\"]", None)).unwrap();
    mesh.sides = vec![0; 3];
    mesh.nodes[0].incarnation = 2;
    mesh.seen = Some(vec![[(0, 2), (1, 1), (2, 1)].into(); 3]);
    (0..3).for_each(|n| mesh.show(n));
    mesh.wait(3 * second());
    let merged = history(&mut mesh, 0, &room);
    assert_eq!(merged[..2], ["[\"new\"]", "[\"old\"]"], "{merged:?}");
    assert_eq!(merged.last().unwrap(), "[\"beside\"]");
    events(&mesh.take(bob)).into_iter().map(str::to_owned).collect()
}

#[test]
fn what_a_merge_brings_from_before_a_join_is_not_served() {
    assert_eq!(merged_into_a_history_that_began_later(&[]), ["42[\"new\"]", "42[\"beside\"]"]);
}

#[test]
fn what_a_merge_brings_and_members_have_had_is_not_served_again() {
    let got = merged_into_a_history_that_began_later(&["[\"e\",1]", "[\"e\",2]"]);
    assert_eq!(got, ["42[\"e\",1]", "42[\"e\",2]", "42[\"new\"]", "42[\"beside\"]"]);
}
