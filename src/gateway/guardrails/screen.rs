//! A running answer's events, looked at as they pass.
//!
//! Thinking, text and each call's arguments are texts of their own, and so is text behind a call: a match never spans two
//! of them, so none waits for another.

use super::json::JsonSieve;
use super::sieve::{Denied, Sieve, Step};
use crate::chat::{Delta, Finish, ToolCallDelta, Usage};
use crate::engine::{Done, Event, Failure, Timings};
use std::collections::VecDeque;

/// All choices of one request.
pub(in crate::gateway) struct Screen {
    steps: Vec<Step>,
    is_json: bool,
    choices: Vec<Choice>,
    /// **Bound:** what one event becomes, at most three for each choice.
    queue: VecDeque<(usize, Event)>,
}

struct Choice {
    lane: Lane,
    /// What was counted, for the end of one that is cut here.
    usage: Usage,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Denied; its generation is told to end, and what it counts until then is counted.
    Denied,
    Ended,
}

/// The text that is coming now.
enum Lane {
    None,
    Thinking(Sieve),
    Text(Sieve),
    /// Text that is JSON, since a schema binds it.
    Json(JsonSieve),
    Call(u32, JsonSieve),
}

impl Screen {
    /// `is_json`: a schema makes the text JSON. `accepted`: prompt tokens of each choice.
    pub(super) fn new(steps: Vec<Step>, is_json: bool, accepted: &[u32]) -> Self {
        let choice = |n_prompt: &u32| Choice {
            lane: Lane::None,
            usage: Usage { prompt_tokens: *n_prompt, ..Default::default() },
            state: State::Open,
        };
        Self { steps, is_json, choices: accepted.iter().map(choice).collect(), queue: VecDeque::new() }
    }

    /// The next event that may go on.
    pub(in crate::gateway) fn pop(&mut self) -> Option<(usize, Event)> {
        self.queue.pop_front()
    }

    /// Takes an event; `true`: the choice's generation is of no more use.
    pub(in crate::gateway) fn push(&mut self, idx: usize, event: Event) -> bool {
        let Some(choice) = self.choices.get_mut(idx) else {
            self.queue.push_back((idx, event));
            return false;
        };
        choice.count(&event);
        let was_open = choice.state == State::Open;
        match event {
            Event::Delta(delta) => {
                let passed = choice.pass(delta, &self.steps, self.is_json);
                self.queue.extend(passed.into_iter().map(|delta| (idx, Event::Delta(delta))));
            }
            Event::Done(done) if choice.state != State::Ended => {
                let rest = choice.end();
                self.queue.extend(rest.map(|delta| (idx, Event::Delta(delta))));
                let finish = if choice.state == State::Denied { Finish::Filtered } else { done.finish };
                choice.state = State::Ended;
                self.queue.push_back((idx, Event::Done(Done { finish, ..done })));
                return false;
            }
            Event::Failed(Failure::Cancelled) if choice.state == State::Denied => {
                choice.state = State::Ended;
                let done = Done { finish: Finish::Filtered, usage: choice.usage, timings: Timings::default() };
                self.queue.push_back((idx, Event::Done(done)));
            }
            Event::Done(_) => {}
            other => self.queue.push_back((idx, other)),
        }
        was_open && self.choices[idx].state == State::Denied
    }

    /// Whether nothing that still comes is of any use.
    pub(in crate::gateway) fn is_over(&self) -> bool {
        self.choices.iter().all(|choice| choice.state != State::Open)
    }

    /// All of them were cancelled together, and one word came for all.
    pub(in crate::gateway) fn cancelled(&mut self) {
        for idx in 0..self.choices.len() {
            if self.choices[idx].state == State::Denied {
                self.push(idx, Event::Failed(Failure::Cancelled));
            }
        }
    }
}

impl Choice {
    fn count(&mut self, event: &Event) {
        match event {
            Event::Progress { n_cached, .. } => self.usage.cached_tokens = *n_cached,
            Event::Delta(delta) => {
                let reasoning_tokens = if delta.reasoning.is_empty() { 0 } else { delta.n_tokens };
                let more = Usage { completion_tokens: delta.n_tokens, reasoning_tokens, ..Usage::default() };
                self.usage.add(&more);
            }
            _ => {}
        }
    }

    /// What of a delta goes on: in the order of its parts, what waited of the part before coming first. The tokens are told
    /// with the last.
    fn pass(&mut self, delta: Delta, steps: &[Step], is_json: bool) -> Vec<Delta> {
        // Without those of the tokens: their bytes would tell what the text does not. Log-probabilities are refused where a
        // client asks for them, and else read by nobody but the gateway.
        let last =
            Delta { prompt: delta.prompt, logprobs: delta.logprobs, n_tokens: delta.n_tokens, ..Default::default() };
        let mut passed = Vec::new();
        if self.state == State::Open {
            let parts = Parts { reasoning: delta.reasoning, content: delta.content, calls: delta.tool_calls };
            if self.parts(parts, steps, is_json, &mut passed) == Err(Denied) {
                self.state = State::Denied;
                self.lane = Lane::None;
            }
        }
        passed.retain(|delta| *delta != Delta::default());
        match passed.pop() {
            Some(end) => passed.push(Delta {
                content: end.content,
                reasoning: end.reasoning,
                tool_calls: end.tool_calls,
                ..last
            }),
            None => passed.push(last),
        }
        passed
    }

    fn parts(&mut self, parts: Parts, steps: &[Step], is_json: bool, out: &mut Vec<Delta>) -> Result<(), Denied> {
        // Deltas that waited were merged: the rest of the open call came before the text.
        let n_rest = parts.calls.iter().take_while(|piece| piece.opening.is_none()).count();
        let mut calls = parts.calls;
        let next = calls.split_off(n_rest);
        calls.into_iter().try_for_each(|piece| self.call(piece, steps, out))?;
        if !parts.reasoning.is_empty() {
            if !matches!(self.lane, Lane::Thinking(_)) {
                self.change(Lane::Thinking(Sieve::new(steps)), out)?;
            }
            self.text(&parts.reasoning, out)?;
        }
        if !parts.content.is_empty() {
            if !matches!(self.lane, Lane::Text(_) | Lane::Json(_)) {
                let lane = if is_json { Lane::Json(JsonSieve::new(steps)) } else { Lane::Text(Sieve::new(steps)) };
                self.change(lane, out)?;
            }
            self.text(&parts.content, out)?;
        }
        next.into_iter().try_for_each(|piece| self.call(piece, steps, out))
    }

    /// The text before is over: what waited of it goes out.
    fn change(&mut self, lane: Lane, out: &mut Vec<Delta>) -> Result<(), Denied> {
        let mut before = std::mem::replace(&mut self.lane, lane);
        let (rest, done) = before.feed(None);
        out.push(before.delta(rest));
        done
    }

    fn text(&mut self, piece: &str, out: &mut Vec<Delta>) -> Result<(), Denied> {
        let (passed, done) = self.lane.feed(Some(piece));
        out.push(self.lane.delta(passed));
        done
    }

    fn call(&mut self, piece: ToolCallDelta, steps: &[Step], out: &mut Vec<Delta>) -> Result<(), Denied> {
        let ToolCallDelta { index, opening, arguments } = piece;
        if let Some((id, name)) = opening {
            self.change(Lane::Call(index, JsonSieve::new(steps)), out)?;
            // A name can't be rewritten and still be called.
            if !super::sieve::is_clear(steps, &name) {
                return Err(Denied);
            }
            let opening = Some((id, name));
            let opened = ToolCallDelta { index, opening, arguments: String::new() };
            out.push(Delta { tool_calls: vec![opened], ..Default::default() });
        }
        if arguments.is_empty() {
            return Ok(());
        }
        if !matches!(self.lane, Lane::Call(now, _) if now == index) {
            self.change(Lane::Call(index, JsonSieve::new(steps)), out)?;
        }
        self.text(&arguments, out)
    }

    /// What waited, at the end of the answer.
    fn end(&mut self) -> Option<Delta> {
        let mut lane = std::mem::replace(&mut self.lane, Lane::None);
        let (rest, done) = lane.feed(None);
        if done == Err(Denied) {
            self.state = State::Denied;
        }
        Some(lane.delta(rest)).filter(|delta| *delta != Delta::default())
    }
}

struct Parts {
    reasoning: String,
    content: String,
    calls: Vec<ToolCallDelta>,
}

impl Lane {
    /// Takes a piece, or the end; what goes on, also where the text ends here.
    fn feed(&mut self, piece: Option<&str>) -> (String, Result<(), Denied>) {
        let mut out = String::new();
        let done = match (self, piece) {
            (Lane::None, _) => Ok(()),
            (Lane::Thinking(sieve) | Lane::Text(sieve), Some(piece)) => sieve.push(piece, &mut out),
            (Lane::Thinking(sieve) | Lane::Text(sieve), None) => sieve.finish(&mut out),
            (Lane::Json(sieve) | Lane::Call(_, sieve), Some(piece)) => sieve.push(piece, &mut out),
            (Lane::Json(sieve) | Lane::Call(_, sieve), None) => sieve.finish(&mut out),
        };
        (out, done)
    }

    fn delta(&self, text: String) -> Delta {
        match self {
            _ if text.is_empty() => Delta::default(),
            Lane::None => Delta::default(),
            Lane::Thinking(_) => Delta { reasoning: text, ..Default::default() },
            Lane::Text(_) | Lane::Json(_) => Delta { content: text, ..Default::default() },
            Lane::Call(index, _) => {
                let piece = ToolCallDelta { index: *index, opening: None, arguments: text };
                Delta { tool_calls: vec![piece], ..Default::default() }
            }
        }
    }
}
