//! llama-server's telemetry of an answer: `timings`, and for streams `timings_per_token` and `return_progress`.
//!
//! Its clients and load generators read them, in the OpenAI shapes, beside what those shapes have.

use super::fields::Object;
use super::{Answer, Chunks, Fault, Problem};
use crate::chat::{Delta, Usage};
use crate::engine::{Done, Timings};
use serde_json::{Value, json};
use std::time::Instant;

const DONE: &[u8] = b"data: [DONE]\n\n";
const EVENT_END: &[u8] = b"}\n\n";

/// What a request wants to be told along the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// `timings` in every chunk that carries tokens.
    pub timings_per_token: bool,
    /// An event for each part of the prompt that was computed.
    pub return_progress: bool,
}

impl Wanted {
    pub(super) fn read(body: &mut Object) -> Result<Self, Fault> {
        Ok(Self {
            timings_per_token: body.bool("timings_per_token")?.unwrap_or(false),
            return_progress: body.bool("return_progress")?.unwrap_or(false),
        })
    }
}

/// `timings` of a whole answer. `usage` is that of all choices.
pub(super) fn whole(answers: &[Answer], usage: &Usage) -> Value {
    timings(usage, answers.len(), &answers.iter().map(|answer| answer.timings).fold(Timings::default(), longest))
}

fn longest(a: Timings, b: Timings) -> Timings {
    Timings {
        queue_us: a.queue_us.max(b.queue_us),
        prompt_us: a.prompt_us.max(b.prompt_us),
        predicted_us: a.predicted_us.max(b.predicted_us),
    }
}

/// In llama-server's names. A choice's first token comes with the end of the prompt and costs no step of its own, so the
/// rates leave it out. Never infinite: what took no time has the rate 0.
pub(super) fn timings(usage: &Usage, n_choices: usize, spent: &Timings) -> Value {
    let prompt_n = usage.prompt_tokens.saturating_sub(usage.cached_tokens);
    let (prompt_ms, predicted_ms) = (spent.prompt_us as f64 / 1e3, spent.predicted_us as f64 / 1e3);
    let n_steps = (usage.completion_tokens as usize).saturating_sub(n_choices);
    let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
    let mut timings = json!({
        "cache_n": usage.cached_tokens,
        "prompt_n": prompt_n,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": ratio(prompt_ms, prompt_n.into()),
        "prompt_per_second": ratio(1e3 * f64::from(prompt_n), prompt_ms),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": ratio(predicted_ms, n_steps as f64),
        "predicted_per_second": ratio(1e3 * n_steps as f64, predicted_ms),
    });
    if usage.draft_tokens > 0 {
        timings["draft_n"] = usage.draft_tokens.into();
        timings["draft_n_accepted"] = usage.accepted_draft_tokens.into();
    }
    timings
}

/// Chunks of another kind, with the telemetry in them.
pub struct Watched<C> {
    pub chunks: C,
    wanted: Wanted,
    n_choices: usize,
    usage: Usage,
    /// Of the prompt, so far as was told.
    n_computed: u32,
    spent: Timings,
    /// When the request had a slot, as far as it is known here.
    started: Instant,
    first_token: Option<Instant>,
}

impl<C: Chunks> Watched<C> {
    pub fn new(chunks: C, n_choices: usize, wanted: Wanted) -> Self {
        Self {
            chunks,
            wanted,
            n_choices,
            usage: Usage::default(),
            n_computed: 0,
            spent: Timings::default(),
            started: Instant::now(),
            first_token: None,
        }
    }

    /// The last part of a prompt is told by what comes after it.
    fn prompt_is_done(&mut self, choice: usize, out: &mut Vec<u8>) {
        let n_prompt = self.usage.prompt_tokens;
        if choice == 0 && self.n_computed < n_prompt {
            self.progress(choice, [n_prompt, n_prompt, self.usage.cached_tokens], out);
        }
    }

    /// As far as it has come.
    fn so_far(&self) -> Value {
        let micros = |from: Instant, to: Instant| u64::try_from((to - from).as_micros()).unwrap_or(u64::MAX);
        let now = Instant::now();
        let spent = match self.first_token {
            // Nothing was computed before the first progress.
            None if self.usage.prompt_tokens == self.usage.cached_tokens => Timings::default(),
            None => Timings { prompt_us: micros(self.started, now), ..Timings::default() },
            Some(first) => Timings {
                prompt_us: micros(self.started, first),
                predicted_us: micros(first, now),
                ..Timings::default()
            },
        };
        timings(&self.usage, self.n_choices, &spent)
    }
}

/// Adds a field to the last event behind `start`, if there is one.
fn annotate(out: &mut Vec<u8>, start: usize, key: &str, value: &Value) {
    let has_done = out.len() >= start + DONE.len() && out.ends_with(DONE);
    if has_done {
        out.truncate(out.len() - DONE.len());
    }
    if out.len() > start && out.ends_with(EVENT_END) {
        out.truncate(out.len() - EVENT_END.len());
        out.extend_from_slice(format!(",\"{key}\":{value}").as_bytes());
        out.extend_from_slice(EVENT_END);
    }
    if has_done {
        out.extend_from_slice(DONE);
    }
}

impl<C: Chunks> Chunks for Watched<C> {
    const CONTENT_TYPE: &'static str = C::CONTENT_TYPE;
    const KEEP_ALIVE: &'static [u8] = C::KEEP_ALIVE;

    fn open(&mut self, out: &mut Vec<u8>) {
        self.chunks.open(out);
    }

    fn progress(&mut self, choice: usize, [n_prompt, n_computed, n_cached]: [u32; 3], out: &mut Vec<u8>) {
        if choice > 0 {
            return; // they share the first one's prompt
        }
        if n_computed == n_cached {
            self.started = Instant::now();
        }
        self.n_computed = n_computed;
        (self.usage.prompt_tokens, self.usage.cached_tokens) = (n_computed, n_cached);
        let start = out.len();
        if self.wanted.return_progress {
            self.chunks.progress(choice, [n_prompt, n_computed, n_cached], out);
            let ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            let progress = json!({ "total": n_prompt, "cache": n_cached, "processed": n_computed, "time_ms": ms });
            annotate(out, start, "prompt_progress", &progress);
            if self.wanted.timings_per_token {
                annotate(out, start, "timings", &self.so_far());
            }
        }
        self.usage.prompt_tokens = n_prompt;
    }

    fn delta(&mut self, choice: usize, delta: &Delta, out: &mut Vec<u8>) {
        self.prompt_is_done(choice, out);
        let start = out.len();
        self.chunks.delta(choice, delta, out);
        if self.wanted.timings_per_token {
            self.first_token.get_or_insert_with(Instant::now);
            self.usage.completion_tokens = self.usage.completion_tokens.saturating_add(delta.n_tokens);
            annotate(out, start, "timings", &self.so_far());
        }
    }

    fn finish(&mut self, choice: usize, done: &Done, out: &mut Vec<u8>) {
        self.prompt_is_done(choice, out);
        let start = out.len();
        self.chunks.finish(choice, done, out);
        self.spent = longest(self.spent, done.timings);
        if self.wanted.timings_per_token {
            annotate(out, start, "timings", &timings(&done.usage, 1, &done.timings));
        }
    }

    fn end(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        let start = out.len();
        self.chunks.end(usage, out);
        annotate(out, start, "timings", &timings(usage, self.n_choices, &self.spent));
    }

    fn fail(&mut self, problem: &Problem, out: &mut Vec<u8>) {
        self.chunks.fail(problem, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::Finish;

    /// Writes an event for everything.
    struct Plain;

    impl Chunks for Plain {
        fn open(&mut self, _out: &mut Vec<u8>) {}
        fn progress(&mut self, _choice: usize, _counts: [u32; 3], out: &mut Vec<u8>) {
            out.extend_from_slice(b"data: {\"p\":1}\n\n");
        }
        fn delta(&mut self, _choice: usize, _delta: &Delta, out: &mut Vec<u8>) {
            out.extend_from_slice(b"data: {\"a\":1}\n\ndata: {\"a\":2}\n\n");
        }
        fn finish(&mut self, _choice: usize, _done: &Done, out: &mut Vec<u8>) {
            out.extend_from_slice(b"data: {\"f\":1}\n\n");
        }
        fn end(&mut self, _usage: &Usage, out: &mut Vec<u8>) {
            out.extend_from_slice(b"data: {\"u\":1}\n\n");
            out.extend_from_slice(DONE);
        }
        fn fail(&mut self, _problem: &Problem, _out: &mut Vec<u8>) {}
    }

    fn run(wanted: Wanted) -> Vec<Value> {
        let mut chunks = Watched::new(Plain, 1, wanted);
        let mut out = Vec::new();
        chunks.open(&mut out);
        chunks.progress(0, [9, 4, 4], &mut out);
        chunks.progress(0, [9, 7, 4], &mut out);
        chunks.delta(0, &Delta { n_tokens: 1, ..Default::default() }, &mut out);
        let usage = Usage { prompt_tokens: 9, cached_tokens: 4, completion_tokens: 3, ..Default::default() };
        let timings = Timings { queue_us: 1, prompt_us: 10_000, predicted_us: 4_000 };
        chunks.finish(0, &Done { finish: Finish::Length, usage, timings }, &mut out);
        chunks.end(&usage, &mut out);
        let text = String::from_utf8(out).unwrap();
        let text = text.strip_suffix("data: [DONE]\n\n").unwrap();
        let event = |event: &str| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        text.split_terminator("\n\n").map(event).collect()
    }

    #[test]
    fn only_the_end_has_timings_unless_more_is_wanted() {
        let events = run(Wanted::default());
        let with: Vec<bool> = events.iter().map(|event| event.get("timings").is_some()).collect();
        assert_eq!(with, [false, false, false, true]);
        let timings = &events[3]["timings"];
        assert_eq!((&timings["prompt_n"], &timings["cache_n"]), (&json!(5), &json!(4)));
        assert_eq!((&timings["prompt_per_second"], &timings["predicted_per_second"]), (&json!(500.0), &json!(500.0)));
    }

    #[test]
    fn progress_and_timings_are_in_the_stream_where_wanted() {
        let events = run(Wanted { timings_per_token: true, return_progress: true });
        let processed: Vec<&Value> = events[..3].iter().map(|event| &event["prompt_progress"]["processed"]).collect();
        assert_eq!(processed, [4, 7, 9]);
        assert_eq!(events[0]["timings"]["prompt_n"], 0);
        assert_eq!(events[0]["timings"]["prompt_ms"], 0.0);
        assert!(events[3].get("timings").is_none(), "the last event of a delta has them");
        assert_eq!(events[4]["timings"]["predicted_n"], 1);
        assert_eq!(events[5]["timings"]["predicted_n"], 3);
    }

    #[test]
    fn what_took_no_time_has_no_rate() {
        let one = Usage { prompt_tokens: 1, completion_tokens: 1, ..Default::default() };
        let timings = timings(&one, 1, &Timings::default());
        assert!(timings.as_object().unwrap().values().all(|value| value.as_f64().is_some_and(|n| n >= 0.0)));
        assert_eq!(timings["predicted_per_second"], 0.0);
    }
}
