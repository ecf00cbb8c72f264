//! Where a run begins: at the longest prefix of its tokens that somebody holds, has saved, or is about to hold.

use super::super::prefix::{Holder, LOAD_MIN, Match, SHARED, Saved};
use super::super::run::Await;
use super::super::{adapters, media};
use super::*;

/// Leading tokens that another slot must hold, or be about to hold, beyond what this one does for sharing them to be worth
/// it. Fewer are soon computed; of more, eight requests that come when a prefix is nearly there would compute its rest
/// eight times. Where each sequence has its own cells, llama.cpp copies all of them, used or not (llama-kv-cache.cpp,
/// `seq_cp`): that many more tokens as could be computed meanwhile, as measured at the start.
const SHARE_MIN: usize = 16;
/// Part of a saved state that must be of use.
const LOAD_PART: usize = 8;
/// Tokens that only a sequence has, for its state to be saved when it gives them up.
const SAVE_MIN: usize = 64;
/// How far before a prompt's end its checkpoint is: templates end with what the next turn may write otherwise.
const TAIL: usize = 8;

impl<M: Model> Worker<M> {
    /// Lets the tree know what running slots computed since.
    pub(super) fn note_held(&mut self) {
        for (index, slot) in self.slots.iter().enumerate() {
            self.prefixes.follow(index, slot.partition, &slot.kept);
        }
    }

    /// Leading tokens that another slot must hold beyond `own` for this run to take them from it.
    fn share_min(&self, run: &Run<M::Sampler>) -> usize {
        match run.family {
            0 => SHARE_MIN.max(self.pace.rows_of_share()),
            _ => 1,
        }
    }

    /// The most leading tokens that a run can do without computing; its last one is computed again, for its logits, and
    /// chunks of media as a whole.
    fn whole(run: &Run<M::Sampler>, n: usize) -> usize {
        let most = if run.wants_prompt_logits() { 0 } else { run.tokens.len() - 1 };
        media::whole(&run.media, n.min(most))
    }

    /// Who has leading tokens of the run.
    fn sources(&mut self, run: &Run<M::Sampler>) -> Vec<Match> {
        self.note_held();
        let is_sibling = |family: u64| run.family != 0 && family == run.family;
        let mut found = self.prefixes.matches(run.partition, &run.tokens);
        found.retain(|found| match found.holder {
            Holder::Seq(seq) => {
                let of = self.slots[seq as usize].run.as_ref();
                run.cache_prompt || of.is_some_and(|one| is_sibling(one.family))
            }
            Holder::Saved(id) => self.prefixes.saved(id).is_some_and(|saved| match saved.family {
                0 => run.cache_prompt,
                family => is_sibling(family),
            }),
        });
        if run.cache_prompt {
            self.add_named(run, &mut found);
        }
        found
    }

    /// Adds who has the named prefix that the run begins with: its state, and sequences of any tenant that began with it.
    fn add_named(&self, run: &Run<M::Sampler>, found: &mut Vec<Match>) {
        let shared = adapters::partition(SHARED, &run.adapters);
        let named = self.prefixes.matches(shared, &run.tokens);
        let Some(n) = named.first().map(|named| named.n) else { return };
        for (index, slot) in self.slots.iter().enumerate() {
            let is_new = slot.partition != run.partition && slot.shared == shared;
            if is_new && slot.kept.len() >= n && slot.kept[..n] == run.tokens[..n] {
                found.push(Match { holder: Holder::Seq(index as u32), n });
            }
        }
        found.extend(named);
        found.sort_by_key(|found| std::cmp::Reverse(found.n));
    }

    /// How many of the run's tokens it could go on from, of those that it has in common with a holder.
    fn usable(&mut self, run: &Run<M::Sampler>, found: Match) -> usize {
        let n = Self::whole(run, found.n);
        let goes_back = self.context.goes_back();
        match found.holder {
            Holder::Seq(seq) => {
                let slot = &self.slots[seq as usize];
                let pos = slot.position(n);
                let is_there = slot.kept.len() == n || self.context.can_cut();
                if n > 0 && is_there && self.context.can_resume(seq, pos) { n } else { 0 }
            }
            Holder::Saved(id) => {
                // What is loaded beyond `n` takes time and, for a moment, cells.
                let n_saved = self.prefixes.saved(id).map_or(usize::MAX, |saved| saved.tokens.len());
                if n_saved == n || (goes_back && n_saved / LOAD_PART <= n) { n } else { 0 }
            }
        }
    }

    /// The run that computes a prefix of this one just now, and how far it is worth waiting for; `None`: nothing to wait
    /// for. Only running ones are waited for, so what is waited for gets on, or its slot is free.
    pub(super) fn awaited(&mut self, run: &Run<M::Sampler>) -> Option<Await> {
        let is_sibling = |one: &Run<M::Sampler>| run.family != 0 && one.family == run.family;
        let is_computed = |(_, slot): &(usize, &Slot<M::Sampler>)| {
            slot.run.as_ref().is_some_and(|one| {
                one.partition == run.partition
                    && slot.kept.len() < one.n_prompt as usize
                    && (is_sibling(one) || (run.cache_prompt && one.cache_prompt))
            })
        };
        if run.wants_prompt_logits() || !self.slots.iter().enumerate().any(|found| is_computed(&found)) {
            return None;
        }
        let sources = self.sources(run);
        let have = sources.into_iter().map(|found| self.usable(run, found)).max().unwrap_or(0);
        let leaders = self.slots.iter().enumerate().filter(is_computed).filter_map(|(slot, it)| {
            let one = it.run.as_ref()?;
            let n = one.tokens[..one.n_prompt as usize].iter().zip(&run.tokens).take_while(|(a, b)| a == b).count();
            let until = Self::whole(run, media::whole(&one.media, n));
            (until > it.kept.len()).then_some(Await { slot, serial: one.serial, until })
        });
        let best = leaders.max_by_key(|awaited| (awaited.until, std::cmp::Reverse(awaited.slot)))?;
        (best.until >= have + self.share_min(run)).then_some(best)
    }

    /// Whether the run still waits for another's prefix.
    pub(super) fn is_awaiting(&self, run: &Run<M::Sampler>) -> bool {
        run.awaits.is_some_and(|awaited| {
            let slot = &self.slots[awaited.slot];
            slot.kept.len() < awaited.until && slot.run.as_ref().is_some_and(|one| one.serial == awaited.serial)
        })
    }

    /// A waiting run waits for the one in a slot from now on, which stops at that point where it can't be gone back to.
    pub(super) fn await_for(&mut self, at: usize, awaited: Await) {
        let run = &mut self.waiting[at];
        if run.awaits.is_none() {
            self.n_awaited += 1;
        }
        run.awaits = Some(awaited);
        if !self.context.goes_back()
            && let Some(leader) = &mut self.slots[awaited.slot].run
        {
            leader.marks.push(awaited.until);
        }
    }

    /// Keeps, shares or loads as much of the run's tokens as it can; returns how many slot `index` then holds.
    pub(super) fn begin_at(&mut self, index: usize, run: &mut Run<M::Sampler>) -> usize {
        let (mut own, mut donor, mut saved) = (0, (0, 0), (0, 0));
        let sources = self.sources(run);
        let known = sources.first().map_or(0, |found| Self::whole(run, found.n));
        for found in sources {
            let n = self.usable(run, found);
            match found.holder {
                Holder::Seq(seq) if seq as usize == index => own = if run.cache_prompt { n } else { 0 },
                Holder::Seq(seq) if n > donor.0 => donor = (n, seq),
                Holder::Saved(id) if n > saved.0 => saved = (n, id),
                _ => {}
            }
        }
        let least = self.share_min(run);
        let load_min = if run.family != 0 || !self.context.goes_back() { 1 } else { LOAD_MIN };
        let n = if saved.0 >= own.max(donor.0) + load_min && self.load(index, run, saved.1, saved.0) {
            saved.0
        } else if donor.0 >= own + least && self.share(donor.1 as usize, index, donor.0) {
            donor.0
        } else {
            self.give_up(index, own);
            self.cut(index, own)
        };
        self.mark(run, n, known);
        n
    }

    /// Where the run's state is to be saved on its way, on memories that can't go back: where its choices part, where
    /// others' prompts parted from it, and near its prompt's end, for the next turn.
    fn mark(&self, run: &mut Run<M::Sampler>, held: usize, known: usize) {
        run.marks.clear();
        if self.context.goes_back() || run.wants_prompt_logits() || run.n_generated() > 0 {
            return;
        }
        let n_prompt = run.n_prompt as usize;
        if run.family != 0 {
            run.marks.push(n_prompt - 1);
        }
        if run.cache_prompt {
            if known >= held + SAVE_MIN {
                run.marks.push(known);
            }
            if n_prompt >= held + SAVE_MIN {
                run.marks.push(n_prompt - TAIL);
            }
        }
        let media = &run.media;
        run.marks.retain(|at| *at > held && media::whole(media, *at) == *at);
    }

    /// No step goes beyond a point where a state is to be saved.
    pub(super) fn stop_at_marks(&self, wants: &mut [Want]) {
        for want in wants {
            let slot = &self.slots[want.slot];
            let held = slot.kept.len();
            let marks = slot.run.iter().flat_map(|run| &run.marks).filter(|at| **at > held);
            if let Some(at) = marks.min() {
                want.gap = want.gap.min((at - held) as u32);
            }
        }
    }

    /// Saves the states of those that just came to such a point.
    pub(super) fn save_marked(&mut self, shares: &[Share]) {
        for share in shares {
            let slot = &mut self.slots[share.slot];
            let (held, partition) = (slot.kept.len(), slot.partition);
            let Some(run) = slot.run.as_mut().filter(|run| run.marks.contains(&held)) else { continue };
            run.marks.retain(|at| *at > held);
            let family = if run.cache_prompt { 0 } else { run.family };
            let is_saved = self.prefixes.matches(partition, &slot.kept).into_iter().any(|found| {
                let Holder::Saved(id) = found.holder else { return false };
                self.prefixes.saved(id).is_some_and(|saved| saved.tokens.len() == held && saved.family == family)
            });
            if !is_saved {
                self.save(share.slot, family);
            }
        }
    }

    /// Lets go what was saved for the choices of requests that have ended.
    pub(super) fn drop_families(&mut self) {
        let (slots, waiting) = (&self.slots, &self.waiting);
        self.prefixes.drop_families(|family| {
            let running = slots.iter().filter_map(|slot| slot.run.as_ref());
            running.chain(waiting).any(|run| run.family == family)
        });
    }

    /// Saves what the slot holds; false where that can't be.
    fn save(&mut self, index: usize, family: u64) -> bool {
        let most = self.prefixes.n_bytes_max();
        if most == 0 || self.cancels.spare.is_on() {
            return false;
        }
        let start = Instant::now();
        let Some(state) = self.context.save(index as u32, most) else { return false };
        let slot = &self.slots[index];
        self.save_cost.observe(slot.kept.len(), start.elapsed());
        let (partition, tokens, media) = (slot.partition, slot.kept.clone(), Arc::clone(&slot.media));
        let state = Arc::new(state);
        let supersedes = self.context.goes_back();
        self.prefixes.save(Saved { partition, tokens, media, state, family, is_pinned: false }, supersedes)
    }

    /// An idle slot will lose all but its first `keep` tokens: what only it has is saved, if it is worth it.
    pub(super) fn give_up(&mut self, index: usize, keep: usize) {
        let slot = &self.slots[index];
        let held = slot.kept.len();
        if slot.run.is_some() || held < keep + SAVE_MIN || self.prefixes.n_bytes_max() == 0 {
            return;
        }
        self.prefixes.follow(index, slot.partition, &slot.kept);
        let n_lost = self.prefixes.n_unique(index).min(held - keep);
        if n_lost >= SAVE_MIN.max(held / 16) && self.save_cost.pays(held, self.pace.time_of(n_lost)) {
            self.save(index, 0);
        }
    }

    /// Slot `index` holds the first `n` tokens of a saved state and nothing else; false (and empty) where that can't be.
    fn load(&mut self, index: usize, run: &Run<M::Sampler>, id: u32, n: usize) -> bool {
        // What gives up its place for it is saved, and would take that of the state itself.
        self.prefixes.set_loading(Some(id));
        let is_loaded = self.load_held(index, run, id, n);
        self.prefixes.set_loading(None);
        is_loaded
    }

    fn load_held(&mut self, index: usize, run: &Run<M::Sampler>, id: u32, n: usize) -> bool {
        self.give_up(index, 0);
        self.cut(index, 0);
        let Some(saved) = self.prefixes.saved(id) else { return false };
        let n_saved = saved.tokens.len();
        if self.context.shares_cells() {
            self.free_idle(n_saved);
            if self.cells.n_free() < n_saved {
                return false;
            }
        }
        let Some(saved) = self.prefixes.saved(id) else { return false };
        if !self.context.load(index as u32, &saved.state) {
            // It fitted this context when it was saved, so it will never load.
            self.prefixes.forget(id);
            return false;
        }
        let slot = &mut self.slots[index];
        (slot.kept, slot.media, slot.partition) = (saved.tokens.clone(), Arc::clone(&saved.media), run.partition);
        if self.context.shares_cells() {
            self.cells.take(n_saved, &mut slot.cells);
        }
        self.prefixes.touch(id);
        self.lock_stats().prompt_tokens_loaded += n as u64;
        n == n_saved || self.cut(index, n) == n
    }

    /// Slot `to` holds the first `n` tokens of slot `from` and nothing else; false (and empty) where that can't be.
    fn share(&mut self, from: usize, to: usize, n: usize) -> bool {
        self.give_up(to, 0);
        self.cut(to, 0);
        // It may have been emptied to make room for a state that then didn't load.
        let pos = self.slots[from].position(n);
        if self.slots[from].kept.len() < n || !self.context.share(from as u32, to as u32, pos) {
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
        self.held_only(index, stays);
        stays
    }

    /// Takes note that the sequence holds its first `n` tokens only.
    pub(super) fn held_only(&mut self, index: usize, n: usize) {
        self.slots[index].kept.truncate(n);
        self.cells.release(&mut self.slots[index].cells, n);
        self.prefixes.cut(index, n);
    }
}
