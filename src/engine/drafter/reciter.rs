//! A way ahead of an answer, token by token, as far as each is foretold by those before it.

use super::Token;
use super::guesses::{ByStreak, Guesses};
use rustc_hash::FxHasher;
use std::hash::{Hash, Hasher};

/// Tokens that are drafted at most, as far as a chain of entries goes.
pub(super) const AHEAD: usize = 64;

/// What comes behind some tokens, in a table of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// The part of the key's hash that isn't its place.
    pub tag: u32,
    /// Negative: none.
    pub next: Token,
}

impl Entry {
    pub const NONE: Self = Self { tag: 0, next: -1 };
}

/// Where the entry of a key would stand, before that is cut to the table's size, and its tag.
pub(super) fn place(key: &[Token]) -> (usize, u32) {
    let mut hasher = FxHasher::default();
    key.hash(&mut hasher);
    let hash = hasher.finish();
    // Multiplied, so its upper half is the better mixed one.
    ((hash >> 32) as usize, hash as u32)
}

/// Goes ahead of an answer, as far as something tells how it goes on.
#[derive(Debug)]
pub(in super::super) struct Reciter {
    /// Tokens that tell the next one.
    n_key: usize,
    /// The last tokens of the answer, and from `at` on what is foretold: at most `2 * AHEAD` and a key, see `follow`.
    text: Vec<Token>,
    at: usize,
    pub(super) guesses: Guesses,
}

impl Reciter {
    pub(super) fn new(n_key: usize, odds: &ByStreak) -> Self {
        let mut guesses = Guesses::default();
        guesses.begin(odds);
        Self { n_key, text: Vec::new(), at: 0, guesses }
    }

    /// What comes next.
    pub fn ahead(&self) -> Option<&[Token]> {
        self.text.get(self.at..).filter(|text| !text.is_empty())
    }

    /// Takes the last token of `answer` in: it is what was foretold, or the way on is looked for anew. `next` tells what comes
    /// behind a text.
    pub(super) fn follow(&mut self, answer: &[Token], next: impl Fn(&[Token]) -> Option<Token>) {
        let Some(last) = answer.last() else { return };
        if let Some(foretold) = self.text.get(self.at)
            && self.guesses.take(foretold == last)
        {
            self.at += 1;
        } else {
            self.guesses.begin_at(0);
            self.text.clear();
            self.text.extend_from_slice(&answer[answer.len().saturating_sub(self.n_key)..]);
            self.at = self.text.len();
        }
        if self.at > AHEAD + self.n_key {
            self.text.drain(..self.at - self.n_key);
            self.at = self.n_key;
        }
        while self.text.len() < self.at + AHEAD {
            let Some(next) = next(&self.text) else { return };
            self.text.push(next);
        }
    }

    #[cfg(test)]
    pub(super) fn n_held(&self) -> usize {
        self.text.len()
    }
}
