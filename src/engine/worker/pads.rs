//! Rows that nobody wants, added because a step with them takes less time than one without.
//!
//! # Design
//! ggml's kernels for repacked weights take rows in groups of four and of sixteen, and read all weights once more for each
//! row of a part of a group: fifteen rows of the 0.5B model take 44 ms, sixteen take 30. Which numbers are slow is measured,
//! not known, so nothing is added where rows cost what they weigh (a GPU, a tiny model).
//!
//! Where each sequence has cells of its own, llama.cpp computes together only sequences whose ids follow one another
//! (llama-batch.cpp, `split_equal`): slots 0, 1 and 3 would be two passes over the weights. A row for slot 2 makes them one.
//!
//! A row that is added follows what its sequence holds, and is forgotten before anybody could go on from it.

use super::*;

/// Groups that kernels take decode rows in.
pub(super) const GROUPS: [usize; 2] = [4, 16];
/// Fewer streams are left alone: nothing is won, and a request that runs by itself is computed the same way each time. (Rows
/// of another group are rounded otherwise, which in a tiny model may change a token.) So are prompts.
const STREAMS_MIN: usize = 3;

/// Slots that follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    first: usize,
    last: usize,
}

impl Stretch {
    fn len(self) -> usize {
        self.last - self.first + 1
    }
}

/// Joins stretches over the gaps between them where one pass over all takes less time than one over each; `cost` of a
/// pass by its number of rows, 0 where it is not known.
fn join(stretches: &[Stretch], cost: &[f64], can_fill: impl Fn(usize) -> bool) -> Vec<Stretch> {
    // The best way to compute the first n of them: its time, and where its last pass begins.
    let mut best = vec![(0.0, 0)];
    for (n, last) in stretches.iter().enumerate() {
        let mut found = (f64::INFINITY, n);
        for from in (0..=n).rev() {
            let joined = Stretch { first: stretches[from].first, last: last.last };
            let gap = stretches.get(from + 1).filter(|_| from < n).map(|next| stretches[from].last + 1..next.first);
            if gap.is_some_and(|mut gap| !gap.all(&can_fill)) {
                break;
            }
            let time = best[from].0 + cost.get(joined.len()).copied().unwrap_or(0.0);
            let is_known = cost.get(joined.len()).is_some_and(|time| *time > 0.0);
            if time < found.0 && (is_known || from == n) {
                found = (time, from);
            }
        }
        best.push(found);
    }
    let (mut joined, mut n) = (Vec::new(), stretches.len());
    while n > 0 {
        let from = best[n].1;
        joined.push(Stretch { first: stretches[from].first, last: stretches[n - 1].last });
        n = from;
    }
    joined.reverse();
    joined
}

impl<M: Model> Worker<M> {
    /// Adds rows to the step that is laid out. Returns whether llama.cpp computes it in one pass.
    pub(super) fn pad(&mut self, shares: &[Share], n_prefill: u32) -> bool {
        let is_one = self.context.shares_cells() || shares.len() == 1;
        if self.speculation.as_ref().is_some_and(|speculation| speculation.traits.follows) {
            // Heads take in whole decodes, whose rows of a sequence must follow one another.
            return is_one;
        }
        let mut runs = shares.iter().filter_map(|share| self.slots[share.slot].run.as_ref());
        if !self.context.can_cut() || runs.any(|run| run.wants_prompt_logits()) {
            return is_one;
        }
        if n_prefill > 0 {
            return is_one;
        }
        if is_one {
            if shares.len() >= STREAMS_MIN {
                let n = self.rows.len();
                self.pad_behind(shares, self.cost.padded(n, &GROUPS) - n);
            }
            return true;
        }
        self.fill_gaps(shares)
    }

    /// Most rows that can be added.
    fn room_for_pads(&self) -> usize {
        let n_outputs = self.rows.iter().filter(|row| row.output).count();
        let outputs = (self.slots.len() + EXTRA_OUTPUTS as usize).saturating_sub(n_outputs);
        let room = outputs.min((self.context.n_batch() as usize).saturating_sub(self.rows.len()));
        if self.context.shares_cells() { room.min(self.cells.n_free().saturating_sub(self.rows.len())) } else { room }
    }

    /// Adds `n` rows behind the last row of a slot whose tokens are all in this step.
    fn pad_behind(&mut self, shares: &[Share], n: usize) {
        if n == 0 || n > self.room_for_pads() {
            return;
        }
        let mut hosts = shares.iter().zip(&self.drafts);
        let host = hosts.find_map(|(share, draft)| {
            let slot = &self.slots[share.slot];
            let run = slot.run.as_ref()?;
            let end = run.tokens.len() + draft.tokens.len();
            let is_whole = slot.kept.len() + share.n_rows as usize == run.tokens.len();
            let fits = end + n <= self.context.n_ctx_seq() as usize;
            (is_whole && fits && run.media.is_empty()).then_some((share.slot, slot.position(end)))
        });
        let Some((slot, pos)) = host else { return };
        for i in 0..n {
            self.push_pad(slot, pos + i as u32);
        }
        self.pads.push(slot);
    }

    fn push_pad(&mut self, slot: usize, pos: u32) {
        // Any token would do.
        let token = self.rows.first().map_or(0, |row| row.token);
        // An output, since the last layers compute outputs only and take them in groups too.
        self.rows.push(Row { token, pos, seq: slot as u32, output: true });
    }

    /// Whether a row can be added behind what the slot holds.
    fn can_fill(&self, slot: usize) -> bool {
        let it = &self.slots[slot];
        it.media.is_empty() && it.kept.len() < self.context.n_ctx_seq() as usize
    }

    /// Adds rows for slots between those of `shares`, and beside them, where that is faster; whether it is one pass.
    fn fill_gaps(&mut self, shares: &[Share]) -> bool {
        let mut busy: Vec<usize> = shares.iter().map(|share| share.slot).collect();
        busy.sort_unstable();
        let is_even = self.rows.len() == shares.len();
        let mut stretches: Vec<Stretch> = Vec::new();
        for slot in busy.iter().copied() {
            match stretches.last_mut() {
                Some(before) if before.last + 1 == slot => before.last = slot,
                _ => stretches.push(Stretch { first: slot, last: slot }),
            }
        }
        let cost: Vec<f64> = (0..=self.slots.len()).map(|n| self.cost.pass(self.cost.padded(n, &GROUPS))).collect();
        let mut stretches = join(&stretches, &cost, |slot| self.can_fill(slot));
        let is_one = is_even && stretches.len() == 1;
        if let ([one], true) = (&mut stretches[..], is_even) {
            let mut n_more = self.cost.padded(one.len(), &GROUPS) - one.len();
            while n_more > 0 && one.last + 1 < self.slots.len() && self.can_fill(one.last + 1) {
                (one.last, n_more) = (one.last + 1, n_more - 1);
            }
            while n_more > 0 && one.first > 0 && self.can_fill(one.first - 1) {
                (one.first, n_more) = (one.first - 1, n_more - 1);
            }
        }
        let filled =
            stretches.iter().flat_map(|one| one.first..=one.last).filter(|slot| busy.binary_search(slot).is_err());
        let filled: Vec<usize> = filled.take(self.room_for_pads()).collect();
        for slot in filled {
            self.push_pad(slot, self.slots[slot].position(self.slots[slot].kept.len()));
            self.pads.push(slot);
        }
        is_one
    }

    /// Forgets the rows that were added, once what the step was for is noted.
    pub(super) fn drop_pads(&mut self) {
        for slot in std::mem::take(&mut self.pads) {
            self.resync(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(first: usize, last: usize) -> Stretch {
        Stretch { first, last }
    }

    #[test]
    fn gaps_are_filled_where_one_pass_takes_less_time_than_two() {
        // The 0.5B model, ms: 1 to 3 rows 7, 11, 12, then 12 up to 4, 20 up to 8, 30 up to 16.
        let cost = |n: usize| [0.0, 7.0, 11.0, 12.0].get(n).copied().unwrap_or(if n <= 4 { 12.0 } else { 20.0 });
        let cost: Vec<f64> = (0..=16).map(|n| if n > 8 { 30.0 } else { cost(n) }).collect();
        let every_other: Vec<Stretch> = (0..8).map(|i| stretch(2 * i, 2 * i)).collect();
        assert_eq!(join(&every_other, &cost, |_| true), [stretch(0, 14)]);
        assert_eq!(join(&every_other, &cost, |slot| slot != 7), [stretch(0, 6), stretch(8, 14)]);
        let apart = [stretch(0, 3), stretch(14, 14)];
        assert_eq!(join(&apart, &cost, |_| true), apart, "19 ms, or 30");
        assert_eq!(join(&apart, &[0.0; 17], |_| true), apart, "nothing is known");
        assert_eq!(join(&[], &cost, |_| true), []);
    }
}
