//! What one answer's drafts may lose.

/// Tokens that may be lost with an answer's first draft.
const START: f64 = 1.5;
/// Of the tokens of an answer, the part that may be lost besides.
const PART: f64 = 0.01;
/// Of the tokens that a source foretold in a row, the part that a draft of it may lose.
const FORETOLD: f64 = 0.5;
/// Most that is saved up: what was right long ago says little of what comes.
const MOST: f64 = 64.0;

/// What an answer's drafts may lose, in tokens that the answer would get in that time. What is at stake is counted by its
/// odds where a long passage is followed again, and what was lost as it is.
///
/// **Invariant:** as far as prices and odds are true, the drafts of an answer of `n` tokens lose at most `START + n * PART` of
/// them on average, and half of what sources foretold at no cost before they were wrong.
#[derive(Debug)]
pub(super) struct Purse {
    held: f64,
}

impl Default for Purse {
    fn default() -> Self {
        Self { held: START }
    }
}

impl Purse {
    /// Most that a draft may lose now, from a source that foretold so many tokens in a row: these it would have brought.
    pub fn stake(&self, n_foretold: u32) -> f64 {
        self.held.max(0.0) + f64::from(n_foretold) * FORETOLD
    }

    /// A token went by.
    pub fn pass(&mut self) {
        self.held = (self.held + PART).min(MOST);
    }

    /// A draft of that price was right in so many tokens, which came beside the one that came anyway.
    pub fn settle(&mut self, n_right: usize, price: f64) {
        self.held = (self.held + n_right as f64 - price).min(MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_loses_little_whatever_is_drafted_for_it() {
        let (mut purse, mut lost) = (Purse::default(), 0.0);
        for n in 1..=2000 {
            purse.pass();
            // Always the dearest that may be tried, and wrong.
            lost += purse.stake(0);
            purse.settle(0, purse.stake(0));
            assert!(lost <= START + f64::from(n) * PART + 1e-9, "{lost} after {n}");
        }
    }

    #[test]
    fn what_is_right_is_tried_at_full_length_within_a_few_steps() {
        // Each row takes a third of a step.
        let (mut purse, mut lens) = (Purse::default(), Vec::new());
        while lens.last().is_none_or(|len| *len < 60) {
            #[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "small and positive")]
            let len = (purse.stake(0) * 3.0) as usize;
            purse.settle(len, len as f64 / 3.0);
            lens.push(len);
        }
        assert!(lens.len() <= 4, "{lens:?}");
    }
}
