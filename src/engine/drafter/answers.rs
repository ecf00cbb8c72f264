//! What was said in other answers, for drafts of those that say it again (after llama.cpp's `ngram-mod`).
//!
//! **Invariant:** nothing is found across partitions, odds neither: how fast an answer comes tells nothing of others'
//! answers. A request that doesn't share its prefix takes no part.

use super::Token;
use super::guesses::{ByStreak, UNKNOWN};
use super::reciter::{Entry, Reciter, place};
use rustc_hash::FxHashMap;

/// Tokens behind which the next one is remembered. With fewer, any two answers of a kind would agree somewhere.
const AGREE: usize = 6;
/// Entries of a pool, 8 bytes each: half a megabyte. A new one takes the place of what has the same hash.
const ENTRIES: usize = 1 << 16;
/// Pools of a worker, so 16 MiB; that of the partition that was not asked for the longest time makes room.
const POOLS_MAX: usize = 32;

/// What tokens stood behind which, in answers of one partition.
#[derive(Debug)]
pub(in super::super) struct Pool {
    entries: Box<[Entry]>,
    odds: ByStreak,
    /// Counts the requests of all pools when it was last asked for.
    used_at: u64,
}

impl Pool {
    fn new() -> Self {
        let entries = vec![Entry::NONE; ENTRIES].into_boxed_slice();
        Self { entries, odds: UNKNOWN, used_at: 0 }
    }

    fn place(key: &[Token; AGREE]) -> (usize, u32) {
        let (at, tag) = place(key);
        (at % ENTRIES, tag)
    }

    /// A way through what is known here.
    pub fn reciter(&self) -> Reciter {
        Reciter::new(AGREE, &self.odds)
    }

    /// What comes behind `said`.
    pub fn next(&self, said: &[Token]) -> Option<Token> {
        let (at, tag) = Self::place(said.last_chunk()?);
        let entry = self.entries[at];
        (entry.next >= 0 && entry.tag == tag).then_some(entry.next)
    }

    /// Takes in the last token of an answer.
    pub fn learn(&mut self, answer: &[Token]) {
        let Some((next, before)) = answer.split_last() else { return };
        if let Some(key) = before.last_chunk() {
            let (at, tag) = Self::place(key);
            self.entries[at] = Entry { tag, next: *next };
        }
    }

    /// What an answer's guesses came to.
    pub fn learn_odds(&mut self, reciter: &Reciter) {
        reciter.guesses.teach(&mut self.odds);
    }
}

/// The pools of a worker.
#[derive(Debug, Default)]
pub(in super::super) struct Pools {
    /// By partition; at most `POOLS_MAX`.
    pools: FxHashMap<u64, Pool>,
    /// Requests that asked for one.
    n_asked: u64,
}

impl Pools {
    /// For a request that begins.
    pub fn open(&mut self, partition: u64) -> &mut Pool {
        if !self.pools.contains_key(&partition) && self.pools.len() >= POOLS_MAX {
            let oldest = self.pools.iter().min_by_key(|(_, pool)| pool.used_at).map(|(partition, _)| *partition);
            oldest.and_then(|oldest| self.pools.remove(&oldest));
        }
        self.n_asked += 1;
        let pool = self.pools.entry(partition).or_insert_with(Pool::new);
        pool.used_at = self.n_asked;
        pool
    }

    /// For one that goes on; `None` where others took the room.
    pub fn of(&mut self, partition: u64) -> Option<&mut Pool> {
        self.pools.get_mut(&partition)
    }
}

#[cfg(test)]
mod tests {
    use super::super::reciter::AHEAD;
    use super::*;

    /// Says the answer; what was foretold before each token, and with which odds.
    fn say(pools: &mut Pools, partition: u64, answer: &[Token]) -> Vec<(Vec<Token>, f64)> {
        let mut reciter = pools.open(partition).reciter();
        let mut foretold = Vec::new();
        for n in 1..=answer.len() {
            foretold.push((reciter.ahead().unwrap_or_default().to_vec(), reciter.guesses.chances().first));
            let pool = pools.of(partition).unwrap();
            reciter.follow(&answer[..n], |said| pool.next(said));
            pool.learn(&answer[..n]);
            assert!(reciter.n_held() <= 2 * (AHEAD + AGREE));
        }
        pools.of(partition).unwrap().learn_odds(&reciter);
        foretold
    }

    #[test]
    fn what_was_said_in_one_answer_is_foretold_in_another_of_its_partition_alone() {
        let mut pools = Pools::default();
        let answer: Vec<Token> = (100..400).collect();
        assert!(say(&mut pools, 1, &answer).iter().all(|(ahead, _)| ahead.is_empty()));
        assert!(say(&mut pools, 2, &answer).iter().all(|(ahead, _)| ahead.is_empty()), "another's");
        let again = say(&mut pools, 1, &[&[7, 8][..], &answer].concat());
        assert!(again[..2 + AGREE].iter().all(|(ahead, _)| ahead.is_empty()));
        let mut n_whole = 0;
        for (n, (ahead, _)) in again.iter().enumerate().skip(2 + AGREE) {
            let expected = &answer[n - 2..(n - 2 + AHEAD).min(300)];
            assert!(expected.starts_with(ahead), "after {n}: {ahead:?}");
            n_whole += usize::from(ahead == expected);
        }
        // Of 300 entries one or the other has the place of another.
        assert!(n_whole > 150, "{n_whole} of 292");
        assert!(again[100].1 > 0.9 && again[2 + AGREE].1 <= 0.5);
    }

    #[test]
    fn odds_are_a_partitions_own() {
        let mut pools = Pools::default();
        let answer: Vec<Token> = (100..200).collect();
        for turn in 0..20 {
            // The seventh token is another each time in the one, the same in the other.
            let wrong: Vec<Token> = answer.chunks(AGREE).flat_map(|run| [run, &[1000 + turn]].concat()).collect();
            say(&mut pools, 1, &wrong);
            say(&mut pools, 2, &answer);
        }
        let mut odds = |partition| say(&mut pools, partition, &answer)[AGREE].1;
        let (bad, good) = (odds(1), odds(2));
        assert!(bad < 0.2 && good > 0.9, "{bad}, {good}");
    }

    #[test]
    fn the_pool_that_was_not_asked_for_longest_makes_room() {
        let mut pools = Pools::default();
        for partition in 0..=POOLS_MAX as u64 {
            pools.open(partition);
            pools.open(0);
        }
        assert_eq!(pools.pools.len(), POOLS_MAX);
        assert!(pools.of(0).is_some() && pools.of(1).is_none() && pools.of(2).is_some());
    }
}
