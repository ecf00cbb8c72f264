//! Series of the cache, of upstreams and of guardrails; part of the page that [`Metrics`](super::Metrics) writes.

use super::metrics::{PHASE_BUCKETS, add, histogram};
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use std::time::Duration;

pub(super) struct Routing {
    cache_requests: IntCounterVec,
    cache_bytes: IntGauge,
    cache_disk_bytes: IntGauge,
    upstream_requests: IntCounterVec,
    breaker: IntGaugeVec,
    retries: IntCounterVec,
    fallbacks: IntCounterVec,
    guardrails: IntCounterVec,
    classifier_failures: IntCounterVec,
    classifier_seconds: HistogramVec,
}

/// The series of one classifier of a set of rules.
#[derive(Debug)]
pub struct CheckSeries {
    denied: IntCounter,
    refused: IntCounter,
    passed: IntCounter,
    seconds: Histogram,
}

/// The series of one list of an operator's rules.
#[derive(Debug)]
pub struct RuleSeries {
    redacted: Option<IntCounter>,
    denied: IntCounter,
}

/// The series of one upstream.
pub struct UpstreamSeries {
    target: String,
    requests: IntCounterVec,
    breaker: IntGauge,
    retries: IntCounter,
}

impl Routing {
    pub(super) fn new(r: &Registry) -> Self {
        let counters =
            |name: &str, help: &str, labels: &[&str]| add(r, IntCounterVec::new(Opts::new(name, help), labels));
        Self {
            cache_requests: counters("hearth_cache_requests_total", "Requests by what the cache did.", &["result"]),
            cache_bytes: add(r, IntGauge::new("hearth_cache_bytes", "Bytes of all cached answers.")),
            cache_disk_bytes: add(
                r,
                IntGauge::new("hearth_cache_disk_bytes", "Bytes of all cached answers that are kept on disk."),
            ),
            upstream_requests: counters(
                "hearth_upstream_requests_total",
                "Attempts at upstreams, by how they ended.",
                &["target", "class"],
            ),
            breaker: add(
                r,
                IntGaugeVec::new(
                    Opts::new("hearth_upstream_breaker_state", "0 closed, 1 half open, 2 open."),
                    &["target"],
                ),
            ),
            retries: counters("hearth_retries_total", "Attempts after the first at one upstream.", &["target"]),
            fallbacks: counters(
                "hearth_fallbacks_total",
                "Requests that went on to another target.",
                &["from", "to", "reason"],
            ),
            guardrails: counters(
                "hearth_guardrail_matches_total",
                "Matches of an operator's rules: taken out, or what they were in was refused or ended.",
                &["guardrail", "action", "direction"],
            ),
            classifier_seconds: add(
                r,
                HistogramVec::new(
                    histogram(
                        "hearth_guardrail_classifier_seconds",
                        "What a guardrail's classifier took for a request or an answer.",
                        &PHASE_BUCKETS,
                    ),
                    &["guardrail", "direction"],
                ),
            ),
            classifier_failures: counters(
                "hearth_guardrail_classifier_failures_total",
                "Requests and answers that a guardrail's classifier could not look at, and what became of them.",
                &["guardrail", "action", "direction"],
            ),
        }
    }

    pub(super) fn guardrail(&self, name: &str, direction: &'static str, redacts: bool) -> RuleSeries {
        let of = |action: &str| self.guardrails.with_label_values(&[name, action, direction]);
        RuleSeries { redacted: redacts.then(|| of("redact")), denied: of("deny") }
    }

    pub(super) fn classifier(&self, name: &str, direction: &'static str) -> CheckSeries {
        let failed = |action: &str| self.classifier_failures.with_label_values(&[name, action, direction]);
        CheckSeries {
            denied: self.guardrails.with_label_values(&[name, "classify", direction]),
            seconds: self.classifier_seconds.with_label_values(&[name, direction]),
            refused: failed("refuse"),
            passed: failed("pass"),
        }
    }

    pub(super) fn cache_request(&self, result: &str) {
        self.cache_requests.with_label_values(&[result]).inc();
    }

    pub(super) fn cache_bytes(&self, n: usize, n_on_disk: u64) {
        self.cache_bytes.set(i64::try_from(n).unwrap_or(i64::MAX));
        self.cache_disk_bytes.set(i64::try_from(n_on_disk).unwrap_or(i64::MAX));
    }

    pub(super) fn upstream(&self, name: &str) -> UpstreamSeries {
        UpstreamSeries {
            target: name.to_owned(),
            requests: self.upstream_requests.clone(),
            breaker: self.breaker.with_label_values(&[name]),
            retries: self.retries.with_label_values(&[name]),
        }
    }

    pub(super) fn fell_back(&self, from: &str, to: &str, reason: &str) {
        self.fallbacks.with_label_values(&[from, to, reason]).inc();
    }
}

impl RuleSeries {
    pub fn redacted(&self) {
        if let Some(redacted) = &self.redacted {
            redacted.inc();
        }
    }

    /// Also by a list that redacts: where what matched can't be rewritten.
    pub fn denied(&self) {
        self.denied.inc();
    }
}

impl CheckSeries {
    pub fn denied(&self) {
        self.denied.inc();
    }

    pub fn took(&self, time: Duration) {
        self.seconds.observe(time.as_secs_f64());
    }

    /// It could not answer. `passes`: what it did not see went on all the same.
    pub fn failed(&self, passes: bool) {
        if passes { self.passed.inc() } else { self.refused.inc() }
    }
}

impl UpstreamSeries {
    pub fn ended(&self, class: &str) {
        self.requests.with_label_values(&[self.target.as_str(), class]).inc();
    }

    pub fn retried(&self) {
        self.retries.inc();
    }

    /// 0 closed, 1 half open, 2 open.
    pub fn breaker(&self, state: i64) {
        self.breaker.set(state);
    }
}
