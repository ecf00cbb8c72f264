//! Messages and tools, as OpenAI's chat API and the endpoints beside it take them.

use super::Any;
use schemars::JsonSchema;
use serde_json::Value;
use std::collections::BTreeMap;

/// What the chat template gets.
#[derive(JsonSchema)]
pub struct Conversation {
    #[schemars(length(min = 1, max = 65_536))]
    messages: Vec<Message>,
    #[schemars(flatten)]
    template: Template,
}

#[derive(JsonSchema)]
pub struct Template {
    /// Functions that the model may call.
    #[schemars(length(max = 1024))]
    tools: Option<Vec<ToolDefinition>>,
    /// Which tools may or must be called.
    tool_choice: Option<ToolChoice>,
    /// Whether an answer may have more than one call.
    parallel_tool_calls: Option<bool>,
    /// The older form of `tools`; calls then come as `function_call`.
    #[schemars(length(max = 1024))]
    functions: Option<Vec<FunctionDefinition>>,
    /// The older form of `tool_choice`.
    function_call: Option<FunctionChoice>,
    /// For templates that know it; `none` switches thinking off.
    reasoning_effort: Option<Effort>,
    /// `none` leaves thinking in the content; otherwise it is apart, as `reasoning_content`.
    reasoning_format: Option<ReasoningFormat>,
    /// Variables for the template (at most 128), as `enable_thinking`.
    #[schemars(extend("maxProperties" = 128))]
    chat_template_kwargs: Option<BTreeMap<String, Value>>,
    /// Open the assistant's turn; on unless a message is continued.
    add_generation_prompt: Option<bool>,
    /// The answer goes on where the last message, an assistant's, ends.
    continue_final_message: Option<bool>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Effort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    Xhigh,
    Max,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum ReasoningFormat {
    Auto,
    Deepseek,
    None,
}

#[derive(JsonSchema)]
#[schemars(tag = "role", rename_all = "snake_case")]
pub enum Message {
    System(Instruction),
    /// The same as `system`.
    Developer(Instruction),
    User(Instruction),
    Assistant(AssistantMessage),
    Tool(ToolMessage),
    /// The older form of `tool`.
    Function {
        content: Option<Content>,
        name: Option<String>,
    },
}

#[derive(JsonSchema)]
pub struct Instruction {
    content: Content,
    /// For templates that name the speaker.
    name: Option<String>,
}

/// An earlier answer. Fields that answers have and the template doesn't read are accepted.
#[derive(JsonSchema)]
pub struct AssistantMessage {
    content: Option<Content>,
    /// Stands for the content when there is none.
    refusal: Option<String>,
    /// The thinking before the answer.
    reasoning_content: Option<String>,
    /// Another name of `reasoning_content`.
    reasoning: Option<String>,
    tool_calls: Option<Vec<ToolCall>>,
    /// The older form of `tool_calls`.
    function_call: Option<FunctionCall>,
    name: Option<String>,
    /// No sound of earlier answers is stored here.
    #[schemars(extend("x-hearth" = "refused"))]
    audio: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    annotations: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    parsed: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    cache_control: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    prompt_cache_breakpoint: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    id: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    status: Any,
}

/// What a tool returned.
#[derive(JsonSchema)]
pub struct ToolMessage {
    content: Content,
    /// The `id` of the call it answers.
    tool_call_id: Option<String>,
    name: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub enum Part {
    Text {
        text: String,
        #[schemars(extend("x-hearth" = "no effect"))]
        cache_control: Any,
        #[schemars(extend("x-hearth" = "no effect"))]
        prompt_cache_breakpoint: Any,
        #[schemars(extend("x-hearth" = "no effect"))]
        annotations: Any,
    },
    /// In an assistant's message only.
    Refusal {
        refusal: String,
    },
    /// An image, for models with a projector.
    ImageUrl {
        image_url: Link,
    },
    /// A sound, for models with a projector.
    AudioUrl {
        audio_url: SoundLink,
    },
    InputAudio {
        input_audio: Sound,
    },
    /// A text whose content becomes part of the message, an image or a sound.
    File {
        file: File,
    },
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum Link {
    Url(#[schemars(extend("examples" = ["data:image/png;base64,iVBORw0KGgo="]))] String),
    Object(ImageLink),
}

#[derive(JsonSchema)]
pub struct ImageLink {
    /// A `data:` URL with base64.
    #[schemars(extend("examples" = ["data:image/png;base64,iVBORw0KGgo="]))]
    url: String,
    #[schemars(extend("x-hearth" = "no effect"))]
    detail: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    format: Any,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum SoundLink {
    Url(#[schemars(extend("examples" = ["data:audio/wav;base64,UklGRg=="]))] String),
    Object(SoundUrl),
}

#[derive(JsonSchema)]
pub struct SoundUrl {
    /// A `data:` URL with base64.
    #[schemars(extend("examples" = ["data:audio/wav;base64,UklGRg=="]))]
    url: String,
    #[schemars(extend("x-hearth" = "no effect"))]
    detail: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    format: Any,
}

#[derive(JsonSchema)]
pub struct Sound {
    /// Base64.
    #[schemars(extend("examples" = ["UklGRg=="]))]
    data: String,
    format: Option<SoundFormat>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum SoundFormat {
    Wav,
    Mp3,
    Flac,
}

#[derive(JsonSchema)]
pub struct File {
    /// A `data:` URL, or base64 alone.
    #[schemars(extend("examples" = ["data:text/plain;base64,aGVsbG8="]))]
    file_data: String,
    filename: Option<String>,
    #[schemars(extend("x-hearth" = "no effect"))]
    format: Any,
    /// No files are stored here.
    #[schemars(extend("x-hearth" = "refused"))]
    file_id: Any,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum ToolCall {
    Function(FunctionToolCall),
    Custom(CustomToolCall),
}

#[derive(JsonSchema)]
pub struct FunctionToolCall {
    id: Option<String>,
    #[schemars(rename = "type", extend("const" = "function", "type" = "string"))]
    kind: Option<String>,
    function: FunctionCall,
    #[schemars(extend("x-hearth" = "no effect"))]
    index: Any,
}

#[derive(JsonSchema)]
pub struct CustomToolCall {
    id: Option<String>,
    #[schemars(rename = "type", extend("const" = "custom"))]
    kind: String,
    custom: CustomCall,
}

#[derive(JsonSchema)]
pub struct CustomCall {
    name: String,
    input: Option<String>,
}

#[derive(JsonSchema)]
pub struct FunctionCall {
    name: String,
    /// JSON as text, or the object itself.
    arguments: Option<Arguments>,
    #[schemars(extend("x-hearth" = "no effect"))]
    parsed_arguments: Any,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum Arguments {
    Text(String),
    Object(BTreeMap<String, Value>),
}

#[derive(JsonSchema)]
pub struct ToolDefinition {
    #[schemars(rename = "type", extend("const" = "function"))]
    kind: String,
    function: FunctionDefinition,
    #[schemars(extend("x-hearth" = "no effect"))]
    cache_control: Any,
}

#[derive(JsonSchema)]
pub struct FunctionDefinition {
    #[schemars(length(min = 1, max = 128))]
    name: String,
    description: Option<String>,
    /// The JSON Schema of an object; every call's arguments fit it.
    #[schemars(extend("examples" = [{"type": "object", "properties": {"city": {"type": "string"}}}]))]
    parameters: Option<BTreeMap<String, Value>>,
    /// Arguments always fit the schema, whether or not this is true.
    #[schemars(extend("x-hearth" = "no effect"))]
    strict: Option<bool>,
    #[schemars(extend("x-hearth" = "no effect"))]
    cache_control: Any,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum ToolChoice {
    Word(ToolChoiceWord),
    Object(ToolChoiceObject),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum ToolChoiceWord {
    None,
    Auto,
    /// At least one call, of any tool.
    Required,
}

#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub enum ToolChoiceObject {
    /// A call of this function.
    Function { function: FunctionName },
    /// Calls of some of the tools only.
    AllowedTools { allowed_tools: AllowedTools },
}

#[derive(JsonSchema)]
pub struct FunctionName {
    name: String,
}

#[derive(JsonSchema)]
pub struct AllowedTools {
    mode: AllowedMode,
    #[schemars(length(min = 1, max = 1024))]
    tools: Vec<AllowedTool>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum AllowedMode {
    Auto,
    Required,
}

#[derive(JsonSchema)]
pub struct AllowedTool {
    #[schemars(rename = "type", extend("const" = "function"))]
    kind: String,
    function: FunctionName,
    #[schemars(extend("x-hearth" = "no effect"))]
    cache_control: Any,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum FunctionChoice {
    Word(FunctionChoiceWord),
    Named(FunctionName),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum FunctionChoiceWord {
    None,
    Auto,
}
