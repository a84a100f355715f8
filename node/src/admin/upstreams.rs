//! `/v1/upstreams`: the servers behind proxied products, as this node sees them; and their drain, at every node.
//!
//! Belongs here: what is asked, what failures are called. Stays out: upstreams (`proxy`).

use std::time::Duration;

use http::{Method, StatusCode};
use mesh_proto::upstream::{UpstreamFacts, UpstreamState};

use super::AdminState;
use super::answers::{UpstreamLine, UpstreamsAnswer};
use crate::proxy::NotSaid;
use crate::web::{self, Failure};

/// The longest deadline of a drain, in seconds.
const DEADLINE_MAX: u64 = 86_400;

/// What is asked of an upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Asked {
    product: Option<String>,
    upstream: String,
    deadline: Option<Duration>,
    cancel: bool,
}

fn asked(query: Option<&str>) -> Result<Asked, Failure> {
    let mut asked = Asked::default();
    for (name, value) in web::query_pairs(query)? {
        match (name.as_str(), value.as_str()) {
            ("product", _) if !value.is_empty() => asked.product = Some(value),
            ("drain", _) if !value.is_empty() => asked.upstream = value,
            ("deadline_secs", secs) => {
                let secs = secs.parse().ok().filter(|secs| (1..=DEADLINE_MAX).contains(secs));
                let secs = secs.ok_or_else(|| {
                    Failure::bad_request("deadline_secs", format!("1 to {DEADLINE_MAX} seconds"))
                })?;
                asked.deadline = Some(Duration::from_secs(secs));
            }
            ("cancel", "true" | "false") => asked.cancel = value == "true",
            _ => {
                let message = "parameters are drain=UPSTREAM, product, deadline_secs and cancel=true";
                return Err(Failure::bad_request("query", message));
            }
        }
    }
    if asked.cancel && asked.deadline.is_some() {
        return Err(Failure::bad_request("query", "cancel and deadline_secs do not go together"));
    }
    Ok(asked)
}

/// Lists, or does what is asked and lists.
///
/// # Errors
/// 404 for an upstream that there is not, 503 when the cluster does not answer.
pub(super) async fn answer(
    state: &AdminState,
    method: &Method,
    query: Option<&str>,
) -> Result<UpstreamsAnswer, Failure> {
    if *method == Method::POST {
        let asked = asked(query)?;
        if asked.upstream.is_empty() {
            return Err(Failure::bad_request("drain", "name the upstream"));
        }
        let of = |product: &str| asked.product.as_ref().is_none_or(|asked| asked == product);
        let mut outcome = Err(NotSaid::Unknown);
        for proxy in state.proxies.all().values().filter(|proxy| of(proxy.name())) {
            match proxy.say(&asked.upstream, (!asked.cancel).then_some(asked.deadline)).await {
                Err(NotSaid::Unknown) => {}
                said => outcome = said,
            }
        }
        match outcome {
            Ok(()) => {}
            Err(NotSaid::Unknown) => {
                let message =
                    format!("there is no upstream {}; `meshctl upstreams` lists them", asked.upstream);
                return Err(Failure::new(StatusCode::NOT_FOUND, "no_such_upstream", message));
            }
            Err(NotSaid::NoWord) => {
                let message = "the cluster did not answer in time";
                return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "silent", message).retry_after(1));
            }
        }
    } else if query.is_some_and(|query| !query.is_empty()) {
        return Err(Failure::bad_request("query", "parameters are for POST"));
    }
    let mut upstreams = Vec::new();
    for proxy in state.proxies.all().values() {
        let product = proxy.name();
        upstreams.extend(proxy.facts().iter().map(|facts| line(product, facts, proxy.now())));
    }
    Ok(UpstreamsAnswer { node: state.name.clone(), upstreams })
}

fn line(product: &str, facts: &UpstreamFacts, now: mesh_proto::time::Instant) -> UpstreamLine {
    let why = match facts.state {
        UpstreamState::Unknown => "not checked yet".to_owned(),
        UpstreamState::Up => String::new(),
        UpstreamState::Draining => "by an operator".to_owned(),
        UpstreamState::Down => format!("checks fail ({} so far)", facts.checks_failed_total),
        UpstreamState::Ejected => format!("{} requests in a row failed", facts.failures),
    };
    UpstreamLine {
        product: product.to_owned(),
        upstream: facts.name.to_string(),
        state: facts.state.word().to_owned(),
        why,
        open: facts.open,
        answered_total: facts.answered_total,
        failed_total: facts.failed_total,
        checks_failed_total: facts.checks_failed_total,
        drains: facts.drains,
        closed_in_secs: facts.drained_at.map(|at| at.since(now).as_secs()),
        tried_in_secs: facts.ejected_until.map(|at| at.since(now).as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_read_or_refused() {
        let read = |query| asked(Some(query));
        let drained = read("drain=a%3A1&deadline_secs=60&product=app").unwrap();
        assert_eq!((&*drained.upstream, drained.deadline), ("a:1", Some(Duration::from_secs(60))));
        assert!(read("drain=a&cancel=true").unwrap().cancel);
        for wrong in
            ["drain=", "deadline_secs=0", "deadline_secs=x", "cancel=yes", "cancel=true&deadline_secs=1"]
        {
            assert_eq!(read(wrong).unwrap_err().status, 400, "{wrong}");
        }
    }
}
