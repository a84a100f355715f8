//! Planted bugs: what a tired author might have written, each of them silent.
//!
//! Why: a checker that has never found anything proves nothing. The simulator is run with one of these
//! planted and must find it (`docs/simulation.md`).
//! Belongs here: their names, which one is planted. Stays out: what they do: that stands at the one line each
//! of them spoils.
//! Cost: in a release build without the feature `mutants`, [`is_planted`] is `false` at compile time.
//! The one planted is a property of the thread, as a run of the simulator is: machines that would have to be
//! handed it are spared a field that means nothing in production.

macro_rules! mutants {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A planted bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mutant {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Mutant {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Whether the simulator finds it within 2,000 small seeds; why the others do not show is in
            /// `docs/simulation.md`.
            #[must_use]
            pub fn is_hunted(self) -> bool {
                !matches!(
                    self,
                    Self::AfterIgnored
                        | Self::AskedForTheGone
                        | Self::BirthsIgnored
                        | Self::PostTakenAgain
                        | Self::TakeOverBeginsLow
                        | Self::LinkResetUntold
                        | Self::OffsetUnchecked
                )
            }

            /// Whether it shows in about one of 1,500 small seeds: too rare to be found from any seed on.
            #[must_use]
            pub fn is_rare(self) -> bool {
                matches!(
                    self,
                    Self::FenceDropped
                        | Self::BaseIgnored
                        | Self::LackingCopyTaken
                        | Self::OlderAnswerTaken
                        | Self::LostNotTold
                )
            }

            /// Whether it shows only where nodes ask for bindings.
            #[must_use]
            pub fn is_of_bindings(self) -> bool {
                matches!(self, Self::BindingOverwritten)
            }

            /// What it does, in a sentence or two.
            #[must_use]
            pub fn what(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc,)+).trim_ascii_start(),)+
                }
            }
        }
    };
}

mutants! {
    /// A room takes a repeated publish for a new one.
    DedupeSkipped,
    /// A room takes a publish before the one that its sender names as the one before it.
    AfterIgnored,
    /// An edge forgets what earlier owners of a room have served it.
    CarriesNothing,
    /// An edge takes a POST again that was asked of an earlier life of it.
    PostTakenAgain,
    /// An edge serves what a merge brings whatever was before a member joined.
    BirthsIgnored,
    /// An edge forgets a room as soon as its last member has left.
    DepartedForgotten,
    /// An edge asks a new owner for what follows the entry after the last one it has served.
    CursorOffByOne,
    /// An edge does not hold an answer until the client has been served its own event.
    HoldIgnored,
    /// An edge that attaches a session again does not repeat what the last owner had not confirmed.
    InboundNotRepeated,
    /// An edge leaves a room out of the shadow of a session that it attaches again.
    ShadowLosesRoom,
    /// An edge serves members whom an event names as excepted.
    ExceptIgnored,
    /// A member that is behind misses the first entry it was to read from the tail.
    BehindByOne,
    /// A backup takes ops of a term below its own.
    FenceDropped,
    /// A backup takes ops that do not follow on its copy.
    BaseIgnored,
    /// A backup leaves out the first op of a batch.
    FirstOpLost,
    /// A backup lets its copy go although it holds what the new one lacks.
    LackingCopyTaken,
    /// An owner lets effects out when their op is sent, not when the backup has it.
    ReleasedEarly,
    /// A new backup gets a whole copy only when something waits for it.
    BackupNotFilled,
    /// The "nothing" of a node that has just come counts.
    SettledRuleSkipped,
    /// What only another copy holds is not taken in.
    NotMerged,
    /// A backup that takes over begins its term whatever the former one was.
    TakeOverBeginsLow,
    /// An owner has other copies dropped before its backup has all of it.
    DroppedUnsafe,
    /// A link that starts over does not say so: nobody repeats what was under way.
    LinkResetUntold,
    /// An edge takes the answer to a subscription of before for the answer to this one.
    OlderAnswerTaken,
    /// A reader before the tail is served from the tail's first entry.
    OlderSkipped,
    /// An offset counts whatever pid and whatever rooms it is of.
    OffsetUnchecked,
    /// A client that comes back gets what it has missed before it is told that it goes on.
    ReplayedBeforeConnect,
    /// A room that was left and joined again is served from where the client was before it left.
    JoinNotClamped,
    /// A client that comes back misses the first entry of each room.
    ResumedOneLater,
    /// A client that comes back gets the last entry of each room again.
    ResumedOneEarlier,
    /// A client that comes back does not get what it has missed of its own stream.
    OwnLogNotReplayed,
    /// What its edge has of a session's own log is not kept for a client that may come back.
    ShownTooEarly,
    /// Own-log entries get numbers again that were used before the client came back.
    OwnNumbersReused,
    /// A session that goes on is served one room less.
    ResumedRoomForgotten,
    /// A cursor that the log does not hold goes on at the head.
    GapUntoldOnResume,
    /// A hole that the edge knows of is not in the offsets.
    LostNotTold,
    /// The offset behind an event that was read from the log does not count that event.
    OffsetWithoutItsEvent,
    /// A client gets events it is excepted from when they are read from the log.
    ExceptIgnoredInReplay,
    /// The end of an older transport parks the session that goes on over a newer one.
    OlderTransportParks,
    /// A new transport numbers its packets as the first one did.
    PacketsNumberedAnew,
    /// A session is asked for again on behalf of a client that may be gone.
    AskedForTheGone,
    /// What a GET is answered counts as arrived before the next one shows it.
    AnswerTakenForArrived,
    /// What no GET has taken is forgotten when a session moves to a WebSocket.
    UnsentForgottenInMove,
    /// Packets that the owner has not confirmed are forgotten when a session moves to a WebSocket.
    UnconfirmedForgottenInMove,
    /// A binding is decided anew by whoever asks.
    BindingOverwritten,
    /// A change of the ring that comes while one is carried out is left to that: what has been looked at is not
    /// looked at again.
    ChangeLeftToTheLast,
}

impl std::str::FromStr for Mutant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let named = Self::ALL.iter().find(|mutant| format!("{mutant:?}").eq_ignore_ascii_case(name));
        named.copied().ok_or_else(|| {
            let names: Vec<String> = Self::ALL.iter().map(|mutant| format!("{mutant:?}")).collect();
            format!("no such mutant; there are {}", names.join(", "))
        })
    }
}

#[cfg(any(debug_assertions, feature = "mutants"))]
mod planted {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        static PLANTED: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Plants a bug in every machine of this thread, or with `None` takes it out again.
    ///
    /// # Errors
    /// Never in this build.
    pub fn plant(mutant: Option<Mutant>) -> Result<(), &'static str> {
        PLANTED.set(mutant);
        Ok(())
    }

    /// Whether this bug is planted.
    pub(crate) fn is_planted(mutant: Mutant) -> bool {
        PLANTED.get() == Some(mutant)
    }
}

#[cfg(not(any(debug_assertions, feature = "mutants")))]
mod planted {
    use super::Mutant;

    /// Plants a bug in every machine of this thread, or with `None` takes it out again.
    ///
    /// # Errors
    /// For any bug: this build cannot.
    pub fn plant(mutant: Option<Mutant>) -> Result<(), &'static str> {
        match mutant {
            None => Ok(()),
            Some(_) => Err("this build has no planted bugs: build with `--features mutants`"),
        }
    }

    /// Whether this bug is planted: never.
    pub(crate) const fn is_planted(_: Mutant) -> bool {
        false
    }
}

pub(crate) use planted::is_planted;
pub use planted::plant;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_planted_until_it_is_taken_out() {
        assert!(Mutant::ALL.iter().all(|mutant| !is_planted(*mutant)));
        plant(Some(Mutant::HoldIgnored)).unwrap();
        assert!(Mutant::ALL.iter().all(|mutant| is_planted(*mutant) == (*mutant == Mutant::HoldIgnored)));
        plant(None).unwrap();
        assert!(!is_planted(Mutant::HoldIgnored));
    }

    #[test]
    fn names_and_sentences_are_there() {
        assert_eq!("dedupeskipped".parse(), Ok(Mutant::DedupeSkipped));
        assert!("nothing".parse::<Mutant>().unwrap_err().contains("AfterIgnored"));
        assert_eq!(Mutant::DedupeSkipped.what(), "A room takes a repeated publish for a new one.");
    }
}
