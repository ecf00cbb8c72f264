//! What was said in other answers, for drafts of those that say it again (after llama.cpp's `ngram-mod`).

use super::Token;
use super::reciter::{Entry, place};

/// Tokens behind which the next one is remembered. With fewer, any two answers of a kind would agree somewhere.
pub(super) const AGREE: usize = 6;
/// Entries of a pool, 8 bytes each: half a megabyte. A new one takes the place of what has the same hash.
const ENTRIES: usize = 1 << 16;

/// What tokens stood behind which, in answers of one partition.
#[derive(Debug)]
pub(in super::super) struct Pool {
    entries: Box<[Entry]>,
}

impl Default for Pool {
    fn default() -> Self {
        Self { entries: vec![Entry::NONE; ENTRIES].into_boxed_slice() }
    }
}

impl Pool {
    fn place(key: &[Token; AGREE]) -> (usize, u32) {
        let (at, tag) = place(key);
        (at % ENTRIES, tag)
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
}

#[cfg(test)]
mod tests {
    use super::super::guesses::UNKNOWN;
    use super::super::reciter::{AHEAD, Reciter};
    use super::*;

    /// Says the answer; what was foretold before each token, and with which odds.
    fn say(pool: &mut Pool, answer: &[Token]) -> Vec<(Vec<Token>, f64)> {
        let mut reciter = Reciter::new(AGREE, &UNKNOWN);
        let mut foretold = Vec::new();
        for n in 1..=answer.len() {
            foretold.push((reciter.ahead().unwrap_or_default().to_vec(), reciter.guesses.chances().first));
            reciter.follow(&answer[..n], |said| pool.next(said));
            pool.learn(&answer[..n]);
            assert!(reciter.n_held() <= 2 * (AHEAD + AGREE));
        }
        foretold
    }

    #[test]
    fn what_was_said_in_one_answer_is_foretold_in_another() {
        let mut pool = Pool::default();
        let answer: Vec<Token> = (100..400).collect();
        assert!(say(&mut pool, &answer).iter().all(|(ahead, _)| ahead.is_empty()));
        let again = say(&mut pool, &[&[7, 8][..], &answer].concat());
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
}
