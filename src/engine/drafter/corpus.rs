//! What follows what in texts that an operator chose (a manual, a code base, form letters), for drafts of all answers of a
//! model (after llama.cpp's `ngram-cache` with `--lookup-cache-static`).
//!
//! The operator's own texts are no secret among tenants, so they are drafted from for all of them, and what drafts came to is
//! known of all together.

use super::Token;
use super::reciter::{Entry, place};
use crate::engine::config::EngineConfig;
use crate::model::ngrams::{self, KEY_MAX, KEY_MIN};
use std::path::Path;
use std::sync::Arc;

/// Behind a key it isn't clear what comes: an entry too, since a shorter key knows less, not more.
const UNCLEAR: Token = -2;

/// The best continuation of each key of a file. Two keys of one hash are taken for one another: a wrong draft is all that
/// comes of it.
#[derive(Debug)]
pub(in super::super) struct Corpus {
    /// A power of two, of which at most two thirds are taken: 12 to 24 bytes a key, where the file has at least 28.
    entries: Box<[Entry]>,
}

impl Corpus {
    /// What `config` names for a model of so many tokens; `None`: nothing, or nothing is drafted, which the log says. Errors:
    /// what is wrong with the file.
    pub fn open(config: &EngineConfig, n_vocab: u32, generates: bool) -> Result<Option<Arc<Self>>, String> {
        let Some(path) = &config.draft.corpus else { return Ok(None) };
        if config.n_draft_max == 0 || !generates {
            let why = if generates { "--draft-max 0" } else { "the model generates nothing" };
            tracing::warn!(why, "--lookup-cache-static is not used");
            return Ok(None);
        }
        let corpus = Self::read(path, n_vocab);
        corpus.map(|corpus| Some(Arc::new(corpus))).map_err(|error| {
            let path = path.display();
            format!("--lookup-cache-static {path}: {error}")
        })
    }

    fn read(path: &Path, n_vocab: u32) -> Result<Self, ngrams::NgramsError> {
        let mut keys = Vec::new();
        ngrams::read(path, n_vocab, |key, nexts| {
            let next = ngrams::clear_next(key.len(), nexts);
            // Of the shortest an unclear one says as much as none.
            if key.len() > KEY_MIN || next.is_some() {
                keys.push((place(key), next.unwrap_or(UNCLEAR)));
            }
        })?;
        Ok(Self::of(&keys))
    }

    /// The first of equal keys counts, as in llama.cpp.
    fn of(keys: &[((usize, u32), Token)]) -> Self {
        let n = (keys.len() * 3 / 2).max(2).next_power_of_two();
        let mut entries = vec![Entry::NONE; n].into_boxed_slice();
        for ((from, tag), next) in keys {
            let at = find(&entries, *from, *tag);
            if entries[at].next == Entry::NONE.next {
                entries[at] = Entry { tag: *tag, next: *next };
            }
        }
        Self { entries }
    }

    /// What comes behind `said`, by the longest key that is there.
    pub fn next(&self, said: &[Token]) -> Option<Token> {
        (KEY_MIN..=KEY_MAX)
            .rev()
            .find_map(|n| self.entry(said.get(said.len().checked_sub(n)?..)?))
            .filter(|next| *next >= 0)
    }

    fn entry(&self, key: &[Token]) -> Option<Token> {
        let (from, tag) = place(key);
        let next = self.entries[find(&self.entries, from, tag)].next;
        (next != Entry::NONE.next).then_some(next)
    }
}

/// Where the key stands, or the free place where it would. There is one: a third of them is free.
fn find(entries: &[Entry], from: usize, tag: u32) -> usize {
    let mask = entries.len() - 1;
    let mut at = from & mask;
    while entries[at].next != Entry::NONE.next && entries[at].tag != tag {
        at = (at + 1) & mask;
    }
    at
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::engine::config::ModelSource;
    use crate::model::ngrams::Texts;

    /// As it is read from the file of these texts.
    pub(in super::super) fn corpus(texts: &[&[Token]]) -> Arc<Corpus> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("counts");
        let mut all = Texts::default();
        texts.iter().for_each(|text| all.push(text));
        let mut bytes = Vec::new();
        all.write(&mut bytes).expect("a vector takes all");
        std::fs::write(&path, bytes).expect("a writable folder");
        let mut config = EngineConfig::new(ModelSource::Scripted(Default::default()));
        config.draft.corpus = Some(path);
        Corpus::open(&config, 100_000, true).expect("it was written just now").expect("it is named")
    }

    #[test]
    fn the_longest_key_that_is_there_tells_what_comes() {
        let corpus = corpus(&[&[1, 2, 3, 4], &[9, 2, 3, 5], &[1, 2, 3, 4], &[7, 8], &[7, 8, 6], &[7, 8, 6]]);
        assert_eq!(corpus.next(&[1, 2, 3]), Some(4));
        assert_eq!(corpus.next(&[9, 2, 3]), Some(5));
        assert_eq!(corpus.next(&[0, 2, 3]), Some(4), "two of three times");
        assert_eq!(corpus.next(&[7, 8]), Some(6));
        assert_eq!(corpus.next(&[0, 0, 7, 8]), Some(6));
        assert_eq!((corpus.next(&[8]), corpus.next(&[]), corpus.next(&[2, 1])), (None, None, None));
    }

    #[test]
    fn a_key_that_is_unclear_is_not_asked_of_a_shorter_one() {
        // 3 4 is followed by 5 four times of six; behind 1 2 3 4 anything came.
        let corpus = corpus(&[&[1, 2, 3, 4, 6], &[1, 2, 3, 4, 7], &[9, 9, 3, 4, 5].repeat(4)]);
        assert_eq!(corpus.next(&[0, 0, 3, 4]), Some(5));
        assert_eq!(corpus.next(&[1, 2, 3, 4]), None);
        assert_eq!(corpus.next(&[9, 9, 3, 4]), Some(5));
    }

    #[test]
    fn every_token_of_a_long_text_is_known() {
        let text: Vec<Token> = (0..50_000).collect();
        let corpus = corpus(&[&text]);
        assert!(corpus.entries.len() <= 1 << 17);
        let n_right = text.windows(5).filter(|window| corpus.next(&window[..4]) == Some(window[4])).count();
        assert!(n_right >= 49_990, "{n_right}");
    }

    #[test]
    fn a_bad_file_is_refused_by_the_flag_that_names_it() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("counts");
        std::fs::write(&path, "x").expect("a writable folder");
        let mut config = EngineConfig::new(ModelSource::Scripted(Default::default()));
        config.draft.corpus = Some(path.clone());
        let error = Corpus::open(&config, 100, true).expect_err("one byte");
        assert_eq!(
            error,
            format!("--lookup-cache-static {}: the entry at byte 0: the file ends inside it", path.display())
        );
        assert!(Corpus::open(&config, 100, false).expect("it isn't read").is_none());
        config.n_draft_max = 0;
        assert!(Corpus::open(&config, 100, true).expect("it isn't read").is_none());
    }
}
