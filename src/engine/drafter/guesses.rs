//! How often a source of drafts is right, by how long it has been.

use super::super::trust::Odds;
use super::Tried;

/// By the length of the streak: new, some, `SURE`.
pub(super) type ByStreak = [Odds; 3];

/// What a passage that was just found, and a longer one, are worth before anything is known.
pub(super) const UNKNOWN: ByStreak =
    [Odds { right: 1.0, wrong: 1.0 }, Odds { right: 3.0, wrong: 1.0 }, Odds { right: 9.0, wrong: 1.0 }];

/// One source's guesses of each next token of a request.
#[derive(Debug)]
pub(super) struct Guesses {
    /// Tokens in a row that were foretold, or that agree though the place was found without them.
    pub streak: u32,
    /// Those that were foretold.
    n_foretold: u32,
    odds: ByStreak,
    /// Of this request, as `odds`.
    seen: [Tried; 3],
}

impl Default for Guesses {
    fn default() -> Self {
        Self { streak: 0, n_foretold: 0, odds: UNKNOWN, seen: [Tried::default(); 3] }
    }
}

impl Guesses {
    /// What others came to weighs as so many guesses of its own, by the length of the streak.
    const WEIGHTS: [f64; 3] = [2.0, 4.0, 10.0];
    const SOME: u32 = 4;
    pub const SURE: u32 = 16;

    pub fn begin(&mut self, lately: &ByStreak) {
        for ((odds, lately), weight) in self.odds.iter_mut().zip(lately).zip(Self::WEIGHTS) {
            *odds = lately.of_weight(weight);
        }
    }

    /// How probably the next guess is right.
    pub fn odds(&self) -> f64 {
        self.odds[self.level()].value()
    }

    /// Tokens in a row that were foretold, drafted or not.
    pub fn n_foretold(&self) -> u32 {
        self.n_foretold
    }

    fn level(&self) -> usize {
        usize::from(self.streak >= Self::SOME) + usize::from(self.streak >= Self::SURE)
    }

    /// The token that was foretold came, or another; answers which.
    pub fn take(&mut self, is_right: bool) -> bool {
        let level = self.level();
        self.odds[level].take(is_right);
        self.seen[level].add(1, usize::from(is_right));
        self.streak += u32::from(is_right);
        self.n_foretold = if is_right { self.n_foretold + 1 } else { 0 };
        is_right
    }

    /// Adds what they came to to what is known of their source.
    pub fn teach(&self, lately: &mut ByStreak) {
        lately.iter_mut().zip(self.seen).for_each(|(odds, seen)| odds.take_all(seen.n_right, seen.n - seen.n_right));
    }
}
