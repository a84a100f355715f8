//! Asking upstreams how they are, and telling people when that changes.
//!
//! Belongs here: the driver of a product's `mesh_proto::upstream` machine; one check.
//! Stays out: when a check is due, what its answers mean (the machine).
//! Units: at most one check of an upstream is under way, and it ends within its timeout.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{Request, StatusCode};
use mesh_proto::upstream::{Check, UpstreamOutput, UpstreamState};
use tokio::time::{Instant, sleep_until, timeout};

use super::Proxy;
use super::body::RequestBody;
use super::link::Link;
use super::settings::CheckRequest;
use crate::tasks::{OnPanic, Tasks};

/// How often at least what is kept is looked through: links, bindings.
const TICK: Duration = Duration::from_secs(1);

/// Drives the machine for ever.
pub(super) async fn run(proxy: Arc<Proxy>, tasks: Tasks) {
    loop {
        let deadline = turn(&proxy, &tasks);
        let listed = proxy.facts();
        proxy.pool.sweep(|name| listed.iter().any(|facts| *facts.name == *name));
        proxy.bindings.sweep();
        proxy.bindings.renew(&tasks);
        let tick = Instant::now() + TICK;
        let due = deadline.map_or(tick, |deadline| proxy.clock.at(deadline).min(tick));
        tokio::select! {
            () = sleep_until(due) => {}
            () = proxy.moved.notified() => {}
        }
    }
}

/// Carries out what the machine wants now; when it wants to be asked again.
fn turn(proxy: &Arc<Proxy>, tasks: &Tasks) -> Option<mesh_proto::time::Instant> {
    let now = proxy.clock.now();
    loop {
        let mut state = proxy.lock();
        let Some(output) = state.upstreams.poll(now) else { return state.upstreams.next_deadline() };
        match output {
            UpstreamOutput::DrainOver(ix) => {
                if let Some(ends) = state.ends.remove(&ix) {
                    ends.cancel();
                }
            }
            UpstreamOutput::Changed { name, before, now, .. } => {
                drop(state);
                let (product, before, state) = (&*proxy.name, before.word(), now);
                let now = state.word();
                if state == UpstreamState::Down || state == UpstreamState::Ejected {
                    tracing::warn!(product, upstream = %name, before, now, "upstream is out");
                } else {
                    tracing::info!(product, upstream = %name, before, now, "upstream has changed");
                }
            }
            UpstreamOutput::Check(check) => {
                drop(state);
                let proxy = proxy.clone();
                tasks.spawn("upstream-check", OnPanic::EndTask, async move {
                    let ok = is_well(&proxy, &check).await;
                    proxy.lock().upstreams.checked(proxy.clock.now(), &check, ok);
                    proxy.moved.notify_one();
                });
            }
        }
    }
}

async fn is_well(proxy: &Proxy, check: &Check) -> bool {
    let asking = async {
        let stream = proxy.pool.dialled(&check.name).await.ok()?;
        match &proxy.settings.check {
            None => Some(true),
            Some(request) => {
                let status = asked(Link::over(stream).await.ok()?, &check.name, request).await?;
                Some(request.good.iter().any(|good| good.contains(&status.as_u16())))
            }
        }
    };
    timeout(proxy.settings.upstreams.timeout, asking).await.ok().flatten().unwrap_or(false)
}

async fn asked(mut link: Link, name: &str, check: &CheckRequest) -> Option<StatusCode> {
    let request = Request::builder().method(check.method.clone()).uri(check.path.as_str());
    let request = request.header(HOST, name).header(USER_AGENT, "meshd-check").header(CONNECTION, "close");
    let mut answer = pin!(link.send(request.body(RequestBody::none()).ok()?));
    poll_fn(|cx| {
        link.poll(cx);
        match answer.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(answer.ok().map(|answer| answer.status())),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
