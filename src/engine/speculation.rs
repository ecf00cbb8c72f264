//! Drafts by a model or by heads beside the model: what their side of each sequence holds, what they cost.
//!
//! # Design
//! The draft's context is not kept in step with the target's: sequences are copied, cut, parked and loaded there without a
//! word to the draft's side. Instead it is known which tokens that side holds, and before a draft is asked for, what is
//! missing is taken in. So a sequence that nobody drafts for costs nothing, whatever happens to it. Heads that read what
//! decodes of the target left behind can't catch up like that: they take in each step while any request believes them,
//! and begin in the middle of a sequence where they weren't there before. So they do for a recurrent state too, which only
//! the model has: heads attend, and what they hold of a wrong draft is cut. Heads that attend over the model's own cells hold
//! nothing but the state of the last position, and count as holding what they were told of.

use super::backend::{DraftTraits, Token};
use super::cost::DraftCost;

pub(super) struct Speculation {
    pub traits: DraftTraits,
    pub cost: DraftCost,
    sides: Vec<Side>,
    /// The last step that could have had a draft.
    pub drafting_at: u64,
}

/// What the draft's side of a sequence holds.
#[derive(Debug, Clone, Default)]
struct Side {
    /// Position of the first of `tokens`: 0, but where heads began in the middle.
    from: usize,
    tokens: Vec<Token>,
    partition: u64,
    /// The run that was looked at last, and up to which position it has the same tokens.
    serial: u64,
    same: usize,
}

impl Side {
    /// Up to which position it holds what `tokens` begin with.
    fn common(&self, tokens: &[Token]) -> usize {
        let theirs = tokens.get(self.from..).unwrap_or_default();
        self.from + self.tokens.iter().zip(theirs).take_while(|(a, b)| a == b).count()
    }
}

/// Whose tokens are looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whose<'a> {
    pub slot: usize,
    pub partition: u64,
    pub serial: u64,
    /// What the draft's side should hold.
    pub tokens: &'a [Token],
}

impl Speculation {
    pub fn new(traits: DraftTraits, cost: DraftCost, n_slots: usize) -> Self {
        Self { traits, cost, sides: vec![Side::default(); n_slots], drafting_at: 0 }
    }

    /// How many of the tokens its side of the sequence lacks. What it holds beyond the common ones is no longer counted.
    pub fn missing(&mut self, whose: Whose<'_>) -> usize {
        let side = &mut self.sides[whose.slot];
        if side.partition != whose.partition {
            *side = Side { partition: whose.partition, ..Side::default() };
        }
        if side.serial != whose.serial {
            (side.serial, side.same) = (whose.serial, side.from);
        }
        let known = side.same - side.from;
        let theirs = whose.tokens.get(side.same..).unwrap_or_default();
        let held = side.tokens.get(known..).unwrap_or_default();
        side.same += held.iter().zip(theirs).take_while(|(a, b)| a == b).count();
        side.tokens.truncate(side.same - side.from);
        if side.tokens.is_empty() { whose.tokens.len() } else { whose.tokens.len() - side.same.min(whose.tokens.len()) }
    }

    /// Another sequence of the same tenant whose side holds more of the tokens, by at least `least`, and how many.
    pub fn donor(&self, whose: Whose<'_>, least: usize) -> Option<(usize, usize)> {
        let held = whose.tokens.len() - whose.tokens.len().min(self.missing_known(whose.slot, whose.tokens.len()));
        let others = self.sides.iter().enumerate().filter(|(slot, side)| {
            *slot != whose.slot && side.partition == whose.partition && side.from == 0 && !side.tokens.is_empty()
        });
        let best = others.map(|(slot, side)| (side.common(whose.tokens), slot)).max()?;
        (best.0 >= held + least).then_some((best.1, best.0))
    }

    /// As `missing` said last.
    fn missing_known(&self, slot: usize, n: usize) -> usize {
        let side = &self.sides[slot];
        if side.tokens.is_empty() { n } else { n - side.same.min(n) }
    }

    /// Its side of the sequence was made a copy of the first `n` tokens of another.
    pub fn copied(&mut self, from: usize, to: usize, n: usize) {
        let tokens = self.sides[from].tokens[..n].to_vec();
        let side = &mut self.sides[to];
        (side.from, side.same, side.tokens) = (0, n, tokens);
    }

    /// Its side of the sequence took in what stands at positions `at..`, of a run that `missing` knows.
    pub fn took(&mut self, slot: usize, at: usize, tokens: &[Token]) {
        let side = &mut self.sides[slot];
        if side.tokens.is_empty() || at < side.from || at > side.from + side.tokens.len() {
            (side.from, side.same) = (at, at);
            side.tokens.clear();
        }
        side.tokens.truncate(at - side.from);
        side.same = side.same.min(at);
        side.tokens.extend_from_slice(tokens);
    }

    /// Its side of the sequence is empty.
    pub fn cleared(&mut self, slot: usize) {
        let side = &mut self.sides[slot];
        (side.from, side.same) = (0, 0);
        side.tokens.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speculation() -> Speculation {
        let traits = DraftTraits { follows: false, is_fixed: false, n_max: 8, n_min: 0, n_vocab: 100 };
        Speculation::new(traits, DraftCost::default(), 3)
    }

    fn whose(slot: usize, serial: u64, tokens: &[Token]) -> Whose<'_> {
        Whose { slot, partition: 1, serial, tokens }
    }

    #[test]
    fn what_is_missing_is_what_was_not_taken_in_or_came_out_otherwise() {
        let mut spec = speculation();
        let tokens = [1, 2, 3, 4, 5, 6];
        assert_eq!(spec.missing(whose(0, 1, &tokens[..4])), 4);
        spec.took(0, 0, &tokens[..4]);
        assert_eq!(spec.missing(whose(0, 1, &tokens[..4])), 0);
        // A draft of two, of which the first was right.
        spec.took(0, 4, &[5, 9]);
        assert_eq!(spec.missing(whose(0, 1, &tokens)), 1);
        spec.took(0, 5, &[6]);
        assert_eq!(spec.missing(whose(0, 1, &tokens)), 0);
        // The next request in this slot begins otherwise from the third token on.
        assert_eq!(spec.missing(whose(0, 2, &[1, 2, 7, 8])), 2);
        assert_eq!(
            spec.missing(Whose { partition: 2, ..whose(0, 3, &[1, 2]) }),
            2,
            "another tenant's is not looked at"
        );
    }

    #[test]
    fn heads_that_begin_in_the_middle_miss_nothing_from_there_on() {
        let mut spec = speculation();
        assert_eq!(spec.missing(whose(1, 1, &[1, 2, 3, 4])), 4);
        spec.took(1, 3, &[4]);
        assert_eq!((spec.missing(whose(1, 1, &[1, 2, 3, 4])), spec.sides[1].from), (0, 3));
        assert_eq!(spec.missing(whose(1, 1, &[1, 2, 3, 4, 5, 6])), 2);
        spec.took(1, 5, &[6]);
        assert_eq!(spec.sides[1].from, 5, "a gap: it begins anew");
    }

    #[test]
    fn a_sequence_with_more_of_the_tokens_lends_them_within_a_tenant() {
        let mut spec = speculation();
        let tokens: Vec<Token> = (0..80).collect();
        spec.missing(whose(0, 1, &tokens));
        spec.took(0, 0, &tokens[..70]);
        assert_eq!(spec.missing(whose(2, 2, &tokens)), 80);
        assert_eq!(spec.donor(whose(2, 2, &tokens), 32), Some((0, 70)));
        assert_eq!(spec.donor(Whose { partition: 5, ..whose(2, 2, &tokens) }, 32), None);
        spec.copied(0, 2, 70);
        assert_eq!(spec.missing(whose(2, 2, &tokens)), 10);
        assert_eq!(spec.donor(whose(2, 2, &tokens), 32), None, "nobody has much more");
        spec.cleared(2);
        assert_eq!(spec.missing(whose(2, 2, &tokens)), 80);
    }
}
