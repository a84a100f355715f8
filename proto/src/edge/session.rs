//! A session as its edge sees it: what is not done at its owner, what the client is owed, where it is
//! served from.
//!
//! Belongs here: numbering, the shadow, repeats. Stays out: packets of client protocols, tails.
//! Invariants: inbound packets keep their numbers through every owner, and none has a number twice; a
//! packet is answered once; own-log entries are taken once and in order.

use std::collections::VecDeque;

use bytes::Bytes;

use super::actions::{Acting, Joining};
use super::tail::Tail;
use crate::id::{ClientIx, Cursor, NodeRef, Placement, RoomKey, Term};
use crate::limits::Limits;
use crate::mutant::{Mutant, is_planted};
use crate::recovery::OffsetKey;
use crate::shard::ClientProtocol;
use crate::small::give_back;
use crate::time::Instant;
use crate::wire::{
    Action, Done, Inbound, MovedAsk, MovedOwed, MovedRoom, MovedSession, OwnEntry, Payload, SessionIdentity,
    before_first_packet,
};

/// Bookkeeping of an inbound packet beside its payload.
const PACKET_OVERHEAD_BYTES: usize = 64;

#[derive(Debug)]
pub(super) struct EdgeSession {
    pub(super) identity: SessionIdentity,
    pub(super) placement: Placement,
    pub(super) protocol: ClientProtocol,
    /// Its client carries its cursors: what checks them.
    pub(super) offset_key: Option<OffsetKey>,
    /// It goes on from another transport, and its client has not been told yet.
    pub(super) resumes: bool,
    pub(super) client: ClientIx,
    pub(super) attachment: u64,
    /// How often it has been attached, and the last such time that was answered.
    pub(super) attaches: [u64; 2],
    /// Another transport of the session, and the ping that the client is to answer here for this one to be
    /// the later of the two.
    pub(super) rival: Option<(u64, u64)>,
    /// The client has answered since an owner has named this transport.
    pub(super) instead_of: Option<u64>,
    /// Packets are numbered as those of another transport before, until none is under way.
    numbers_lag: bool,
    /// Whom we attached to, and whether it has taken the session on.
    pub(super) owner: Option<NodeRef>,
    pub(super) attached: bool,
    /// The client has been told that it is connected.
    pub(super) welcomed: bool,
    pub(super) term: Term,
    /// Packets up to here are done and safe.
    pub(super) confirmed: u64,
    /// Those that follow; what is done among them is [`Inbound::Done`].
    unconfirmed: VecDeque<Inbound>,
    unconfirmed_bytes: usize,
    /// The last packet sent to the present owner, or told it to be done.
    sent: u64,
    /// The last packet sent to any owner.
    pub(super) sent_ever: u64,
    /// The last own-log entry taken.
    pub(super) own_seq: u64,
    /// The last own-log entry carried out, and the last one the owner has been told of.
    pub(super) own_done: u64,
    pub(super) own_reported: u64,
    /// Bytes of the entries carried out since then.
    own_unreported_bytes: usize,
    /// The last own-log entry carried out before the last ping, before one that was answered, and the
    /// last such that the owner has been told of.
    own_pinged: u64,
    own_shown: u64,
    own_shown_reported: u64,
    /// What the client is owed, in the order it came.
    pub(super) owed: VecDeque<Owed>,
    /// Answers among that, and their bytes.
    acks_owed: usize,
    acks_owed_bytes: usize,
    /// The first of `owed` is held back.
    pub(super) is_held: bool,
    pub(super) rooms: Vec<Membership>,
    /// Actions it has come to in its rooms, and joins by such that are not in force.
    pub(super) acting: Vec<Acting>,
    pub(super) joining: Vec<Joining>,
    /// The auth payload of its CONNECT, until the product's code has let it in.
    pub(super) hello: Option<Bytes>,
}

/// A room of a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Membership {
    /// Index into the edge's tails.
    pub(super) tail: u32,
    /// Place among the tail's members; `None` while the tail is not live yet.
    pub(super) slot: Option<u32>,
    /// Where the join took effect.
    pub(super) joined: Cursor,
    /// The client did not ask for it: it is told when the join is in force.
    pub(super) tell: bool,
    /// The own-log entry that asked for it; 0 for the room of everyone.
    pub(super) own_seq: u64,
    /// The last place it has been served. Counts only while the client is behind.
    pub(super) at: Cursor,
    /// `at` is a place this tail has been at, or the owner has found in its log. `false` for a reader
    /// that was put there and is still to be looked up.
    pub(super) verified: bool,
    /// The tail's history in which a reader that was put at a cursor was found; 0 for other members.
    pub(super) history: u32,
    /// The tail's history in which any other member's join took effect.
    pub(super) in_force_in: u32,
    /// Its former edge knew of something that it has not been served.
    pub(super) has_hole: bool,
    /// Stands for room and `joined` in offsets.
    pub(super) tag: u64,
}

impl Membership {
    /// Whether it is known from where on the session is served.
    pub(super) fn is_placed(&self) -> bool {
        self.slot.is_some() || !self.verified
    }

    /// The last place in its tail that the client has been handed; `behind`: it is served by its cursors.
    pub(super) fn handed_up_to(&self, behind: bool, tail: &Tail) -> Cursor {
        if behind || !self.verified { self.at } else { tail.last }
    }
}

/// How an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    SocketIo,
    /// The same, open at its end: what each client carries follows.
    Carrying,
    Plain,
    Engine,
    /// As Socket.IO's, and the client is to answer under this id.
    Asking(u64),
}

/// Something for this client alone.
#[derive(Debug)]
pub(super) enum Owed {
    /// An entry of the own log, and since when.
    Entry(OwnEntry, Instant),
    /// The answer to its event `id`, held until it has been served as far as `after`, or for some time
    /// since it `came`.
    Ack { id: u64, payload: Payload, after: Option<(RoomKey, Cursor)>, came: Instant },
}

impl Owed {
    /// Bytes for the client.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Ack { payload, .. } | Self::Entry(OwnEntry::Emit { payload, .. }, _) => payload.len(),
            Self::Entry(OwnEntry::Join(..) | OwnEntry::Leave(..) | OwnEntry::Disconnect { .. }, _) => 0,
        }
    }

    /// What it waits for, and since when.
    pub(super) fn after(&self) -> Option<(&RoomKey, Cursor, Instant)> {
        match self {
            Self::Ack { after, came, .. } | Self::Entry(OwnEntry::Emit { after, .. }, came) => {
                after.as_ref().map(|(room, at)| (room, *at, *came))
            }
            Self::Entry(..) => None,
        }
    }
}

fn packet_bytes(packet: &Inbound) -> usize {
    PACKET_OVERHEAD_BYTES
        + match packet {
            Inbound::Event { payload, .. } | Inbound::Ack { payload, .. } => payload.len(),
            Inbound::Act { action: Action::Join(rooms) | Action::Leave(rooms), .. } => {
                rooms.iter().map(|room| room.len()).sum()
            }
            Inbound::Act { .. } | Inbound::Disconnect | Inbound::Done => 0,
        }
}

impl EdgeSession {
    pub(super) fn new(
        identity: SessionIdentity,
        placement: Placement,
        protocol: ClientProtocol,
        client: ClientIx,
        attachment: u64,
    ) -> Self {
        let confirmed =
            before_first_packet(if is_planted(Mutant::PacketsNumberedAnew) { 1 } else { attachment });
        Self {
            identity,
            placement,
            protocol,
            offset_key: None,
            resumes: false,
            client,
            attachment,
            attaches: [0; 2],
            rival: None,
            instead_of: None,
            numbers_lag: false,
            owner: None,
            attached: false,
            welcomed: false,
            term: Term::NONE,
            confirmed,
            unconfirmed: VecDeque::new(),
            unconfirmed_bytes: 0,
            sent: confirmed,
            sent_ever: confirmed,
            own_seq: 0,
            own_done: 0,
            own_reported: 0,
            own_unreported_bytes: 0,
            own_pinged: 0,
            own_shown: 0,
            own_shown_reported: 0,
            owed: VecDeque::new(),
            acks_owed: 0,
            acks_owed_bytes: 0,
            is_held: false,
            rooms: Vec::new(),
            acting: Vec::new(),
            joining: Vec::new(),
            hello: None,
        }
    }

    /// One that another edge has had, under the number of its next transport. Not attached yet, and in no
    /// room.
    pub(super) fn from_moved(
        now: Instant,
        moved: MovedSession,
        placement: Placement,
        protocol: ClientProtocol,
        client: ClientIx,
        offset_key: Option<OffsetKey>,
    ) -> Self {
        let [own_seq, own_done, own_shown] = moved.own;
        let attachment = moved.attachment.saturating_add(1);
        let mut session = Self {
            offset_key,
            welcomed: true,
            attaches: moved.attached,
            term: moved.term,
            confirmed: moved.confirmed,
            sent: moved.confirmed,
            sent_ever: moved.sent_ever,
            own_seq,
            own_done,
            own_pinged: own_shown,
            own_shown,
            ..Self::new(moved.identity, placement, protocol, client, attachment)
        };
        for packet in moved.unconfirmed {
            session.push_inbound(packet);
        }
        for owed in moved.owed {
            match owed {
                MovedOwed::Entry(entry) => session.owed.push_back(Owed::Entry(entry, now)),
                MovedOwed::Ack(Done { ack: Some((id, payload)), after, .. }) => {
                    session.owe_ack(id, payload, after, now);
                }
                MovedOwed::Ack(Done { ack: None, .. }) => {}
            }
        }
        session
    }

    /// For the next edge. `rooms` are those of the session, `asked` is what it is to answer.
    pub(super) fn into_moved(self, rooms: Vec<MovedRoom>, asked: Vec<MovedAsk>) -> MovedSession {
        let owed = self.owed.into_iter().map(|owed| match owed {
            Owed::Entry(entry, _) => MovedOwed::Entry(entry),
            Owed::Ack { id, payload, after, .. } => {
                MovedOwed::Ack(Done { number: 0, ack: Some((id, payload)), after })
            }
        });
        MovedSession {
            identity: self.identity,
            attachment: self.attachment,
            attached: self.attaches,
            term: self.term,
            confirmed: self.confirmed,
            sent_ever: self.sent_ever,
            unconfirmed: self.unconfirmed.into(),
            own: [self.own_seq, self.own_done, self.own_shown],
            owed: owed.collect(),
            rooms,
            asked,
        }
    }

    /// Number of the last packet.
    pub(super) fn last_inbound(&self) -> u64 {
        self.confirmed + self.unconfirmed.len() as u64
    }

    /// This is the last transport of the session: the one after `rival`, of number `attachment`.
    pub(super) fn outbids(&mut self, rival: u64, attachment: u64) {
        (self.attachment, self.instead_of) = (attachment, Some(rival));
        self.numbers_lag = true;
        self.number_anew();
    }

    /// Packets get the numbers of this transport, once none of before is under way: rooms may have heard of higher
    /// ones by the other. Whether it was so.
    pub(super) fn number_anew(&mut self) -> bool {
        let is_due = self.numbers_lag && self.unconfirmed.is_empty();
        if is_due {
            let base = before_first_packet(self.attachment).max(self.confirmed);
            (self.confirmed, self.sent, self.sent_ever) = (base, base, base);
            self.numbers_lag = false;
        }
        is_due
    }

    pub(super) fn push_inbound(&mut self, packet: Inbound) {
        self.unconfirmed_bytes += packet_bytes(&packet);
        self.unconfirmed.push_back(packet);
    }

    /// Whether anything that the client has sent is under way.
    pub(super) fn is_busy(&self) -> bool {
        !self.unconfirmed.is_empty()
    }

    /// More than should be under way: packets not done, and answers the client has not taken.
    pub(super) fn is_over_inbound_bound(&self, limits: &Limits) -> bool {
        self.unconfirmed.len() + self.acks_owed >= limits.inbound_packets_max
            || self.unconfirmed_bytes + self.acks_owed_bytes >= limits.inbound_bytes_max
    }

    /// Little enough that reading may go on.
    pub(super) fn is_under_half_of_bound(&self, limits: &Limits) -> bool {
        self.unconfirmed.len() + self.acks_owed <= limits.inbound_packets_max / 2
            && self.unconfirmed_bytes + self.acks_owed_bytes <= limits.inbound_bytes_max / 2
    }

    /// Answers enough wait for the client that no more should be asked for.
    pub(super) fn has_answers_enough(&self, limits: &Limits) -> bool {
        self.acks_owed_bytes >= limits.client_queue_bytes_max
    }

    /// More answers wait than are kept. Answers may be far larger than what asked for them.
    pub(super) fn is_over_answer_bound(&self, limits: &Limits) -> bool {
        self.acks_owed_bytes > limits.inbound_bytes_max.max(limits.message_bytes_max)
    }

    /// A packet is done: it is not repeated to another owner, and the client is owed its answer. Only
    /// the first such word of a packet counts, for an owner that repeats it repeats the answer.
    pub(super) fn done(&mut self, now: Instant, done: Done) {
        if self.end(done.number)
            && let Some((id, payload)) = done.ack
        {
            self.owe_ack(id, payload, done.after, now);
        }
    }

    fn owe_ack(&mut self, id: u64, payload: Payload, after: Option<(RoomKey, Cursor)>, came: Instant) {
        self.acks_owed += 1;
        self.acks_owed_bytes += payload.len();
        self.owed.push_back(Owed::Ack { id, payload, after, came });
    }

    /// Packet `number` is done; whether that is news.
    fn end(&mut self, number: u64) -> bool {
        let place = number.checked_sub(self.confirmed + 1).and_then(|n| usize::try_from(n).ok());
        let packet = place.and_then(|place| self.unconfirmed.get_mut(place));
        let Some(packet) = packet.filter(|packet| **packet != Inbound::Done) else { return false };
        self.unconfirmed_bytes -= packet_bytes(packet);
        *packet = Inbound::Done;
        self.unconfirmed_bytes += packet_bytes(packet);
        while self.unconfirmed.front() == Some(&Inbound::Done) {
            self.unconfirmed.pop_front();
            self.unconfirmed_bytes -= PACKET_OVERHEAD_BYTES;
            self.confirmed += 1;
        }
        give_back(&mut self.unconfirmed);
        true
    }

    /// Takes the next own-log entry, to be carried out in its turn.
    pub(super) fn take_own(&mut self, entry: OwnEntry, now: Instant) {
        self.own_seq += 1;
        self.owed.push_back(Owed::Entry(entry, now));
    }

    /// Own-log entries that wait.
    pub(super) fn own_waiting(&self) -> usize {
        self.owed.len() - self.acks_owed
    }

    /// Whether an entry that waits takes the session out of this room.
    pub(super) fn leaves_soon(&self, room: &RoomKey) -> bool {
        self.owed.iter().any(|owed| matches!(owed, Owed::Entry(OwnEntry::Leave(left, _), _) if left == room))
    }

    /// An owner takes the session on: what it has not been shown as done goes out again. `shown` is the
    /// `inbound_confirmed` it answers.
    pub(super) fn repeat_after(&mut self, shown: u64, limits: &Limits) {
        // Nothing near this much becomes done while an Attach is under way; that owner finds a hole and
        // is attached to anew.
        let oldest = self.confirmed.saturating_sub(2 * limits.inbound_packets_max as u64);
        self.sent = shown.clamp(oldest, self.confirmed);
        if is_planted(Mutant::InboundNotRepeated) {
            for number in self.confirmed + 1..=self.sent_ever {
                self.end(number);
            }
        }
    }

    /// What the owner has not been sent: number of the first, and the packets.
    pub(super) fn take_unsent(&mut self) -> Option<(u64, Vec<Inbound>)> {
        let first = self.sent + 1;
        let done_since = usize::try_from(self.confirmed.saturating_sub(self.sent)).ok()?;
        let skip = usize::try_from(self.sent.saturating_sub(self.confirmed)).ok()?;
        let mut packets = vec![Inbound::Done; done_since];
        packets.extend(self.unconfirmed.iter().skip(skip).cloned());
        self.sent += packets.len() as u64;
        self.sent_ever = self.sent_ever.max(self.sent);
        (!packets.is_empty()).then_some((first, packets))
    }

    /// Takes the next of what is owed.
    pub(super) fn pop_owed(&mut self) -> Option<Owed> {
        let owed = self.owed.pop_front()?;
        give_back(&mut self.owed);
        match &owed {
            Owed::Entry(..) => {
                self.own_done += 1;
                self.own_unreported_bytes += owed.len();
            }
            Owed::Ack { payload, .. } => {
                self.acks_owed -= 1;
                self.acks_owed_bytes -= payload.len();
            }
        }
        Some(owed)
    }

    /// Whether the owner should be told at once how far the own log is carried out, before its bounds
    /// stop it. Telling it of every entry would wake two nodes more for each ack.
    pub(super) fn own_report_is_due(&self, limits: &Limits) -> bool {
        self.own_done - self.own_reported >= limits.own_log_entries_max as u64 / 8
            || self.own_unreported_bytes >= limits.own_log_bytes_max / 4
    }

    /// Another owner is told how far the own log is.
    pub(super) fn report_own_anew(&mut self) {
        (self.own_reported, self.own_shown_reported) = (0, 0);
    }

    pub(super) fn has_own_to_report(&self) -> bool {
        self.own_done > self.own_reported || self.own_shown > self.own_shown_reported
    }

    pub(super) fn own_was_reported(&mut self) {
        self.own_reported = self.own_done;
        self.own_shown_reported = self.own_shown;
        self.own_unreported_bytes = 0;
    }

    /// A ping goes out behind everything carried out so far.
    pub(super) fn pinged(&mut self) {
        self.own_pinged = self.own_done;
    }

    /// The last ping is answered. Whether the owner is to be told.
    pub(super) fn ponged(&mut self) -> bool {
        self.own_shown = self.own_pinged;
        self.offset_key.is_some() && self.own_shown > self.own_shown_reported
    }

    /// The last own-log entry that the client has shown to have.
    pub(super) fn shown(&self) -> u64 {
        self.own_shown
    }

    /// A session that goes on: own-log entries after this one follow.
    pub(super) fn goes_on_after(&mut self, own_seq: u64) {
        (self.own_seq, self.own_done, self.own_reported) = (own_seq, own_seq, own_seq);
        (self.own_pinged, self.own_shown, self.own_shown_reported) = (own_seq, own_seq, own_seq);
    }

    /// How events are written to its client.
    pub(super) fn form(&self) -> Form {
        match self.protocol {
            ClientProtocol::SocketIo if self.offset_key.is_some() => Form::Carrying,
            ClientProtocol::SocketIo => Form::SocketIo,
            ClientProtocol::Plain => Form::Plain,
            ClientProtocol::EngineIo => Form::Engine,
        }
    }

    pub(super) fn membership(&mut self, tail: u32) -> Option<&mut Membership> {
        self.rooms.iter_mut().find(|m| m.tail == tail)
    }

    pub(super) fn is_excepted<'a>(
        &self,
        room_of: impl Fn(u32) -> &'a RoomKey,
        except_rooms: &[std::sync::Arc<str>],
    ) -> bool {
        !except_rooms.is_empty()
            && self.rooms.iter().any(|m| {
                let room = room_of(m.tail);
                !room.is_everyone() && except_rooms.iter().any(|except| **except == *room.room())
            })
    }

    pub(super) fn check_invariants(&self, limits: &Limits) {
        assert_eq!(self.unconfirmed_bytes, self.unconfirmed.iter().map(packet_bytes).sum::<usize>());
        assert!(self.sent <= self.confirmed + self.unconfirmed.len() as u64);
        assert!(self.sent <= self.sent_ever);
        assert!(self.unconfirmed.front() != Some(&Inbound::Done), "what is done is kept");
        assert!(self.own_done + self.own_waiting() as u64 == self.own_seq, "own-log entries are miscounted");
        let acks = self.owed.iter().filter(|owed| matches!(owed, Owed::Ack { .. }));
        let (count, bytes) = acks.fold((0, 0), |(count, bytes), ack| (count + 1, bytes + ack.len()));
        assert_eq!((count, bytes), (self.acks_owed, self.acks_owed_bytes), "answers are miscounted");
        assert!(self.rooms.len() <= limits.rooms_per_session_max + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::SocketSid;
    use crate::keys::{ClusterKey, IdKey};

    fn session(attachment: u64) -> EdgeSession {
        let placement = Placement::of_user("chat", "alice");
        let identity = SessionIdentity {
            sid: SocketSid([1; 16]),
            pid: IdKey::new(&ClusterKey::new([7; 32])).seal_pid(placement, 1, [0; 16]),
            product: "chat".into(),
            uid: "alice".into(),
            namespace: "/".into(),
            resumable: false,
        };
        EdgeSession::new(identity, placement, ClientProtocol::SocketIo, ClientIx(0), attachment)
    }

    fn event(ack: u64) -> Inbound {
        Inbound::Event { ack: Some(ack), payload: Payload::json("[\"rooms\"]") }
    }

    fn done(number: u64, ack: u64) -> Done {
        Done { number, ack: Some((ack, Payload::json("[]"))), after: None }
    }

    #[test]
    fn numbers_of_a_later_attachment_are_above_all_of_an_earlier_one() {
        let first = |attachment| {
            let mut session = session(attachment);
            session.push_inbound(event(0));
            session.take_unsent().unwrap().0
        };
        assert_eq!(first(1), (1 << 32) + 1);
        assert!(first(2) > first(1) + u64::from(u32::MAX) - 1);
    }

    #[test]
    fn packets_done_out_of_order_are_answered_once_and_repeated_as_place_holders() {
        let (mut session, limits) = (session(1), Limits::default());
        (0..4).for_each(|ack| session.push_inbound(event(ack)));
        let (first, sent) = session.take_unsent().unwrap();
        assert_eq!(sent.len(), 4);
        for number in [first + 2, first, first + 2, first, first + 9, 3] {
            session.done(Instant::ZERO, done(number, number - first.min(number)));
            session.check_invariants(&limits);
        }
        let owed: Vec<u64> = (session.owed.iter())
            .map(|owed| match owed {
                Owed::Ack { id, .. } => *id,
                Owed::Entry(..) => unreachable!(),
            })
            .collect();
        assert_eq!(owed, [2, 0]);
        session.repeat_after(session.confirmed, &limits);
        assert_eq!(session.take_unsent(), Some((first + 1, vec![event(1), Inbound::Done, event(3)])));
        // An owner that was shown less than is done by now.
        session.repeat_after(first - 1, &limits);
        let (from, packets) = session.take_unsent().unwrap();
        assert_eq!((from, packets.len(), &packets[0]), (first, 4, &Inbound::Done));
        session.done(Instant::ZERO, done(first + 1, 1));
        assert_eq!(session.confirmed, first + 2);
    }
}
