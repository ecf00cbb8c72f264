//! An upstream's answer from its first content on, as events of an engine.

use super::attempt::{Began, Call};
use super::class::{self, Class};
use super::{DRAIN_MAX, Ticket};
use crate::chat::{Delta, Finish, Usage};
use crate::dialect::remote::{Reader, Said};
use crate::engine::{Done, Event, Failure, Timings};
use crate::gateway::trace::{AttemptSlot, UsageSource};
use futures_util::FutureExt;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

/// Wait for the usage, or the end, of an answer whose choices have all ended.
const TAIL_MAX: Duration = Duration::from_secs(2);
/// Bytes of a prompt for one token, where nobody counted: right within a third for most languages.
const BYTES_A_TOKEN: usize = 4;

/// Dropping it closes the connection.
pub(in crate::gateway) struct Remote {
    /// `None` when everything was said. Before `ticket`: closed first.
    body: Option<Incoming>,
    reader: Reader,
    /// **Bound:** what one frame of the body holds, plus the choices' ends.
    queue: VecDeque<(usize, Event)>,
    choices: Vec<Choice>,
    usage: Option<Usage>,
    n_prompt_estimated: u32,
    max_tokens: Option<u32>,
    idle: Duration,
    deadline: Instant,
    ticket: Ticket,
    class: Option<Class>,
    /// Where the record of this attempt is kept, once it is known.
    slot: Option<AttemptSlot>,
    /// Its client has left; it is read on for its count.
    draining: Option<OwnedSemaphorePermit>,
    _place: OwnedSemaphorePermit,
}

#[derive(Default, Clone)]
struct Choice {
    /// Tokens as far as they were told by deltas, and bytes of text.
    n_seen: u32,
    n_bytes: usize,
    finish: Option<Finish>,
}

impl Remote {
    pub(super) fn new(began: Began, ticket: Ticket, place: OwnedSemaphorePermit, call: &Call) -> Self {
        let config = &ticket.upstream.config;
        let mut remote = Self {
            body: Some(began.body),
            reader: began.reader,
            queue: VecDeque::new(),
            choices: vec![Choice::default(); call.n_choices],
            usage: None,
            n_prompt_estimated: u32::try_from(call.outgoing.body.len() / BYTES_A_TOKEN).unwrap_or(u32::MAX),
            max_tokens: call.max_tokens,
            idle: config.timeouts.idle,
            deadline: call.deadline,
            ticket,
            class: None,
            slot: None,
            draining: None,
            _place: place,
        };
        remote.take(began.said);
        if let Some((class, word)) = began.fault {
            remote.fail(class, word);
        }
        remote
    }

    /// Tokens of the prompt, estimated until the upstream has counted them.
    pub(in crate::gateway) fn n_prompt(&self) -> u32 {
        self.usage.map_or(self.n_prompt_estimated, |usage| usage.prompt_tokens)
    }

    /// Breaks off; what is left is what had come already, and its end.
    pub(in crate::gateway) fn cancel(&mut self) {
        if self.body.take().is_some() {
            self.settle(Class::Cancelled);
            self.queue.push_back((0, Event::Failed(Failure::Cancelled)));
        }
    }

    /// Reads on to the upstream's own count though nobody listens any more, where that is wanted and few others do; whether
    /// it will.
    pub(in crate::gateway) fn drain(&mut self) -> bool {
        let upstream = &self.ticket.upstream;
        if self.body.is_none() || !upstream.config.drains {
            return false;
        }
        self.draining = Arc::clone(&upstream.drains).try_acquire_owned().ok();
        self.deadline = Instant::now() + DRAIN_MAX;
        self.draining.is_some()
    }

    /// Who counts: nobody, until the upstream has.
    pub(in crate::gateway) fn source(&self) -> UsageSource {
        let is_counted = self.usage.is_some() && self.class == Some(Class::Ok);
        if is_counted { UsageSource::Upstream } else { UsageSource::Estimated }
    }

    /// Where its end is to be noted.
    pub(in crate::gateway) fn noted_in(mut self, slot: AttemptSlot) -> Self {
        match self.class {
            // All of it came at once.
            Some(class) => self.note(&slot, class),
            None => self.slot = Some(slot),
        }
        self
    }

    /// The next event and its choice; `None` after the last. Cancel-safe.
    pub(in crate::gateway) async fn next(&mut self) -> Option<(usize, Event)> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            let patience = if self.all_finished() { self.idle.min(TAIL_MAX) } else { self.idle };
            let until = self.deadline.min(Instant::now() + patience);
            let body = self.body.as_mut()?;
            match tokio::time::timeout_at(until, body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    let mut said = Vec::new();
                    let read = self.reader.push(&data, &mut said);
                    self.take(said);
                    if let Err(fault) = read {
                        let (class, word) = class::of_fault(fault);
                        self.fail(class, word);
                    }
                }
                // Everything was said; how the connection ends is no matter then.
                _ if self.all_finished() => self.end(),
                Ok(None) => self.fail(Class::Transient, "ended_early"),
                Ok(Some(Err(_))) => self.fail(Class::Transient, "broken_off"),
                Err(_) if Instant::now() >= self.deadline => self.fail(Class::Cancelled, "deadline"),
                Err(_) => self.fail(Class::Stall, "silent"),
            }
        }
    }

    fn all_finished(&self) -> bool {
        self.choices.iter().all(|choice| choice.finish.is_some())
    }

    fn take(&mut self, said: Vec<Said>) {
        for said in said {
            if self.body.is_none() {
                return; // what stands behind the end
            }
            match said {
                Said::Delta(idx, delta) => self.delta(idx, delta),
                Said::Finish(idx, finish) => {
                    if let Some(choice) = self.choices.get_mut(idx) {
                        choice.finish = Some(finish);
                    }
                }
                Said::Usage(usage) => self.believe(usage),
                Said::End if self.all_finished() => self.end(),
                // Whether it is whole nobody can tell, so it isn't.
                Said::End => self.fail(Class::Transient, "no_finish_reason"),
            }
        }
    }

    fn delta(&mut self, idx: usize, delta: Delta) {
        let n_bytes = delta.content.len() + delta.reasoning.len();
        let n_bytes = n_bytes + delta.tool_calls.iter().map(|piece| piece.arguments.len()).sum::<usize>();
        let shows = n_bytes > 0 || !delta.tool_calls.is_empty();
        if let Some(choice) = self.choices.get_mut(idx).filter(|_| shows) {
            choice.n_seen = choice.n_seen.saturating_add(delta.n_tokens);
            choice.n_bytes += n_bytes;
            self.queue.push_back((idx, Event::Delta(delta)));
        }
    }

    /// A usage that can't be is not taken.
    fn believe(&mut self, usage: Usage) {
        let most = self.max_tokens.map(|max| u64::from(max) * self.choices.len() as u64);
        if most.is_none_or(|most| u64::from(usage.completion_tokens) <= most) {
            self.usage = Some(usage);
        }
    }

    /// Hands out the choices' ends, and the connection back to the pool where its answer is read to the end.
    fn end(&mut self) {
        if let Some(mut body) = self.body.take() {
            // What is there already; the end of a chunked body mostly came with the last event.
            const LEFT_MAX: usize = 4;
            for _ in 0..LEFT_MAX {
                if !matches!(body.frame().now_or_never(), Some(Some(Ok(_)))) {
                    break;
                }
            }
        }
        self.settle(Class::Ok);
        let total = self.counted();
        let mut rest = total.completion_tokens;
        for idx in (0..self.choices.len()).rev() {
            let choice = &mut self.choices[idx];
            // One count for all choices: each gets what was seen of it, and the first what is left.
            let completion_tokens = if idx == 0 { rest } else { choice.n_seen.min(rest) };
            rest -= completion_tokens;
            let usage = match idx {
                0 => Usage { completion_tokens, ..total },
                _ => Usage { prompt_tokens: total.prompt_tokens, completion_tokens, ..Default::default() },
            };
            let finish = choice.finish.take().unwrap_or(Finish::EndOfTurn);
            self.queue.push_back((idx, Event::Done(Done { finish, usage, timings: Timings::default() })));
        }
    }

    fn fail(&mut self, class: Class, word: &'static str) {
        if self.body.take().is_none() {
            return;
        }
        self.ticket.tell(class);
        self.settle(class);
        let upstream = self.ticket.upstream.config.name.as_str();
        tracing::warn!(upstream, class = class.as_str(), reason = word, "an upstream's answer was cut");
        let failure = Failure::Upstream { class: class.as_str().to_owned(), is_late: word == "deadline" };
        self.queue.push_back((0, Event::Failed(failure)));
    }

    /// Tokens of all choices: the upstream's count, or ours.
    fn counted(&self) -> Usage {
        let seen =
            |choice: &Choice| choice.n_seen.max(u32::try_from(choice.n_bytes / BYTES_A_TOKEN).unwrap_or(u32::MAX));
        self.usage.unwrap_or_else(|| Usage {
            prompt_tokens: self.n_prompt_estimated,
            completion_tokens: self.choices.iter().map(seen).fold(0, u32::saturating_add),
            ..Default::default()
        })
    }

    /// Writes the record and counts, once.
    fn settle(&mut self, class: Class) {
        if self.class.is_some() {
            return;
        }
        self.class = Some(class);
        self.ticket.count(class);
        if let Some(slot) = self.slot.take() {
            self.note(&slot, class);
        }
    }

    fn note(&self, slot: &AttemptSlot, class: Class) {
        slot.settle(class, self.counted(), self.source());
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.settle(Class::Cancelled);
    }
}
