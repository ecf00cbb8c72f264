//! Whether an engine process hangs: the arithmetic only.

use std::time::{Duration, Instant};

/// How often a process tells that it lives, where silence of `hang_timeout` means that it hangs.
pub(super) fn interval(hang_timeout: Duration) -> Duration {
    (hang_timeout / 4).clamp(Duration::from_millis(20), Duration::from_secs(1))
}

/// What the front knows of one process.
#[derive(Debug)]
pub(super) struct Watch {
    timeout: Duration,
    heard: Instant,
    /// When it last got on, or had nothing to do.
    moved: Instant,
    n_steps: u64,
}

impl Watch {
    pub(super) fn new(timeout: Duration, now: Instant) -> Self {
        Self { timeout, heard: now, moved: now, n_steps: 0 }
    }

    /// Until when something must be heard of it.
    pub(super) fn deadline(&self) -> Instant {
        self.heard + self.timeout
    }

    /// For how long one goes on listening behind the deadline: after the whole machine stood still, the process needs a
    /// moment to speak again.
    pub(super) fn grace(&self) -> Duration {
        interval(self.timeout) * 3
    }

    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// A sign of life came. Whether the process hangs all the same: it has work and does not get on with it.
    pub(super) fn pulse(&mut self, n_steps: u64, is_busy: bool, now: Instant) -> bool {
        if !is_busy || n_steps != self.n_steps {
            (self.moved, self.n_steps) = (now, n_steps);
        }
        now.saturating_duration_since(self.moved) >= self.timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_work_that_stands_still_is_a_hang() {
        let (timeout, start) = (Duration::from_secs(8), Instant::now());
        let at = |s: u64| start + Duration::from_secs(s);
        let mut watch = Watch::new(timeout, start);
        assert!(!watch.pulse(0, false, at(100)), "nothing to do");
        assert!(!watch.pulse(0, true, at(107)) && watch.pulse(0, true, at(108)));
        assert!(!watch.pulse(1, true, at(109)) && !watch.pulse(1, true, at(116)) && watch.pulse(1, true, at(117)));
        watch.heard(at(117));
        assert_eq!(watch.deadline(), at(125));
        assert_eq!((interval(timeout), watch.grace()), (Duration::from_secs(1), Duration::from_secs(3)));
        assert_eq!(interval(Duration::from_millis(400)), Duration::from_millis(100));
    }
}
