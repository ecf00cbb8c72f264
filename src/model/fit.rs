//! The memory plan: what loading a model with given settings takes, and whether this machine has it.
//!
//! # Design
//! Weights, KV cache and recurrent state are arithmetic over the header and come out as llama.cpp allocates them (the
//! tests hold figures from its own log). The compute buffers depend on its graph allocator; they are estimated from the
//! widest step of a layer, with a margin, and are called an estimate wherever they are shown.

use super::{Layer, ModelFile, Shape, ShapeError, cgroup, rollback};
use std::fmt;

/// Block of a cache element type: its name, elements and bytes of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheType {
    pub name: &'static str,
    pub block_elements: u64,
    pub block_bytes: u64,
}

impl CacheType {
    pub const F16: CacheType = CacheType { name: "f16", block_elements: 1, block_bytes: 2 };

    fn bytes(self, n_elements: u64) -> u64 {
        n_elements.div_ceil(self.block_elements).saturating_mul(self.block_bytes)
    }
}

/// The settings that decide what memory is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// KV cells of each worker.
    pub n_ctx: u64,
    pub n_slots: u64,
    pub n_workers: u64,
    pub n_ubatch: u64,
    /// Rows of one ubatch whose logits may be asked for.
    pub n_outputs: u64,
    pub cache_k: CacheType,
    pub cache_v: CacheType,
    /// One pool of cells for all slots.
    pub unified: bool,
    /// Windowed layers keep the whole context.
    pub swa_full: bool,
    pub flash_attn: bool,
    /// Most tokens that are tried ahead; 0: none.
    pub n_draft_max: u64,
}

impl Default for Ask {
    fn default() -> Self {
        Self {
            n_ctx: 8192,
            n_slots: 4,
            n_workers: 1,
            n_ubatch: 512,
            n_outputs: 512,
            cache_k: CacheType::F16,
            cache_v: CacheType::F16,
            unified: true,
            swa_full: false,
            flash_attn: true,
            n_draft_max: 0,
        }
    }
}

/// Bytes that a set of settings takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub ask: Ask,
    pub weights: u64,
    /// KV caches of all workers.
    pub kv: u64,
    /// Recurrent states of all sequences of all workers, with those that drafts are taken back to.
    pub state: u64,
    /// Compute and output buffers of all workers: an estimate.
    pub compute: u64,
}

/// The server's own two processes beyond what a plan counts.
pub const OWN_BYTES: u64 = 64 << 20;
/// llama.cpp makes contexts and caches of windowed layers whole multiples of this.
pub const CTX_STEP: u64 = 256;

/// Memory that may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub available: u64,
    /// What sets the limit: `the machine` or `the cgroup`.
    pub limited_by: &'static str,
}

/// Why a plan is refused.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    #[error(transparent)]
    Shape(#[from] ShapeError),
    #[error("{0}")]
    TooLarge(Box<TooLarge>),
}

/// A plan beyond the memory there is, with what would fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge {
    pub plan: Plan,
    pub memory: Memory,
    /// The largest context that fits with the other settings unchanged; `None`: not even the smallest does.
    pub n_ctx_fits: Option<u64>,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { weights, kv, state, compute, .. } = self.plan;
        write!(
            f,
            "the model needs {} (weights {}, context {}, compute about {}, the server {}) and {} has {} available",
            bytes(self.plan.total()),
            bytes(weights),
            bytes(kv.saturating_add(state)),
            bytes(compute),
            bytes(OWN_BYTES),
            self.memory.limited_by,
            bytes(self.memory.available),
        )?;
        match self.n_ctx_fits {
            Some(n_ctx) => write!(f, "; --ctx-size {n_ctx} would fit"),
            None if weights.saturating_add(OWN_BYTES) > self.memory.available => {
                write!(f, "; the weights alone do not fit, a smaller quantisation might")
            }
            None => write!(f, "; no context fits with these settings (--parallel and --ubatch-size lower the need)"),
        }
    }
}

impl Plan {
    pub fn new(file: &ModelFile, shape: &Shape, ask: Ask) -> Self {
        let n_ctx = ask.n_ctx.max(1).next_multiple_of(CTX_STEP);
        let workers = ask.n_workers.max(1);
        let cells = Cells::new(shape, &ask, n_ctx);
        let kv = shape.layers.iter().map(|layer| cells.bytes(layer, &ask)).fold(0, u64::saturating_add);
        let weights = file.weight_bytes();
        let n_states = 1 + rollback::rows_back(shape, weights, &ask);
        let state = shape.state_bytes().saturating_mul(ask.n_slots.max(1)).saturating_mul(n_states);
        Self {
            ask: Ask { n_ctx, ..ask },
            weights,
            kv: kv.saturating_mul(workers),
            state: state.saturating_mul(workers),
            compute: compute(shape, &ask, &cells, n_states).saturating_mul(workers),
        }
    }

    /// What each layer keeps for all workers: its cache and its states.
    pub(super) fn of_layers(&self, shape: &Shape) -> Vec<u64> {
        let cells = Cells::new(shape, &self.ask, self.ask.n_ctx);
        let workers = self.ask.n_workers.max(1);
        let n_states =
            (1 + rollback::rows_back(shape, self.weights, &self.ask)).saturating_mul(self.ask.n_slots.max(1));
        let state = |layer: &Layer| layer.state_bytes().saturating_mul(n_states);
        let kept = |layer| cells.bytes(layer, &self.ask).saturating_add(state(layer)).saturating_mul(workers);
        shape.layers.iter().map(kept).collect()
    }

    /// Everything, the server's own memory included.
    pub fn total(&self) -> u64 {
        [self.weights, self.kv, self.state, self.compute, OWN_BYTES].into_iter().fold(0, u64::saturating_add)
    }

    /// Refuses a plan larger than the memory there is, and says which context would fit.
    pub fn check(&self, file: &ModelFile, shape: &Shape, memory: Memory) -> Result<(), FitError> {
        if self.total() <= memory.available {
            return Ok(());
        }
        let fits = |steps: u64| {
            Plan::new(file, shape, Ask { n_ctx: steps * CTX_STEP, ..self.ask }).total() <= memory.available
        };
        // The need grows with the context, so the largest that fits is found by halving.
        let (mut fit, mut over) = (0, self.ask.n_ctx / CTX_STEP);
        while over.saturating_sub(fit) > 1 {
            let middle = fit + (over - fit) / 2;
            if fits(middle) {
                fit = middle;
            } else {
                over = middle;
            }
        }
        let n_ctx_fits = (fit > 0).then_some(fit * CTX_STEP);
        Err(FitError::TooLarge(Box::new(TooLarge { plan: *self, memory, n_ctx_fits })))
    }
}

/// Cells of one context's caches. Source: `llama_kv_cache_iswa`, src/llama-kv-cache-iswa.cpp.
struct Cells {
    /// Separate caches: one, or one for each slot.
    n_streams: u64,
    full: u64,
    windowed: u64,
}

impl Cells {
    fn new(shape: &Shape, ask: &Ask, n_ctx: u64) -> Self {
        let slots = ask.n_slots.max(1);
        let (n_streams, full) =
            if ask.unified { (1, n_ctx) } else { (slots, (n_ctx / slots).max(1).next_multiple_of(CTX_STEP)) };
        let windows = shape.window.saturating_mul(if ask.unified { slots } else { 1 });
        let windowed = windows.saturating_add(ask.n_ubatch).min(full).next_multiple_of(CTX_STEP);
        Self { n_streams, full, windowed: if ask.swa_full { full } else { windowed } }
    }

    fn bytes(&self, layer: &Layer, ask: &Ask) -> u64 {
        let cells = if layer.windowed { self.windowed } else { self.full };
        let cell = ask.cache_k.bytes(layer.k).saturating_add(ask.cache_v.bytes(layer.v));
        cell.saturating_mul(cells).saturating_mul(self.n_streams)
    }
}

/// Compute and output buffers of one context. The graph allocator reuses memory between steps, so the widest step
/// counts: feed-forward, attention without flash attention (all scores at once), a recurrent step, or the logits. The
/// attention masks live through all of them. Fitted to llama.cpp's log over the models in `models/` and a 0.5B one.
///
/// `n_states`: a sequence's recurrent states, which a step makes anew where they are several.
fn compute(shape: &Shape, ask: &Ask, cells: &Cells, n_states: u64) -> u64 {
    let rows = ask.n_ubatch.max(1);
    let floats = |n: u64| n.saturating_mul(4);
    let attends = shape.layers.iter().any(|layer| layer.k > 0);
    let windowed = shape.layers.iter().any(|layer| layer.windowed);
    let scores = if attends && !ask.flash_attn { cells.full.saturating_mul(shape.n_head_max) } else { 0 };
    let feed_forward = (3 * shape.n_ff_max).saturating_add(4 * shape.n_embd);
    let attention = scores.saturating_add(6 * shape.n_embd);
    let recurrent = (6 * shape.n_inner).saturating_add(2 * shape.n_embd);
    let state = shape.layers.iter().map(|layer| layer.state_bytes()).max().unwrap_or(0);
    let states = if n_states > 1 { state.saturating_mul(n_states).saturating_mul(ask.n_slots.max(1)) } else { 0 };
    let step = floats(feed_forward.max(attention).max(recurrent).saturating_mul(rows)).saturating_add(states);
    let outputs = ask.n_outputs.clamp(1, rows);
    let logits = floats(shape.n_vocab.saturating_mul(outputs).saturating_add(2 * shape.n_embd * rows));
    let mask_bytes = if ask.flash_attn { 2 } else { 4 };
    let mask_cells = if attends { cells.full + if windowed { cells.windowed } else { 0 } } else { 0 };
    let masks = mask_cells.saturating_mul(rows).saturating_mul(mask_bytes);
    let output = floats(shape.n_vocab.saturating_mul(ask.n_slots.max(1)));
    let sum = step.max(logits).saturating_add(masks).saturating_add(output);
    sum.saturating_add(sum / 10)
}

impl Memory {
    /// The least of what the kernel says is available and what the cgroups around this process leave; `None` where
    /// neither can be read (not Linux).
    pub fn now() -> Option<Memory> {
        let machine = cgroup::mem_available().map(|available| Memory { available, limited_by: "the machine" });
        let group = cgroup::headroom().map(|available| Memory { available, limited_by: "the cgroup" });
        [machine, group].into_iter().flatten().min_by_key(|memory| memory.available)
    }
}

/// A size for people: `512 B`, `1.5 KiB`, `12.0 GiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    // Tenths of a unit, so that no float is needed.
    let mut tenths = u128::from(n) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
#[path = "fit_tests.rs"]
mod tests;
