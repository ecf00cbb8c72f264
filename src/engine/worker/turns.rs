//! The worker's part of taking turns, which [`Turns`](super::super::turns::Turns) decides.
//!
//! # Design
//! **The worker waits for those about to come.** Who asks again as soon as it is answered (an agent, a loop over documents)
//! would find that the step just begun is somebody else's long prompt. Before such a step the worker stands still for a
//! moment if requests have ended: a small part of the step at most. Disk schedulers know the situation: Iyer and Druschel,
//! "Anticipatory scheduling", SOSP 2001.

use super::super::turns::{Facts, Times};
use super::*;

/// Of the time that a step takes, the part that the worker may wait before it for requests to come.
const WAIT_SHARE: u32 = 20;
/// Longest such wait: a client on the same two cores has its answer and asks again in 3 to 13 ms.
const WAIT_MAX: Duration = Duration::from_millis(20);
/// Shorter steps are over before it matters.
const STEP_MIN: Duration = Duration::from_millis(40);

impl<M: Model> Worker<M> {
    /// Leaves those whose turn it is.
    pub(super) fn take_turns(&mut self, wants: &mut Vec<Want>, budget: &mut scheduler::Budget) {
        if self.context.shares_cells() {
            return;
        }
        let times = |slot: usize| {
            let run = self.slots[slot].run.as_ref()?;
            let began = run.clock.first_token.filter(|_| run.n_generated() == 1);
            Some(Times { accepted: run.clock.accepted, began })
        };
        let pass = |n: usize| self.cost.pass(self.cost.padded(n, &pads::GROUPS));
        let facts = Facts { pace: &self.pace, times: &times, pass: &pass, now: Instant::now() };
        self.turns.take(wants, budget, &facts);
    }

    /// After a step with so many rows of streams and of prompts.
    pub(super) fn end_turn(&mut self, shares: &[Share], n_decode: u32, n_prefill: u32) {
        let is_whole = |share: &Share| {
            let slot = &self.slots[share.slot];
            slot.run.as_ref().is_none_or(|run| slot.kept.len() + share.n_rows as usize >= run.tokens.len())
        };
        let had_whole_prompts = n_prefill > 0 && shares.iter().all(is_whole);
        self.turns.end(self.step, n_decode > 0, had_whole_prompts, Instant::now());
    }

    /// Waits a moment for new requests before a step of prompts that would hold them up. True: some came, and the step is to
    /// be planned again.
    pub(super) fn wait_for_more(&mut self, shares: &[Share]) -> bool {
        let n_ended = std::mem::take(&mut self.n_ended);
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
            self.turns.take_back();
        }
        n_came > 0
    }
}
