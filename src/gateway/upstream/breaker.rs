//! The circuit breaker of one target. Pure: time and chance are handed in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

#[derive(Debug, Clone, PartialEq)]
pub struct BreakerConfig {
    /// It opens after so many failures in a row.
    pub consecutive_failures: u32,
    /// Or when this part of the samples in `window` failed, of at least `min_samples`.
    pub error_rate: f64,
    pub min_samples: u32,
    pub window: Duration,
    /// How long it stays open; twice as long at each failed probe, up to `max_open`, give or take a fifth.
    pub open_for: Duration,
    pub max_open: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            error_rate: 0.5,
            min_samples: 20,
            window: Duration::from_secs(30),
            open_for: Duration::from_secs(30),
            max_open: Duration::from_secs(300),
        }
    }
}

/// Samples that are remembered; in a busy window, the latest.
const SAMPLES_MAX: usize = 1024;
/// Half of the spread of the time that it stays open.
const JITTER: f64 = 0.2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    Closed,
    HalfOpen,
    Open,
}

impl BreakerState {
    pub fn as_str(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::HalfOpen => "half_open",
            BreakerState::Open => "open",
        }
    }
}

/// What a sample says about the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Good,
    Bad,
    /// Nothing: the client left, or the request was at fault.
    Neutral,
}

#[derive(Debug)]
pub(super) struct Breaker {
    config: BreakerConfig,
    state: State,
    /// The target asked to be left alone until then.
    not_before: Option<Instant>,
}

#[derive(Debug)]
enum State {
    Closed {
        n_consecutive: u32,
        /// **Bound:** `SAMPLES_MAX`. When, and whether it failed.
        samples: VecDeque<(Instant, bool)>,
    },
    Open {
        until: Instant,
        n_opened: u32,
    },
    /// One request at a time tries.
    HalfOpen {
        is_probing: bool,
        n_opened: u32,
    },
}

/// Whether a request may go to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admit {
    Go,
    /// As the one that tries whether it is well again.
    Probe,
    /// It is taken to be sick.
    Shut,
    /// It said when it can be asked again.
    Wait(Duration),
}

impl Breaker {
    pub(super) fn new(config: BreakerConfig) -> Self {
        Self { config, state: closed(), not_before: None }
    }

    /// Whoever is let through tells by [`Breaker::record`] how it ended.
    pub(super) fn admit(&mut self, now: Instant) -> Admit {
        if let Some(wait) = self.not_before.map(|at| at.saturating_duration_since(now)).filter(|wait| !wait.is_zero()) {
            return Admit::Wait(wait);
        }
        self.not_before = None;
        match &mut self.state {
            State::Closed { .. } => Admit::Go,
            State::Open { until, n_opened } if now >= *until => {
                self.state = State::HalfOpen { is_probing: true, n_opened: *n_opened };
                Admit::Probe
            }
            State::HalfOpen { is_probing: is_probing @ false, .. } => {
                *is_probing = true;
                Admit::Probe
            }
            State::Open { .. } | State::HalfOpen { .. } => Admit::Shut,
        }
    }

    /// `as_probe`: it was let through as one. `chance`: 0..1, for the spread.
    pub(super) fn record(&mut self, now: Instant, outcome: Outcome, as_probe: bool, chance: f64) {
        match (&mut self.state, outcome) {
            (State::HalfOpen { .. }, Outcome::Good) if as_probe => self.state = closed(),
            (State::HalfOpen { n_opened, .. }, Outcome::Bad) if as_probe => {
                let n_opened = *n_opened;
                self.open(now, n_opened, chance);
            }
            (State::HalfOpen { is_probing, .. }, Outcome::Neutral) if as_probe => *is_probing = false,
            (State::Closed { n_consecutive, .. }, Outcome::Good) => {
                *n_consecutive = 0;
                self.sample(now, false, chance);
            }
            (State::Closed { n_consecutive, .. }, Outcome::Bad) => {
                *n_consecutive += 1;
                if *n_consecutive >= self.config.consecutive_failures {
                    self.open(now, 0, chance);
                } else {
                    self.sample(now, true, chance);
                }
            }
            // Requests that began before it opened tell nothing new.
            _ => {}
        }
    }

    /// The target asked for this pause. It is no sickness.
    pub(super) fn pause(&mut self, now: Instant, wait: Duration) {
        self.not_before = self.not_before.max(now.checked_add(wait));
    }

    /// Whether a request would be refused now; changes nothing.
    pub(super) fn refuses(&self, now: Instant) -> bool {
        self.not_before.is_some_and(|at| now < at)
            || match self.state {
                State::Closed { .. } => false,
                State::Open { until, .. } => now < until,
                State::HalfOpen { is_probing, .. } => is_probing,
            }
    }

    /// Somebody who asked found the target well: that is as good as a request that tries, once it is time for one.
    pub(super) fn probed_well(&mut self, now: Instant) {
        if matches!(self.state, State::Open { until, .. } if now >= until) {
            self.state = closed();
        }
    }

    pub(super) fn state(&self) -> BreakerState {
        match self.state {
            State::Closed { .. } => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    fn sample(&mut self, now: Instant, failed: bool, chance: f64) {
        let State::Closed { samples, .. } = &mut self.state else { return };
        if samples.len() == SAMPLES_MAX {
            samples.pop_front();
        }
        samples.push_back((now, failed));
        let is_old = |(at, _): &(Instant, bool)| now.saturating_duration_since(*at) > self.config.window;
        while samples.front().is_some_and(is_old) {
            samples.pop_front();
        }
        let n_failed = samples.iter().filter(|(_, failed)| *failed).count();
        let is_many = samples.len() >= self.config.min_samples as usize;
        if failed && is_many && n_failed as f64 >= self.config.error_rate * samples.len() as f64 {
            self.open(now, 0, chance);
        }
    }

    fn open(&mut self, now: Instant, n_opened: u32, chance: f64) {
        let time = self.config.open_for.saturating_mul(1 << n_opened.min(20)).min(self.config.max_open);
        let spread = 1.0 - JITTER + 2.0 * JITTER * chance;
        let until = now.checked_add(time.mul_f64(spread)).unwrap_or(now);
        self.state = State::Open { until, n_opened: n_opened.saturating_add(1) };
    }
}

fn closed() -> State {
    State::Closed { n_consecutive: 0, samples: VecDeque::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn it_opens_at_the_fifth_failure_in_a_row_and_lets_one_probe_through() {
        let (mut breaker, start) = (Breaker::new(BreakerConfig::default()), Instant::now());
        for n in 0..4 {
            breaker.record(at(start, f64::from(n)), Outcome::Bad, false, 0.5);
        }
        breaker.record(at(start, 4.0), Outcome::Good, false, 0.5);
        for n in 0..5 {
            assert_eq!((breaker.state(), breaker.admit(at(start, 5.0))), (BreakerState::Closed, Admit::Go), "{n}");
            breaker.record(at(start, 5.0), Outcome::Bad, false, 0.5);
        }
        assert_eq!((breaker.state(), breaker.admit(at(start, 34.9))), (BreakerState::Open, Admit::Shut));
        assert_eq!(breaker.admit(at(start, 35.1)), Admit::Probe);
        assert_eq!(breaker.admit(at(start, 35.1)), Admit::Shut, "one at a time");
        breaker.record(at(start, 35.2), Outcome::Good, false, 0.5);
        assert_eq!(breaker.state(), BreakerState::HalfOpen, "an old request's end says nothing");
        breaker.record(at(start, 35.3), Outcome::Neutral, true, 0.5);
        assert_eq!(breaker.admit(at(start, 35.4)), Admit::Probe, "a probe that was cancelled leaves its place");
        breaker.record(at(start, 35.5), Outcome::Good, true, 0.5);
        assert_eq!((breaker.state(), breaker.admit(at(start, 35.6))), (BreakerState::Closed, Admit::Go));
    }

    #[test]
    fn each_failed_probe_doubles_the_wait_up_to_its_limit() {
        let (mut breaker, start) = (Breaker::new(BreakerConfig::default()), Instant::now());
        (0..5).for_each(|_| breaker.record(start, Outcome::Bad, false, 0.5));
        let mut now = 0.0;
        for wait in [30.0, 60.0, 120.0, 240.0, 300.0, 300.0] {
            assert_eq!(breaker.admit(at(start, now + wait - 0.1)), Admit::Shut);
            now += wait + 0.1;
            assert_eq!(breaker.admit(at(start, now)), Admit::Probe, "after {wait}");
            breaker.record(at(start, now), Outcome::Bad, true, 0.5);
        }
        let spread = |chance| {
            let mut breaker = Breaker::new(BreakerConfig::default());
            (0..5).for_each(|_| breaker.record(start, Outcome::Bad, false, chance));
            (240..=360).find(|tenth| breaker.admit(at(start, f64::from(*tenth) / 10.0)) == Admit::Probe)
        };
        assert_eq!((spread(0.0), spread(1.0)), (Some(240), Some(360)));
    }

    #[test]
    fn half_of_many_is_too_much_and_old_samples_are_forgotten() {
        let (mut breaker, start) = (Breaker::new(BreakerConfig::default()), Instant::now());
        let run = |breaker: &mut Breaker, from: f64, n: u32| {
            for i in 0..n {
                let outcome = if i % 2 == 0 { Outcome::Good } else { Outcome::Bad };
                breaker.record(at(start, from + f64::from(i) / 100.0), outcome, false, 0.5);
            }
        };
        run(&mut breaker, 0.0, 19);
        assert_eq!(breaker.state(), BreakerState::Closed);
        run(&mut breaker, 40.0, 19);
        assert_eq!(breaker.state(), BreakerState::Closed, "the first 19 are too old");
        breaker.record(at(start, 41.0), Outcome::Bad, false, 0.5);
        assert_eq!(breaker.state(), BreakerState::Open);
    }

    #[test]
    fn a_pause_that_was_asked_for_is_kept_and_is_no_failure() {
        let (mut breaker, start) = (Breaker::new(BreakerConfig::default()), Instant::now());
        breaker.pause(start, Duration::from_secs(3));
        breaker.pause(start, Duration::from_secs(1));
        assert_eq!(breaker.admit(at(start, 1.0)), Admit::Wait(Duration::from_secs(2)));
        assert_eq!((breaker.admit(at(start, 3.0)), breaker.state()), (Admit::Go, BreakerState::Closed));
    }

    /// What `refuses` says is what `admit` would do, in each state and at its very end.
    #[test]
    fn it_refuses_whom_it_would_not_let_through() {
        let (mut breaker, start) = (Breaker::new(BreakerConfig::default()), Instant::now());
        assert!(!breaker.refuses(start));
        breaker.pause(start, Duration::from_secs(3));
        assert!(breaker.refuses(at(start, 2.9)) && !breaker.refuses(at(start, 3.0)));
        assert_eq!(breaker.admit(at(start, 3.0)), Admit::Go);
        (0..5).for_each(|_| breaker.record(at(start, 4.0), Outcome::Bad, false, 0.5));
        assert!(breaker.refuses(at(start, 33.9)) && !breaker.refuses(at(start, 34.0)));
        assert_eq!(breaker.admit(at(start, 34.0)), Admit::Probe);
        assert!(breaker.refuses(at(start, 34.1)), "somebody tries");
        breaker.record(at(start, 34.2), Outcome::Neutral, true, 0.5);
        assert!(!breaker.refuses(at(start, 34.2)));
    }

    #[test]
    fn who_was_not_the_probe_tells_nothing() {
        let (mut breaker, start) = (Breaker::new(BreakerConfig::default()), Instant::now());
        (0..5).for_each(|_| breaker.record(start, Outcome::Bad, false, 0.5));
        assert_eq!(breaker.admit(at(start, 31.0)), Admit::Probe);
        for outcome in [Outcome::Good, Outcome::Bad, Outcome::Neutral] {
            breaker.record(at(start, 31.0), outcome, false, 0.5);
            assert_eq!((breaker.state(), breaker.admit(at(start, 31.0))), (BreakerState::HalfOpen, Admit::Shut));
        }
    }

    #[test]
    fn who_is_asked_and_well_is_asked_again_once_it_is_time() {
        let (mut breaker, start) = (Breaker::new(BreakerConfig::default()), Instant::now());
        (0..5).for_each(|_| breaker.record(start, Outcome::Bad, false, 0.5));
        breaker.probed_well(at(start, 29.9));
        assert_eq!(breaker.state(), BreakerState::Open);
        breaker.probed_well(at(start, 30.0));
        assert_eq!((breaker.state(), breaker.admit(at(start, 30.0))), (BreakerState::Closed, Admit::Go));
    }

    #[test]
    fn few_of_many_are_not_too_much_and_the_window_has_its_end() {
        let (mut breaker, start) = (Breaker::new(BreakerConfig::default()), Instant::now());
        (0..30).for_each(|_| breaker.record(start, Outcome::Good, false, 0.5));
        breaker.record(start, Outcome::Bad, false, 0.5);
        assert_eq!(breaker.state(), BreakerState::Closed, "one of 31");
        // Ten failures, no two in a row, of twenty: at the window's very end the first still counts, a moment later not.
        for (last, state) in [(30.0, BreakerState::Open), (30.1, BreakerState::Closed)] {
            let mut breaker = Breaker::new(BreakerConfig::default());
            for n in 0..19 {
                let outcome = if n % 2 == 0 && n < 18 { Outcome::Bad } else { Outcome::Good };
                breaker.record(at(start, f64::from(n)), outcome, false, 0.5);
            }
            breaker.record(at(start, last), Outcome::Bad, false, 0.5);
            assert_eq!(breaker.state(), state, "{last}");
        }
    }

    #[test]
    fn states_have_names() {
        let names = [BreakerState::Closed, BreakerState::Open, BreakerState::HalfOpen].map(BreakerState::as_str);
        assert_eq!(names, ["closed", "open", "half_open"]);
    }
}
