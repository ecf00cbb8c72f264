//! Whose turn it is where prompts and running streams are not computed together: no side effects, no clock of its own.
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

use super::pace::Pace;
use super::scheduler::{Budget, Want};
use std::time::Instant;

/// A step of streams is left out if a token costs that many times what it does with those who join.
const JOIN_MARGIN: f64 = 1.1;
/// Rows of the longest prompt that streams wait for.
const JOIN_ROWS: u32 = 256;
/// More than all steps: behind whoever else there is.
const BEHIND: u64 = u64::MAX / 2;

/// What turns depend on.
#[derive(Debug, Default)]
pub struct Turns {
    /// The last step that prompts wanted was theirs.
    is_prompts: bool,
    /// The same before the plan that was made last.
    was_prompts: bool,
    /// The last step that ended the prompts it was for.
    whole_step: u64,
    /// Since when streams wait for their next token.
    streams_since: Option<Instant>,
}

/// When things happened to the request of a slot.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    pub accepted: Instant,
    /// When it had its first token, if it has no other.
    pub began: Option<Instant>,
}

/// What turns are taken by, besides the wants.
pub struct Facts<'a> {
    pub pace: &'a Pace,
    /// Of the request in a slot.
    pub times: &'a dyn Fn(usize) -> Option<Times>,
    /// Seconds of a step of so many streams, 0 where it is not known.
    pub pass: &'a dyn Fn(usize) -> f64,
    pub now: Instant,
}

impl Turns {
    /// Leaves those whose turn it is.
    pub fn take(&mut self, wants: &mut Vec<Want>, budget: &mut Budget, facts: &Facts) {
        budget.is_apart = true;
        self.was_prompts = self.is_prompts;
        let has_streams = wants.iter().any(|want| want.is_decode);
        let room = if has_streams { budget.n_prefill_shared } else { budget.n_prefill_alone };
        for want in wants.iter_mut().filter(|want| !want.is_decode && want.gap > room) {
            if want.served_at > self.whole_step {
                want.served_at += BEHIND;
            }
        }
        if !has_streams {
            self.streams_since = None;
            // Who begins to run has its second token before the next piece.
            self.is_prompts = true;
            return;
        }
        budget.n_prefill_alone = budget.n_prefill_shared;
        let since = *self.streams_since.get_or_insert(facts.now);
        if !wants.iter().any(|want| !want.is_decode) {
            return;
        }
        if self.is_prompts {
            let waited = facts.now.saturating_duration_since(since);
            let depth = wants.iter().filter(|want| is_short(want)).map(|want| want.depth).max().unwrap_or(0);
            let (mut joined, mut n_rows) = (wants.clone(), facts.pace.rows_before(waited, true, depth));
            if let Some(begun) = began_together(wants, facts).filter(|_| !pays_to_join(wants, n_rows, facts)) {
                let came_before = |want: &Want| (facts.times)(want.slot).is_some_and(|times| times.accepted <= begun);
                joined.retain(|want| want.is_decode || came_before(want));
                n_rows = facts.pace.rows_before(waited, false, depth);
            }
            if pays_to_join(&joined, n_rows, facts) {
                joined.retain(|want| !want.is_decode && want.gap <= n_rows.min(want.cap));
                *wants = joined;
                budget.n_prefill_alone = n_rows;
                return;
            }
        }
        self.is_prompts = !self.is_prompts;
        wants.retain(|want| want.is_decode != self.is_prompts);
    }

    /// After step number `step`, which gave streams their tokens or not, and computed prompts, all of them whole, or not.
    pub fn end(&mut self, step: u64, had_streams: bool, had_whole_prompts: bool, now: Instant) {
        if had_streams {
            self.streams_since = Some(now);
        }
        if had_whole_prompts {
            self.whole_step = step;
        }
    }

    /// The plan that was made last is not carried out.
    pub fn take_back(&mut self) {
        self.is_prompts = self.was_prompts;
    }
}

/// Whether it is a prompt, or the rest of one, that streams may wait for.
fn is_short(want: &Want) -> bool {
    !want.is_decode && want.gap <= want.cap.min(JOIN_ROWS)
}

/// When the first of the streams had its first token, where none has another.
fn began_together(wants: &[Want], facts: &Facts) -> Option<Instant> {
    let streams = wants.iter().filter(|want| want.is_decode);
    let begun = streams.map(|want| (facts.times)(want.slot)?.began);
    begun.collect::<Option<Vec<_>>>()?.into_iter().min()
}

/// Whether the streams had better wait while whole prompts of `n_rows` in all are computed. What counts is the price of a
/// token once everybody has joined who can: the tokens left out now are made then.
fn pays_to_join(wants: &[Want], n_rows: u32, facts: &Facts) -> bool {
    let is_whole = |want: &&Want| is_short(want);
    let fits = wants.iter().filter(is_whole).any(|want| want.gap <= n_rows);
    let n_joining = wants.iter().filter(is_whole).count();
    let n_streams = wants.iter().filter(|want| want.is_decode).count();
    fits && is_dear(n_streams, n_streams + n_joining, facts.pass)
}

/// Whether a token of `n` streams costs more than one of `n_joined` by so much that it had better wait; by the seconds of a
/// step of so many, 0 where they are not known.
fn is_dear(n: usize, n_joined: usize, seconds: impl Fn(usize) -> f64) -> bool {
    seconds(n) / n as f64 > seconds(n_joined) / n_joined as f64 * JOIN_MARGIN
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
