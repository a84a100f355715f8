//! What clients write down, as it happens: the checker's only evidence.
//!
//! Belongs here: the lines of a journal, writing them, reading on in a growing file, the clock.
//! Stays out: what follows from them (`checker`).
//! Format: a line per fact: `MICROS CLIENT CODE …`, by [`now_micros`]; codes are at [`Fact`].
//! Invariants: a line that is not whole yet is read later; what cannot be read is an error, not skipped.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, ensure};
use rustix::time::{ClockId, clock_gettime};

/// Something that happened to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fact {
    /// `+ NODE KIND`: connected by this node.
    Connected {
        /// Index of the node.
        node: usize,
        /// What became of the session before.
        resumed: Resumed,
    },
    /// `j`: in its room.
    Joined,
    /// `e PUBLISHER NUMBER`: a room's event was delivered.
    Event(u16, u32),
    /// `s NUMBER`: handed this message to its socket (again).
    Sent(u32),
    /// `a NUMBER`: the message was acknowledged.
    Acked(u32),
    /// `r NUMBER`: the message was answered with an error.
    Refused(u32),
    /// `- …`: the transport is gone; words for people follow.
    Disconnected,
    /// `l`: left its transport as it was, and will connect anew: for the server it stands.
    Left,
    /// `c`: the server has closed a transport that was left.
    LeftClosed,
}

/// What a server made of a client that was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resumed {
    /// `f`: its first connection.
    First,
    /// `n`: there is no recovery in its protocol: a new session.
    New,
    /// `o`: the server offers none: a new session.
    NotOffered,
    /// `y`: `recovered` is true.
    Recovered,
    /// `x`: it asked, and `recovered` is false.
    Refused,
}

/// Microseconds of the monotonic clock, which all processes of a machine share.
pub(crate) fn now_micros() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000
}

/// The journal of one process of clients.
pub(crate) struct Writer {
    file: File,
    lines: Vec<u8>,
}

impl Writer {
    pub(crate) fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self { file, lines: Vec::new() })
    }

    /// Notes a fact, as of now. `words` go behind it, for people.
    pub(crate) fn note(&mut self, client: usize, fact: Fact, words: &str) {
        let micros = now_micros();
        // Writing into a Vec does not fail.
        let _ = write!(self.lines, "{micros} {client} ");
        let _ = match fact {
            Fact::Connected { node, resumed } => writeln!(self.lines, "+ {node} {}", resumed.letter()),
            Fact::Joined => writeln!(self.lines, "j"),
            Fact::Event(publisher, number) => writeln!(self.lines, "e {publisher} {number}"),
            Fact::Sent(number) => writeln!(self.lines, "s {number}"),
            Fact::Acked(number) => writeln!(self.lines, "a {number}"),
            Fact::Refused(number) => writeln!(self.lines, "r {number}"),
            Fact::Disconnected => writeln!(self.lines, "- {}", words.escape_debug()),
            Fact::Left => writeln!(self.lines, "l"),
            Fact::LeftClosed => writeln!(self.lines, "c"),
        };
    }

    /// Hands everything noted to the file.
    ///
    /// # Errors
    /// Those of the file.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.lines)?;
        self.lines.clear();
        Ok(())
    }
}

impl Resumed {
    fn letter(self) -> char {
        match self {
            Self::First => 'f',
            Self::New => 'n',
            Self::NotOffered => 'o',
            Self::Recovered => 'y',
            Self::Refused => 'x',
        }
    }

    fn read(letter: &str) -> Option<Self> {
        [Self::First, Self::New, Self::NotOffered, Self::Recovered, Self::Refused]
            .into_iter()
            .find(|kind| letter.chars().eq([kind.letter()]))
    }
}

/// Reads on in the journal of another process.
pub(crate) struct Reader {
    file: File,
    partial: Vec<u8>,
}

impl Reader {
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self { file, partial: Vec::new() })
    }

    /// Gives every whole line that was added since: when, who, what.
    ///
    /// # Errors
    /// Those of the file, and a line that is none of ours.
    pub(crate) fn read(&mut self, mut on: impl FnMut(u64, usize, Fact)) -> anyhow::Result<()> {
        self.file.read_to_end(&mut self.partial)?;
        let whole = self.partial.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in std::str::from_utf8(&self.partial[..whole])?.lines() {
            let (micros, client, fact) =
                parse(line).with_context(|| format!("no line of a journal: {:?}", line.get(..100)))?;
            on(micros, client, fact);
        }
        self.partial.drain(..whole);
        ensure!(self.partial.len() < 64 << 10, "an endless line in a journal");
        Ok(())
    }
}

fn parse(line: &str) -> Option<(u64, usize, Fact)> {
    let mut words = line.split(' ');
    let micros = words.next()?.parse().ok()?;
    let client = words.next()?.parse().ok()?;
    let code = words.next()?;
    let mut number = || words.next()?.parse().ok();
    let fact = match code {
        "+" => {
            Fact::Connected { node: usize::try_from(number()?).ok()?, resumed: Resumed::read(words.next()?)? }
        }
        "j" => Fact::Joined,
        "e" => Fact::Event(u16::try_from(number()?).ok()?, number()?),
        "s" => Fact::Sent(number()?),
        "a" => Fact::Acked(number()?),
        "r" => Fact::Refused(number()?),
        "-" => Fact::Disconnected,
        "l" => Fact::Left,
        "c" => Fact::LeftClosed,
        _ => return None,
    };
    Some((micros, client, fact))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_read_as_it_was_written() {
        let path = std::env::temp_dir().join(format!("kill9-journal-test-{}", std::process::id()));
        let facts = [
            Fact::Connected { node: 2, resumed: Resumed::Recovered },
            Fact::Joined,
            Fact::Event(7, 123),
            Fact::Sent(1),
            Fact::Acked(2),
            Fact::Refused(3),
            Fact::Disconnected,
            Fact::Left,
            Fact::LeftClosed,
        ];
        let mut writer = Writer::create(&path).unwrap();
        let mut reader = Reader::open(&path).unwrap();
        let mut read = Vec::new();
        for (client, fact) in facts.into_iter().enumerate() {
            writer.note(client, fact, "the server\nclosed");
            writer.flush().unwrap();
            reader.read(|micros, client, fact| read.push((micros, client, fact))).unwrap();
        }
        std::fs::remove_file(&path).unwrap();
        assert!(read.is_sorted_by_key(|(micros, ..)| *micros));
        assert_eq!(
            read.iter().map(|(_, client, fact)| (*client, *fact)).collect::<Vec<_>>(),
            facts.into_iter().enumerate().collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_strange_line_is_an_error() {
        for line in ["", "1 2", "1 2 q", "1 2 e 4", "1 2 + 0 z", "x 2 j"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
