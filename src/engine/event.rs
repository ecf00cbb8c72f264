//! What an engine answers.

use super::error::Failure;
use crate::chat::{Delta, Finish, Usage};
use serde::{Deserialize, Serialize};

/// One message of an engine about one request.
///
/// **Invariant:** every request gets exactly one ending event (`is_end`), and nothing after it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// Validated, rendered, tokenised, fits the context and waits for a slot, or for its turn to become vectors: from here
    /// on only the engine can fail it.
    Accepted {
        n_prompt: u32,
    },
    /// It has a slot, or its prefill went on. `n_cached` of the `n_computed` prompt tokens were already in the KV cache.
    Progress {
        n_prompt: u32,
        n_computed: u32,
        n_cached: u32,
    },
    Delta(Delta),
    /// Ending of a generation.
    Done(Done),
    /// Ending of `Tokenize`; `pieces` is empty unless asked for, else as long as `tokens`.
    Tokens {
        tokens: Vec<i32>,
        pieces: Vec<Vec<u8>>,
    },
    /// Ending of `Detokenize` and `RenderChat`.
    Text(String),
    /// Ending of `Stats`.
    Stats(Stats),
    /// Ending of `Embed` and `Rerank`.
    Vectors(Vectors),
    /// Ending of anything.
    Failed(Failure),
}

impl Event {
    pub fn is_end(&self) -> bool {
        !matches!(self, Event::Accepted { .. } | Event::Progress { .. } | Event::Delta(_))
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Done {
    pub finish: Finish,
    pub usage: Usage,
    pub timings: Timings,
}

/// One vector for each input, in their order, as the model made them (not normalised); with `Pooling::None` those of the
/// input's tokens one behind the other.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Vectors {
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of each input.
    pub n_tokens: Vec<u32>,
}

/// Where the time of one generation went, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Timings {
    /// From acceptance to a slot.
    pub queue_us: u64,
    /// From a slot to the first token.
    pub prompt_us: u64,
    /// From the first token to the last.
    pub predicted_us: u64,
}

/// What the loaded model is. Sent once per load.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Description {
    pub architecture: String,
    /// llama.cpp's one-line description (size and quantisation).
    pub desc: String,
    pub n_params: u64,
    pub size_bytes: u64,
    pub n_vocab: u32,
    pub n_embd: u32,
    pub n_layer: u32,
    pub n_ctx_train: u32,
    /// Most tokens (prompt and answer) of one request.
    pub n_ctx: u32,
    pub n_slots: u32,
    pub n_batch: u32,
    pub n_ubatch: u32,
    pub n_threads: u32,
    /// The chat template's source; `None` when the model has none.
    pub chat_template: Option<String>,
    pub supports_thinking: bool,
    pub bos_token: String,
    pub eos_token: String,
    /// Sampling suggested by the model's metadata (`general.sampling.*`).
    pub sampling: crate::chat::Sampling,
    /// Bytes of the longest token: a text of more than `n_ctx` times this can't fit.
    pub piece_bytes_max: u32,
    /// Whether the model can generate text (an embedding encoder can't).
    pub generates: bool,
    /// Whether the chat template has a place for tools.
    pub has_tools: bool,
    /// Whether the vocabulary has the tokens of fill-in-the-middle.
    pub infills: bool,
    /// How inputs are pooled into vectors; `None`: this engine makes none.
    pub pooling: Option<Pooling>,
    /// Numbers of one vector.
    pub n_embd_out: u32,
    /// Most tokens of one input that becomes a vector.
    pub n_embed_max: u32,
    /// Names of a classifier's outputs, where the model has them.
    pub labels: Vec<String>,
    /// Kinds of media that the projector takes.
    pub media: Vec<crate::chat::MediaKind>,
    /// The LoRA adapters with their default scales, by index.
    pub adapters: Vec<Adapter>,
    /// A number of the files it was loaded from, as they lay on disk: others, another number.
    pub files_mark: u64,
    /// A number of the settings that change by which arithmetic answers are computed: others, another number.
    pub arithmetic_mark: u64,
    /// The digests that its files were found to have, where the operator pinned them.
    pub sha256: Vec<String>,
    /// llama.cpp's version.
    pub build: String,
    /// The code for the CPU that runs: which variant, and what it was compiled to use.
    pub cpu: String,
}

/// How the vectors of an input's tokens become one, if they do. Source: enum llama_pooling_type, llama.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Pooling {
    /// They stay what they are: one for each token.
    None,
    Mean,
    Cls,
    Last,
    /// A classification head: scores instead of an embedding.
    Rank,
}

/// A LoRA adapter that was loaded with the model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Adapter {
    /// The file's path as the operator wrote it.
    pub path: String,
    pub scale: f32,
}

/// Counters since the engine was loaded, and its state now.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    pub slots: Vec<SlotStats>,
    /// Requests accepted and without a slot.
    pub n_queued: u32,
    /// Prompt tokens of those.
    pub n_queued_tokens: u64,
    pub kv_cells_used: u32,
    pub kv_cells_total: u32,
    pub prompt_tokens_computed: u64,
    pub prompt_tokens_cached: u64,
    pub tokens_generated: u64,
    pub n_decode_calls: u64,
    /// Sum of rows over all decode calls.
    pub n_decode_rows: u64,
    /// Rows computed besides, since a step with them takes less time than one without.
    pub n_pad_rows: u64,
    /// Times a running request gave its KV cells to an older one and was computed again later.
    pub n_parked: u64,
    /// Of the cached prompt tokens, those that came from states saved in the host's memory.
    pub prompt_tokens_loaded: u64,
    /// Times a request waited for a prefix that another one was computing.
    pub n_awaited: u64,
    /// Bytes of saved states, those of named prefixes among them.
    pub saved_bytes: u64,
    /// Tokens that a model or heads drafted and that were tried, and those that were right.
    pub n_drafted: u64,
    pub n_drafted_right: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SlotStats {
    pub slot: u32,
    pub state: String,
    pub n_prompt: u32,
    pub n_computed: u32,
    pub n_generated: u32,
    /// Tokens whose KV cells this slot keeps, also when idle.
    pub n_kept: u32,
}
