//! Deltas → output items, with the events that tell of them.

use super::custom::CustomInput;
use super::stream::Writer;
use super::tools::Called;
use crate::chat::{Delta, Finish, TokenLogprob, ToolCallDelta};
use crate::dialect::openai::logprobs;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::HashMap;

/// The items of one answer. Exactly one is open at a time; opening another closes it.
#[derive(Debug)]
pub(super) struct Items {
    /// Of their ids.
    base: String,
    called: HashMap<String, Called>,
    with_logprobs: bool,
    /// Complete ones, as they stand in the response.
    done: Vec<Value>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    id: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Thought { text: String },
    Message { text: String, logprobs: Vec<TokenLogprob> },
    Call { call_id: String, called: Called, arguments: String },
    Custom { call_id: String, called: Called, input: CustomInput },
}

/// Whether an item is all there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    Cut,
}

impl End {
    fn status(self) -> &'static str {
        if self == End::Whole { "completed" } else { "incomplete" }
    }
}

/// The fields of an event about a part of an item.
#[derive(Serialize)]
struct About<'a, T: Serialize> {
    item_id: &'a str,
    output_index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_index: Option<usize>,
    #[serde(flatten)]
    said: T,
}

#[derive(Serialize)]
struct Piece<'a> {
    delta: &'a str,
}

#[derive(Serialize)]
struct TextPiece<'a> {
    delta: &'a str,
    logprobs: Value,
}

impl Items {
    pub(super) fn new(base: &str, called: HashMap<String, Called>, with_logprobs: bool) -> Self {
        Self { base: base.to_owned(), called, with_logprobs, done: Vec::new(), open: None }
    }

    /// The complete items.
    pub(super) fn done(&self) -> &[Value] {
        &self.done
    }

    pub(super) fn push(&mut self, delta: &Delta, writer: &mut Writer, out: &mut Vec<u8>) {
        // Deltas that waited are merged: the rest of the open call came before this text, which would end its item.
        let n_rest = delta.tool_calls.iter().take_while(|piece| piece.opening.is_none()).count();
        let (rest, next) = delta.tool_calls.split_at(n_rest);
        rest.iter().for_each(|piece| self.call(piece, writer, out));
        if !delta.reasoning.is_empty() {
            self.think(&delta.reasoning, writer, out);
        }
        let logprobs: &[TokenLogprob] = if self.with_logprobs { &delta.logprobs } else { &[] };
        if !delta.content.is_empty() || !logprobs.is_empty() {
            self.say(&delta.content, logprobs, writer, out);
        }
        next.iter().for_each(|piece| self.call(piece, writer, out));
    }

    /// The end of the answer. One that said nothing is an empty message.
    pub(super) fn finish(&mut self, finish: &Finish, writer: &mut Writer, out: &mut Vec<u8>) {
        if self.done.is_empty() && self.open.is_none() {
            self.say("", &[], writer, out);
        }
        let end = if matches!(finish, Finish::Length | Finish::Filtered) { End::Cut } else { End::Whole };
        self.close(end, writer, out);
    }

    /// The end of an answer that failed: what is open stays as far as it got.
    pub(super) fn abandon(&mut self, writer: &mut Writer, out: &mut Vec<u8>) {
        self.close(End::Cut, writer, out);
    }

    fn think(&mut self, piece: &str, writer: &mut Writer, out: &mut Vec<u8>) {
        if !matches!(self.open, Some(Open { kind: Kind::Thought { .. }, .. })) {
            self.open(Kind::Thought { text: String::new() }, writer, out);
        }
        let output_index = self.done.len();
        if let Some(Open { id, kind: Kind::Thought { text } }) = &mut self.open {
            text.push_str(piece);
            let said = Piece { delta: piece };
            let about = About { item_id: id, output_index, content_index: Some(0), said };
            writer.event("response.reasoning_text.delta", &about, out);
        }
    }

    fn say(&mut self, piece: &str, entries: &[TokenLogprob], writer: &mut Writer, out: &mut Vec<u8>) {
        if !matches!(self.open, Some(Open { kind: Kind::Message { .. }, .. })) {
            self.open(Kind::Message { text: String::new(), logprobs: Vec::new() }, writer, out);
        }
        let output_index = self.done.len();
        if let Some(Open { id, kind: Kind::Message { text, logprobs } }) = &mut self.open {
            text.push_str(piece);
            logprobs.extend_from_slice(entries);
            if !piece.is_empty() || !entries.is_empty() {
                let said = TextPiece { delta: piece, logprobs: logprobs_wire(entries) };
                let about = About { item_id: id, output_index, content_index: Some(0), said };
                writer.event("response.output_text.delta", &about, out);
            }
        }
    }

    fn call(&mut self, piece: &ToolCallDelta, writer: &mut Writer, out: &mut Vec<u8>) {
        if let Some((call_id, name)) = &piece.opening {
            let plain = || Called { name: name.clone(), namespace: None, is_custom: false };
            let called = self.called.get(name).cloned().unwrap_or_else(plain);
            let call_id = call_id.clone();
            let kind = if called.is_custom {
                Kind::Custom { call_id, called, input: CustomInput::default() }
            } else {
                Kind::Call { call_id, called, arguments: String::new() }
            };
            self.open(kind, writer, out);
        }
        let output_index = self.done.len();
        let (id, kind, piece) = match &mut self.open {
            Some(Open { id, kind: Kind::Call { arguments, .. } }) => {
                arguments.push_str(&piece.arguments);
                (id, "response.function_call_arguments.delta", piece.arguments.clone())
            }
            Some(Open { id, kind: Kind::Custom { input, .. } }) => {
                (id, "response.custom_tool_call_input.delta", input.push(&piece.arguments))
            }
            _ => return,
        };
        if !piece.is_empty() {
            let about = About { item_id: id, output_index, content_index: None, said: Piece { delta: &piece } };
            writer.event(kind, &about, out);
        }
    }

    fn open(&mut self, kind: Kind, writer: &mut Writer, out: &mut Vec<u8>) {
        self.close(End::Whole, writer, out);
        let output_index = self.done.len();
        let prefix = match kind {
            Kind::Thought { .. } => "rs",
            Kind::Message { .. } => "msg",
            Kind::Call { .. } => "fc",
            Kind::Custom { .. } => "ctc",
        };
        let id = format!("{prefix}_{}{output_index:02}", self.base);
        let (item, part) = kind.beginning(&id);
        writer.event("response.output_item.added", &json!({ "output_index": output_index, "item": item }), out);
        if let Some(part) = part {
            let said = json!({ "part": part });
            let about = About { item_id: &id, output_index, content_index: Some(0), said };
            writer.event("response.content_part.added", &about, out);
        }
        self.open = Some(Open { id, kind });
    }

    fn close(&mut self, end: End, writer: &mut Writer, out: &mut Vec<u8>) {
        let Some(Open { id, kind }) = self.open.take() else { return };
        let output_index = self.done.len();
        let item = kind.end(&Place { id: &id, output_index, end }, writer, out);
        writer.event("response.output_item.done", &json!({ "output_index": output_index, "item": item }), out);
        self.done.push(item);
    }
}

/// Where an item ends, and how.
struct Place<'a> {
    id: &'a str,
    output_index: usize,
    end: End,
}

impl Place<'_> {
    fn event(&self, kind: &str, has_content: bool, said: Value, writer: &mut Writer, out: &mut Vec<u8>) {
        let content_index = has_content.then_some(0);
        let about = About { item_id: self.id, output_index: self.output_index, content_index, said };
        writer.event(kind, &about, out);
    }
}

impl Kind {
    /// The item when it begins, and its part, if it has parts.
    fn beginning(&self, id: &str) -> (Value, Option<Value>) {
        match self {
            Kind::Thought { .. } => {
                let part = json!({ "type": "reasoning_text", "text": "" });
                (thought_item(id, &[], "in_progress"), Some(part))
            }
            Kind::Message { .. } => {
                (message_item(id, &[], "in_progress"), Some(text_part("", Value::Array(Vec::new()))))
            }
            Kind::Call { call_id, called, .. } => (call_item(id, call_id, called, "", "in_progress"), None),
            Kind::Custom { call_id, called, .. } => (custom_item(id, call_id, called, "", "in_progress"), None),
        }
    }

    /// Tells the end of the item's parts; returns the item.
    fn end(self, place: &Place, writer: &mut Writer, out: &mut Vec<u8>) -> Value {
        let status = place.end.status();
        match self {
            Kind::Thought { text } => {
                let part = json!({ "type": "reasoning_text", "text": text });
                place.event("response.reasoning_text.done", true, json!({ "text": text }), writer, out);
                place.event("response.content_part.done", true, json!({ "part": part }), writer, out);
                thought_item(place.id, &[part], status)
            }
            Kind::Message { text, logprobs } => {
                let logprobs = logprobs_wire(&logprobs);
                let part = text_part(&text, logprobs.clone());
                let said = json!({ "text": text, "logprobs": logprobs });
                place.event("response.output_text.done", true, said, writer, out);
                place.event("response.content_part.done", true, json!({ "part": part }), writer, out);
                message_item(place.id, &[part], status)
            }
            Kind::Call { call_id, called, mut arguments } => {
                let kind = "response.function_call_arguments";
                if arguments.is_empty() && place.end == End::Whole {
                    arguments.push_str("{}");
                    place.event(&format!("{kind}.delta"), false, json!({ "delta": arguments }), writer, out);
                }
                let said = json!({ "name": called.name, "arguments": arguments });
                place.event(&format!("{kind}.done"), false, said, writer, out);
                call_item(place.id, &call_id, &called, &arguments, status)
            }
            Kind::Custom { call_id, called, input } => {
                let kind = "response.custom_tool_call_input";
                let (text, rest) = input.finish();
                if !rest.is_empty() {
                    place.event(&format!("{kind}.delta"), false, json!({ "delta": rest }), writer, out);
                }
                place.event(&format!("{kind}.done"), false, json!({ "input": text }), writer, out);
                custom_item(place.id, &call_id, &called, &text, status)
            }
        }
    }
}

fn thought_item(id: &str, content: &[Value], status: &str) -> Value {
    json!({
        "type": "reasoning", "id": id, "summary": [], "content": content, "encrypted_content": null, "status": status,
    })
}

fn message_item(id: &str, content: &[Value], status: &str) -> Value {
    json!({ "type": "message", "id": id, "role": "assistant", "status": status, "content": content })
}

fn text_part(text: &str, logprobs: Value) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": logprobs })
}

fn call_item(id: &str, call_id: &str, called: &Called, arguments: &str, status: &str) -> Value {
    let mut item = json!({
        "type": "function_call", "id": id, "call_id": call_id, "name": called.name, "arguments": arguments,
        "status": status,
    });
    add_namespace(&mut item, called);
    item
}

fn custom_item(id: &str, call_id: &str, called: &Called, input: &str, status: &str) -> Value {
    let mut item = json!({
        "type": "custom_tool_call", "id": id, "call_id": call_id, "name": called.name, "input": input,
        "status": status,
    });
    add_namespace(&mut item, called);
    item
}

fn add_namespace(item: &mut Value, called: &Called) {
    if let Some(namespace) = &called.namespace {
        item["namespace"] = namespace.as_str().into();
    }
}

/// An array, empty where none are wanted.
fn logprobs_wire(entries: &[TokenLogprob]) -> Value {
    if entries.is_empty() { Value::Array(Vec::new()) } else { logprobs::chat(entries)["content"].take() }
}
