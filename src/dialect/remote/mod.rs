//! The other direction: a request as another server wants it, and its answer's stream read back.
//!
//! **Invariant:** an upstream is as hostile as any client. What it sends is bounded before it is parsed (a line, an event),
//! its numbers are checked before they are believed, and none of its text reaches an error or a log: a fault is a word of
//! ours.
//!
//! # Design
//! Answers are always asked for as streams, also for clients that want them whole: then one set of rules says when a byte
//! was first seen and when a connection is silent. Shapes are typed structs, not `serde_json::Value`, which may take
//! seventy times a line's size in memory; unknown fields cost nothing.

mod anthropic;
mod anthropic_body;
mod openai;
mod openai_body;
mod sse;

use crate::chat::{ChatRequest, CompletionRequest, Delta, Finish, Media, MediaKind, Usage};
use sse::Sse;

/// Whose JSON an upstream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    OpenAi,
    Anthropic,
    /// OpenAI's with all our extras: another hearth.
    Hearth,
}

/// How requests are written for one upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wire {
    pub kind: Kind,
    /// The model's name there.
    pub model: String,
    /// OpenAI's newer models take `max_completion_tokens` only, many other servers `max_tokens` only.
    pub newer_limit: bool,
}

/// A request to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Under the base URL.
    pub path: &'static str,
    pub body: Vec<u8>,
    /// What the client said and the upstream has no word for; it changes how the answer is drawn, not what it must be.
    pub dropped: Vec<&'static str>,
}

/// The request asks for something that no upstream of this kind can honour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsupported(pub &'static str);

/// What an upstream said.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// A delta of a choice. One that has nothing to show still tells that the upstream lives.
    Delta(usize, Delta),
    Finish(usize, Finish),
    /// Of all choices together.
    Usage(Usage),
    /// The stream is complete.
    End,
}

/// How a stream failed in its own words, or in ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No such stream: too long, not JSON, a shape that nobody knows, pieces out of order. The word is for logs.
    Broken(&'static str),
    /// An error event.
    Reported(Reported),
}

/// What an upstream's error says, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reported {
    /// It can't take more now, or not from us.
    Throttled,
    /// It blames the request.
    Invalid,
    /// Its policy ended the answer.
    Filtered,
    Server,
}

impl Wire {
    pub fn chat(&self, request: &ChatRequest) -> Result<Outgoing, Unsupported> {
        match self.kind {
            Kind::OpenAi | Kind::Hearth => openai_body::chat(self, request),
            Kind::Anthropic => anthropic_body::chat(self, request),
        }
    }

    pub fn completion(&self, request: &CompletionRequest) -> Result<Outgoing, Unsupported> {
        match self.kind {
            Kind::OpenAi | Kind::Hearth => openai_body::completion(self, request),
            Kind::Anthropic => Err(Unsupported("prompt")),
        }
    }
}

/// Reads an answer's stream, however it is cut.
pub struct Reader {
    sse: Sse,
    shape: Shape,
}

enum Shape {
    OpenAi(openai::Chunks),
    Anthropic(anthropic::Events),
}

impl Reader {
    /// `n_choices`: asked for; what is said of others is a fault.
    pub fn new(kind: Kind, n_choices: usize) -> Self {
        let shape = match kind {
            Kind::OpenAi | Kind::Hearth => Shape::OpenAi(openai::Chunks::new(n_choices)),
            Kind::Anthropic => Shape::Anthropic(anthropic::Events::default()),
        };
        Self { sse: Sse::default(), shape }
    }

    /// What `bytes` complete, appended to `out`. What was said before a fault is there as well; after one, or after
    /// [`Said::End`], the rest is of no use.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<Said>) -> Result<(), Fault> {
        let shape = &mut self.shape;
        self.sse.push(bytes, &mut |data: &str| match shape {
            Shape::OpenAi(chunks) => chunks.read(data, out),
            Shape::Anthropic(events) => events.read(data, out),
        })
    }
}

/// What kind an error is, by the words that servers put into `type` and `code`.
fn reported(words: &[&str]) -> Reported {
    let has = |known: &[&str]| words.iter().any(|word| known.iter().any(|known| word.contains(known)));
    if has(&["rate_limit", "overloaded", "slow_down", "insufficient_quota", "credit_balance", "loading"]) {
        Reported::Throttled
    } else if has(&["content_filter", "content_policy", "moderation"]) {
        Reported::Filtered
    } else if has(&["invalid_request", "context_length", "invalid_value", "unsupported"]) {
        Reported::Invalid
    } else {
        Reported::Server
    }
}

/// A piece of a message's content: text, or what stands behind it.
enum Part<'a> {
    Text(&'a str),
    Media(&'a Media),
}

/// The text cut at its media. Offsets that don't fit the text stand at its end.
fn parts<'a>(content: &'a str, media: &'a [Media]) -> Vec<Part<'a>> {
    let (mut parts, mut at) = (Vec::with_capacity(media.len() * 2 + 1), 0);
    for item in media {
        let until = (item.offset as usize).clamp(at, content.len());
        let until = if content.is_char_boundary(until) { until } else { content.len() };
        if until > at {
            parts.push(Part::Text(&content[at..until]));
        }
        parts.push(Part::Media(item));
        at = until;
    }
    if at < content.len() {
        parts.push(Part::Text(&content[at..]));
    }
    parts
}

/// The type of a file by its first bytes; `None`: none that APIs take.
fn mime(media: &Media) -> Option<&'static str> {
    let data = media.data.as_slice();
    let riff = |kind: &[u8]| data.starts_with(b"RIFF") && data.get(8..12) == Some(kind);
    match media.kind {
        MediaKind::Image if data.starts_with(b"\x89PNG") => Some("image/png"),
        MediaKind::Image if data.starts_with(b"\xff\xd8\xff") => Some("image/jpeg"),
        MediaKind::Image if data.starts_with(b"GIF8") => Some("image/gif"),
        MediaKind::Image if riff(b"WEBP") => Some("image/webp"),
        MediaKind::Audio if riff(b"WAVE") => Some("audio/wav"),
        MediaKind::Audio if data.starts_with(b"ID3") || matches!(data, [0xff, b, ..] if b & 0xe0 == 0xe0) => {
            Some("audio/mp3")
        }
        _ => None,
    }
}

/// A count that can be one: whole, not negative, not absurd. Upstreams have sent others.
fn count(value: Option<f64>) -> Option<u32> {
    const TOKENS_MAX: f64 = 1e8;
    let whole = value.filter(|n| n.fract() == 0.0 && (0.0..=TOKENS_MAX).contains(n));
    whole.and_then(|n| u32::try_from(n as i64).ok())
}

#[cfg(test)]
mod tests;
