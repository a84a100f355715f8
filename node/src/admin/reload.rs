//! `/v1/reload`: nodes take over their settings, by way of any node.
//!
//! Belongs here: what is asked, of whom, and what failures are called.
//! Stays out: reading and taking over (`crate::reload`); the way to other nodes (`mesh`).

use futures_util::future::join_all;
use http::{Method, StatusCode};
use mesh_proto::view::NodeInfo;

use super::AdminState;
use super::answers::{ReloadAnswer, ReloadLine};
use crate::web::{self, Failure};

/// Who is to take over its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The node that answers.
    Me,
    /// This node.
    Node(String),
    /// Every node.
    All,
}

/// Reads method and query.
///
/// # Errors
/// 405 for anything but POST, 400 for parameters that are none, or do not go together.
pub(super) fn asked(method: &Method, query: Option<&str>) -> Result<Asked, Failure> {
    if method != Method::POST {
        return Err(Failure::wrong_method("POST"));
    }
    let pairs = web::query_pairs(query)?;
    match pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect::<Vec<_>>()[..] {
        [] => Ok(Asked::Me),
        [("node", name)] if !name.is_empty() => Ok(Asked::Node(name.to_owned())),
        [("all", "true")] => Ok(Asked::All),
        _ => Err(Failure::bad_request("query", "parameters are node=NAME, or all=true")),
    }
}

/// Has it done. What is wrong with the settings of a node, or that it is silent, is told in its line.
///
/// # Errors
/// 404 for a node that is not in the cluster.
pub(super) async fn answer(state: &AdminState, asked: Asked) -> Result<ReloadAnswer, Failure> {
    let view = state.view.borrow().clone();
    let named = |node: &&NodeInfo| match &asked {
        Asked::Me => node.node == view.me,
        Asked::Node(name) => node.name() == *name,
        Asked::All => true,
    };
    let lines = view.nodes.iter().filter(named).map(|node| async move {
        let name = node.name();
        match state.cluster.reload(node.node).await {
            Ok(told) => ReloadLine {
                node: name,
                changed: told.changed,
                restart: told.restart,
                problems: told.problems,
            },
            Err(error) => ReloadLine {
                node: name,
                problems: vec![format!("no answer: {error}")],
                ..ReloadLine::default()
            },
        }
    });
    let nodes = join_all(lines).await;
    if nodes.is_empty() {
        let message = "there is no such node; `meshctl status` lists them";
        return Err(Failure::new(StatusCode::NOT_FOUND, "no_such_node", message));
    }
    Ok(ReloadAnswer { nodes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::{node, state};
    use mesh_proto::view::NodeState;

    #[test]
    fn what_is_asked_follows_from_method_and_parameters() {
        let read = |query: &str| asked(&Method::POST, Some(query));
        assert_eq!(read(""), Ok(Asked::Me));
        assert_eq!(read("node=b"), Ok(Asked::Node("b".into())));
        assert_eq!(read("all=true"), Ok(Asked::All));
        for query in ["node=", "all=yes", "node=b&all=true", "force=true"] {
            assert_eq!(read(query).unwrap_err().status, 400, "{query}");
        }
        assert_eq!(asked(&Method::GET, None).unwrap_err().status, 405);
    }

    #[tokio::test]
    async fn each_node_has_its_line_and_silence_is_a_problem() {
        let nodes = ["a", "b", "c"].map(|name| node(name, NodeState::Active));
        let state = state(&nodes, "c", "", true);
        let told = answer(&state, Asked::All).await.unwrap();
        let lines: Vec<_> =
            told.nodes.iter().map(|line| (line.node.as_str(), line.problems[0].as_str())).collect();
        assert_eq!(lines.len(), 3);
        assert!(
            lines.iter().all(|(name, problem)| (*name == "c") == problem.starts_with("no answer")),
            "{lines:?}"
        );
        let one = answer(&state, Asked::Node("b".into())).await.unwrap();
        assert_eq!(one.nodes.len(), 1);
        assert_eq!(answer(&state, Asked::Node("z".into())).await.unwrap_err().status, 404);
    }
}
