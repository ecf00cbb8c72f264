//! A text that the answer may repeat, and its way through it.

use super::guesses::Guesses;
use super::{AGREE, Token};
use rustc_hash::FxHashMap;

/// Tokens that are looked for.
type Key = [Token; AGREE];

/// Continuations of a key that are told apart, as in llama.cpp's `ngram-map-k4v`; of more only the number is known.
const BRANCHES_MAX: usize = 4;
/// A continuation must have come so many times as often as all others together: llama.cpp's bound too.
const CLEAR: u32 = 2;

/// What stands behind each run of `AGREE` tokens of a text.
///
/// **Bound:** an entry for each token that is learnt, which the caller bounds.
#[derive(Debug, Default)]
pub(super) struct Index {
    places: FxHashMap<Key, Place>,
    /// Of keys that were followed by different tokens, how often by which.
    branches: FxHashMap<Key, Branches>,
    /// Tokens of the text that are in the index.
    n_indexed: usize,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    /// Behind the key, where it stood last.
    behind: u32,
    /// Times that it stood somewhere, as long as the same token followed.
    n: u32,
}

#[derive(Debug, Default)]
struct Branches {
    /// Last places of one next token each, and how often it came.
    by_next: [Option<Place>; BRANCHES_MAX],
    /// Times that still others came.
    n_others: u32,
}

impl Branches {
    /// The key stood before `behind` another `n` times.
    fn count(&mut self, text: &[Token], Place { behind, n }: Place) {
        let next = text.get(behind as usize);
        let is_same = |place: &Place| text.get(place.behind as usize) == next;
        let known = self.by_next.iter_mut().find(|place| place.as_ref().is_none_or(is_same));
        match known {
            Some(place) => *place = Some(Place { behind, n: place.map_or(0, |place| place.n).saturating_add(n) }),
            None => self.n_others = self.n_others.saturating_add(n),
        }
    }

    fn majority(&self) -> Option<usize> {
        let places = || self.by_next.iter().flatten();
        let most = places().max_by_key(|place| place.n)?;
        let n_all = places().map(|place| place.n).fold(self.n_others, u32::saturating_add);
        let n_rest = n_all - most.n;
        (most.n >= n_rest.saturating_mul(CLEAR)).then_some(most.behind as usize)
    }
}

impl Index {
    /// Takes the rest of `text` in, of what is not there yet from `from` on; not what ends it, which nothing follows.
    pub fn learn(&mut self, text: &[Token], from: usize) {
        let start = self.n_indexed.max(from);
        for (i, window) in text.get(start..).unwrap_or_default().windows(AGREE).enumerate() {
            let behind = start + i + AGREE;
            if behind < text.len() {
                if let Ok(key) = Key::try_from(window) {
                    self.add(text, key, behind as u32);
                }
                self.n_indexed = start + i + 1;
            }
        }
    }

    fn add(&mut self, text: &[Token], key: Key, behind: u32) {
        let place = self.places.entry(key).or_insert(Place { behind, n: 0 });
        let before = std::mem::replace(place, Place { behind, n: place.n.saturating_add(1) });
        if before.n == 0 {
            return;
        }
        if text.get(before.behind as usize) != text.get(behind as usize) {
            // Counted here until now.
            self.branches.entry(key).or_insert_with(|| {
                let mut branches = Branches::default();
                branches.count(text, before);
                branches
            });
        }
        if let Some(branches) = self.branches.get_mut(&key) {
            branches.count(text, Place { behind, n: 1 });
        }
    }

    /// Behind `key`, where it stood last.
    pub fn last(&self, key: &Key) -> Option<usize> {
        self.places.get(key).map(|place| place.behind as usize)
    }

    /// Behind `key`, where it was followed by what clearly followed it most often; `None` also where it was always followed
    /// by the same, which `last` knows.
    pub fn majority(&self, key: &Key) -> Option<usize> {
        self.branches.get(key)?.majority()
    }
}

/// Follows the answer through a text.
#[derive(Debug, Default)]
pub(super) struct Follower {
    /// Where the answer goes on in the text; `None` while it isn't following it.
    at: Option<usize>,
    pub guesses: Guesses,
}

impl Follower {
    /// Before the first token of a text that the answer is.
    pub fn at_start() -> Self {
        let mut start = Self { at: Some(0), ..Self::default() };
        start.guesses.begin_at(Guesses::SURE);
        start
    }

    /// What comes next in the text.
    pub fn ahead<'a>(&self, text: &'a [Token]) -> Option<&'a [Token]> {
        text.get(self.at?..).filter(|text| !text.is_empty())
    }

    /// Takes the last token of `answer` in: it is what the text foretold, or the place is looked for anew.
    pub fn follow(&mut self, text: &[Token], answer: &[Token], place: impl Fn(&Key) -> Option<usize>) {
        let Some(last) = answer.last() else { return };
        if let Some(foretold) = self.at.and_then(|at| text.get(at))
            && self.guesses.take(foretold == last)
        {
            self.at = self.at.map(|at| at + 1);
            return;
        }
        self.at = answer.last_chunk().and_then(place);
        // A question asked again says from the first token on what its answer was: what agrees before the place counts
        // as if it had been foretold.
        let before = self.at.and_then(|at| text.get(..at)).unwrap_or_default();
        let agreeing = before.iter().rev().zip(answer.iter().rev()).take(AGREE + Guesses::SURE as usize);
        let n_agreeing = agreeing.take_while(|(one, other)| one == other).count();
        self.guesses.begin_at(n_agreeing.saturating_sub(AGREE) as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What clearly followed 1 2 3 most often, when these followed it.
    fn majority(nexts: &[Token]) -> Option<Token> {
        let text: Vec<Token> = nexts.iter().flat_map(|next| [1, 2, 3, *next]).chain([1, 2, 3]).collect();
        let mut index = Index::default();
        // However the text comes.
        (0..=text.len()).step_by(3).for_each(|n| index.learn(&text[..n], 0));
        index.learn(&text, 0);
        let at = index.last(&[1, 2, 3]).expect("it stood there");
        assert_eq!(text[at], nexts[nexts.len() - 1]);
        index.majority(&[1, 2, 3]).map(|at| text[at])
    }

    #[test]
    fn what_clearly_followed_most_often_is_known() {
        assert_eq!(majority(&[5, 5, 5]), None, "what stood there last says as much");
        assert_eq!(majority(&[5, 9]), None);
        assert_eq!(majority(&[5, 5, 9]), Some(5));
        assert_eq!(majority(&[9, 5, 5]), Some(5));
        assert_eq!(majority(&[5, 9, 5, 9, 5]), None, "not clearly");
        assert_eq!(majority(&[5, 5, 5, 5, 5, 5, 5, 5, 6, 7, 8, 9]), Some(5));
        assert_eq!(majority(&[5, 5, 5, 5, 5, 5, 5, 5, 6, 7, 8, 9, 9]), None, "the rest counts too");
    }
}
