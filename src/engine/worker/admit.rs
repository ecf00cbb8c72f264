//! Who gets a slot, from where it starts, and who gives up cells when they run out.

use super::super::{media, slot};
use super::*;
use std::time::Instant;

/// Leading tokens that another slot must hold beyond what this one does for sharing them to be worth it: a copy of cells'
/// names where all share one pool, of the cells themselves where each sequence has its own.
const SHARE_MIN_POOLED: usize = 32;
const SHARE_MIN_SPLIT: usize = 256;

impl<M: Model> Worker<M> {
    /// Gives waiting runs free slots, in order, as long as their tokens fit into free cells.
    pub(super) fn fill_slots(&mut self) {
        while let Some(at) = self.first_startable() {
            let run = &self.waiting[at];
            let Some(index) = slot::choose(&self.slots, &run.tokens, run.partition, run.cache_prompt) else { return };
            if self.context.shares_cells() && !self.fits_beside(run) {
                return;
            }
            if let Some(run) = self.waiting.remove(at) {
                self.start(index, run);
            }
        }
    }

    /// The first waiting run whose prompt isn't being computed for a sibling right now.
    fn first_startable(&self) -> Option<usize> {
        let is_computed_for_sibling = |run: &Run<M::Sampler>| {
            let siblings =
                self.slots.iter().filter(|slot| slot.run.as_ref().is_some_and(|one| one.family == run.family));
            let mut n_kept = siblings.map(|slot| slot.kept.len());
            run.family != 0
                && run.echo.is_none()
                && n_kept.all(|n| n + 1 < run.n_prompt as usize)
                && self.slots.iter().any(|slot| slot.run.as_ref().is_some_and(|one| one.family == run.family))
        };
        self.waiting.iter().position(|run| !is_computed_for_sibling(run))
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
        let keep = self.begin_at(index, &run);
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
        slot.media = run.media.iter().map(media::Span::without_rows).collect();
        slot.run = Some(run);
    }

    /// Keeps or shares as much of the run's tokens as is held somewhere; returns how many slot `index` then holds.
    fn begin_at(&mut self, index: usize, run: &Run<M::Sampler>) -> usize {
        // The last token is computed again: its logits are wanted. Chunks are computed as a whole.
        let most = if run.wants_prompt_logits() { 0 } else { run.tokens.len() - 1 };
        let whole = |n: usize| media::whole(&run.media, n.min(most));
        let own = if run.cache_prompt { whole(self.slots[index].common_prefix(&run.tokens, run.partition)) } else { 0 };
        let donor = self
            .slots
            .iter()
            .enumerate()
            .filter(|(other, slot)| {
                let is_sibling = || slot.run.as_ref().is_some_and(|one| one.family == run.family && run.family != 0);
                *other != index && (run.cache_prompt || is_sibling())
            })
            .map(|(other, slot)| (whole(slot.common_prefix(&run.tokens, run.partition)), other))
            .max_by_key(|(n, other)| (*n, std::cmp::Reverse(*other)));
        let least = if self.context.shares_cells() { SHARE_MIN_POOLED } else { SHARE_MIN_SPLIT };
        let least = if run.family != 0 { 1 } else { least };
        if let Some((n, donor)) = donor.filter(|(n, _)| *n >= own + least)
            && self.share(donor, index, n)
        {
            return n;
        }
        match self.load_branch(index, run) {
            0 => self.cut(index, own),
            n => n,
        }
    }

    /// Slot `to` holds the first `n` tokens of slot `from` and nothing else; false (and empty) where that can't be.
    fn share(&mut self, from: usize, to: usize, n: usize) -> bool {
        // A window may have slid past what the next token looks at.
        let pos = self.slots[from].position(n);
        if !self.context.can_resume(from as u32, pos) {
            return false;
        }
        self.cut(to, 0);
        if !self.context.share(from as u32, to as u32, pos) {
            return false;
        }
        self.slots[to].kept = self.slots[from].kept[..n].to_vec();
        if self.context.shares_cells() {
            self.slots[to].cells = self.cells.share(&self.slots[from].cells, n);
        }
        true
    }

    /// Forgets what slot `index` holds from position `keep` on; returns how much really stays.
    pub(super) fn cut(&mut self, index: usize, keep: usize) -> usize {
        let held = self.slots[index].kept.len();
        let (seq, from) = (index as u32, self.slots[index].position(keep));
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
        self.cells.release(&mut self.slots[index].cells, stays);
        stays
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
            if let Some(index) = self.least_recent_idle() {
                self.cut(index, 0);
            } else if !self.park_youngest() {
                return; // One run alone: it fits, since no request may be longer than the cells.
            }
        }
    }

    fn least_recent_idle(&self) -> Option<usize> {
        let idle = self.slots.iter().enumerate().filter(|(_, slot)| slot.run.is_none() && !slot.kept.is_empty());
        idle.min_by_key(|(_, slot)| slot.served_at).map(|(index, _)| index)
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
        self.cut(index, 0);
        if let Some(run) = self.slots[index].run.take() {
            self.lock_stats().n_parked += 1;
            self.enqueue(run);
        }
        true
    }

    /// Empties idle slots, least recent first, until `n_rows` cells are free.
    pub(super) fn free_idle(&mut self, n_rows: usize) {
        while self.context.shares_cells() && self.cells.n_free() < n_rows {
            let Some(index) = self.least_recent_idle() else { return };
            self.cut(index, 0);
        }
    }
}
