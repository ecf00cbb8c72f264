//! Who gets a slot, from where it starts, and who gives up cells when they run out.

use super::super::fair::{Holder, PATIENCE};
use super::super::run::Await;
use super::super::{adapters, media, prefix, slot};
use super::*;
use crate::chat::Class;
use std::time::Instant;

impl<M: Model> Worker<M> {
    /// Gives waiting runs slots, the fairest first, as long as their tokens fit into free cells.
    pub(super) fn fill_slots(&mut self) {
        while let Some(at) = self.next_startable() {
            if let Some(awaited) = self.awaited_by(at) {
                self.await_for(at, awaited);
                continue;
            }
            let run = &self.waiting[at];
            let beside = !self.context.shares_cells();
            match slot::choose(&self.slots, &run.tokens, run.partition, run.cache_prompt, beside) {
                Some(index) => {
                    if self.context.shares_cells() && !self.fits_beside(run) {
                        return;
                    }
                    if let Some(run) = self.waiting.remove(at) {
                        self.start(index, run);
                    }
                }
                None if self.free_slot_for(at) => {}
                None => return,
            }
        }
    }

    /// The run that the waiting one at `at` had better wait for.
    fn awaited_by(&mut self, at: usize) -> Option<Await> {
        let run = self.waiting.remove(at)?;
        let awaited = self.awaited(&run);
        self.waiting.insert(at, run);
        awaited
    }

    /// Of the waiting runs whose prefix isn't being computed for another right now, the one that is next.
    fn next_startable(&self) -> Option<usize> {
        let startable = self.waiting.iter().enumerate().filter(|(_, run)| !self.is_awaiting(run));
        let ranked = startable.map(|(at, run)| (self.fair.rank(run.class, run.owner, run.serial), at));
        ranked.min().map(|(_, at)| at)
    }

    /// Parks the run of somebody who holds more than its part, once the waiting run `at` had patience enough.
    fn free_slot_for(&mut self, at: usize) -> bool {
        let run = &self.waiting[at];
        if run.clock.accepted.elapsed() < self.pace.time_of(run.tokens.len()) / PATIENCE {
            return false;
        }
        let (class, owner) = (run.class, run.owner);
        let holder = |(slot, it): (usize, &slot::Slot<M::Sampler>)| {
            let run = it.run.as_ref()?;
            let (n_held, serial) = (it.kept.len(), run.serial);
            Some(Holder { slot, class: run.class, owner: run.owner, n_held, serial })
        };
        let holders: Vec<Holder> = self.slots.iter().enumerate().filter_map(holder).collect();
        let Some(holder) = self.fair.overdrawn(class, owner, &holders) else { return false };
        self.fair.displace(class, owner, holder.n_held);
        self.park(holder.slot);
        true
    }

    /// Whether the run's tokens fit into the cells that running ones leave, with room for each to grow: or it would be
    /// parked again at once.
    fn fits_beside(&self, run: &Run<M::Sampler>) -> bool {
        let running = || self.slots.iter().filter(|slot| slot.run.is_some());
        let n_running = running().count();
        if n_running == 0 {
            return true;
        }
        let n_held = self.cells.count(running().map(|slot| slot.cells.as_slice()));
        let n_wanted: usize =
            running().filter_map(|slot| Some(slot.run.as_ref()?.tokens.len() - slot.kept.len())).sum();
        let n_shared = running().map(|slot| slot.common_prefix(&run.tokens, run.partition)).max().unwrap_or(0);
        let n_new = run.tokens.len() - if run.cache_prompt || run.family != 0 { n_shared } else { 0 };
        n_held + n_wanted + n_new + 32 * (n_running + 1) <= self.context.n_cells() as usize
    }

    fn start(&mut self, index: usize, mut run: Box<Run<M::Sampler>>) {
        run.awaits = None;
        let keep = self.begin_at(index, &mut run);
        self.fair.start(run.class, run.owner);
        let is_first = run.clock.started.is_none();
        if is_first {
            // What is in the cache costs nothing.
            run.news(keep);
            self.is_urgent = true;
            run.clock.started = Some(Instant::now());
            if let Some(drafter) = &mut run.drafter {
                // As with the cells, whoever shares nothing learns nothing.
                let lately = run.cache_prompt.then(|| self.tenants.open(run.partition));
                // Chunks of media are no tokens that a draft's side could take in.
                drafter.begin(lately, self.speculation.is_some() && run.media.is_empty());
            }
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
        // First come, first served, whoever had the slot before.
        slot.served_at = self.step;
        slot.partition = run.partition;
        slot.shared = adapters::partition(prefix::SHARED, &run.adapters);
        slot.media = run.media.iter().map(media::Span::without_rows).collect();
        slot.run = Some(run);
    }

    /// Frees cells until every running stream, or at least the oldest run, can get its next token.
    pub(super) fn make_room(&mut self) {
        if !self.context.shares_cells() {
            return;
        }
        loop {
            let wants: Vec<_> = self.slots.iter().enumerate().filter_map(|(index, slot)| slot.want(index)).collect();
            if wants.is_empty() {
                return;
            }
            let needed: u32 = wants.iter().filter(|want| want.is_decode).map(|want| want.gap).sum();
            if self.cells.n_free() >= needed.max(1) as usize {
                return;
            }
            if !self.empty_idle() && !self.park_youngest() {
                return; // One run alone: it fits, since no request may be longer than the cells.
            }
        }
    }

    /// Of the idle slots whose end would free cells, the one that is worth least: how much would be computed again, by the
    /// cells and by how long ago it was served. What others hold too is not lost with it.
    fn least_worth_idle(&mut self) -> Option<usize> {
        self.note_held();
        let idle = self.slots.iter().enumerate().filter(|(_, slot)| slot.run.is_none() && !slot.kept.is_empty());
        let ranked = idle.filter_map(|(index, slot)| {
            let n_freed = self.cells.n_only(&slot.cells);
            let age = self.step.saturating_sub(slot.served_at) + 1;
            let worth = prefix::worth(self.prefixes.n_unique(index), n_freed, age);
            (n_freed > 0).then_some((worth, slot.served_at, index))
        });
        ranked.min_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2)))).map(|(_, _, index)| index)
    }

    /// Empties the idle slot that is worth least; false when none would free a cell.
    fn empty_idle(&mut self) -> bool {
        let Some(index) = self.least_worth_idle() else { return false };
        self.give_up(index, 0);
        self.cut(index, 0);
        true
    }

    /// Cells that would be free without the idle slots.
    pub(super) fn n_cells_idle(&self) -> usize {
        let running = self.slots.iter().filter(|slot| slot.run.is_some());
        self.cells.n_used() - self.cells.count(running.map(|slot| slot.cells.as_slice()))
    }

    /// Takes the slot from the youngest run (batch class first); false when only one runs.
    pub(super) fn park_youngest(&mut self) -> bool {
        let running = self.slots.iter().enumerate().filter_map(|(index, slot)| Some((index, slot.run.as_ref()?)));
        let running: Vec<_> = running.map(|(index, run)| ((run.class == Class::Batch, run.serial), index)).collect();
        if running.len() < 2 {
            return false;
        }
        let Some((_, index)) = running.into_iter().max() else { return false };
        self.park(index);
        true
    }

    /// Takes the slot from its run, which waits again; what it held is saved, or will be computed again.
    fn park(&mut self, index: usize) {
        let run = self.slots[index].run.take();
        if run.as_ref().is_some_and(|run| run.cache_prompt) {
            self.give_up(index, 0);
        }
        self.cut(index, 0);
        if let Some(run) = run {
            self.lock_stats().n_parked += 1;
            self.fair.park(run.class, run.owner);
            self.wait(run);
        }
    }

    /// Empties idle slots, those worth least first, until `n_rows` cells are free.
    pub(super) fn free_idle(&mut self, n_rows: usize) {
        while self.context.shares_cells() && self.cells.n_free() < n_rows && self.empty_idle() {}
    }
}
