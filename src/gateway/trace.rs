//! What became of one request on its way: which target was tried, what the cache said. For headers and the ledger.

use super::cache::CacheResult;
use super::spec::Price;
use super::upstream::Class;
use crate::chat::Usage;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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
    /// `local`, `cache`, or the upstream that answers.
    pub served_by: Option<String>,
    pub cache: Option<CacheResult>,
    pub attempts: Vec<Attempt>,
    /// Parameters that the target that answers has no word for.
    pub dropped: Vec<&'static str>,
}

/// A request's record. Clones are one and the same.
#[derive(Debug, Clone, Default)]
pub struct Trace(Arc<Mutex<Told>>);

impl Trace {
    pub fn told(&self) -> Told {
        self.lock().clone()
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
