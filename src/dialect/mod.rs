//! JSON ⇄ chat: one folder for each family of clients.
//!
//! **Invariant:** pure functions over bytes and values. No sockets, no status codes, no async, no engine handle. What a
//! client wrote is read completely before anything is done with it, and nothing of it is dropped without a trace: a field
//! that nobody knows ends up in [`Ignored`].
//!
//! # Design
//! Requests are not `#[derive(Deserialize)]` structs. Serde reports a wrong type by line and column, stops knowing the
//! field's path, cannot tell "unknown" from "ignored", and its untagged enums (a `content` that is a string or an array)
//! lose the reason. [`fields::Object`] reads a parsed tree instead and knows the path of everything it refuses.

pub mod anthropic;
pub mod api;
mod arguments;
mod caching;
pub mod fields;
mod json;
mod media;
pub mod ollama;
pub mod openai;
pub mod remote;
pub mod responses;
mod tools;
mod watch;

pub use json::parse_object;
pub use media::MediaPlaces;
pub use watch::{Wanted, Watched};

use crate::chat::check::Refusal;
use crate::chat::{Delta, Finish, TokenLogprob, ToolCall, Usage};
use crate::engine::{Done, Timings};

/// Why a request body is refused; always the client's to cure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Path of the field, as `messages[0].content[1].type`; `None` when it is the body as a whole.
    pub param: Option<String>,
    pub code: Option<&'static str>,
    pub message: String,
}

impl Fault {
    pub fn new(param: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), code: Some(code), message: message.into() }
    }

    /// The body as a whole can't be read.
    pub fn body(message: impl Into<String>) -> Self {
        Self { param: None, code: None, message: message.into() }
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self { param: Some(refusal.field), code: Some(refusal.code), message: refusal.message }
    }
}

/// A request as read, with what was found beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct Read<T> {
    pub request: T,
    pub ignored: Ignored,
}

/// One choice of a finished answer: its deltas put together.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub content: String,
    pub reasoning: String,
    pub tool_calls: Vec<ToolCall>,
    pub logprobs: Vec<TokenLogprob>,
    /// The prompt's tokens, where they were asked for; see [`Delta::prompt`].
    pub prompt: Vec<TokenLogprob>,
    /// Ids of the tokens, where they were asked for.
    pub tokens: Vec<i32>,
    pub finish: Finish,
    /// Of this choice alone.
    pub usage: Usage,
    pub timings: Timings,
}

impl Default for Answer {
    fn default() -> Self {
        Self {
            content: String::new(),
            reasoning: String::new(),
            tool_calls: Vec::new(),
            logprobs: Vec::new(),
            prompt: Vec::new(),
            tokens: Vec::new(),
            finish: Finish::Length,
            usage: Usage::default(),
            timings: Timings::default(),
        }
    }
}

impl Answer {
    pub fn push(&mut self, delta: Delta) {
        self.content.push_str(&delta.content);
        self.reasoning.push_str(&delta.reasoning);
        self.logprobs.extend(delta.logprobs);
        self.prompt.extend(delta.prompt);
        self.tokens.extend(delta.tokens);
        for piece in delta.tool_calls {
            if let Some((id, name)) = piece.opening {
                self.tool_calls.push(ToolCall { id, name, arguments: String::new() });
            }
            if let Some(call) = self.tool_calls.get_mut(piece.index as usize) {
                call.arguments.push_str(&piece.arguments);
            }
        }
    }
}

/// How one dialect writes the events of a running request. Every method appends whole events to `out`.
pub trait Chunks {
    const CONTENT_TYPE: &'static str = "text/event-stream; charset=utf-8";
    /// What is written when there was nothing to say for a while; empty where the format has no room for it.
    const KEEP_ALIVE: &'static [u8] = b": keep-alive\n\n";

    /// What comes before anything else, for all choices in order.
    fn open(&mut self, out: &mut Vec<u8>);
    /// An event without content, for llama-server's `return_progress`; nothing where there is none. The counts are the
    /// prompt's tokens, those that are computed, and those of them that were cached.
    fn progress(&mut self, _choice: usize, _counts: [u32; 3], _out: &mut Vec<u8>) {}
    fn delta(&mut self, choice: usize, delta: &Delta, out: &mut Vec<u8>);
    fn finish(&mut self, choice: usize, done: &Done, out: &mut Vec<u8>);
    /// After the last choice's `finish`: the body ends after it. `usage` is that of all choices.
    fn end(&mut self, usage: &Usage, out: &mut Vec<u8>);
    /// Instead of what is missing: the request failed after its first byte. The body ends after it.
    fn fail(&mut self, problem: &Problem, out: &mut Vec<u8>);
}

/// An error as the client reads it. Never holds what belongs in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub message: String,
    /// OpenAI's `type`.
    pub kind: &'static str,
    pub param: Option<String>,
    pub code: Option<String>,
}

/// Paths of the fields that nobody here knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ignored {
    paths: Vec<String>,
    n_more: usize,
}

impl Ignored {
    /// Paths kept, and bytes of each: enough to find a mistake, small enough for a response header (2.1 KB).
    const PATHS_MAX: usize = 32;
    const PATH_BYTES_MAX: usize = 64;

    fn add(&mut self, path: &str) {
        if self.paths.len() == Self::PATHS_MAX {
            self.n_more += 1;
            return;
        }
        // Field names are the client's text: only what a header may hold is repeated.
        let visible = |c: char| if c.is_ascii_graphic() && c != ',' { c } else { '?' };
        self.paths.push(path.chars().take(Self::PATH_BYTES_MAX).map(visible).collect());
    }

    /// The paths, comma-separated, in visible ASCII; `None` when every field was known.
    pub fn header(&self) -> Option<String> {
        let mut text = (!self.paths.is_empty()).then(|| self.paths.join(", "))?;
        if self.n_more > 0 {
            text.push_str(&format!(", and {} more", self.n_more));
        }
        Some(text)
    }

    /// For strict servers: the first unknown field is a fault.
    pub fn refuse(&self) -> Result<(), Fault> {
        match self.paths.first() {
            None => Ok(()),
            Some(path) => Err(Fault::new(path, "unknown_parameter", format!("Unknown parameter: {path}."))),
        }
    }
}

#[cfg(test)]
mod fuzz_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_of_ignored_fields_is_bounded_and_printable() {
        let mut ignored = Ignored::default();
        assert_eq!(ignored.header(), None);
        ignored.add("naïve\r\nx-evil: 1");
        for i in 0..1000 {
            ignored.add(&format!("{i}{}", "k".repeat(1000)));
        }
        let header = ignored.header().unwrap();
        assert!(header.len() < 2300 && header.bytes().all(|b| (b' '..=b'~').contains(&b)), "{header}");
        assert!(header.starts_with("na?ve??x-evil:?1, 0kkk") && header.ends_with("and 969 more"), "{header}");
        assert_eq!(ignored.refuse().unwrap_err().code, Some("unknown_parameter"));
    }
}
