//! A room's members lose their node at once and come back by the others.
//!
//! Method: the room's owner and backup live; its members are all at the node that is killed (kill -9), and
//! come back as stock clients do, with pid and offset, after 0.5 to 1.5 s, doubling up to 5 s. Messages
//! flow all the time; each member keeps an account of them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;
use tokio::task::spawn_local;

use super::Herd;
use super::client::{Door, SCRATCH_BYTES};
use super::own::{CONNECT_RATE, Meter, Places};
use super::probes::{Probes, Wanted};
use super::process::{Servers, allow_open_files};
use super::report::float;
use super::table::{Table, percentiles};
use super::tally::Tally;
use crate::kill9::clients::{RECONNECT_DELAY, RECONNECT_DELAY_MAX};
use crate::kill9::journal::Resumed;
use crate::kill9::session::{Heard, Memory, Protocol, Session};
use crate::random::Random;
use crate::times::Times;

/// The node all members are at, the room's owner, its backup.
const EDGE: usize = 0;
const OWNER: usize = 1;
const BACKUP: usize = 2;

/// All are in at first, and back, within this time.
const PATIENCE: Duration = Duration::from_secs(90);

/// Messages flow so long before the kill.
const CALM: Duration = Duration::from_secs(3);

/// What is under way at the end has come when nothing has been missing for this long, or never.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);

/// Between two looks at the members.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What all members share.
struct Shared {
    room: String,
    doors: RefCell<Vec<Door>>,
    /// Of the stamps.
    clock: Cell<Instant>,
    killed_at: Cell<Option<Instant>>,
    scratch: RefCell<Vec<u8>>,
}

/// The account of one member.
struct Member {
    tally: RefCell<Tally>,
    is_in: Cell<bool>,
    /// Connections tried after the kill.
    tries: Cell<u32>,
    /// After the kill: how it came back, and when.
    back: Cell<Option<(Resumed, Duration)>>,
    /// After the kill: when it had all that was published before it was back.
    caught_up: Cell<Option<Duration>>,
}

/// `load herd`.
pub(super) async fn run(command: Herd) -> anyhow::Result<()> {
    ensure!(command.own.count >= 3, "the owner and its backup are to live: --nodes 3 or more");
    let mut cluster = command.own.start().await?;
    allow_open_files(command.clients as u64 + 64)?;
    let places = Places::of(0..cluster.nodes.len());
    let apart = |at: &[usize]| at[..2] == [OWNER, BACKUP];
    let shared = Rc::new(Shared {
        room: places.room("herd", apart)?,
        doors: RefCell::new(vec![cluster.door(EDGE)]),
        clock: Cell::new(Instant::now()),
        killed_at: Cell::new(None),
        scratch: RefCell::new(vec![0; SCRATCH_BYTES]),
    });
    let members = gather(&shared, command.clients).await?;
    let publisher = Wanted {
        group: 0,
        uid: places.user("publisher", apart)?,
        room: shared.room.clone(),
        door: cluster.door(OWNER),
        member: cluster.door(BACKUP),
    };
    let mut probes = Probes::start(vec![publisher], Duration::from_secs(1) / command.rate.max(1)).await?;
    shared.clock.set(probes.started());
    let rest: Vec<usize> = (0..cluster.nodes.len()).filter(|&node| node != EDGE).collect();
    let calm = Meter::start(cluster.nodes.at(OWNER).admin);
    tokio::time::sleep(CALM).await;
    let calm = calm.grown("meshd_link_sent_bytes") / CALM.as_secs_f64();

    let servers = Servers::new(&cluster.driven(&rest).pids)?;
    let (before, cpu) = (cluster.sum(&rest).await?, servers.cpu()?);
    let meter = Meter::start(cluster.nodes.at(OWNER).admin);
    tokio::time::sleep(Duration::from_millis(300)).await;
    *shared.doors.borrow_mut() = rest.iter().map(|&node| cluster.door(node)).collect();
    shared.killed_at.set(Some(Instant::now()));
    cluster.nodes.kill(EDGE).await;
    let all_back = |members: &[Rc<Member>]| members.iter().all(|member| member.caught_up.get().is_some());
    let give_up = Instant::now() + PATIENCE;
    while !all_back(&members) && Instant::now() < give_up {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let took = PATIENCE.saturating_sub(give_up.duration_since(Instant::now()));
    let cpu = servers.cpu()?.0.saturating_sub(cpu.0);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let sent_bytes = meter.grown("meshd_link_sent_bytes");
    probes.stop().await;
    let published = probes.all[0].sent();
    settle(&members, published).await;

    let after = cluster.sum(&rest).await?;
    let mut table = report(&members, published);
    let grown = |name| after.since(&before, name);
    table.note(format!(
        "the room's owner sent {:.0} KiB to nodes in {:.2} s; before the kill {:.0} KiB/s ({} messages/s)",
        sent_bytes / 1_024.0,
        took.as_secs_f64(),
        calm / 1_024.0,
        command.rate
    ));
    table.note(format!(
        "nodes wrote {:.1} MiB to clients, {} fetches of older entries, CPU {:.1} s; resumed {}, not resumed {}",
        grown("meshd_client_written_bytes_total") / 1_048_576.0,
        grown("meshd_older_fetches_total"),
        float(cpu) / 1e9,
        grown("meshd_resumed_total"),
        grown("meshd_not_resumed_total")
    ));
    table.note(format!("the publisher and one member elsewhere: {:?}", probes.faults()));
    table.print(command.json);
    Ok(())
}

/// Connects all members to the only door; returns when the last is in the room.
async fn gather(shared: &Rc<Shared>, count: usize) -> anyhow::Result<Vec<Rc<Member>>> {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / CONNECT_RATE);
    let mut members = Vec::new();
    for index in 0..count {
        ticks.tick().await;
        let member = Rc::new(Member {
            tally: RefCell::new(Tally::new(1)),
            is_in: Cell::new(false),
            tries: Cell::new(0),
            back: Cell::new(None),
            caught_up: Cell::new(None),
        });
        spawn_local(live(index, member.clone(), shared.clone()));
        members.push(member);
    }
    let give_up = Instant::now() + PATIENCE;
    while !members.iter().all(|member| member.is_in.get()) {
        ensure!(Instant::now() < give_up, "not all members are in the room within {PATIENCE:?}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(members)
}

/// A member through all its connections.
async fn live(index: usize, member: Rc<Member>, shared: Rc<Shared>) {
    let mut random = Random::new(index as u64);
    let mut memory = Memory::default();
    let mut delay = RECONNECT_DELAY;
    loop {
        let door = {
            let doors = shared.doors.borrow();
            doors[random.index(doors.len())].clone()
        };
        member.tries.set(member.tries.get() + u32::from(shared.killed_at.get().is_some()));
        if let Ok((session, resumed)) =
            Session::open(&door, Protocol::SocketIo, &format!("herd-{index}"), &mut memory).await
        {
            delay = RECONNECT_DELAY;
            if let Some(killed_at) = shared.killed_at.get() {
                member.back.set(Some((resumed, killed_at.elapsed())));
            }
            // Why it ended is told by what the member has missed.
            let _ = serve(session, &mut memory, resumed, &member, &shared).await;
        }
        tokio::time::sleep(random.between(delay / 2, delay * 3 / 2)).await;
        delay = (delay * 2).min(RECONNECT_DELAY_MAX);
    }
}

/// Until the connection ends.
async fn serve(
    mut session: Session,
    memory: &mut Memory,
    resumed: Resumed,
    member: &Member,
    shared: &Shared,
) -> anyhow::Result<()> {
    let back_at = shared.clock.get().elapsed();
    if resumed != Resumed::Recovered {
        session.join(0, &shared.room);
    }
    let mut heard = Vec::new();
    loop {
        session.ready().await.context("silence")?;
        let drained = session.drain(&mut shared.scratch.borrow_mut(), memory, &mut heard);
        for heard in heard.drain(..) {
            match heard {
                Heard::Event(stamp) => {
                    member.tally.borrow_mut().take(stamp);
                    let is_new = Duration::from_micros(stamp.micros) >= back_at;
                    if let Some(killed_at) = shared.killed_at.get()
                        && is_new
                        && member.back.get().is_some()
                        && member.caught_up.get().is_none()
                    {
                        member.caught_up.set(Some(killed_at.elapsed()));
                    }
                }
                Heard::Answer(_, ok) => member.is_in.set(ok),
            }
        }
        drained?;
    }
}

/// Waits until nothing is missing any more.
async fn settle(members: &[Rc<Member>], published: u32) {
    let missing = |member: &Rc<Member>| member.tally.borrow().lost(&[published], None) > 0;
    let give_up = Instant::now() + SETTLED_WITHIN;
    while Instant::now() < give_up && members.iter().any(missing) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn report(members: &[Rc<Member>], published: u32) -> Table {
    let columns = [
        "members",
        "back p50 ms",
        "p99",
        "last",
        "caught up p50 ms",
        "p99 ",
        "last ",
        "lost",
        "doubled",
        "reordered",
    ];
    let title = format!("{} members of one room lose their node, {published} messages", members.len());
    let mut table = Table::new(title, &columns);
    for (name, which) in [("recovered", true), ("not recovered", false)] {
        let (mut back, mut caught_up) = (Times::default(), Times::default());
        let (mut count, mut lost, mut doubled, mut reordered) = (0, 0, 0, 0);
        for member in members {
            let Some((resumed, at)) = member.back.get() else { continue };
            if (resumed == Resumed::Recovered) != which {
                continue;
            }
            count += 1;
            back.add(Some(at));
            caught_up.add(member.caught_up.get());
            let tally = member.tally.borrow();
            lost += tally.lost(&[published], None);
            doubled += tally.doubled;
            reordered += tally.reordered;
        }
        let mut cells = vec![json!(count)];
        cells.extend(percentiles(&back));
        cells.extend(percentiles(&caught_up));
        cells.extend([json!(lost), json!(doubled), json!(reordered)]);
        table.row(name, cells);
    }
    let never = members.iter().filter(|member| member.back.get().is_none()).count();
    let tries: u32 = members.iter().map(|member| member.tries.get()).sum();
    table.note(format!("{never} never came back; {tries} connections tried"));
    table
}
