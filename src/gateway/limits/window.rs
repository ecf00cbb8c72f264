//! What was taken in the last minute.
//!
//! # Design
//! A token bucket of a minute's size lets through two minutes' worth in a minute that follows a quiet one: its burst and
//! its refill. Here what was taken comes back exactly one minute after it was taken, bit by bit, so that no minute
//! (wherever it begins) ever holds more than the limit. What is taken within half a second comes back together with the
//! last of it, so that a scope's memory is bounded whatever its rate: under steady load this costs less than one per cent
//! of the limit.

use std::collections::VecDeque;
use std::time::Duration;

/// Time on a clock that never jumps: since its owner was made.
pub type Mono = Duration;

const LEN: Duration = Duration::from_secs(60);
const GRAIN: Duration = Duration::from_millis(500);

/// Names what was taken at one time; what was taken close to it may have the same name.
pub type EntryId = u64;

/// Amounts of the last minute. **Bound:** 122 entries, since each begins `GRAIN` after the one before.
#[derive(Debug, Clone, Default)]
pub struct Window {
    entries: VecDeque<Entry>,
    /// The id of the first entry.
    first: EntryId,
    sum: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    opened: Mono,
    latest: Mono,
    amount: u64,
}

impl Window {
    /// Taken within the minute that ends now.
    pub fn used(&mut self, now: Mono) -> u64 {
        while let Some(oldest) = self.entries.front()
            && oldest.latest + LEN <= now
        {
            self.sum -= oldest.amount;
            self.entries.pop_front();
            self.first += 1;
        }
        self.sum
    }

    /// Takes `n`, whatever the limit.
    pub fn take(&mut self, now: Mono, n: u64) -> EntryId {
        self.used(now);
        self.sum += n;
        match self.entries.back_mut() {
            Some(last) if now < last.opened + GRAIN => {
                last.latest = last.latest.max(now);
                last.amount += n;
            }
            // A clock that stands still or is read out of order must not disturb the order of the entries.
            last => {
                let at = last.map_or(now, |last| now.max(last.latest));
                self.entries.push_back(Entry { opened: at, latest: at, amount: n });
            }
        }
        self.first + self.entries.len() as u64 - 1
    }

    /// Of what was taken under `id`, `was` turned out to be `is`. What is a minute old has come back already.
    pub fn amend(&mut self, id: EntryId, was: u64, is: u64) {
        let entry = id.checked_sub(self.first).and_then(|at| self.entries.get_mut(usize::try_from(at).ok()?));
        if let Some(entry) = entry {
            let was = was.min(entry.amount);
            entry.amount = entry.amount - was + is;
            self.sum = self.sum - was + is;
        }
    }

    /// How long until `n` more fit under `limit`; `None`: never.
    pub fn wait(&mut self, now: Mono, n: u64, limit: u64) -> Option<Duration> {
        let room = limit.checked_sub(n)?;
        let mut left = self.used(now);
        for entry in &self.entries {
            if left <= room {
                break;
            }
            left -= entry.amount;
            if left <= room {
                return Some(entry.latest + LEN - now);
            }
        }
        Some(Duration::ZERO)
    }

    /// How long until all has come back.
    pub fn reset(&mut self, now: Mono) -> Duration {
        self.used(now);
        self.entries.back().map_or(Duration::ZERO, |last| (last.latest + LEN).saturating_sub(now))
    }

    /// Whether nothing of it matters any more.
    pub fn is_empty(&mut self, now: Mono) -> bool {
        self.used(now);
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono::from_millis(ms)
    }

    #[test]
    fn what_was_taken_comes_back_after_a_minute() {
        let mut window = Window::default();
        window.take(at(0), 30);
        window.take(at(10_000), 50);
        assert_eq!(window.wait(at(10_000), 20, 100), Some(at(0)));
        assert_eq!(window.wait(at(10_000), 21, 100), Some(at(50_000)));
        assert_eq!(window.wait(at(10_000), 51, 100), Some(at(60_000)));
        assert_eq!(window.wait(at(10_000), 101, 100), None);
        assert_eq!((window.used(at(59_999)), window.used(at(60_000)), window.used(at(70_000))), (80, 50, 0));
        assert!(window.is_empty(at(70_000)));
    }

    #[test]
    fn what_was_taken_too_much_comes_back_at_once() {
        let mut window = Window::default();
        let old = window.take(at(0), 10);
        let new = window.take(at(59_000), 70);
        window.amend(new, 70, 20);
        assert_eq!(window.used(at(59_500)), 30);
        window.amend(new, 20, 25);
        assert_eq!(window.used(at(60_000)), 25);
        window.amend(old, 10, 0);
        assert_eq!(window.used(at(60_000)), 25, "it had come back by itself");
        window.amend(99, 1, 0);
        window.amend(new, 25, 0);
        assert_eq!((window.used(at(60_001)), window.reset(at(60_001))), (0, at(58_999)));
    }

    #[test]
    fn memory_is_bounded_and_close_ones_return_with_the_last() {
        let mut window = Window::default();
        for ms in 0..300_000 {
            window.take(at(ms), 1);
            assert!(window.entries.len() <= 122);
        }
        assert!(window.used(at(299_999)) >= 60_000 && window.used(at(299_999)) <= 60_500);
        let mut window = Window::default();
        window.take(at(0), 1);
        window.take(at(499), 1);
        window.take(at(500), 1);
        assert_eq!((window.used(at(60_498)), window.used(at(60_499)), window.used(at(60_500))), (3, 1, 0));
    }
}
