//! Events → the bytes of a stream: `data: {…}\n\n`, one line of JSON each.
//!
//! # Design
//! Thousands of chunks a second leave one core, so what is constant in a chunk is serialised once for the stream and the
//! rest is appended to the caller's buffer: only the text is escaped. A test holds the result against the serde types'.

use super::calls::{Braces, Called, finish_reason};
use super::chat::ChatStyle;
use super::completion::TextStyle;
use super::logprobs::{self, TextArrays};
use super::to_wire::{Head, error_object, json, usage_count};
use super::tools::CallStyle;
use super::wire;
use crate::chat::{Delta, TokenLogprob, ToolCallDelta, Usage};
use crate::dialect::{Chunks, Problem};
use crate::engine::Done;
use std::io::Write as _;

/// The event that ends a stream which failed after its first byte. Nothing may follow it.
pub(super) fn write_problem(problem: &Problem, out: &mut Vec<u8>) {
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
    style: ChatStyle,
    choices: Vec<Choice>,
}

/// What one choice has said so far.
#[derive(Debug, Clone, Copy, Default)]
struct Choice {
    has_called: bool,
    /// Of the last call's arguments.
    braces: Braces,
}

impl Choice {
    fn called(&self) -> Called {
        match self.has_called {
            false => Called::Nothing,
            true if self.braces.are_closed() => Called::Wholly,
            true => Called::Partly,
        }
    }
}

impl ChatChunks {
    pub fn new(head: &Head, n_choices: usize, style: ChatStyle) -> Self {
        Self { head: constant_head(head, "chat.completion.chunk"), style, choices: vec![Choice::default(); n_choices] }
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

    /// A call's id and name go out alone, then its arguments piece by piece.
    fn call(&mut self, choice: usize, piece: &ToolCallDelta, out: &mut Vec<u8>) {
        let Some(state) = self.choices.get_mut(choice) else { return };
        // The older shape has room for one call; its requests allow no second one.
        if self.style.calls == CallStyle::FunctionCall && piece.index > 0 {
            return;
        }
        if piece.opening.is_some() {
            *state = Choice { has_called: true, braces: Braces::default() };
        }
        state.braces.push(&piece.arguments);
        if let Some((id, name)) = &piece.opening {
            let delta = match self.style.calls {
                CallStyle::FunctionCall => serde_json::json!({ "function_call": { "name": name, "arguments": "" } }),
                CallStyle::ToolCalls => serde_json::json!({ "tool_calls": [{
                    "index": piece.index,
                    "id": id,
                    "type": "function",
                    "function": { "name": name, "arguments": "" },
                }] }),
            };
            self.chunk(choice, &json(&delta), None, "null", out);
        }
        if !piece.arguments.is_empty() {
            self.begin(choice, out);
            match self.style.calls {
                CallStyle::FunctionCall => out.extend_from_slice(b"{\"function_call\":{\"arguments\":"),
                CallStyle::ToolCalls => {
                    let index = piece.index;
                    write!(out, "{{\"tool_calls\":[{{\"index\":{index},\"function\":{{\"arguments\":")
                        .expect("numbers go into a Vec; failing is a bug");
                }
            }
            escape(&piece.arguments, out);
            out.extend_from_slice(match self.style.calls {
                CallStyle::FunctionCall => b"}}",
                CallStyle::ToolCalls => b"}}]}",
            });
            Self::end(None, "null", out);
        }
    }
}

impl Chunks for ChatChunks {
    fn open(&mut self, out: &mut Vec<u8>) {
        let delta: &[u8] = match self.style.is_forced {
            true => br#"{"role":"assistant","content":null,"refusal":null}"#,
            false => br#"{"role":"assistant","content":"","refusal":null}"#,
        };
        for choice in 0..self.choices.len() {
            self.chunk(choice, delta, None, "null", out);
        }
    }

    fn progress(&mut self, choice: usize, _counts: [u32; 3], out: &mut Vec<u8>) {
        self.chunk(choice, b"{}", None, "null", out);
    }

    fn delta(&mut self, choice: usize, delta: &Delta, out: &mut Vec<u8>) {
        if !delta.reasoning.is_empty() {
            self.text(choice, "reasoning_content", &delta.reasoning, None, out);
        }
        let logprobs =
            (self.style.with_logprobs && !delta.logprobs.is_empty()).then(|| json(&logprobs::chat(&delta.logprobs)));
        if !delta.content.is_empty() || logprobs.is_some() {
            self.text(choice, "content", &delta.content, logprobs.as_deref(), out);
        }
        for piece in &delta.tool_calls {
            self.call(choice, piece, out);
        }
    }

    fn finish(&mut self, choice: usize, done: &Done, out: &mut Vec<u8>) {
        let called = self.choices.get(choice).map_or(Called::Nothing, Choice::called);
        let reason = finish_reason(&done.finish, called, self.style.calls);
        self.chunk(choice, b"{}", None, &format!("\"{reason}\""), out);
    }

    fn end(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        write_end(&self.head, self.style.include_usage.then_some(usage), out);
    }

    fn fail(&mut self, problem: &Problem, out: &mut Vec<u8>) {
        write_problem(problem, out);
    }
}

/// Chunks of a text completion.
pub struct TextChunks {
    head: Vec<u8>,
    style: TextStyle,
    choices: Vec<TextChoice>,
}

#[derive(Debug, Clone, Copy, Default)]
struct TextChoice {
    /// Characters sent, where logprobs are wanted: `text_offset` goes on from there.
    n_chars: usize,
    /// The prompt was sent, where it is wanted.
    has_echoed: bool,
}

impl TextChunks {
    pub fn new(head: &Head, n_choices: usize, style: TextStyle) -> Self {
        Self { head: constant_head(head, "text_completion"), style, choices: vec![TextChoice::default(); n_choices] }
    }

    /// The prompt, before anything else of a choice, in a chunk of its own.
    fn echo(&mut self, choice: usize, prompt: &[TokenLogprob], out: &mut Vec<u8>) {
        let Some(state) = self.choices.get_mut(choice).filter(|state| !state.has_echoed) else { return };
        state.has_echoed = true;
        let Some(text) = self.style.echoed(choice, prompt) else { return };
        let mut arrays = TextArrays::default();
        if self.style.with_logprobs {
            arrays.prompt(prompt, &text, &mut state.n_chars);
        }
        let logprobs = (!arrays.is_empty()).then(|| json(&arrays.into_json()));
        if !text.is_empty() || logprobs.is_some() {
            self.chunk(choice, &text, logprobs.as_deref(), "null", out);
        }
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

    fn progress(&mut self, choice: usize, _counts: [u32; 3], out: &mut Vec<u8>) {
        self.chunk(choice, "", None, "null", out);
    }

    fn delta(&mut self, choice: usize, delta: &Delta, out: &mut Vec<u8>) {
        self.echo(choice, &delta.prompt, out);
        let mut arrays = TextArrays::default();
        if let Some(state) = self.choices.get_mut(choice).filter(|_| self.style.with_logprobs) {
            arrays.answer(&delta.logprobs, &mut state.n_chars);
        }
        let logprobs = (!arrays.is_empty()).then(|| json(&arrays.into_json()));
        if !delta.content.is_empty() || logprobs.is_some() {
            self.chunk(choice, &delta.content, logprobs.as_deref(), "null", out);
        }
    }

    fn finish(&mut self, choice: usize, done: &Done, out: &mut Vec<u8>) {
        self.echo(choice, &[], out);
        let reason = finish_reason(&done.finish, Called::Nothing, CallStyle::default());
        self.chunk(choice, "", None, &format!("\"{reason}\""), out);
    }

    fn end(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        write_end(&self.head, self.style.include_usage.then_some(usage), out);
    }

    fn fail(&mut self, problem: &Problem, out: &mut Vec<u8>) {
        write_problem(problem, out);
    }
}

#[cfg(test)]
mod tests {
    use super::super::completion::Echo;
    use super::*;
    use crate::chat::Finish;
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
        let mut chunks = ChatChunks::new(&head(), 2, ChatStyle::default());
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

    fn text_style(echo: Option<Vec<Echo>>) -> TextStyle {
        TextStyle { with_logprobs: true, include_usage: false, n: 1, echo, wanted: Default::default() }
    }

    fn done(finish: Finish) -> Done {
        Done { finish, usage: Usage::default(), timings: Timings::default() }
    }

    fn deltas(calls: CallStyle, pieces: &[ToolCallDelta], finish: Finish) -> (Vec<Value>, Value) {
        let style = ChatStyle { calls, is_forced: true, ..Default::default() };
        let mut chunks = ChatChunks::new(&head(), 1, style);
        let mut out = Vec::new();
        chunks.open(&mut out);
        chunks.delta(0, &Delta { tool_calls: pieces.to_vec(), ..Default::default() }, &mut out);
        chunks.finish(0, &done(finish), &mut out);
        let mut choices: Vec<Value> = events(&out).iter().map(|event| event["choices"][0].clone()).collect();
        let last = choices.pop().unwrap();
        (choices.iter().map(|choice| choice["delta"].clone()).collect(), last["finish_reason"].clone())
    }

    #[test]
    fn a_call_opens_alone_and_its_arguments_follow() {
        let piece = |index: u32, name: Option<&str>, arguments: &str| ToolCallDelta {
            index,
            opening: name.map(|name| (format!("call_{name}"), name.to_owned())),
            arguments: arguments.to_owned(),
        };
        let pieces = [piece(0, Some("f"), "{\"a\":"), piece(0, None, "\"\n\"}"), piece(1, Some("g"), "{}")];
        let (newer, reason) = deltas(CallStyle::ToolCalls, &pieces, Finish::EndOfTurn);
        let open = |index: u32, name: &str| {
            json!({"tool_calls":[{"index":index,"id":format!("call_{name}"),"type":"function",
            "function":{"name":name,"arguments":""}}]})
        };
        let more = |index: u32, text: &str| json!({"tool_calls":[{"index":index,"function":{"arguments":text}}]});
        let role = json!({"role":"assistant","content":null,"refusal":null});
        let expected =
            [role.clone(), open(0, "f"), more(0, "{\"a\":"), more(0, "\"\n\"}"), open(1, "g"), more(1, "{}")];
        assert_eq!((newer.as_slice(), reason), (expected.as_slice(), json!("tool_calls")));
        let (older, reason) = deltas(CallStyle::FunctionCall, &pieces, Finish::EndOfTurn);
        let of = |value: Value| json!({ "function_call": value });
        let expected = [
            role,
            of(json!({"name":"f","arguments":""})),
            of(json!({"arguments":"{\"a\":"})),
            of(json!({"arguments":"\"\n\"}"})),
        ];
        assert_eq!((older.as_slice(), reason), (expected.as_slice(), json!("function_call")));
        let cut = deltas(CallStyle::ToolCalls, &pieces[..1], Finish::Length).1;
        assert_eq!(cut, "length", "TOOL-07");
        assert_eq!(deltas(CallStyle::ToolCalls, &pieces[..1], Finish::StopString("x".into())).1, "stop");
    }

    #[test]
    fn the_prompt_comes_first_and_offsets_go_on_behind_it() {
        let entry = |text: &str| TokenLogprob { id: 0, bytes: text.into(), logprob: -1.0, top: vec![] };
        let mut chunks = TextChunks::new(&head(), 1, text_style(Some(vec![Echo::Text("ab".into())])));
        let mut out = Vec::new();
        let delta = Delta {
            prompt: vec![entry("<s>"), entry("a"), entry("b")],
            content: "c".into(),
            logprobs: vec![entry("c")],
            ..Default::default()
        };
        chunks.delta(0, &delta, &mut out);
        chunks.finish(0, &done(Finish::Length), &mut out);
        let events = events(&out);
        let texts: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["text"]).collect();
        assert_eq!(texts, ["ab", "c", ""]);
        assert_eq!(events[0]["choices"][0]["logprobs"]["token_logprobs"], json!([null, -1.0, -1.0]));
        assert_eq!(events[0]["choices"][0]["logprobs"]["text_offset"], json!([0, 0, 1]));
        assert_eq!(events[1]["choices"][0]["logprobs"]["text_offset"], json!([2]));
    }

    #[test]
    fn a_delta_without_text_writes_nothing() {
        let mut out = Vec::new();
        let nothing = Delta { n_tokens: 1, ..Default::default() };
        let chat = ChatStyle { with_logprobs: true, ..Default::default() };
        ChatChunks::new(&head(), 1, chat).delta(0, &nothing, &mut out);
        TextChunks::new(&head(), 1, text_style(None)).delta(0, &nothing, &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn text_offsets_go_on_from_chunk_to_chunk() {
        let mut chunks = TextChunks::new(&head(), 1, text_style(None));
        let mut out = Vec::new();
        for word in ["hé", "llo"] {
            let entry = TokenLogprob { id: 0, bytes: word.into(), logprob: -1.0, top: vec![] };
            chunks.delta(0, &Delta { content: word.into(), logprobs: vec![entry], ..Default::default() }, &mut out);
        }
        let events = events(&out);
        assert_eq!(events[0]["object"], "text_completion");
        assert_eq!(events[1]["choices"][0]["logprobs"]["text_offset"], json!([2]));
    }

    #[test]
    fn the_usage_chunk_alone_has_no_choices() {
        let mut out = Vec::new();
        let style = ChatStyle { include_usage: true, ..Default::default() };
        ChatChunks::new(&head(), 1, style).end(&Usage { prompt_tokens: 2, ..Default::default() }, &mut out);
        let out = out.strip_suffix(b"data: [DONE]\n\n").unwrap();
        let event = &events(out)[0];
        assert_eq!((&event["choices"], &event["usage"]["total_tokens"]), (&json!([]), &json!(2)));
    }
}
