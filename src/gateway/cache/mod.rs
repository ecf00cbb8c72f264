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
//! On disk ([`disk`]) are the same answers, sealed, where the operator wants them to outlive a restart.

mod disk;
mod key;
mod record;

pub(super) use key::{Key, Owner, Tenant, identity, local, remote};
pub(super) use record::{Entry, Recorder, Replay};

use crate::chat::CacheAsk;
use disk::{Disk, DiskConfig};
use lru::LruCache;
use std::collections::hash_map;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// What the operator wants kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheConfig {
    pub enabled: bool,
    pub ttl: Duration,
    /// Of all answers together, those included that are being recorded; and as much again on disk.
    pub bytes_max: usize,
    /// They are kept in the folder of the books too, sealed.
    pub persist: bool,
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
            persist: false,
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
/// Epochs that are kept whether or not a request is in them.
const EPOCHS_KEPT: usize = 64;

pub(super) struct Cache {
    config: CacheConfig,
    state: Mutex<State>,
    /// Bytes of answers that are being recorded.
    n_recording: AtomicUsize,
    /// Where the operator wants answers to outlive a restart.
    disk: OnceLock<Arc<Disk>>,
}

struct State {
    /// **Bound:** `config.bytes_max`, counted in `n_bytes`; the least recently used go first.
    entries: LruCache<Key, Arc<Entry>>,
    n_bytes: usize,
    /// Keys whose answer is being made. **Bound:** one for each running request.
    flights: HashMap<Key, watch::Receiver<()>>,
    /// What the requests that run now began in. **Bound:** twice one for each running request, and `EPOCHS_KEPT`.
    epochs: HashMap<Owner, Weak<Epoch>>,
    /// With so many of them, those that are in nobody's hand go.
    n_epochs_max: usize,
}

/// The time between two moments at which an owner's answers are forgotten: what was begun before such a moment is not kept
/// after it. Others' answers don't mind.
#[derive(Debug, Default)]
struct Epoch(AtomicBool);

impl Epoch {
    fn end(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn has_ended(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
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
    /// Its owner's, when it began.
    epoch: Arc<Epoch>,
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
        let state = State {
            entries: LruCache::unbounded(),
            n_bytes: 0,
            flights: HashMap::new(),
            epochs: HashMap::new(),
            n_epochs_max: EPOCHS_KEPT,
        };
        Arc::new(Self { config, state: Mutex::new(state), n_recording: AtomicUsize::new(0), disk: OnceLock::new() })
    }

    /// Keeps answers in a folder besides. Errors: it can't be made.
    pub(super) fn keep_on_disk(&self, dir: PathBuf, secret: [u8; 32], owners: HashSet<Owner>) -> std::io::Result<()> {
        let config = DiskConfig { dir, secret, ttl: self.config.ttl, bytes_max: self.config.bytes_max as u64, owners };
        // There is one folder for all of a server's life.
        let _ = self.disk.set(Disk::open(config)?);
        Ok(())
    }

    pub(super) fn config(&self) -> &CacheConfig {
        &self.config
    }

    /// The answer under `key`, or the right to make it; waits while another request of the same key makes it. Cancel-safe.
    pub(super) async fn enter(self: &Arc<Self>, key: Key, ask: &CacheAsk) -> Entered {
        let epoch = self.lock().epoch(key.owner);
        let flight = |lead| Flight { cache: Arc::clone(self), key, epoch: Arc::clone(&epoch), lead };
        if ask.no_cache {
            return Entered::Miss((!ask.no_store).then(|| Recorder::new(flight(None), ask)));
        }
        let until = tokio::time::Instant::now() + FOLLOW_MAX;
        let mut has_looked = false;
        loop {
            match self.step(key, ask, Instant::now()) {
                Step::Hit(entry) => {
                    if let Some(disk) = self.disk.get() {
                        disk.touch(&key);
                    }
                    return Entered::Hit(entry);
                }
                Step::Lead(lead) => {
                    let flight = flight(Some(lead));
                    if !std::mem::replace(&mut has_looked, true)
                        && let Some(entry) = self.look(key).await
                    {
                        self.insert(key, entry, &epoch);
                        // The flight ends here: whoever waited finds the answer.
                        continue;
                    }
                    // Whoever may not keep the answer must not have others wait for it.
                    return Entered::Miss((!ask.no_store).then(|| Recorder::new(flight, ask)));
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

    /// What is on disk of it.
    async fn look(&self, key: Key) -> Option<Entry> {
        let disk = Arc::clone(self.disk.get()?);
        if !disk.may_have(&key) {
            return None;
        }
        tokio::task::spawn_blocking(move || disk.read(&key)).await.ok().flatten()
    }

    /// Keeps an answer that was just made.
    fn keep(&self, key: Key, entry: Entry, epoch: &Arc<Epoch>) {
        if let (Some(entry), Some(disk)) = (self.insert(key, entry, epoch), self.disk.get()) {
            disk.put(key, entry, Arc::clone(epoch));
        }
    }

    /// Keeps an answer in memory, and makes room for it. One that is too large, or that should have been forgotten while it
    /// was made, is not kept.
    fn insert(&self, key: Key, entry: Entry, epoch: &Epoch) -> Option<Arc<Entry>> {
        if entry.n_bytes > self.entry_bytes_max() {
            return None;
        }
        let mut state = self.lock();
        if epoch.has_ended() {
            return None;
        }
        state.remove(&key);
        let room = self.config.bytes_max.saturating_sub(entry.n_bytes);
        while state.n_bytes > room && state.remove_oldest() {}
        state.n_bytes += entry.n_bytes;
        let entry = Arc::new(entry);
        state.entries.put(key, Arc::clone(&entry));
        Some(entry)
    }

    /// Forgets everything; returns how many answers that were.
    pub(super) async fn flush(self: &Arc<Self>) -> usize {
        self.forget(Which::All).await
    }

    /// Memory is short: keeps only what is on disk. Returns how many answers are not in memory any more.
    pub(super) fn leave_memory(&self) -> usize {
        let mut state = self.lock();
        let n = state.entries.len();
        state.entries.clear();
        state.n_bytes = 0;
        n
    }

    /// Forgets the answers of these owners.
    pub(super) async fn forget_of(self: &Arc<Self>, owners: HashSet<Owner>) -> usize {
        self.forget(Which::Of(owners)).await
    }

    /// Forgets the answers of keys and teams that are not among `owners`.
    pub(super) async fn forget_others(self: &Arc<Self>, owners: HashSet<Owner>) -> usize {
        self.forget(Which::But(owners)).await
    }

    /// Returns how many answers that were, those on disk alone among them. What is being made now is not kept either. It is
    /// done to the end, whether or not somebody waits for it.
    async fn forget(self: &Arc<Self>, which: Which<Owner>) -> usize {
        let Some(disk) = self.disk.get().cloned() else { return self.forget_in_memory(&which).len() };
        let cache = Arc::clone(self);
        let forgotten = tokio::task::spawn_blocking(move || {
            // Before the files go, so that none is written after them; and again where memory is cleared, for those who read
            // a file before it went.
            cache.lock().end_epochs(&which);
            let folders = which.map(|owner| disk.folder(*owner));
            let on_disk = disk.forget(|folder| folders.has(folder, folder.is_fixed()));
            let in_memory = cache.forget_in_memory(&which);
            in_memory.iter().filter(|key| !on_disk.contains(&disk.place(key))).count() + on_disk.len()
        });
        forgotten.await.unwrap_or(0)
    }

    /// The keys whose answers went.
    fn forget_in_memory(&self, which: &Which<Owner>) -> Vec<Key> {
        let mut state = self.lock();
        state.end_epochs(which);
        let goes = |key: &Key| which.has(&key.owner, key.owner.is_fixed());
        let keys: Vec<Key> = state.entries.iter().map(|(key, _)| *key).filter(goes).collect();
        keys.iter().for_each(|key| state.remove(key));
        keys
    }

    /// Returns when what was answered is written for the next start, or after a few seconds.
    pub(super) async fn close(&self) {
        if let Some(disk) = self.disk.get().cloned() {
            // An error means that it panicked, which the log says.
            let _ = tokio::task::spawn_blocking(move || disk.close()).await;
        }
    }

    /// Bytes of all files; `None` where there are none.
    pub(super) fn disk_bytes(&self) -> Option<u64> {
        self.disk.get().map(|disk| disk.n_bytes())
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

/// Whose answers are forgotten: those of owners, or what lies in folders.
enum Which<T> {
    All,
    Of(HashSet<T>),
    /// Those of keys and teams that are not among these.
    But(HashSet<T>),
}

impl<T: Eq + Hash> Which<T> {
    fn has(&self, one: &T, is_fixed: bool) -> bool {
        match self {
            Which::All => true,
            Which::Of(all) => all.contains(one),
            Which::But(all) => !is_fixed && !all.contains(one),
        }
    }

    fn map<U: Eq + Hash>(&self, change: impl Fn(&T) -> U) -> Which<U> {
        match self {
            Which::All => Which::All,
            Which::Of(all) => Which::Of(all.iter().map(change).collect()),
            Which::But(all) => Which::But(all.iter().map(change).collect()),
        }
    }
}

impl State {
    /// The one that an owner is in now.
    fn epoch(&mut self, owner: Owner) -> Arc<Epoch> {
        if let Some(epoch) = self.epochs.get(&owner).and_then(Weak::upgrade) {
            return epoch;
        }
        if self.epochs.len() >= self.n_epochs_max {
            self.epochs.retain(|_, epoch| epoch.strong_count() > 0);
            self.n_epochs_max = EPOCHS_KEPT.max(2 * self.epochs.len());
        }
        let epoch = Arc::default();
        self.epochs.insert(owner, Arc::downgrade(&epoch));
        epoch
    }

    fn end_epochs(&mut self, which: &Which<Owner>) {
        self.epochs.retain(|owner, epoch| {
            let ends = which.has(owner, owner.is_fixed());
            if let Some(epoch) = epoch.upgrade().filter(|_| ends) {
                epoch.end();
            }
            !ends
        });
    }

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
mod disk_tests;
#[cfg(test)]
mod tests;
