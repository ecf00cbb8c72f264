//! One generation on its way through a worker.

use super::backend::Token;
use super::constraint::Gate;
use super::drafter::Drafter;
use super::error::Failure;
use super::lane::Ticket;
use super::media::Span;
use super::output::Item;
use super::reading::Reader;
use super::request::RequestId;
use super::scheduler::{Share, Want};
use super::service::Live;
use super::text::TextBuilder;
use crate::chat::{Class, Finish, TokenLogprob, Usage};
use crate::engine::event::Timings;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// A checked, tokenised request with everything a worker needs; `S` is the backend's sampler.
pub(super) struct Run<S> {
    pub id: RequestId,
    pub live: Arc<Live>,
    /// Tokens wanted: the prompt and what was generated. Its first `n_prompt` are the prompt. Chunks of media are rows of
    /// negative ids.
    pub tokens: Vec<Token>,
    /// The chunks, in order.
    pub media: Arc<[Span]>,
    pub n_prompt: u32,
    /// Prompt tokens found in the KV cache when it first got a slot.
    pub n_cached: u32,
    /// Most tokens to generate; 0 only where the prompt's own tokens are the answer.
    pub n_generate_max: u32,
    pub sampler: S,
    pub logit_bias: Vec<(Token, f32)>,
    pub top_logprobs: Option<u8>,
    /// Ids of the generated tokens are told.
    pub with_tokens: bool,
    pub text: TextBuilder,
    /// What the answer must be; away while its mask is computed.
    pub gate: Option<Box<Gate>>,
    pub drafter: Option<Box<Drafter>>,
    pub echo: Option<Echo>,
    /// LoRA adapters with their scales, by rising index and without those of scale 0.
    pub adapters: Vec<(u32, f32)>,
    /// Runs of one family (not 0) have the same prompt.
    pub family: u64,
    /// Control tokens that are part of the format and shown.
    pub preserved: Vec<Token>,
    /// Goes to the output thread when the run gets its first slot.
    pub reader: Option<Box<Reader>>,
    pub cache_prompt: bool,
    pub partition: u64,
    pub class: Class,
    pub owner: u64,
    /// Tokens that its owner was charged for: of the prompt, and of the answer.
    pub charged: (u32, u32),
    /// Order of acceptance: the oldest run is never parked.
    pub serial: u64,
    /// What it waits for instead of computing it too.
    pub awaits: Option<Await>,
    /// Points of its prompt where its state is to be saved.
    pub marks: Vec<usize>,
    pub clock: Clock,
    /// Its place on the worker; set when it is sent there.
    pub ticket: Option<Ticket>,
}

/// A prefix that another run is computing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Await {
    pub slot: usize,
    /// Of the run in it.
    pub serial: u64,
    /// How many tokens it must hold.
    pub until: usize,
}

/// The prompt's tokens, on their way to the client.
#[derive(Debug)]
pub(super) struct Echo {
    /// Log-probabilities are wanted, so every row of the prompt is an output.
    pub with_logprobs: bool,
    /// One for each token that is done.
    pub entries: Vec<TokenLogprob>,
}

/// When a run passed its milestones.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    pub accepted: Instant,
    pub started: Option<Instant>,
    pub first_token: Option<Instant>,
}

impl<S> Run<S> {
    pub fn is_cancelled(&self) -> bool {
        self.live.cancelled.load(Ordering::Relaxed)
    }

    /// Whether it is to go because memory is short: not once it had a slot.
    pub fn is_shed(&self) -> bool {
        self.live.shed.load(Ordering::Relaxed) && self.clock.started.is_none()
    }

    /// Why it is not wanted any more.
    pub fn refusal(&self) -> Option<Failure> {
        match self.is_cancelled() {
            true => Some(Failure::Cancelled),
            false => self.is_shed().then(Failure::shed),
        }
    }

    /// Whether rows of the prompt are outputs too.
    pub fn wants_prompt_logits(&self) -> bool {
        self.echo.as_ref().is_some_and(|echo| echo.with_logprobs && echo.entries.len() < self.n_prompt as usize)
    }

    /// What was computed since this was asked last: (prompt tokens, generated tokens). `n_held`: tokens in the KV cache.
    /// What is computed again, after the run was parked, is not told again.
    pub fn news(&mut self, n_held: usize) -> (u32, u32) {
        let (n_input, n_output) = ((n_held as u32).min(self.n_prompt).max(self.charged.0), self.n_generated());
        let news = (n_input - self.charged.0, n_output.saturating_sub(self.charged.1));
        self.charged = (n_input, n_output);
        news
    }

    /// Whether its share of a step is that of a running stream.
    pub fn is_decoded(&self, share: &Share) -> bool {
        share.n_rows <= Want::FEW && self.n_generated() > 0
    }

    pub fn n_generated(&self) -> u32 {
        self.tokens.len() as u32 - self.n_prompt
    }

    /// The run's ending, when it ended by itself.
    pub fn done(&mut self, finish: Finish, now: Instant) -> Item {
        let micros = |from: Instant, to: Instant| u64::try_from((to - from).as_micros()).unwrap_or(u64::MAX);
        let started = self.clock.started.unwrap_or(now);
        let first = self.clock.first_token.unwrap_or(now);
        let drafted = self.drafter.as_ref().map(|drafter| drafter.drafted).unwrap_or_default();
        Item::Done {
            id: self.id,
            rest: self.text.finish(),
            finish,
            usage: Usage {
                prompt_tokens: self.n_prompt,
                cached_tokens: self.n_cached,
                completion_tokens: self.n_generated(),
                accepted_prediction_tokens: drafted.prediction.n_right,
                rejected_prediction_tokens: drafted.prediction.n - drafted.prediction.n_right,
                draft_tokens: drafted.all.n,
                accepted_draft_tokens: drafted.all.n_right,
                // The rest is counted where the answer is read.
                ..Default::default()
            },
            timings: Timings {
                queue_us: micros(self.clock.accepted, started),
                prompt_us: micros(started, first),
                predicted_us: micros(first, now),
            },
        }
    }
}
