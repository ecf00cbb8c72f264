//! What requests were told that were refused: when to come again. Whoever does finds room, since those who come first in
//! between are told to stand behind it.
//!
//! # Design
//! A request that comes again is known by a number that its text gives, with its owner's. It is not asked to prove anything:
//! of several with one text, the first to come takes the place, and the others are told anew. Whoever never comes again costs
//! others no slot: places are kept for two seconds, in the queue alone (`Router::n_kept`), and who asks for a wait stands
//! behind other owners' promises as behind their requests, by turns.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Refused requests that are remembered; what comes when there are so many is told as much as the last of them.
const PROMISES_MAX: usize = 4096;
/// Who comes so much before its time has come in time.
const EARLY: Duration = Duration::from_millis(100);
/// For whom nobody waits any more: it has left for good.
const LATE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
struct Promise {
    due: Instant,
    owner: u64,
    /// Which request of its.
    which: u64,
}

/// **Bound:** `PROMISES_MAX`.
#[derive(Debug, Default)]
pub(super) struct Promises {
    all: VecDeque<Promise>,
}

impl Promises {
    /// The request has come again, and its time has come.
    pub fn keep(&mut self, owner: u64, which: u64, now: Instant) -> bool {
        self.all.retain(|promise| promise.due + LATE > now);
        let is_it = |promise: &Promise| promise.owner == owner && promise.which == which && promise.due <= now + EARLY;
        let found = self.all.iter().position(is_it);
        found.is_some_and(|at| self.all.remove(at).is_some())
    }

    /// It was let in before its time.
    pub fn forget(&mut self, owner: u64, which: u64) {
        self.all.retain(|promise| promise.owner != owner || promise.which != which);
    }

    /// Owners of those who are to come until then.
    pub fn until(&self, until: Instant) -> impl Iterator<Item = u64> {
        self.all.iter().filter(move |promise| promise.due <= until).map(|promise| promise.owner)
    }

    /// Owners of all who are to come.
    pub fn owners(&self) -> impl Iterator<Item = u64> {
        self.all.iter().map(|promise| promise.owner)
    }

    /// What this request was told, where it has not come yet: then it keeps its place.
    pub fn due(&self, owner: u64, which: u64) -> Option<Instant> {
        let found = self.all.iter().find(|promise| promise.owner == owner && promise.which == which);
        found.map(|promise| promise.due)
    }

    pub fn add(&mut self, owner: u64, which: u64, due: Instant) {
        if self.all.len() < PROMISES_MAX {
            self.all.push_back(Promise { due, owner, which });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_kept_once_and_not_for_ever() {
        let (mut promises, start) = (Promises::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        promises.add(1, 10, at(1000));
        promises.add(2, 10, at(3000));
        assert_eq!((promises.owners().count(), promises.until(at(2000)).collect::<Vec<_>>()), (2, vec![1]));
        assert!(!promises.keep(1, 10, at(500)), "too early");
        assert!(!promises.keep(3, 10, at(1000)) && !promises.keep(1, 11, at(1000)), "nobody's");
        assert_eq!(promises.due(2, 10), Some(at(3000)));
        assert!(promises.keep(1, 10, at(950)) && !promises.keep(1, 10, at(1000)), "once");
        assert!(!promises.keep(2, 10, at(5000)), "it left for good");
        assert_eq!(promises.owners().count(), 0);
        for which in 0..5000 {
            promises.add(1, which, at(1000));
        }
        assert_eq!(promises.owners().count(), PROMISES_MAX);
        promises.forget(1, 7);
        assert_eq!((promises.owners().count(), promises.due(1, 7)), (PROMISES_MAX - 1, None));
    }
}
