//! Events → rows of NDJSON, and whole answers, which are all rows in one.

use crate::chat::{Delta, Finish, TokenLogprob, ToolCall, ToolCallDelta, Usage};
use crate::dialect::openai::rfc3339;
use crate::dialect::{Answer, Chunks, Problem, arguments};
use crate::engine::{Done, Timings};
use serde_json::{Value, json};
use std::time::Duration;

/// Which endpoint the rows are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `message`.
    Chat,
    /// `response`.
    Generate,
}

/// What every row of an answer says, and the times of its request.
#[derive(Debug, Clone)]
pub struct Head {
    pub shape: Shape,
    /// The served id, whatever name was asked for.
    pub model: String,
    pub with_logprobs: bool,
    /// Time since 1970.
    pub now: fn() -> Duration,
    /// When the request came, by the same clock.
    pub started: Duration,
    /// From then until it was accepted: loading, rendering, waiting.
    pub load: Duration,
}

/// One row's text; all of it may be empty.
#[derive(Default)]
struct Text<'a> {
    content: &'a str,
    thinking: &'a str,
    calls: Vec<Value>,
}

impl Head {
    /// A row before its `done`.
    fn row(&self, text: Text) -> Value {
        let mut row = json!({ "model": self.model, "created_at": timestamp((self.now)()) });
        let place = match self.shape {
            Shape::Chat => {
                row["message"] = json!({ "role": "assistant", "content": text.content });
                &mut row["message"]
            }
            Shape::Generate => {
                row["response"] = text.content.into();
                &mut row
            }
        };
        if !text.thinking.is_empty() {
            place["thinking"] = text.thinking.into();
        }
        if !text.calls.is_empty() {
            place["tool_calls"] = text.calls.into();
        }
        row
    }

    fn logprobs(&self, row: &mut Value, entries: &[TokenLogprob]) {
        if self.with_logprobs && !entries.is_empty() {
            row["logprobs"] = entries.iter().map(logprob).collect();
        }
    }

    /// What only the last row has; durations in nanoseconds.
    fn end(&self, row: &mut Value, finish: &Finish, usage: &Usage, timings: &Timings) {
        let micros = |n: u64| n.saturating_mul(1000);
        let reason = match finish {
            Finish::EndOfTurn | Finish::StopString(_) => "stop",
            Finish::Length => "length",
            Finish::Filtered => "content_filter",
        };
        let total = nanoseconds((self.now)().saturating_sub(self.started));
        let generating = micros(timings.prompt_us).saturating_add(micros(timings.predicted_us));
        // The wait for a slot began before the acceptance came through, so the two overlap by a hair.
        let load =
            nanoseconds(self.load).saturating_add(micros(timings.queue_us)).min(total.saturating_sub(generating));
        row["done"] = true.into();
        row["done_reason"] = reason.into();
        row["total_duration"] = total.into();
        row["load_duration"] = load.into();
        row["prompt_eval_count"] = usage.prompt_tokens.into();
        row["prompt_eval_duration"] = micros(timings.prompt_us).into();
        row["eval_count"] = usage.completion_tokens.into();
        row["eval_duration"] = micros(timings.predicted_us).into();
    }
}

pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// RFC 3339 with microseconds.
fn timestamp(since_1970: Duration) -> String {
    let whole = rfc3339(since_1970.as_secs());
    format!("{}.{:06}Z", whole.trim_end_matches('Z'), since_1970.subsec_micros())
}

fn logprob(entry: &TokenLogprob) -> Value {
    let token = |bytes: &[u8], logprob: f32| json!({ "token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes });
    let mut value = token(&entry.bytes, entry.logprob);
    if !entry.top.is_empty() {
        value["top_logprobs"] = entry.top.iter().map(|other| token(&other.bytes, other.logprob)).collect();
    }
    value
}

fn call(index: usize, call: &ToolCall) -> Value {
    let arguments = arguments::object(&call.arguments);
    json!({ "id": call.id, "function": { "index": index, "name": call.name, "arguments": arguments } })
}

/// Everything in one object.
pub fn whole_response(head: &Head, answer: &Answer, usage: &Usage, timings: &Timings) -> Vec<u8> {
    let calls = answer.tool_calls.iter().enumerate().map(|(i, it)| call(i, it)).collect();
    let mut row = head.row(Text { content: &answer.content, thinking: &answer.reasoning, calls });
    head.end(&mut row, &answer.finish, usage, timings);
    head.logprobs(&mut row, &answer.logprobs);
    row.to_string().into_bytes()
}

/// The one row of a request that asked for nothing but the model: `reason` is `load` or `unload`.
pub fn idle_response(head: &Head, reason: &str) -> Vec<u8> {
    let mut row = head.row(Text::default());
    row["done"] = true.into();
    row["done_reason"] = reason.into();
    (row.to_string() + "\n").into_bytes()
}

/// The rows of one streamed answer.
pub struct Rows {
    head: Head,
    /// The call that is being written; a row has whole calls only.
    open: Option<ToolCall>,
    n_calls: usize,
}

impl Rows {
    pub fn new(head: Head) -> Self {
        Self { head, open: None, n_calls: 0 }
    }

    fn write(mut row: Value, out: &mut Vec<u8>) {
        if row.get("done").is_none() {
            row["done"] = false.into();
        }
        out.extend_from_slice(row.to_string().as_bytes());
        out.push(b'\n');
    }

    fn call(&mut self, piece: &ToolCallDelta, out: &mut Vec<u8>) {
        if let Some((id, name)) = &piece.opening {
            self.close(out);
            self.open = Some(ToolCall { id: id.clone(), name: name.clone(), arguments: String::new() });
        }
        if let Some(open) = &mut self.open {
            open.arguments.push_str(&piece.arguments);
        }
    }

    /// The open call is complete.
    fn close(&mut self, out: &mut Vec<u8>) {
        let Some(complete) = self.open.take() else { return };
        let calls = vec![call(self.n_calls, &complete)];
        self.n_calls += 1;
        Self::write(self.head.row(Text { calls, ..Default::default() }), out);
    }
}

impl Chunks for Rows {
    const CONTENT_TYPE: &'static str = super::NDJSON;
    /// Every line is read as JSON, so there is nothing that may be said.
    const KEEP_ALIVE: &'static [u8] = b"";

    fn open(&mut self, _out: &mut Vec<u8>) {}

    fn delta(&mut self, _choice: usize, delta: &Delta, out: &mut Vec<u8>) {
        let has_logprobs = self.head.with_logprobs && !delta.logprobs.is_empty();
        if !delta.content.is_empty() || !delta.reasoning.is_empty() || has_logprobs {
            let text = Text { content: &delta.content, thinking: &delta.reasoning, calls: Vec::new() };
            let mut row = self.head.row(text);
            row["done"] = false.into();
            self.head.logprobs(&mut row, &delta.logprobs);
            Self::write(row, out);
        }
        for piece in &delta.tool_calls {
            self.call(piece, out);
        }
    }

    fn finish(&mut self, _choice: usize, done: &Done, out: &mut Vec<u8>) {
        self.close(out);
        let mut row = self.head.row(Text::default());
        self.head.end(&mut row, &done.finish, &done.usage, &done.timings);
        Self::write(row, out);
    }

    fn end(&mut self, _usage: &Usage, _out: &mut Vec<u8>) {}

    /// OLLA-09.
    fn fail(&mut self, problem: &Problem, out: &mut Vec<u8>) {
        out.extend(super::error_body(&problem.message));
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::Likely;

    fn head(shape: Shape) -> Head {
        Head {
            shape,
            model: "m".into(),
            with_logprobs: false,
            now: || Duration::from_micros(1_790_000_000_250_000),
            started: Duration::from_secs(1_790_000_000),
            load: Duration::from_millis(1),
        }
    }

    fn done() -> Done {
        let usage = Usage { prompt_tokens: 5, cached_tokens: 3, completion_tokens: 2, ..Default::default() };
        let timings = Timings { queue_us: 1, prompt_us: 20, predicted_us: 300 };
        Done { finish: Finish::EndOfTurn, usage, timings }
    }

    fn rows(bytes: &[u8]) -> Vec<Value> {
        let text = std::str::from_utf8(bytes).unwrap();
        assert!(text.ends_with('\n') && !text.contains("\n\n"));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn end(mut row: Value) -> Value {
        let more = json!({"done":true,"done_reason":"stop","total_duration":250_000_000,"load_duration":1_001_000,
            "prompt_eval_count":5,"prompt_eval_duration":20_000,"eval_count":2,"eval_duration":300_000});
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        row
    }

    /// OLLA-01 and OLLA-06.
    #[test]
    fn rows_of_a_chat() {
        let mut chunks = Rows::new(head(Shape::Chat));
        let mut out = Vec::new();
        chunks.open(&mut out);
        chunks.delta(0, &Delta { n_tokens: 1, ..Default::default() }, &mut out);
        assert!(out.is_empty(), "no row without text");
        chunks.delta(0, &Delta { reasoning: "hm".into(), ..Default::default() }, &mut out);
        chunks.delta(0, &Delta { content: "a\nb".into(), ..Default::default() }, &mut out);
        let piece = |opening: Option<(&str, &str)>, arguments: &str| ToolCallDelta {
            index: 0,
            opening: opening.map(|(id, name)| (id.into(), name.into())),
            arguments: arguments.into(),
        };
        let tool_calls =
            vec![piece(Some(("c1", "f")), "{\"b\":1,"), piece(None, "\"a\":2}"), piece(Some(("c2", "g")), "{}")];
        chunks.delta(0, &Delta { tool_calls, ..Default::default() }, &mut out);
        chunks.finish(0, &done(), &mut out);
        chunks.end(&Usage::default(), &mut out);
        let at = "2026-09-21T14:13:20.250000Z";
        let row = |message: Value| json!({"model":"m","created_at":at,"message":message,"done":false});
        let empty = json!({"role":"assistant","content":""});
        let call = |index: u32, id: &str, name: &str, arguments: Value| {
            let function = json!({"index":index,"name":name,"arguments":arguments});
            row(json!({"role":"assistant","content":"","tool_calls":[{"id":id,"function":function}]}))
        };
        assert_eq!(
            rows(&out),
            [
                row(json!({"role":"assistant","content":"","thinking":"hm"})),
                row(json!({"role":"assistant","content":"a\nb"})),
                call(0, "c1", "f", json!({"b":1,"a":2})),
                call(1, "c2", "g", json!({})),
                end(json!({"model":"m","created_at":at,"message":empty})),
            ]
        );
    }

    #[test]
    fn whole_answers_are_all_rows_in_one() {
        let answer =
            Answer { content: "a".into(), reasoning: "hm".into(), finish: Finish::EndOfTurn, ..Default::default() };
        let done = done();
        let whole = |shape| -> Value {
            serde_json::from_slice(&whole_response(&head(shape), &answer, &done.usage, &done.timings)).unwrap()
        };
        let at = "2026-09-21T14:13:20.250000Z";
        let message = json!({"role":"assistant","content":"a","thinking":"hm"});
        assert_eq!(whole(Shape::Chat), end(json!({"model":"m","created_at":at,"message":message})));
        assert_eq!(whole(Shape::Generate), end(json!({"model":"m","created_at":at,"response":"a","thinking":"hm"})));
    }

    /// OLLA-13.
    #[test]
    fn rows_carry_the_logprobs_of_their_tokens() {
        let top = vec![Likely { id: 1, bytes: "é".into(), logprob: -0.5 }];
        let entry = TokenLogprob { id: 1, bytes: "é".into(), logprob: -0.5, top };
        let delta = Delta { content: "é".into(), logprobs: vec![entry], ..Default::default() };
        let mut out = Vec::new();
        Rows::new(Head { with_logprobs: true, ..head(Shape::Generate) }).delta(0, &delta, &mut out);
        Rows::new(head(Shape::Generate)).delta(0, &delta, &mut out);
        let rows = rows(&out);
        let token = json!({"token":"é","logprob":-0.5,"bytes":[195,169]});
        let mut expected = token.clone();
        expected["top_logprobs"] = json!([token]);
        assert_eq!(rows[0]["logprobs"], json!([expected]));
        assert_eq!(rows[1].get("logprobs"), None);
    }

    /// OLLA-09.
    #[test]
    fn a_failure_is_a_row_with_a_text() {
        let problem = Problem { message: "m".into(), kind: "server_error", param: None, code: None };
        let mut out = Vec::new();
        Rows::new(head(Shape::Chat)).fail(&problem, &mut out);
        assert_eq!(out, b"{\"error\":\"m\"}\n");
    }
}
