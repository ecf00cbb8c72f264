//! The conversation itself, as plain data: what a client asked for once its dialect is stripped off.
//!
//! **Invariant:** nothing here knows JSON shapes of a client, HTTP, tokens or pointers. Everything is owned and
//! serialisable, since it travels to the engine, which may be another process.
//!
//! # Design
//! `ChatRequest` and `CompletionRequest` are what every dialect produces and what the gateway takes. [`Sampling`] holds
//! only what the client said (`None` = not said); the gateway lays it over the operator's and the model's defaults, so
//! that "not given" never turns into a silent constant half-way. Tool schemas and template arguments stay JSON *text*:
//! the engine hands them to the model's template unread, and a binary frame cannot carry a self-describing value.

pub mod check;
mod sampling;
mod vectors;

pub use sampling::{Mirostat, SamplerKind, Sampling, SamplingParams};
pub use vectors::{EmbedAsk, Norm, RerankAsk, ScoreAsk};

use serde::{Deserialize, Serialize};

/// Who speaks. `developer` is folded into `System` and `function` into `Tool` by the dialects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    System,
    User,
    Assistant,
    Tool,
}

impl Role {
    /// The name that chat templates know.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// One turn. `content` is the text with its parts joined (no separator), `None` where the client sent `null` or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    pub role: Role,
    pub content: Option<String>,
    /// Images and sound between the parts of the text, in the order of their place.
    pub media: Vec<Media>,
    /// What the model thought in an earlier turn; given to templates that have a place for it.
    pub reasoning: Option<String>,
    pub name: Option<String>,
    pub tool_calls: Vec<ToolCall>,
    pub tool_call_id: Option<String>,
}

impl Message {
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: Some(content.into()),
            media: Vec::new(),
            reasoning: None,
            name: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
        }
    }
}

/// An image or a sound of a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Media {
    pub kind: MediaKind,
    /// Byte of the message's `content` before which it stands.
    pub offset: u32,
    /// The file as the client sent it (PNG, JPEG, WAV, …), decoded by the engine; the address of a `RemoteImage`.
    pub data: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MediaKind {
    Image,
    Audio,
    /// An image to be fetched from where the operator allows it. The gateway makes an `Image` of it, or refuses it: no
    /// engine sees one.
    RemoteImage,
}

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tool {
    pub name: String,
    pub description: Option<String>,
    /// JSON Schema of its arguments, as JSON text of an object (`{}` where the client gave none).
    pub parameters: String,
    /// Arguments validate whatever the format of calls is, or the request is refused; else what the format lets be asked.
    pub strict: bool,
}

/// Whether the model calls tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum ToolChoice {
    /// It may not.
    None,
    /// As it likes.
    #[default]
    Auto,
    /// It must: the answer is at least one call, from its first token on (after thinking).
    Required,
}

/// What the answer's text must be. Texts are checked and compiled by the engine, which refuses what it can't honour.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON Schema, as JSON text.
    JsonSchema(String),
    /// GBNF, llama.cpp's grammar language.
    Gbnf(String),
    Regex(String),
    /// Lark, as llguidance reads it.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
}

/// A call the model made. `arguments` is JSON text as the model wrote it (`{}` when empty).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    pub arguments: String,
}

/// How thinking is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum ReasoningFormat {
    /// Thinking goes to `reasoning`, its tags to neither field.
    #[default]
    Separate,
    /// Thinking and its tags stay in the content.
    Inline,
}

/// What is handed to the model's chat template.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChatPrompt {
    pub messages: Vec<Message>,
    /// Extra template variables: name, JSON text of the value.
    pub template_kwargs: Vec<(String, String)>,
    /// `None`: the template's own default.
    pub enable_thinking: Option<bool>,
    /// One of the contract's words (`none` … `max`); also given to the template as `reasoning_effort`.
    pub reasoning_effort: Option<String>,
    pub reasoning_format: ReasoningFormat,
    pub add_generation_prompt: bool,
    /// The last message is the assistant's and is continued instead of answered.
    pub continue_final_message: bool,
    pub tools: Vec<Tool>,
    pub tool_choice: ToolChoice,
    /// Names of the tools that may be called now, where not all may; the template still shows all, so that the prompt
    /// (and its cached prefix) stays the same.
    pub callable: Option<Vec<String>>,
    /// More than one call in an answer.
    pub parallel_tool_calls: bool,
}

impl ChatPrompt {
    pub fn new(messages: Vec<Message>) -> Self {
        Self {
            messages,
            template_kwargs: Vec::new(),
            enable_thinking: None,
            reasoning_effort: None,
            reasoning_format: ReasoningFormat::default(),
            add_generation_prompt: true,
            continue_final_message: false,
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            callable: None,
            parallel_tool_calls: true,
        }
    }
}

/// What comes before the first generated token.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Prompt {
    Chat(ChatPrompt),
    /// Raw text: BOS as the model asks, special tokens in the text are recognised.
    Text(String),
    /// Token ids, used as they are.
    Tokens(Vec<i32>),
    /// Texts and token ids in turn. A text at the very beginning gets BOS as the model asks, no other one does.
    Mixed(Vec<PromptPart>),
    /// Fill in the middle, with the model's own tokens for it.
    Infill(Infill),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PromptPart {
    Text(String),
    Token(i32),
}

/// What stands around the text that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Infill {
    pub prefix: String,
    pub suffix: String,
    /// Text behind the middle token: the beginning of the answer.
    pub prompt: String,
    /// Other files: (name, text). What does not fit is left out, furthest first.
    pub extra: Vec<(String, String)>,
}

/// When a generation ends, and what is told about its tokens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Output {
    /// Most tokens to generate; `None`: until the context is full. Values past the context are clamped by the engine.
    pub max_tokens: Option<u32>,
    /// The text ends before the first match of any of these; none is empty.
    pub stop: Vec<String>,
    /// Log-probabilities wanted: `Some(k)` gives each token's own and the k most likely ones.
    pub top_logprobs: Option<u8>,
    /// The prompt's tokens too, with their log-probabilities where `top_logprobs` asks for them.
    pub echo: bool,
    /// The ids of the generated tokens too.
    pub with_tokens: bool,
    pub constraint: Option<Constraint>,
    /// What the answer will probably be; a hint for speculation, without effect on the text.
    pub prediction: Option<String>,
}

/// Which queue a request waits in: people first, batches with what is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    #[default]
    Interactive,
    Batch,
}

impl Class {
    /// The one of two that waits longer.
    pub fn or(self, other: Self) -> Self {
        if self == Class::Batch { self } else { other }
    }
}

/// A chat as every dialect delivers it.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// The name the client used, `None` when it named none.
    pub model: Option<String>,
    pub prompt: ChatPrompt,
    pub sampling: Sampling,
    pub output: Output,
    /// Choices wanted, 1..=128.
    pub n: u32,
    pub stream: bool,
    pub include_usage: bool,
    pub cache_prompt: bool,
    /// Scales of LoRA adapters by their index; `None`: the server's.
    pub lora: Option<Vec<(u32, f32)>>,
    /// The person or program that the client acts for, in the client's words.
    pub end_user: Option<String>,
    pub cache: CacheAsk,
    /// The queue that it is content with; what its key is held to comes first.
    pub class: Class,
}

/// A text completion: one or more prompts, `n` choices of each.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    pub model: Option<String>,
    /// Not empty; no element is `Chat`.
    pub prompts: Vec<Prompt>,
    pub sampling: Sampling,
    pub output: Output,
    pub n: u32,
    /// Choices generated for each prompt, of which the `n` with the best mean log-probability are the answer; at least
    /// `n`, and equal to it in a stream.
    pub best_of: u32,
    pub stream: bool,
    pub include_usage: bool,
    pub cache_prompt: bool,
    pub lora: Option<Vec<(u32, f32)>>,
    pub end_user: Option<String>,
    pub cache: CacheAsk,
}

/// What a client wants of the cache of answers, where the operator has one. It can only be asked to do less.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CacheAsk {
    /// Seconds for which the answer may be kept, if the operator's time isn't shorter.
    pub ttl_s: Option<u32>,
    /// Seconds since an answer was made for which it is good enough.
    pub max_age_s: Option<u32>,
    /// The answer must be made anew.
    pub no_cache: bool,
    /// The answer must not be kept.
    pub no_store: bool,
    /// Answers of one name are not given to requests of another; always within the tenant.
    pub namespace: Option<String>,
}

impl CacheAsk {
    /// Longest namespace.
    pub const NAMESPACE_BYTES_MAX: usize = 256;
}

/// Tokens counted by the engine for one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// The whole prompt, cached part included.
    pub prompt_tokens: u32,
    /// Prompt tokens that were already in the KV cache; at most `prompt_tokens`.
    pub cached_tokens: u32,
    /// Every generated token, thinking and the end-of-generation token included.
    pub completion_tokens: u32,
    /// The part of `completion_tokens` spent on thinking.
    pub reasoning_tokens: u32,
    /// Tokens of the request's prediction that were drafted and kept, and those that were drafted in vain.
    pub accepted_prediction_tokens: u32,
    pub rejected_prediction_tokens: u32,
    /// Tokens tried ahead of the model, wherever they came from, and those of them that it then chose.
    pub draft_tokens: u32,
    pub accepted_draft_tokens: u32,
}

impl Usage {
    /// Adds what another generation came to. An engine that was taken over says any number: a sum of them stays at the largest.
    pub fn add(&mut self, more: &Usage) {
        let Usage {
            prompt_tokens,
            cached_tokens,
            completion_tokens,
            reasoning_tokens,
            accepted_prediction_tokens,
            rejected_prediction_tokens,
            draft_tokens,
            accepted_draft_tokens,
        } = self;
        for (sum, n) in [
            (prompt_tokens, more.prompt_tokens),
            (cached_tokens, more.cached_tokens),
            (completion_tokens, more.completion_tokens),
            (reasoning_tokens, more.reasoning_tokens),
            (accepted_prediction_tokens, more.accepted_prediction_tokens),
            (rejected_prediction_tokens, more.rejected_prediction_tokens),
            (draft_tokens, more.draft_tokens),
            (accepted_draft_tokens, more.accepted_draft_tokens),
        ] {
            *sum = sum.saturating_add(n);
        }
    }
}

/// Why a generation ended by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finish {
    /// The model ended its turn.
    EndOfTurn,
    /// One of the request's stop strings was met (and is not part of the text).
    StopString(String),
    /// `max_tokens` was reached or the context is full.
    Length,
    /// The operator's rules ended it; the text ends before what they are about.
    Filtered,
}

/// One token with what the model thought of it. Log-probabilities are natural logs, finite, at most 0
/// (minus infinity is written as -9999).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    pub id: i32,
    /// The token's exact bytes; not always UTF-8 by themselves.
    pub bytes: Vec<u8>,
    pub logprob: f32,
    /// The most likely tokens at this place, best first.
    pub top: Vec<Likely>,
}

/// A token that might have stood where another one does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Likely {
    pub id: i32,
    pub bytes: Vec<u8>,
    pub logprob: f32,
}

/// A piece of one tool call. Pieces of a call come in order, and call `index` + 1 begins after `index` is complete.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ToolCallDelta {
    /// Number of the call in the answer, from 0.
    pub index: u32,
    /// Id and name, in the first piece of a call and in no other.
    pub opening: Option<(String, String)>,
    /// A fragment of the arguments' JSON text; all fragments together are a JSON object unless the answer was cut.
    pub arguments: String,
}

/// A piece of the answer. Either text may be empty; a token may yield no text at all.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Delta {
    pub content: String,
    pub reasoning: String,
    /// Come after `content`.
    pub tool_calls: Vec<ToolCallDelta>,
    /// The prompt's tokens, where `Output::echo` asked for them: all in the first delta. The first token has no
    /// log-probability (it is written as 0); without `Output::top_logprobs` none has.
    pub prompt: Vec<TokenLogprob>,
    /// Entries for exactly the tokens whose bytes spell `content`.
    pub logprobs: Vec<TokenLogprob>,
    /// Tokens generated since the last delta.
    pub n_tokens: u32,
    /// Their ids, where `Output::with_tokens` asked for them; without the one that ends a turn.
    pub tokens: Vec<i32>,
}
