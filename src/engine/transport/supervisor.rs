//! When to start a dead child again: the arithmetic only.

use std::time::{Duration, Instant};

/// Delay before the next start. The first death is answered at once; then the delay doubles up to a bound, and a child
/// that lived long enough clears the slate.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    started: Instant,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const MAX: Duration = Duration::from_secs(30);
    /// A child that lived this long after it was ready was not dying of its start.
    const STABLE: Duration = Duration::from_secs(20);

    pub(super) fn new(now: Instant) -> Self {
        Self { next: Self::FIRST, started: now }
    }

    /// A child was started.
    pub(super) fn start(&mut self, now: Instant) {
        self.started = now;
    }

    /// The child died; `was_ready` tells whether it ever served. Returns how long to wait.
    pub(super) fn died(&mut self, now: Instant, was_ready: bool) -> Duration {
        if was_ready && now.duration_since(self.started) >= Self::STABLE {
            self.next = Self::FIRST;
        }
        let wait = self.next;
        // A child that served and died young is more likely hit by a request than broken: grow slower.
        self.next = (self.next * if was_ready { 2 } else { 4 }).min(if was_ready { Self::MAX / 60 } else { Self::MAX });
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_bound_and_reset_after_a_stable_life() {
        let t0 = Instant::now();
        let mut backoff = Backoff::new(t0);
        let waits: Vec<_> = (0..8).map(|_| backoff.died(t0, false)).collect();
        assert_eq!(waits[0], Backoff::FIRST);
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(waits[7], Backoff::MAX);
        backoff.start(t0);
        assert_eq!(backoff.died(t0 + Backoff::STABLE, true), Backoff::FIRST);
    }

    #[test]
    fn a_child_that_served_is_back_within_two_seconds() {
        let t0 = Instant::now();
        let mut backoff = Backoff::new(t0);
        assert!((0..50).all(|_| backoff.died(t0, true) <= Duration::from_millis(500)));
    }
}
