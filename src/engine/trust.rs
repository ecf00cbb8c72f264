//! How far what drafts is believed, for one request: how often it was right, and whether it is worth asking just now.

/// How often a guess was right lately.
#[derive(Debug, Clone, Copy)]
pub(super) struct Odds {
    pub right: f64,
    pub wrong: f64,
}

impl Odds {
    /// About twenty guesses are remembered.
    const DECAY: f64 = 0.95;
    /// A guess about a longer text than was seen yet: with these odds 59 of 63 tokens are expected to be right.
    pub const MOST: f64 = 0.998;

    pub fn take(&mut self, is_right: bool) {
        self.right = self.right * Self::DECAY + f64::from(u8::from(is_right));
        self.wrong = self.wrong * Self::DECAY + f64::from(u8::from(!is_right));
    }

    /// So many guesses of which nobody knows the order.
    pub fn take_all(&mut self, n_right: u32, n_wrong: u32) {
        let n = f64::from(n_right) + f64::from(n_wrong);
        if n > 0.0 {
            let left = Self::DECAY.powf(n);
            let weight = (1.0 - left) / (1.0 - Self::DECAY) / n;
            self.right = self.right * left + f64::from(n_right) * weight;
            self.wrong = self.wrong * left + f64::from(n_wrong) * weight;
        }
    }

    /// The same odds, from `n` guesses.
    pub fn of_weight(self, n: f64) -> Self {
        let share = n / (self.right + self.wrong);
        Self { right: self.right * share, wrong: self.wrong * share }
    }

    pub fn value(self) -> f64 {
        (self.right / (self.right + self.wrong)).min(Self::MOST)
    }
}

/// Trust in the model or the heads that draft.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trust {
    odds: Odds,
    /// Tokens until it is asked again.
    nap: u32,
    next_nap: u32,
    /// Drafts that are made whatever the odds, to learn them.
    n_trials: u32,
}

impl Trust {
    const NAP_MIN: u32 = 32;
    const NAP_MAX: u32 = 1024;
    const TRIALS: u32 = 2;
    /// What the odds of a new request weigh, in guesses: it soon knows its own.
    const WEIGHT: f64 = 2.0;

    /// Before anything is known.
    pub fn new() -> Self {
        Self { odds: Odds { right: 1.5, wrong: 0.5 }, nap: 0, next_nap: Self::NAP_MIN, n_trials: 0 }
    }

    /// For a request after this one.
    pub fn heir(&self) -> Self {
        let share = Self::WEIGHT / (self.odds.right + self.odds.wrong).max(Self::WEIGHT);
        let odds = Odds { right: self.odds.right * share, wrong: self.odds.wrong * share };
        Self { odds, nap: self.nap, next_nap: self.next_nap, n_trials: 0 }
    }

    /// As `heir`, but tried soon: so that what became good is found out where answers are short.
    pub fn curious_heir(&self) -> Self {
        Self { nap: self.nap.min(Self::NAP_MIN), ..self.heir() }
    }

    /// How probably the first token is right, and each that follows one that was.
    pub fn odds(&self) -> f64 {
        self.odds.value()
    }

    pub fn is_awake(&self) -> bool {
        self.nap == 0
    }

    pub fn is_on_trial(&self) -> bool {
        self.n_trials > 0
    }

    /// A token went by.
    pub fn pass(&mut self) {
        if self.nap > 0 {
            self.nap -= 1;
            if self.nap == 0 {
                self.n_trials = Self::TRIALS;
            }
        }
    }

    /// It doesn't pay now: it is asked again after a while, and each time after a longer one.
    pub fn sleep(&mut self) {
        (self.nap, self.n_trials) = (self.next_nap, 0);
        self.next_nap = (self.next_nap * 2).min(Self::NAP_MAX);
    }

    /// It pays.
    pub fn praise(&mut self) {
        (self.nap, self.next_nap, self.n_trials) = (0, Self::NAP_MIN, 0);
    }

    /// Rests as long as another does.
    pub fn rest_like(&mut self, other: &Self) {
        (self.nap, self.next_nap) = (other.nap, self.next_nap.max(other.next_nap));
    }

    pub fn try_once(&mut self) {
        self.n_trials = self.n_trials.saturating_sub(1);
    }

    /// Tokens of the last nap.
    pub fn slept(&self) -> u32 {
        self.next_nap / 2
    }

    /// Of `n` tokens that it drafted the model said `n_right` first. A draft without tokens was no use either.
    pub fn take(&mut self, n: usize, n_right: usize) {
        (0..n_right).for_each(|_| self.odds.take(true));
        if n_right < n || n == 0 {
            self.odds.take(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_wrong_sleeps_longer_each_time_and_is_tried_again() {
        let mut trust = Trust::new();
        let mut naps = Vec::new();
        for _ in 0..7 {
            (0..20).for_each(|_| trust.take(3, 0));
            trust.sleep();
            let mut nap = 0;
            while !trust.is_awake() {
                trust.pass();
                nap += 1;
            }
            assert!(trust.is_on_trial() && trust.odds() < 0.1);
            naps.push(nap);
        }
        assert_eq!(naps, [32, 64, 128, 256, 512, 1024, 1024]);
        (0..30).for_each(|_| trust.take(4, 4));
        assert!(trust.odds() > 0.9);
        trust.praise();
        trust.sleep();
        assert_eq!(trust.nap, Trust::NAP_MIN);
    }

    #[test]
    fn a_new_request_begins_where_the_last_ones_were_and_learns_fast() {
        let mut lately = Trust::new();
        (0..100).for_each(|_| lately.take(1, 0));
        lately.sleep();
        lately.sleep();
        let heir = lately.heir();
        assert!(!heir.is_awake() && heir.odds() < 0.05);
        assert!(lately.curious_heir().nap <= Trust::NAP_MIN);
        let mut heir = heir;
        (0..3).for_each(|_| heir.take(2, 2));
        assert!(heir.odds() > 0.6, "{}", heir.odds());
    }
}
