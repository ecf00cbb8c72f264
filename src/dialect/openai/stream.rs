//! Events → the bytes of a stream: `data: {…}\n\n`, one line of JSON each.
//!
//! # Design
//! Thousands of chunks a second leave one core, so what is constant in a chunk is serialised once for the stream and the
//! rest is appended to the caller's buffer: only the text is escaped. A test holds the result against the serde types'.

use super::to_wire::{Head, error_object, finish_reason, json, usage_count};
use super::{logprobs, wire};
use crate::chat::{Delta, Usage};
use crate::dialect::{Chunks, Problem};
use crate::engine::Done;
use std::io::Write as _;

/// The event that ends a stream which failed after its first byte. Nothing may follow it.
fn write_problem(problem: &Problem, out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: ");
    out.extend(json(&wire::ErrorBody { error: error_object(problem) }));
    out.extend_from_slice(b"\n\n");
}

/// `data: {"id":…,…,"choices":[`: the same bytes in every chunk of a stream.
fn constant_head(head: &Head, object: &str) -> Vec<u8> {
    let mut bytes = b"data: ".to_vec();
    let fields = serde_json::json!({
        "id": head.id,
        "object": object,
        "created": head.created,
        "model": head.model,
        "system_fingerprint": head.fingerprint,
    });
    bytes.extend(json(&fields));
    bytes.pop();
    bytes.extend_from_slice(b",\"choices\":[");
    bytes
}

fn escape(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("text goes into a Vec; failing is a bug");
}

/// The counting chunk (the only one without choices), where it is wanted, and the end.
fn write_end(head: &[u8], usage: Option<&Usage>, out: &mut Vec<u8>) {
    if let Some(usage) = usage {
        out.extend_from_slice(head);
        out.extend_from_slice(b"],\"usage\":");
        out.extend(json(&usage_count(usage)));
        out.extend_from_slice(b"}\n\n");
    }
    out.extend_from_slice(b"data: [DONE]\n\n");
}

/// Chunks of a chat.
pub struct ChatChunks {
    head: Vec<u8>,
    n_choices: usize,
    with_logprobs: bool,
    include_usage: bool,
}

impl ChatChunks {
    pub fn new(head: &Head, n_choices: usize, with_logprobs: bool, include_usage: bool) -> Self {
        Self { head: constant_head(head, "chat.completion.chunk"), n_choices, with_logprobs, include_usage }
    }

    /// `delta` is JSON; `logprobs` and `finish_reason` are null unless given.
    fn chunk(&self, choice: usize, delta: &[u8], logprobs: Option<&[u8]>, finish: &str, out: &mut Vec<u8>) {
        self.begin(choice, out);
        out.extend_from_slice(delta);
        Self::end(logprobs, finish, out);
    }

    fn begin(&self, choice: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
        write!(out, "{{\"index\":{choice},\"delta\":").expect("numbers go into a Vec; failing is a bug");
    }

    fn end(logprobs: Option<&[u8]>, finish: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"logprobs\":");
        out.extend_from_slice(logprobs.unwrap_or(b"null"));
        out.extend_from_slice(b",\"finish_reason\":");
        out.extend_from_slice(finish.as_bytes());
        out.extend_from_slice(b"}]}\n\n");
    }

    fn text(&self, choice: usize, field: &str, text: &str, logprobs: Option<&[u8]>, out: &mut Vec<u8>) {
        self.begin(choice, out);
        out.extend_from_slice(b"{\"");
        out.extend_from_slice(field.as_bytes());
        out.extend_from_slice(b"\":");
        escape(text, out);
        out.push(b'}');
        Self::end(logprobs, "null", out);
    }
}

impl Chunks for ChatChunks {
    fn open(&mut self, out: &mut Vec<u8>) {
        for choice in 0..self.n_choices {
            self.chunk(choice, br#"{"role":"assistant","content":"","refusal":null}"#, None, "null", out);
        }
    }

    fn delta(&mut self, choice: usize, delta: &Delta, out: &mut Vec<u8>) {
        if !delta.reasoning.is_empty() {
            self.text(choice, "reasoning_content", &delta.reasoning, None, out);
        }
        let logprobs =
            (self.with_logprobs && !delta.logprobs.is_empty()).then(|| json(&logprobs::chat(&delta.logprobs)));
        if !delta.content.is_empty() || logprobs.is_some() {
            self.text(choice, "content", &delta.content, logprobs.as_deref(), out);
        }
    }

    fn finish(&mut self, choice: usize, done: &Done, out: &mut Vec<u8>) {
        self.chunk(choice, b"{}", None, &format!("\"{}\"", finish_reason(&done.finish)), out);
    }

    fn end(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        write_end(&self.head, self.include_usage.then_some(usage), out);
    }

    fn fail(&mut self, problem: &Problem, out: &mut Vec<u8>) {
        write_problem(problem, out);
    }
}

/// Chunks of a text completion.
pub struct TextChunks {
    head: Vec<u8>,
    /// Characters sent of each choice, where logprobs are wanted: `text_offset` goes on from there.
    n_chars: Vec<usize>,
    with_logprobs: bool,
    include_usage: bool,
}

impl TextChunks {
    pub fn new(head: &Head, n_choices: usize, with_logprobs: bool, include_usage: bool) -> Self {
        Self { head: constant_head(head, "text_completion"), n_chars: vec![0; n_choices], with_logprobs, include_usage }
    }

    fn chunk(&self, choice: usize, text: &str, logprobs: Option<&[u8]>, finish: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
        write!(out, "{{\"index\":{choice},\"text\":").expect("numbers go into a Vec; failing is a bug");
        escape(text, out);
        ChatChunks::end(logprobs, finish, out);
    }
}

impl Chunks for TextChunks {
    /// Text completions have no role to announce.
    fn open(&mut self, _out: &mut Vec<u8>) {}

    fn delta(&mut self, choice: usize, delta: &Delta, out: &mut Vec<u8>) {
        let wanted = self.with_logprobs && !delta.logprobs.is_empty();
        let logprobs = wanted
            .then(|| self.n_chars.get_mut(choice))
            .flatten()
            .map(|n_chars| json(&logprobs::text(&delta.logprobs, n_chars)));
        if !delta.content.is_empty() || logprobs.is_some() {
            self.chunk(choice, &delta.content, logprobs.as_deref(), "null", out);
        }
    }

    fn finish(&mut self, choice: usize, done: &Done, out: &mut Vec<u8>) {
        self.chunk(choice, "", None, &format!("\"{}\"", finish_reason(&done.finish)), out);
    }

    fn end(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        write_end(&self.head, self.include_usage.then_some(usage), out);
    }

    fn fail(&mut self, problem: &Problem, out: &mut Vec<u8>) {
        write_problem(problem, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Finish, TokenLogprob};
    use crate::engine::Timings;
    use serde_json::{Value, json};

    fn head() -> Head {
        Head { id: "x-1".into(), created: 7, model: "m\"q".into(), fingerprint: "fp_1".into() }
    }

    fn events(bytes: &[u8]) -> Vec<Value> {
        let text = std::str::from_utf8(bytes).unwrap();
        assert!(text.ends_with("\n\n"));
        let data = |event: &str| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        text.split_terminator("\n\n").map(data).collect()
    }

    #[test]
    fn chat_chunks_are_valid_and_have_their_keys() {
        let mut chunks = ChatChunks::new(&head(), 2, false, false);
        let mut out = Vec::new();
        chunks.open(&mut out);
        let delta = Delta { content: "a\n\"\u{1f600}".into(), reasoning: "hm".into(), ..Default::default() };
        chunks.delta(1, &delta, &mut out);
        let (finish, usage, timings) = (Finish::Length, Usage::default(), Timings::default());
        chunks.finish(1, &Done { finish, usage, timings }, &mut out);
        let events = events(&out);
        let with = |choice: Value| {
            json!({"id":"x-1","object":"chat.completion.chunk","created":7,"model":"m\"q","system_fingerprint":"fp_1",
                "choices":[choice]})
        };
        let role = json!({"role":"assistant","content":"","refusal":null});
        let expected = [
            with(json!({"index":0,"delta":role,"logprobs":null,"finish_reason":null})),
            with(json!({"index":1,"delta":role,"logprobs":null,"finish_reason":null})),
            with(json!({"index":1,"delta":{"reasoning_content":"hm"},"logprobs":null,"finish_reason":null})),
            with(json!({"index":1,"delta":{"content":"a\n\"\u{1f600}"},"logprobs":null,"finish_reason":null})),
            with(json!({"index":1,"delta":{},"logprobs":null,"finish_reason":"length"})),
        ];
        assert_eq!(events, expected);
    }

    #[test]
    fn a_delta_without_text_writes_nothing() {
        let mut out = Vec::new();
        ChatChunks::new(&head(), 1, true, false).delta(0, &Delta { n_tokens: 1, ..Default::default() }, &mut out);
        TextChunks::new(&head(), 1, true, false).delta(0, &Delta { n_tokens: 1, ..Default::default() }, &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn text_offsets_go_on_from_chunk_to_chunk() {
        let mut chunks = TextChunks::new(&head(), 1, true, false);
        let mut out = Vec::new();
        for word in ["hé", "llo"] {
            let entry = TokenLogprob { bytes: word.into(), logprob: -1.0, top: vec![] };
            chunks.delta(0, &Delta { content: word.into(), logprobs: vec![entry], ..Default::default() }, &mut out);
        }
        let events = events(&out);
        assert_eq!(events[0]["object"], "text_completion");
        assert_eq!(events[1]["choices"][0]["logprobs"]["text_offset"], json!([2]));
    }

    #[test]
    fn the_usage_chunk_alone_has_no_choices() {
        let mut out = Vec::new();
        ChatChunks::new(&head(), 1, false, true).end(&Usage { prompt_tokens: 2, ..Default::default() }, &mut out);
        let out = out.strip_suffix(b"data: [DONE]\n\n").unwrap();
        let event = &events(out)[0];
        assert_eq!((&event["choices"], &event["usage"]["total_tokens"]), (&json!([]), &json!(2)));
    }
}
