//! The thread that owns a context: take requests, plan, decode once, sample, emit.
//!
//! **Invariant:** every run that comes in leaves with exactly one `Done` or `Failed` item; a slot's `kept` says exactly
//! what the KV cache holds; the batch never exceeds `n_batch` or the free cells.
//!
//! # Design
//! Admission is by free KV cells, which the worker counts itself instead of learning from a failed decode. When the runs
//! outgrow the cells together, idle slots are emptied first, then the youngest run is parked: its cells are freed, its
//! tokens and sampler stay, and it is computed again when there is room. The oldest run always fits, so somebody always
//! gets on and nobody fails for another's sake.
//!
//! Tokens of steps that take less than `COALESCE` go out together: a model that makes a thousand tokens a second would
//! otherwise spend the cores on system calls and wake-ups, in this process, the front and the client. First tokens, endings
//! and whatever a longer step would hold up go out at once.

use super::backend::{Context, DecodeError, Model, Row, Token};
use super::error::Failure;
use super::event::SlotStats;
use super::logprobs;
use super::output::Item;
use super::request::RequestId;
use super::run::Run;
use super::scheduler::{self, Pace, Share};
use super::service::{Cancels, WorkerStats};
use super::slot::{self, Slot};
use crate::chat::{Class, Finish, TokenLogprob};
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a token may wait for the next ones.
const COALESCE: Duration = Duration::from_millis(4);

/// Makes a new context when the old one broke.
pub(super) type Reopen<C> = Box<dyn FnMut() -> Result<C, String> + Send>;

pub(super) struct Worker<M: Model> {
    model: Arc<M>,
    context: M::Context,
    reopen: Reopen<M::Context>,
    slots: Vec<Slot<M::Sampler>>,
    /// Runs without a slot, first come first; parked runs stand before everything younger.
    waiting: VecDeque<Box<Run<M::Sampler>>>,
    incoming: Receiver<Box<Run<M::Sampler>>>,
    cancels: Arc<Cancels>,
    /// The count of cancels at the last sweep.
    swept: u64,
    items: Sender<Vec<Item>>,
    /// Items that wait to go out.
    out: Vec<Item>,
    /// Something in `out` must not wait.
    is_urgent: bool,
    flushed_at: Instant,
    pace: Pace,
    step: u64,
    rows: Vec<Row>,
    stats: Arc<Mutex<WorkerStats>>,
}

/// What a worker is built from.
pub(super) struct Parts<M: Model> {
    pub model: Arc<M>,
    pub context: M::Context,
    pub reopen: Reopen<M::Context>,
    pub n_slots: u32,
    pub incoming: Receiver<Box<Run<M::Sampler>>>,
    pub cancels: Arc<Cancels>,
    pub items: Sender<Vec<Item>>,
    pub pace: Pace,
    pub stats: Arc<Mutex<WorkerStats>>,
}

/// The worker can't go on: its context broke and no new one could be made.
pub(super) struct Broken(pub String);

impl<M: Model> Worker<M> {
    pub(super) fn new(parts: Parts<M>) -> Self {
        Self {
            model: parts.model,
            context: parts.context,
            reopen: parts.reopen,
            slots: (0..parts.n_slots).map(|_| Slot::new()).collect(),
            waiting: VecDeque::new(),
            incoming: parts.incoming,
            cancels: parts.cancels,
            swept: 0,
            items: parts.items,
            out: Vec::new(),
            is_urgent: false,
            flushed_at: Instant::now(),
            pace: parts.pace,
            step: 0,
            rows: Vec::new(),
            stats: parts.stats,
        }
    }

    /// Until the service drops its end of `incoming` and stops the runs.
    pub(super) fn run(mut self) -> Result<(), Broken> {
        loop {
            if !self.take_incoming() {
                self.fail_everything(&Failure::ShuttingDown);
                self.flush();
                return Ok(());
            }
            self.sweep_cancelled();
            self.fill_slots();
            self.make_room();
            let shares = self.plan();
            // Before the decode: should it kill the process, the front must know whom it was working on; and tokens must
            // not wait for somebody's prompt.
            if self.is_urgent || shares.iter().any(|share| share.n_rows > 1) {
                self.flush();
            }
            if !shares.is_empty()
                && let Err(broken) = self.compute(&shares)
            {
                self.fail_everything(&Failure::Internal(broken.0.clone()));
                self.flush();
                return Err(broken);
            }
            if self.is_urgent || self.flushed_at.elapsed() >= COALESCE {
                self.publish();
                self.flush();
            }
        }
    }

    /// Blocks only when there is nothing to do. False: stop.
    fn take_incoming(&mut self) -> bool {
        let idle = self.waiting.is_empty() && self.slots.iter().all(|slot| slot.run.is_none());
        if idle {
            self.publish();
            self.flush();
            match self.incoming.recv() {
                Ok(run) => self.enqueue(run),
                Err(_) => return false,
            }
        }
        loop {
            match self.incoming.try_recv() {
                Ok(run) => self.enqueue(run),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        !self.cancels.is_stopping()
    }

    /// Interactive runs before batch ones, older before younger.
    fn enqueue(&mut self, run: Box<Run<M::Sampler>>) {
        // Cancelled on its way here: the sweep that counted it may be over, and no other would find it.
        if run.is_cancelled() {
            self.is_urgent = true;
            self.out.push(Item::Failed { id: run.id, failure: Failure::Cancelled });
            return;
        }
        let rank = |run: &Run<M::Sampler>| (run.class == Class::Batch, run.serial);
        let at = self.waiting.partition_point(|other| rank(other) < rank(&run));
        self.waiting.insert(at, run);
    }

    fn sweep_cancelled(&mut self) {
        let count = self.cancels.count();
        if count == self.swept {
            return;
        }
        self.swept = count;
        for index in 0..self.slots.len() {
            if self.slots[index].run.as_ref().is_some_and(|run| run.is_cancelled()) {
                self.end_run(index, |run, _| Item::Failed { id: run.id, failure: Failure::Cancelled });
            }
        }
        let (out, is_urgent) = (&mut self.out, &mut self.is_urgent);
        self.waiting.retain(|run| {
            // Asked once: a cancel between two looks would drop the run without its ending.
            let is_cancelled = run.is_cancelled();
            if is_cancelled {
                *is_urgent = true;
                out.push(Item::Failed { id: run.id, failure: Failure::Cancelled });
            }
            !is_cancelled
        });
    }

    /// Gives waiting runs free slots, in order, as long as their tokens fit into free cells.
    fn fill_slots(&mut self) {
        while let Some(front) = self.waiting.front() {
            let Some(index) = slot::choose(&self.slots, &front.tokens, front.partition, front.cache_prompt) else {
                return;
            };
            let n_running = self.slots.iter().filter(|slot| slot.run.is_some()).count();
            let in_use: usize =
                self.slots.iter().filter_map(|slot| slot.run.as_ref()).map(|run| run.tokens.len()).sum();
            // Each run beside it needs room to grow, or it would be parked again at once.
            let margin = 32 * (n_running + 1);
            if self.context.shares_cells()
                && n_running > 0
                && in_use + front.tokens.len() + margin > self.context.n_cells() as usize
            {
                return;
            }
            if let Some(run) = self.waiting.pop_front() {
                self.start(index, run);
            }
        }
    }

    fn start(&mut self, index: usize, mut run: Box<Run<M::Sampler>>) {
        let slot = &self.slots[index];
        let common = if run.cache_prompt { slot.common_prefix(&run.tokens, run.partition) } else { 0 };
        // The last token is computed again: its logits are wanted.
        let keep = self.cut(index, common.min(run.tokens.len() - 1));
        let is_first = run.clock.started.is_none();
        if is_first {
            self.is_urgent = true;
            run.clock.started = Some(Instant::now());
            run.n_cached = (keep as u32).min(run.n_prompt);
            if let Some(reader) = run.reader.take() {
                self.out.push(Item::Begin { id: run.id, reader });
            }
            self.out.push(Item::Progress {
                id: run.id,
                n_prompt: run.n_prompt,
                n_computed: run.n_cached,
                n_cached: run.n_cached,
            });
            self.lock_stats().prompt_tokens_cached += u64::from(run.n_cached);
        }
        let slot = &mut self.slots[index];
        slot.partition = run.partition;
        slot.run = Some(run);
    }

    /// Forgets what slot `index` holds from position `keep` on; returns how much really stays.
    fn cut(&mut self, index: usize, keep: usize) -> usize {
        let held = self.slots[index].kept.len();
        let (seq, from) = (index as u32, keep as u32);
        let stays = if held == 0 || keep == 0 || !self.context.can_resume(seq, from) {
            0
        } else if keep == held || self.context.forget(seq, from) {
            keep
        } else {
            0
        };
        if stays == 0 && held > 0 {
            self.context.forget(seq, 0);
        }
        self.slots[index].kept.truncate(stays);
        stays
    }

    fn n_cells_free(&self) -> usize {
        let used: usize = self.slots.iter().map(|slot| slot.kept.len()).sum();
        (self.context.n_cells() as usize).saturating_sub(used)
    }

    /// Frees cells until every running stream, or at least the oldest run, can get its next token.
    fn make_room(&mut self) {
        if !self.context.shares_cells() {
            return;
        }
        loop {
            let wants: Vec<_> = self.slots.iter().enumerate().filter_map(|(index, slot)| slot.want(index)).collect();
            if wants.is_empty() {
                return;
            }
            let needed = wants.iter().filter(|want| want.is_decode).count().max(1);
            if self.n_cells_free() >= needed {
                return;
            }
            let idle = self.slots.iter().enumerate().filter(|(_, slot)| slot.run.is_none() && !slot.kept.is_empty());
            if let Some(index) = idle.min_by_key(|(_, slot)| slot.served_at).map(|(index, _)| index) {
                self.cut(index, 0);
            } else if !self.park_youngest() {
                return; // One run alone: it fits, since no request may be longer than the cells.
            }
        }
    }

    /// Takes the slot from the youngest run (batch class first); false when only one runs.
    fn park_youngest(&mut self) -> bool {
        let running = self.slots.iter().enumerate().filter_map(|(index, slot)| Some((index, slot.run.as_ref()?)));
        let running: Vec<_> = running.map(|(index, run)| ((run.class == Class::Batch, run.serial), index)).collect();
        if running.len() < 2 {
            return false;
        }
        let Some((_, index)) = running.into_iter().max() else { return false };
        self.cut(index, 0);
        if let Some(run) = self.slots[index].run.take() {
            self.lock_stats().n_parked += 1;
            self.enqueue(run);
        }
        true
    }

    fn plan(&self) -> Vec<Share> {
        let wants: Vec<_> = self.slots.iter().enumerate().filter_map(|(index, slot)| slot.want(index)).collect();
        let mut free = if self.context.shares_cells() { self.n_cells_free() } else { usize::MAX };
        if self.context.shares_cells() {
            // Cells of idle slots count as free for prompts: they are emptied when needed (see `compute`).
            free += self.slots.iter().filter(|slot| slot.run.is_none()).map(|slot| slot.kept.len()).sum::<usize>();
        }
        scheduler::plan(&wants, self.pace.budget(u32::try_from(free).unwrap_or(u32::MAX)))
    }

    /// Empties idle slots, least recent first, until `n_rows` cells are free.
    fn free_idle(&mut self, n_rows: usize) {
        while self.context.shares_cells() && self.n_cells_free() < n_rows {
            let idle = self.slots.iter().enumerate().filter(|(_, slot)| slot.run.is_none() && !slot.kept.is_empty());
            let Some(index) = idle.min_by_key(|(_, slot)| slot.served_at).map(|(index, _)| index) else { return };
            self.cut(index, 0);
        }
    }

    /// One forward pass over `shares`, and what follows from it.
    fn compute(&mut self, shares: &[Share]) -> Result<(), Broken> {
        self.free_idle(shares.iter().map(|share| share.n_rows as usize).sum());
        self.step += 1;
        let (n_decode, n_prefill) = self.lay_out(shares);
        let runs = shares.iter().filter_map(|share| self.slots[share.slot].run.as_ref());
        self.cancels.begin_batch(runs.map(|run| &run.live), self.swept);
        let start = Instant::now();
        let result = self.context.decode(&self.rows);
        let time = start.elapsed();
        match result {
            Ok(()) => {
                self.pace.observe(n_decode, n_prefill, time);
                self.count(n_decode, n_prefill);
                self.advance(shares);
                Ok(())
            }
            Err(DecodeError::Aborted) => {
                for share in shares {
                    self.resync(share.slot);
                }
                Ok(())
            }
            Err(DecodeError::NoKvSlot) => {
                // The cells are there but not where this memory needs them: make real room.
                self.free_idle(usize::MAX);
                if !self.park_youngest() {
                    let failure = Failure::Internal("the KV cache has no room for a single request".into());
                    self.fail_shares(shares, &failure);
                }
                Ok(())
            }
            Err(DecodeError::Broken(reason)) => {
                tracing::error!(%reason, "a decode failed; the context is made anew");
                self.fail_shares(shares, &Failure::Internal("the model's computation failed".into()));
                self.renew_context()
            }
        }
    }

    /// Fills `rows`; returns (rows of running streams, rows of prompts).
    fn lay_out(&mut self, shares: &[Share]) -> (u32, u32) {
        self.rows.clear();
        let (mut n_decode, mut n_prefill) = (0, 0);
        for share in shares {
            let slot = &mut self.slots[share.slot];
            slot.served_at = self.step;
            let Some(run) = &slot.run else { continue };
            let from = slot.kept.len();
            let to = from + share.n_rows as usize;
            if share.n_rows == 1 && run.n_generated() > 0 {
                n_decode += 1;
            } else {
                n_prefill += share.n_rows;
            }
            for at in from..to {
                let output = at + 1 == run.tokens.len();
                self.rows.push(Row { token: run.tokens[at], pos: at as u32, seq: share.slot as u32, output });
            }
        }
        (n_decode, n_prefill)
    }

    /// The decode is done: remember what is computed, and go on with what has its logits.
    fn advance(&mut self, shares: &[Share]) {
        let mut row = 0;
        for share in shares {
            row += share.n_rows as usize;
            let slot = &mut self.slots[share.slot];
            let Some(run) = &slot.run else { continue };
            let from = slot.kept.len();
            slot.kept.extend_from_slice(&run.tokens[from..from + share.n_rows as usize]);
            if slot.kept.len() == run.tokens.len() {
                self.next_token(share.slot, row - 1);
            } else if run.n_generated() == 0 {
                self.out.push(Item::Progress {
                    id: run.id,
                    n_prompt: run.n_prompt,
                    n_computed: slot.kept.len() as u32,
                    n_cached: run.n_cached,
                });
            }
        }
    }

    /// Samples from `row` and ends the run if that was its last token.
    fn next_token(&mut self, index: usize, row: usize) {
        let Some(run) = &mut self.slots[index].run else { return };
        let token = match self.context.sample(row, &mut run.sampler) {
            Ok(token) => token,
            Err(reason) => {
                let failure = Failure::Internal(format!("no token could be chosen: {reason}"));
                self.end_run(index, |run, _| Item::Failed { id: run.id, failure });
                return;
            }
        };
        if run.clock.first_token.is_none() {
            run.clock.first_token = Some(Instant::now());
            self.is_urgent = true;
        }
        run.tokens.push(token);
        if self.model.is_end(token) {
            self.end_run(index, |run, now| run.done(Finish::EndOfTurn, now));
            return;
        }
        let is_shown = !self.model.is_control(token) || run.preserved.contains(&token);
        let piece = if is_shown { self.model.piece(token) } else { &[] };
        let entry = run.top_logprobs.filter(|_| is_shown).and_then(|k| {
            let logits = self.context.logits(row)?;
            let (logprob, top) = logprobs::of_row(logits, &run.logit_bias, token, usize::from(k));
            let top = top.into_iter().map(|(id, value)| (self.model.piece(id).to_vec(), value)).collect();
            Some(TokenLogprob { bytes: piece.to_vec(), logprob, top })
        });
        let mut released = run.text.push(piece, entry);
        let stop = released.stop.take();
        let is_full = run.tokens.len() >= self.context.n_ctx_seq() as usize;
        let is_long = run.n_generated() >= run.n_generate_max;
        self.out.push(Item::Token { id: run.id, released });
        if let Some(stop) = stop {
            self.end_run(index, |run, now| run.done(Finish::StopString(stop), now));
        } else if is_long || is_full {
            self.end_run(index, |run, now| run.done(Finish::Length, now));
        }
    }

    /// Frees the slot; what it holds stays for a request that continues it.
    fn end_run(&mut self, index: usize, item: impl FnOnce(&mut Run<M::Sampler>, Instant) -> Item) {
        let Some(mut run) = self.slots[index].run.take() else { return };
        self.lock_stats().tokens_generated += u64::from(run.n_generated());
        self.is_urgent = true;
        self.out.push(item(&mut run, Instant::now()));
        if !run.cache_prompt {
            self.cut(index, 0);
        }
    }

    /// After an aborted decode nobody knows what the sequence holds beyond `kept`: go back to it.
    fn resync(&mut self, index: usize) {
        let held = self.slots[index].kept.len();
        if held == 0 || !self.context.forget(index as u32, held as u32) {
            self.context.forget(index as u32, 0);
            self.slots[index].kept.clear();
        }
    }

    fn fail_shares(&mut self, shares: &[Share], failure: &Failure) {
        for share in shares {
            self.end_run(share.slot, |run, _| Item::Failed { id: run.id, failure: failure.clone() });
            self.cut(share.slot, 0);
        }
    }

    fn fail_everything(&mut self, failure: &Failure) {
        for index in 0..self.slots.len() {
            self.end_run(index, |run, _| Item::Failed { id: run.id, failure: failure.clone() });
        }
        let waiting = self.waiting.drain(..).map(|run| run.id);
        let incoming: Vec<RequestId> = self.incoming.try_iter().map(|run| run.id).collect();
        let ids: Vec<RequestId> = waiting.chain(incoming).collect();
        self.out.extend(ids.into_iter().map(|id| Item::Failed { id, failure: failure.clone() }));
    }

    /// A new, empty context; runs that were not in the failed batch are computed again.
    fn renew_context(&mut self) -> Result<(), Broken> {
        self.context = (self.reopen)().map_err(Broken)?;
        for slot in &mut self.slots {
            slot.kept.clear();
        }
        Ok(())
    }

    fn count(&self, n_decode: u32, n_prefill: u32) {
        let mut stats = self.lock_stats();
        stats.n_decode_calls += 1;
        stats.n_decode_rows += u64::from(n_decode + n_prefill);
        stats.prompt_tokens_computed += u64::from(n_prefill);
    }

    fn publish(&self) {
        let mut stats = self.lock_stats();
        stats.n_waiting = (self.waiting.len() + self.incoming.len()) as u32;
        stats.kv_cells_used = self.slots.iter().map(|slot| slot.kept.len() as u32).sum();
        stats.slots.resize_with(self.slots.len(), SlotStats::default);
        for ((index, slot), out) in self.slots.iter().enumerate().zip(&mut stats.slots) {
            out.slot = index as u32;
            out.n_kept = slot.kept.len() as u32;
            let (state, n_prompt, n_generated) = match &slot.run {
                None => ("idle", 0, 0),
                Some(run) if run.n_generated() == 0 => ("prefill", run.n_prompt, 0),
                Some(run) => ("decode", run.n_prompt, run.n_generated()),
            };
            if out.state != state {
                state.clone_into(&mut out.state);
            }
            (out.n_prompt, out.n_generated) = (n_prompt, n_generated);
            out.n_computed = if slot.run.is_some() { out.n_kept.min(n_prompt) } else { 0 };
        }
    }

    fn flush(&mut self) {
        self.is_urgent = false;
        self.flushed_at = Instant::now();
        if !self.out.is_empty() && self.items.send(std::mem::take(&mut self.out)).is_err() {
            // The output thread only leaves after every worker, so this is a service being torn down.
            tracing::debug!("nobody takes the worker's output any more");
        }
    }

    fn lock_stats(&self) -> std::sync::MutexGuard<'_, WorkerStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Computes a few rows so that the first request meets warm caches and a measured pace.
pub(super) fn warm_up<C: Context>(context: &mut C, token: Token, pace: &mut Pace) -> Result<(), String> {
    let n_rows = 64.min(context.n_batch()).min(context.n_ctx_seq().saturating_sub(1)).max(1);
    for round in 0..2u32 {
        let rows: Vec<Row> = (0..n_rows).map(|pos| Row { token, pos, seq: 0, output: pos + 1 == n_rows }).collect();
        let start = Instant::now();
        match context.decode(&rows) {
            Ok(()) | Err(DecodeError::Aborted) => {}
            Err(DecodeError::NoKvSlot) => return Err("the KV cache has no room for the warm-up".into()),
            Err(DecodeError::Broken(reason)) => return Err(reason),
        }
        // The first round pages the weights in; the second one is what requests will see.
        if round > 0 {
            (0..4).for_each(|_| pace.observe(0, n_rows, start.elapsed().max(Duration::from_micros(1))));
        }
        context.forget(0, 0);
    }
    Ok(())
}

impl Cancels {
    /// Whether the service wants its workers to leave.
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}
