//! What the front may ask of an engine: owned, bounded, serialisable.

use crate::chat::{ChatPrompt, Class, Output, Prompt, SamplingParams};
use serde::{Deserialize, Serialize};
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

/// Names one request on one engine connection; never reused while the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// The whole surface of an engine. Each command is answered by exactly one ending event under its id
/// (see [`crate::engine::Event`]), `Cancel` and `Shed` by the ending of the request they name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Always legal once loaded. Answer: `Event::Tokens`.
    Tokenize(TokenizeRequest),
    /// Answer: `Event::Text`, or `Failed` when an id is outside the vocabulary.
    Detokenize(Vec<i32>),
    /// Runs the model's chat template. Answer: `Event::Text`.
    RenderChat(ChatPrompt),
    /// Answer: `Accepted`, any number of `Progress` and `Delta`, then `Done` or `Failed`.
    Generate(Box<GenerateRequest>),
    /// Ends the request of this id with `Failed(Cancelled)`, wherever it is; unknown ids are ignored (it has ended).
    Cancel,
    /// Ends the request of this id with `Failed(Shed)` if it waits for its first slot; else it goes on.
    Shed,
    /// Of no request, and not answered: from now on (or no more) nothing is kept that can be computed again.
    Spare(bool),
    /// Answer: `Event::Stats`.
    Stats,
    /// Answer: `Accepted` with the tokens of all inputs, then `Event::Vectors`, one for each; of no inputs at once.
    Embed(EmbedRequest),
    /// As `Embed`; the vectors are one number for each document, higher is better.
    Rerank(RerankRequest),
}

impl Command {
    /// Of a command that works on a client's text; see [`GenerateRequest::fingerprint`].
    pub fn fingerprint(&self) -> Option<u64> {
        let mut hasher = std::collections::hash_map::DefaultHasher::new();
        match self {
            Command::Tokenize(request) => request.prompt.hash(&mut hasher),
            Command::Detokenize(tokens) => tokens.hash(&mut hasher),
            Command::RenderChat(prompt) => prompt.hash(&mut hasher),
            Command::Generate(request) => return Some(request.fingerprint()),
            Command::Embed(request) => request.hash(&mut hasher),
            Command::Rerank(request) => request.hash(&mut hasher),
            Command::Cancel | Command::Shed | Command::Spare(_) | Command::Stats => return None,
        }
        Some(hasher.finish())
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenizeRequest {
    pub prompt: Prompt,
    /// Add BOS/EOS as the vocabulary asks (ignored for chats, whose template says it).
    pub add_special: bool,
    /// Recognise special tokens in the text.
    pub parse_special: bool,
    /// Answer with each token's bytes as well.
    pub with_pieces: bool,
    /// Whose: what is known of images is known to this partition only. The gateway says it.
    pub partition: u64,
}

/// Vectors of several inputs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EmbedRequest {
    /// Not empty; each is `Text` or `Tokens`.
    pub inputs: Vec<Prompt>,
    /// Cut what is too long for the model instead of refusing it.
    pub truncate: bool,
}

/// Scores of documents for a query.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RerankRequest {
    pub query: String,
    /// Not empty.
    pub documents: Vec<String>,
    /// Tokens of a document that count; `None`: all, and a pair that is too long is refused.
    pub n_document_max: Option<u32>,
}

/// One generation of one choice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    pub prompt: Prompt,
    pub sampling: SamplingParams,
    pub output: Output,
    /// Look for, and leave behind, a KV prefix.
    pub cache_prompt: bool,
    /// KV prefixes are shared only between requests with the same partition (a tenant).
    pub partition: u64,
    pub class: Class,
    /// Whose request it is: slots and prompt computation are shared fairly between owners. 0: nobody's in particular.
    pub owner: u64,
    /// Requests of one family have the same prompt: it is computed once and shared. 0: none.
    pub family: u64,
    /// Scales of LoRA adapters by their index; `None`: the server's.
    pub lora: Option<Vec<(u32, f32)>>,
    /// Whoever is refused is told when to come again, and is expected then; else it goes elsewhere. The front's own.
    #[serde(skip)]
    pub comes_back: bool,
}

/// A family that no other request of this process has.
pub fn fresh_family() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl GenerateRequest {
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            sampling: SamplingParams::default(),
            output: Output::default(),
            cache_prompt: true,
            partition: 0,
            class: Class::Interactive,
            owner: 0,
            family: 0,
            lora: None,
            comes_back: false,
        }
    }

    /// A fingerprint of what the engine would work on; the same request sent again has the same one. It is how a
    /// request that was in flight at two crashes is recognised without keeping its text.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = std::collections::hash_map::DefaultHasher::new();
        self.prompt.hash(&mut hasher);
        self.output.hash(&mut hasher);
        // Floats have no Hash; their text form is exact and this runs once per request.
        format!("{:?}{:?}", self.sampling, self.lora).hash(&mut hasher);
        hasher.finish()
    }
}
