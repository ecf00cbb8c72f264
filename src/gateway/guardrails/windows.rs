//! Where a long text is cut for a model that takes short ones.

use std::ops::Range;

/// Tokens of one window.
pub(super) type Window = Range<usize>;

/// Neighbours share this part of a window.
const SHARED_PART: usize = 4;

/// Cuts `n` tokens into windows of at most `n_max`: full ones but for a text that needs only one, the last at the end.
/// `None`: more than `most` would be needed.
pub(super) fn windows(n: usize, n_max: usize, most: usize) -> Option<Vec<Window>> {
    if n == 0 {
        return Some(Vec::new());
    }
    if n_max == 0 || most == 0 {
        return None;
    }
    if n <= n_max {
        return Some(std::iter::once(0..n).collect());
    }
    let step = n_max - n_max / SHARED_PART;
    let n_windows = 1 + (n - n_max).div_ceil(step);
    let from = |i: usize| (i * step).min(n - n_max);
    (n_windows <= most).then(|| (0..n_windows).map(|i| from(i)..from(i) + n_max).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn short_texts_are_one_window_and_long_ones_end_with_a_full_one() {
        assert_eq!(windows(0, 8, 0), Some(vec![]));
        assert_eq!(windows(8, 8, 1), Some(std::iter::once(0..8).collect()));
        assert_eq!(windows(9, 8, 2), Some(vec![0..8, 1..9]));
        assert_eq!(windows(20, 8, 3), Some(vec![0..8, 6..14, 12..20]));
        assert_eq!(windows(21, 8, 4), Some(vec![0..8, 6..14, 12..20, 13..21]));
        assert_eq!(windows(3, 1, 3), Some(vec![0..1, 1..2, 2..3]));
        assert_eq!((windows(21, 8, 3), windows(1, 8, 0), windows(1, 0, 9)), (None, None, None), "too many, or no room");
    }

    proptest! {
        /// Every token is in a window, and every run of a quarter is whole in one.
        #[test]
        fn nothing_is_left_out(n in 1usize..3000, n_max in 1usize..600) {
            let all = windows(n, n_max, usize::MAX).expect("no bound");
            prop_assert_eq!(all.first().map(|first| first.start), Some(0));
            prop_assert_eq!(all.last().map(|last| last.end), Some(n));
            for pair in all.windows(2) {
                prop_assert!(pair[1].start > pair[0].start);
                prop_assert!(pair[1].start + n_max / SHARED_PART <= pair[0].end);
            }
            prop_assert!(all.iter().all(|window| window.len() == n_max.min(n)));
        }
    }
}
