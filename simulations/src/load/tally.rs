//! What one receiver has seen: losses, repeats, order.
//!
//! Belongs here: the account of one receiver. Stays out: who publishes what, how it arrives.
//! Units: messages. Memory: 12 bytes per publisher of the room.

use super::stamp::Stamp;

/// The account of one receiver.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    publishers: Vec<Heard>,
    /// Messages taken.
    pub(super) received: u64,
    /// Messages taken a second time.
    pub(super) doubled: u64,
    /// Messages that came after a later one of the same publisher.
    pub(super) reordered: u64,
    /// Hash over (publisher, number) in the order of arrival: equal hashes, one order.
    pub(super) order: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    /// The lowest number not below any seen.
    next: u32,
    /// Bit i: `next - 1 - i` has been seen.
    recent: u64,
    /// Numbers below `next` not seen.
    missing: u32,
}

impl Tally {
    /// An account for a room with so many publishers.
    pub(super) fn new(publishers: usize) -> Self {
        Self {
            publishers: vec![Heard::default(); publishers],
            received: 0,
            doubled: 0,
            reordered: 0,
            order: 0,
        }
    }

    /// Takes one message.
    pub(super) fn take(&mut self, stamp: Stamp) {
        self.received += 1;
        let event = u64::from(stamp.publisher) << 32 | u64::from(stamp.number);
        self.order = (self.order.rotate_left(5) ^ event).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let Some(heard) = self.publishers.get_mut(usize::from(stamp.publisher)) else { return };
        if stamp.number >= heard.next {
            let skipped = stamp.number - heard.next;
            heard.missing += skipped;
            heard.recent = heard.recent.checked_shl(skipped + 1).unwrap_or(0) | 1;
            heard.next = stamp.number + 1;
            return;
        }
        let age = heard.next - 1 - stamp.number;
        let seen = age < 64 && heard.recent >> age & 1 == 1;
        if seen || heard.missing == 0 {
            self.doubled += 1;
        } else {
            self.reordered += 1;
            heard.missing -= 1;
            if age < 64 {
                heard.recent |= 1 << age;
            }
        }
    }

    /// Messages that never came, of `published[i]` by publisher `i`. `but` is the publisher whose
    /// own messages do not come back to it.
    pub(super) fn lost(&self, published: &[u32], but: Option<usize>) -> u64 {
        let others = self.publishers.iter().zip(published).enumerate().filter(|&(i, _)| Some(i) != but);
        others.map(|(_, (h, &sent))| u64::from(h.missing) + u64::from(sent.saturating_sub(h.next))).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally_of(numbers: &[u32]) -> Tally {
        let mut tally = Tally::new(2);
        for &number in numbers {
            tally.take(Stamp { publisher: 1, number, micros: 0 });
        }
        tally
    }

    #[test]
    fn a_clean_run_is_clean() {
        let tally = tally_of(&[0, 1, 2, 3]);
        assert_eq!((tally.doubled, tally.reordered, tally.lost(&[0, 4], None)), (0, 0, 0));
    }

    #[test]
    fn loss_repeat_and_late_arrival_are_told_apart() {
        assert_eq!(tally_of(&[0, 1, 3]).lost(&[0, 5], None), 2);
        assert_eq!(tally_of(&[0, 1, 3]).lost(&[0, 5], Some(1)), 0);
        let repeated = tally_of(&[0, 1, 1, 0, 2]);
        assert_eq!((repeated.doubled, repeated.reordered, repeated.lost(&[0, 3], None)), (2, 0, 0));
        let late = tally_of(&[0, 2, 1, 3]);
        assert_eq!((late.doubled, late.reordered, late.lost(&[0, 4], None)), (0, 1, 0));
    }

    #[test]
    fn another_order_has_another_hash() {
        assert_ne!(tally_of(&[0, 1, 2]).order, tally_of(&[0, 2, 1]).order);
    }
}
