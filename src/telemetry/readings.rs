//! Gauges of models, set at a scrape from what their engines say; and, where the operator asks for them, the names that
//! llama-server and vLLM have for the same.

use super::metrics::{Compat, PhaseSums, add, counter, gauge, saturate};
use prometheus::{CounterVec, GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry};

/// What one model's engine says about itself at the moment of a scrape.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// The model's id, which is the operator's.
    pub model: String,
    pub n_queued: u64,
    /// Prompt tokens of those.
    pub n_queued_tokens: u64,
    pub n_slots_busy: u64,
    pub n_slots: u64,
    pub kv_used_ratio: f64,
    /// Prompt tokens computed since the model was loaded, and those that came from saved prefixes instead.
    pub prompt_tokens_computed: u64,
    pub prompt_tokens_loaded: u64,
    pub tokens_generated: u64,
    pub n_decode_calls: u64,
    /// Times a request waited for a prefix that another one computed.
    pub n_prefix_waits: u64,
    /// Of saved prefixes.
    pub prefix_bytes: u64,
    pub n_restarts: u64,
    /// How long its last load took; 0: it was not loaded yet.
    pub load_seconds: f64,
    /// `None`: it is not loaded.
    pub loaded: Option<ModelLabels>,
}

/// Further labels of `hearth_model_info`; from the operator and the model file only.
#[derive(Debug, Clone)]
pub struct ModelLabels {
    pub quant: String,
    pub n_params: u64,
    pub n_ctx: u32,
    /// Digests of its files, where the operator pinned them; else empty.
    pub sha256: String,
}

pub(super) struct Scraped {
    running: IntGaugeVec,
    waiting: IntGaugeVec,
    queue_tokens: IntGaugeVec,
    slots: IntGaugeVec,
    kv_used: GaugeVec,
    prompt_tokens_computed: IntGaugeVec,
    prompt_tokens_loaded: IntGaugeVec,
    prefix_waits: IntGaugeVec,
    prefix_bytes: IntGaugeVec,
    restarts: IntCounterVec,
    up: IntGaugeVec,
    loaded: IntGaugeVec,
    load_seconds: GaugeVec,
    info: IntGaugeVec,
    llamacpp: Option<LlamaCpp>,
    vllm: Option<Vllm>,
}

/// llama-server's names. Source: `GET /metrics` in tools/server/README.md.
struct LlamaCpp {
    prompt_tokens: IntCounterVec,
    tokens_predicted: IntCounterVec,
    prompt_rate: GaugeVec,
    predicted_rate: GaugeVec,
    prompt_seconds: CounterVec,
    predicted_seconds: CounterVec,
    processing: IntGaugeVec,
    deferred: IntGaugeVec,
    n_decode: IntCounterVec,
}

/// vLLM's. Source: docs/design/metrics.md of vLLM.
struct Vllm {
    running: IntGaugeVec,
    waiting: IntGaugeVec,
    kv_used: GaugeVec,
}

fn decimal(r: &Registry, name: &str, help: &str, label: &str) -> GaugeVec {
    add(r, GaugeVec::new(Opts::new(name, help), &[label]))
}

impl Scraped {
    pub(super) fn new(r: &Registry, compat: Compat) -> Self {
        let info = Opts::new("hearth_model_info", "A loaded model; always 1.");
        Self {
            running: gauge(r, "hearth_requests_running", "Generations that have a slot."),
            waiting: gauge(r, "hearth_requests_waiting", "Generations accepted that wait for a slot."),
            queue_tokens: gauge(r, "hearth_queue_tokens", "Prompt tokens of those that wait."),
            slots: add(r, IntGaugeVec::new(Opts::new("hearth_slots", "Slots by what they do."), &["model", "state"])),
            kv_used: decimal(r, "hearth_kv_cache_usage_ratio", "Part of the KV cells in use, 0 to 1.", "model"),
            prompt_tokens_computed: gauge(
                r,
                "hearth_engine_prompt_tokens_computed",
                "Prompt tokens computed since the model was loaded.",
            ),
            prompt_tokens_loaded: gauge(
                r,
                "hearth_prefix_tokens_loaded",
                "Prompt tokens taken from prefixes saved in the host's memory since the model was loaded.",
            ),
            prefix_waits: gauge(
                r,
                "hearth_prefix_waits",
                "Times a request waited for a prefix that another one was computing, since the model was loaded.",
            ),
            prefix_bytes: gauge(r, "hearth_prefix_store_bytes", "Memory that saved and named prefixes take."),
            restarts: counter(r, "hearth_engine_restarts_total", "Times the engine died and was started again."),
            up: gauge(r, "hearth_engine_up", "Whether the engine answers, 0 or 1."),
            loaded: gauge(r, "hearth_model_loaded", "Whether the model is loaded, 0 or 1."),
            load_seconds: decimal(r, "hearth_model_load_seconds", "How long the model's last load took.", "model"),
            info: add(r, IntGaugeVec::new(info, &["model", "quant", "params", "n_ctx", "sha256"])),
            llamacpp: compat.llamacpp.then(|| LlamaCpp::new(r)),
            vllm: compat.vllm.then(|| Vllm::new(r)),
        }
    }

    pub(super) fn set(&self, readings: &[Reading], sums: impl Fn(&str) -> PhaseSums) {
        self.info.reset();
        for reading in readings {
            self.set_one(reading);
            if let Some(llamacpp) = &self.llamacpp {
                llamacpp.set(reading, &sums(&reading.model));
            }
            if let Some(vllm) = &self.vllm {
                vllm.set(reading);
            }
        }
    }

    fn set_one(&self, reading: &Reading) {
        let id = reading.model.as_str();
        let set = |gauge: &IntGaugeVec, n: u64| gauge.with_label_values(&[id]).set(saturate(n));
        set(&self.running, reading.n_slots_busy);
        set(&self.waiting, reading.n_queued);
        set(&self.queue_tokens, reading.n_queued_tokens);
        set(&self.prompt_tokens_computed, reading.prompt_tokens_computed);
        set(&self.prompt_tokens_loaded, reading.prompt_tokens_loaded);
        set(&self.prefix_waits, reading.n_prefix_waits);
        set(&self.prefix_bytes, reading.prefix_bytes);
        set(&self.up, reading.loaded.is_some().into());
        set(&self.loaded, reading.loaded.is_some().into());
        self.slots.with_label_values(&[id, "busy"]).set(saturate(reading.n_slots_busy));
        self.slots.with_label_values(&[id, "idle"]).set(saturate(reading.n_slots.saturating_sub(reading.n_slots_busy)));
        self.kv_used.with_label_values(&[id]).set(reading.kv_used_ratio);
        self.load_seconds.with_label_values(&[id]).set(reading.load_seconds);
        put(&self.restarts, id, reading.n_restarts);
        if let Some(labels) = &reading.loaded {
            let (n_params, n_ctx) = (labels.n_params.to_string(), labels.n_ctx.to_string());
            self.info.with_label_values(&[id, &labels.quant, &n_params, &n_ctx, &labels.sha256]).set(1);
        }
    }
}

/// A counter that is counted elsewhere.
fn put(counter: &IntCounterVec, label: &str, n: u64) {
    let counter = counter.with_label_values(&[label]);
    counter.reset();
    counter.inc_by(n);
}

impl LlamaCpp {
    fn new(r: &Registry) -> Self {
        let seconds = |name: &str, help: &str| add(r, CounterVec::new(Opts::new(name, help), &["model"]));
        Self {
            prompt_tokens: counter(r, "llamacpp:prompt_tokens_total", "Prompt tokens computed."),
            tokens_predicted: counter(r, "llamacpp:tokens_predicted_total", "Tokens generated."),
            prompt_rate: decimal(r, "llamacpp:prompt_tokens_seconds", "Prompt tokens a second of prefill.", "model"),
            predicted_rate: decimal(r, "llamacpp:predicted_tokens_seconds", "Tokens a second of decoding.", "model"),
            prompt_seconds: seconds("llamacpp:prompt_seconds_total", "Seconds of prefill."),
            predicted_seconds: seconds("llamacpp:tokens_predicted_seconds_total", "Seconds of decoding."),
            processing: gauge(r, "llamacpp:requests_processing", "Generations that have a slot."),
            deferred: gauge(r, "llamacpp:requests_deferred", "Generations that wait for a slot."),
            n_decode: counter(r, "llamacpp:n_decode_total", "Calls of llama_decode."),
        }
    }

    fn set(&self, reading: &Reading, sums: &PhaseSums) {
        let id = reading.model.as_str();
        put(&self.prompt_tokens, id, reading.prompt_tokens_computed);
        put(&self.tokens_predicted, id, reading.tokens_generated);
        put(&self.n_decode, id, reading.n_decode_calls);
        let rate = |n: u64, seconds: f64| if seconds > 0.0 { n as f64 / seconds } else { 0.0 };
        self.prompt_rate.with_label_values(&[id]).set(rate(reading.prompt_tokens_computed, sums.prefill));
        self.predicted_rate.with_label_values(&[id]).set(rate(reading.tokens_generated, sums.decode));
        for (counter, seconds) in [(&self.prompt_seconds, sums.prefill), (&self.predicted_seconds, sums.decode)] {
            let counter = counter.with_label_values(&[id]);
            counter.reset();
            counter.inc_by(seconds);
        }
        self.processing.with_label_values(&[id]).set(saturate(reading.n_slots_busy));
        self.deferred.with_label_values(&[id]).set(saturate(reading.n_queued));
    }
}

impl Vllm {
    fn new(r: &Registry) -> Self {
        let whole = |name: &str, help: &str| add(r, IntGaugeVec::new(Opts::new(name, help), &["model_name"]));
        Self {
            running: whole("vllm:num_requests_running", "Generations that have a slot."),
            waiting: whole("vllm:num_requests_waiting", "Generations that wait for a slot."),
            kv_used: decimal(r, "vllm:kv_cache_usage_perc", "Part of the KV cells in use, 0 to 1.", "model_name"),
        }
    }

    fn set(&self, reading: &Reading) {
        let id = [reading.model.as_str()];
        self.running.with_label_values(&id).set(saturate(reading.n_slots_busy));
        self.waiting.with_label_values(&id).set(saturate(reading.n_queued));
        self.kv_used.with_label_values(&id).set(reading.kv_used_ratio);
    }
}
