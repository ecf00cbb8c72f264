//! What became of one request on its way: which target was tried, what the cache said, how it ended. For headers, the
//! ledger, the log and traces.
//!
//! # Design
//! Everybody who works on a request holds a [`Trace`] and notes in it what is theirs to know. When the last of them has
//! let go, all is known, and it is reported: once for each request, whatever ended it.

use super::cache::CacheResult;
use super::report::Reporter;
use super::spec::Price;
use super::upstream::Class;
use crate::chat::Usage;
use crate::engine::Timings;
use crate::telemetry::context::{SpanId, TraceContext};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Who counted a request's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UsageSource {
    /// An engine here: exact.
    #[default]
    Engine,
    /// An upstream that was heard to its end.
    Upstream,
    /// Nobody: the text that was seen, by its length.
    Estimated,
    /// An engine or upstream, earlier: nothing was computed for this request.
    Cache,
}

impl UsageSource {
    pub fn as_str(self) -> &'static str {
        match self {
            UsageSource::Engine => "engine",
            UsageSource::Upstream => "upstream",
            UsageSource::Estimated => "estimated",
            UsageSource::Cache => "cache",
        }
    }
}

/// One try at one target.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    /// A model's id, or an upstream's name.
    pub target: String,
    pub is_upstream: bool,
    /// Its own part of the trace.
    pub span: SpanId,
    /// From the request's begin to its own.
    pub began: Duration,
    pub class: Class,
    /// What the upstream answered with, where it did.
    pub status: Option<u16>,
    pub took: Duration,
    /// Of its tokens.
    pub price: Price,
    pub usage: Usage,
    pub source: UsageSource,
    /// The answer was whole and not good enough, so that another target was asked.
    pub was_replaced: bool,
}

/// Attempts kept of one request: a chain of four targets with all their retries is less.
const ATTEMPTS_MAX: usize = 64;

/// All that is known so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Told {
    pub head: Head,
    /// `local`, `cache`, or the upstream that answers.
    pub served_by: Option<String>,
    pub cache: Option<CacheResult>,
    pub attempts: Vec<Attempt>,
    /// Parameters that the target that answers has no word for.
    pub dropped: Vec<&'static str>,
    /// Under which name a model was asked for, where that name is known here.
    pub model_asked: Option<String>,
    /// Which one answers, or would have.
    pub model: Option<String>,
    pub asked: Option<AskedFor>,
    /// The answer that is given; of several that were made, the last.
    pub generated: Option<Generated>,
    pub end: Option<EndOfAnswer>,
}

/// Who asks for what, as the log may know it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Head {
    pub request_id: String,
    /// The client's own name for the request, if it gave one that may be logged: 1..=128 of `A-Za-z0-9._-`.
    pub client_request_id: Option<String>,
    /// One of the usual ones, or `other`.
    pub method: &'static str,
    /// The route's pattern.
    pub endpoint: Option<String>,
    /// The word of the conventions for what is done there; `None`: no model is asked to make anything.
    pub operation: Option<&'static str>,
    pub key_id: Option<String>,
    pub team_id: Option<String>,
}

/// What a client asked of the model, as far as it is numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct AskedFor {
    pub n_choices: u32,
    pub max_tokens: Option<u32>,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<i32>,
    pub seed: Option<u32>,
    pub frequency_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
}

/// What was made for a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// `done`, `cancelled`, or why it failed.
    pub outcome: &'static str,
    /// Of each choice that ended by itself.
    pub finishes: Vec<&'static str>,
    pub n_choices: usize,
    pub usage: Usage,
    pub source: UsageSource,
    pub cost_nusd: i64,
    pub began: Instant,
    pub first_token: Option<Instant>,
    pub ended: Instant,
    /// Of the first choice that ended, where an engine here made it.
    pub timings: Option<Timings>,
}

/// How the answer left.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EndOfAnswer {
    pub status: u16,
    pub error_code: Option<String>,
    pub is_stream: bool,
    pub took: Duration,
    /// The client was gone before all of it was sent.
    pub was_cut: bool,
}

/// A request's record. Clones are one and the same.
#[derive(Debug, Clone)]
pub struct Trace(Arc<Record>);

#[derive(Debug)]
struct Record {
    context: TraceContext,
    began: (Instant, SystemTime),
    told: Mutex<Told>,
    /// Whom the client acts for. Not told: it is a person.
    end_user: Mutex<Option<String>>,
    /// Who is told at the end; nobody in tests.
    reporter: Option<Arc<Reporter>>,
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(reporter) = &self.reporter {
            let told = self.told.get_mut().unwrap_or_else(PoisonError::into_inner);
            reporter.report(&self.context, self.began, told);
        }
    }
}

impl Default for Trace {
    /// Of a request that nobody is told of.
    fn default() -> Self {
        Self::new(TraceContext::fresh(0.0), None, Head::default())
    }
}

impl Trace {
    pub(super) fn new(context: TraceContext, reporter: Option<Arc<Reporter>>, head: Head) -> Self {
        let told = Mutex::new(Told { head, ..Told::default() });
        let began = (Instant::now(), SystemTime::now());
        Self(Arc::new(Record { context, began, told, end_user: Mutex::default(), reporter }))
    }

    pub fn context(&self) -> &TraceContext {
        &self.0.context
    }

    pub fn told(&self) -> Told {
        self.lock().clone()
    }

    /// Who asks.
    pub fn of_key(&self, key_id: &str, team_id: Option<&str>) {
        let head = &mut self.lock().head;
        (head.key_id, head.team_id) = (Some(key_id.to_owned()), team_id.map(str::to_owned));
    }

    /// The route's pattern, and the conventions' word for what is done there.
    pub fn at(&self, endpoint: &str, operation: Option<&'static str>) {
        let head = &mut self.lock().head;
        (head.endpoint, head.operation) = (Some(endpoint.to_owned()), operation);
    }

    pub fn endpoint(&self) -> Option<String> {
        self.lock().head.endpoint.clone()
    }

    /// The code of an error that came after the answer's head.
    pub fn failed_with(&self, error_code: Option<&str>) {
        let mut told = self.lock();
        told.end.get_or_insert_default().error_code = error_code.map(str::to_owned);
    }

    /// How the answer left; an error's code that was said before stays.
    pub fn ended(&self, mut end: EndOfAnswer) {
        let mut told = self.lock();
        if let Some(before) = told.end.take() {
            end.error_code = before.error_code.or(end.error_code);
        }
        told.end = Some(end);
    }

    pub(super) fn of_model(&self, asked: Option<&str>, model: &str) {
        let mut told = self.lock();
        told.model_asked = asked.map(|name| name.chars().take(256).collect());
        told.model = Some(model.to_owned());
    }

    pub(super) fn acts_for(&self, end_user: &str) {
        *self.0.end_user.lock().unwrap_or_else(PoisonError::into_inner) = Some(end_user.to_owned());
    }

    pub(super) fn end_user(&self) -> Option<String> {
        self.0.end_user.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn asked_for(&self, asked: AskedFor) {
        self.lock().asked = Some(asked);
    }

    pub(super) fn generated(&self, generated: Generated) {
        self.lock().generated = Some(generated);
    }

    pub(super) fn served_by(&self, name: &str, dropped: &[&'static str]) {
        let mut told = self.lock();
        told.served_by = Some(name.to_owned());
        told.dropped = dropped.to_vec();
    }

    pub(super) fn cache(&self, result: CacheResult) {
        self.lock().cache = Some(result);
    }

    /// A try begins; it counts as cancelled until it is settled. Past the bound nothing is kept of it.
    pub(super) fn attempt(&self, target: &str, is_upstream: bool, price: Price) -> AttemptSlot {
        let mut told = self.lock();
        let idx = told.attempts.len();
        if idx < ATTEMPTS_MAX {
            told.attempts.push(Attempt {
                target: target.to_owned(),
                is_upstream,
                span: SpanId::fresh(),
                began: self.0.began.0.elapsed(),
                class: Class::Cancelled,
                status: None,
                took: Duration::ZERO,
                price,
                usage: Usage::default(),
                source: UsageSource::Estimated,
                was_replaced: false,
            });
        }
        AttemptSlot { trace: self.clone(), idx, started: Instant::now() }
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one attempt in its request's record.
#[derive(Debug, Clone)]
pub(super) struct AttemptSlot {
    trace: Trace,
    idx: usize,
    started: Instant,
}

impl AttemptSlot {
    /// What to tell a target of the trace: its `traceparent` and `tracestate`.
    pub(super) fn context(&self) -> (String, Option<&str>) {
        let context = &self.trace.0.context;
        let told = self.trace.lock();
        // Past the bound it is a part of the request itself.
        let span = told.attempts.get(self.idx).map_or(context.span, |attempt| attempt.span);
        (context.traceparent(span), context.state.as_deref())
    }

    pub(super) fn failed(&self, class: Class, status: Option<u16>) {
        self.change(|attempt| (attempt.class, attempt.status) = (class, status));
    }

    pub(super) fn settle(&self, class: Class, usage: Usage, source: UsageSource) {
        self.change(|attempt| (attempt.class, attempt.usage, attempt.source) = (class, usage, source));
    }

    pub(super) fn replaced(&self) {
        self.change(|attempt| attempt.was_replaced = true);
    }

    fn change(&self, change: impl FnOnce(&mut Attempt)) {
        if let Some(attempt) = self.trace.lock().attempts.get_mut(self.idx) {
            attempt.took = self.started.elapsed();
            change(attempt);
        }
    }
}
