//! Drafts of the next tokens, from a text that the answer probably repeats.
//!
//! A draft costs rows in a decode that happens anyway; what the model says about them decides, so the answer is the same
//! with and without.

use super::backend::Token;

/// Most tokens of one draft.
const DRAFT_MAX: usize = 16;
/// Tokens that must agree before a place in the text is believed again.
const AGREE: usize = 3;
/// Tokens to wait after a draft of which nothing was right, doubled each time.
const PAUSE_MAX: u32 = 64;

#[derive(Debug)]
pub(super) struct Drafter {
    text: Vec<Token>,
    /// Where the answer stands in the text; `None` while it isn't following it.
    at: Option<usize>,
    /// Length of the next draft.
    length: usize,
    pause: u32,
    n_waiting: u32,
    pub n_accepted: u32,
    pub n_rejected: u32,
}

impl Drafter {
    pub fn new(text: Vec<Token>) -> Self {
        Self { text, at: Some(0), length: 4, pause: 0, n_waiting: 0, n_accepted: 0, n_rejected: 0 }
    }

    /// What probably comes next, at most `most` tokens; empty when nothing is known or it doesn't pay.
    pub fn propose(&self, most: usize) -> &[Token] {
        let Some(at) = self.at.filter(|_| self.n_waiting == 0) else { return &[] };
        let end = (at + self.length.min(most).min(DRAFT_MAX)).min(self.text.len());
        &self.text[at..end]
    }

    /// The answer's tokens so far, the last one new.
    pub fn follow(&mut self, generated: &[Token]) {
        let Some(&last) = generated.last() else { return };
        self.n_waiting = self.n_waiting.saturating_sub(1);
        self.at = match self.at {
            Some(at) if self.text.get(at) == Some(&last) => Some(at + 1),
            _ => self.find(generated),
        };
    }

    /// The place behind the answer's last tokens, the nearest one after where it was.
    fn find(&self, generated: &[Token]) -> Option<usize> {
        let end = generated.get(generated.len().checked_sub(AGREE)?..)?;
        let from = self.at.unwrap_or(0).saturating_sub(AGREE);
        let search = |range: &[Token]| range.windows(AGREE).position(|window| window == end);
        let ahead = self.text.get(from..).and_then(search).map(|at| from + at);
        ahead.or_else(|| search(&self.text)).map(|at| at + AGREE)
    }

    /// Of a draft of `n` tokens the model said `n_right` first.
    pub fn learn(&mut self, n: usize, n_right: usize) {
        self.n_accepted += n_right as u32;
        self.n_rejected += (n - n_right) as u32;
        if n_right == n {
            self.length = (self.length * 2).min(DRAFT_MAX);
            self.pause = 0;
        } else if n_right > 0 {
            self.length = n_right.max(2);
            self.pause = 0;
        } else {
            self.length = 2;
            self.pause = (self.pause * 2).clamp(2, PAUSE_MAX);
            self.n_waiting = self.pause;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_goes_on_where_the_answer_is() {
        let mut drafter = Drafter::new(vec![1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(drafter.propose(16), [1, 2, 3, 4]);
        drafter.follow(&[1]);
        assert_eq!(drafter.propose(2), [2, 3]);
        drafter.follow(&[1, 42]);
        assert!(drafter.propose(16).is_empty(), "lost");
        drafter.follow(&[1, 42, 5]);
        drafter.follow(&[1, 42, 5, 6]);
        drafter.follow(&[1, 42, 5, 6, 7]);
        assert_eq!(drafter.propose(16), [8, 9], "found again");
    }

    #[test]
    fn drafts_that_fail_become_rare() {
        let mut drafter = Drafter::new((0..100).collect());
        drafter.learn(4, 0);
        assert!(drafter.propose(16).is_empty());
        for token in 0..3 {
            drafter.follow(&(0..=token).collect::<Vec<_>>());
        }
        assert_eq!(drafter.propose(16).len(), 2);
        drafter.learn(2, 2);
        assert_eq!((drafter.propose(16).len(), drafter.n_accepted, drafter.n_rejected), (4, 2, 4));
    }
}
