//! One life of a node: the machines of `mesh-proto` and the plumbing between them.
//!
//! Belongs here: what the drivers of `node` hold for these machines: links by peer, inboxes of
//! shards, client transports. Stays out: when anything happens (`cluster`).

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::id::{Address, ClientIx, NodeId, NodeRef, ShardIx};
use mesh_proto::keys::{ClusterKey, IdKey};
use mesh_proto::limits::Limits;
use mesh_proto::link::Link;
use mesh_proto::membership::{Membership, MembershipConfig, Timing};
use mesh_proto::shard::{Input, ProductRules, Shard, ShardConfig};
use mesh_proto::time::Instant;
use mesh_proto::view::{NodeState, View};
use mesh_proto::wire::To;

use crate::network::ConnectionId;
use crate::random::Random;

/// Vnodes of simulated rings: enough for an even spread, cheap to rebuild.
const VNODES: u32 = 32;

/// One link of a life.
#[derive(Debug)]
pub struct PeerLink {
    /// The machine.
    pub link: Link,
    /// The peer's slot.
    pub slot: usize,
    /// The connection under it.
    pub connection: Option<ConnectionId>,
    /// Attempts to connect since the last success.
    pub attempts: u32,
    /// When it wants to be woken.
    pub wake_at: Option<Instant>,
}

/// One shard with what waits for it.
#[derive(Debug)]
pub struct ShardSlot {
    /// The machine.
    pub shard: Shard,
    /// Inputs for its next turn.
    pub inbox: VecDeque<Input>,
    /// Whether a turn is scheduled.
    pub turn_due: bool,
    /// Turns in a row at one moment.
    pub spinning: u32,
    /// A view has come since the last turn.
    pub view_due: bool,
    /// The node, in the life it is known to be in.
    pub me: NodeRef,
    /// When it wants to be woken.
    pub wake_at: Option<Instant>,
    /// Transport of each client, by index.
    pub clients: BTreeMap<ClientIx, u64>,
    /// Indexes that may be used again.
    pub free: Vec<ClientIx>,
    /// Indexes given out so far.
    pub used: u32,
    /// Holes told to edges so far.
    pub gaps_told: u64,
}

/// One life of a node.
#[derive(Debug)]
pub struct Life {
    /// The simulation's count of lives.
    pub number: u64,
    /// When it began: its machines count from here.
    pub started: Instant,
    /// Who is there.
    pub membership: Membership,
    /// When the membership wants to be woken.
    pub membership_wake_at: Option<Instant>,
    /// The newest view.
    pub view: Arc<View>,
    /// Links by peer.
    pub links: BTreeMap<NodeRef, PeerLink>,
    /// Links made so far.
    pub links_made: u64,
    /// Its shards.
    pub shards: Vec<ShardSlot>,
    /// Stopped by SIGSTOP.
    pub paused: bool,
    /// Takes no new clients.
    pub draining: bool,
    /// Another life follows a drain.
    pub returns: bool,
    /// Draws for this life.
    pub random: Random,
}

/// What all nodes of a run have in common.
#[derive(Clone, Debug)]
pub struct Common {
    /// The cluster's secret.
    pub key: ClusterKey,
    /// Bounds.
    pub limits: Limits,
    /// The clockwork of memberships.
    pub timing: Timing,
    /// Every product.
    pub products: Vec<Arc<ProductRules>>,
    /// Slots to join by.
    pub seeds: Vec<usize>,
}

/// The name of the node at `slot`.
#[must_use]
pub fn name_of(slot: usize) -> String {
    format!("n{slot}")
}

/// The mesh address of the node at `slot`.
#[must_use]
pub fn address_of(slot: usize) -> SocketAddr {
    let octet = u8::try_from(slot + 1).unwrap_or(u8::MAX);
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, octet)), 7_400)
}

/// The slot at a mesh address.
#[must_use]
pub fn slot_of(address: SocketAddr) -> Option<usize> {
    match address.ip() {
        IpAddr::V4(ip) => usize::from(ip.octets()[3]).checked_sub(1),
        IpAddr::V6(_) => None,
    }
}

impl Life {
    /// A node that starts now.
    #[must_use]
    pub fn start(
        number: u64,
        slot: usize,
        now: Instant,
        shards: u16,
        common: &Common,
        random: &mut Random,
    ) -> Self {
        let mut random = random.fork();
        let me = NodeRef { id: NodeId::of_name(&name_of(slot)), incarnation: now.as_micros() / 1_000 + 1 };
        let boot_id = random.draw();
        let config = MembershipConfig {
            me,
            client_addr: format!("client:{slot}"),
            admin_addr: format!("admin:{slot}"),
            api_addr: format!("api:{slot}"),
            shards,
            software: "simulated".into(),
            seeds: common.seeds.iter().map(|seed| address_of(*seed)).collect(),
            vnodes: VNODES,
            timing: common.timing.clone(),
            seed: random.draw(),
            ..MembershipConfig::new(&name_of(slot), address_of(slot), common.key.clone(), boot_id)
        };
        let membership = Membership::new(Instant::ZERO, config);
        let view = membership.view().clone();
        let shards = (0..shards)
            .map(|shard| ShardSlot {
                shard: Shard::new(ShardConfig {
                    me: Address { node: me, shard: ShardIx(shard) },
                    shards,
                    node_name: format!("n{number}").into(),
                    products: common.products.clone(),
                    limits: common.limits.clone(),
                    ids: IdKey::new(&common.key),
                    seed: random.draw(),
                }),
                inbox: VecDeque::new(),
                turn_due: false,
                spinning: 0,
                view_due: false,
                me,
                wake_at: None,
                clients: BTreeMap::new(),
                free: Vec::new(),
                used: 0,
                gaps_told: 0,
            })
            .collect();
        Self {
            number,
            started: now,
            membership,
            membership_wake_at: None,
            view,
            links: BTreeMap::new(),
            links_made: 0,
            shards,
            paused: false,
            draining: false,
            returns: false,
            random,
        }
    }

    /// The moment as this life counts it.
    #[must_use]
    pub fn local(&self, now: Instant) -> Instant {
        Instant::ZERO + now.since(self.started)
    }

    /// A moment of this life as the simulation counts it.
    #[must_use]
    pub fn global(&self, local: Instant) -> Instant {
        self.started + Duration::from_micros(local.as_micros())
    }

    /// Where it is in its life, as it says itself.
    #[must_use]
    pub fn state(&self) -> NodeState {
        self.view.node(self.view.me).map_or(NodeState::Joining, mesh_proto::view::NodeInfo::state)
    }

    /// The shards that `to` names.
    #[must_use]
    pub fn named(&self, to: To) -> Vec<usize> {
        let count = u16::try_from(self.shards.len()).unwrap_or(u16::MAX);
        let mask = match to {
            To::Host(placement) => 1 << placement.shard(count).0,
            To::Shard(shard) => 1_u64.checked_shl(u32::from(shard.0)).unwrap_or(0),
            To::Shards(mask) => mask,
            To::Node => 0,
        };
        (0..self.shards.len()).filter(|shard| mask >> shard & 1 == 1).collect()
    }

    /// The shard with the fewest clients.
    #[must_use]
    pub fn shard_for_client(&self) -> usize {
        (0..self.shards.len()).min_by_key(|shard| self.shards[*shard].clients.len()).unwrap_or(0)
    }
}

impl ShardSlot {
    /// An index for a new client.
    pub fn take_index(&mut self, transport: u64) -> ClientIx {
        let index = self.free.pop().unwrap_or_else(|| {
            self.used += 1;
            ClientIx(self.used - 1)
        });
        self.clients.insert(index, transport);
        index
    }

    /// The shard has seen that this client is gone.
    pub fn free_index(&mut self, index: ClientIx) {
        if self.clients.remove(&index).is_some() {
            self.free.push(index);
        }
    }
}
