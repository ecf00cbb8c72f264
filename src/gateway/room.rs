//! Whether a model may be loaded beside the others: the arithmetic only.

use std::time::Instant;

/// A model that takes memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub idx: usize,
    pub n_bytes: u64,
    /// It is being unloaded; its memory is as good as free.
    pub is_closing: bool,
    /// It is loaded, nobody needs it now, and it can be loaded again.
    pub is_idle: bool,
    pub last_used: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Room {
    There,
    /// Once those that are leaving have left.
    Wait,
    /// Once these have left too.
    Evict(Vec<usize>),
    /// Not even then.
    None,
}

/// Room for `wanted` more bytes, under a cap on all loaded models together and within what the machine has `free`.
/// Of idle models those that were used longest ago go first, and none goes where it would not help.
pub(super) fn room(wanted: u64, cap: Option<u64>, free: Option<u64>, mut held: Vec<Held>) -> Room {
    let used = held.iter().map(|held| held.n_bytes).fold(0, u64::saturating_add);
    let fits = |given_back: u64| {
        cap.is_none_or(|cap| used.saturating_sub(given_back).saturating_add(wanted) <= cap)
            && free.is_none_or(|free| wanted <= free.saturating_add(given_back))
    };
    if wanted == 0 || fits(0) {
        return Room::There;
    }
    let mut given_back =
        held.iter().filter(|held| held.is_closing).map(|held| held.n_bytes).fold(0, u64::saturating_add);
    if fits(given_back) {
        return Room::Wait;
    }
    held.retain(|held| held.is_idle && held.n_bytes > 0);
    held.sort_by_key(|held| held.last_used);
    let mut evicted = Vec::new();
    for idle in held {
        given_back = given_back.saturating_add(idle.n_bytes);
        evicted.push(idle.idx);
        if fits(given_back) {
            return Room::Evict(evicted);
        }
    }
    Room::None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn held(models: &[(u64, bool, bool, u64)]) -> Vec<Held> {
        let start = Instant::now();
        let one = |(idx, &(n_bytes, is_closing, is_idle, used))| Held {
            idx,
            n_bytes,
            is_closing,
            is_idle,
            last_used: start + Duration::from_secs(used),
        };
        models.iter().enumerate().map(one).collect()
    }

    #[test]
    fn without_a_cap_there_is_room() {
        assert_eq!(room(1 << 60, None, None, held(&[(1 << 60, false, false, 0)])), Room::There);
        assert_eq!(room(0, Some(1), Some(0), held(&[(5, false, false, 0)])), Room::There);
    }

    #[test]
    fn the_longest_unused_idle_models_leave_and_no_more_than_needed() {
        let models = [(4, false, true, 3), (4, false, true, 1), (4, false, true, 2)];
        assert_eq!(room(4, Some(12), None, held(&models)), Room::Evict(vec![1]));
        assert_eq!(room(8, Some(12), None, held(&models)), Room::Evict(vec![1, 2]));
        assert_eq!(room(12, Some(12), None, held(&models)), Room::Evict(vec![1, 2, 0]));
        assert_eq!(room(13, Some(12), None, held(&models)), Room::None);
        assert_eq!(room(4, Some(16), None, held(&models)), Room::There);
    }

    #[test]
    fn models_at_work_stay_and_leaving_ones_are_waited_for() {
        assert_eq!(room(4, Some(8), None, held(&[(4, false, false, 0), (4, true, false, 0)])), Room::Wait);
        assert_eq!(room(4, Some(8), None, held(&[(4, false, false, 0), (4, false, false, 1)])), Room::None);
        // The idle one alone would not be enough, so it is left in peace.
        assert_eq!(room(8, Some(8), None, held(&[(4, false, false, 0), (4, false, true, 1)])), Room::None);
    }

    #[test]
    fn the_machine_counts_too() {
        assert_eq!(room(4, None, Some(3), held(&[(4, false, true, 0)])), Room::Evict(vec![0]));
        assert_eq!(room(4, Some(100), Some(3), held(&[(4, false, false, 0)])), Room::None);
    }
}
