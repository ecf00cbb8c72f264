//! How often, and after which pause, an upstream is asked again. Pure.

use std::time::{Duration, Instant};

#[derive(Debug, Clone, PartialEq)]
pub struct RetryConfig {
    /// Attempts at one target, the first among them.
    pub attempts: u32,
    /// Longest first pause; the k-th is `base` × `factor`^k at most, and never more than `max`.
    pub base: Duration,
    pub factor: f64,
    pub max: Duration,
    /// Retries of all requests together, as a part of the requests in the last ten seconds, in percent.
    pub budget_percent: u32,
    /// Retries a second that are always allowed.
    pub min_per_sec: u32,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            attempts: 3,
            base: Duration::from_millis(500),
            factor: 2.0,
            max: Duration::from_secs(8),
            budget_percent: 20,
            min_per_sec: 1,
        }
    }
}

impl RetryConfig {
    /// The pause before retry `n` (from 0). Full jitter: anything up to the limit, so that clients that failed together
    /// don't come back together. `chance`: 0..1.
    pub(super) fn pause(&self, n: u32, chance: f64) -> Duration {
        let most = self.base.as_secs_f64() * self.factor.powi(n.min(64).cast_signed());
        Duration::from_secs_f64(most.min(self.max.as_secs_f64()) * chance)
    }
}

const WINDOW_S: usize = 10;

/// Requests and retries of the last ten seconds. A retry is allowed while there are fewer of them than the greater of the
/// two shares: their sum would let a dead target get more than its percent even under load.
#[derive(Debug)]
pub(super) struct RetryBudget {
    percent: u32,
    min_per_sec: u32,
    started: Instant,
    /// By second: (second, requests, retries).
    buckets: [(u64, u32, u32); WINDOW_S],
}

impl RetryBudget {
    pub(super) fn new(config: &RetryConfig, now: Instant) -> Self {
        let (percent, min_per_sec) = (config.budget_percent, config.min_per_sec);
        Self { percent, min_per_sec, started: now, buckets: [(0, 0, 0); WINDOW_S] }
    }

    pub(super) fn request(&mut self, now: Instant) {
        self.bucket(now).1 += 1;
    }

    /// Takes one retry, if there is one left.
    pub(super) fn try_retry(&mut self, now: Instant) -> bool {
        let second = self.second(now);
        let recent = self.buckets.iter().filter(|(at, ..)| at + WINDOW_S as u64 > second);
        let (n_requests, n_retries) =
            recent.fold((0u64, 0u64), |(a, b), (_, x, y)| (a + u64::from(*x), b + u64::from(*y)));
        let share = n_requests * u64::from(self.percent) / 100;
        let least = u64::from(self.min_per_sec) * WINDOW_S as u64;
        let is_allowed = n_retries < share.max(least);
        if is_allowed {
            self.bucket(now).2 += 1;
        }
        is_allowed
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_secs()
    }

    fn bucket(&mut self, now: Instant) -> &mut (u64, u32, u32) {
        let second = self.second(now);
        let bucket = &mut self.buckets[(second % WINDOW_S as u64) as usize];
        if bucket.0 != second {
            *bucket = (second, 0, 0);
        }
        bucket
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_of_the_requests_may_be_retried_and_a_few_always() {
        let start = Instant::now();
        let mut budget = RetryBudget::new(&RetryConfig::default(), start);
        let retries = |budget: &mut RetryBudget, now| (0..1000).filter(|_| budget.try_retry(now)).count();
        assert_eq!(retries(&mut budget, start), 10);
        for n in 0..1000 {
            budget.request(start + Duration::from_millis(n));
        }
        assert_eq!(retries(&mut budget, start + Duration::from_secs(1)), 190);
        assert_eq!(retries(&mut budget, start + Duration::from_secs(9)), 0);
        assert_eq!(retries(&mut budget, start + Duration::from_secs(30)), 10, "a new window");
        let none = RetryConfig { budget_percent: 0, min_per_sec: 0, ..Default::default() };
        assert_eq!(retries(&mut RetryBudget::new(&none, start), start), 0);
    }

    #[test]
    fn pauses_grow_to_their_limit() {
        let config = RetryConfig::default();
        let most: Vec<u128> = (0..7).map(|n| config.pause(n, 1.0).as_millis()).collect();
        assert_eq!(most, [500, 1000, 2000, 4000, 8000, 8000, 8000]);
        assert_eq!(config.pause(3, 0.0), Duration::ZERO);
        assert_eq!(config.pause(u32::MAX, 0.5), Duration::from_secs(4));
    }
}
