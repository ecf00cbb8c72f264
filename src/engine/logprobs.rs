//! Log-probabilities of a step, computed only when asked for.

use super::backend::Token;

/// Natural log-probability that stands for minus infinity, which JSON can't write.
const FLOOR: f32 = -9999.0;

/// Values looked at together, so that the compiler makes vectors of them.
const LANES: usize = 16;
/// Most values whose sum is kept in single precision.
const SUM_MAX: usize = 4096;

/// Log-softmax of `logits` with `bias` added: the value of `token`, and the `k` best tokens, best first.
///
/// Before temperature and truncation, so that greedy sampling shows its choice first.
pub fn of_row(logits: &[f32], bias: &[(Token, f32)], token: Token, k: usize) -> (f32, Vec<(Token, f32)>) {
    let biased = biased(logits, bias);
    let parts = parts(logits, &biased);
    let max = parts.iter().map(|(_, part)| greatest(part)).fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = parts.iter().map(|(_, part)| sum_exp(part, max)).sum();
    let log_sum = sum.ln();
    let value = |logit: f32| {
        let value = (f64::from(logit - max) - log_sum) as f32;
        if value.is_finite() { value.clamp(FLOOR, 0.0) } else { FLOOR }
    };
    let logit = |index: usize| match biased.binary_search_by_key(&index, |(at, _)| *at) {
        Ok(at) => Some(biased[at].1),
        Err(_) => logits.get(index).copied(),
    };
    let own = usize::try_from(token).ok().and_then(logit).map_or(FLOOR, value);
    (own, top(&parts, k).into_iter().map(|(id, logit)| (id, value(logit))).collect())
}

/// Places and logits of the tokens with a bias, by rising place, each once.
fn biased(logits: &[f32], bias: &[(Token, f32)]) -> Vec<(usize, f32)> {
    let place = |(id, value): &(Token, f32)| usize::try_from(*id).ok().map(|at| (at, *value));
    let mut biases: Vec<(usize, f32)> = bias.iter().filter_map(place).filter(|(at, _)| *at < logits.len()).collect();
    biases.sort_by_key(|(at, _)| *at);
    let mut biased: Vec<(usize, f32)> = Vec::with_capacity(biases.len());
    for (at, value) in biases {
        match biased.last_mut() {
            Some((last, logit)) if *last == at => *logit += value,
            _ => biased.push((at, logits[at] + value)),
        }
    }
    biased
}

/// The row as a bias leaves it, without a copy: its parts and where each begins.
fn parts<'a>(logits: &'a [f32], biased: &'a [(usize, f32)]) -> Vec<(usize, &'a [f32])> {
    let mut parts = Vec::with_capacity(2 * biased.len() + 1);
    let mut first = 0;
    for (at, logit) in biased {
        parts.push((first, &logits[first..*at]));
        parts.push((*at, std::slice::from_ref(logit)));
        first = at + 1;
    }
    parts.push((first, &logits[first..]));
    parts
}

/// NaN counts as nothing.
fn greatest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// The sum of the exponentials of what the values are above `max`.
fn sum_exp(values: &[f32], max: f32) -> f64 {
    let sum = |values: &[f32]| {
        let mut lanes = [0.0; LANES];
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane += exp(value - max);
            }
        }
        let lanes = lanes.iter().map(|lane| f64::from(*lane));
        lanes.chain(rest.iter().map(|value| f64::from(exp(value - max)))).sum::<f64>()
    };
    values.chunks(SUM_MAX).map(sum).sum()
}

/// e to the `x` for `x` up to 0, without a branch, so that several are computed at once: within 2e-7 of the value's size down
/// to -87, and for what lies below, and NaN, as good as nothing.
fn exp(x: f32) -> f32 {
    /// Added to a small number, it leaves its nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first with so few digits that its multiples are exact.
    const LN_2: (f32, f32) = (355.0 / 512.0, -2.121_944_4e-4);
    let x = if x > -87.0 { x } else { -87.0 };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2.0 - n * LN_2.1;
    // Cephes' expf.
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_6e-1;
    let p = p * r + 0.5;
    let power_of_2 = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    (p * r * r + r + 1.0) * power_of_2
}

/// The `k` largest, best first; k is small, so a sorted buffer beats a heap.
fn top(parts: &[(usize, &[f32])], k: usize) -> Vec<(Token, f32)> {
    let mut best: Vec<(Token, f32)> = Vec::with_capacity(k + 1);
    if k == 0 {
        return best;
    }
    for (start, part) in parts {
        for (first, chunk) in (*start..).step_by(LANES).zip(part.chunks(LANES)) {
            // Seldom any, once there are k.
            let beats = |worst: f32| chunk.iter().fold(false, |any, logit| any | (*logit > worst));
            if best.get(k - 1).is_none_or(|(_, worst)| beats(*worst)) {
                (first..).zip(chunk).for_each(|(at, logit)| insert(&mut best, k, at, *logit));
            }
        }
    }
    best
}

fn insert(best: &mut Vec<(Token, f32)>, k: usize, at: usize, logit: f32) {
    if logit.is_nan() || best.get(k - 1).is_some_and(|(_, worst)| logit <= *worst) {
        return;
    }
    let place = best.partition_point(|(_, other)| *other >= logit);
    best.insert(place, (Token::try_from(at).unwrap_or(Token::MAX), logit));
    best.truncate(k);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_are_a_distribution_and_the_best_come_first() {
        let (own, best) = of_row(&[1.0, 3.0, 2.0, f32::NEG_INFINITY], &[], 2, 4);
        let ids: Vec<_> = best.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [1, 2, 0, 3]);
        assert!((best.iter().map(|(_, value)| value.exp()).sum::<f32>() - 1.0).abs() < 1e-5);
        assert!((own - best[1].1).abs() < 1e-6);
        assert_eq!(best[3].1, FLOOR);
    }

    #[test]
    fn a_bias_counts() {
        let (own, best) = of_row(&[0.0, 0.0], &[(1, 100.0)], 1, 1);
        assert_eq!((own, best[0].0), (0.0, 1));
        assert_eq!(of_row(&[0.0, 0.0], &[], 5, 0), (FLOOR, Vec::new()));
    }

    /// As `of_row`, in the plainest way.
    fn of_copy(logits: &[f32], bias: &[(Token, f32)], token: Token, k: usize) -> (f32, Vec<(Token, f32)>) {
        let mut row = logits.to_vec();
        for (id, value) in bias {
            if let Some(logit) = usize::try_from(*id).ok().and_then(|at| row.get_mut(at)) {
                *logit += value;
            }
        }
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let log_sum = row.iter().map(|logit| f64::from(logit - max).exp()).sum::<f64>().ln();
        let value = |logit: f32| {
            let value = (f64::from(logit - max) - log_sum) as f32;
            if value.is_finite() { value.clamp(FLOOR, 0.0) } else { FLOOR }
        };
        let mut order: Vec<(Token, f32)> = (0..).zip(row.iter().copied()).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1));
        let own = usize::try_from(token).ok().and_then(|at| row.get(at)).map_or(FLOOR, |logit| value(*logit));
        (own, order.into_iter().take(k).map(|(id, logit)| (id, value(logit))).collect())
    }

    fn assert_as_of_copy(logits: &[f32], bias: &[(Token, f32)], token: Token, k: usize) {
        let ((own, best), (own_copy, best_copy)) = (of_row(logits, bias, token, k), of_copy(logits, bias, token, k));
        assert!((own - own_copy).abs() < 1e-5, "{own} for {own_copy}");
        assert_eq!(best.len(), best_copy.len());
        for ((id, value), (id_copy, value_copy)) in best.iter().zip(&best_copy) {
            assert_eq!(id, id_copy);
            assert!((value - value_copy).abs() < 1e-5, "{value} for {value_copy}");
        }
    }

    #[test]
    fn biases_count_without_a_copy() {
        let row: Vec<f32> = (0..1000_u16).map(|at| f32::from(at * 37 % 101) * 0.3 - 12.0).collect();
        // Places at both ends, side by side, outside, one twice, and the best forbidden.
        let forbidden = (0..1000).filter(|at| at * 37 % 101 == 100).map(|at| (at, f32::NEG_INFINITY));
        let mut bias = vec![(999, 30.0), (0, -3.0), (7, 2.5), (8, 40.0), (7, 1.5), (-1, 5.0), (1000, 5.0)];
        bias.extend(forbidden);
        for token in [0, 7, 8, 9, 30, 999, -1, 1000] {
            assert_as_of_copy(&row, &bias, token, 12);
        }
        // What a forbidden one had is not left of the sum: all others together are far below it.
        let mut row = vec![0.0; 64];
        row[5] = 80.0;
        assert_as_of_copy(&row, &[(5, f32::NEG_INFINITY)], 6, 3);
    }

    #[test]
    fn the_exponential_is_that_of_the_standard_library() {
        for x in (0..87_000_u32).map(|at| -(at as f32) / 1000.0) {
            let (own, right) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((own / right - 1.0).abs() < 2e-7, "{own} for e^{x}");
        }
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(f32::NAN) < 1e-37);
        assert_eq!(exp(0.0), 1.0);
    }

    proptest! {
        #[test]
        fn any_row_and_bias_come_out_as_of_a_copy(
            row in prop::collection::vec(prop_oneof![9 => -30.0..30.0_f32, 1 => Just(f32::NEG_INFINITY)], 0..200),
            bias in prop::collection::vec((-2..210, prop_oneof![-9.0..9.0_f32, Just(f32::NEG_INFINITY)]), 0..20),
            token in -2..210,
            k in 0..25_usize,
        ) {
            assert_as_of_copy(&row, &bias, token, k);
        }
    }
}
