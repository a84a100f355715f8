//! The view that is made of what SWIM and the records say, and the notices that follow from it.
//!
//! Belongs here: when a view is published, what is different in it.
//! Stays out: the view itself (`view`), the wording (`notice`).
//! Invariants: a node that goes is shown at once; others wait for more of their kind for
//! `view_spacing`.

use std::collections::BTreeMap;
use std::sync::Arc;

use foca::{Member, State};

use super::machine::{Membership, Phase};
use super::{Identity, NODES_MAX, Notice, Output, Peer};
use crate::id::{NodeId, NodeRef};
use crate::time::Instant;
use crate::view::{NodeInfo, NodeRecord, NodeState, View};

/// What the view lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dirty {
    No,
    /// May wait for more of its kind.
    Soon,
    /// Somebody is gone.
    Now,
}

impl Membership {
    pub(super) fn mark(&mut self, dirty: Dirty) {
        self.dirty = self.dirty.max(dirty);
    }

    /// Takes over what SWIM's members became, if they did.
    pub(super) fn learn(&mut self) {
        let Phase::Up(up) = &self.phase else { return };
        let me = self.identity.node.id;
        let fingerprint = up.swim.members().map(fingerprint_of).fold(0, u64::wrapping_add);
        if fingerprint == self.known_fingerprint {
            return;
        }
        self.known_fingerprint = fingerprint;
        let others = up.swim.members().filter(|m| m.id().node.id != me);
        let known: BTreeMap<_, _> = others.map(|m| (m.id().node.id, m.clone())).collect();
        let before = std::mem::replace(&mut self.known, known);
        for (id, member) in &self.known {
            let (was, is) = (before.get(id), member.state());
            let was_up = was.is_some_and(|was| was.state() != State::Down);
            let newly = was.is_none_or(|was| was.state() != is || was.id() != member.id());
            if !newly {
                continue;
            }
            match is {
                State::Down if was_up => {
                    self.stats.downs += 1;
                    self.dirty = Dirty::Now;
                }
                State::Down => {}
                State::Suspect | State::Alive => {
                    self.stats.suspicions += u64::from(is == State::Suspect);
                    let renamed = was_up && was.is_some_and(|was| was.id() != member.id());
                    self.dirty = self.dirty.max(if renamed { Dirty::Now } else { Dirty::Soon });
                }
            }
        }
        if before.iter().any(|(id, was)| was.state() != State::Down && !self.known.contains_key(id)) {
            self.dirty = Dirty::Now;
        }
    }

    /// Makes the view anew and says what is different.
    pub(super) fn publish(&mut self, now: Instant) {
        self.dirty = Dirty::No;
        let mut nodes = vec![node_info(&self.identity, false, Some(self.own.clone()))];
        for member in self.known.values().filter(|m| m.state() != State::Down).take(NODES_MAX) {
            let record = self.records.of(member.id().node).cloned();
            nodes.push(node_info(member.id(), member.state() == State::Suspect, record));
        }
        let view = Arc::new(self.view.next(self.identity.node, nodes, self.config.vnodes));
        let before = std::mem::replace(&mut self.view, view.clone());
        if before.nodes == view.nodes && before.me == view.me {
            self.view = before;
            return;
        }
        if !Arc::ptr_eq(&before.ring, &view.ring) {
            self.ring_at = now;
        }
        self.digests.retain(|id, _| is_up_at_all(&self.known, *id));
        // The last seed may have gone.
        self.seeds_at = self.seeds_at.min(now + self.seed_pause());
        self.stats.views += 1;
        self.say_what_changed(&before);
        self.outputs.push_back(Output::View(view));
    }

    fn say_what_changed(&mut self, before: &View) {
        let joined = before.nodes.len() == 1 && before.nodes[0].state() == NodeState::Joining;
        let me = self.identity.node.id;
        let old: BTreeMap<NodeId, &NodeInfo> = before.nodes.iter().map(|n| (n.node.id, n)).collect();
        let view = self.view.clone();
        for node in view.nodes.iter().filter(|n| n.node.id != me) {
            match old.get(&node.node.id) {
                None if joined => {}
                None => self.notice(Notice::PeerUp(peer(node))),
                Some(was) if was.node != node.node => {
                    let new = named(node, was);
                    self.notice(Notice::PeerRenamed { old: was.node, new });
                }
                Some(was) if was.suspect != node.suspect && node.suspect => {
                    self.notice(Notice::PeerSuspect(peer(node)));
                }
                Some(was) if was.suspect != node.suspect => self.notice(Notice::PeerRefuted(peer(node))),
                Some(_) => {}
            }
        }
        for was in before.nodes.iter().filter(|n| n.node.id != me) {
            if view.nodes.binary_search_by_key(&was.node.id, |n| n.node.id).is_err() {
                self.notice(if self.took_leave(was) {
                    Notice::PeerLeft(peer(was))
                } else {
                    Notice::PeerDown(peer(was))
                });
            }
        }
    }

    /// Whether a node that is gone went in good order: what it announced last is that it drains, and
    /// nobody had to suspect it. (The announcement travels with the news of its going.)
    fn took_leave(&self, was: &NodeInfo) -> bool {
        let last = self.records.of(was.node).or(was.record.as_ref());
        !was.suspect && last.is_some_and(|record| record.state == NodeState::Draining)
    }
}

pub(super) fn node_info(identity: &Identity, suspect: bool, record: Option<Arc<NodeRecord>>) -> NodeInfo {
    NodeInfo {
        node: identity.node,
        mesh_addr: identity.addr,
        zone: identity.zone,
        weight: identity.weight,
        suspect,
        record,
    }
}

fn peer(node: &NodeInfo) -> Peer {
    Peer { node: node.node, name: node.name(), addr: node.mesh_addr }
}

/// A new life often is known before its record; its name is the old one's.
fn named(node: &NodeInfo, was: &NodeInfo) -> Peer {
    Peer { node: node.node, name: was.name(), addr: node.mesh_addr }
}

pub(super) fn is_up(known: &BTreeMap<NodeId, Member<Identity>>, node: NodeRef) -> bool {
    known.get(&node.id).is_some_and(|m| m.state() != State::Down && m.id().node == node)
}

pub(super) fn is_up_at_all(known: &BTreeMap<NodeId, Member<Identity>>, id: NodeId) -> bool {
    known.get(&id).is_some_and(|m| m.state() != State::Down)
}

/// A member's contribution to a sum that changes when any of them does, whatever their order.
fn fingerprint_of(member: &Member<Identity>) -> u64 {
    let state = match member.state() {
        State::Alive => 1,
        State::Suspect => 2,
        State::Down => 3_u64,
    };
    let node = member.id().node;
    let mixed = node.id.0 ^ node.incarnation.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (u64::from(member.incarnation()) << 8 | state).wrapping_mul(0xd6e8_feb8_6659_fd93))
        .wrapping_mul(0xff51_afd7_ed55_8ccd)
        .rotate_left(29)
        .wrapping_mul(0xc4ce_b9fe_1a85_ec53)
}
