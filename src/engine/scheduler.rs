//! What the next decode computes: slots in, plan out, no side effects.
//!
//! # Design
//! Every slot has tokens computed and tokens wanted; a plan narrows the gaps within a budget. Slots that lack one token
//! (they are generating) always go first. Prompts share what is left of the step: the budget is a number of rows whose
//! computation fits the gap target at the measured speed, so that running streams stall at most that long; without
//! running streams it may be larger where few rows are dear, since nobody waits for a token. Prompts of the owner who was
//! served least go first (see `fair`); of one owner those that fit into a quarter of the budget go ahead, the others take
//! turns (least recently served first), so no slot waits for another's whole prompt. A piece of a long prompt joins short
//! ones only when it has waited longer: their first token would have to wait for its rows, and it gets the next step.

use std::time::Duration;

/// One slot with work to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    pub slot: usize,
    /// Tokens not yet computed, at least 1.
    pub gap: u32,
    /// It has generated before: its gap is the next token of a running stream, or a few that were forced.
    pub is_decode: bool,
    /// Most rows it may get in one step.
    pub cap: u32,
    /// Step at which it last got rows.
    pub served_at: u64,
    /// Whose turn it is: lower goes first. Of prompts only; running streams all get their row.
    pub turn: (bool, u64),
}

impl Want {
    /// Rows that a running stream may need in one step and still be served like one that needs a single one.
    pub const FEW: u32 = 16;
}

/// Rows for one slot, taken from the front of its gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub slot: usize,
    pub n_rows: u32,
}

/// Limits of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Most rows of a batch.
    pub n_batch: u32,
    /// Rows of prompts beside running streams.
    pub n_prefill_shared: u32,
    /// Rows of prompts when no stream runs.
    pub n_prefill_alone: u32,
    /// Free KV cells: one row takes one.
    pub n_cells_free: u32,
    /// Prompts of different lengths are computed one after another even in one step: only whole ones join the first.
    pub is_apart: bool,
}

/// The rows of the next decode, at most `n_batch` and at most `n_cells_free` in all. Empty only when `wants` is empty or
/// nothing is free. The order of `wants` doesn't matter.
pub fn plan(wants: &[Want], budget: Budget) -> Vec<Share> {
    let mut shares = Vec::with_capacity(wants.len());
    let mut room = budget.n_batch.min(budget.n_cells_free);
    let mut decodes: Vec<&Want> = wants.iter().filter(|want| want.is_decode).collect();
    // More streams than rows: those that waited longest come first.
    decodes.sort_by_key(|want| (want.served_at, want.slot));
    for want in decodes {
        if room == 0 {
            return shares;
        }
        let n_rows = want.gap.min(room);
        shares.push(Share { slot: want.slot, n_rows });
        room -= n_rows;
    }
    let n_decode: u32 = shares.iter().map(|share| share.n_rows).sum();
    let share_of_step = if n_decode == 0 { budget.n_prefill_alone } else { budget.n_prefill_shared };
    let share_of_step = share_of_step.max(1);
    let tiled = whole_tiles(share_of_step + n_decode);
    // With many streams the nearest whole tile may be full of them.
    let mut room_of_step = room;
    let mut room = room.min(if tiled > n_decode { tiled - n_decode } else { share_of_step });
    let short = room / 4;
    let mut prompts: Vec<&Want> = wants.iter().filter(|want| !want.is_decode).collect();
    // When the first of the whole prompts in the plan was last served.
    let mut whole_since = None;
    // Apart, short ones would take every step from a long one that can't have its rest.
    let is_long = |want: &Want| !budget.is_apart && want.gap > short;
    prompts.sort_by_key(|want| (want.turn, is_long(want), want.served_at, want.gap, want.slot));
    for want in prompts {
        if room == 0 {
            break;
        }
        let mut n_rows = want.gap.min(room).min(want.cap.max(1));
        let is_younger = whole_since.is_some_and(|since| budget.is_apart || want.served_at >= since);
        if n_rows < want.gap && is_younger {
            continue;
        }
        // A few rows that are left would be a step of their own.
        if budget.is_apart && want.gap <= (room + TILE_MIN).min(room_of_step).min(want.cap) {
            n_rows = want.gap;
        }
        if budget.is_apart {
            n_rows = with_whole_rest(n_rows, want.gap);
        }
        if n_rows == want.gap {
            whole_since = Some(whole_since.map_or(want.served_at, |since: u64| since.min(want.served_at)));
        }
        shares.push(Share { slot: want.slot, n_rows });
        room = room.saturating_sub(n_rows);
        room_of_step -= n_rows;
    }
    shares
}

/// Rows that llama.cpp's flash attention on CPU computes together (GGML_FA_TILE_Q, ggml-cpu/common.h). Fewer take the slow
/// path: 48 rows of the 0.5B model were computed in 157 ms, 64 in 143.
const TILE: u32 = 64;
/// Rows from which on a whole tile is taken instead.
const TILE_MIN: u32 = 24;

/// The number of whole tiles nearest to `n_rows`, for batches of half a tile and more.
///
/// Rounding up may overrun the gap target by a third on a slow machine; staying below would not: the
/// slow path measures slow, so the next batch would be smaller still, and the prompt would crawl.
fn whole_tiles(n_rows: u32) -> u32 {
    match n_rows {
        0..TILE_MIN => n_rows,
        TILE_MIN..TILE => TILE,
        _ => (n_rows + TILE / 2) / TILE * TILE,
    }
}

/// Rows of a prompt's piece that leave whole tiles to come: a part of a tile costs least at the beginning, where it has few
/// tokens to look back at. Behind 2,560 of the 0.5B model 60 rows took 406 ms, 64 263; at 512 162 and 129.
fn with_whole_rest(n_rows: u32, gap: u32) -> u32 {
    let missing = (TILE - (gap - n_rows) % TILE) % TILE;
    if n_rows >= missing + TILE_MIN { n_rows - missing } else { n_rows }
}

/// Measured speed of decodes, turned into row budgets.
#[derive(Debug, Clone)]
pub struct Pace {
    max_gap: Duration,
    n_batch: u32,
    n_ubatch: u32,
    /// Seconds per prompt row in steps of whole tiles, an average that follows quickly.
    row_s: f64,
    /// The same in smaller steps, which take the slow path: 7 ms a row instead of 2.8 behind 3,000 tokens (0.5B model).
    small_s: f64,
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

    pub fn new(max_gap: Duration, n_batch: u32, n_ubatch: u32) -> Self {
        // Until something was measured: chunks of 64 rows.
        Self {
            max_gap,
            n_batch,
            n_ubatch,
            row_s: max_gap.as_secs_f64() / 64.0,
            small_s: 0.0,
            decode_s: 0.0,
            share_s: 0.0,
        }
    }

    /// Takes the time of one decode of `n_decode` running streams and `n_prefill` prompt rows into account.
    pub fn observe(&mut self, n_decode: u32, n_prefill: u32, time: Duration) {
        let time = time.as_secs_f64();
        if n_prefill == 0 {
            self.decode_s += (time - self.decode_s) * 0.2;
        } else if n_prefill >= Self::ROWS_MIN / 2 {
            // Weights are read once for all rows, so the streams' part is charged to the prompt rows too: the estimate
            // errs on the slow side for small chunks and is right for large ones.
            let row_s = time / f64::from(n_prefill + n_decode);
            let is_small = n_prefill + n_decode < TILE;
            let known = if is_small { &mut self.small_s } else { &mut self.row_s };
            // Slower than thought counts at once: a gap was just too long.
            let weight = if row_s > *known { 0.6 } else { 0.25 };
            *known += (row_s - *known) * weight;
            // Tiles that took too long once are tried again, unless even rows of theirs at two fifths of the price would.
            if is_small && self.max_gap.as_secs_f64() < self.row_s * f64::from(TILE_MIN) {
                self.row_s = (self.row_s * 0.99).max(self.small_s * 0.4);
            }
        }
    }

    pub fn budget(&self, n_cells_free: u32) -> Budget {
        // What a step with streams may spend on prompts: the gap less the streams' own time, at least half of it, or a
        // slow model would never get to the prompt.
        let gap_s = self.max_gap.as_secs_f64();
        let prefill_s = (gap_s - self.decode_s).max(gap_s / 2.0);
        Budget {
            n_batch: self.n_batch,
            n_prefill_shared: self.rows_within(prefill_s),
            n_prefill_alone: self.rows_within(gap_s * f64::from(Self::ALONE)),
            n_cells_free,
            is_apart: false,
        }
    }

    /// Rows that take at most so long; of more than `ROWS_CHEAP` only those of half the gap target.
    fn rows_within(&self, seconds: f64) -> u32 {
        let half = self.rows_in(self.max_gap.as_secs_f64() / 2.0);
        self.rows_in(seconds).min(half.max(Self::ROWS_CHEAP))
    }

    /// Prompt rows, in whole tiles, that can be computed before streams that have waited for `waited` get their tokens too
    /// late; 0: not one tile. `have_begun`: not all of them have their first token only.
    pub fn rows_before(&self, waited: Duration, have_begun: bool) -> u32 {
        let target = self.max_gap * if have_begun { 1 } else { Self::ALONE };
        let left = target.as_secs_f64() - waited.as_secs_f64() - self.decode_s;
        if left < self.row_s * f64::from(TILE) {
            return 0;
        }
        self.rows_within(left) / TILE * TILE
    }

    /// Takes the time of one sharing between sequences into account.
    pub fn observe_share(&mut self, time: Duration) {
        self.share_s = time.as_secs_f64();
    }

    /// Prompt rows that could be computed while one sequence gets what another holds.
    pub fn rows_of_share(&self) -> usize {
        let rows = self.share_s / self.row_s.max(1e-9);
        #[expect(clippy::cast_sign_loss, reason = "not negative: both factors are not")]
        let rows = rows.min(f64::from(u32::MAX)) as usize;
        rows
    }

    /// How long prompts of this many rows take, at the measured speed.
    pub fn time_of(&self, n_rows: usize) -> Duration {
        Duration::from_secs_f64((self.row_s * n_rows as f64).clamp(0.0, 3600.0))
    }

    fn rows_in(&self, seconds: f64) -> u32 {
        let mut rows = seconds / self.row_s.max(1e-9);
        if rows < f64::from(TILE_MIN) && self.small_s > 0.0 {
            // A tile takes no longer than as many rows in small steps: prompts that never fill one don't teach its time.
            let small = seconds / self.small_s;
            rows = if small >= f64::from(TILE) { f64::from(TILE) } else { small.min(f64::from(TILE_MIN - 1)) };
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
    use proptest::prelude::*;

    const BUDGET: Budget =
        Budget { n_batch: 512, n_prefill_shared: 64, n_prefill_alone: 256, n_cells_free: 10_000, is_apart: false };

    fn want(slot: usize, gap: u32, is_decode: bool, served_at: u64) -> Want {
        Want { slot, gap, is_decode, cap: u32::MAX, served_at, turn: (false, 0) }
    }

    #[test]
    fn running_streams_go_first_and_prompts_get_the_rest_of_the_step() {
        let shares = plan(&[want(0, 1500, false, 0), want(1, 1, true, 5)], BUDGET);
        assert_eq!(shares, [Share { slot: 1, n_rows: 1 }, Share { slot: 0, n_rows: 63 }], "a whole tile of 64");
    }

    #[test]
    fn a_short_prompt_does_not_wait_for_a_long_one() {
        let shares = plan(&[want(0, 3000, false, 0), want(1, 10, false, 9)], BUDGET);
        assert_eq!(
            shares,
            [Share { slot: 1, n_rows: 10 }, Share { slot: 0, n_rows: 246 }],
            "the long one waited longer"
        );
        let shares = plan(&[want(0, 3000, false, 9), want(1, 10, false, 0), want(2, 1, true, 9)], BUDGET);
        assert_eq!(shares, [Share { slot: 2, n_rows: 1 }, Share { slot: 1, n_rows: 10 }], "and now the short one did");
    }

    #[test]
    fn whole_prompts_join_one_that_is_computed_apart() {
        let budget = Budget { is_apart: true, ..BUDGET };
        let rows = |wants: &[Want]| plan(wants, budget).iter().map(|one| (one.slot, one.n_rows)).collect::<Vec<_>>();
        assert_eq!(
            rows(&[want(0, 3000, false, 9), want(1, 10, false, 0)]),
            [(1, 10)],
            "the long one was served before"
        );
        let turn_of_long = [want(0, 3000, false, 0), want(1, 10, false, 9), want(2, 10, false, 9)];
        let shares = rows(&turn_of_long);
        assert_eq!(shares, [(0, 248), (1, 10)], "short ones that keep coming don't take every step");
        assert_eq!(rows(&[want(0, 3000, false, 0)]), [(0, 248)], "43 whole tiles are left");
        assert_eq!(rows(&[want(0, 2752, false, 0)]), [(0, 256)]);
        assert_eq!(rows(&[want(0, 520, false, 0)]), [(0, 200)], "five are left");
        assert_eq!(rows(&[want(0, 300, false, 0)]), [(0, 236)], "one tile is left");
        assert_eq!(rows(&[want(0, 270, false, 0)]), [(0, 270)], "no step for the last few");
        assert_eq!(rows(&[want(0, 100, false, 0), want(1, 99, false, 1), want(2, 98, false, 2)]), [(0, 100), (1, 99)]);
    }

    #[test]
    fn long_prompts_take_turns() {
        let mut served = [0u64; 2];
        let mut left = [1000u32, 1000];
        for step in 1..=4 {
            let wants: Vec<Want> = (0..2).map(|slot| want(slot, left[slot], false, served[slot])).collect();
            for share in plan(&wants, BUDGET) {
                served[share.slot] = step;
                left[share.slot] -= share.n_rows;
            }
        }
        assert_eq!(left, [488, 488]);
    }

    #[test]
    fn the_least_served_owner_goes_first_whatever_the_length() {
        let mine = Want { turn: (false, 5), ..want(0, 10, false, 0) };
        let theirs = Want { turn: (false, 4), ..want(1, 200, false, 9) };
        let batch = Want { turn: (true, 0), ..want(2, 10, false, 0) };
        let shares = plan(&[mine, theirs, batch], BUDGET);
        assert_eq!(
            shares.iter().map(|share| (share.slot, share.n_rows)).collect::<Vec<_>>(),
            [(1, 200), (0, 10), (2, 10)]
        );
    }

    #[test]
    fn the_budget_follows_the_measured_speed() {
        let mut pace = Pace::new(Duration::from_millis(100), 2048, 512);
        for _ in 0..20 {
            pace.observe(1, 63, Duration::from_millis(640)); // 10 ms a row: 100 ms hold 10 rows
        }
        assert_eq!(pace.budget(1000).n_prefill_shared, Pace::ROWS_MIN);
        for _ in 0..60 {
            pace.observe(0, 512, Duration::from_millis(51)); // 0.1 ms a row
        }
        let budget = pace.budget(1000);
        assert!((480..=512).contains(&budget.n_prefill_shared), "those of 50 ms: {budget:?}");
        assert_eq!(budget.n_prefill_alone, budget.n_prefill_shared, "more rows at once would take as long each");
        (0..20).for_each(|_| pace.observe(0, 64, Duration::from_millis(230)));
        let budget = pace.budget(1000);
        assert_eq!((budget.n_prefill_shared, budget.n_prefill_alone), (TILE_MIN + 3, 2 * TILE - 17), "{budget:?}");
    }

    #[test]
    fn a_slow_small_chunk_does_not_make_all_chunks_small() {
        let mut pace = Pace::new(Duration::from_millis(150), 2048, 512);
        for _ in 0..20 {
            pace.observe(0, 64, Duration::from_millis(170));
        }
        for _ in 0..20 {
            pace.observe(0, 18, Duration::from_millis(126));
        }
        assert!(pace.budget(1000).n_prefill_shared >= TILE_MIN, "whole tiles are still known to be faster");
        // Held up by something else: small ones for a while, and then tiles are tried again.
        (0..20).for_each(|_| pace.observe(0, 64, Duration::from_millis(900)));
        assert!(pace.budget(1000).n_prefill_shared < TILE_MIN);
        (0..200).for_each(|_| pace.observe(0, 18, Duration::from_millis(126)));
        assert!(pace.budget(1000).n_prefill_shared >= TILE_MIN);
        // Short prompts alone, after a start that was held up: their own time counts.
        let mut held_up = Pace::new(Duration::from_millis(150), 2048, 512);
        (0..4).for_each(|_| held_up.observe(0, 64, Duration::from_millis(600)));
        assert!(held_up.budget(1000).n_prefill_shared < TILE_MIN);
        held_up.observe(0, 16, Duration::from_millis(25));
        (0..9).for_each(|_| held_up.observe(16, 0, Duration::from_millis(28)));
        assert_eq!(held_up.budget(1000).n_prefill_shared, TILE);
        // A large model: a tile takes as long as its rows, so none is tried.
        (0..20).for_each(|_| pace.observe(0, 64, Duration::from_millis(1300)));
        (0..500).for_each(|_| pace.observe(0, 16, Duration::from_millis(320)));
        assert!(pace.budget(1000).n_prefill_shared < TILE_MIN);
    }

    #[test]
    fn whole_tiles_fit_before_a_token_is_due() {
        let mut pace = Pace::new(Duration::from_millis(500), 2048, 512);
        for _ in 0..50 {
            pace.observe(0, 128, Duration::from_millis(192));
            pace.observe(4, 0, Duration::from_millis(20));
        }
        let rows = |waited| pace.rows_before(Duration::from_millis(waited), true);
        // 1.5 ms a row: half the target is 166 rows; what is left after 20 ms for the streams.
        assert_eq!((rows(0), rows(250), rows(380), rows(390), rows(600)), (128, 128, 64, 0, 0));
        let first = |waited| pace.rows_before(Duration::from_millis(waited), false);
        assert_eq!((first(0), first(600), first(1900), first(2000)), (128, 128, 0, 0), "four times the target");
    }

    proptest! {
        #[test]
        fn a_plan_stays_within_its_limits_and_always_moves(
            gaps in prop::collection::vec((1u32..4000, any::<bool>(), 0u64..100), 0..200),
            n_batch in 1u32..600, shared in 0u32..600, alone in 0u32..600, free in 0u32..5000,
        ) {
            let wants: Vec<Want> = gaps.iter().enumerate()
                .map(|(slot, (gap, is_decode, served_at))| want(slot, if *is_decode { 1 } else { *gap }, *is_decode, *served_at))
                .collect();
            let budget = Budget { n_batch, n_prefill_shared: shared, n_prefill_alone: alone, n_cells_free: free, is_apart: false };
            let shares = plan(&wants, budget);
            let rows: u32 = shares.iter().map(|share| share.n_rows).sum();
            prop_assert!(rows <= n_batch.min(free));
            prop_assert_eq!(rows == 0, wants.is_empty() || free == 0);
            for share in &shares {
                prop_assert!(share.n_rows >= 1 && share.n_rows <= wants[share.slot].gap);
                prop_assert_eq!(shares.iter().filter(|other| other.slot == share.slot).count(), 1);
            }
            let n_decode = wants.iter().filter(|want| want.is_decode).count() as u32;
            let served = shares.iter().filter(|share| wants[share.slot].is_decode).count() as u32;
            prop_assert_eq!(served, n_decode.min(n_batch).min(free), "decodes come first");
        }
    }
}
