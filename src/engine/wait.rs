//! How long a request that comes now would wait for a slot. Arithmetic only.

use std::collections::BinaryHeap;
use std::time::Duration;

/// What is known when it comes.
#[derive(Debug)]
pub(super) struct Line {
    pub n_slots: u32,
    /// Seconds since each running generation got its slot.
    pub running: Vec<f64>,
    /// Requests that get a slot before it does.
    pub n_ahead: u32,
    /// Mean seconds that a generation keeps its slot; 0: none has ended yet.
    pub mean_slot_s: f64,
}

/// Slots become free one after the other, each after the mean time of a generation; one that took longer already is taken
/// to be about to end. While nothing is known, a generation takes twice as long as those that run have by now.
pub(super) fn expected(line: &Line) -> Duration {
    let n_running = line.running.len();
    if n_running < line.n_slots as usize && line.n_ahead == 0 {
        return Duration::ZERO;
    }
    let mean = if line.mean_slot_s > 0.0 {
        line.mean_slot_s
    } else {
        2.0 * line.running.iter().sum::<f64>() / n_running.max(1) as f64
    };
    let n_free = (line.n_slots as usize).saturating_sub(n_running);
    let left = line.running.iter().map(|since| (mean - since).max(0.0)).chain(std::iter::repeat_n(0.0, n_free));
    // The soonest on top.
    let mut ends: BinaryHeap<std::cmp::Reverse<Micros>> = left.map(|s| std::cmp::Reverse(Micros::of(s))).collect();
    // No end is later than a mean from now, so each slot ends once before any ends twice: whole rounds need no counting, and a
    // long line costs no more than a short one.
    let n_slots = u32::try_from(ends.len()).unwrap_or(u32::MAX).max(1);
    let (n_rounds, n_more) = (u64::from(line.n_ahead / n_slots), line.n_ahead % n_slots);
    let mean = Micros::of(mean).0;
    for _ in 0..n_more {
        let Some(std::cmp::Reverse(Micros(at))) = ends.pop() else { break };
        ends.push(std::cmp::Reverse(Micros(at + mean)));
    }
    let last = |std::cmp::Reverse(Micros(at))| Duration::from_micros(at.saturating_add(n_rounds.saturating_mul(mean)));
    ends.pop().map_or(Duration::ZERO, last)
}

/// Requests before one that comes now, of somebody who has `n_own` waiting beside `n_others` of `n_owners` others: all
/// take turns.
pub(super) fn ahead(n_own: u32, n_others: u32, n_owners: u32) -> u32 {
    n_own + n_others.min((n_own + 1).saturating_mul(n_owners))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Micros(u64);

impl Micros {
    fn of(seconds: f64) -> Self {
        Self(u64::try_from(Duration::try_from_secs_f64(seconds).unwrap_or_default().as_micros()).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(n_slots: u32, running: &[f64], n_ahead: u32, mean_slot_s: f64) -> f64 {
        expected(&Line { n_slots, running: running.to_vec(), n_ahead, mean_slot_s }).as_secs_f64()
    }

    #[test]
    fn a_free_slot_is_no_wait_and_each_request_ahead_is_one_more_end() {
        assert_eq!(wait(2, &[0.5], 0, 1.0), 0.0);
        assert_eq!(wait(2, &[0.25, 0.5], 0, 1.0), 0.5);
        assert_eq!(wait(2, &[0.25, 0.5], 1, 1.0), 0.75);
        assert_eq!(wait(2, &[0.25, 0.5], 2, 1.0), 1.5);
        assert_eq!(wait(2, &[9.0, 9.0], 4, 1.0), 2.0, "whoever is late is about to end");
        assert_eq!(wait(4, &[], 4, 1.0), 1.0, "slots that are about to be taken");
    }

    #[test]
    fn a_line_of_many_rounds_is_each_end_after_the_other() {
        for n_ahead in 0..40 {
            let mut ends = [0.25, 0.5, 0.75];
            for _ in 0..n_ahead {
                ends.sort_by(f64::total_cmp);
                ends[0] += 1.0;
            }
            ends.sort_by(f64::total_cmp);
            assert_eq!(wait(3, &[0.25, 0.5, 0.75], n_ahead, 1.0), ends[0], "{n_ahead}");
        }
        assert_eq!(wait(1, &[1.0], u32::MAX, 1.0), f64::from(u32::MAX));
    }

    #[test]
    fn while_nothing_has_ended_what_runs_tells() {
        assert_eq!(wait(2, &[3.0, 1.0], 0, 0.0), 1.0);
        assert_eq!(wait(1, &[], 1, 0.0), 0.0);
    }

    #[test]
    fn owners_take_turns() {
        assert_eq!(ahead(0, 0, 0), 0);
        assert_eq!(ahead(3, 0, 0), 3);
        assert_eq!(ahead(0, 200, 1), 1, "a light key waits for one of the heavy one's");
        assert_eq!(ahead(2, 200, 3), 11);
        assert_eq!(ahead(5, 2, 2), 7);
    }
}
