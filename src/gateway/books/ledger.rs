//! One row for each request, whatever ends it.
//!
//! # Design
//! An [`Entry`] is made when a request is let in and shared by everything that works for it: the handler, the running
//! generations, the body that is being sent. Whole answers and streams that end well [settle](Entry::settle) it before
//! their last byte and wait for the commit. In every other case it is settled when the last of its holders lets go, so
//! there is no way out that has no row, and none that has two.

use super::capture::Capture;
use crate::chat::{Delta, Prompt, Usage};
use crate::gateway::keys::Principal;
use crate::gateway::spec::Price;
use crate::gateway::store::{Attempt, Noting, Progress, RequestRow, Sealed, Store};
use crate::gateway::trace::{self, Trace, UsageSource};
use crate::gateway::{Error, unix_ms};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// How often running requests note how far they are: what a crash may lose of each stream.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Between two looks for rows that are too old, and between two steps of one look.
const FORGET_EVERY: Duration = Duration::from_secs(60);
const FORGET_PAUSE: Duration = Duration::from_millis(20);
/// How long a server that stops waits for the last rows.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

pub struct Ledger {
    store: Arc<Store>,
    /// What this server broke costs nothing.
    refunds: bool,
    /// **Bound:** one for each request that is being answered.
    entries: Mutex<HashMap<u64, Weak<Entry>>>,
    next: AtomicU64,
}

/// What is known when a request is let in.
#[derive(Debug, Clone, Copy)]
pub struct EntryHead<'a> {
    pub request_id: &'a str,
    pub principal: &'a Principal,
    pub ip: Option<IpAddr>,
}

/// One request's place in the ledger.
pub struct Entry {
    ledger: Arc<Ledger>,
    no: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    row: RequestRow,
    /// What the request's way through targets and cache was.
    trace: Trace,
    /// Answers that were made for the request and not given; the row's counts hold theirs.
    aside: Aside,
    /// Once it is settled, or was found to be no request at all, nothing is written any more.
    is_over: bool,
    is_running: bool,
    /// What was said, where that is kept.
    capture: Option<Capture>,
    /// Something was counted since the last note.
    has_moved: bool,
}

/// Tokens of an answer, and what they cost.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::gateway) struct Aside {
    in_tok: u64,
    cached_tok: u64,
    out_tok: u64,
    reason_tok: u64,
    nusd: i64,
}

impl Ledger {
    pub(super) fn start(store: Arc<Store>, retention: Option<Duration>, refunds: bool) -> Arc<Self> {
        let ledger = Arc::new(Self { store, refunds, entries: Mutex::default(), next: AtomicU64::new(0) });
        tokio::spawn(note_progress(Arc::downgrade(&ledger)));
        if let Some(kept) = retention {
            tokio::spawn(forget_old(Arc::downgrade(&ledger), kept));
        }
        ledger
    }

    /// Whether new requests may begin. Errors: `LedgerUnavailable`.
    pub fn admit(&self) -> Result<(), Error> {
        self.store.admit().map_err(|_| Error::LedgerUnavailable)
    }

    pub fn enter(self: &Arc<Self>, head: EntryHead) -> Arc<Entry> {
        let key = head.principal.key();
        let spec = key.map(|key| &key.spec);
        let row = RequestRow {
            id: head.request_id.to_owned(),
            t0: unix_ms(),
            key_id: key.map(|key| key.id.clone()),
            team_id: spec.and_then(|spec| spec.team.clone()),
            user_id: spec.and_then(|spec| spec.user.clone()),
            ip: head.ip.map(|ip| ip.to_string()),
            budgets: head.principal.shared_budgets().cloned().collect(),
            tags: spec.map(|spec| spec.tags.clone()).unwrap_or_default(),
            usage_source: "none".to_owned(),
            ..RequestRow::default()
        };
        let no = self.next.fetch_add(1, Ordering::Relaxed);
        let entry =
            Arc::new(Entry { ledger: Arc::clone(self), no, state: Mutex::new(State { row, ..State::default() }) });
        self.lock().insert(no, Arc::downgrade(&entry));
        entry
    }

    /// Returns when no request is without its row, or after [`CLOSE_WAIT`].
    pub(super) async fn close(&self) {
        let all_over = async {
            while !self.lock().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(CLOSE_WAIT, all_over).await.is_err() {
            tracing::warn!(n_requests = self.lock().len(), "requests did not end in time; the next start settles them");
        }
    }

    fn progress(&self) -> Vec<Progress> {
        let entries: Vec<Arc<Entry>> = self.lock().values().filter_map(Weak::upgrade).collect();
        entries.iter().filter_map(|entry| entry.progress()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Weak<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn note_progress(ledger: Weak<Ledger>) {
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(ledger) = ledger.upgrade() else { return };
        let of = ledger.progress();
        if !of.is_empty() {
            ledger.store.progress(of);
        }
    }
}

/// Removes rows that are older than `kept`, a few groups at a time, so that others are never held up for long.
async fn forget_old(ledger: Weak<Ledger>, kept: Duration) {
    loop {
        let Some(strong) = ledger.upgrade() else { return };
        let before = unix_ms().saturating_sub(i64::try_from(kept.as_millis()).unwrap_or(i64::MAX));
        let has_more = strong.store.forget(before).await.unwrap_or(false);
        drop(strong);
        tokio::time::sleep(if has_more { FORGET_PAUSE } else { FORGET_EVERY }).await;
    }
}

impl Entry {
    /// The route's pattern.
    pub fn at(&self, endpoint: &str) {
        endpoint.clone_into(&mut self.lock().row.endpoint);
    }

    /// Which model it is for, under which name it was asked for, and what that costs.
    pub fn of_model(&self, asked: Option<&str>, model: &str, price: Price) {
        let row = &mut self.lock().row;
        // A name that a client chose may be long.
        row.model_req = asked.map(|name| name.chars().take(256).collect());
        row.model = Some(model.to_owned());
        row.served_by = Some("local".to_owned());
        row.price = (!price.is_free()).then_some(price);
    }

    /// The request's record, whose attempts become rows.
    pub fn follow(&self, trace: Trace) {
        let mut state = self.lock();
        state.row.trace_id = Some(trace.context().trace.to_string());
        state.trace = trace;
    }

    /// An upstream answers it.
    pub(in crate::gateway) fn of_upstream(&self, name: &str) {
        self.lock().row.served_by = Some(name.to_owned());
    }

    /// It was answered before: nothing is charged again.
    pub(in crate::gateway) fn of_cache(&self) {
        let row = &mut self.lock().row;
        (row.served_by, row.price) = (Some("cache".to_owned()), None);
    }

    /// The answer that was counted so far is not given; another is made. It is charged all the same.
    pub(in crate::gateway) fn set_aside(&self) -> Aside {
        let mut state = self.lock();
        let State { row, aside, .. } = &mut *state;
        let this = Aside {
            in_tok: row.in_tok - aside.in_tok,
            cached_tok: row.cached_tok - aside.cached_tok,
            out_tok: row.out_tok - aside.out_tok,
            reason_tok: row.reason_tok - aside.reason_tok,
            nusd: cost(row, aside, self.ledger.refunds) - aside.nusd,
        };
        *aside = Aside {
            in_tok: row.in_tok,
            cached_tok: row.cached_tok,
            out_tok: row.out_tok,
            reason_tok: row.reason_tok,
            nusd: aside.nusd + this.nusd,
        };
        row.finish.clear();
        this
    }

    /// It is given after all, and will be counted again.
    pub(in crate::gateway) fn take_back(&self, this: &Aside) {
        let aside = &mut self.lock().aside;
        aside.in_tok -= this.in_tok;
        aside.cached_tok -= this.cached_tok;
        aside.out_tok -= this.out_tok;
        aside.reason_tok -= this.reason_tok;
        aside.nusd -= this.nusd;
    }

    pub fn of_end_user(&self, name: &str) {
        self.lock().row.end_user = Some(name.chars().take(256).collect());
    }

    /// Notes on disk that it runs, while the prompt is computed. Errors: `LedgerUnavailable`.
    pub async fn open(&self) -> Result<Noting, Error> {
        let row = {
            let mut state = self.lock();
            state.is_running = true;
            state.row.clone()
        };
        self.ledger.store.open_row(row).await.map_err(|_| Error::LedgerUnavailable)
    }

    /// Whether something is, or was, generated for it.
    pub fn is_running(&self) -> bool {
        self.lock().is_running
    }

    /// Tokens so far, and who counted them.
    pub fn count(&self, usage: &Usage, source: UsageSource) {
        let mut state = self.lock();
        let State { row, aside, has_moved, .. } = &mut *state;
        row.in_tok = aside.in_tok + u64::from(usage.prompt_tokens);
        row.cached_tok = aside.cached_tok + u64::from(usage.cached_tokens);
        row.out_tok = aside.out_tok + u64::from(usage.completion_tokens);
        row.reason_tok = aside.reason_tok + u64::from(usage.reasoning_tokens);
        source.as_str().clone_into(&mut row.usage_source);
        *has_moved = true;
    }

    /// The first token came now, after this long in the queue.
    pub fn first_token(&self) {
        self.lock().row.t_first.get_or_insert_with(unix_ms);
    }

    pub fn queued(&self, queue_ms: u64) {
        self.lock().row.queue_ms = Some(queue_ms);
    }

    /// Its words are kept, beginning with these prompts.
    pub fn keep<'a>(&self, mut capture: Capture, prompts: impl Iterator<Item = &'a Prompt>) {
        prompts.for_each(|prompt| capture.ask(prompt));
        self.lock().capture = Some(capture);
    }

    /// The answer that was told will be told once more.
    pub(in crate::gateway) fn untell(&self) {
        if let Some(capture) = &mut self.lock().capture {
            capture.untell();
        }
    }

    pub fn tell(&self, choice: usize, delta: &Delta) {
        if let Some(capture) = &mut self.lock().capture {
            capture.tell(choice, delta);
        }
    }

    /// How it ended. The first that says so is right: what comes later is a consequence.
    pub fn end(&self, finish: &str) {
        let row = &mut self.lock().row;
        if row.finish.is_empty() {
            finish.clone_into(&mut row.finish);
        }
    }

    /// The answer's status, and an error's code.
    pub fn answered(&self, status: u16, error_code: Option<&str>, stream: bool) {
        let row = &mut self.lock().row;
        row.status = status;
        row.stream = stream;
        if row.error_code.is_none() {
            row.error_code = error_code.map(str::to_owned);
        }
    }

    /// The code of an error that came after the answer's head.
    pub fn failed_with(&self, error_code: Option<&str>) {
        self.lock().row.error_code = error_code.map(str::to_owned);
    }

    /// Whether what this server breaks costs nothing.
    pub(in crate::gateway) fn refunds(&self) -> bool {
        self.ledger.refunds
    }

    /// What it costs so far, in nano-USD.
    pub fn cost(&self) -> i64 {
        let state = self.lock();
        cost(&state.row, &state.aside, self.ledger.refunds)
    }

    /// It was no request: the path is not served.
    pub fn discard(&self) {
        self.lock().is_over = true;
    }

    /// Writes the row; returns when it is committed, or kept where the disk's failure allows it. Errors: neither.
    pub async fn settle(&self) -> Result<(), Error> {
        let Some(row) = self.take() else { return Ok(()) };
        self.ledger.store.settle(row).await.map_err(|_| Error::LedgerUnavailable)
    }

    /// The row as it is to be written; `None` if it was.
    fn take(&self) -> Option<RequestRow> {
        let mut state = self.lock();
        if std::mem::replace(&mut state.is_over, true) {
            return None;
        }
        let mut row = std::mem::take(&mut state.row);
        row.t_end = unix_ms();
        if row.finish.is_empty() {
            let finish = match row.status {
                0 => "aborted",
                200..400 => "ok",
                400..500 => "refused",
                _ => "failed",
            };
            finish.clone_into(&mut row.finish);
        }
        if row.status == 0 {
            // Nginx's number for a client that left before its answer.
            row.status = 499;
        }
        row.cost_nusd = cost(&row, &state.aside, self.ledger.refunds);
        let told = state.trace.told();
        row.cache = told.cache.map(|result| result.as_str().to_owned());
        // One try at a model here is the row itself.
        if told.attempts.len() > 1 || told.attempts.iter().any(|attempt| attempt.is_upstream) {
            row.attempts = told.attempts.iter().map(attempt).collect();
        }
        row.content = state.capture.take().and_then(|capture| capture.seal(&row.id));
        row.content_digest = row.content.as_ref().map(Sealed::digest);
        Some(row)
    }

    fn progress(&self) -> Option<Progress> {
        let mut state = self.lock();
        let is_due = state.is_running && !state.is_over && std::mem::take(&mut state.has_moved);
        let row = &state.row;
        is_due.then(|| Progress {
            id: row.id.clone(),
            in_tok: row.in_tok,
            cached_tok: row.cached_tok,
            out_tok: row.out_tok,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the server broke is not charged, where faults are refunded.
fn cost(row: &RequestRow, aside: &Aside, refunds: bool) -> i64 {
    if refunds && matches!(row.finish.as_str(), "engine_crash" | "failed") {
        return aside.nusd;
    }
    let (n_in, n_cached) = (row.in_tok - aside.in_tok, row.cached_tok - aside.cached_tok);
    aside.nusd.saturating_add(row.price.unwrap_or_default().cost(n_in, n_cached, row.out_tok - aside.out_tok))
}

/// A try as it is written. One that a model here broke off is not charged; an upstream charges what it sent.
fn attempt(tried: &trace::Attempt) -> Attempt {
    let usage = &tried.usage;
    let is_free = !tried.is_upstream && tried.class.is_failure();
    let n = |tokens: u32| u64::from(tokens);
    let cost = tried.price.cost(n(usage.prompt_tokens), n(usage.cached_tokens), n(usage.completion_tokens));
    Attempt {
        target: tried.target.clone(),
        class: if tried.was_replaced { "replaced".to_owned() } else { tried.class.as_str().to_owned() },
        status: tried.status,
        ms: u64::try_from(tried.took.as_millis()).unwrap_or(u64::MAX),
        in_tok: n(usage.prompt_tokens),
        out_tok: n(usage.completion_tokens),
        cost_nusd: if is_free { 0 } else { cost },
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.ledger.lock().remove(&self.no);
        {
            let row = &mut self.lock().row;
            if row.finish.is_empty() && (row.status == 0 || row.stream) {
                // A stream whose last event was not reached.
                "aborted".clone_into(&mut row.finish);
            }
        }
        if let Some(row) = self.take() {
            self.ledger.store.settle_later(row);
        }
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("no", &self.no).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
