//! `/v1/drain`: any node has any node drain.
//!
//! Belongs here: what is asked, of whom, and what failures are called.
//! Stays out: draining (`crate::drain`, `node::stop`); the way to the other node (`mesh`).

use http::{Method, StatusCode};
use mesh_proto::view::NodeInfo;
use mesh_proto::wire::{CommandFailed, DrainCommand};

use super::AdminState;
use super::answers::DrainLine;
use super::status::drain_line;
use crate::web::{self, Failure};

/// The phase of a node that is not in the cluster any more.
const GONE: &str = "gone";

/// What is asked, and of which node; of the one that answers if none is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) node: Option<String>,
    pub(super) command: DrainCommand,
}

/// Reads method and query.
///
/// # Errors
/// 400 for parameters that are none, or do not go together.
pub(super) fn asked(method: &Method, query: Option<&str>) -> Result<Asked, Failure> {
    let (mut node, mut force, mut cancel) = (None, false, false);
    for (name, value) in web::query_pairs(query)? {
        match (name.as_str(), value.as_str()) {
            ("node", _) if !value.is_empty() => node = Some(value),
            ("force", "true" | "false") => force = value == "true",
            ("cancel", "true" | "false") => cancel = value == "true",
            _ => {
                let message = "parameters are node=NAME, force=true and cancel=true";
                return Err(Failure::bad_request("query", message));
            }
        }
    }
    let command = match (*method == Method::POST, force, cancel) {
        (false, false, false) => DrainCommand::Show,
        (true, _, false) => DrainCommand::Begin { force },
        (true, false, true) => DrainCommand::Cancel,
        (true, true, true) => {
            return Err(Failure::bad_request("query", "force and cancel do not go together"));
        }
        (false, ..) => return Err(Failure::bad_request("query", "force and cancel are for POST")),
    };
    Ok(Asked { node, command })
}

/// Does what is asked.
///
/// # Errors
/// 404 for a node that is not in the cluster (asked how far it is, the answer is that it is gone), 409
/// where it may not be done, with what to do instead, 503 when the node does not answer.
pub(super) async fn answer(state: &AdminState, asked: Asked) -> Result<DrainLine, Failure> {
    let view = state.view.borrow().clone();
    let named = |node: &&NodeInfo| match &asked.node {
        Some(name) => node.name() == *name,
        None => node.node == view.me,
    };
    let Some(node) = view.nodes.iter().find(named) else {
        let name = asked.node.unwrap_or_default();
        if asked.command == DrainCommand::Show {
            return Ok(DrainLine { node: name, phase: GONE.into(), ..DrainLine::default() });
        }
        let message = format!("there is no node {name}; `meshctl status` lists them");
        return Err(Failure::new(StatusCode::NOT_FOUND, "no_such_node", message));
    };
    match state.cluster.drain(node.node, asked.command).await {
        Ok(status) => Ok(drain_line(&view, node, &status)),
        Err(CommandFailed::Refused(why)) => Err(Failure::new(StatusCode::CONFLICT, "refused", why)),
        Err(CommandFailed::NotFound) if asked.command == DrainCommand::Show => Ok(DrainLine {
            phase: GONE.into(),
            ..drain_line(&view, node, &mesh_proto::wire::DrainStatus::default())
        }),
        Err(error) => {
            let message = format!("{} does not say: {error}", node.name());
            Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "silent", message).retry_after(1))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_follows_from_method_and_parameters() {
        let read = |method: &Method, query: &str| asked(method, Some(query)).map(|a| (a.node, a.command));
        let begin = |force| DrainCommand::Begin { force };
        assert_eq!(read(&Method::GET, ""), Ok((None, DrainCommand::Show)));
        assert_eq!(read(&Method::POST, "node=n2"), Ok((Some("n2".into()), begin(false))));
        assert_eq!(read(&Method::POST, "force=true"), Ok((None, begin(true))));
        assert_eq!(read(&Method::POST, "cancel=true&node=n2"), Ok((Some("n2".into()), DrainCommand::Cancel)));
        for (method, query) in [
            (Method::GET, "force=true"),
            (Method::GET, "cancel=true"),
            (Method::POST, "force=true&cancel=true"),
            (Method::POST, "force=yes"),
            (Method::POST, "node="),
            (Method::POST, "nodes=n2"),
        ] {
            assert_eq!(read(&method, query).unwrap_err().status, 400, "{method} {query}");
        }
    }
}
