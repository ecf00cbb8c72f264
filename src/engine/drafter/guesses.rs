//! How often a source of drafts is right, by how long it has been.

use super::super::cost::Chances;
use super::super::trust::Odds;
use super::Tried;

/// By the length of the streak: new, some, `SURE`; and where it is `SURE` though nothing was foretold yet.
pub(super) type ByStreak = [Odds; 4];

/// What a passage that was just found, and a longer one, are worth before anything is known.
pub(super) const UNKNOWN: ByStreak = [
    Odds { right: 1.0, wrong: 1.0 },
    Odds { right: 3.0, wrong: 1.0 },
    Odds { right: 9.0, wrong: 1.0 },
    Odds { right: 3.0, wrong: 1.0 },
];

/// One source's guesses of each next token of a request.
#[derive(Debug)]
pub(super) struct Guesses {
    /// Tokens in a row that were foretold, or that agree though the place was found without them.
    streak: u32,
    /// Those that were foretold.
    n_foretold: u32,
    odds: ByStreak,
    /// Of this request, as `odds`.
    seen: [Tried; 4],
}

impl Default for Guesses {
    fn default() -> Self {
        Self { streak: 0, n_foretold: 0, odds: UNKNOWN, seen: [Tried::default(); 4] }
    }
}

impl Guesses {
    /// What others came to weighs as so many guesses of its own, by the length of the streak.
    const WEIGHTS: [f64; 4] = [2.0, 4.0, 10.0, 4.0];
    const SOME: u32 = 4;
    pub const SURE: u32 = 16;
    /// Levels of `odds`.
    const PROVEN: usize = 2;
    const UNPROVEN: usize = 3;

    pub fn begin(&mut self, lately: &ByStreak) {
        for ((odds, lately), weight) in self.odds.iter_mut().zip(lately).zip(Self::WEIGHTS) {
            *odds = lately.of_weight(weight);
        }
    }

    /// How probably the next guesses are right. A passage that stands in front of the answer is followed or not, which its first
    /// token shows; behind that it is one that was foretold.
    pub fn chances(&self) -> Chances {
        let level = self.level();
        let next = if level == Self::UNPROVEN { Self::PROVEN } else { level };
        Chances { first: self.odds[level].value(), next: self.odds[next].value() }
    }

    /// A place was found behind so many tokens that agree, or none.
    pub fn begin_at(&mut self, streak: u32) {
        (self.streak, self.n_foretold) = (streak, 0);
    }

    /// Tokens in a row that were foretold, drafted or not.
    pub fn n_foretold(&self) -> u32 {
        self.n_foretold
    }

    /// A passage that stands in front of the answer as it did once before, and is followed again.
    pub fn is_proven(&self) -> bool {
        self.n_foretold > 0 && self.streak - self.n_foretold >= Self::SURE
    }

    fn level(&self) -> usize {
        match (self.streak, self.n_foretold) {
            (Self::SURE.., 0) => Self::UNPROVEN,
            (Self::SURE.., _) => Self::PROVEN,
            (streak, _) => usize::from(streak >= Self::SOME),
        }
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
