//! Events of a running response as they are streamed, and whole responses, which are the same without the telling.

use super::items::Item;
use super::object::{Echo, Head, State, object};
use super::output::Items;
use super::request::Asked;
use crate::chat::{Delta, Finish, Usage};
use crate::dialect::{Chunks, Problem};
use crate::engine::Done;
use serde::Serialize;
use serde_json::value::RawValue;
use std::io::Write as _;
use std::sync::Arc;

/// Writes events, or nothing where nobody listens.
#[derive(Debug)]
pub(super) struct Writer {
    /// The next event's number; `None`: silent.
    n_next: Option<u64>,
}

impl Writer {
    /// Appends an event; `fields` is an object.
    pub(super) fn event(&mut self, kind: &str, fields: &impl Serialize, out: &mut Vec<u8>) {
        let Some(n) = &mut self.n_next else { return };
        let fields = serde_json::to_vec(fields).expect("events have text keys; failing is a bug");
        let rest = fields.strip_prefix(b"{").expect("the fields of an event are an object; anything else is a bug");
        write!(out, "event: {kind}\ndata: {{\"type\":\"{kind}\",\"sequence_number\":{n},")
            .expect("bytes go into a Vec; failing is a bug");
        out.extend_from_slice(rest);
        out.extend_from_slice(b"\n\n");
        *n += 1;
    }
}

/// An event about the whole response.
#[derive(Serialize)]
struct About<'a> {
    response: &'a RawValue,
}

/// A response that has ended well: what may be kept of it.
#[derive(Debug)]
pub struct Finished {
    pub id: String,
    /// The object as JSON text.
    pub object: String,
    pub output: Vec<Arc<Item>>,
}

/// One response in the making.
#[derive(Debug)]
struct Making {
    head: Head,
    echo: Echo,
    items: Items,
    finish: Finish,
    writer: Writer,
}

impl Making {
    fn new(head: Head, asked: Asked, n_next: Option<u64>) -> Self {
        let with_logprobs = asked.with_logprobs();
        let items = Items::new(head.base(), asked.called, with_logprobs);
        Self { head, echo: asked.echo, items, finish: Finish::Length, writer: Writer { n_next } }
    }

    /// Tells of the whole response; returns its text.
    fn tell(&mut self, kind: &str, state: &Said, out: &mut Vec<u8>) -> String {
        let output = if state.status == "in_progress" { &[] } else { self.items.done() };
        let state = State { status: state.status, output, usage: state.usage, error: state.error, cut: state.cut };
        let bytes = object(&self.head, &self.echo, &state);
        let text = String::from_utf8(bytes).expect("JSON text is UTF-8; anything else is a bug");
        if self.writer.n_next.is_some() {
            let response = serde_json::from_str(&text).expect("the object is JSON; anything else is a bug");
            self.writer.event(kind, &About { response }, out);
        }
        text
    }

    fn end(&mut self, usage: &Usage, out: &mut Vec<u8>) -> Finished {
        let finish = self.finish.clone();
        self.items.finish(&finish, &mut self.writer, out);
        let cut = match finish {
            Finish::Length => Some("max_output_tokens"),
            Finish::Filtered => Some("content_filter"),
            Finish::EndOfTurn | Finish::StopString(_) => None,
        };
        let (kind, status) = match cut {
            Some(_) => ("response.incomplete", "incomplete"),
            None => ("response.completed", "completed"),
        };
        let object = self.tell(kind, &Said { status, usage: Some(usage), error: None, cut }, out);
        let output = self.items.done().iter().cloned().filter_map(Item::from_json).map(Arc::new).collect();
        Finished { id: self.head.id.clone(), object, output }
    }
}

/// How far it is, beside its output.
struct Said<'a> {
    status: &'static str,
    usage: Option<&'a Usage>,
    error: Option<&'a str>,
    /// Why it is incomplete.
    cut: Option<&'static str>,
}

/// The event stream of one response.
#[derive(Debug)]
pub struct ResponseChunks {
    making: Making,
    finished: Option<Finished>,
}

impl ResponseChunks {
    pub fn new(head: Head, asked: Asked) -> Self {
        Self { making: Making::new(head, asked, Some(0)), finished: None }
    }

    /// The response, once it has ended well.
    pub fn finished(&mut self) -> Option<Finished> {
        self.finished.take()
    }
}

impl Chunks for ResponseChunks {
    fn open(&mut self, out: &mut Vec<u8>) {
        for kind in ["response.created", "response.in_progress"] {
            self.making.tell(kind, &Said { status: "in_progress", usage: None, error: None, cut: None }, out);
        }
    }

    fn progress(&mut self, _choice: usize, _counts: [u32; 3], out: &mut Vec<u8>) {
        self.making.tell(
            "response.in_progress",
            &Said { status: "in_progress", usage: None, error: None, cut: None },
            out,
        );
    }

    fn delta(&mut self, _choice: usize, delta: &Delta, out: &mut Vec<u8>) {
        self.making.items.push(delta, &mut self.making.writer, out);
    }

    fn finish(&mut self, _choice: usize, done: &Done, _out: &mut Vec<u8>) {
        self.making.finish = done.finish.clone();
    }

    fn end(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        self.finished = Some(self.making.end(usage, out));
    }

    fn fail(&mut self, problem: &Problem, out: &mut Vec<u8>) {
        self.making.items.abandon(&mut self.making.writer, out);
        let said = Said { status: "failed", usage: None, error: Some(&problem.message), cut: None };
        self.making.tell("response.failed", &said, out);
    }
}

/// A response that is sent whole.
#[derive(Debug)]
pub struct Whole {
    making: Making,
}

impl Whole {
    pub fn new(head: Head, asked: Asked) -> Self {
        Self { making: Making::new(head, asked, None) }
    }

    pub fn delta(&mut self, delta: &Delta) {
        self.making.items.push(delta, &mut self.making.writer, &mut Vec::new());
    }

    pub fn end(mut self, finish: Finish, usage: &Usage) -> Finished {
        self.making.finish = finish;
        self.making.end(usage, &mut Vec::new())
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
