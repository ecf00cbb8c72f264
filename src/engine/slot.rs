//! One sequence of a context: what its KV cells hold, and the run that uses it.

use super::backend::{EXTRA_OUTPUTS, Token};
use super::cells::CellId;
use super::media::{self, Span};
use super::run::Run;
use super::scheduler::Want;
use std::cmp::Reverse;
use std::sync::Arc;

/// A place in a context's batch. Its index is its sequence id.
pub(super) struct Slot<S> {
    /// Tokens whose KV cells this sequence holds, in order; see `position`.
    ///
    /// **Invariant:** with a run, `kept` is a prefix of the run's tokens.
    pub kept: Vec<Token>,
    /// The cells of `kept`, where all sequences draw them from one pool; else empty.
    pub cells: Vec<CellId>,
    pub run: Option<Box<Run<S>>>,
    /// Chunks of media in `kept`, and perhaps behind it.
    pub media: Arc<[Span]>,
    /// Whose tokens these are.
    pub partition: u64,
    /// The partition of what all tenants share, with the adapters that these tokens were computed with.
    pub shared: u64,
    /// Step at which the slot last computed something; idle slots are emptied least recent first.
    pub served_at: u64,
    /// Step at which a text was last drafted from for it; see `Worker::text_drafts`.
    pub drafted_at: u64,
}

impl<S> Slot<S> {
    pub fn new() -> Self {
        Self {
            kept: Vec::new(),
            cells: Vec::new(),
            run: None,
            media: Arc::new([]),
            partition: 0,
            shared: 0,
            served_at: 0,
            drafted_at: 0,
        }
    }

    /// What the scheduler has to know; `None` when there is nothing to compute.
    pub fn want(&self, slot: usize) -> Option<Want> {
        let run = self.run.as_ref()?;
        let gap = (run.tokens.len() - self.kept.len()) as u32;
        // Up to the next chunk, which is computed apart.
        let text = media::text_from(&run.media, self.kept.len(), run.tokens.len()) as u32;
        let is_decode = gap <= Want::FEW && run.n_generated() > 0;
        let cap = if run.wants_prompt_logits() { EXTRA_OUTPUTS } else { u32::MAX };
        let turn = (false, 0);
        let depth = self.kept.len() as u32;
        (text > 0).then_some(Want { slot, depth, gap: text, is_decode, cap, served_at: self.served_at, turn })
    }

    /// The position that follows the first `n` tokens; differs from `n` behind images of M-RoPE models.
    pub fn position(&self, n: usize) -> u32 {
        media::position(&self.media, n)
    }

    /// The chunk that is to be computed next, and how many of its rows are done.
    pub fn next_span(&self) -> Option<(&Span, u32)> {
        let at = self.kept.len();
        let span = media::span_at(&self.run.as_ref()?.media, at)?;
        Some((span, at as u32 - span.start))
    }

    /// How many leading tokens of `tokens` are held already.
    pub fn common_prefix(&self, tokens: &[Token], partition: u64) -> usize {
        if self.partition != partition {
            return 0;
        }
        self.kept.iter().zip(tokens).take_while(|(kept, wanted)| kept == wanted).count()
    }
}

/// The idle slot to run `tokens` on: the one that holds the longest useful prefix, else the one idle longest. Of slots that
/// hold the same prefix, one that holds nothing else, else the one idle longest.
///
/// A prefix is useful when most of what the slot holds is that prefix (a conversation that goes on), or when no slot is
/// empty and it is a tenth of the prompt or 64 tokens: a template's first words are not worth losing what another
/// conversation left behind. Where a slot is empty, a beginning that others have too (a system text) is no conversation
/// that goes on: the empty one takes it over from them, and nobody loses anything.
///
/// With `beside`, sequences are computed together that follow one another: a slot that leaves no gap goes first, also
/// before an empty one farther off. A gap costs each step of the whole run another pass, or rows for nothing (see
/// `worker::pads`); what the slot held is saved when it gives it up, where there is room, and comes back in milliseconds.
pub(super) fn choose<S>(
    slots: &[Slot<S>],
    tokens: &[Token],
    partition: u64,
    cache_prompt: bool,
    beside: bool,
) -> Option<usize> {
    let idle = || slots.iter().enumerate().filter(|(_, slot)| slot.run.is_none());
    let has_empty = idle().any(|(_, slot)| slot.kept.is_empty());
    let prefixes: Vec<usize> = slots.iter().map(|slot| slot.common_prefix(tokens, partition)).collect();
    let best = idle().max_by_key(|(index, slot)| {
        let is_all = prefixes[*index] == slot.kept.len();
        (prefixes[*index], is_all, Reverse((slot.served_at, *index)))
    });
    let is_useful = |index: usize| {
        let (prefix, held) = (prefixes[index], slots[index].kept.len());
        if !has_empty {
            return prefix * 2 >= held || prefix >= 64 || prefix * 10 >= tokens.len();
        }
        let is_common = prefixes.iter().enumerate().any(|(other, n)| other != index && *n >= prefix);
        prefix == held || (prefix * 2 >= held && !is_common)
    };
    match best {
        Some((index, _)) if cache_prompt && prefixes[index] > 0 && is_useful(index) => Some(index),
        _ => {
            let gap = |index: usize| if beside { gap(slots, index) } else { 0 };
            let key = |(index, slot): &(usize, &Slot<S>)| (gap(*index), !slot.kept.is_empty(), slot.served_at, *index);
            idle().min_by_key(key).map(|(index, _)| index)
        }
    }
}

/// Idle slots that would lie between this one and those that run.
fn gap<S>(slots: &[Slot<S>], index: usize) -> usize {
    let busy = |slot: &Slot<S>| slot.run.is_some();
    match (slots.iter().position(busy), slots.iter().rposition(busy)) {
        (Some(first), _) if index < first => first - index - 1,
        (_, Some(last)) if index > last => index - last - 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(kept: &[Token], served_at: u64) -> Slot<()> {
        Slot { kept: kept.to_vec(), served_at, ..Slot::new() }
    }

    #[test]
    fn a_conversation_goes_back_to_its_slot() {
        let slots = [slot(&[1, 2, 3, 4], 5), slot(&[1, 9], 1), slot(&[], 0)];
        assert_eq!(choose(&slots, &[1, 2, 3, 4, 5, 6], 0, true, false), Some(0));
        assert_eq!(choose(&slots, &[7, 7, 7], 0, true, false), Some(2), "an empty slot before somebody's cache");
        assert_eq!(choose(&slots, &[1, 8, 8, 8], 0, true, false), Some(2), "one token in common is no conversation");
        assert_eq!(choose(&slots[..2], &[7, 7, 7], 0, true, false), Some(1), "the one idle longest");
        assert_eq!(choose(&slots, &[1, 2, 3, 4, 5], 1, true, false), Some(2), "another tenant's tokens don't count");
    }

    #[test]
    fn of_slots_with_the_same_beginning_the_one_idle_longest_is_taken() {
        let slots = [slot(&[1, 2, 5], 9), slot(&[1, 2, 6], 3), slot(&[1, 2, 7], 5)];
        assert_eq!(choose(&slots, &[1, 2, 8], 0, true, false), Some(1));
        let slots = [slot(&[1, 2, 5], 3), slot(&[1, 2], 9), slot(&[1, 2, 7], 3)];
        assert_eq!(choose(&slots, &[1, 2, 8], 0, true, false), Some(1), "it loses nothing");
        assert_eq!(choose(&[slot(&[1, 2, 5], 3), slot(&[1, 2, 6], 3)], &[1, 2, 8], 0, true, false), Some(0));
    }

    #[test]
    fn a_beginning_that_others_have_too_takes_an_empty_slot() {
        let slots = [slot(&[1, 2, 3, 5], 9), slot(&[1, 2, 3, 6], 3), slot(&[], 0)];
        assert_eq!(choose(&slots, &[1, 2, 3, 8], 0, true, false), Some(2));
        assert_eq!(choose(&slots, &[1, 2, 3, 6, 8], 0, true, false), Some(1), "the conversation goes on");
        assert_eq!(choose(&slots[1..], &[1, 2, 3, 8], 0, true, false), Some(0), "an answer that is told otherwise");
        let slots = [slot(&[1, 2, 3], 9), slot(&[1, 2, 3, 6], 3), slot(&[], 0)];
        assert_eq!(choose(&slots, &[1, 2, 3, 8], 0, true, false), Some(0), "it loses nothing");
    }

    #[test]
    fn an_empty_slot_goes_first_where_none_leaves_a_gap() {
        let slots = [slot(&[1, 2], 9), slot(&[3, 4], 3), slot(&[], 0)];
        assert!((0..3).all(|index| gap(&slots, index) == 0), "nobody runs that it could be apart from");
        assert_eq!(choose(&slots, &[7, 7], 0, true, true), Some(2), "an empty one before an idle conversation");
        assert_eq!(choose(&slots[..2], &[7, 7], 0, true, true), Some(1), "the one idle longest");
    }
}
