//! After a change of the cluster each turn looks at a part of what a shard holds; what is spoken of goes first.

use super::backups::{assert_settled, history};
use super::*;

/// Keys looked at in a turn here; one that changes costs as much.
const PER_TURN: usize = 16;

const ROOMS: usize = 120;

fn mesh(nodes: usize) -> Mesh {
    let limits = Limits { placed_per_turn: PER_TURN, ..Limits::default() };
    Mesh::with(nodes, 1, limits, ProductRules::open("chat"))
}

fn rooms(mesh: &mut Mesh) -> Vec<String> {
    let rooms: Vec<String> = (0..ROOMS).map(|i| format!("many{i}")).collect();
    for room in &rooms {
        mesh.query(0, api_publish(room, "[\"before\"]", None)).unwrap();
    }
    rooms
}

/// Whether node `n` holds the room as its owner.
fn owns(mesh: &Mesh, n: usize, room: &str) -> bool {
    let name = format!("{:?}", room_key(room));
    mesh.shards[&(n, 0)].holdings().iter().any(|held| held.name == name && held.owned)
}

fn owned(mesh: &Mesh, n: usize, rooms: &[String]) -> usize {
    rooms.iter().filter(|room| owns(mesh, n, room)).count()
}

/// One turn in which nothing was heard.
fn turn(mesh: &mut Mesh, n: usize) {
    assert!(mesh.shards[&(n, 0)].has_more());
    assert!(mesh.shards[&(n, 0)].next_deadline().unwrap() <= mesh.now);
    mesh.input((n, 0), Input::Timer);
}

/// Delivers what is under way; nobody gets a turn without a message.
fn deliver_all(mesh: &mut Mesh) {
    while let Some((to, envelope)) = mesh.queue.pop_front() {
        mesh.deliver(to, envelope);
    }
}

#[test]
fn a_shard_takes_over_a_part_of_its_rooms_in_each_turn() {
    let mut mesh = mesh(3);
    let rooms = rooms(&mut mesh);
    mesh.alive[2] = false;
    let due = rooms.iter().filter(|room| mesh.owner_of_room(room) == 0).count();
    let before = owned(&mesh, 0, &rooms);
    assert!(due > before + 5, "{due} of {ROOMS} rooms will be node 0's, {before} are");
    mesh.view_at(0);
    let (mut had, mut turns) = (before, 0);
    while mesh.shards[&(0, 0)].has_more() {
        let has = owned(&mesh, 0, &rooms);
        assert!(has <= had + 1, "{} rooms in one turn", has - had);
        assert!(mesh.stats(|s| s.to_hand_over) > 0, "a drain must know that not all has been looked at");
        had = has;
        turns += 1;
        turn(&mut mesh, 0);
    }
    assert!(turns > due - before, "{turns} turns");
    assert_eq!(owned(&mesh, 0, &rooms), due);
    mesh.view_at(1);
    mesh.wait(second());
    for room in &rooms {
        assert_settled(&mesh, room);
        assert_eq!(history(&mut mesh, 0, room), ["[\"before\"]"]);
    }
    assert_eq!(mesh.stats(|s| s.gaps_total), 0);
}

#[test]
fn a_room_that_is_spoken_of_is_served_before_the_others_are_looked_at() {
    let mut mesh = mesh(3);
    let rooms = rooms(&mut mesh);
    mesh.alive[2] = false;
    mesh.view_at(0);
    mesh.view_at(1);
    let late: Vec<&String> =
        rooms.iter().filter(|room| mesh.owner_of_room(room) == 0 && !owns(&mesh, 0, room)).collect();
    let (spoken_of, others) = late.split_last().unwrap();
    assert!(others.len() > 5);
    mesh.begin_query(0, 7, api_publish(spoken_of, "[\"after\"]", None));
    deliver_all(&mut mesh);
    assert!(mesh.answers.remove(&7).unwrap().is_ok());
    assert!(mesh.shards[&(0, 0)].has_more());
    let waiting = others.iter().filter(|room| !owns(&mesh, 0, room)).count();
    assert!(waiting + 1 >= others.len(), "{waiting} of {} wait", others.len());
    assert_eq!(history(&mut mesh, 0, spoken_of), ["[\"before\"]", "[\"after\"]"]);
}

#[test]
fn a_second_change_while_the_first_is_carried_out_is_carried_out_as_well() {
    for turns in 0..40 {
        let mut mesh = mesh(4);
        let rooms = rooms(&mut mesh);
        mesh.alive[3] = false;
        for n in 0..3 {
            mesh.view_at(n);
        }
        deliver_all(&mut mesh);
        for _ in 0..turns {
            for n in 0..3 {
                if mesh.shards[&(n, 0)].has_more() {
                    turn(&mut mesh, n);
                }
            }
            deliver_all(&mut mesh);
        }
        // It comes back with nothing: no copy is lost by that.
        mesh.alive[3] = true;
        mesh.nodes[3].incarnation = 2;
        let mut again = self::mesh(4);
        again.nodes[3].incarnation = 2;
        let empty = again.shards.remove(&(3, 0)).unwrap();
        mesh.shards.insert((3, 0), empty);
        for n in 0..4 {
            mesh.view_at(n);
        }
        mesh.wait(3 * second());
        for room in &rooms {
            assert_settled(&mesh, room);
            assert_eq!(history(&mut mesh, 0, room), ["[\"before\"]"], "after {turns} turns");
        }
    }
}

#[test]
fn members_follow_their_rooms_some_at_a_time_and_those_with_traffic_first() {
    let mut mesh = mesh(3);
    let mut rooms: Vec<String> =
        (0..).map(|i| format!("many{i}")).filter(|r| mesh.owner_of_room(r) == 2).take(30).collect();
    let busy = rooms.pop().unwrap();
    let member = mesh.client((0, 0), &mesh.user_at(0));
    for room in rooms.iter().chain([&busy]) {
        mesh.say(member, &format!("421[\"join\",\"{room}\"]"));
    }
    mesh.query(1, api_publish(&busy, "[\"before\"]", None)).unwrap();
    mesh.take(member);
    mesh.alive[2] = false;
    mesh.view_at(1);
    mesh.view_at(0);
    let mut asked: Vec<RoomKey> = Vec::new();
    let mut look = |mesh: &mut Mesh| {
        let all = mesh.queue.iter().filter_map(|(_, envelope)| match &envelope.body {
            Body::ToRoom(ToRoom::Subscribe(list)) => Some(list.iter().map(|s| s.room.clone())),
            _ => None,
        });
        let all: Vec<RoomKey> = all.flatten().filter(|room| !asked.contains(room)).collect();
        asked.extend(all.iter().cloned());
        all.len()
    };
    // One question to each owner, until it is answered.
    assert!(look(&mut mesh) <= 1);
    for _ in 0..10 {
        turn_if_any(&mut mesh, 0);
        assert!(look(&mut mesh) <= 1, "more than one under way to an owner");
    }
    mesh.settle();
    for room in rooms.iter().chain([&busy]) {
        mesh.query(1, api_publish(room, "[\"after\"]", None)).unwrap();
    }
    assert_eq!(events(&mesh.take(member)).len(), 30);
    assert_eq!(mesh.stats(|s| s.gaps_total), 0);
}

fn turn_if_any(mesh: &mut Mesh, n: usize) {
    if mesh.shards[&(n, 0)].has_more() {
        turn(mesh, n);
    }
}

#[test]
fn a_backend_reaches_every_session_of_a_user_while_they_are_taken_over() {
    let mut mesh = mesh(3);
    let uid = mesh.user_at(2);
    let names: Vec<String> = (0..20).map(|i| format!("{i}")).chain(vec![uid.clone(); 3]).collect();
    let clients: Vec<Client> = names.iter().map(|name| mesh.client((0, 0), name)).collect();
    mesh.alive[2] = false;
    for n in [1, 0] {
        mesh.view_at(n);
    }
    let owner = mesh.owner_of_user(&uid);
    mesh.begin_query(owner, 7, emit(&uid, "[\"all\"]".to_owned()));
    mesh.wait(second());
    let answer = mesh.answers.remove(&7).unwrap();
    assert!(matches!(answer, Ok(Answer::Done { sessions: 3 })), "{answer:?}");
    for client in &clients[20..] {
        assert_eq!(events(&mesh.take(*client)), ["42[\"all\"]"]);
    }
}

#[test]
fn a_question_that_is_lost_with_the_link_keeps_no_other_from_being_asked() {
    let mut mesh = mesh(3);
    let goes_to_2 = |mesh: &mut Mesh, room: &String| {
        mesh.alive[1] = true;
        let before = mesh.owner_of_room(room);
        mesh.alive[1] = false;
        let after = mesh.owner_of_room(room);
        mesh.alive[1] = true;
        (before, after) == (1, 2)
    };
    let rooms: Vec<String> =
        (0..).map(|i| format!("many{i}")).filter(|r| goes_to_2(&mut mesh, r)).take(5).collect();
    let uid = mesh.user_at(0);
    let member = mesh.client((0, 0), &uid);
    for room in &rooms {
        mesh.say(member, &format!("421[\"join\",\"{room}\"]"));
    }
    mesh.take(member);
    mesh.alive[1] = false;
    mesh.cut = Some((0, 2));
    mesh.view_at(2);
    mesh.view_at(0);
    mesh.settle();
    mesh.reset();
    for room in &rooms {
        mesh.query(2, api_publish(room, "[\"after\"]", None)).unwrap();
    }
    assert_eq!(events(&mesh.take(member)).len(), rooms.len());
}

#[test]
fn a_backup_that_saw_a_ring_its_owner_missed_trusts_its_copy_again() {
    let mut mesh = mesh(3);
    mesh.alive[2] = false;
    mesh.views();
    let backup_is = |mesh: &mut Mesh, room: &str, with_2: bool| {
        mesh.alive[2] = with_2;
        let replicas = mesh.view(0).ring.replicas(room_key(room).placement(), 2);
        mesh.alive[2] = false;
        let replicas = replicas.into_iter().map(|node| mesh.nodes.iter().position(|n| *n == node));
        replicas.flatten().collect::<Vec<_>>()
    };
    let room = (0..)
        .map(|i| format!("many{i}"))
        .find(|room| {
            backup_is(&mut mesh, room, false) == [0, 1] && backup_is(&mut mesh, room, true) == [0, 2]
        })
        .unwrap();
    mesh.query(0, api_publish(&room, "[\"before\"]", None)).unwrap();
    // Node 1 sees the third come and go; node 0 hears of neither.
    mesh.alive[2] = true;
    mesh.view_at(1);
    mesh.alive[2] = false;
    mesh.wait(2 * second());
    mesh.view_at(1);
    mesh.wait(3 * second());
    assert_eq!(mesh.stats(|s| s.to_hand_over), 0, "a copy is offered for ever");
    assert_settled(&mesh, &room);
}
