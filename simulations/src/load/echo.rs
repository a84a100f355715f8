//! Latency without load: each client publishes to a room of its own and waits for its own event.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::spawn_local;

use super::client::{Client, Message, SCRATCH_BYTES};
use super::process::Servers;
use super::report::{float, histogram, millis};
use super::stamp::Stamp;
use super::{Echo, fleet};

struct Times {
    to_event: Histogram<u64>,
    to_ack: Histogram<u64>,
    measuring: bool,
}

/// `load echo`.
pub(super) async fn run(command: Echo) -> anyhow::Result<()> {
    let (nodes, _own) = command.nodes.or_own().await?;
    let servers = Servers::new(&nodes.pids)?;
    let rooms: Vec<String> = (0..command.clients).map(|client| format!("echo-{client}")).collect();
    let fleet = fleet::open(&nodes, &servers, rooms.iter().map(|room| vec![room.clone()]).collect()).await?;
    let times = Rc::new(RefCell::new(Times { to_event: histogram(), to_ack: histogram(), measuring: false }));
    let scratch = Rc::new(RefCell::new(vec![0; SCRATCH_BYTES]));
    for (client, room) in fleet.clients.into_iter().zip(rooms) {
        let (times, scratch) = (times.clone(), scratch.clone());
        spawn_local(async move {
            if let Err(error) = echo(client, &room, command.payload, &times, &scratch).await {
                eprintln!("a client ended: {error:#}");
            }
        });
    }
    tokio::time::sleep(command.span.warmup()).await;
    times.borrow_mut().measuring = true;
    let (started, cpu) = (Instant::now(), servers.cpu()?);
    tokio::time::sleep(command.span.measured()).await;
    let cpu = servers.cpu()?.0.saturating_sub(cpu.0);
    let times = times.borrow();
    let echoes = times.to_event.len();
    println!("echoes/s            {:.0}", float(echoes) / started.elapsed().as_secs_f64());
    if !servers.is_empty() {
        println!("CPU us per echo     {:.1}", float(cpu) / 1e3 / float(echoes.max(1)));
    }
    for (name, latency) in [("to own event, ms", &times.to_event), ("to ack, ms", &times.to_ack)] {
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|quantile| millis(latency, quantile));
        println!("{name:<19} p50 {p50}  p99 {p99}  p99.9 {p999}");
    }
    Ok(())
}

async fn echo(
    mut client: Client,
    room: &str,
    payload: usize,
    times: &RefCell<Times>,
    scratch: &RefCell<Vec<u8>>,
) -> anyhow::Result<()> {
    for number in 0.. {
        let sent = Instant::now();
        client.publish(room, true, Stamp { publisher: 0, number, micros: 0 }, payload);
        let (mut to_event, mut to_ack) = (None, None);
        while to_event.is_none() || to_ack.is_none() {
            client.ready().await?;
            client.drain(&mut scratch.borrow_mut(), |message| match message {
                Message::Event(payload) if Stamp::read(payload).is_some_and(|s| s.number == number) => {
                    to_event = Some(sent.elapsed());
                }
                Message::Ack(..) => to_ack = Some(sent.elapsed()),
                _ => {}
            })?;
        }
        let mut times = times.borrow_mut();
        if times.measuring {
            times.to_event.saturating_record(micros(to_event));
            times.to_ack.saturating_record(micros(to_ack));
        }
    }
    Ok(())
}

fn micros(took: Option<Duration>) -> u64 {
    took.map_or(1, |took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1))
}
