//! Whose turn it is where prompts and running streams are not computed together.
//!
//! # Design
//! Where each sequence has cells of its own, llama.cpp computes rows of prompts and of running streams one after another
//! even in one call, and each prompt by itself (llama-batch.cpp, `split_equal`): they take turns, in whole groups.
//!
//! **Short prompts and long ones take turns too**: a prompt that fits into a step goes before a piece of one that does not, if
//! that one has had a piece since the last such step.
//!
//! **Streams wait for those about to join them.** A step of few streams takes nearly as long as one of many: two that begin
//! a moment before fourteen others would run ahead of them, at the full price of a step for two tokens, and at the end the
//! fourteen without them. So whole prompts go first as long as the streams' next tokens stay within the gap target, where
//! the measured times of steps say that it pays; within four times that for streams that all have their first token only,
//! and prompts that were there before it: what comes at once begins at once, a moment later and then faster. (Sixteen
//! prompts that took 1.9 s had steps of 6, 9, 12 and 15 streams between them, and of 10, 7, 4 and 1 at the end.)
//!
//! **The worker waits for those about to come.** Who asks again as soon as it is answered (an agent, a loop over documents)
//! would find that the step just begun is somebody else's long prompt. Before such a step the worker stands still for a
//! moment if requests have ended: a small part of the step at most. Disk schedulers know the situation: Iyer and Druschel,
//! "Anticipatory scheduling", SOSP 2001.

use super::*;

/// Of the time that a step takes, the part that the worker may wait before it for requests to come.
const WAIT_SHARE: u32 = 20;
/// Longest such wait: a client on the same two cores has its answer and asks again in 3 to 13 ms.
const WAIT_MAX: Duration = Duration::from_millis(20);
/// Shorter steps are over before it matters.
const STEP_MIN: Duration = Duration::from_millis(40);
/// A step of streams is left out if a token costs that many times what it does with those who join.
const JOIN_MARGIN: f64 = 1.1;

/// Rows of the longest prompt that streams wait for.
const JOIN_ROWS: u32 = 256;
/// More than all steps: behind whoever else there is.
const BEHIND: u64 = u64::MAX / 2;

/// What turns depend on.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The last step that prompts wanted was theirs.
    is_prompts: bool,
    /// The same before the plan that was made last.
    was_prompts: bool,
    /// The last step that ended the prompts it was for.
    whole_step: u64,
    /// Since when streams wait for their next token.
    streams_since: Option<Instant>,
    /// Requests that ended since the worker last waited for new ones.
    n_ended: u32,
}

impl Turns {
    pub(super) fn ended(&mut self) {
        self.n_ended += 1;
    }
}

/// Whether a token of `n` streams costs more than one of `n_joined` by so much that it had better wait; by the seconds of a
/// step of so many, 0 where they are not known.
fn is_dear(n: usize, n_joined: usize, seconds: impl Fn(usize) -> f64) -> bool {
    seconds(n) / n as f64 > seconds(n_joined) / n_joined as f64 * JOIN_MARGIN
}

impl<M: Model> Worker<M> {
    /// Leaves those whose turn it is.
    pub(super) fn take_turns(&mut self, wants: &mut Vec<Want>, budget: &mut scheduler::Budget) {
        if self.context.shares_cells() {
            return;
        }
        budget.is_apart = true;
        self.turns.was_prompts = self.turns.is_prompts;
        let has_streams = wants.iter().any(|want| want.is_decode);
        let room = if has_streams { budget.n_prefill_shared } else { budget.n_prefill_alone };
        for want in wants.iter_mut().filter(|want| !want.is_decode && want.gap > room) {
            if want.served_at > self.turns.whole_step {
                want.served_at += BEHIND;
            }
        }
        if !has_streams {
            self.turns.streams_since = None;
            // Who begins to run has its second token before the next piece.
            self.turns.is_prompts = true;
            return;
        }
        budget.n_prefill_alone = budget.n_prefill_shared;
        let since = *self.turns.streams_since.get_or_insert_with(Instant::now);
        if !wants.iter().any(|want| !want.is_decode) {
            return;
        }
        if self.turns.is_prompts {
            let (mut joined, mut n_rows) = (wants.clone(), self.pace.rows_before(since.elapsed(), true));
            if let Some(begun) = self.began_together(wants).filter(|_| !self.pays_to_join(wants, n_rows)) {
                joined.retain(|want| want.is_decode || self.accepted(want).is_some_and(|accepted| accepted <= begun));
                n_rows = self.pace.rows_before(since.elapsed(), false);
            }
            if self.pays_to_join(&joined, n_rows) {
                joined.retain(|want| !want.is_decode && want.gap <= n_rows.min(want.cap));
                *wants = joined;
                budget.n_prefill_alone = n_rows;
                return;
            }
        }
        self.turns.is_prompts = !self.turns.is_prompts;
        wants.retain(|want| want.is_decode != self.turns.is_prompts);
    }

    fn accepted(&self, want: &Want) -> Option<Instant> {
        self.slots[want.slot].run.as_ref().map(|run| run.clock.accepted)
    }

    /// When the first of the streams had its first token, where none has another.
    fn began_together(&self, wants: &[Want]) -> Option<Instant> {
        let streams = wants.iter().filter(|want| want.is_decode);
        let begun = streams.map(|want| {
            let run = self.slots[want.slot].run.as_ref().filter(|run| run.n_generated() == 1)?;
            run.clock.first_token
        });
        begun.collect::<Option<Vec<_>>>()?.into_iter().min()
    }

    /// Whether the streams had better wait while whole prompts of `n_rows` in all are computed. What counts is the price of a
    /// token once everybody has joined who can: the tokens left out now are made then.
    fn pays_to_join(&self, wants: &[Want], n_rows: u32) -> bool {
        let is_whole = |want: &&Want| !want.is_decode && want.gap <= want.cap.min(JOIN_ROWS);
        let fits = wants.iter().filter(is_whole).any(|want| want.gap <= n_rows);
        let n_joining = wants.iter().filter(is_whole).count();
        let n_streams = wants.iter().filter(|want| want.is_decode).count();
        fits && is_dear(n_streams, n_streams + n_joining, |n| self.cost.pass(self.cost.padded(n, &pads::GROUPS)))
    }

    /// After a step with so many rows of streams and of prompts.
    pub(super) fn end_turn(&mut self, shares: &[Share], n_decode: u32, n_prefill: u32) {
        if n_decode > 0 {
            self.turns.streams_since = Some(Instant::now());
        }
        let is_whole = |share: &Share| {
            let slot = &self.slots[share.slot];
            slot.run.as_ref().is_none_or(|run| slot.kept.len() + share.n_rows as usize >= run.tokens.len())
        };
        if n_prefill > 0 && shares.iter().all(is_whole) {
            self.turns.whole_step = self.step;
        }
    }

    /// Waits a moment for new requests before a step of prompts that would hold them up. True: some came, and the step is to
    /// be planned again.
    pub(super) fn wait_for_more(&mut self, shares: &[Share]) -> bool {
        let n_ended = std::mem::take(&mut self.turns.n_ended);
        let n_rows: u32 = shares.iter().map(|share| share.n_rows).sum();
        let is_decode = |share: &Share| self.slots[share.slot].run.as_ref().is_some_and(|run| run.n_generated() > 0);
        let time = self.pace.time_of(n_rows as usize);
        // Without a free slot they would wait in any case.
        let has_place = self.waiting.is_empty() && self.slots.iter().any(|slot| slot.run.is_none());
        if n_ended == 0 || !has_place || time < STEP_MIN || shares.iter().any(is_decode) {
            return false;
        }
        let until = Instant::now() + (time / WAIT_SHARE).min(WAIT_MAX);
        let mut n_came = 0;
        while n_came < n_ended && !self.cancels.is_stopping() {
            let Ok(run) = self.incoming.recv_deadline(until) else { break };
            self.enqueue(run);
            n_came += 1;
        }
        if n_came > 0 {
            self.turns.is_prompts = self.turns.was_prompts;
        }
        n_came > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_wait_for_others_where_a_step_of_few_is_dear() {
        // The 0.5B model by groups of four, ms.
        let seconds =
            |n: usize| [0.0, 7.0, 11.0, 12.0, 12.0].get(n).copied().unwrap_or(if n <= 8 { 20.0 } else { 30.0 });
        assert!(is_dear(1, 16, seconds) && is_dear(4, 16, seconds) && is_dear(11, 16, seconds));
        assert!(!is_dear(15, 16, seconds), "one more makes no difference");
        assert!(!is_dear(1, 16, |n| n as f64), "each costs what it costs");
        assert!(!is_dear(1, 16, |_| 0.0), "nothing is known");
    }
}
