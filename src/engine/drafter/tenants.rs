//! What is remembered of each partition's answers, for drafts of its next ones.
//!
//! **Invariant:** nothing crosses partitions: neither what was said, nor how often guesses of it were right, nor whether a model's
//! drafts paid. How fast an answer comes tells nothing of others' answers. A request that doesn't share its prefix takes no part.

use super::answers::Pool;
use super::guesses::{ByStreak, UNKNOWN};
use super::{Drafter, Recital, Trust};
use rustc_hash::FxHashMap;

/// Partitions whose answers are remembered, half a MiB each: 16 MiB.
const POOLS_MAX: usize = 32;
/// Partitions of which it is remembered what drafts came to, about half a KiB each.
const LATELY_MAX: usize = 1024;
/// One in so many requests asks early whether drafts of a model have become good, however bad they were before.
const CURIOUS: u32 = 16;

/// The partitions of a worker.
#[derive(Debug)]
pub(in super::super) struct Tenants {
    pools: Recent<Pool>,
    lately: Recent<Lately>,
}

impl Default for Tenants {
    fn default() -> Self {
        Self { pools: Recent::with_room(POOLS_MAX), lately: Recent::with_room(LATELY_MAX) }
    }
}

impl Tenants {
    /// For a request that begins.
    pub fn open(&mut self, partition: u64) -> &mut Lately {
        self.pools.open(partition);
        self.lately.open(partition)
    }

    /// For one that goes on; `None` where others took the room.
    pub fn pool(&mut self, partition: u64) -> Option<&mut Pool> {
        self.pools.of(partition)
    }

    /// As `pool`.
    pub fn lately(&mut self, partition: u64) -> Option<&mut Lately> {
        self.lately.of(partition)
    }
}

/// Something of each partition; that of the one that was not asked for longest makes room.
#[derive(Debug)]
struct Recent<T> {
    /// With the count of requests when it was last asked for.
    kept: FxHashMap<u64, (u64, T)>,
    most: usize,
    /// Requests that asked for one.
    n_asked: u64,
}

impl<T: Default> Recent<T> {
    fn with_room(most: usize) -> Self {
        Self { kept: FxHashMap::default(), most, n_asked: 0 }
    }

    fn open(&mut self, partition: u64) -> &mut T {
        if !self.kept.contains_key(&partition) && self.kept.len() >= self.most {
            let oldest = self.kept.iter().min_by_key(|(_, (used_at, _))| *used_at).map(|(partition, _)| *partition);
            oldest.and_then(|oldest| self.kept.remove(&oldest));
        }
        self.n_asked += 1;
        let (used_at, one) = self.kept.entry(partition).or_default();
        *used_at = self.n_asked;
        one
    }

    fn of(&mut self, partition: u64) -> Option<&mut T> {
        self.kept.get_mut(&partition).map(|(_, one)| one)
    }
}

/// How often drafts were right lately, of a partition's requests together: a new one begins with it.
#[derive(Debug, Clone)]
pub(in super::super) struct Lately {
    pub(super) prediction: ByStreak,
    pub(super) history: ByStreak,
    pub(super) majority: ByStreak,
    pub(super) answers: ByStreak,
    pub(super) corpus: ByStreak,
    /// What drafts beside the model.
    pub model: Trust,
    /// Requests that began.
    n_runs: u32,
}

impl Default for Lately {
    fn default() -> Self {
        Self {
            prediction: UNKNOWN,
            history: UNKNOWN,
            majority: UNKNOWN,
            answers: UNKNOWN,
            corpus: UNKNOWN,
            model: Trust::new(),
            n_runs: 0,
        }
    }
}

impl Lately {
    /// What a request came to.
    pub fn learn(&mut self, drafter: &Drafter) {
        if let Some(prediction) = &drafter.prediction {
            prediction.follower.guesses.teach(&mut self.prediction);
        }
        if let Some(history) = &drafter.history {
            history.last.guesses.teach(&mut self.history);
            history.majority.guesses.teach(&mut self.majority);
        }
        if let Some(answers) = &drafter.answers {
            answers.guesses.teach(&mut self.answers);
        }
        if let Some(Recital { reciter, .. }) = &drafter.corpus {
            reciter.guesses.teach(&mut self.corpus);
        }
    }

    /// With what a new request begins to believe what drafts beside the model.
    pub(super) fn trust(&mut self) -> Trust {
        self.n_runs = self.n_runs.wrapping_add(1);
        if self.n_runs.is_multiple_of(CURIOUS) { self.model.curious_heir() } else { self.model.heir() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Token;
    use super::*;

    /// Says the answer; the odds of what was foretold before each token, none where nothing was.
    fn say(tenants: &mut Tenants, partition: u64, answer: &[Token]) -> Vec<Option<f64>> {
        let mut drafter = Drafter::new(None, true).unwrap();
        drafter.begin(Some(tenants.open(partition)), false);
        let mut foretold = Vec::new();
        for n in 1..=answer.len() {
            foretold.push(drafter.propose(&answer[..n - 1]).map(|proposal| proposal.chances.first));
            drafter.follow(&answer[..n], 0);
            drafter.share(&answer[..n], 1, tenants.pool(partition));
        }
        tenants.lately(partition).unwrap().learn(&drafter);
        foretold
    }

    #[test]
    fn what_was_said_is_foretold_to_nobody_else() {
        let mut tenants = Tenants::default();
        let answer: Vec<Token> = (100..400).collect();
        assert!(say(&mut tenants, 1, &answer).iter().all(Option::is_none));
        assert!(say(&mut tenants, 2, &answer).iter().all(Option::is_none), "another's");
        assert!(say(&mut tenants, 1, &answer).iter().any(Option::is_some));
    }

    #[test]
    fn odds_are_a_partitions_own() {
        let mut tenants = Tenants::default();
        let answer: Vec<Token> = (100..200).collect();
        for turn in 0..20 {
            // The seventh token is another each time in the one, the same in the other.
            let wrong: Vec<Token> = answer.chunks(6).flat_map(|run| [run, &[1000 + turn]].concat()).collect();
            say(&mut tenants, 1, &wrong);
            say(&mut tenants, 2, &answer);
        }
        let mut odds = |partition| say(&mut tenants, partition, &answer)[6].unwrap();
        let (bad, good) = (odds(1), odds(2));
        assert!(bad < 0.2 && good > 0.9, "{bad}, {good}");
    }

    #[test]
    fn a_model_that_drafts_badly_for_one_is_asked_by_others() {
        let mut tenants = Tenants::default();
        let of_one = tenants.open(1);
        (0..100).for_each(|_| of_one.model.take(1, 0));
        of_one.model.sleep();
        let begin = |tenants: &mut Tenants, partition: Option<u64>| {
            let mut drafter = Drafter::new(None, true).unwrap();
            drafter.begin(partition.map(|partition| tenants.open(partition)), true);
            drafter.model.unwrap().is_awake()
        };
        assert!(!begin(&mut tenants, Some(1)));
        assert!(begin(&mut tenants, Some(2)) && begin(&mut tenants, None));
    }

    #[test]
    fn the_one_that_was_not_asked_for_longest_makes_room() {
        let mut tenants = Tenants::default();
        for partition in 0..=LATELY_MAX as u64 {
            tenants.open(partition);
            tenants.open(0);
        }
        assert_eq!((tenants.pools.kept.len(), tenants.lately.kept.len()), (POOLS_MAX, LATELY_MAX));
        assert!(tenants.lately(0).is_some() && tenants.lately(1).is_none() && tenants.lately(2).is_some());
        let last = LATELY_MAX as u64;
        assert!(tenants.pool(0).is_some() && tenants.pool(2).is_none() && tenants.pool(last).is_some());
    }
}
