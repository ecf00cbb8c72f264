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

/// One slot with work to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    pub slot: usize,
    /// Tokens computed.
    pub depth: u32,
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
        // Apart, a few rows that are left would be a step of their own, and a prompt that all but fits one with streams before it.
        if budget.is_apart && want.gap <= (room + TILE_MIN).min(room_of_step).min(want.cap) {
            n_rows = want.gap;
        }
        let is_younger = whole_since.is_some_and(|since| budget.is_apart || want.served_at >= since);
        if n_rows < want.gap && is_younger {
            continue;
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
pub(super) const TILE: u32 = 64;
/// Rows that are worth a step of their own.
const TILE_MIN: u32 = 24;
/// Rows from which on a whole tile is taken instead.
pub(super) const TILE_FILL: u32 = 48;

/// The number of whole tiles nearest to `n_rows`, for batches of three quarters of a tile and more.
///
/// Rounding up may overrun the gap target by a third on a slow machine; staying below would not: the
/// slow path measures slow, so the next batch would be smaller still, and the prompt would crawl.
fn whole_tiles(n_rows: u32) -> u32 {
    match n_rows {
        0..TILE_FILL => n_rows,
        TILE_FILL..TILE => TILE,
        _ => (n_rows + TILE / 2) / TILE * TILE,
    }
}

/// Rows of a prompt's piece that leave whole tiles to come: a part of a tile costs least at the beginning, where it has few
/// tokens to look back at. Behind 2,560 of the 0.5B model 60 rows took 406 ms, 64 263; at 512 162 and 129.
fn with_whole_rest(n_rows: u32, gap: u32) -> u32 {
    let missing = (TILE - (gap - n_rows) % TILE) % TILE;
    if n_rows >= missing + TILE_MIN { n_rows - missing } else { n_rows }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BUDGET: Budget =
        Budget { n_batch: 512, n_prefill_shared: 64, n_prefill_alone: 256, n_cells_free: 10_000, is_apart: false };

    fn want(slot: usize, gap: u32, is_decode: bool, served_at: u64) -> Want {
        Want { slot, depth: 0, gap, is_decode, cap: u32::MAX, served_at, turn: (false, 0) }
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
        assert_eq!(rows(&[want(0, 240, false, 0), want(1, 40, false, 1), want(2, 9, false, 2)]), [(0, 240), (1, 40)]);
        assert_eq!(rows(&[want(0, 240, false, 0), want(1, 41, false, 1), want(2, 9, false, 2)]), [(0, 240), (2, 9)]);
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
