//! What is measured before the first request: the speed of prompts, of steps of few rows, of sharing.

use super::super::backend::{Context, DecodeError, Row, Token};
use super::super::cost::StepCost;
use super::super::pace::{Pace, Prefill};
use std::time::{Duration, Instant};

/// Copies that take less are told apart from nothing by chance only.
const SHARE_NOISE: Duration = Duration::from_millis(1);

/// How often a step is measured at least, and at most where no two of them agree.
const STEPS: usize = 3;
const STEPS_MAX: usize = 8;
/// The best two steps agree where the second takes no more than this of the first.
const AGREE: f64 = 1.05;
/// Rows of a step with a draft, such as is measured among steps of one row.
const DETOUR_ROWS: u32 = 4;
/// Of a step of one row, the part from which on a detour counts.
const DETOUR_PART: f64 = 0.25;

/// Tokens behind which a step is measured, at least and at most, and how long computing them may take between.
const DEPTH_MIN: u32 = 64;
const DEPTH_MAX: u32 = 512;
const DEPTH_TIME: Duration = Duration::from_millis(200);
/// Rows of such a step, of those that are measured behind none.
const DEPTH_ROWS: u32 = 4;

/// Computes a few rows so that the first request meets warm caches, a measured pace, and steps whose cost is known.
pub(in crate::engine) fn warm_up<C: Context>(
    context: &mut C,
    token: Token,
    pace: &mut Pace,
    cost: &mut StepCost,
) -> Result<(), String> {
    let n_rows = 64.min(context.n_batch()).min(context.n_ctx_seq().saturating_sub(1)).max(1);
    let mut is_slow = false;
    // The first round pages the weights in; the second one is what requests will see.
    for round in 0..2u32 {
        let time = time_of_rows(context, token, n_rows, |pos| pos + 1 == n_rows)?;
        if round > 0 {
            is_slow = time > DEPTH_TIME;
            (0..4).for_each(|_| pace.observe(0, Prefill { n_rows, depth: n_rows / 2 }, time));
        }
    }
    for n in probes(n_rows) {
        let best = best_of_steps(context, token, n)?;
        cost.measure(n, best);
    }
    if !context.records_steps() && n_rows > DETOUR_ROWS {
        let switch = switch(context, token, cost)?;
        cost.measure_switch(switch);
    }
    if context.records_steps() && n_rows > DETOUR_ROWS {
        let detour = detour(context, token, cost)?;
        // Less is chance, and no matter.
        if detour.as_secs_f64() > DETOUR_PART * cost.pass(1) {
            cost.set_detour(detour);
        }
    }
    // What takes long is learnt from requests.
    if !context.records_steps() && !is_slow {
        measure_depth(context, token, cost)?;
    }
    let has_others = context.n_cells() > context.n_ctx_seq();
    if !context.shares_cells() && context.can_cut() && has_others && context.n_ctx_seq() > n_rows + 1 {
        let mut best = Duration::MAX;
        for _ in 0..3 {
            best = best.min(time_of_share(context, token, n_rows)?);
        }
        pace.observe_share(best.saturating_sub(SHARE_NOISE));
    }
    tracing::debug!(rows = ?StepCost::PROBES, us = ?cost.probed_us(), ns_per_token = cost.ns_per_token(), share_rows = pace.rows_of_share(), detour_us = cost.detour_us(), switch_us = cost.switch_us(), "steps were measured");
    Ok(())
}

/// Each row is an output, as in a step of running streams. The best of some, as others may hold up any of them.
fn best_of_steps<C: Context>(context: &mut C, token: Token, n_rows: u32) -> Result<Duration, String> {
    let (mut best, mut second) = (Duration::MAX, Duration::MAX);
    // What a GPU records it has at the second or third time; the longest takes so long that little holds it up.
    let least = match n_rows {
        _ if context.records_steps() => 2 * STEPS,
        64.. => 2,
        _ => STEPS,
    };
    for n in 1..=STEPS_MAX {
        let time = time_of_rows(context, token, n_rows, |_| true)?;
        second = second.min(time.max(best));
        best = best.min(time);
        if n >= least && second.as_secs_f64() <= best.as_secs_f64() * AGREE {
            break;
        }
    }
    Ok(best)
}

/// What a step takes longer behind one of another number of rows.
fn switch<C: Context>(context: &mut C, token: Token, cost: &StepCost) -> Result<Duration, String> {
    let plain = Duration::from_secs_f64(cost.pass(DETOUR_ROWS as usize) + cost.pass(1));
    let mut best = Duration::MAX;
    for _ in 0..=STEPS {
        // The first of them follows what was measured before.
        let pair = time_of_rows(context, token, DETOUR_ROWS, |_| true)? + time_of_rows(context, token, 1, |_| true)?;
        best = best.min(pair);
    }
    Ok(best.saturating_sub(plain) / 2)
}

/// What one step of more rows costs among steps of one, beside its own time.
fn detour<C: Context>(context: &mut C, token: Token, cost: &StepCost) -> Result<Duration, String> {
    let plain = Duration::from_secs_f64(cost.pass(DETOUR_ROWS as usize) + 3.0 * cost.pass(1));
    let mut best = Duration::MAX;
    for _ in 0..STEPS {
        for _ in 0..2 * STEPS {
            time_of_rows(context, token, 1, |_| true)?;
        }
        let mut time = time_of_rows(context, token, DETOUR_ROWS, |_| true)?;
        for _ in 0..3 {
            time += time_of_rows(context, token, 1, |_| true)?;
        }
        best = best.min(time);
    }
    Ok(best.saturating_sub(plain))
}

/// What a step takes longer behind some tokens than behind none.
fn measure_depth<C: Context>(context: &mut C, token: Token, cost: &mut StepCost) -> Result<(), String> {
    let room = context.n_ctx_seq().saturating_sub(STEPS as u32 * DEPTH_ROWS);
    let (n_most, chunk) = (DEPTH_MAX.min(room), context.n_batch().min(64));
    if context.n_batch() < DEPTH_ROWS || n_most < DEPTH_MIN {
        return Ok(());
    }
    let row = |pos: u32, output: bool| Row { token, pos, seq: 0, output };
    let (mut depth, start) = (0, Instant::now());
    let (mut first, mut last) = (Duration::MAX, Duration::ZERO);
    while depth < n_most && (depth < DEPTH_MIN || start.elapsed() < DEPTH_TIME) {
        let n = chunk.min(n_most - depth);
        let rows: Vec<Row> = (depth..depth + n).map(|pos| row(pos, false)).collect();
        last = time_of(context, &rows)?;
        first = if depth == 0 { last } else { first };
        depth += n;
    }
    if depth > chunk && depth.is_multiple_of(chunk) {
        cost.measure_depth(chunk, depth - chunk, last.as_secs_f64() - first.as_secs_f64());
    }
    let mut best = Duration::MAX;
    for n in 0..STEPS as u32 {
        let from = depth + n * DEPTH_ROWS;
        let rows: Vec<Row> = (from..from + DEPTH_ROWS).map(|pos| row(pos, true)).collect();
        best = best.min(time_of(context, &rows)?);
    }
    context.forget(0, 0);
    let longer = best.as_secs_f64() - cost.pass(DEPTH_ROWS as usize);
    cost.measure_depth(DEPTH_ROWS, depth, longer);
    Ok(())
}

/// Numbers of rows to measure, up to the most.
pub(super) fn probes(most: u32) -> impl Iterator<Item = u32> {
    StepCost::PROBES.into_iter().filter(move |n| *n < most).chain([most])
}

/// Decodes rows that are forgotten again.
fn time_of_rows<C: Context>(
    context: &mut C,
    token: Token,
    n_rows: u32,
    is_output: impl Fn(u32) -> bool,
) -> Result<Duration, String> {
    let rows: Vec<Row> = (0..n_rows).map(|pos| Row { token, pos, seq: 0, output: is_output(pos) }).collect();
    let time = time_of(context, &rows)?;
    context.forget(0, 0);
    Ok(time)
}

/// How much longer a step takes in which a sequence gets what another holds: copies are made with the next decode.
fn time_of_share<C: Context>(context: &mut C, token: Token, n_rows: u32) -> Result<Duration, String> {
    let rows: Vec<Row> = (0..n_rows).map(|pos| Row { token, pos, seq: 0, output: pos + 1 == n_rows }).collect();
    time_of(context, &rows)?;
    let next = |pos: u32| [Row { token, pos, seq: 1, output: true }];
    let start = Instant::now();
    let is_shared = context.share(0, 1, n_rows);
    let shared = if is_shared { time_of(context, &next(n_rows)).map(|_| start.elapsed()) } else { Ok(Duration::ZERO) };
    let plain = if is_shared { time_of(context, &next(n_rows + 1)) } else { Ok(Duration::ZERO) };
    context.forget(0, 0);
    context.forget(1, 0);
    Ok(shared?.saturating_sub(plain?))
}

fn time_of<C: Context>(context: &mut C, rows: &[Row]) -> Result<Duration, String> {
    let start = Instant::now();
    match context.decode(rows) {
        Ok(()) | Err(DecodeError::Aborted) => {}
        Err(DecodeError::NoKvSlot) => return Err("the KV cache has no room for the warm-up".into()),
        Err(DecodeError::Broken(reason)) => return Err(reason),
    }
    Ok(start.elapsed().max(Duration::from_micros(1)))
}
