//! Full exchange of the membership, page by page.
//!
//! Belongs here: the words that nodes exchange beside SWIM, and the asking side of an exchange.
//! Stays out: when to exchange (`join`, `machine`), what a member's state means (`swim`).
//! Why: SWIM's own join is one datagram of random members, the rest comes by rumour; at 200 nodes
//! that took minutes. An exchange brings all of it in a few round trips.
//!
//! Members are asked for in order of their ids. A page covers the ids after one (exclusive) up to
//! another (inclusive), so the answering side keeps no state, pages may come in any order or twice,
//! and a lost one is simply asked for again. Pushing is pulling the other way: who is asked with
//! `back` asks in turn.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use foca::Member;
use serde::{Deserialize, Serialize};

use super::Identity;
use super::swim::MEMBERS_MAX;
use crate::id::NodeId;
use crate::time::Instant;
use crate::view::NodeRecord;
use crate::wire;

/// Pages sent for one question.
pub(crate) const PAGES_MAX: u8 = 8;

/// Claims in one message; a node has few seeds.
pub(crate) const CLAIMS_MAX: usize = 16;

/// Questions in a row without progress until an exchange is given up.
const ASKED_MAX: u32 = 6;

/// What nodes say to each other beside SWIM. postcard: append, never reorder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Word {
    /// Asks for pages.
    Ask(Ask),
    /// One page of an answer.
    Page(Page),
    /// "I am starting myself."
    NotYet { round: u32, claims: Vec<Claim> },
    /// "Is a node of this id alive here?"
    NameProbe { id: NodeId, nonce: u64 },
    /// "Yes, me."
    NameAnswer { holder: Identity, nonce: u64 },
    /// "I know a later life of you", of a start that did not know of it.
    Superseded { incarnation: u64 },
}

/// A question for members after `after`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ask {
    /// Returned in the answers.
    pub(crate) round: u32,
    /// Who asks.
    pub(crate) me: Identity,
    /// The asking node is starting; it is nobody's member yet.
    pub(crate) joining: bool,
    /// Ask in turn.
    pub(crate) back: bool,
    /// Where to begin; `None`: at the first.
    pub(crate) after: Option<NodeId>,
    /// How many pages at most.
    pub(crate) pages: u8,
    /// Whom starting nodes wait for (only when joining).
    pub(crate) claims: Vec<Claim>,
}

/// Members with ids in (`after`, `upto`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Page {
    pub(crate) round: u32,
    pub(crate) from: Identity,
    pub(crate) after: Option<NodeId>,
    /// `None`: to the end.
    pub(crate) upto: Option<NodeId>,
    /// Nothing more comes without being asked.
    pub(crate) last: bool,
    pub(crate) entries: Vec<Entry>,
}

/// One member, and what it announced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) member: Member<Identity>,
    pub(crate) record: Option<Arc<NodeRecord>>,
}

/// Whom a starting node waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub(crate) node: NodeId,
    /// Those of its seeds that answered, all starting themselves.
    pub(crate) waits_for: Vec<NodeId>,
    /// It has heard from enough of its seeds to begin without the others.
    pub(crate) content: bool,
    /// How old this is.
    pub(crate) age_millis: u16,
}

/// The asking side of one exchange.
#[derive(Debug)]
pub(crate) struct Pull {
    pub(crate) peer: SocketAddr,
    pub(crate) purpose: Purpose,
    pub(crate) again_at: Instant,
    entries: BTreeMap<NodeId, Entry>,
    /// Pages had, by where they begin; chained from the first by [`Pull::covered`].
    had: BTreeMap<Option<NodeId>, Option<NodeId>>,
    asked: u32,
}

/// What an exchange is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To become a member.
    Join,
    /// To be sure again after having been declared down.
    Rejoin,
    /// To agree.
    Agree {
        /// Whether the peer is asked to ask back.
        back: bool,
    },
}

/// How far an exchange is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Pages have come up to here; ask for those after it now.
    AskAfter(Option<NodeId>),
    /// More is under way.
    Wait,
    /// All pages are here.
    Done,
}

impl Pull {
    pub(crate) fn new(peer: SocketAddr, purpose: Purpose, again_at: Instant) -> Self {
        Self { peer, purpose, again_at, entries: BTreeMap::new(), had: BTreeMap::new(), asked: 1 }
    }

    /// Takes a page in.
    pub(crate) fn page(&mut self, page: Page, again_at: Instant) -> Progress {
        if self.entries.len() + page.entries.len() > MEMBERS_MAX
            || page.upto.is_some_and(|upto| Some(upto) <= page.after)
        {
            return Progress::Wait;
        }
        if self.had.insert(page.after, page.upto).is_none() {
            self.asked = 0;
            self.again_at = again_at;
        }
        self.entries.extend(page.entries.into_iter().map(|entry| (entry.member.id().node.id, entry)));
        match self.covered() {
            None => Progress::Done,
            Some(upto) if page.last => Progress::AskAfter(upto),
            Some(_) => Progress::Wait,
        }
    }

    /// Time is up: where to ask again, or `None` to give the exchange up.
    pub(crate) fn overdue(&mut self, again_at: Instant) -> Option<Option<NodeId>> {
        self.again_at = again_at;
        self.asked += 1;
        (self.asked <= ASKED_MAX).then(|| self.covered().unwrap_or(None))
    }

    /// Up to which id all members are here; `None`: all of them.
    fn covered(&self) -> Option<Option<NodeId>> {
        let mut at = None;
        while let Some(&upto) = self.had.get(&at) {
            upto?;
            at = upto;
        }
        Some(at)
    }

    pub(crate) fn into_entries(self) -> impl Iterator<Item = Entry> {
        self.entries.into_values()
    }
}

/// Cuts entries (in order of their ids, all after `ask.after`) into pages of at most `room` bytes.
pub(crate) fn pages(
    ask: &Ask,
    from: Identity,
    entries: impl Iterator<Item = Entry>,
    room: usize,
) -> Vec<Page> {
    let page_from =
        |after| Page { round: ask.round, from, after, upto: None, last: false, entries: Vec::new() };
    let overhead = |page: &Page| wire::encode(page).len() + 16;
    let mut pages = Vec::new();
    let mut page = page_from(ask.after);
    let mut used = overhead(&page);
    let wanted = usize::from(ask.pages.clamp(1, PAGES_MAX));
    for entry in entries {
        let size = wire::encode(&entry).len();
        if used + size > room && !page.entries.is_empty() {
            let upto = page.entries.last().map(|e| e.member.id().node.id);
            page.upto = upto;
            pages.push(std::mem::replace(&mut page, page_from(upto)));
            if pages.len() == wanted {
                break;
            }
            used = overhead(&page);
        }
        used += size;
        page.entries.push(entry);
    }
    if pages.len() < wanted {
        pages.push(page);
    }
    if let Some(last) = pages.last_mut() {
        last.last = true;
    }
    pages
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::id::NodeRef;

    fn identity(n: u64) -> Identity {
        Identity {
            node: NodeRef { id: NodeId(n), incarnation: 3 },
            addr: SocketAddr::from(([10, 0, 0, 1], 7_400)),
            zone: 0,
            weight: 1,
            protocol_min: 1,
            protocol_max: 1,
        }
    }

    fn entry(n: u64) -> Entry {
        Entry { member: Member::alive(identity(n)), record: None }
    }

    fn ask(after: Option<NodeId>) -> Ask {
        Ask { round: 1, me: identity(9), joining: true, back: false, after, pages: 3, claims: Vec::new() }
    }

    fn answer(after: Option<NodeId>) -> Vec<Page> {
        let later = (1..=50).filter(|n| after.is_none_or(|after| NodeId(*n) > after));
        pages(&ask(after), identity(1), later.map(entry), 250)
    }

    fn pull() -> Pull {
        Pull::new(SocketAddr::from(([10, 0, 0, 1], 7_400)), Purpose::Join, Instant::ZERO)
    }

    #[test]
    fn pages_keep_to_their_room_and_bring_everything() {
        let mut pull = pull();
        let mut after = None;
        let mut questions = 0;
        let entries = loop {
            questions += 1;
            let pages = answer(after);
            assert!(
                pages.len() <= 3 && pages.iter().all(|p| wire::encode(&Word::Page(p.clone())).len() <= 250)
            );
            let progress = pages.into_iter().map(|page| pull.page(page, Instant::ZERO)).last();
            match progress {
                Some(Progress::AskAfter(upto)) => after = upto,
                Some(Progress::Done) => break pull.into_entries().count(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(entries, 50);
        assert!(questions > 1);
    }

    #[test]
    fn lost_pages_are_asked_for_again_and_order_does_not_matter() {
        let mut pull = pull();
        let [first, second, third] = answer(None).try_into().unwrap();
        assert_eq!(pull.page(third.clone(), Instant::ZERO), Progress::AskAfter(None), "from the gap");
        assert_eq!(pull.page(first.clone(), Instant::ZERO), Progress::Wait);
        let later = Instant::ZERO + Duration::from_secs(1);
        assert_eq!(pull.overdue(later), Some(first.upto));
        assert_eq!(pull.page(second, Instant::ZERO), Progress::Wait);
        assert_eq!(pull.overdue(later), Some(third.upto), "the third was kept");
    }

    #[test]
    fn an_exchange_nobody_answers_is_given_up() {
        let mut pull = pull();
        let asked = std::iter::from_fn(|| pull.overdue(Instant::ZERO)).take(100).count();
        assert!(asked < 10);
    }

    #[test]
    fn golden_bytes() {
        let hex = |word: &Word| wire::encode(word).iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(
            hex(&Word::Ask(ask(Some(NodeId(7))))),
            "00010900000000000000000a000001e81c0300010101010001070300"
        );
        let page = Page {
            round: 1,
            from: identity(1),
            after: None,
            upto: None,
            last: true,
            entries: vec![entry(2)],
        };
        let golden = concat!(
            "01010100000000000000000a000001e81c0300010101000001",
            "010200000000000000000a000001e81c0300010101000000"
        );
        assert_eq!(hex(&Word::Page(page)), golden);
        assert_eq!(hex(&Word::Superseded { incarnation: 5 }), "0505");
    }
}
