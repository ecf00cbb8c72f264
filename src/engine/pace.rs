//! Measured speed of steps, turned into budgets of rows.
//!
//! # Design
//! A row costs more the more tokens it looks back at: of the 0.5B model 2.0 ms behind 512 and 3.7 behind 2,560. So what rows cost
//! is kept by depth, and a budget is one for the deepest prompt that waits; otherwise chats of a few words would teach that
//! rows are cheap, and the next piece of a long prompt would hold up all streams for twice the gap target.

use super::scheduler::{Budget, TILE, TILE_FILL};
use std::time::Duration;

/// Seconds of a row by the tokens before it, 0 where nothing was measured: below 256, and then by powers of two.
#[derive(Debug, Clone, Default)]
struct ByDepth([f64; 12]);

impl ByDepth {
    /// What twice as deep costs is a third more (0.5B model), until it is known.
    const DEEPER: [f64; 3] = [1.0, 1.3, 1.69];

    fn index(depth: u32) -> usize {
        (depth.max(128).ilog2() as usize - 7).min(11)
    }

    /// What was measured there, or else follows from the nearest depth below, or else above; 0: nowhere.
    fn at(&self, depth: u32) -> f64 {
        let (below, above) = self.0.split_at(Self::index(depth) + 1);
        let nearest = below.iter().rev().enumerate().find(|(_, seconds)| **seconds > 0.0);
        let deeper = nearest.map(|(n, seconds)| seconds * Self::DEEPER[n.min(2)]);
        deeper.or_else(|| above.iter().copied().find(|seconds| *seconds > 0.0)).unwrap_or(0.0)
    }

    fn follow(&mut self, depth: u32, seconds: f64) {
        let known = &mut self.0[Self::index(depth)];
        // Slower than thought counts at once: a gap was just too long.
        let weight = if *known == 0.0 {
            1.0
        } else if seconds > *known {
            0.6
        } else {
            0.25
        };
        *known += (seconds - *known) * weight;
    }
}

/// Rows of prompts that a step computed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Prefill {
    pub n_rows: u32,
    /// Tokens before the middle one of them.
    pub depth: u32,
}

/// Measured speed of decodes, turned into row budgets.
#[derive(Debug, Clone)]
pub struct Pace {
    max_gap: Duration,
    n_batch: u32,
    n_ubatch: u32,
    /// Of a prompt row in steps of whole tiles, an average that follows quickly.
    tiles: ByDepth,
    /// The same in smaller steps, which take the slow path: 7 ms a row instead of 2.8 behind 3,000 tokens (0.5B model).
    small: ByDepth,
    /// Seconds of a step that holds running streams only.
    decode_s: f64,
    /// Seconds that it takes one sequence to get what another holds.
    share_s: f64,
}

impl Pace {
    /// Rows below which a step is dominated by reading the weights: smaller chunks only waste time.
    const ROWS_MIN: u32 = 16;
    /// How much longer a step may take when no stream waits for a token: arrivals and cancels still do. As much longer may
    /// streams that have their first token only wait for those they came with.
    const ALONE: u32 = 4;
    /// Of more rows than these a step takes only those of half the gap target: on CPU they cost no less each. Behind 2,560
    /// tokens of the 0.5B model 64 rows took 4.1 ms each, 128 3.6, 256 3.5, 512 3.7.
    const ROWS_CHEAP: u32 = 2 * TILE;

    /// Of what a row takes in a small step, the least that it may take in a tile.
    const TILE_GAIN: f64 = 0.4;

    pub fn new(max_gap: Duration, n_batch: u32, n_ubatch: u32) -> Self {
        let (tiles, small) = (ByDepth::default(), ByDepth::default());
        Self { max_gap, n_batch, n_ubatch, tiles, small, decode_s: 0.0, share_s: 0.0 }
    }

    /// Takes the time of one decode of `n_decode` running streams and some prompt rows into account.
    pub fn observe(&mut self, n_decode: u32, prefill: Prefill, time: Duration) {
        let time = time.as_secs_f64();
        let Prefill { n_rows, depth } = prefill;
        if n_rows == 0 {
            self.decode_s += (time - self.decode_s) * 0.2;
        } else if n_rows >= Self::ROWS_MIN / 2 {
            // Weights are read once for all rows, so the streams' part is charged to the prompt rows too: the estimate
            // errs on the slow side for small chunks and is right for large ones.
            let row_s = time / f64::from(n_rows + n_decode);
            if n_rows + n_decode >= TILE {
                self.tiles.follow(depth, row_s);
                return;
            }
            self.small.follow(depth, row_s);
            // Tiles that took too long once are tried again, seldom, unless the cheapest rows that they could have would.
            let least = self.small.at(depth) * Self::TILE_GAIN;
            let known = &mut self.tiles.0[ByDepth::index(depth)];
            if self.max_gap.as_secs_f64() < *known * f64::from(TILE_FILL) {
                *known = (*known * 0.995).max(least);
            }
        }
    }

    /// Seconds of a row in tiles; until something was measured, of chunks of 64 rows.
    fn row_s(&self, depth: u32) -> f64 {
        match self.tiles.at(depth) {
            0.0 => self.max_gap.as_secs_f64() / 64.0,
            known => known,
        }
    }

    /// With prompts that have up to `depth` tokens computed.
    pub fn budget(&self, n_cells_free: u32, depth: u32) -> Budget {
        // What a step with streams may spend on prompts: the gap less the streams' own time, at least half of it, or a
        // slow model would never get to the prompt.
        let gap_s = self.max_gap.as_secs_f64();
        let prefill_s = (gap_s - self.decode_s).max(gap_s / 2.0);
        Budget {
            n_batch: self.n_batch,
            n_prefill_shared: self.rows_within(prefill_s, depth),
            n_prefill_alone: self.rows_within(gap_s * f64::from(Self::ALONE), depth),
            n_cells_free,
            is_apart: false,
        }
    }

    /// Rows that take at most so long; of more than `ROWS_CHEAP` only those of half the gap target.
    fn rows_within(&self, seconds: f64, depth: u32) -> u32 {
        let half = self.rows_in(self.max_gap.as_secs_f64() / 2.0, depth);
        self.rows_in(seconds, depth).min(half.max(Self::ROWS_CHEAP))
    }

    /// Prompt rows, in whole tiles, that can be computed before streams that have waited for `waited` get their tokens too
    /// late; 0: not one tile. `have_begun`: not all of them have their first token only.
    pub fn rows_before(&self, waited: Duration, have_begun: bool, depth: u32) -> u32 {
        let target = self.max_gap * if have_begun { 1 } else { Self::ALONE };
        let left = target.as_secs_f64() - waited.as_secs_f64() - self.decode_s;
        if left < self.row_s(depth) * f64::from(TILE) {
            return 0;
        }
        self.rows_within(left, depth) / TILE * TILE
    }

    /// Takes the time of one sharing between sequences into account.
    pub fn observe_share(&mut self, time: Duration) {
        self.share_s = time.as_secs_f64();
    }

    /// Prompt rows that could be computed while one sequence gets what another holds.
    pub fn rows_of_share(&self) -> usize {
        let rows = self.share_s / self.row_s(0).max(1e-9);
        #[expect(clippy::cast_sign_loss, reason = "not negative: both factors are not")]
        let rows = rows.min(f64::from(u32::MAX)) as usize;
        rows
    }

    /// How long prompts of this many rows take, at the measured speed.
    pub fn time_of(&self, n_rows: usize) -> Duration {
        let (mut seconds, mut from, mut to) = (0.0, 0, 256);
        while from < n_rows {
            let n = to.min(n_rows) - from;
            seconds += self.row_s(u32::try_from(from).unwrap_or(u32::MAX)) * n as f64;
            (from, to) = (to, to * 2);
        }
        Duration::from_secs_f64(seconds.clamp(0.0, 3600.0))
    }

    fn rows_in(&self, seconds: f64, depth: u32) -> u32 {
        let small_s = self.small.at(depth);
        let mut rows = seconds / self.row_s(depth).max(1e-9);
        if rows < f64::from(TILE_FILL) && small_s > 0.0 {
            // A tile takes no longer than as many rows in small steps: prompts that never fill one don't teach its time.
            let small = seconds / small_s;
            rows = if small >= f64::from(TILE) { f64::from(TILE) } else { small.min(f64::from(TILE_FILL - 1)) };
        }
        let most = self.n_batch.max(Self::ROWS_MIN);
        // Whole ubatches are computed at once: beyond one, take whole ones.
        #[allow(clippy::cast_sign_loss)] // not negative: both factors are not
        let rows = (rows.min(f64::from(most)) as u32).clamp(Self::ROWS_MIN, most);
        if rows > self.n_ubatch { rows / self.n_ubatch * self.n_ubatch } else { rows }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows at the beginning of a prompt.
    fn rows(n_rows: u32) -> Prefill {
        Prefill { n_rows, depth: 0 }
    }

    #[test]
    fn rows_cost_what_they_cost_at_their_depth() {
        let mut pace = Pace::new(Duration::from_millis(500), 2048, 512);
        for _ in 0..20 {
            pace.observe(1, Prefill { n_rows: 127, depth: 64 }, Duration::from_millis(256));
            pace.observe(1, Prefill { n_rows: 127, depth: 3000 }, Duration::from_millis(768));
        }
        let shared = |depth| pace.budget(1000, depth).n_prefill_shared;
        assert_eq!((shared(0), shared(3000)), (128, 83), "2 ms a row and 6");
        assert_eq!((shared(1500), shared(60_000)), (128, 49), "dearer than the nearest that is known");
        assert_eq!(pace.time_of(200).as_millis(), 400);
        assert_eq!(pace.time_of(3072).as_millis(), 12_513, "2 ms a row, 2.6, 3.4, and 6 behind 2,048");
    }

    #[test]
    fn the_budget_follows_the_measured_speed() {
        let mut pace = Pace::new(Duration::from_millis(100), 2048, 512);
        for _ in 0..20 {
            pace.observe(1, rows(63), Duration::from_millis(640)); // 10 ms a row: 100 ms hold 10 rows
        }
        assert_eq!(pace.budget(1000, 0).n_prefill_shared, Pace::ROWS_MIN);
        for _ in 0..60 {
            pace.observe(0, rows(512), Duration::from_millis(51)); // 0.1 ms a row
        }
        let budget = pace.budget(1000, 0);
        assert!((480..=512).contains(&budget.n_prefill_shared), "those of 50 ms: {budget:?}");
        assert_eq!(budget.n_prefill_alone, budget.n_prefill_shared, "more rows at once would take as long each");
        (0..20).for_each(|_| pace.observe(0, rows(64), Duration::from_millis(230)));
        let budget = pace.budget(1000, 0);
        assert_eq!((budget.n_prefill_shared, budget.n_prefill_alone), (27, 2 * TILE - 17), "{budget:?}");
    }

    #[test]
    fn a_slow_small_chunk_does_not_make_all_chunks_small() {
        let mut pace = Pace::new(Duration::from_millis(150), 2048, 512);
        for _ in 0..20 {
            pace.observe(0, rows(64), Duration::from_millis(170));
        }
        for _ in 0..20 {
            pace.observe(0, rows(18), Duration::from_millis(126));
        }
        assert!(pace.budget(1000, 0).n_prefill_shared >= TILE_FILL, "whole tiles are still known to be faster");
        // Held up by something else: small ones for a while, and then tiles are tried again.
        (0..20).for_each(|_| pace.observe(0, rows(64), Duration::from_millis(900)));
        assert!(pace.budget(1000, 0).n_prefill_shared < TILE_FILL);
        (0..400).for_each(|_| pace.observe(0, rows(18), Duration::from_millis(126)));
        assert!(pace.budget(1000, 0).n_prefill_shared >= TILE_FILL);
        // Short prompts alone, after a start that was held up: their own time counts.
        let mut held_up = Pace::new(Duration::from_millis(150), 2048, 512);
        (0..4).for_each(|_| held_up.observe(0, rows(64), Duration::from_millis(600)));
        assert!(held_up.budget(1000, 0).n_prefill_shared < TILE_FILL);
        held_up.observe(0, rows(16), Duration::from_millis(25));
        (0..9).for_each(|_| held_up.observe(16, rows(0), Duration::from_millis(28)));
        assert_eq!(held_up.budget(1000, 0).n_prefill_shared, TILE);
        // A large model: a tile takes as long as its rows, so none is tried.
        (0..20).for_each(|_| pace.observe(0, rows(64), Duration::from_millis(1300)));
        (0..500).for_each(|_| pace.observe(0, rows(16), Duration::from_millis(320)));
        assert!(pace.budget(1000, 0).n_prefill_shared < TILE_FILL);
    }

    #[test]
    fn whole_tiles_fit_before_a_token_is_due() {
        let mut pace = Pace::new(Duration::from_millis(500), 2048, 512);
        for _ in 0..50 {
            pace.observe(0, rows(128), Duration::from_millis(192));
            pace.observe(4, rows(0), Duration::from_millis(20));
        }
        let before = |waited| pace.rows_before(Duration::from_millis(waited), true, 0);
        // 1.5 ms a row: half the target is 166 rows; what is left after 20 ms for the streams.
        assert_eq!((before(0), before(250), before(380), before(390), before(600)), (128, 128, 64, 0, 0));
        let first = |waited| pace.rows_before(Duration::from_millis(waited), false, 0);
        assert_eq!((first(0), first(600), first(1900), first(2000)), (128, 128, 0, 0), "four times the target");
    }
}
