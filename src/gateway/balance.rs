//! Which of several equal targets is asked first: the better of two taken by chance.
//!
//! # Design
//! Two choices rather than the best of all: many servers that all send to the target that looked best a moment ago bury it.
//! Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (2001).

use super::live::Live;
use super::route::Hop;
use super::{Caller, Gateway};

/// A target as the balance sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    hop: Hop,
    /// It would refuse at once.
    is_down: bool,
    /// Requests in flight, this one included, times the time that one takes.
    cost: f64,
}

/// In the order in which they are asked. `chance`: a number below its argument.
fn order(mut all: Vec<Candidate>, mut chance: impl FnMut(usize) -> usize) -> Vec<Hop> {
    all.sort_by(|a, b| a.is_down.cmp(&b.is_down).then(a.cost.total_cmp(&b.cost)));
    let n_up = all.iter().filter(|candidate| !candidate.is_down).count();
    if n_up > 2 {
        // They are sorted, so the better of the two is the one that stands before the other.
        let (one, other) = (chance(n_up), chance(n_up - 1));
        let first = one.min(if other >= one { other + 1 } else { other });
        all[..=first].rotate_right(1);
    } else if n_up == 2 && all[0].cost.total_cmp(&all[1].cost).is_eq() && chance(2) == 1 {
        all.swap(0, 1);
    }
    all.into_iter().map(|candidate| candidate.hop).collect()
}

impl Gateway {
    /// Puts equal targets into the order in which they are asked.
    pub(super) fn balance(&self, live: &Live, group: &mut Vec<Hop>, caller: &Caller) {
        if group.len() < 2 {
            return;
        }
        let owner = self.share_of(caller).1;
        let candidate = |hop: &Hop| match *hop {
            Hop::Home(idx) => {
                let engine = self.models.engine(idx);
                let is_down = engine.as_ref().is_none_or(|engine| engine.state().refusal().is_some());
                let (n, wait) = engine.map_or((0, 0.0), |it| (it.load().n_in_flight, it.wait(owner).as_secs_f64()));
                Candidate { hop: *hop, is_down, cost: f64::from(n + 1) * 1e-3 + wait }
            }
            Hop::Away(idx) => {
                let (is_down, cost) = live.upstreams.get(idx).map_or((true, 0.0), |upstream| upstream.standing());
                Candidate { hop: *hop, is_down, cost }
            }
        };
        *group = order(group.iter().map(candidate).collect(), |n| rand::random_range(0..n));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(costs: &[(bool, f64)]) -> Vec<Candidate> {
        let one = |(idx, (is_down, cost)): (usize, &(bool, f64))| Candidate {
            hop: Hop::Away(idx),
            is_down: *is_down,
            cost: *cost,
        };
        costs.iter().enumerate().map(one).collect()
    }

    fn ordered(costs: &[(bool, f64)], draws: &[usize]) -> Vec<usize> {
        let mut draws = draws.iter().copied();
        let hops = order(candidates(costs), |n| draws.next().expect("a draw").min(n - 1));
        hops.into_iter().map(|hop| if let Hop::Away(idx) = hop { idx } else { usize::MAX }).collect()
    }

    #[test]
    fn the_better_of_two_by_chance_goes_first_and_the_sick_last() {
        let four = [(false, 3.0), (false, 1.0), (true, 0.0), (false, 2.0)];
        assert_eq!(ordered(&four, &[0, 0]), [1, 3, 0, 2], "the first two of the sorted");
        assert_eq!(ordered(&four, &[2, 1]), [3, 1, 0, 2], "the second and the third");
        assert_eq!(ordered(&[(false, 2.0), (false, 1.0)], &[]), [1, 0], "of two, both are looked at");
        assert_eq!(ordered(&[(false, 1.0), (false, 1.0)], &[1]), [1, 0]);
        assert_eq!(ordered(&[(true, 1.0), (true, 0.0)], &[]), [1, 0]);
    }

    #[test]
    fn equals_share_alike_and_the_slowest_gets_least() {
        let mut counts = [0u32; 4];
        for _ in 0..4000 {
            let all = candidates(&[(false, 1.0), (false, 1.1), (false, 1.2), (false, 9.0)]);
            let first = order(all, |n| rand::random_range(0..n))[0];
            let Hop::Away(idx) = first else { unreachable!("all are") };
            counts[idx] += 1;
        }
        assert!(counts[0] > 1700 && counts[3] == 0, "{counts:?}: of two choices the worst never wins");
    }
}
