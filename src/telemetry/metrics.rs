//! Every Prometheus series, on one page.
//!
//! # Design
//! An own registry instead of the crate's global one: two servers in one process (as in tests) do not share counters.
//! Gauges are set from a [`Reading`] taken at the scrape, so that nothing has to keep them right in between.

use super::memory::Memory;
use super::otlp::OtlpSeries;
use super::readings::Scraped;
pub use super::readings::{ModelLabels, Reading};
use super::routing::Routing;
pub use super::routing::{CheckSeries, RuleSeries, UpstreamSeries};
pub use super::usage::Ended;
use super::usage::Usage;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use std::sync::Mutex;
use std::time::Duration;

/// Seconds of a whole request: from a tokenizer call to a long answer on a small device.
const REQUEST_BUCKETS: [f64; 14] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
/// Of a wait, a prefill, a whole decode.
pub(super) const PHASE_BUCKETS: [f64; 14] =
    [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
const TTFT_BUCKETS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
const COMMIT_BUCKETS: [f64; 10] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5];
const GAP_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5];

/// All series. Cheap to update from any thread.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    prompt_tokens: IntCounterVec,
    prompt_tokens_cached: IntCounterVec,
    generated_tokens: IntCounterVec,
    ttft: HistogramVec,
    gap: HistogramVec,
    queue: HistogramVec,
    prefill: HistogramVec,
    decode: HistogramVec,
    vllm_ttft: Option<HistogramVec>,
    connections: IntGaugeVec,
    usage: Usage,
    routing: Routing,
    memory: Memory,
    otlp: OtlpSeries,
    ledger_commits: Histogram,
    ledger: LedgerGauges,
    shipping: ShippingGauges,
    rejections: IntCounterVec,
    auth_failures: IntCounterVec,
    limit_rejections: IntCounterVec,
    tls_cert_expiry: IntGauge,
    reload_success: IntGauge,
    /// Gauges set at a scrape; the lock keeps one scrape's numbers together.
    scraped: Mutex<Scraped>,
    budget_remaining: GaugeVec,
}

/// How rows get to the database elsewhere; set at a scrape, and there only if there is one.
struct ShippingGauges {
    up: IntGaugeVec,
    lag_rows: IntGaugeVec,
    lag_seconds: IntGaugeVec,
    failed: IntGaugeVec,
}

/// How the ledger's writer fares; set at a scrape.
struct LedgerGauges {
    pending: IntGauge,
    failed: IntGauge,
    lost: IntGauge,
    chain_head: IntGauge,
}

impl ShippingGauges {
    fn new(r: &Registry) -> Self {
        let gauge = |name: &str, help: &str| gauges(r, name, help, &[]);
        Self {
            up: gauge("hearth_store_up", "Whether rows go to the database of --store, 0 or 1."),
            lag_rows: gauge("hearth_store_lag_rows", "Rows that have not arrived in that database."),
            lag_seconds: gauge("hearth_store_lag_seconds", "Age of the first of them."),
            failed: gauge("hearth_store_failures", "Tries to send rows that failed, since the start."),
        }
    }
}

impl LedgerGauges {
    fn new(r: &Registry) -> Self {
        Self {
            pending: value(r, "hearth_ledger_pending", "Rows and acts that wait for a commit."),
            failed: value(r, "hearth_ledger_failed", "Whether rows can't be written now, 0 or 1."),
            lost: value(r, "hearth_ledger_rows_lost", "Rows that were given up since the start."),
            chain_head: value(r, "hearth_audit_chain_head", "Number of the audit chain's last link."),
        }
    }
}

fn otlp_series(r: &Registry) -> OtlpSeries {
    let name = "hearth_otlp_spans_dropped_total";
    let dropped = counters(r, name, "Spans that no collector got, by reason.", &["reason"]);
    // There from the start, so that a first one shows as an increase.
    OtlpSeries::REASONS.iter().for_each(|reason| dropped.with_label_values(&[reason]).reset());
    let name = "hearth_otlp_spans_exported_total";
    OtlpSeries { exported: add(r, IntCounter::new(name, "Spans that the collector took.")), dropped }
}

/// The series of one model's requests, to be asked for once a request.
pub struct ModelSeries {
    prompt_tokens: IntCounter,
    prompt_tokens_cached: IntCounter,
    generated_tokens: IntCounter,
    ttft: Histogram,
    gap: Histogram,
    phases: [Histogram; 3],
    vllm_ttft: Option<Histogram>,
}

/// Further names and series that the operator asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MetricsConfig {
    pub compat: Compat,
    /// Series for each key.
    pub by_key: bool,
}

/// Whose names to have beside ours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compat {
    pub llamacpp: bool,
    pub vllm: bool,
}

/// Seconds that a model's requests took in all.
pub(super) struct PhaseSums {
    pub(super) prefill: f64,
    pub(super) decode: f64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        Self::of(MetricsConfig::default())
    }

    pub fn of(config: MetricsConfig) -> Self {
        let registry = Registry::new();
        let r = &registry;
        let build = gauges(r, "hearth_build_info", "This build; always 1.", &["version", "os", "arch"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH]).set(1);
        #[cfg(target_os = "linux")]
        r.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("process_* is registered once; twice is a bug");
        let times = |name: &str, help: &str, buckets: &[f64], label: &str| {
            add(r, HistogramVec::new(histogram(name, help, buckets), &[label]))
        };
        let phase = |name: &str, help: &str| times(name, help, &PHASE_BUCKETS, "model");
        let to_first = "From a generation's start to its first token.";
        let commit = histogram("hearth_ledger_commit_seconds", "One commit of a group of rows.", &COMMIT_BUCKETS);
        let budget = "What teams have left of their budgets, reserved money gone.";
        Self {
            requests: counters(
                r,
                "hearth_http_requests_total",
                "Requests answered, by matched route and status.",
                &["endpoint", "code"],
            ),
            request_seconds: times(
                "hearth_request_duration_seconds",
                "From a request's head to the end of its answer.",
                &REQUEST_BUCKETS,
                "endpoint",
            ),
            prompt_tokens: counter(r, "hearth_prompt_tokens_total", "Prompt tokens, cached ones included."),
            prompt_tokens_cached: counter(
                r,
                "hearth_cached_prompt_tokens_total",
                "Prompt tokens found in the KV cache.",
            ),
            generated_tokens: counter(r, "hearth_generation_tokens_total", "Tokens generated."),
            ttft: times("hearth_time_to_first_token_seconds", to_first, &TTFT_BUCKETS, "model"),
            gap: times(
                "hearth_inter_token_latency_seconds",
                "Time between two tokens of one answer.",
                &GAP_BUCKETS,
                "model",
            ),
            queue: phase("hearth_queue_time_seconds", "From acceptance to a slot."),
            prefill: phase("hearth_prefill_time_seconds", "From a slot to the first token."),
            decode: phase("hearth_decode_time_seconds", "From the first token to the last."),
            vllm_ttft: config
                .compat
                .vllm
                .then(|| times("vllm:time_to_first_token_seconds", to_first, &TTFT_BUCKETS, "model_name")),
            routing: Routing::new(r),
            memory: Memory::new(r),
            otlp: otlp_series(r),
            ledger_commits: add(r, Histogram::with_opts(commit)),
            ledger: LedgerGauges::new(r),
            shipping: ShippingGauges::new(r),
            connections: gauges(r, "hearth_connections", "Client connections, by what they do.", &["state"]),
            rejections: counters(
                r,
                "hearth_rejections_total",
                "Connections and requests refused at the door, by reason.",
                &["reason"],
            ),
            limit_rejections: counters(
                r,
                "hearth_ratelimit_rejections_total",
                "Requests refused by a limit or a budget.",
                &["scope", "kind"],
            ),
            auth_failures: counters(
                r,
                "hearth_auth_failures_total",
                "Requests without a key that opens the API.",
                &["reason"],
            ),
            tls_cert_expiry: value(
                r,
                "hearth_tls_cert_expiry_timestamp_seconds",
                "When the certificate in use ends, in unix seconds; 0: no TLS.",
            ),
            reload_success: value(
                r,
                "hearth_config_last_reload_success",
                "Whether the last reload of the settings was taken, 1 or 0.",
            ),
            budget_remaining: add(r, GaugeVec::new(Opts::new("hearth_budget_remaining_usd", budget), &["team"])),
            usage: Usage::new(r, config.by_key, config.compat.vllm),
            scraped: Mutex::new(Scraped::new(r, config.compat)),
            registry,
        }
    }

    /// One request ended. `path` is the matched route (`/v1/models/{id}`), never what the client wrote.
    pub fn request(&self, path: &str, status: u16, took: Duration) {
        self.requests.with_label_values(&[path, &status.to_string()]).inc();
        self.request_seconds.with_label_values(&[path]).observe(took.as_secs_f64());
    }

    /// The series of one model. `id` is the operator's, never what a client wrote.
    pub fn model(&self, id: &str) -> ModelSeries {
        ModelSeries {
            prompt_tokens: self.prompt_tokens.with_label_values(&[id]),
            prompt_tokens_cached: self.prompt_tokens_cached.with_label_values(&[id]),
            generated_tokens: self.generated_tokens.with_label_values(&[id]),
            ttft: self.ttft.with_label_values(&[id]),
            gap: self.gap.with_label_values(&[id]),
            phases: [&self.queue, &self.prefill, &self.decode].map(|phase| phase.with_label_values(&[id])),
            vllm_ttft: self.vllm_ttft.as_ref().map(|ttft| ttft.with_label_values(&[id])),
        }
    }

    /// A request passed the cache; `result`: hit, miss or bypass.
    pub fn cache_request(&self, result: &str) {
        self.routing.cache_request(result);
    }

    /// For the exporter of traces.
    pub fn otlp(&self) -> OtlpSeries {
        self.otlp.clone()
    }

    /// In memory, and on disk.
    pub fn cache_bytes(&self, n: usize, n_on_disk: u64) {
        self.routing.cache_bytes(n, n_on_disk);
    }

    /// The series of one upstream. `name` is the operator's.
    pub fn upstream(&self, name: &str) -> UpstreamSeries {
        self.routing.upstream(name)
    }

    /// The series of one list of a set of rules; `name` is the operator's, `direction`: in or out.
    pub fn guardrail(&self, name: &str, direction: &'static str, redacts: bool) -> RuleSeries {
        self.routing.guardrail(name, direction, redacts)
    }

    /// The series of the classifier of a set of rules.
    pub fn classifier(&self, name: &str, direction: &'static str) -> CheckSeries {
        self.routing.classifier(name, direction)
    }

    /// A request went on from one target to the next. All three are words of ours or the operator's.
    pub fn fell_back(&self, from: &str, to: &str, reason: &str) {
        self.routing.fell_back(from, to, reason);
    }

    /// The part of the memory in use, and the number of the step that was taken for it.
    pub fn memory(&self, used: f64, pressure: u8) {
        self.memory.found(used, pressure);
    }

    /// `n` of `what`, a word of ours, were given up for memory.
    pub fn shed(&self, what: &'static str, n: usize) {
        self.memory.shed(what, n);
    }

    /// A group of rows was committed in this time.
    pub fn ledger_committed(&self, seconds: f64) {
        self.ledger_commits.observe(seconds);
    }

    /// One request is over.
    pub fn ended(&self, ended: &Ended<'_>) {
        self.usage.ended(ended);
    }

    /// (jobs that wait, whether rows can't be written, rows that were given up, the audit chain's last link).
    pub fn ledger(&self, (n_pending, is_failed, n_lost, chain_head): (u64, bool, u64, u64)) {
        let int = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.ledger.pending.set(int(n_pending));
        self.ledger.failed.set(is_failed.into());
        self.ledger.lost.set(int(n_lost));
        self.ledger.chain_head.set(int(chain_head));
    }

    /// (whether the database is there, rows that have not arrived, seconds since the first, failures).
    pub fn shipping(&self, (is_up, n_rows, seconds, n_failed): (bool, u64, u64, u64)) {
        let int = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let set = |gauge: &IntGaugeVec, n: i64| gauge.with_label_values::<&str>(&[]).set(n);
        set(&self.shipping.up, is_up.into());
        set(&self.shipping.lag_rows, int(n_rows));
        set(&self.shipping.lag_seconds, int(seconds));
        set(&self.shipping.failed, int(n_failed));
    }

    pub fn connection_opened(&self) {
        self.connection("idle").inc();
    }

    pub fn connection_closed(&self) {
        self.connection("idle").dec();
    }

    /// A connection has its first request of those it has at once.
    pub fn connection_works(&self) {
        self.connection("idle").dec();
        self.connection("active").inc();
    }

    /// The last of them is answered.
    pub fn connection_rests(&self) {
        self.connection("active").dec();
        self.connection("idle").inc();
    }

    fn connection(&self, state: &'static str) -> IntGauge {
        self.connections.with_label_values(&[state])
    }

    /// `reason` is a word of ours, never what a client wrote.
    pub fn rejected(&self, reason: &'static str) {
        self.rejections.with_label_values(&[reason]).inc();
    }

    /// A limit was reached: whose, and of what; both words are ours.
    pub fn limited(&self, scope: &'static str, kind: &'static str) {
        self.limit_rejections.with_label_values(&[scope, kind]).inc();
    }

    /// (team, nano-USD) of the teams with budgets.
    pub fn budgets(&self, remaining: &[(String, i64)]) {
        self.budget_remaining.reset();
        for (team, nusd) in remaining {
            self.budget_remaining.with_label_values(&[team.as_str()]).set(*nusd as f64 / 1e9);
        }
    }

    pub fn auth_failed(&self, reason: &'static str) {
        self.auth_failures.with_label_values(&[reason]).inc();
    }

    pub fn certificate_expires(&self, unix_seconds: u64) {
        self.tls_cert_expiry.set(saturate(unix_seconds));
    }

    /// The settings in use are those that were last asked for, or a reload was refused.
    pub fn reloaded(&self, is_taken: bool) {
        self.reload_success.set(is_taken.into());
    }

    /// The page a scraper reads: `text/plain; version=0.0.4`.
    pub fn page(&self, readings: &[Reading]) -> String {
        let scraped = self.scraped.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        scraped.set(readings, |model| PhaseSums {
            prefill: self.prefill.with_label_values(&[model]).get_sample_sum(),
            decode: self.decode.with_label_values(&[model]).get_sample_sum(),
        });
        let mut page = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut page) {
            tracing::error!(%error, "metrics could not be written");
        }
        page
    }
}

impl ModelSeries {
    pub fn prompt(&self, n_tokens: u32, n_cached: u32) {
        self.prompt_tokens.inc_by(n_tokens.into());
        self.prompt_tokens_cached.inc_by(n_cached.into());
    }

    pub fn first_token(&self, after: Duration) {
        self.ttft.observe(after.as_secs_f64());
        if let Some(ttft) = &self.vllm_ttft {
            ttft.observe(after.as_secs_f64());
        }
    }

    /// Where an engine's time went: queue, prefill, decode.
    pub fn phases(&self, took: [Duration; 3]) {
        self.phases.iter().zip(took).for_each(|(phase, took)| phase.observe(took.as_secs_f64()));
    }

    /// `n_tokens` came together, `gap` after the ones before them; each counts with its share of the gap.
    pub fn tokens(&self, n_tokens: u32, gap: Option<Duration>) {
        self.generated_tokens.inc_by(n_tokens.into());
        if let (Some(gap), 1..) = (gap, n_tokens) {
            let each = gap.as_secs_f64() / f64::from(n_tokens);
            (0..n_tokens).for_each(|_| self.gap.observe(each));
        }
    }
}

pub(super) fn saturate(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Registers what was just declared. Both steps fail only on a name that is invalid or declared twice on this page.
pub(super) fn add<C: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    series: prometheus::Result<C>,
) -> C {
    let series = series.expect("a series on this page has an invalid name; this is a bug");
    registry.register(Box::new(series.clone())).expect("a series on this page is declared twice; this is a bug");
    series
}

pub(super) fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    add(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

/// By model.
pub(super) fn counter(registry: &Registry, name: &str, help: &str) -> IntCounterVec {
    counters(registry, name, help, &["model"])
}

pub(super) fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    add(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

/// By model.
pub(super) fn gauge(registry: &Registry, name: &str, help: &str) -> IntGaugeVec {
    gauges(registry, name, help, &["model"])
}

/// Of the whole server.
pub(super) fn value(registry: &Registry, name: &str, help: &str) -> IntGauge {
    add(registry, IntGauge::new(name, help))
}

pub(super) fn histogram(name: &str, help: &str, buckets: &[f64]) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(buckets.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_has_help_and_type_and_its_value() {
        let metrics = Metrics::new();
        metrics.request("/v1/chat/completions", 200, Duration::from_millis(20));
        let series = metrics.model("m");
        series.prompt(10, 4);
        series.first_token(Duration::from_millis(3));
        series.tokens(1, None);
        series.tokens(4, Some(Duration::from_millis(8)));
        let loaded = Some(ModelLabels { quant: "Q4_0".into(), n_params: 7, n_ctx: 128, sha256: "ab".into() });
        let reading = Reading { model: "m".into(), n_slots: 4, kv_used_ratio: 0.5, loaded, ..Default::default() };
        let page = metrics.page(&[reading, Reading { model: "lazy".into(), ..Default::default() }]);
        for line in [
            "# TYPE hearth_http_requests_total counter",
            "hearth_http_requests_total{code=\"200\",endpoint=\"/v1/chat/completions\"} 1",
            "hearth_prompt_tokens_total{model=\"m\"} 10",
            "hearth_cached_prompt_tokens_total{model=\"m\"} 4",
            "hearth_generation_tokens_total{model=\"m\"} 5",
            "hearth_time_to_first_token_seconds_count{model=\"m\"} 1",
            "hearth_inter_token_latency_seconds_count{model=\"m\"} 4",
            "hearth_slots{model=\"m\",state=\"idle\"} 4",
            "hearth_kv_cache_usage_ratio{model=\"m\"} 0.5",
            "hearth_model_loaded{model=\"lazy\"} 0",
            "hearth_model_info{model=\"m\",n_ctx=\"128\",params=\"7\",quant=\"Q4_0\",sha256=\"ab\"} 1",
        ] {
            assert!(page.contains(line), "{line} is missing in\n{page}");
        }
        #[cfg(target_os = "linux")]
        assert!(page.contains("process_resident_memory_bytes"));
    }
}
