//! What steps take longer the more tokens their rows look back at.

/// Steps of more rows are not told apart.
const ROWS_MAX: usize = 64;
/// About so many steps are remembered: a machine changes, and a window of attention ends somewhere.
const DECAY: f64 = 0.999;
/// What a step weighs in what steps of as many rows are like just now.
const WEIGHT: f64 = 0.05;

/// Seconds for each token that a row looks back at, learnt from how steps of as many rows differ: a regression through the
/// differences from their moving averages.
#[derive(Debug, Clone)]
pub(super) struct Slope {
    /// By rows: tokens that all of them looked back at, and seconds, on average; 0 tokens: none yet.
    usual: [(f64, f64); ROWS_MAX + 1],
    /// Sums of products of the differences: of tokens with tokens, and with seconds.
    squares: f64,
    products: f64,
}

impl Default for Slope {
    fn default() -> Self {
        Self { usual: [(0.0, 0.0); ROWS_MAX + 1], squares: 0.0, products: 0.0 }
    }
}

impl Slope {
    /// As a step that looks back at `reach` tokens, over all its rows, takes `longer` seconds than one at none.
    pub fn begin(&mut self, reach: f64, longer: f64) {
        (self.squares, self.products) = (reach * reach, reach * longer.max(0.0));
    }

    /// A step of `n_rows` that looked back at `reach` tokens.
    pub fn observe(&mut self, n_rows: usize, reach: f64, seconds: f64) {
        let Some((usual_reach, usual_seconds)) = self.usual.get_mut(n_rows).filter(|_| reach > 0.0) else { return };
        if *usual_reach == 0.0 {
            (*usual_reach, *usual_seconds) = (reach, seconds);
            return;
        }
        let (more, longer) = (reach - *usual_reach, seconds - *usual_seconds);
        self.squares = self.squares * DECAY + more * more;
        self.products = self.products * DECAY + more * longer;
        *usual_reach += more * WEIGHT;
        *usual_seconds += longer * WEIGHT;
    }

    /// Seconds for so many tokens.
    pub fn seconds(&self, reach: f64) -> f64 {
        if self.squares > 0.0 { (self.products / self.squares).max(0.0) * reach } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers of 100 tokens behind prompts of different lengths, on a machine whose speed changes by a third and whose steps are
    /// held up now and then.
    fn answers(slope: &mut Slope, per_token: f64) {
        let mut random = 1u32;
        let mut next = move || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(random >> 8) / f64::from(1u32 << 24)
        };
        for answer in 0..40 {
            let depth = 50.0 + 900.0 * next();
            for n in 0..100 {
                let (rows, reach) = (if n % 10 == 9 { 4usize } else { 1 }, depth + f64::from(n));
                let slow = if answer / 5 % 2 == 0 { 1.0 } else { 1.33 } * (0.9 + 0.2 * next());
                let held_up = if next() < 0.02 { 2.0 } else { 1.0 };
                let reach = rows as f64 * reach;
                slope.observe(rows, reach, (1.0 + 0.3 * rows as f64 + per_token * reach) * slow * held_up);
            }
        }
    }

    #[test]
    fn what_depth_costs_is_learnt_through_noise_and_unlearnt() {
        let mut slope = Slope::default();
        assert!(slope.seconds(100.0) == 0.0);
        for (begin, truth) in [(0.0, 0.002), (0.008, 0.002), (0.004, 0.0)] {
            slope.begin(2048.0, 2048.0 * begin);
            assert!((slope.seconds(10.0) - 10.0 * begin).abs() < 1e-9);
            answers(&mut slope, truth);
            let found = slope.seconds(1.0);
            assert!((found - truth).abs() < 0.0008, "{found} for {truth}");
        }
    }
}
