//! Answers of OpenAI's API, and of llama-server's and vLLM's endpoints beside it.

use super::Nullable;
use schemars::JsonSchema;
use serde_json::Value;
use std::collections::BTreeMap;

/// OpenAI's error envelope; all four keys are always there.
#[derive(JsonSchema)]
pub struct OpenaiError {
    error: OpenaiErrorObject,
}

#[derive(JsonSchema)]
pub struct OpenaiErrorObject {
    /// For people. Says the rule, the limit and the value given.
    message: String,
    #[schemars(rename = "type")]
    kind: ErrorKind,
    /// The path of the field that is at fault, as `messages[0].content[1].type`; null when it is none.
    param: Nullable<String>,
    /// For programs, as `invalid_type` or `context_length_exceeded`.
    code: Nullable<String>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum ErrorKind {
    InvalidRequestError,
    ServerError,
}

#[derive(JsonSchema)]
pub struct ChatCompletion {
    /// `chatcmpl-…`
    id: String,
    object: String,
    /// Unix seconds.
    created: u64,
    /// The served id, whatever name was asked for.
    model: String,
    /// The same as long as the build, the model and its settings are.
    system_fingerprint: String,
    service_tier: Option<String>,
    choices: Vec<ChatChoice>,
    usage: Usage,
    timings: Spent,
}

/// Where the time went, as llama-server tells it. Rates are per second, and 0 for what took no time.
#[derive(JsonSchema)]
pub struct Spent {
    cache_n: u32,
    prompt_n: u32,
    prompt_ms: f64,
    prompt_per_token_ms: f64,
    prompt_per_second: f64,
    predicted_n: u32,
    predicted_ms: f64,
    predicted_per_token_ms: f64,
    predicted_per_second: f64,
    /// Tokens that were tried ahead, where any were, and those of them that the model chose.
    draft_n: Option<u32>,
    draft_n_accepted: Option<u32>,
}

/// Tokens of the prompt: all, those in the cache, and those that are computed (cached ones among them).
#[derive(JsonSchema)]
pub struct PromptProgress {
    total: u32,
    cache: u32,
    processed: u32,
    time_ms: u64,
}

#[derive(JsonSchema)]
pub struct ChatChoice {
    index: u32,
    message: ChatMessage,
    logprobs: Nullable<ChatLogprobs>,
    finish_reason: FinishReason,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum FinishReason {
    Stop,
    Length,
    ToolCalls,
    FunctionCall,
    ContentFilter,
}

#[derive(JsonSchema)]
pub struct ChatMessage {
    role: String,
    /// Null when the answer is calls alone.
    content: Nullable<String>,
    refusal: Nullable<String>,
    annotations: Vec<Value>,
    /// The thinking before the answer.
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<Call>>,
    /// Where the request offered `functions`.
    function_call: Option<CalledFunction>,
}

#[derive(JsonSchema)]
pub struct Call {
    id: String,
    #[schemars(rename = "type")]
    kind: String,
    function: CalledFunction,
}

#[derive(JsonSchema)]
pub struct CalledFunction {
    name: String,
    /// JSON that fits the function's parameters.
    arguments: String,
}

#[derive(JsonSchema)]
pub struct ChatLogprobs {
    content: Vec<TokenLogprob>,
    refusal: Nullable<Value>,
}

#[derive(JsonSchema)]
pub struct TokenLogprob {
    /// The token's text; what is no UTF-8 is replaced.
    token: String,
    logprob: f64,
    /// The token's bytes.
    bytes: Vec<u8>,
    top_logprobs: Vec<TopLogprob>,
}

#[derive(JsonSchema)]
pub struct TopLogprob {
    token: String,
    logprob: f64,
    bytes: Vec<u8>,
}

#[derive(JsonSchema)]
pub struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

#[derive(JsonSchema)]
pub struct PromptDetails {
    /// Tokens that needed no computing.
    cached_tokens: u32,
    audio_tokens: u32,
}

#[derive(JsonSchema)]
pub struct CompletionDetails {
    reasoning_tokens: u32,
    audio_tokens: u32,
    accepted_prediction_tokens: u32,
    rejected_prediction_tokens: u32,
}

/// One event of a streamed chat. `[DONE]` is the last.
#[derive(JsonSchema)]
pub struct ChatCompletionChunk {
    id: String,
    object: String,
    created: u64,
    model: String,
    system_fingerprint: String,
    /// One, or none in the chunk that has the usage.
    choices: Vec<ChatChunkChoice>,
    /// In the last chunk, with `stream_options.include_usage`.
    usage: Option<Usage>,
    /// Beside the usage, and with `timings_per_token` in every chunk that has tokens.
    timings: Option<Spent>,
    /// With `return_progress`.
    prompt_progress: Option<PromptProgress>,
}

#[derive(JsonSchema)]
pub struct ChatChunkChoice {
    index: u32,
    delta: ChatDelta,
    logprobs: Nullable<ChatLogprobs>,
    finish_reason: Nullable<FinishReason>,
}

#[derive(JsonSchema)]
pub struct ChatDelta {
    role: Option<String>,
    content: Option<String>,
    refusal: Option<String>,
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<CallDelta>>,
    function_call: Option<FunctionDelta>,
}

/// The first piece of a call has its id and name, the others have more of its arguments.
#[derive(JsonSchema)]
pub struct CallDelta {
    index: u32,
    id: Option<String>,
    #[schemars(rename = "type")]
    kind: Option<String>,
    function: FunctionDelta,
}

#[derive(JsonSchema)]
pub struct FunctionDelta {
    name: Option<String>,
    arguments: String,
}

/// A finished text. A stream's events have the same shape, with `finish_reason` null but for the last of each choice.
#[derive(JsonSchema)]
pub struct TextCompletion {
    /// `cmpl-…`
    id: String,
    object: String,
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<TextChoice>,
    /// In a stream, only with `stream_options.include_usage`.
    usage: Option<Usage>,
    /// In a stream, beside the usage, and with `timings_per_token` in every chunk that has tokens.
    timings: Option<Spent>,
    /// In a stream with `return_progress`.
    prompt_progress: Option<PromptProgress>,
}

#[derive(JsonSchema)]
pub struct TextChoice {
    index: u32,
    text: String,
    logprobs: Nullable<TextLogprobs>,
    finish_reason: Nullable<FinishReason>,
}

/// Parallel arrays, one entry a token.
#[derive(JsonSchema)]
pub struct TextLogprobs {
    tokens: Vec<String>,
    /// The first token of an echoed prompt has none.
    token_logprobs: Vec<Option<f64>>,
    top_logprobs: Vec<Option<BTreeMap<String, f64>>>,
    /// Characters before the token.
    text_offset: Vec<u64>,
}

/// llama-server's answer. In a stream, each event but the last has a piece of the content. With `response_fields`, a whole
/// answer has those alone, each under its path.
#[derive(JsonSchema)]
pub struct NativeAnswer {
    index: u32,
    content: String,
    /// Ids of the answer's tokens: in a stream, and with `return_tokens`.
    tokens: Vec<i32>,
    id_slot: i32,
    stop: bool,
    model: Option<String>,
    tokens_predicted: u32,
    tokens_evaluated: Option<u32>,
    tokens_cached: Option<u32>,
    /// Sampling and limits as they were settled, by the names requests use.
    generation_settings: Option<BTreeMap<String, Value>>,
    /// As it was sent; empty where it was no text.
    prompt: Option<String>,
    has_new_line: Option<bool>,
    truncated: Option<bool>,
    /// `eos`, `word` or `limit`.
    stop_type: Option<String>,
    stopping_word: Option<String>,
    /// With `n_probs`.
    completion_probabilities: Option<Vec<TokenProbability>>,
    timings: Option<Spent>,
    /// In a stream with `return_progress`.
    prompt_progress: Option<PromptProgress>,
}

/// One object, or an array of them for several prompts or choices.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum NativeAnswers {
    One(NativeAnswer),
    Several(Vec<NativeAnswer>),
}

#[derive(JsonSchema)]
pub struct TokenProbability {
    id: i32,
    token: String,
    bytes: Vec<u8>,
    logprob: f64,
    /// Of the likeliest tokens at this place, best first.
    top_logprobs: Option<Vec<TokenProbability>>,
}

#[derive(JsonSchema)]
pub struct InputTokens {
    input_tokens: u64,
}

#[derive(JsonSchema)]
pub struct Tokenized {
    tokens: Vec<TokenOrPiece>,
    count: u64,
    /// The context's size.
    max_model_len: u32,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum TokenOrPiece {
    Id(i32),
    /// With `with_pieces`.
    Piece {
        id: i32,
        piece: Piece,
    },
}

/// Text where it is UTF-8, else bytes.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum Piece {
    Text(String),
    Bytes(Vec<u8>),
}

/// The text under both of its names.
#[derive(JsonSchema)]
pub struct Detokenized {
    content: String,
    prompt: String,
}

#[derive(JsonSchema)]
pub struct AppliedTemplate {
    prompt: String,
}

#[derive(JsonSchema)]
pub struct ModelList {
    object: String,
    data: Vec<Model>,
    has_more: bool,
    first_id: Option<String>,
    last_id: Option<String>,
}

/// A model, or another name for one; in the superset that OpenAI's, Anthropic's, vLLM's and llama.cpp's clients read.
#[derive(JsonSchema)]
pub struct Model {
    id: String,
    object: String,
    /// Unix seconds.
    created: u64,
    owned_by: String,
    /// Tokens of the context; unknown before a model that is loaded on demand was loaded.
    max_model_len: Option<u32>,
    meta: Option<ModelMeta>,
    /// llama-server's word: loaded, loading, unloaded or failed.
    status: Option<BTreeMap<String, Value>>,
    #[schemars(rename = "type")]
    kind: String,
    display_name: String,
    created_at: String,
    lifecycle: String,
    /// The served id, where this is another name for it.
    root: Option<String>,
}

#[derive(JsonSchema)]
pub struct ModelMeta {
    n_ctx: u32,
    n_ctx_train: u32,
    n_vocab: u32,
    n_embd: u32,
    n_params: u64,
    /// Bytes of the weights.
    size: u64,
    /// Digests of the model's files, where the operator pinned them.
    sha256: Option<Vec<String>>,
}

/// An adapter with its scale where requests say nothing.
#[derive(JsonSchema)]
pub struct Adapter {
    id: u32,
    path: String,
    scale: f32,
    #[schemars(extend("x-hearth" = "no effect"))]
    task_name: Option<String>,
    #[schemars(extend("x-hearth" = "no effect"))]
    prompt_prefix: Option<String>,
}

#[derive(JsonSchema)]
pub struct Success {
    success: bool,
}

#[derive(JsonSchema)]
pub struct Health {
    /// `ok`
    status: String,
}

#[derive(JsonSchema)]
pub struct Ready {
    ready: bool,
    state: String,
}

/// A key as its holder sees it. What is null is not limited.
#[derive(JsonSchema)]
pub struct OwnKey {
    key_id: String,
    key_name: String,
    key_alias: Nullable<String>,
    models: Vec<String>,
    team_id: Nullable<String>,
    user_id: Nullable<String>,
    tags: Vec<String>,
    roles: Vec<String>,
    allowed_cidrs: Vec<String>,
    created_at: String,
    expires: Nullable<String>,
    blocked: bool,
    egress: String,
    audit: String,
    /// A named set of limits.
    limits: Nullable<String>,
    rpm_limit: Nullable<u64>,
    tpm_limit: Nullable<u64>,
    max_parallel_requests: Nullable<u32>,
    max_queued_requests: Nullable<u32>,
    max_output_tokens: Nullable<u32>,
    /// Dollars.
    max_budget: Nullable<f64>,
    soft_budget: Nullable<f64>,
    max_tokens_budget: Nullable<i64>,
    budget_duration: Nullable<String>,
    budget_calendar: Nullable<bool>,
    budget_timezone: Nullable<String>,
    /// Dollars since the key was made or last reset.
    spend: f64,
    spent_tokens: u64,
}

/// llama-server's properties.
#[derive(JsonSchema)]
pub struct Props {
    default_generation_settings: GenerationSettings,
    total_slots: u32,
    model_alias: String,
    /// The file's name, without its folder.
    model_path: String,
    chat_template: String,
    bos_token: Nullable<String>,
    eos_token: Nullable<String>,
    modalities: Modalities,
    build_info: String,
}

#[derive(JsonSchema)]
pub struct GenerationSettings {
    n_ctx: u32,
    /// Sampling where a request says nothing, by the names requests use.
    params: BTreeMap<String, Value>,
}

#[derive(JsonSchema)]
pub struct Modalities {
    vision: bool,
    audio: bool,
}

/// What a slot does now; counts only, no text.
#[derive(JsonSchema)]
pub struct Slot {
    id: u32,
    state: String,
    is_processing: bool,
    n_prompt_tokens: u32,
    n_prompt_tokens_processed: u32,
    n_decoded: u32,
    n_kept: u32,
    n_ctx: u32,
}
