//! Requests of OpenAI's API, and of llama-server's and vLLM's endpoints beside it.

use super::Any;
use super::conversation::{Conversation, Message, Template};
use super::sampling::{AdapterScale, Caching, Constraints, Sampling};
use crate::chat::check;
use schemars::JsonSchema;

/// A conversation, and how its next turn is to be written.
#[derive(JsonSchema)]
#[schemars(extend("examples" = [{"messages": [{"role": "user", "content": "Say hello."}], "max_completion_tokens": 16}]))]
pub struct ChatCompletionRequest {
    /// A name that `/v1/models` lists; the first of them when left out.
    model: Option<String>,
    #[schemars(flatten)]
    conversation: Conversation,
    /// Most tokens of the answer, those of its thinking included. -1: no limit but the context.
    #[schemars(range(min = -1))]
    max_completion_tokens: Option<i64>,
    /// The older name of `max_completion_tokens`.
    #[schemars(range(min = -1))]
    max_tokens: Option<i64>,
    /// Add the log-probability of every token.
    logprobs: Option<bool>,
    /// Beside each token, this many of the likeliest; needs `logprobs`.
    #[schemars(range(min = 0, max = check::TOP_LOGPROBS_MAX))]
    top_logprobs: Option<u8>,
    /// Only `text` is given out.
    modalities: Option<Vec<Modality>>,
    #[schemars(extend("x-hearth" = "no effect"))]
    audio: Any,
    #[schemars(flatten)]
    generation: Generation,
    #[schemars(flatten)]
    sampling: Sampling,
    #[schemars(flatten)]
    constraints: Constraints,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Modality {
    Text,
}

/// What chats and text completions share beside sampling.
#[derive(JsonSchema)]
pub struct Generation {
    /// Choices to generate; the prompt is computed once.
    #[schemars(range(min = 1, max = check::CHOICES_MAX))]
    n: Option<u32>,
    /// Texts that end the answer, and are not part of it.
    stop: Option<Stop>,
    /// Send the answer as server-sent events.
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    /// In a stream: `timings` in every chunk with tokens.
    timings_per_token: Option<bool>,
    /// In a stream: a chunk with `prompt_progress` for each part of the prompt that was computed.
    return_progress: Option<bool>,
    /// What the answer will probably be: drafts for speculation.
    prediction: Option<Prediction>,
    /// Keep the prompt's computed state for the next request.
    cache_prompt: Option<bool>,
    /// Scales of LoRA adapters for this request.
    #[schemars(length(max = 64))]
    lora: Option<Vec<AdapterScale>>,
    cache: Option<Caching>,
    #[schemars(flatten)]
    platform: Platform,
}

/// Bookkeeping of OpenAI's own platform.
#[derive(JsonSchema)]
pub struct Platform {
    #[schemars(extend("x-hearth" = "no effect"))]
    store: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    metadata: Any,
    /// Whom you act for: kept with the request, and limited where the server says so (`[limits.end_user]`).
    user: Any,
    /// Whom you act for: kept with the request, and limited where the server says so (`[limits.end_user]`).
    safety_identifier: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    prompt_cache_key: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    prompt_cache_retention: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    prompt_cache_options: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    cache_control: Any,
    /// `flex`, of a chat: the request may wait, in the queue of batches. Others have no effect.
    service_tier: Any,
    #[schemars(extend("x-hearth" = "no effect"))]
    verbosity: Any,
    /// There is no moderation here.
    #[schemars(extend("x-hearth" = "refused"))]
    moderation: Any,
    /// The server has no access to the web.
    #[schemars(extend("x-hearth" = "refused"))]
    web_search_options: Any,
}

/// A text, or several (at most 64, of 1024 bytes each); empty ones mean nothing.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum Stop {
    One(String),
    Several(#[schemars(length(max = check::STOPS_MAX))] Vec<String>),
}

#[derive(JsonSchema)]
pub struct StreamOptions {
    /// A last chunk without choices has the usage.
    include_usage: Option<bool>,
    #[schemars(extend("x-hearth" = "no effect"))]
    include_obfuscation: Any,
}

#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub enum Prediction {
    Content { content: PredictionContent },
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum PredictionContent {
    Text(String),
    Parts(Vec<PredictionPart>),
}

#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub enum PredictionPart {
    Text { text: String },
}

/// A text to be continued.
#[derive(JsonSchema)]
#[schemars(extend("examples" = [{"prompt": "Once upon a time", "max_tokens": 16}]))]
pub struct CompletionRequest {
    /// A name that `/v1/models` lists; the first of them when left out.
    model: Option<String>,
    prompt: PromptInput,
    /// With it, the answer fills the gap between `prompt` and this text.
    suffix: Option<String>,
    /// Begin the answer with the prompt.
    echo: Option<bool>,
    /// 16 when left out; -1: no limit but the context; 0 counts the prompt's tokens only.
    #[schemars(range(min = -1))]
    max_tokens: Option<i64>,
    /// Add log-probabilities of every token and of this many of the likeliest beside it.
    #[schemars(range(min = 0, max = check::TOP_LOGPROBS_MAX))]
    logprobs: Option<u8>,
    /// Generate this many choices and give out the best `n`.
    #[schemars(range(min = 1, max = check::CHOICES_MAX))]
    best_of: Option<u32>,
    /// Text completions have no tools.
    #[schemars(extend("x-hearth" = "refused"))]
    tools: Any,
    /// Text completions have no tools.
    #[schemars(extend("x-hearth" = "refused"))]
    functions: Any,
    #[schemars(flatten)]
    generation: Generation,
    #[schemars(flatten)]
    sampling: Sampling,
    #[schemars(flatten)]
    constraints: Constraints,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum PromptInput {
    Text(String),
    Texts(#[schemars(length(min = 1, max = 2048))] Vec<String>),
    Tokens(#[schemars(length(min = 1))] Vec<TokenId>),
    TokenLists(#[schemars(length(min = 1, max = 2048))] Vec<Vec<TokenId>>),
}

/// An id of the model's vocabulary.
#[derive(JsonSchema)]
#[schemars(transparent)]
pub struct TokenId(#[schemars(range(min = 0, max = i32::MAX))] i32);

/// One of `content` (llama-server: no BOS unless asked), `prompt` (vLLM: with BOS) and `messages`.
#[derive(JsonSchema)]
#[schemars(extend("examples" = [{"content": "hello"}, {"messages": [{"role": "user", "content": "hello"}]}]))]
pub struct TokenizeRequest {
    model: Option<String>,
    content: Option<String>,
    prompt: Option<String>,
    #[schemars(length(min = 1, max = 65_536))]
    messages: Option<Vec<Message>>,
    add_special: Option<bool>,
    /// Another name of `add_special`.
    add_special_tokens: Option<bool>,
    /// Read the text of special tokens as those tokens; on when left out.
    parse_special: Option<bool>,
    /// Give the text of every token beside its id.
    with_pieces: Option<bool>,
    #[schemars(flatten)]
    template: Template,
}

/// Tokens to be written as text.
#[derive(JsonSchema)]
#[schemars(extend("examples" = [{"tokens": [104, 105]}]))]
pub struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<TokenId>,
}

/// A conversation to be written as the model's prompt.
#[derive(JsonSchema)]
#[schemars(extend("examples" = [{"messages": [{"role": "user", "content": "Say hello."}]}]))]
pub struct ApplyTemplateRequest {
    model: Option<String>,
    #[schemars(flatten)]
    conversation: Conversation,
}

/// An array of scales, or an object with it as `lora`.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum AdapterScales {
    Array(#[schemars(length(min = 1, max = 64))] Vec<AdapterScale>),
    Object {
        #[schemars(length(min = 1, max = 64))]
        lora: Vec<AdapterScale>,
    },
}
