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

pub use sampling::{Mirostat, SamplerKind, Sampling, SamplingParams};

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
            reasoning: None,
            name: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
        }
    }
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
}

/// Which queue a request waits in: people first, batches with what is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Class {
    #[default]
    Interactive,
    Batch,
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
}

/// A text completion: one or more prompts, `n` choices of each.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    pub model: Option<String>,
    /// Not empty; every element is `Text` or `Tokens`.
    pub prompts: Vec<Prompt>,
    pub sampling: Sampling,
    pub output: Output,
    pub n: u32,
    pub stream: bool,
    pub include_usage: bool,
    pub cache_prompt: bool,
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
}

/// One token with what the model thought of it. Log-probabilities are natural logs, finite, at most 0
/// (minus infinity is written as -9999).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token's exact bytes; not always UTF-8 by themselves.
    pub bytes: Vec<u8>,
    pub logprob: f32,
    /// The most likely tokens at this place, best first.
    pub top: Vec<(Vec<u8>, f32)>,
}

/// A piece of the answer. Either text may be empty; a token may yield no text at all.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Delta {
    pub content: String,
    pub reasoning: String,
    /// Entries for exactly the tokens whose bytes spell `content`.
    pub logprobs: Vec<TokenLogprob>,
    /// Tokens generated since the last delta.
    pub n_tokens: u32,
}
