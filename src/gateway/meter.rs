//! Counts a request's tokens and times as its events pass, and settles when it is dropped.

use super::books::Entry;
use super::limits::{Reservation, Spend};
use super::trace::{Generated, Trace, UsageSource};
use super::upstream::Class;
use super::{Caller, Price};
use crate::chat::{Finish, Usage};
use crate::engine::{Event, Failure, Timings};
use crate::telemetry::metrics::ModelSeries;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) struct Meter {
    /// `None`: what passes was counted before.
    metrics: Option<ModelSeries>,
    source: UsageSource,
    /// The answer of another meter once more: neither counted nor logged.
    is_echo: bool,
    /// The request's record.
    trace: Trace,
    /// Choices of each prompt: a prompt is counted with the first of them.
    n_per_prompt: usize,
    started: Instant,
    first_token: Option<Instant>,
    choices: Vec<Choice>,
    n_ended: usize,
    finishes: Vec<&'static str>,
    /// Of the first choice that ended.
    timings: Option<Timings>,
    failed: Option<&'static str>,
    /// The request's row, where rows are kept.
    entry: Option<Arc<Entry>>,
    /// What is reserved for it, and what its tokens cost.
    reserved: Option<(Reservation, Price)>,
}

#[derive(Clone, Copy, Default)]
struct Choice {
    /// The engine's own count once it is done, what was seen until then.
    usage: Usage,
    n_seen: u32,
    /// Prompt tokens that were computed or found in the cache.
    n_computed: u32,
    last_token: Option<Instant>,
    calls_tools: bool,
}

impl Meter {
    pub(super) fn new(metrics: ModelSeries, caller: &Caller, n_per_prompt: usize, n_choices: usize) -> Self {
        Self {
            metrics: Some(metrics),
            source: UsageSource::Engine,
            is_echo: false,
            trace: caller.trace.clone(),
            n_per_prompt: n_per_prompt.max(1),
            started: Instant::now(),
            first_token: None,
            choices: vec![Choice::default(); n_choices],
            n_ended: 0,
            finishes: Vec::new(),
            timings: None,
            failed: None,
            entry: caller.entry.clone(),
            reserved: None,
        }
    }

    /// Takes what is reserved, to settle it at the end.
    pub(super) fn hold(&mut self, reserved: Reservation, price: Price) {
        self.reserved = Some((reserved, price));
    }

    /// Says who counts; what comes from the cache was counted by the series when it was made.
    pub(super) fn from(mut self, source: UsageSource) -> Self {
        self.source = source;
        if source == UsageSource::Cache {
            self.metrics = None;
        }
        self
    }

    pub(super) fn source_mut(&mut self) -> &mut UsageSource {
        &mut self.source
    }

    /// For the same answer once more.
    pub(super) fn echo(&self) -> Self {
        Self {
            metrics: None,
            source: self.source,
            is_echo: true,
            trace: self.trace.clone(),
            n_per_prompt: self.n_per_prompt,
            started: self.started,
            first_token: None,
            choices: vec![Choice::default(); self.choices.len()],
            n_ended: 0,
            finishes: Vec::new(),
            timings: None,
            failed: None,
            entry: self.entry.clone(),
            reserved: None,
        }
    }

    /// How it went, in the words for attempts.
    pub(super) fn class(&self) -> Class {
        match self.failed {
            Some("overloaded") => Class::Throttled,
            Some("invalid" | "context_exceeded" | "quarantined") => Class::ClientFault,
            Some("cancelled") => Class::Cancelled,
            Some(_) => Class::Transient,
            None if self.n_ended == self.choices.len() => Class::Ok,
            None => Class::Cancelled,
        }
    }

    pub(super) fn observe(&mut self, idx: usize, event: &Event) {
        let n_choices = self.choices.len();
        let Some(choice) = self.choices.get_mut(idx) else { return };
        if let (Some((reserved, _)), Event::Progress { .. } | Event::Delta(_)) = (&self.reserved, event)
            && choice.n_computed == 0
        {
            reserved.start();
        }
        match event {
            Event::Accepted { n_prompt } => choice.usage.prompt_tokens = *n_prompt,
            Event::Progress { n_cached, n_computed, .. } => {
                choice.usage.cached_tokens = *n_cached;
                choice.n_computed = *n_computed;
            }
            Event::Delta(delta) => {
                if let Some(entry) = &self.entry {
                    entry.tell(idx, delta);
                }
                choice.calls_tools |= !delta.tool_calls.is_empty();
                // What waited for a decision of the operator's rules was counted when it came.
                if delta.n_tokens == 0 {
                    return;
                }
                let now = Instant::now();
                choice.n_computed = choice.usage.prompt_tokens;
                if self.first_token.is_none() {
                    if let Some(entry) = &self.entry {
                        entry.first_token();
                    }
                    self.first_token = Some(now);
                    if let Some(metrics) = &self.metrics {
                        metrics.first_token(now - self.started);
                    }
                }
                if let Some(metrics) = &self.metrics {
                    metrics.tokens(delta.n_tokens, choice.last_token.map(|last| now - last));
                }
                choice.last_token = Some(now);
                choice.n_seen += delta.n_tokens;
                choice.usage.completion_tokens = choice.n_seen;
            }
            Event::Done(done) => {
                choice.usage = done.usage;
                choice.n_computed = done.usage.prompt_tokens;
                let finish = match finish(&done.finish) {
                    "stop" if choice.calls_tools => "tool_calls",
                    other => other,
                };
                self.finishes.push(finish);
                if self.source == UsageSource::Engine {
                    if let Some(metrics) = &self.metrics {
                        let Timings { queue_us, prompt_us, predicted_us } = done.timings;
                        metrics.phases([queue_us, prompt_us, predicted_us].map(Duration::from_micros));
                    }
                    self.timings.get_or_insert(done.timings);
                }
                if let Some(entry) = &self.entry {
                    entry.queued(done.timings.queue_us / 1000);
                    if self.n_ended + 1 == n_choices {
                        entry.end(finish);
                    }
                }
                // The token that ended the turn had no delta.
                if let Some(metrics) = &self.metrics {
                    metrics.tokens(done.usage.completion_tokens.saturating_sub(choice.n_seen), None);
                }
                self.n_ended += 1;
            }
            Event::Failed(failure) => {
                self.failed = Some(word(failure));
                if let Some(entry) = &self.entry {
                    entry.end(failed(failure));
                }
            }
            _ => {}
        }
        if let Some(entry) = self.entry.as_ref().filter(|_| !self.is_echo) {
            entry.count(&self.sum(|choice| choice.n_computed), self.source);
        }
    }

    /// Another target answers instead; what this one did is not charged. `reason`: a word for the log.
    pub(super) fn give_up(&mut self, reason: &'static str) {
        self.failed = Some(reason);
        self.reserved = None;
    }

    /// Whether every choice has ended by itself.
    pub(super) fn is_over(&self) -> bool {
        self.failed.is_some() || self.n_ended == self.choices.len()
    }

    pub(super) fn entry(&self) -> Option<&Arc<Entry>> {
        self.entry.as_ref()
    }

    pub(super) fn trace(&self) -> &Trace {
        &self.trace
    }

    pub(super) fn n_choices(&self) -> usize {
        self.choices.len()
    }

    /// Prompts once, answers of all choices.
    pub(super) fn usage(&self) -> Usage {
        self.sum(|choice| choice.usage.prompt_tokens)
    }

    /// What it came to, whether it was delivered or not, by the rule that rows go by: what an engine here broke costs
    /// nothing, unless faults are not refunded.
    fn spend(&self, price: Price) -> Spend {
        let refunds = self.entry.as_ref().is_none_or(|entry| entry.refunds());
        if refunds && self.failed.is_some_and(|word| !["shutting_down", "cancelled", "upstream"].contains(&word)) {
            return Spend::default();
        }
        let usage = self.sum(|choice| choice.n_computed);
        let (n_input, n_output) = (u64::from(usage.prompt_tokens), u64::from(usage.completion_tokens));
        Spend { tokens: n_input + n_output, nusd: price.cost(n_input, usage.cached_tokens.into(), n_output) }
    }

    fn sum(&self, n_prompt: impl Fn(&Choice) -> u32) -> Usage {
        let mut sum = Usage::default();
        for (idx, choice) in self.choices.iter().enumerate() {
            // Choices of one prompt share it.
            let is_first = idx % self.n_per_prompt == 0;
            let prompt_tokens = if is_first { n_prompt(choice) } else { 0 };
            let cached_tokens = if is_first { choice.usage.cached_tokens } else { 0 };
            sum.add(&Usage { prompt_tokens, cached_tokens, ..choice.usage });
        }
        sum
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.is_echo {
            return;
        }
        let mut cost_nusd = 0;
        if let Some((reserved, price)) = self.reserved.take() {
            let spend = self.spend(price);
            cost_nusd = spend.nusd;
            reserved.settle(spend);
        }
        let usage = self.usage();
        if let Some(metrics) = &self.metrics {
            metrics.prompt(usage.prompt_tokens, usage.cached_tokens);
        }
        let outcome = match self.failed {
            Some(word) => word,
            None if self.n_ended == self.choices.len() => "done",
            None => "cancelled",
        };
        self.trace.generated(Generated {
            outcome,
            finishes: std::mem::take(&mut self.finishes),
            n_choices: self.choices.len(),
            usage,
            source: self.source,
            cost_nusd,
            began: self.started,
            first_token: self.first_token,
            ended: Instant::now(),
            timings: self.timings,
        });
    }
}

/// How a generation ended, as its row says it.
fn finish(finish: &Finish) -> &'static str {
    match finish {
        Finish::EndOfTurn | Finish::StopString(_) => "stop",
        Finish::Length => "length",
        Finish::Filtered => "content_filter",
    }
}

/// How a failed one did. What a row ends with is not charged where it is the server's fault.
fn failed(failure: &Failure) -> &'static str {
    match failure {
        Failure::Crashed { .. } => "engine_crash",
        Failure::ShuttingDown => "shutdown",
        Failure::Cancelled => "aborted",
        Failure::Upstream { .. } => "upstream_error",
        _ => "failed",
    }
}

/// A failure as one word for the log; its text may name paths, so it is logged where it is handled.
pub(super) fn word(failure: &Failure) -> &'static str {
    match failure {
        Failure::Invalid { .. } => "invalid",
        Failure::ContextExceeded { .. } => "context_exceeded",
        Failure::Overloaded { .. } | Failure::Shed { .. } => "overloaded",
        Failure::NotReady { .. } => "not_ready",
        Failure::ShuttingDown => "shutting_down",
        Failure::Crashed { .. } => "crashed",
        Failure::Quarantined { .. } => "quarantined",
        Failure::Cancelled => "cancelled",
        Failure::Internal(_) => "internal",
        Failure::Upstream { .. } => "upstream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Delta, Finish};
    use crate::engine::{Done, Timings};
    use crate::telemetry::Metrics;

    #[test]
    fn prompts_count_once_and_answers_of_all_choices() {
        let metrics = Metrics::new();
        let caller = Caller { request_id: "req_1".into(), ..Default::default() };
        let mut meter = Meter::new(metrics.model("m"), &caller, 2, 4);
        for idx in 0..4 {
            meter.observe(idx, &Event::Accepted { n_prompt: 10 });
            meter.observe(idx, &Event::Delta(Delta { content: "x".into(), n_tokens: 2, ..Default::default() }));
        }
        assert_eq!(meter.usage(), Usage { prompt_tokens: 20, completion_tokens: 8, ..Default::default() });
        let usage = Usage {
            prompt_tokens: 10,
            cached_tokens: 4,
            completion_tokens: 3,
            reasoning_tokens: 1,
            ..Default::default()
        };
        meter.observe(0, &Event::Done(Done { finish: Finish::EndOfTurn, usage, timings: Timings::default() }));
        assert_eq!(
            meter.usage(),
            Usage {
                prompt_tokens: 20,
                cached_tokens: 4,
                completion_tokens: 9,
                reasoning_tokens: 1,
                ..Default::default()
            }
        );
        drop(meter);
        let page = metrics.page(&[]);
        assert!(
            page.contains("hearth_prompt_tokens_total{model=\"m\"} 20")
                && page.contains("hearth_generation_tokens_total{model=\"m\"} 9")
        );
    }
}
