//! Requests of llama-server's own completions.

use super::Any;
use super::openai::{Prediction, Stop, TokenId};
use super::sampling::{AdapterScale, Caching, Constraints, Sampling};
use crate::chat::check;
use schemars::JsonSchema;

/// A text to be continued, as llama-server's clients ask for it.
#[derive(JsonSchema)]
#[schemars(extend("examples" = [{"prompt": "Once upon a time", "n_predict": 16}]))]
pub struct NativeCompletionRequest {
    model: Option<String>,
    /// One prompt, or an array of prompts; an array with a number in it is one prompt.
    prompt: NativePrompts,
    /// Most tokens of the answer. -1: no limit but the context.
    #[schemars(range(min = -1))]
    n_predict: Option<i64>,
    /// Another name of `n_predict`.
    #[schemars(range(min = -1))]
    max_tokens: Option<i64>,
    #[schemars(flatten)]
    told: Told,
    /// Paths of the fields that the answer has, as `generation_settings/n_predict`; all when left out.
    #[schemars(length(max = 64))]
    response_fields: Option<Vec<String>>,
    stop: Option<Stop>,
    /// Choices to generate of each prompt.
    #[schemars(range(min = 1, max = check::CHOICES_MAX))]
    n: Option<u32>,
    prediction: Option<Prediction>,
    cache_prompt: Option<bool>,
    #[schemars(length(max = 64))]
    lora: Option<Vec<AdapterScale>>,
    cache: Option<Caching>,
    /// Probabilities are told before sampling.
    #[schemars(extend("x-hearth" = "refused"))]
    post_sampling_probs: Option<bool>,
    #[schemars(extend("x-hearth" = "refused"))]
    n_indent: Option<i64>,
    #[schemars(extend("x-hearth" = "refused"))]
    t_max_predict_ms: Option<i64>,
    #[schemars(extend("x-hearth" = "refused"))]
    t_max_prompt_ms: Option<i64>,
    #[schemars(extend("x-hearth" = "no effect"))]
    id_slot: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    slot_id: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    user: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    n_keep: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    n_discard: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    n_cache_reuse: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    backend_sampling: Any,
    /// `logit_bias` may also be an array of pairs `[token or text, bias]`, where `false` bans.
    #[schemars(flatten)]
    sampling: Sampling,
    #[schemars(flatten)]
    constraints: Constraints,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum NativePrompts {
    Text(String),
    Parts(#[schemars(length(min = 1))] Vec<NativePart>),
    Object(PromptObject),
    Prompts(#[schemars(length(min = 1, max = 2048))] Vec<NativePrompt>),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum NativePrompt {
    Text(String),
    Parts(#[schemars(length(min = 1))] Vec<NativePart>),
    Object(PromptObject),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum NativePart {
    Token(TokenId),
    Text(String),
}

#[derive(JsonSchema)]
pub struct PromptObject {
    prompt_string: String,
    /// Must be empty; media go into chats.
    #[schemars(length(max = 0))]
    multimodal_data: Option<Vec<String>>,
}

/// What is told of an answer.
#[derive(JsonSchema)]
pub struct Told {
    /// Send the answer as server-sent events.
    stream: Option<bool>,
    /// Add log-probabilities of every token and of this many of the likeliest beside it. 0: none.
    #[schemars(range(min = 0, max = check::TOP_LOGPROBS_MAX))]
    n_probs: Option<u8>,
    /// Add the ids of the tokens, which streams always have.
    return_tokens: Option<bool>,
    /// In a stream: `timings` in every chunk with tokens.
    timings_per_token: Option<bool>,
    /// In a stream: a chunk with `prompt_progress` for each part of the prompt that was computed.
    return_progress: Option<bool>,
}

/// A gap to be filled.
#[derive(JsonSchema)]
#[schemars(extend("examples" = [{"input_prefix": "fn add(", "input_suffix": ") -> i32 { a + b }", "n_predict": 16}]))]
pub struct InfillRequest {
    model: Option<String>,
    /// What stands before the gap.
    input_prefix: String,
    /// What stands after it.
    input_suffix: String,
    /// Other files that help; what doesn't fit the context is left out.
    #[schemars(length(max = 1024))]
    input_extra: Option<Vec<ExtraFile>>,
    /// The beginning of what fills the gap.
    prompt: Option<String>,
    /// Most tokens of the answer. -1: no limit but the context.
    #[schemars(range(min = -1))]
    n_predict: Option<i64>,
    /// Another name of `n_predict`.
    #[schemars(range(min = -1))]
    max_tokens: Option<i64>,
    #[schemars(flatten)]
    told: Told,
    stop: Option<Stop>,
    cache_prompt: Option<bool>,
    #[schemars(length(max = 64))]
    lora: Option<Vec<AdapterScale>>,
    cache: Option<Caching>,
    #[schemars(extend("x-hearth" = "no effect"))]
    id_slot: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    user: Any,
    #[schemars(flatten)]
    sampling: Sampling,
    #[schemars(flatten)]
    constraints: Constraints,
}

#[derive(JsonSchema)]
pub struct ExtraFile {
    text: String,
    filename: Option<String>,
    #[schemars(extend("x-hearth" = "no effect"))]
    time: Any,
}
