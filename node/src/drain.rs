//! Draining this node: what is wanted of it, and how far it is.
//!
//! Belongs here: commands of operators, what they may not do; the state they are told.
//! Stays out: the phases themselves (`node::stop`), how commands arrive (`admin`, `mesh`).
//! Owner: `node::stop` carries out what is wanted and alone moves the phase; others ask.
//! Invariants: from [`Wanted::Stop`] there is no way back, and no phase after it is cancelled.

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::view::View;
use mesh_proto::wire::{CommandFailed, DrainCommand, DrainPhase, DrainStatus};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::admission::Admission;

/// A command is answered when it has taken effect, or after this time.
const EFFECT_WITHIN: Duration = Duration::from_secs(1);

/// What is wanted of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing of the kind.
    Serve,
    /// An operator wants it drained; may be taken back.
    Drain {
        /// Also when it is the last active node.
        force: bool,
    },
    /// It ends: told by a signal, or a drain that is too far to be taken back.
    Stop,
}

#[derive(Clone, Copy, Debug)]
struct Progress {
    phase: DrainPhase,
    began: Option<Instant>,
    to_hand_over: u64,
}

/// The control of one node's drain. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DrainControl {
    wanted: watch::Sender<Wanted>,
    progress: watch::Sender<Progress>,
    admission: Arc<Admission>,
}

impl DrainControl {
    /// Of a node that serves. Clients are counted by `admission`.
    #[must_use]
    pub fn new(admission: Arc<Admission>) -> Self {
        let progress = Progress { phase: DrainPhase::Serving, began: None, to_hand_over: 0 };
        Self { wanted: watch::Sender::new(Wanted::Serve), progress: watch::Sender::new(progress), admission }
    }

    /// How far it is.
    #[must_use]
    pub fn status(&self) -> DrainStatus {
        let Progress { phase, began, to_hand_over } = *self.progress.borrow();
        let elapsed = began.map_or(Duration::ZERO, |at| at.elapsed());
        DrainStatus {
            phase,
            clients: self.admission.open() as u64,
            to_hand_over,
            elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Does what an operator wants, and says how far the drain is then. `view`: the cluster as it is.
    ///
    /// # Errors
    /// [`CommandFailed::Refused`] with what to do instead.
    pub async fn command(&self, command: DrainCommand, view: &View) -> Result<DrainStatus, CommandFailed> {
        match command {
            DrainCommand::Show => {}
            DrainCommand::Begin { force } => {
                if !force && is_last(view) && *self.wanted.borrow() == Wanted::Serve {
                    return Err(CommandFailed::Refused(LAST_NODE.into()));
                }
                self.wanted.send_if_modified(|wanted| match wanted {
                    Wanted::Serve => {
                        *wanted = Wanted::Drain { force };
                        true
                    }
                    Wanted::Drain { force: forced } => {
                        let more = force && !*forced;
                        *forced |= force;
                        more
                    }
                    Wanted::Stop => false,
                });
                self.until(|phase| phase != DrainPhase::Serving).await;
            }
            DrainCommand::Cancel => {
                let mut refused = None;
                self.wanted.send_if_modified(|wanted| {
                    match wanted {
                        Wanted::Serve => refused = Some("it does not drain"),
                        Wanted::Stop => {
                            refused = Some("it was told to stop by a signal, or is leaving already")
                        }
                        Wanted::Drain { .. } => *wanted = Wanted::Serve,
                    }
                    refused.is_none()
                });
                if let Some(why) = refused {
                    return Err(CommandFailed::Refused(format!("nothing to cancel: {why}")));
                }
                self.until(|phase| phase == DrainPhase::Serving).await;
            }
        }
        Ok(self.status())
    }

    async fn until(&self, reached: impl Fn(DrainPhase) -> bool) {
        let mut progress = self.progress.subscribe();
        let _ = timeout(EFFECT_WITHIN, progress.wait_for(|progress| reached(progress.phase))).await;
    }

    /// What is wanted, as it changes.
    #[must_use]
    pub(crate) fn wanted(&self) -> watch::Receiver<Wanted> {
        self.wanted.subscribe()
    }

    /// The phase, once it is another one.
    pub(crate) async fn phase_after(&self, before: DrainPhase) -> DrainPhase {
        let mut progress = self.progress.subscribe();
        // The sender is `self`'s: the wait does not fail.
        let changed = progress.wait_for(|progress| progress.phase != before).await;
        changed.map_or(before, |progress| progress.phase)
    }

    /// The node ends, whatever operators want.
    pub(crate) fn stop(&self) {
        self.wanted.send_replace(Wanted::Stop);
    }

    /// The way back is closed; `false` if it has been taken before.
    pub(crate) fn commit(&self) -> bool {
        self.wanted.send_if_modified(|wanted| {
            if let Wanted::Drain { .. } = wanted {
                *wanted = Wanted::Stop;
            }
            false
        });
        *self.wanted.borrow() == Wanted::Stop
    }

    /// A drain without a right to go on: the last node, not forced.
    pub(crate) fn give_up(&self) {
        self.wanted.send_if_modified(|wanted| {
            let ours = matches!(wanted, Wanted::Drain { .. });
            if ours {
                *wanted = Wanted::Serve;
            }
            ours
        });
    }

    /// Another phase has begun.
    pub(crate) fn enter(&self, phase: DrainPhase) {
        self.progress.send_modify(|progress| {
            progress.began = match phase {
                DrainPhase::Serving => None,
                _ => progress.began.or_else(|| Some(Instant::now())),
            };
            progress.phase = phase;
        });
    }

    /// So many entities are left to be handed over.
    pub(crate) fn set_to_hand_over(&self, count: u64) {
        self.progress.send_modify(|progress| progress.to_hand_over = count);
    }
}

/// Why the last active node is not drained.
pub(crate) const LAST_NODE: &str = "it is the last active node: nobody could take over its users and rooms; start another one first, or give --force";

/// Whether nobody but this node is on the ring.
pub(crate) fn is_last(view: &View) -> bool {
    view.ring.nodes().iter().all(|node| node.node == view.me)
}

#[cfg(test)]
mod tests {
    use mesh_proto::view::NodeState;

    use super::*;
    use crate::admin::tests::node;
    use crate::admission::AdmissionLimits;

    fn view(other: NodeState) -> View {
        let me = node("a", NodeState::Active);
        View::new(1, me.node, vec![me, node("b", other)], 16)
    }

    fn control() -> DrainControl {
        DrainControl::new(Admission::new(AdmissionLimits::default(), 1))
    }

    /// Carries out what is wanted, as far as the phase goes.
    fn obey(control: &DrainControl) {
        let (control, mut wanted) = (control.clone(), control.wanted());
        tokio::spawn(async move {
            while wanted.changed().await.is_ok() {
                let serves = *wanted.borrow_and_update() == Wanted::Serve;
                control.enter(if serves { DrainPhase::Serving } else { DrainPhase::Announce });
            }
        });
    }

    #[tokio::test]
    async fn the_last_active_node_is_drained_by_force_only() {
        let control = control();
        obey(&control);
        let alone = view(NodeState::Draining);
        let gently = control.command(DrainCommand::Begin { force: false }, &alone).await;
        assert_eq!(gently, Err(CommandFailed::Refused(LAST_NODE.into())));
        assert_eq!(*control.wanted().borrow(), Wanted::Serve);
        let forced = control.command(DrainCommand::Begin { force: true }, &alone).await.unwrap();
        assert_eq!(forced.phase, DrainPhase::Announce);
    }

    #[tokio::test]
    async fn a_drain_is_cancelled_until_it_is_committed() {
        let control = control();
        obey(&control);
        let two = view(NodeState::Active);
        assert!(control.command(DrainCommand::Cancel, &two).await.is_err());
        control.command(DrainCommand::Begin { force: false }, &two).await.unwrap();
        let cancelled = control.command(DrainCommand::Cancel, &two).await.unwrap();
        assert_eq!((cancelled.phase, cancelled.elapsed_ms), (DrainPhase::Serving, 0));
        assert!(!control.commit());
        control.command(DrainCommand::Begin { force: false }, &two).await.unwrap();
        assert!(control.commit());
        assert!(control.command(DrainCommand::Cancel, &two).await.is_err());
        assert_eq!(*control.wanted().borrow(), Wanted::Stop);
    }
}
