//! An answer that waits, whole, for what a classifier thinks of it.
//!
//! # Design
//! Behind the [`super::Screen`], so that a classifier sees what lists left. Each choice is held by itself until it is done:
//! nothing of it goes out before, streamed or not. Then all of it does, in larger pieces, or none: it ends as one that a list
//! denied. What a generation that failed had said until then is dropped, since nobody looked at it.

use super::check::Placed;
use super::judge::{Judge, Verdict};
use super::texts::Said;
use crate::chat::{Delta, Finish, TokenLogprob, ToolCallDelta};
use crate::engine::{Done, Event, Failure};
use crate::gateway::Error;
use futures_util::future::BoxFuture;
use std::collections::VecDeque;
use std::sync::Arc;

/// Pieces that wait are joined up to this length of text.
const PIECE_BYTES: usize = 1024;
/// What is held of one request. A context bounds what an engine here says, and nothing what another server does; a choice
/// that goes beyond is not let through, and only counted from there on.
const HELD_BYTES_MAX: usize = 64 << 20;

/// All choices of one request.
pub(in crate::gateway) struct Hold {
    judge: Arc<Judge>,
    checks: Arc<[Placed]>,
    tenant: u64,
    /// **Bound:** `HELD_BYTES_MAX`, of all together.
    choices: Vec<Held>,
    n_bytes: usize,
    /// **Bound:** what is held of the choice that ended last.
    ready: VecDeque<(usize, Event)>,
    judging: Option<Judging>,
    error: Option<Error>,
    has_passed_unseen: bool,
}

#[derive(Default)]
struct Held {
    deltas: Vec<Delta>,
    said: Said,
    n_bytes: usize,
    /// It was too much.
    is_over: bool,
}

/// The choice whose answer is being looked at. The others wait.
struct Judging {
    idx: usize,
    done: Done,
    verdict: BoxFuture<'static, Result<Verdict, Error>>,
}

impl Hold {
    pub(super) fn new(judge: &Arc<Judge>, checks: &Arc<[Placed]>, tenant: u64, n_choices: usize) -> Self {
        Self {
            judge: Arc::clone(judge),
            checks: Arc::clone(checks),
            tenant,
            choices: std::iter::repeat_with(Held::default).take(n_choices).collect(),
            n_bytes: 0,
            ready: VecDeque::new(),
            judging: None,
            error: None,
            has_passed_unseen: false,
        }
    }

    /// The next event that may go on; `None`: another one has to come in first. Cancel-safe.
    pub(in crate::gateway) async fn next(&mut self) -> Option<(usize, Event)> {
        if let Some(judging) = &mut self.judging {
            let verdict = judging.verdict.as_mut().await;
            if let Some(Judging { idx, done, .. }) = self.judging.take() {
                self.settle(idx, done, verdict);
            }
        }
        self.ready.pop_front()
    }

    /// Takes an event. To be called when there is no next one.
    pub(in crate::gateway) fn push(&mut self, idx: usize, event: Event) {
        let Some(choice) = self.choices.get_mut(idx) else { return self.ready.push_back((idx, event)) };
        match event {
            Event::Delta(delta) => {
                self.n_bytes += choice.push(delta);
                if self.n_bytes > HELD_BYTES_MAX {
                    self.n_bytes -= choice.give_up();
                }
            }
            Event::Done(done) if choice.is_over => {
                self.drop_held(idx);
                self.ready.push_back((idx, Event::Done(Done { finish: Finish::Filtered, ..done })));
            }
            Event::Done(done) => {
                let texts = std::mem::take(&mut choice.said).texts();
                let (judge, checks, tenant) = (Arc::clone(&self.judge), Arc::clone(&self.checks), self.tenant);
                let verdict = Box::pin(async move { judge.judge(&checks, tenant, &texts).await });
                self.judging = Some(Judging { idx, done, verdict });
            }
            Event::Failed(failure) => {
                self.drop_held(idx);
                self.ready.push_back((idx, Event::Failed(failure)));
            }
            other => self.ready.push_back((idx, other)),
        }
    }

    fn settle(&mut self, idx: usize, done: Done, verdict: Result<Verdict, Error>) {
        let event = match verdict {
            Ok(verdict @ (Verdict::Passed | Verdict::Unseen)) => {
                self.has_passed_unseen |= verdict == Verdict::Unseen;
                let deltas = self.let_go(idx);
                self.ready.extend(deltas.into_iter().map(|delta| (idx, Event::Delta(delta))));
                Event::Done(done)
            }
            // An answer that is too long to be looked at is not let through either.
            Ok(Verdict::Denied) | Err(Error::Engine(Failure::Invalid { .. })) => {
                self.drop_held(idx);
                Event::Done(Done { finish: Finish::Filtered, ..done })
            }
            Err(error) => {
                self.drop_held(idx);
                let failure = Failure::NotReady { reason: error.to_string(), retry_after_s: 1 };
                self.error = Some(error);
                Event::Failed(failure)
            }
        };
        self.ready.push_back((idx, event));
    }

    fn let_go(&mut self, idx: usize) -> Vec<Delta> {
        let choice = &mut self.choices[idx];
        self.n_bytes -= std::mem::take(&mut choice.n_bytes);
        std::mem::take(&mut choice.deltas)
    }

    /// What is held of a choice is counted, and not told.
    fn drop_held(&mut self, idx: usize) {
        let deltas = self.let_go(idx);
        let n_tokens = deltas.iter().fold(0u32, |sum, delta| sum.saturating_add(delta.n_tokens));
        if n_tokens > 0 {
            self.ready.push_back((idx, Event::Delta(Delta { n_tokens, ..Delta::default() })));
        }
    }

    /// Nobody waits for it any more: what was generated until now, to be counted.
    pub(in crate::gateway) fn abandon(mut self) -> impl Iterator<Item = (usize, Event)> {
        for idx in 0..self.choices.len() {
            self.drop_held(idx);
        }
        let done = self.judging.take().map(|judging| (judging.idx, Event::Done(judging.done)));
        self.ready.into_iter().chain(done)
    }

    /// Why the answer failed here.
    pub(in crate::gateway) fn error(&self) -> Option<&Error> {
        self.error.as_ref()
    }

    /// Something went on that no classifier saw: nothing to keep for others.
    pub(in crate::gateway) fn has_passed_unseen(&self) -> bool {
        self.has_passed_unseen
    }
}

impl Held {
    /// How many bytes more are held.
    fn push(&mut self, delta: Delta) -> usize {
        let counted = Delta { n_tokens: delta.n_tokens, ..Delta::default() };
        let delta = if self.is_over { counted } else { delta };
        self.said.push(&delta);
        // Twice: as it came, and as a classifier reads it.
        let mut n_bytes = 2 * text_bytes(&delta) + beside_bytes(&delta);
        match self.deltas.last_mut() {
            Some(last) if joins(last, &delta) => {
                last.content.push_str(&delta.content);
                last.reasoning.push_str(&delta.reasoning);
                last.logprobs.extend(delta.logprobs);
                last.tokens.extend(delta.tokens);
                last.n_tokens = last.n_tokens.saturating_add(delta.n_tokens);
            }
            _ => {
                n_bytes += size_of::<Delta>();
                self.deltas.push(delta);
            }
        }
        self.n_bytes += n_bytes;
        n_bytes
    }

    /// Keeps nothing but the count; how many bytes that frees.
    fn give_up(&mut self) -> usize {
        let n_tokens = self.deltas.iter().fold(0u32, |sum, delta| sum.saturating_add(delta.n_tokens));
        self.deltas = vec![Delta { n_tokens, ..Delta::default() }];
        (self.said, self.is_over) = (Said::default(), true);
        std::mem::take(&mut self.n_bytes)
    }
}

fn text_bytes(delta: &Delta) -> usize {
    let call = |piece: &ToolCallDelta| {
        let opening = piece.opening.as_ref().map_or(0, |(id, name)| id.len() + name.len());
        size_of::<ToolCallDelta>() + opening + piece.arguments.len()
    };
    delta.content.len() + delta.reasoning.len() + delta.tool_calls.iter().map(call).sum::<usize>()
}

/// Of what is told of the tokens.
fn beside_bytes(delta: &Delta) -> usize {
    let logprob = |entry: &TokenLogprob| (1 + entry.top.len()) * size_of::<TokenLogprob>();
    delta.logprobs.iter().chain(&delta.prompt).map(logprob).sum::<usize>() + size_of_val(delta.tokens.as_slice())
}

/// Whether both are one piece: thoughts come before the text of a piece, and calls behind it.
fn joins(last: &Delta, next: &Delta) -> bool {
    last.tool_calls.is_empty()
        && next.tool_calls.is_empty()
        && next.prompt.is_empty()
        && (last.content.is_empty() || next.reasoning.is_empty())
        && last.content.len() + last.reasoning.len() < PIECE_BYTES
}

#[cfg(test)]
mod tests {
    use super::super::check::{Check, ClassifySpec};
    use super::*;
    use crate::chat::Usage;
    use crate::engine::config::{ModelSource, ScriptedConfig};
    use crate::engine::{Engine, EngineConfig, EngineMode, Timings};
    use crate::gateway::models::{ModelConfig, Models};
    use crate::telemetry::Metrics;

    fn text(content: &str) -> Delta {
        Delta { content: content.into(), n_tokens: 1, tokens: vec![7], ..Delta::default() }
    }

    fn done() -> Event {
        Event::Done(Done { finish: Finish::EndOfTurn, usage: Usage::default(), timings: Timings::default() })
    }

    /// Two choices behind a classifier that is never loaded.
    fn held(passes_on_error: bool) -> Hold {
        let scripted = ScriptedConfig { load_ms: 3_600_000, embeds: 2, ..Default::default() };
        let engine = Engine::start(EngineConfig::new(ModelSource::Scripted(scripted)), EngineMode::InProcess);
        let config = ModelConfig::new("judge");
        let models = Models::given(config, engine);
        let judge = Judge::new(Arc::clone(&models.shared), Arc::new(Metrics::new()));
        let deny = vec!["LABEL_0".into()];
        let spec = ClassifySpec { model: "judge".into(), deny, above: 0.5, n_windows_max: 1, passes_on_error };
        Hold::new(&judge, &Arc::from([(Check::new("set", &spec), 0)]), 0, 2)
    }

    #[tokio::test]
    async fn what_can_not_be_looked_at_goes_on_only_where_it_may() {
        let mut hold = held(false);
        hold.push(0, Event::Delta(text("a")));
        hold.push(1, Event::Delta(text("b")));
        assert_eq!(hold.next().await, None, "nothing goes out before the end");
        hold.push(0, done());
        let (first, second) = (hold.next().await.expect("a count"), hold.next().await.expect("an end"));
        assert_eq!(first, (0, Event::Delta(Delta { n_tokens: 1, ..Delta::default() })), "counted, and not told");
        assert!(matches!(second, (0, Event::Failed(Failure::NotReady { .. }))), "{second:?}");
        assert!(hold.error().is_some());
        let mut hold = held(true);
        hold.push(0, Event::Delta(text("a")));
        hold.push(0, done());
        assert_eq!(hold.next().await, Some((0, Event::Delta(text("a")))));
        assert_eq!((hold.next().await, hold.next().await), (Some((0, done())), None));
        assert!(hold.has_passed_unseen() && hold.error().is_none());
    }

    /// Another server may talk for ever.
    #[tokio::test]
    async fn what_is_too_much_to_hold_is_not_held() {
        let mut hold = held(true);
        hold.push(1, Event::Delta(text("b")));
        let long = "x".repeat(1 << 20);
        for _ in 0..100 {
            hold.push(0, Event::Delta(text(&long)));
            assert!(hold.n_bytes <= HELD_BYTES_MAX);
        }
        hold.push(0, done());
        let counted = Delta { n_tokens: 100, ..Delta::default() };
        assert_eq!(hold.next().await, Some((0, Event::Delta(counted))));
        let Some((0, Event::Done(end))) = hold.next().await else { unreachable!("an end") };
        assert_eq!(end.finish, Finish::Filtered);
        hold.push(1, done());
        let other = hold.next().await;
        assert_eq!(
            (other, hold.n_bytes),
            (Some((1, Event::Delta(text("b")))), 0),
            "the other one has nothing to do with it"
        );
    }

    #[tokio::test]
    async fn what_failed_or_was_left_is_counted_and_not_told() {
        let mut hold = held(false);
        hold.push(0, Event::Accepted { n_prompt: 3 });
        assert_eq!(hold.next().await, Some((0, Event::Accepted { n_prompt: 3 })), "what has no text waits for nothing");
        (0..3).for_each(|_| hold.push(0, Event::Delta(text("a"))));
        hold.push(0, Event::Failed(Failure::Cancelled));
        let counted = Delta { n_tokens: 3, ..Delta::default() };
        assert_eq!(hold.next().await, Some((0, Event::Delta(counted.clone()))));
        assert_eq!(hold.next().await, Some((0, Event::Failed(Failure::Cancelled))));
        // The other one is done, and nobody waits for the verdict.
        (0..3).for_each(|_| hold.push(1, Event::Delta(text("b"))));
        hold.push(1, done());
        let left: Vec<_> = hold.abandon().collect();
        assert_eq!(left, [(1, Event::Delta(counted)), (1, done())]);
    }

    #[test]
    fn what_waits_is_joined_in_its_order() {
        let thought = |reasoning: &str| Delta { reasoning: reasoning.into(), n_tokens: 1, ..Delta::default() };
        let call = || {
            let piece = ToolCallDelta { index: 0, opening: None, arguments: "{".into() };
            Delta { tool_calls: vec![piece], n_tokens: 1, ..Delta::default() }
        };
        let mut held = Held::default();
        for delta in
            [thought("a"), thought("b"), text("c"), text("d"), thought("e"), text("f"), call(), call(), text("g")]
        {
            held.push(delta);
        }
        let pieces: Vec<_> = held
            .deltas
            .iter()
            .map(|delta| (delta.reasoning.as_str(), delta.content.as_str(), delta.tool_calls.len(), delta.n_tokens))
            .collect();
        assert_eq!(pieces, [("ab", "cd", 0, 4), ("e", "f", 0, 2), ("", "", 1, 1), ("", "", 1, 1), ("", "g", 0, 1)]);
        assert_eq!(held.deltas[0].tokens, [7, 7]);
        let mut held = Held::default();
        let n_bytes: usize = (0..3).map(|_| held.push(text(&"x".repeat(PIECE_BYTES)))).sum();
        assert!(n_bytes == held.n_bytes && n_bytes > 6 * PIECE_BYTES);
        assert_eq!(held.deltas.len(), 3, "a stream of one piece is none");
    }
}
