//! Requests and answers of OpenAI's Responses API.

use super::Any;
use super::conversation::{AllowedMode, Effort, ToolChoiceWord};
use super::openai::Stop;
use super::sampling::{AdapterScale, Caching, Sampling, Schema};
use crate::chat::check;
use schemars::JsonSchema;
use serde_json::Value;
use std::collections::BTreeMap;

/// Input items, and how they are to be answered.
#[derive(JsonSchema)]
#[schemars(extend("examples" = [{"input": "Say hello.", "max_output_tokens": 16}]))]
pub struct ResponseRequest {
    model: Option<String>,
    input: Input,
    /// What the system says before everything else; not carried over from an earlier response.
    instructions: Option<String>,
    /// The answer goes on from this stored response.
    previous_response_id: Option<String>,
    /// Keep the response for later requests, in memory and bounded; on when left out.
    store: Option<bool>,
    #[schemars(length(max = 1024))]
    tools: Option<Vec<ResponseTool>>,
    tool_choice: Option<ResponseToolChoice>,
    parallel_tool_calls: Option<bool>,
    #[schemars(range(min = 1), extend("x-hearth" = "no effect"))]
    max_tool_calls: Option<i64>,
    text: Option<TextConfig>,
    reasoning: Option<Reasoning>,
    /// Most tokens of the answer, those of its thinking included. -1: no limit but the context.
    #[schemars(range(min = -1))]
    max_output_tokens: Option<i64>,
    #[schemars(range(min = 0, max = check::TOP_LOGPROBS_MAX))]
    top_logprobs: Option<u8>,
    /// `message.output_text.logprobs` adds log-probabilities; others have no effect.
    include: Option<Vec<String>>,
    stop: Option<Stop>,
    stream: Option<bool>,
    /// Input that doesn't fit the context is refused.
    #[schemars(extend("x-hearth" = "no effect"))]
    truncation: Option<Truncation>,
    /// At most 16 texts, given back with the response.
    #[schemars(extend("maxProperties" = 16))]
    metadata: Option<BTreeMap<String, String>>,
    user: Option<String>,
    /// In a stream: `timings` in every event with tokens.
    timings_per_token: Option<bool>,
    /// In a stream: a `response.in_progress` with `prompt_progress` for each part of the prompt that was computed.
    return_progress: Option<bool>,
    cache_prompt: Option<bool>,
    #[schemars(length(max = 64))]
    lora: Option<Vec<AdapterScale>>,
    cache: Option<Caching>,
    /// Responses are computed while their client waits.
    #[schemars(extend("x-hearth" = "refused"))]
    background: Any,
    /// Use `previous_response_id`.
    #[schemars(extend("x-hearth" = "refused"))]
    conversation: Any,
    /// No prompt templates are kept here.
    #[schemars(extend("x-hearth" = "refused"))]
    prompt: Any,
    /// There is no moderation here.
    #[schemars(extend("x-hearth" = "refused"))]
    moderation: Any,
    /// Whom you act for: kept with the request, and limited where the server says so (`[limits.end_user]`).
    safety_identifier: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    prompt_cache_key: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    prompt_cache_retention: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    prompt_cache_options: Any,
    /// `flex`: the request may wait, in the queue of batches. Others have no effect.
    service_tier: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    stream_options: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    context_management: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    cache_control: Any,
    #[schemars(flatten)]
    sampling: Sampling,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Truncation {
    Disabled,
    Auto,
}

/// A text of the user, or items.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum Input {
    Text(String),
    Items(#[schemars(length(min = 1, max = 65_536))] Vec<InputItem>),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum InputItem {
    Typed(TypedItem),
    /// A message without its type.
    Message(InputMessage),
}

#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub enum TypedItem {
    Message(InputMessage),
    FunctionCall {
        call_id: String,
        name: String,
        namespace: Option<String>,
        arguments: Option<String>,
    },
    FunctionCallOutput(CallOutput),
    CustomToolCall {
        call_id: String,
        name: String,
        namespace: Option<String>,
        input: String,
    },
    CustomToolCallOutput(CallOutput),
    Reasoning {
        content: Option<Vec<ReasoningText>>,
        summary: Option<Vec<SummaryText>>,
        #[schemars(extend("x-hearth" = "no effect"))]
        encrypted_content: Any,
    },
    /// Stands for a stored item.
    ItemReference {
        id: String,
    },
}

#[derive(JsonSchema)]
pub struct InputMessage {
    role: InputRole,
    content: InputContent,
    #[schemars(extend("x-hearth" = "no effect"))]
    id: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    status: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    phase: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    caller: Any,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum InputRole {
    User,
    Assistant,
    System,
    Developer,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum InputContent {
    Text(String),
    Parts(Vec<InputPart>),
}

#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub enum InputPart {
    InputText {
        text: String,
    },
    OutputText {
        text: String,
    },
    /// In an assistant's message only.
    Refusal {
        refusal: String,
    },
    /// A `data:` URL, for models with a projector.
    InputImage {
        #[schemars(extend("examples" = ["data:image/png;base64,iVBORw0KGgo="]))]
        image_url: String,
    },
    InputFile {
        #[schemars(extend("examples" = ["data:text/plain;base64,aGVsbG8="]))]
        file_data: String,
        filename: Option<String>,
    },
}

#[derive(JsonSchema)]
pub struct CallOutput {
    call_id: String,
    output: InputContent,
    #[schemars(extend("x-hearth" = "no effect"))]
    name: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    namespace: Any,
}

#[derive(JsonSchema)]
pub struct ReasoningText {
    #[schemars(rename = "type", extend("enum" = ["reasoning_text", "text"]))]
    kind: String,
    text: String,
}

#[derive(JsonSchema)]
pub struct SummaryText {
    #[schemars(rename = "type", extend("enum" = ["summary_text", "text"]))]
    kind: String,
    text: String,
}

/// Tools that OpenAI runs (`web_search`, …) are accepted and never called.
#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub enum ResponseTool {
    Function(ResponseFunction),
    Custom(ResponseCustom),
    Namespace {
        #[schemars(length(min = 1, max = 128))]
        name: String,
        tools: Option<Vec<MemberTool>>,
        #[schemars(extend("x-hearth" = "no effect"))]
        description: Any,
    },
}

#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub enum MemberTool {
    Function(ResponseFunction),
    Custom(ResponseCustom),
}

#[derive(JsonSchema)]
pub struct ResponseFunction {
    #[schemars(length(min = 1, max = 128))]
    name: String,
    description: Option<String>,
    #[schemars(extend("examples" = [{"type": "object", "properties": {"city": {"type": "string"}}}]))]
    parameters: Option<BTreeMap<String, Value>>,
    #[schemars(extend("x-hearth" = "no effect"))]
    strict: Option<bool>,
    #[schemars(extend("x-hearth" = "no effect"))]
    defer_loading: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    allowed_callers: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    output_schema: Any,
    #[schemars(rename = "async", extend("x-hearth" = "no effect"))]
    is_async: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    cache_control: Any,
}

/// A tool of one text.
#[derive(JsonSchema)]
pub struct ResponseCustom {
    #[schemars(length(min = 1, max = 128))]
    name: String,
    description: Option<String>,
    format: Option<CustomFormat>,
}

#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub enum CustomFormat {
    Text,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum ResponseToolChoice {
    Word(ToolChoiceWord),
    Object(ResponseToolChoiceObject),
}

#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub enum ResponseToolChoiceObject {
    Function { name: String, namespace: Option<String> },
    Custom { name: String, namespace: Option<String> },
    AllowedTools { mode: AllowedMode, tools: Vec<AllowedResponseTool> },
}

#[derive(JsonSchema)]
pub struct AllowedResponseTool {
    #[schemars(rename = "type", extend("enum" = ["function", "custom"]))]
    kind: String,
    name: String,
    namespace: Option<String>,
}

#[derive(JsonSchema)]
pub struct TextConfig {
    format: Option<TextFormat>,
    #[schemars(extend("x-hearth" = "no effect"))]
    verbosity: Option<Verbosity>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Verbosity {
    Low,
    Medium,
    High,
}

#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub enum TextFormat {
    Text,
    JsonObject,
    JsonSchema {
        name: String,
        schema: Option<Schema>,
        description: Option<String>,
        #[schemars(extend("x-hearth" = "no effect"))]
        strict: Option<bool>,
    },
}

#[derive(JsonSchema)]
pub struct Reasoning {
    effort: Option<Effort>,
    summary: Option<Summary>,
    /// The older name of `summary`.
    generate_summary: Option<Summary>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Summary {
    Auto,
    Concise,
    Detailed,
    None,
}

/// Every key is always there.
#[derive(JsonSchema)]
pub struct ResponseObject {
    /// `resp_…`
    id: String,
    object: String,
    created_at: u64,
    model: String,
    /// Messages, reasoning and calls.
    output: Vec<BTreeMap<String, Value>>,
    parallel_tool_calls: bool,
    tool_choice: Value,
    tools: Vec<Value>,
    /// `in_progress`, `completed`, `incomplete` or `failed`.
    status: String,
    error: Option<BTreeMap<String, Value>>,
    incomplete_details: Option<BTreeMap<String, Value>>,
    instructions: Option<String>,
    metadata: BTreeMap<String, Value>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    max_output_tokens: Option<u32>,
    max_tool_calls: Option<i64>,
    previous_response_id: Option<String>,
    reasoning: BTreeMap<String, Value>,
    text: BTreeMap<String, Value>,
    truncation: String,
    store: bool,
    background: bool,
    service_tier: String,
    top_logprobs: u8,
    user: Option<String>,
    completed_at: Option<u64>,
    usage: Option<ResponseUsage>,
}

#[derive(JsonSchema)]
pub struct ResponseUsage {
    input_tokens: u32,
    input_tokens_details: BTreeMap<String, u32>,
    output_tokens: u32,
    output_tokens_details: BTreeMap<String, u32>,
    total_tokens: u32,
}

/// OpenAI's events, as `response.output_text.delta`, each with its `sequence_number`.
#[derive(JsonSchema)]
pub struct ResponseEvent {
    #[schemars(rename = "type")]
    kind: String,
    sequence_number: u64,
    #[schemars(flatten)]
    more: BTreeMap<String, Value>,
}

#[derive(JsonSchema)]
pub struct ResponseInputTokens {
    object: String,
    input_tokens: u64,
}

#[derive(JsonSchema)]
pub struct ResponseDeleted {
    id: String,
    object: String,
    deleted: bool,
}

#[derive(JsonSchema)]
pub struct ItemList {
    object: String,
    data: Vec<BTreeMap<String, Value>>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}
