//! Requests and answers of Anthropic's Messages API.

use super::sampling::Caching;
use super::{Any, Nullable};
use crate::chat::check;
use schemars::JsonSchema;
use serde_json::Value;
use std::collections::BTreeMap;

/// A conversation, and how its next turn is to be written.
#[derive(JsonSchema)]
#[schemars(extend("examples" = [
    {"max_tokens": 16, "messages": [{"role": "user", "content": "Say hello."}]},
    {
        "max_tokens": 16,
        "messages": [{"role": "user", "content": "Is it raining?"}],
        "tools": [{"name": "weather", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "tool", "name": "weather"}
    }
]))]
pub struct MessagesRequest {
    /// Most tokens of the answer, those of its thinking included.
    #[schemars(range(min = 1))]
    max_tokens: u64,
    #[schemars(flatten)]
    rest: CountTokensRest,
}

/// The same fields as `/v1/messages` takes; those about the answer have no effect.
#[derive(JsonSchema)]
#[schemars(extend("examples" = [
    {"messages": [{"role": "user", "content": "Say hello."}]},
    {
        "messages": [{"role": "user", "content": "Is it raining?"}],
        "tools": [{"name": "weather", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "tool", "name": "weather"}
    }
]))]
pub struct CountTokensRequest {
    #[schemars(range(min = 1))]
    max_tokens: Option<u64>,
    #[schemars(flatten)]
    rest: CountTokensRest,
}

#[derive(JsonSchema)]
pub struct CountTokensRest {
    /// A name that `/v1/models` lists; any `claude-…` means what is served.
    model: Option<String>,
    #[schemars(length(min = 1, max = 65_536))]
    messages: Vec<AnthropicMessage>,
    system: Option<SystemPrompt>,
    #[schemars(length(max = 1024))]
    tools: Option<Vec<AnthropicTool>>,
    tool_choice: Option<AnthropicToolChoice>,
    thinking: Option<Thinking>,
    output_config: Option<OutputConfig>,
    /// The older place of `output_config.format`.
    output_format: Option<OutputFormat>,
    #[schemars(length(max = check::STOPS_MAX))]
    stop_sequences: Option<Vec<String>>,
    /// Send the answer as server-sent events.
    stream: Option<bool>,
    cache: Option<Caching>,
    #[schemars(range(min = 0.0, max = 100.0))]
    temperature: Option<f32>,
    #[schemars(range(min = 0.0, max = 1.0))]
    top_p: Option<f32>,
    #[schemars(range(min = -1, max = check::TOP_K_MAX))]
    top_k: Option<i32>,
    /// This server calls no other: refused unless empty.
    #[schemars(extend("x-hearth" = "refused"))]
    mcp_servers: Option<Vec<Value>>,
    /// Of it `user_id` counts: whom you act for, as in OpenAI's `user`.
    metadata: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    service_tier: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    speed: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    cache_control: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    container: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    context_management: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    inference_geo: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    diagnostics: Any,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum SystemPrompt {
    Text(String),
    Blocks(Vec<SystemBlock>),
}

#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub enum SystemBlock {
    Text(TextBlock),
}

#[derive(JsonSchema)]
pub struct TextBlock {
    text: String,
    #[schemars(extend("x-hearth" = "no effect"))]
    citations: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    cache_control: Any,
}

/// Messages of one role in a row are one turn. A last one of the assistant is continued.
#[derive(JsonSchema)]
#[schemars(tag = "role", rename_all = "snake_case")]
pub enum AnthropicMessage {
    User { content: UserContent },
    Assistant(AssistantTurn),
    System { content: SystemPrompt },
}

/// What our answers carry beside the content is accepted.
#[derive(JsonSchema)]
pub struct AssistantTurn {
    content: AssistantContent,
    #[schemars(extend("x-hearth" = "no effect"))]
    id: Any,
    #[schemars(rename = "type", extend("x-hearth" = "no effect"))]
    kind: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    model: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    stop_reason: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    stop_sequence: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    usage: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    container: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    cache_control: Any,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum UserContent {
    Text(String),
    Blocks(Vec<UserBlock>),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum AssistantContent {
    Text(String),
    Blocks(Vec<AssistantBlock>),
}

#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub enum UserBlock {
    Text(TextBlock),
    /// For models with a projector.
    Image {
        source: ImageSource,
    },
    Document(Document),
    SearchResult(SearchResult),
    ToolResult {
        tool_use_id: String,
        content: Option<InnerContent>,
        is_error: Option<bool>,
    },
}

/// Blocks may stand in each other up to four deep.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum InnerContent {
    Text(String),
    Blocks(Vec<InnerBlock>),
}

#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub enum InnerBlock {
    Text(TextBlock),
    Image { source: ImageSource },
}

#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub enum ImageSource {
    Base64 {
        media_type: ImageType,
        #[schemars(extend("examples" = ["iVBORw0KGgo="]))]
        data: String,
    },
    /// A `data:` URL.
    Url {
        #[schemars(extend("examples" = ["data:image/png;base64,iVBORw0KGgo="]))]
        url: String,
    },
}

#[derive(JsonSchema)]
pub enum ImageType {
    #[schemars(rename = "image/jpeg")]
    Jpeg,
    #[schemars(rename = "image/png")]
    Png,
    #[schemars(rename = "image/gif")]
    Gif,
    #[schemars(rename = "image/webp")]
    Webp,
}

#[derive(JsonSchema)]
pub struct Document {
    source: DocumentSource,
    title: Option<String>,
    context: Option<String>,
    citations: Option<Citations>,
}

#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub enum DocumentSource {
    Text { data: String, media_type: Option<String> },
    Content { content: InnerContent },
}

#[derive(JsonSchema)]
pub struct Citations {
    /// `true` is refused: no citations are written here.
    #[schemars(extend("x-hearth" = "refused"))]
    enabled: Option<bool>,
}

#[derive(JsonSchema)]
pub struct SearchResult {
    title: String,
    source: String,
    content: Option<InnerContent>,
    citations: Option<Citations>,
}

#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub enum AssistantBlock {
    Text(TextBlock),
    Thinking {
        thinking: String,
        #[schemars(extend("x-hearth" = "no effect"))]
        signature: Option<String>,
    },
    RedactedThinking {
        #[schemars(extend("x-hearth" = "no effect"))]
        data: Any,
    },
    ToolUse {
        id: String,
        name: String,
        input: Option<BTreeMap<String, Value>>,
        #[schemars(extend("x-hearth" = "no effect"))]
        caller: Any,
    },
}

#[derive(JsonSchema)]
pub struct AnthropicTool {
    /// Only custom tools are there.
    #[schemars(rename = "type", extend("const" = "custom", "type" = "string"))]
    kind: Option<String>,
    #[schemars(length(min = 1, max = 128))]
    name: String,
    description: Option<String>,
    /// The JSON Schema of an object; every call's input fits it.
    #[schemars(extend("examples" = [{"type": "object", "properties": {"city": {"type": "string"}}}]))]
    input_schema: BTreeMap<String, Value>,
    #[schemars(extend("x-hearth" = "no effect"))]
    strict: Option<bool>,
    #[schemars(extend("x-hearth" = "no effect"))]
    cache_control: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    eager_input_streaming: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    defer_loading: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    allowed_callers: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    input_examples: Any,
}

#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub enum AnthropicToolChoice {
    Auto {
        disable_parallel_tool_use: Option<bool>,
    },
    None,
    /// At least one call, of any tool.
    Any {
        disable_parallel_tool_use: Option<bool>,
    },
    /// A call of this tool.
    Tool {
        name: String,
        disable_parallel_tool_use: Option<bool>,
    },
}

#[derive(JsonSchema)]
pub struct Thinking {
    #[schemars(rename = "type")]
    kind: ThinkingKind,
    #[schemars(range(min = 0), extend("x-hearth" = "no effect"))]
    budget_tokens: Option<i64>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum ThinkingKind {
    Enabled,
    Adaptive,
    BetweenTools,
    Disabled,
}

#[derive(JsonSchema)]
pub struct OutputConfig {
    effort: Option<AnthropicEffort>,
    format: Option<OutputFormat>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum AnthropicEffort {
    Low,
    Medium,
    High,
    Xhigh,
    Max,
}

#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub enum OutputFormat {
    JsonSchema {
        schema: super::sampling::Schema,
        #[schemars(extend("x-hearth" = "no effect"))]
        name: Any,
    },
}

#[derive(JsonSchema)]
pub struct AnthropicError {
    #[schemars(rename = "type")]
    kind: String,
    error: AnthropicErrorObject,
    request_id: String,
}

#[derive(JsonSchema)]
pub struct AnthropicErrorObject {
    /// As `invalid_request_error`.
    #[schemars(rename = "type")]
    kind: String,
    /// Names the field that is at fault.
    message: String,
}

#[derive(JsonSchema)]
pub struct MessageAnswer {
    /// `msg_…`
    id: String,
    #[schemars(rename = "type")]
    kind: String,
    role: String,
    model: String,
    content: Vec<AnswerBlock>,
    stop_reason: Nullable<StopReason>,
    stop_sequence: Nullable<String>,
    usage: AnthropicUsage,
}

#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub enum AnswerBlock {
    Thinking { thinking: String, signature: String },
    Text { text: String },
    ToolUse { id: String, name: String, input: BTreeMap<String, Value> },
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum StopReason {
    EndTurn,
    MaxTokens,
    StopSequence,
    ToolUse,
    Refusal,
}

/// `input_tokens` and `cache_read_input_tokens` together are the prompt.
#[derive(JsonSchema)]
pub struct AnthropicUsage {
    input_tokens: u32,
    cache_creation_input_tokens: u32,
    cache_read_input_tokens: u32,
    output_tokens: u32,
}

/// Anthropic's events: message_start, content_block_start, content_block_delta, content_block_stop, message_delta,
/// message_stop; ping in between, error at the end of a failed one.
#[derive(JsonSchema)]
pub struct MessageEvent {
    #[schemars(rename = "type")]
    kind: String,
    #[schemars(flatten)]
    more: BTreeMap<String, Value>,
}
