//! Log-probabilities of a step, computed only when asked for.

use super::backend::Token;

/// Natural log-probability that stands for minus infinity, which JSON can't write.
const FLOOR: f32 = -9999.0;

/// Log-softmax of `logits` with `bias` added: the value of `token`, and the `k` best tokens, best first.
///
/// Before temperature and truncation, so that greedy sampling shows its choice first.
pub fn of_row(logits: &[f32], bias: &[(Token, f32)], token: Token, k: usize) -> (f32, Vec<(Token, f32)>) {
    let biased: Vec<f32>;
    let logits = if bias.is_empty() {
        logits
    } else {
        let mut row = logits.to_vec();
        for (id, value) in bias {
            if let Some(logit) = usize::try_from(*id).ok().and_then(|index| row.get_mut(index)) {
                *logit += value;
            }
        }
        biased = row;
        &biased
    };
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    let log_sum = sum.ln();
    let value = |logit: f32| {
        let value = (f64::from(logit - max) - log_sum) as f32;
        if value.is_finite() { value.clamp(FLOOR, 0.0) } else { FLOOR }
    };
    let own = usize::try_from(token).ok().and_then(|index| logits.get(index)).map_or(FLOOR, |logit| value(*logit));
    (own, top(logits, k).into_iter().map(|(id, logit)| (id, value(logit))).collect())
}

/// The `k` largest, best first; k is small, so a sorted buffer beats a heap.
fn top(logits: &[f32], k: usize) -> Vec<(Token, f32)> {
    let mut best: Vec<(Token, f32)> = Vec::with_capacity(k + 1);
    for (id, logit) in (0..).zip(logits.iter().copied()) {
        if best.len() == k && best.last().is_none_or(|(_, worst)| logit <= *worst) {
            continue;
        }
        let at = best.partition_point(|(_, other)| *other >= logit);
        best.insert(at, (id, logit));
        best.truncate(k);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
