//! Whether it pays to save what a sequence holds.

use std::time::Duration;

/// What it costs to save what a sequence holds, as measured: nearly nothing in main memory, and much where each cell is
/// fetched from a GPU by itself. A hundred tokens of the 0.5B model in cells that are strewn over a pool took an H200 30 ms
/// to save, and 5 to compute.
#[derive(Debug, Default)]
pub(super) struct SaveCost {
    /// Seconds for each token of the last ones.
    last: Vec<f64>,
    /// How often it was too dear since.
    n_refused: u32,
}

impl SaveCost {
    /// As many must have been dear, so that one that was held up decides nothing.
    const MEASURED: usize = 3;
    /// Takes too little time to matter.
    const FREE_S: f64 = 0.002;
    /// Of what it saves to compute, the part that saving may take: most of what is saved is never asked for again.
    const PART: f64 = 0.25;
    /// As often it is left out before it is measured again.
    const REFUSED_MAX: u32 = 256;

    /// Takes the time of saving so many tokens into account.
    pub fn observe(&mut self, n_tokens: usize, time: Duration) {
        if self.last.len() == Self::MEASURED {
            self.last.remove(0);
        }
        self.last.push(time.as_secs_f64() / n_tokens.max(1) as f64);
    }

    /// Whether to save a sequence of `n_tokens`, of which those that would be lost take `time_of_lost` to compute.
    pub fn pays(&mut self, n_tokens: usize, time_of_lost: Duration) -> bool {
        if self.last.len() < Self::MEASURED {
            return true;
        }
        let least = self.last.iter().copied().fold(f64::INFINITY, f64::min) * n_tokens as f64;
        let pays = least <= Self::FREE_S.max(time_of_lost.as_secs_f64() * Self::PART);
        self.n_refused = if pays { 0 } else { self.n_refused + 1 };
        if self.n_refused == Self::REFUSED_MAX {
            *self = Self::default();
        }
        pays
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saving_is_left_out_where_computing_is_cheaper_and_tried_again() {
        let ms = Duration::from_millis;
        let mut cost = SaveCost::default();
        assert!(cost.pays(100, ms(5)), "nothing is known");
        cost.observe(100, ms(30));
        cost.observe(100, ms(30));
        assert!(cost.pays(100, ms(5)), "two may have been held up");
        cost.observe(100, ms(28));
        assert!(!cost.pays(100, ms(5)) && cost.pays(100, ms(200)), "28 ms for 5, and for 200");
        assert!(cost.pays(7, ms(0)), "1.96 ms are nothing");
        assert_eq!((0..300).filter(|_| cost.pays(100, ms(5))).count(), 300 - 256, "then it is measured again");
        (0..3).for_each(|_| cost.observe(100, ms(30)));
        cost.observe(100, ms(1));
        assert!(cost.pays(100, ms(5)), "one that was quick shows what it costs");
    }
}
