//! What is told of a request once all of it is known: its line in the log, and its spans.
//!
//! **Invariant:** nothing here was written by a client but the names that it gave its request and that were checked for it
//! (`client_request_id`, the trace's id): no prompt, answer, header, path or model name of its own.

use super::spans::spans;
use super::trace::{Told, UsageSource};
use crate::telemetry::Metrics;
use crate::telemetry::context::TraceContext;
use crate::telemetry::metrics::Ended;
use crate::telemetry::otlp::Exporter;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Who is told of every request's end.
pub(super) struct Reporter {
    metrics: Arc<Metrics>,
    /// Nobody, unless the operator named a collector.
    exporter: Option<Arc<Exporter>>,
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter").finish_non_exhaustive()
    }
}

/// Routes that probes and scrapers ask all day; their good answers are worth a line only to who looks for them.
const QUIET: [&str; 6] = ["/livez", "/readyz", "/health", "/v1/health", "/metrics", "/"];

impl Reporter {
    pub(super) fn of(metrics: Arc<Metrics>, exporter: Option<Arc<Exporter>>) -> Self {
        Self { metrics, exporter }
    }

    pub(super) fn ratio(&self) -> f64 {
        self.exporter.as_ref().map_or(0.0, |exporter| exporter.ratio())
    }

    pub(super) fn report(&self, context: &TraceContext, began: (Instant, SystemTime), told: &Told) {
        log(context, told);
        count(&self.metrics, told);
        if let Some(exporter) = self.exporter.as_ref().filter(|_| context.is_sampled()) {
            let spans = spans(context, began, told);
            if !spans.is_empty() {
                exporter.send(spans);
            }
        }
    }
}

fn count(metrics: &Metrics, told: &Told) {
    let made = told.generated.as_ref();
    // An answer out of the cache was counted when it was made.
    let fresh = made.filter(|made| made.source != UsageSource::Cache);
    let unfinished = [match made.map_or("done", |made| made.outcome) {
        "cancelled" => "aborted",
        other => other,
    }];
    let finishes = match fresh {
        Some(made) if made.outcome == "done" => made.finishes.as_slice(),
        Some(_) => &unfinished,
        None => &[],
    };
    metrics.ended(&Ended {
        model: told.model.as_deref(),
        finishes,
        key: told.head.key_id.as_deref(),
        team: told.head.team_id.as_deref(),
        prompt_tokens: fresh.map_or(0, |made| made.usage.prompt_tokens.into()),
        completion_tokens: fresh.map_or(0, |made| made.usage.completion_tokens.into()),
        cost_nusd: fresh.map_or(0, |made| made.cost_nusd),
        client_left: told.end.as_ref().is_some_and(|end| end.was_cut),
    });
}

/// The one line of a request. **Bound:** a line has 32 fields at most.
macro_rules! line {
    ($level:ident, $context:expr, $told:expr) => {{
        let (head, end, made) = (&$told.head, $told.end.as_ref(), $told.generated.as_ref());
        let usage = made.map(|made| made.usage);
        let since_begin = |at: Option<Instant>| made.zip(at).map(|(made, at)| ms(at - made.began));
        tracing::$level!(
            request_id = head.request_id,
            client_request_id = head.client_request_id,
            trace_id = %$context.trace,
            key_id = head.key_id,
            team_id = head.team_id,
            method = head.method,
            endpoint = head.endpoint.as_deref().unwrap_or("other"),
            model = $told.model,
            served_by = $told.served_by,
            status = end.map(|end| end.status),
            error_code = end.and_then(|end| end.error_code.as_deref()),
            stream = end.map(|end| end.is_stream),
            client_left = end.map(|end| end.was_cut).filter(|was_cut| *was_cut),
            outcome = made.map(|made| made.outcome),
            finish = made.and_then(|made| made.finishes.first().copied()),
            n_choices = made.map(|made| made.n_choices),
            n_attempts = Some($told.attempts.len()).filter(|n| *n > 1),
            cache = $told.cache.map(|result| result.as_str()),
            prompt_tokens = usage.map(|usage| usage.prompt_tokens),
            cached_tokens = usage.map(|usage| usage.cached_tokens),
            completion_tokens = usage.map(|usage| usage.completion_tokens),
            usage_source = made.map(|made| made.source.as_str()),
            cost_nusd = made.map(|made| made.cost_nusd).filter(|cost| *cost > 0),
            queue_ms = made.and_then(|made| made.timings).map(|timings| timings.queue_us / 1000),
            ttft_ms = since_begin(made.and_then(|made| made.first_token)),
            total_ms = end.map(|end| ms(end.took)),
            "request"
        );
    }};
}

fn log(context: &TraceContext, told: &Told) {
    let is_good = told.end.as_ref().is_some_and(|end| end.status < 400);
    if is_good && told.head.endpoint.as_deref().is_some_and(|endpoint| QUIET.contains(&endpoint)) {
        line!(debug, context, told);
    } else {
        line!(info, context, told);
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
