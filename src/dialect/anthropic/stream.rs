//! Events → `event: T`, `data: {"type":T,…}`. Both SDKs drop events without the first line.

use super::to_wire::{Head, message, signature, stop_reason, usage_count};
use super::wire_id;
use crate::chat::{Delta, Finish, ToolCallDelta, Usage};
use crate::dialect::{Chunks, Problem};
use crate::engine::Done;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The events of one message. Blocks never overlap: one is open at a time.
pub struct MessageChunks {
    head: Head,
    /// The prompt's tokens, which are known before the stream begins.
    prompt: Usage,
    open: Option<Block>,
    /// Index of the next block.
    n_blocks: u32,
    has_calls: bool,
    finish: Finish,
}

enum Block {
    /// With the digest of the thinking so far.
    Thinking(Sha256),
    Text,
    Call,
}

impl MessageChunks {
    pub fn new(head: Head, prompt: Usage) -> Self {
        Self { head, prompt, open: None, n_blocks: 0, has_calls: false, finish: Finish::EndOfTurn }
    }

    fn start(&mut self, block: Block, content: &Value, out: &mut Vec<u8>) {
        self.stop(out);
        self.open = Some(block);
        let index = self.n_blocks;
        self.n_blocks += 1;
        event("content_block_start", json!({ "index": index, "content_block": content }), out);
    }

    fn stop(&mut self, out: &mut Vec<u8>) {
        let Some(block) = self.open.take() else { return };
        if let Block::Thinking(digest) = block {
            self.piece("signature_delta", "signature", &signature(digest), out);
        }
        event("content_block_stop", json!({ "index": self.n_blocks.saturating_sub(1) }), out);
    }

    /// A delta of the open block. The usual event, so it is put together from its pieces.
    fn piece(&self, kind: &str, key: &str, text: &str, out: &mut Vec<u8>) {
        let index = self.n_blocks.saturating_sub(1);
        out.extend_from_slice(b"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":");
        out.extend_from_slice(format!("{index},\"delta\":{{\"type\":\"{kind}\",\"{key}\":").as_bytes());
        serde_json::to_writer(&mut *out, text).expect("text goes into a Vec; failing is a bug");
        out.extend_from_slice(b"}}\n\n");
    }

    fn call(&mut self, piece: &ToolCallDelta, out: &mut Vec<u8>) {
        if let Some((id, name)) = &piece.opening {
            self.has_calls = true;
            let block = json!({ "type": "tool_use", "id": wire_id(id), "name": name, "input": {} });
            self.start(Block::Call, &block, out);
        }
        if !piece.arguments.is_empty() && matches!(self.open, Some(Block::Call)) {
            self.piece("input_json_delta", "partial_json", &piece.arguments, out);
        }
    }
}

impl Chunks for MessageChunks {
    const KEEP_ALIVE: &'static [u8] = b"event: ping\ndata: {\"type\":\"ping\"}\n\n";

    fn open(&mut self, out: &mut Vec<u8>) {
        event("message_start", json!({ "message": message(&self.head, Vec::new(), &self.prompt) }), out);
    }

    fn delta(&mut self, _choice: usize, delta: &Delta, out: &mut Vec<u8>) {
        // Deltas that waited are merged: the rest of the open call came before this text, which would close its block.
        let n_rest = delta.tool_calls.iter().take_while(|piece| piece.opening.is_none()).count();
        let (rest, next) = delta.tool_calls.split_at(n_rest);
        rest.iter().for_each(|piece| self.call(piece, out));
        if !delta.reasoning.is_empty() {
            if !matches!(self.open, Some(Block::Thinking(_))) {
                let block = json!({ "type": "thinking", "thinking": "", "signature": "" });
                self.start(Block::Thinking(Sha256::new()), &block, out);
            }
            if let Some(Block::Thinking(digest)) = &mut self.open {
                digest.update(&delta.reasoning);
            }
            self.piece("thinking_delta", "thinking", &delta.reasoning, out);
        }
        if !delta.content.is_empty() {
            if !matches!(self.open, Some(Block::Text)) {
                self.start(Block::Text, &json!({ "type": "text", "text": "" }), out);
            }
            self.piece("text_delta", "text", &delta.content, out);
        }
        next.iter().for_each(|piece| self.call(piece, out));
    }

    fn finish(&mut self, _choice: usize, done: &Done, out: &mut Vec<u8>) {
        self.stop(out);
        self.finish = done.finish.clone();
    }

    fn end(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        let (reason, sequence) = stop_reason(&self.finish, self.has_calls, &self.head.stops);
        let delta = json!({ "stop_reason": reason, "stop_sequence": sequence });
        // All counts, since only now it is known how much of the prompt was cached.
        event("message_delta", json!({ "delta": delta, "usage": usage_count(usage) }), out);
        event("message_stop", json!({}), out);
    }

    fn fail(&mut self, problem: &Problem, out: &mut Vec<u8>) {
        event("error", json!({ "error": { "type": "api_error", "message": problem.message } }), out);
    }
}

/// Writes one event; `type` is its first key.
fn event(kind: &str, fields: Value, out: &mut Vec<u8>) {
    let mut data = json!({ "type": kind });
    if let (Some(data), Value::Object(fields)) = (data.as_object_mut(), fields) {
        data.extend(fields);
    }
    out.extend_from_slice(format!("event: {kind}\ndata: {data}\n\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Timings;

    fn events(bytes: &[u8]) -> Vec<Value> {
        let text = std::str::from_utf8(bytes).unwrap();
        let read = |event: &str| {
            let (name, data) = event.split_once('\n').unwrap();
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(name, format!("event: {}", data["type"].as_str().unwrap()));
            data
        };
        text.split_terminator("\n\n").map(read).collect()
    }

    fn call(index: u32, opening: Option<(&str, &str)>, arguments: &str) -> ToolCallDelta {
        let opening = opening.map(|(id, name)| (id.to_owned(), name.to_owned()));
        ToolCallDelta { index, opening, arguments: arguments.into() }
    }

    /// A slow reader gets deltas merged: a call's end and the text behind it in one.
    #[test]
    fn a_calls_end_is_not_lost_to_the_text_behind_it() {
        let head = Head { id: "msg_1".into(), model: "m".into(), stops: Vec::new() };
        let mut chunks = MessageChunks::new(head, Usage::default());
        let mut out = Vec::new();
        let open = vec![call(0, Some(("call_1", "f")), "{\"x\"")];
        chunks.delta(0, &Delta { tool_calls: open, ..Default::default() }, &mut out);
        let merged = vec![call(0, None, ":1}"), call(1, Some(("k", "g")), "{}")];
        chunks.delta(0, &Delta { content: "\n".into(), tool_calls: merged, ..Default::default() }, &mut out);
        let pieces: String =
            events(&out).iter().filter_map(|it| it["delta"]["partial_json"].as_str().map(str::to_owned)).collect();
        assert_eq!(pieces, "{\"x\":1}{}");
    }

    /// ANTH-04 and ANTH-13.
    #[test]
    fn blocks_follow_each_other_and_never_overlap() {
        let head = Head { id: "msg_1".into(), model: "m".into(), stops: Vec::new() };
        let mut chunks = MessageChunks::new(head, Usage { prompt_tokens: 9, ..Default::default() });
        let mut out = Vec::new();
        chunks.open(&mut out);
        chunks.delta(0, &Delta { reasoning: "a".into(), ..Default::default() }, &mut out);
        chunks.delta(0, &Delta { reasoning: "b".into(), content: "c\n".into(), ..Default::default() }, &mut out);
        let pieces =
            vec![call(0, Some(("call_1", "f")), "{\"x\""), call(0, None, ":1}"), call(1, Some(("k", "g")), "")];
        chunks.delta(0, &Delta { tool_calls: pieces, ..Default::default() }, &mut out);
        let usage = Usage { prompt_tokens: 9, cached_tokens: 4, completion_tokens: 7, ..Default::default() };
        chunks.finish(0, &Done { finish: Finish::EndOfTurn, usage, timings: Timings::default() }, &mut out);
        chunks.end(&usage, &mut out);
        let events = events(&out);
        let shape: Vec<String> = events
            .iter()
            .map(|it| {
                let detail = it["content_block"]["type"].as_str().or(it["delta"]["type"].as_str()).unwrap_or("");
                format!("{} {} {detail}", it["type"].as_str().unwrap(), it["index"])
            })
            .collect();
        assert_eq!(
            shape,
            [
                "message_start null ",
                "content_block_start 0 thinking",
                "content_block_delta 0 thinking_delta",
                "content_block_delta 0 thinking_delta",
                "content_block_delta 0 signature_delta",
                "content_block_stop 0 ",
                "content_block_start 1 text",
                "content_block_delta 1 text_delta",
                "content_block_stop 1 ",
                "content_block_start 2 tool_use",
                "content_block_delta 2 input_json_delta",
                "content_block_delta 2 input_json_delta",
                "content_block_stop 2 ",
                "content_block_start 3 tool_use",
                "content_block_stop 3 ",
                "message_delta null ",
                "message_stop null ",
            ]
        );
        assert_eq!(events[0]["message"]["usage"]["input_tokens"], 9);
        assert_eq!(events[9]["content_block"], json!({"type":"tool_use","id":"toolu_1","name":"f","input":{}}));
        assert_eq!(events[15]["delta"], json!({"stop_reason":"tool_use","stop_sequence":null}));
        assert_eq!(events[15]["usage"]["cache_read_input_tokens"], 4);
        assert_eq!(events[15]["usage"]["output_tokens"], 7);
        let whole = signature(Sha256::new().chain_update("ab"));
        assert_eq!(events[4]["delta"]["signature"], whole.as_str(), "however the thinking was cut");
    }

    #[test]
    fn a_failure_is_an_event() {
        let head = Head { id: "msg_1".into(), model: "m".into(), stops: Vec::new() };
        let problem = Problem { message: "m".into(), kind: "server_error", param: None, code: None };
        let mut out = Vec::new();
        MessageChunks::new(head, Usage::default()).fail(&problem, &mut out);
        let expected =
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"m\"}}\n\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
