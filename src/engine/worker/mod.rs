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

mod admit;
mod advance;
mod pads;
mod save_cost;
mod shared;
mod sight;
mod speculate;
mod teller;
mod text_drafts;
mod turns;
mod warm;

pub(super) use speculate::warm_up_drafts;
pub(super) use warm::warm_up;

use super::backend::{Context, DecodeError, EXTRA_OUTPUTS, Model, Row, Token};
use super::cells::Cells;
use super::constraint::masks::Masks;
use super::cost::StepCost;
use super::drafter::{Draft, Proposal, Source, Tenants};
use super::error::Failure;
use super::event::SlotStats;
use super::fair::Fair;
use super::output::Item;
use super::pace::{Pace, Prefill};
use super::prefix::{Prefixes, Saved};
use super::run::Run;
use super::scheduler::{self, Share, Want};
use super::service::{Cancels, WorkerStats};
use super::slot::Slot;
use super::speculation::Speculation;
use super::trust::Trust;
use super::turns::Turns;
use crossbeam_channel::{Receiver, Sender, TryRecvError, select};
use save_cost::SaveCost;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use text_drafts::Beside;

/// How long a token may wait for the next ones.
const COALESCE: Duration = Duration::from_millis(4);

/// Makes a new context when the old one broke.
pub(super) type Reopen<C> = Box<dyn FnMut() -> Result<C, String> + Send>;

pub(super) struct Worker<M: Model> {
    model: Arc<M>,
    context: M::Context,
    reopen: Reopen<M::Context>,
    slots: Vec<Slot<M::Sampler>>,
    /// Runs without a slot, first come first; `fair` says who is next.
    waiting: VecDeque<Box<Run<M::Sampler>>>,
    fair: Fair,
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
    /// Of steps of running streams.
    cost: StepCost,
    /// Most tokens of one draft.
    n_draft_max: u32,
    /// `None`: nothing drafts beside the model.
    speculation: Option<Speculation>,
    /// What is known of their answers.
    tenants: Tenants,
    step: u64,
    turns: Turns,
    /// Requests that ended since the worker last waited for new ones.
    n_ended: u32,
    rows: Vec<Row>,
    /// Draft tokens behind a share's rows, in the order of the shares.
    drafts: Vec<Draft>,
    /// Slots that this step computes rows of for nothing.
    pads: Vec<usize>,
    /// Free and used cells, where all sequences draw from one pool.
    cells: Cells,
    masks: Masks,
    /// The adapters that are applied now.
    adapters: Vec<(u32, f32)>,
    /// Which prefixes are held, and saved states.
    prefixes: Prefixes,
    save_cost: SaveCost,
    /// What a mask of a constraint took lately; zero: none was computed yet.
    mask_time: Duration,
    /// Times a run waited for another's prefix.
    n_awaited: u64,
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
    pub cost: StepCost,
    pub n_draft_max: u32,
    pub speculation: Option<Speculation>,
    pub masks: Masks,
    pub stats: Arc<Mutex<WorkerStats>>,
    /// Most bytes of saved states.
    pub n_bytes_saved: usize,
    /// States of the prefixes that the operator named.
    pub named: Vec<Saved>,
}

/// The worker can't go on: its context broke and no new one could be made.
pub(super) struct Broken(pub String);

impl<M: Model> Worker<M> {
    pub(super) fn new(parts: Parts<M>) -> Self {
        let n_cells = if parts.context.shares_cells() { parts.context.n_cells() } else { 0 };
        Self {
            cells: Cells::new(n_cells),
            drafts: Vec::new(),
            pads: Vec::new(),
            save_cost: SaveCost::default(),
            mask_time: Duration::ZERO,
            prefixes: Prefixes::with(parts.n_bytes_saved, parts.named),
            n_awaited: 0,
            masks: parts.masks,
            adapters: Vec::new(),
            model: parts.model,
            context: parts.context,
            reopen: parts.reopen,
            slots: (0..parts.n_slots).map(|_| Slot::new()).collect(),
            waiting: VecDeque::new(),
            fair: Fair::default(),
            incoming: parts.incoming,
            cancels: parts.cancels,
            swept: 0,
            items: parts.items,
            out: Vec::new(),
            is_urgent: false,
            flushed_at: Instant::now(),
            pace: parts.pace,
            cost: parts.cost,
            n_draft_max: parts.n_draft_max,
            speculation: parts.speculation,
            tenants: Tenants::default(),
            step: 0,
            turns: Turns::default(),
            n_ended: 0,
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
            self.drop_families();
            if self.cancels.spare.is_on() {
                self.prefixes.drop_saved();
            }
            self.fill_slots();
            self.make_room();
            let shares = self.plan();
            // Before the decode: should it kill the process, the front must know whom it was working on; and tokens must
            // not wait for somebody's prompt.
            let has_media = self.slots.iter().any(|slot| slot.next_span().is_some());
            if self.is_urgent || has_media || shares.iter().any(|share| share.n_rows > 1) {
                self.flush();
            }
            if self.wait_for_more(&shares) {
                continue;
            }
            let computed = if shares.is_empty() { Ok(()) } else { self.compute(&shares) };
            if let Err(broken) = computed.and_then(|()| self.compute_media()) {
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
            if self.incoming.is_empty() {
                self.drop_families();
            }
            self.publish();
            self.flush();
            self.cancels.rest();
            select! {
                recv(self.incoming) -> run => match run {
                    Ok(run) => self.enqueue(run),
                    Err(_) => return false,
                },
                recv(self.cancels.spare.woken) -> _ => {}
            }
        }
        loop {
            match self.incoming.try_recv() {
                Ok(run) => self.enqueue(run),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        self.cancels.step();
        !self.cancels.is_stopping()
    }

    /// Takes a run that just came in.
    fn enqueue(&mut self, run: Box<Run<M::Sampler>>) {
        // Cancelled on its way here: the sweep that counted it may be over, and no other would find it.
        if let Some(failure) = run.refusal() {
            self.is_urgent = true;
            self.out.push(Item::Failed { id: run.id, failure });
            return;
        }
        self.fair.arrive(run.class, run.owner);
        self.wait(run);
    }

    /// Older before younger.
    fn wait(&mut self, run: Box<Run<M::Sampler>>) {
        let at = self.waiting.partition_point(|other| other.serial < run.serial);
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
        let (out, is_urgent, fair) = (&mut self.out, &mut self.is_urgent, &mut self.fair);
        self.waiting.retain(|run| {
            // Asked once: a cancel between two looks would drop the run without its ending.
            let Some(failure) = run.refusal() else { return true };
            *is_urgent = true;
            fair.leave_queue(run.class, run.owner);
            out.push(Item::Failed { id: run.id, failure });
            false
        });
    }

    fn plan(&mut self) -> Vec<Share> {
        let mut wants: Vec<_> = self.slots.iter().enumerate().filter_map(|(index, slot)| slot.want(index)).collect();
        for want in &mut wants {
            if let Some(run) = self.slots[want.slot].run.as_ref().filter(|_| !want.is_decode) {
                let awaited = self.waiting.iter().filter(|one| {
                    one.awaits.is_some_and(|awaited| (awaited.slot, awaited.serial) == (want.slot, run.serial))
                });
                // Whoever waits for its prefix lends it its own turn.
                let turns = awaited.map(|one| self.fair.turn(one.class, one.owner));
                let own = self.fair.turn(run.class, run.owner);
                want.turn = turns.fold(own, std::cmp::min);
            }
        }
        self.keep_one_adapter_set(&mut wants);
        self.stop_at_marks(&mut wants);
        let n_echoes = wants.iter().filter(|want| want.cap < u32::MAX).count().max(1) as u32;
        wants.iter_mut().filter(|want| want.cap < u32::MAX).for_each(|want| want.cap /= n_echoes);
        let free = if !self.context.shares_cells() {
            usize::MAX
        } else if self.cells.n_free() >= self.context.n_batch() as usize {
            self.cells.n_free()
        } else {
            // Cells of idle slots count as free for prompts: they are emptied when needed (see `compute`).
            self.cells.n_free() + self.n_cells_idle()
        };
        let depth = wants.iter().filter(|want| !want.is_decode).map(|want| want.depth).max().unwrap_or(0);
        let mut budget = self.pace.budget(u32::try_from(free).unwrap_or(u32::MAX), depth);
        self.take_turns(&mut wants, &mut budget);
        scheduler::plan(&wants, budget)
    }

    /// llama.cpp applies one set of adapters to a whole decode: the sets take turns, the least recently served first.
    fn keep_one_adapter_set(&self, wants: &mut Vec<Want>) {
        let adapters = |want: &Want| self.slots[want.slot].run.as_ref().map(|run| run.adapters.as_slice());
        let Some(first) = wants.iter().min_by_key(|want| (want.served_at, want.slot)) else { return };
        let set = adapters(first);
        wants.retain(|want| adapters(want) == set);
    }

    /// One forward pass over `shares`, and what follows from it.
    fn compute(&mut self, shares: &[Share]) -> Result<(), Broken> {
        self.free_idle(shares.iter().map(|share| share.n_rows as usize).sum());
        self.step += 1;
        let (n_decode, n_prefill) = self.lay_out(shares);
        let is_one_pass = self.pad(shares, n_prefill);
        if let Err(reason) = self.apply_adapters(shares) {
            self.pads.clear();
            self.fail_shares(shares, &Failure::Internal(reason));
            return Ok(());
        }
        let runs = shares.iter().filter_map(|share| self.slots[share.slot].run.as_ref());
        self.cancels.begin_batch(runs.map(|run| &run.live), self.swept);
        self.begin_masks(shares);
        let prefill = Prefill { n_rows: n_prefill, depth: self.prefill_depth(shares) };
        let start = Instant::now();
        let result = self.context.decode(&self.rows);
        let time = start.elapsed();
        self.collect_masks();
        let waited = start.elapsed() - time;
        match result {
            Ok(()) => {
                self.pace.observe(n_decode, prefill, time);
                self.end_turn(shares, n_decode, n_prefill);
                self.count(n_decode, n_prefill);
                self.follow(shares);
                let start = Instant::now();
                let choosing = self.advance(shares);
                if n_prefill == 0 && is_one_pass {
                    // With what follows a decode: many steps of few rows pay it more often.
                    self.cost.observe(self.rows.len() as u32, time + start.elapsed());
                } else {
                    self.cost.interrupt();
                }
                tracing::trace!(
                    n_decode,
                    n_prefill,
                    n_pads = self.rows.len() as u32 - n_decode - n_prefill,
                    us = time.as_micros() as u64,
                    masks_us = waited.as_micros() as u64,
                    choose_us = choosing.as_micros() as u64,
                    tell_us = (start.elapsed() - choosing).as_micros() as u64,
                    "step"
                );
                self.drop_pads();
                self.save_marked(shares);
                Ok(())
            }
            Err(error) => self.not_computed(shares, error),
        }
    }

    /// Tokens before a row of `shares`, on average.
    fn depth(&self, shares: &[Share]) -> f64 {
        let reach = |share: &Share| self.slots[share.slot].kept.len() as f64 * f64::from(share.n_rows);
        let n_rows: u32 = shares.iter().map(|share| share.n_rows).sum();
        shares.iter().map(reach).sum::<f64>() / f64::from(n_rows.max(1))
    }

    /// Tokens before the middle row of the prompts in `shares`; 0 without any.
    fn prefill_depth(&self, shares: &[Share]) -> u32 {
        let (mut n_rows, mut sum) = (0, 0);
        for share in shares {
            let slot = &self.slots[share.slot];
            if slot.run.as_ref().is_some_and(|run| run.n_generated() == 0) {
                n_rows += u64::from(share.n_rows);
                sum += u64::from(share.n_rows) * (slot.kept.len() as u64 + u64::from(share.n_rows) / 2);
            }
        }
        sum.checked_div(n_rows).map_or(0, |depth| depth as u32)
    }

    /// Nothing of `shares` was computed.
    fn not_computed(&mut self, shares: &[Share], error: DecodeError) -> Result<(), Broken> {
        self.drop_pads();
        match error {
            DecodeError::Aborted => {
                for share in shares {
                    self.resync(share.slot);
                }
                if !self.context.can_cut() && self.context.goes_back_by() > 0 {
                    // It may have spoilt what others were taken back to: they keep all they hold, or nothing.
                    (0..self.slots.len()).for_each(|index| _ = self.cut(index, self.slots[index].kept.len()));
                }
                Ok(())
            }
            DecodeError::NoKvSlot => {
                // The cells are there but not where this memory needs them: make real room.
                self.free_idle(usize::MAX);
                if !self.park_youngest() {
                    let failure = Failure::Internal("the KV cache has no room for a single request".into());
                    self.fail_shares(shares, &failure);
                }
                Ok(())
            }
            DecodeError::Broken(reason) => {
                tracing::error!(%reason, "a decode failed; the context is made anew");
                self.fail_shares(shares, &Failure::Internal("the model's computation failed".into()));
                self.renew_context()
            }
        }
    }

    fn apply_adapters(&mut self, shares: &[Share]) -> Result<(), String> {
        let Some(run) = shares.first().and_then(|share| self.slots[share.slot].run.as_ref()) else { return Ok(()) };
        if run.adapters != self.adapters {
            self.context.set_adapters(&run.adapters)?;
            self.adapters.clone_from(&run.adapters);
        }
        Ok(())
    }

    /// Hands out the gates of the runs that will choose a token after this decode.
    fn begin_masks(&mut self, shares: &[Share]) {
        let mut gates = Vec::new();
        for (share, draft) in shares.iter().zip(&self.drafts) {
            let slot = &mut self.slots[share.slot];
            let reaches = slot.kept.len() + share.n_rows as usize;
            if let Some(run) = slot.run.as_mut().filter(|run| reaches == run.tokens.len())
                && let Some(mut gate) = run.gate.take_if(|gate| gate.needs_mask())
            {
                gate.expect(&draft.tokens);
                gates.push((share.slot, gate));
            }
        }
        self.masks.begin(gates);
    }

    fn collect_masks(&mut self) {
        for (index, gate, result) in self.masks.collect() {
            if let Some(time) = gate.per_mask() {
                self.mask_time = if self.mask_time.is_zero() { time } else { (self.mask_time * 7 + time) / 8 };
            }
            if let Some(run) = &mut self.slots[index].run {
                run.gate = Some(gate);
            }
            if let Err(reason) = result {
                self.fail_constraint(index, &reason);
            }
        }
    }

    /// Fills `rows`; returns (rows of running streams, rows of prompts).
    fn lay_out(&mut self, shares: &[Share]) -> (u32, u32) {
        self.rows.clear();
        let (mut n_decode, mut n_prefill) = (0, 0);
        let n_planned: u32 = shares.iter().map(|share| share.n_rows).sum();
        self.cost.stand(n_planned as usize, self.depth(shares));
        let mut n_extra = self.context.n_batch().saturating_sub(n_planned).min(EXTRA_OUTPUTS);
        // An echo may take all extra outputs of the step, and drafts need a memory that can go back; one that can't be cut goes
        // back after a step of one sequence only.
        let mut runs = shares.iter().filter_map(|share| self.slots[share.slot].run.as_ref());
        if runs.any(|run| run.wants_prompt_logits()) || (!self.context.can_cut() && shares.len() > 1) {
            n_extra = 0;
        }
        n_extra = n_extra.min(self.context.goes_back_by());
        if self.context.shares_cells() {
            n_extra = n_extra.min((self.cells.n_free() as u32).saturating_sub(n_planned));
        }
        // A draft makes its sequence longer than the others, and where those have their own cells another pass of it.
        let is_apart = !self.context.shares_cells() && shares.len() > 1;
        let mut by_model = self.model_drafts(shares, (n_planned as usize, is_apart), n_extra as usize);
        by_model.resize(shares.len(), Vec::new());
        let n_drafted: usize = by_model.iter().map(Vec::len).sum();
        n_extra = n_extra.saturating_sub(n_drafted as u32);
        let beside = Beside { n_planned: n_planned as usize, n_drafted, is_apart, n_extra: n_extra as usize };
        self.drafts = self.text_drafts(shares, by_model, beside);
        for (share, draft) in shares.iter().zip(&self.drafts) {
            self.slots[share.slot].served_at = self.step;
            let slot = &self.slots[share.slot];
            let Some(run) = &slot.run else { continue };
            let from = slot.kept.len();
            let to = from + share.n_rows as usize;
            let all_are_outputs = run.wants_prompt_logits();
            for at in from..to {
                let output = at + 1 == run.tokens.len() || all_are_outputs;
                self.rows.push(Row { token: run.tokens[at], pos: slot.position(at), seq: share.slot as u32, output });
            }
            for (i, token) in draft.tokens.iter().enumerate() {
                self.rows.push(Row { token: *token, pos: slot.position(to + i), seq: share.slot as u32, output: true });
            }
            if run.is_decoded(share) {
                n_decode += share.n_rows + draft.tokens.len() as u32;
            } else {
                n_prefill += share.n_rows;
            }
        }
        (n_decode, n_prefill)
    }

    fn count(&self, n_decode: u32, n_prefill: u32) {
        let mut stats = self.lock_stats();
        stats.n_decode_calls += 1;
        stats.n_decode_rows += u64::from(n_decode + n_prefill);
        stats.n_pad_rows += (self.rows.len() as u64).saturating_sub(u64::from(n_decode + n_prefill));
        stats.prompt_tokens_computed += u64::from(n_prefill);
    }

    fn publish(&self) {
        let mut stats = self.lock_stats();
        stats.n_awaited = self.n_awaited;
        stats.saved_bytes = self.prefixes.n_bytes() as u64;
        stats.n_waiting_tokens = self.waiting.iter().map(|run| u64::from(run.n_prompt)).sum();
        stats.n_waiting = (self.waiting.len() + self.incoming.len()) as u32;
        stats.kv_cells_used = if self.context.shares_cells() {
            self.cells.n_used() as u32
        } else {
            self.slots.iter().map(|slot| slot.kept.len() as u32).sum()
        };
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

impl Cancels {
    /// Whether the service wants its workers to leave.
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}
