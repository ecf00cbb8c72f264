//! Answers that are given again: exact, within one tenant, bounded in bytes and time, and off unless the operator wants it.
//!
//! **Invariant:** no answer, nor the time it takes, tells one tenant of another's: the tenant is part of every key, and
//! requests wait for each other only under one key. What failed, was cut or was filtered is never kept.
//!
//! # Design
//! An own store over the `lru` crate rather than moka. A leader's answer is known only when a client has read its stream to
//! the end, so moka's `get_with` has nothing to await; "a hit, or you are the leader" must be one step under one lock, which
//! is held for a look-up and never across an await; and moka evicts some time after an insertion, while the bound here is
//! one that memory plans count on. Events are kept as they came, so that a replayed stream has the chunks of a live one.

mod key;
mod record;

pub(super) use key::{Key, Tenant, identity, local, remote};
pub(super) use record::{Entry, Recorder, Replay};

use crate::chat::CacheAsk;
use lru::LruCache;
use std::collections::HashMap;
use std::collections::hash_map;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// What the operator wants kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheConfig {
    pub enabled: bool,
    pub ttl: Duration,
    /// Of all answers together, those included that are being recorded.
    pub bytes_max: usize,
    pub scope: CacheScope,
    /// Only requests of temperature 0 or with a seed: others ask for a new answer each time.
    pub deterministic_only: bool,
    /// Also answers that call tools: their ids come again, too.
    pub tool_calls: bool,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            ttl: Duration::from_secs(600),
            bytes_max: 256 << 20,
            scope: CacheScope::Key,
            deterministic_only: true,
            tool_calls: false,
        }
    }
}

/// Who shares answers. There is no scope of everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheScope {
    #[default]
    Key,
    /// The keys of a team; a key without one is alone.
    Team,
}

/// What became of a request at the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheResult {
    Hit,
    Miss,
    /// The request, or its client, keeps away from it.
    Bypass,
}

impl CacheResult {
    pub fn as_str(self) -> &'static str {
        match self {
            CacheResult::Hit => "hit",
            CacheResult::Miss => "miss",
            CacheResult::Bypass => "bypass",
        }
    }
}

/// Longest wait for another's answer under the same key; then the request works for itself.
const FOLLOW_MAX: Duration = Duration::from_secs(60);
/// Of the bound, the part that one answer may take.
const ENTRY_SHARE: usize = 8;

pub(super) struct Cache {
    config: CacheConfig,
    state: Mutex<State>,
    /// Bytes of answers that are being recorded.
    n_recording: AtomicUsize,
}

struct State {
    /// **Bound:** `config.bytes_max`, counted in `n_bytes`; the least recently used go first.
    entries: LruCache<Key, Arc<Entry>>,
    n_bytes: usize,
    /// Keys whose answer is being made. **Bound:** one for each running request.
    flights: HashMap<Key, watch::Receiver<()>>,
}

/// What a request does next.
pub(super) enum Entered {
    Hit(Arc<Entry>),
    /// Make it. With a recorder: and keep it.
    Miss(Option<Recorder>),
}

/// Makes the answer of a key; while it lives, others of the key wait.
struct Flight {
    cache: Arc<Cache>,
    key: Key,
    /// Dropped with it, which is what the others wait for. `None`: nobody waits for this one.
    lead: Option<watch::Sender<()>>,
}

enum Step {
    Hit(Arc<Entry>),
    Lead(watch::Sender<()>),
    Follow(watch::Receiver<()>),
}

impl Cache {
    pub(super) fn new(config: CacheConfig) -> Arc<Self> {
        let state = State { entries: LruCache::unbounded(), n_bytes: 0, flights: HashMap::new() };
        Arc::new(Self { config, state: Mutex::new(state), n_recording: AtomicUsize::new(0) })
    }

    pub(super) fn config(&self) -> &CacheConfig {
        &self.config
    }

    /// The answer under `key`, or the right to make it; waits while another request of the same key makes it. Cancel-safe.
    pub(super) async fn enter(self: &Arc<Self>, key: Key, ask: &CacheAsk) -> Entered {
        if ask.no_cache {
            let flight = || Flight { cache: Arc::clone(self), key, lead: None };
            return Entered::Miss((!ask.no_store).then(|| Recorder::new(flight(), ask)));
        }
        let until = tokio::time::Instant::now() + FOLLOW_MAX;
        loop {
            match self.step(key, ask, Instant::now()) {
                Step::Hit(entry) => return Entered::Hit(entry),
                // Whoever may not keep the answer must not have others wait for it.
                Step::Lead(lead) if ask.no_store => {
                    self.lock().flights.remove(&key);
                    drop(lead);
                    return Entered::Miss(None);
                }
                Step::Lead(lead) => {
                    let flight = Flight { cache: Arc::clone(self), key, lead: Some(lead) };
                    return Entered::Miss(Some(Recorder::new(flight, ask)));
                }
                Step::Follow(mut flight) => {
                    // An error is the end of the flight, whichever it was.
                    let landed = flight.changed();
                    if tokio::time::timeout_at(until, landed).await.is_err() {
                        return Entered::Miss(None);
                    }
                }
            }
        }
    }

    fn step(&self, key: Key, ask: &CacheAsk, now: Instant) -> Step {
        let mut state = self.lock();
        if let Some(entry) = state.entries.get(&key) {
            if now < entry.expires {
                let age_max = ask.max_age_s.map(|seconds| Duration::from_secs(seconds.into()));
                if age_max.is_none_or(|max| now.saturating_duration_since(entry.made) <= max) {
                    return Step::Hit(Arc::clone(entry));
                }
            } else {
                state.remove(&key);
            }
        }
        match state.flights.entry(key) {
            hash_map::Entry::Occupied(flight) => Step::Follow(flight.get().clone()),
            hash_map::Entry::Vacant(place) => {
                let (lead, flight) = watch::channel(());
                place.insert(flight);
                Step::Lead(lead)
            }
        }
    }

    /// Keeps an answer, and makes room for it. One that is too large is not kept.
    fn insert(&self, key: Key, entry: Entry) {
        if entry.n_bytes > self.entry_bytes_max() {
            return;
        }
        let mut state = self.lock();
        state.remove(&key);
        let room = self.config.bytes_max.saturating_sub(entry.n_bytes);
        while state.n_bytes > room && state.remove_oldest() {}
        state.n_bytes += entry.n_bytes;
        state.entries.put(key, Arc::new(entry));
    }

    /// Forgets everything; returns how many answers that were.
    pub(super) fn flush(&self) -> usize {
        let mut state = self.lock();
        let n = state.entries.len();
        state.entries.clear();
        state.n_bytes = 0;
        n
    }

    /// Bytes of all kept answers.
    pub(super) fn n_bytes(&self) -> usize {
        self.lock().n_bytes
    }

    fn entry_bytes_max(&self) -> usize {
        self.config.bytes_max / ENTRY_SHARE
    }

    /// Room for `n` more bytes of a recording, if there is some.
    fn reserve(&self, n: usize) -> bool {
        let n_before = self.n_recording.fetch_add(n, Ordering::Relaxed);
        let fits = n_before.saturating_add(n) <= self.config.bytes_max;
        if !fits {
            self.n_recording.fetch_sub(n, Ordering::Relaxed);
        }
        fits
    }

    fn release(&self, n: usize) {
        self.n_recording.fetch_sub(n, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.pop(key) {
            self.n_bytes -= entry.n_bytes;
        }
    }

    fn remove_oldest(&mut self) -> bool {
        let oldest = self.entries.pop_lru();
        self.n_bytes -= oldest.as_ref().map_or(0, |(_, entry)| entry.n_bytes);
        oldest.is_some()
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.lead.is_some() {
            self.cache.lock().flights.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests;
