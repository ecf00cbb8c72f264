//! Whether an upstream is well: what its answers tell, and, where the operator wants it, what it says when it is asked.

use super::{Upstream, connect};
use http::{Request, StatusCode, header};
use std::sync::Weak;
use std::time::{Duration, Instant};

/// How an upstream is asked whether it is well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthConfig {
    /// Behind the base address; any good status is well.
    pub path: String,
    pub every: Duration,
    pub timeout: Duration,
    /// After so many bad answers in a row it is left alone until a good one.
    pub failures: u32,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            path: "/models".to_owned(),
            every: Duration::from_secs(10),
            timeout: Duration::from_secs(2),
            failures: 2,
        }
    }
}

/// What probes have told. Pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Probed {
    n_bad: u32,
    is_down: bool,
}

impl Probed {
    pub(super) fn is_down(self) -> bool {
        self.is_down
    }

    fn note(&mut self, is_well: bool, failures: u32) {
        self.n_bad = if is_well { 0 } else { self.n_bad.saturating_add(1) };
        self.is_down = self.n_bad >= failures;
    }
}

/// Mean time to the first content. What was measured long ago counts for less, so that a target that was slow once is
/// tried again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Latency {
    seconds: f64,
    at: Instant,
}

impl Latency {
    /// A mean is worth a third of itself after this time.
    const FADES: Duration = Duration::from_secs(10);

    pub(super) fn new(now: Instant) -> Self {
        Self { seconds: 0.0, at: now }
    }

    /// A slower answer counts at once, a faster one bit by bit.
    pub(super) fn note(&mut self, took: Duration, now: Instant) {
        let (new, mean) = (took.as_secs_f64(), self.seconds(now));
        self.seconds = if new > mean { new } else { mean + (new - mean) * 0.3 };
        self.at = now;
    }

    pub(super) fn seconds(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.at).as_secs_f64();
        self.seconds * (-age / Self::FADES.as_secs_f64()).exp()
    }
}

/// Asks until the upstream is dropped.
pub(super) async fn watch(upstream: Weak<Upstream>, config: HealthConfig) {
    let mut ticks = tokio::time::interval(config.every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(upstream) = upstream.upgrade() else { return };
        let asked = tokio::time::timeout(config.timeout, upstream.ask(&config.path));
        let is_well = asked.await.is_ok_and(|status| status.is_some_and(|status| status.is_success()));
        let (was_down, is_down) = {
            let mut state = upstream.lock();
            let was_down = state.probed.is_down;
            state.probed.note(is_well, config.failures);
            if is_well {
                state.breaker.probed_well(Instant::now());
            }
            (was_down, state.probed.is_down)
        };
        if was_down != is_down {
            tracing::warn!(upstream = upstream.config.name, is_well, "an upstream's health changed");
        }
    }
}

impl Upstream {
    /// The status of a GET; `None`: there is no answer.
    async fn ask(&self, path: &str) -> Option<StatusCode> {
        let mut request = Request::get(self.config.base_url.join(path)?)
            .header(header::USER_AGENT, concat!("hearth/", env!("CARGO_PKG_VERSION")))
            .body(connect::Body::default())
            .ok()?;
        if let Some((name, value)) = &self.key {
            request.headers_mut().insert(name, value.clone());
        }
        self.client.as_ref().ok()?.request(request).await.ok().map(|response| response.status())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_bad_answers_in_a_row_are_down_and_one_good_one_is_up() {
        let mut probed = Probed::default();
        let mut after = |wells: &[bool]| {
            wells.iter().for_each(|is_well| probed.note(*is_well, 2));
            probed.is_down()
        };
        assert!(!after(&[]) && !after(&[false]) && !after(&[true, false]) && after(&[false]) && after(&[false]));
        assert!(!after(&[true]));
    }

    #[test]
    fn latency_rises_at_once_sinks_slowly_and_fades() {
        let start = Instant::now();
        let mut latency = Latency::new(start);
        latency.note(Duration::from_secs(1), start);
        assert_eq!(latency.seconds(start), 1.0);
        latency.note(Duration::ZERO, start);
        assert!((latency.seconds(start) - 0.7).abs() < 1e-9);
        assert!(latency.seconds(start + Duration::from_secs(60)) < 0.01);
    }
}
