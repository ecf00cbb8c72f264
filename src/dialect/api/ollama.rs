//! Requests and answers of Ollama's native API.

use super::Any;
use super::answers::TopLogprob;
use crate::chat::check;
use schemars::JsonSchema;
use serde_json::Value;
use std::collections::BTreeMap;

/// A conversation, and how its next turn is to be written. Without messages, the model is loaded (or unloaded, with a
/// `keep_alive` of 0).
#[derive(JsonSchema)]
#[schemars(extend("examples" = [
    {"messages": [{"role": "user", "content": "Say hello."}], "stream": false, "options": {"num_predict": 16}}
]))]
pub struct OllamaChatRequest {
    #[schemars(length(max = 65_536))]
    messages: Option<Vec<OllamaMessage>>,
    #[schemars(length(max = 1024))]
    tools: Option<Vec<OllamaTool>>,
    #[schemars(flatten)]
    rest: OllamaGeneration,
}

#[derive(JsonSchema)]
pub struct OllamaGeneration {
    #[schemars(flatten)]
    model: ModelName,
    /// Send the answer as lines of JSON; on when left out.
    stream: Option<bool>,
    options: Option<Options>,
    /// `json`, or a JSON Schema the answer fits.
    format: Option<Format>,
    /// Whether, or how much, the model thinks first.
    think: Option<Think>,
    logprobs: Option<bool>,
    #[schemars(range(min = 0, max = check::TOP_LOGPROBS_MAX))]
    top_logprobs: Option<u8>,
    keep_alive: Option<KeepAlive>,
    /// A prompt that doesn't fit is refused.
    #[schemars(extend("x-hearth" = "no effect"))]
    truncate: Option<bool>,
    #[schemars(extend("x-hearth" = "no effect"))]
    shift: Option<bool>,
}

#[derive(JsonSchema)]
pub struct ModelName {
    /// A name that `/api/tags` lists.
    model: Option<String>,
    /// The older name of `model`.
    name: Option<String>,
}

/// Seconds, or a duration as `5m`. 0: unload after this request; negative: never.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum KeepAlive {
    Seconds(f64),
    Duration(#[schemars(extend("examples" = ["5m"]))] String),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum Format {
    Word(#[schemars(extend("enum" = ["json", ""]))] String),
    Schema(#[schemars(extend("examples" = [{"type": "object"}]))] BTreeMap<String, Value>),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum Think {
    Switch(bool),
    Level(#[schemars(extend("enum" = ["low", "medium", "high", "max", ""]))] String),
}

#[derive(JsonSchema)]
pub struct OllamaMessage {
    role: OllamaRole,
    content: Option<String>,
    thinking: Option<String>,
    /// Base64.
    images: Option<Vec<ImageText>>,
    tool_calls: Option<Vec<OllamaToolCall>>,
    tool_name: Option<String>,
    tool_call_id: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(transparent)]
pub struct ImageText(#[schemars(extend("examples" = ["iVBORw0KGgo="]))] String);

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum OllamaRole {
    User,
    System,
    Developer,
    Assistant,
    Tool,
}

#[derive(JsonSchema)]
pub struct OllamaToolCall {
    id: Option<String>,
    #[schemars(rename = "type", extend("x-hearth" = "no effect"))]
    kind: Any,
    function: OllamaCalled,
}

#[derive(JsonSchema)]
pub struct OllamaCalled {
    name: String,
    arguments: Option<super::conversation::Arguments>,
    #[schemars(extend("x-hearth" = "no effect"))]
    index: Any,
}

#[derive(JsonSchema)]
pub struct OllamaTool {
    #[schemars(rename = "type", extend("const" = "function", "type" = "string"))]
    kind: Option<String>,
    function: OllamaFunction,
}

#[derive(JsonSchema)]
pub struct OllamaFunction {
    #[schemars(length(min = 1, max = 128))]
    name: String,
    description: Option<String>,
    #[schemars(extend("examples" = [{"type": "object", "properties": {"city": {"type": "string"}}}]))]
    parameters: Option<BTreeMap<String, Value>>,
    #[schemars(extend("x-hearth" = "no effect"))]
    strict: Option<bool>,
}

#[derive(JsonSchema)]
pub struct Options {
    seed: Option<i64>,
    #[schemars(range(min = 0.0, max = 100.0))]
    temperature: Option<f32>,
    #[schemars(range(min = -1, max = check::TOP_K_MAX))]
    top_k: Option<i32>,
    #[schemars(range(min = 0.0, max = 1.0))]
    top_p: Option<f32>,
    #[schemars(range(min = 0.0, max = 1.0))]
    min_p: Option<f32>,
    #[schemars(range(min = 0.0, max = 1.0))]
    typical_p: Option<f32>,
    #[schemars(range(min = -1, max = check::LAST_N_MAX))]
    repeat_last_n: Option<i32>,
    #[schemars(range(min = 0.01, max = 100.0))]
    repeat_penalty: Option<f32>,
    #[schemars(range(min = -2.0, max = 2.0))]
    presence_penalty: Option<f32>,
    #[schemars(range(min = -2.0, max = 2.0))]
    frequency_penalty: Option<f32>,
    #[schemars(range(min = 0, max = 2))]
    mirostat: Option<i32>,
    #[schemars(range(min = 0.0, max = 1000.0))]
    mirostat_tau: Option<f32>,
    #[schemars(range(min = 0.0, max = 100.0))]
    mirostat_eta: Option<f32>,
    /// Most tokens of the answer. -1 and -2: no limit but the context.
    #[schemars(range(min = -2))]
    num_predict: Option<i64>,
    stop: Option<super::openai::Stop>,
    /// The operator's to choose, like all that follow.
    #[schemars(extend("x-hearth" = "no effect"))]
    num_ctx: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    num_batch: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    num_gpu: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    num_thread: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    num_gqa: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    num_keep: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    main_gpu: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    numa: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    low_vram: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    f16_kv: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    vocab_only: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    use_mmap: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    use_mlock: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    draft_num_predict: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    penalize_newline: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    tfs_z: Any,
}

/// A prompt: through the chat template, raw, or before a `suffix`. Without one, the model is loaded or unloaded.
#[derive(JsonSchema)]
#[schemars(extend("examples" = [{"prompt": "Say hello.", "stream": false, "options": {"num_predict": 16}}]))]
pub struct OllamaGenerateRequest {
    prompt: Option<String>,
    /// Fill the gap between `prompt` and this.
    suffix: Option<String>,
    system: Option<String>,
    /// Base64, for models with a projector.
    images: Option<Vec<ImageText>>,
    /// The prompt as it is, without the chat template.
    raw: Option<bool>,
    #[schemars(extend("x-hearth" = "no effect"))]
    template: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    context: Any,
    #[schemars(flatten)]
    rest: OllamaGeneration,
}

#[derive(JsonSchema)]
#[schemars(extend("examples" = [{"input": "hello"}]))]
pub struct OllamaEmbedRequest {
    input: EmbedInput,
    /// Cut inputs to the context; on when left out.
    truncate: Option<bool>,
    /// Numbers of each vector; 0: the model's own.
    #[schemars(range(min = 0, max = u32::MAX))]
    dimensions: Option<u32>,
    #[schemars(flatten)]
    model: ModelName,
    keep_alive: Option<KeepAlive>,
    #[schemars(extend("x-hearth" = "no effect"))]
    options: Option<BTreeMap<String, Value>>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum EmbedInput {
    Text(String),
    Texts(#[schemars(length(max = 2048))] Vec<String>),
}

/// The older form of `/api/embed`.
#[derive(JsonSchema)]
#[schemars(extend("examples" = [{"prompt": "hello"}]))]
pub struct OllamaEmbeddingsRequest {
    prompt: Option<String>,
    #[schemars(flatten)]
    model: ModelName,
    keep_alive: Option<KeepAlive>,
    #[schemars(extend("x-hearth" = "no effect"))]
    options: Option<BTreeMap<String, Value>>,
}

#[derive(JsonSchema)]
pub struct OllamaShowRequest {
    #[schemars(flatten)]
    model: ModelName,
    #[schemars(extend("x-hearth" = "no effect"))]
    verbose: Option<bool>,
    #[schemars(extend("x-hearth" = "no effect"))]
    system: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    options: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    template: Any,
}

/// What is served is there already; anything else is refused.
#[derive(JsonSchema)]
pub struct OllamaPullRequest {
    #[schemars(flatten)]
    model: ModelName,
    stream: Option<bool>,
    #[schemars(extend("x-hearth" = "no effect"))]
    insecure: Option<bool>,
    #[schemars(extend("x-hearth" = "no effect"))]
    username: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    password: Any,
}

#[derive(JsonSchema)]
pub struct OllamaError {
    /// Names the field that is at fault.
    error: String,
}

/// An answer, or one line of a streamed one. Durations are nanoseconds.
#[derive(JsonSchema)]
pub struct OllamaRow {
    model: String,
    created_at: String,
    /// `/api/chat`
    message: Option<OllamaAnswer>,
    /// `/api/generate`
    response: Option<String>,
    thinking: Option<String>,
    tool_calls: Option<Vec<OllamaAnswerCall>>,
    done: bool,
    /// `stop`, `length`, `load` or `unload`.
    done_reason: Option<String>,
    logprobs: Option<Vec<OllamaLogprob>>,
    total_duration: Option<u64>,
    load_duration: Option<u64>,
    prompt_eval_count: Option<u32>,
    prompt_eval_duration: Option<u64>,
    eval_count: Option<u32>,
    eval_duration: Option<u64>,
}

#[derive(JsonSchema)]
pub struct OllamaAnswer {
    role: String,
    content: String,
    thinking: Option<String>,
    tool_calls: Option<Vec<OllamaAnswerCall>>,
}

#[derive(JsonSchema)]
pub struct OllamaAnswerCall {
    id: String,
    function: OllamaAnswerFunction,
}

#[derive(JsonSchema)]
pub struct OllamaAnswerFunction {
    index: u32,
    name: String,
    arguments: BTreeMap<String, Value>,
}

#[derive(JsonSchema)]
pub struct OllamaLogprob {
    token: String,
    logprob: f64,
    bytes: Vec<u8>,
    top_logprobs: Option<Vec<TopLogprob>>,
}

#[derive(JsonSchema)]
pub struct OllamaEmbeddings {
    model: String,
    embeddings: Vec<Vec<f32>>,
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: u32,
}

#[derive(JsonSchema)]
pub struct OllamaEmbedding {
    embedding: Vec<f32>,
}

#[derive(JsonSchema)]
pub struct OllamaModels {
    models: Vec<OllamaModel>,
}

#[derive(JsonSchema)]
pub struct OllamaModel {
    name: String,
    model: String,
    modified_at: String,
    size: u64,
    digest: String,
    details: OllamaDetails,
    capabilities: Vec<String>,
    /// `/api/ps` only.
    expires_at: Option<String>,
    size_vram: Option<u64>,
    context_length: Option<u32>,
}

#[derive(JsonSchema)]
pub struct OllamaDetails {
    parent_model: String,
    format: String,
    family: String,
    families: Vec<String>,
    parameter_size: String,
    quantization_level: String,
}

#[derive(JsonSchema)]
pub struct OllamaShown {
    modelfile: String,
    parameters: String,
    template: String,
    license: String,
    details: OllamaDetails,
    model_info: BTreeMap<String, Value>,
    capabilities: Vec<String>,
    modified_at: String,
}

#[derive(JsonSchema)]
pub struct OllamaVersion {
    version: String,
}

#[derive(JsonSchema)]
pub struct OllamaStatus {
    status: String,
}
