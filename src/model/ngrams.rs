//! Which tokens followed which in a text, counted: llama.cpp's file of it (`--lookup-cache-static`), read and written.
//!
//! An entry is a key of four 32-bit tokens, -1 in those that a shorter one doesn't have, the number of tokens that were seen
//! behind it, and of each the token and how often. No header, no end; little-endian.
//! Source: `common_ngram_cache_save`, common/ngram-cache.cpp.
//!
//! # Design
//! llama.cpp looks at keys of two tokens alone, and its own tool writes no others. What is written here has them too, so each
//! may read the other's files. In addition there are keys of three and four tokens, where a shorter one was followed by
//! different tokens: two tokens say little of where in a text they stand. A longer key that would say what the shorter one
//! says by itself is left out, and no look-up comes to anything else for it.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

/// A token id, as in the engine.
pub type Token = i32;

/// Most tokens of a key. Source: LLAMA_NGRAM_MAX.
pub const KEY_MAX: usize = 4;
/// Shorter keys are neither written nor believed. Source: LLAMA_NGRAM_STATIC, the only length that llama.cpp looks at.
pub const KEY_MIN: usize = 2;
/// Most bytes of a file: what is kept of it in memory is less, and up to twice as much while it is read.
pub const FILE_BYTES_MAX: u64 = 1 << 30;
/// A token must have come so many times as often as all others together, as for drafts from a request's own text.
const CLEAR: u64 = 2;
/// Of an entry, before the tokens that were seen behind its key.
const HEAD_BYTES: u64 = 4 * (KEY_MAX as u64 + 1);
/// A token and its count.
const NEXT_BYTES: u64 = 8;
/// Stands for tokens that a key doesn't have, and between texts.
const NO_TOKEN: Token = -1;

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum NgramsError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("not a regular file")]
    NotAFile,
    #[error("{n} bytes, which is more than {FILE_BYTES_MAX}")]
    TooLarge { n: u64 },
    #[error("it is empty")]
    Empty,
    #[error("the entry at byte {at}: {fault}")]
    Entry { at: u64, fault: Fault },
}

/// What is wrong with an entry.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("the file ends inside it")]
    Cut,
    #[error("its key has no token")]
    NoKey,
    #[error("its key goes on behind its end")]
    KeyWithGap,
    #[error(
        "the vocabulary of {n_vocab} tokens has no token {token}; the file was made for another model, or is no such file"
    )]
    NoSuchToken { token: Token, n_vocab: u32 },
    #[error("{n} tokens behind a key; 1 to {n_vocab} are possible")]
    NoSuchNumber { n: i32, n_vocab: u32 },
    #[error("a token that came {n} times")]
    NoSuchCount { n: i32 },
}

/// What comes behind a key of `n_key` tokens, if that is clear.
///
/// Behind two tokens that were seen once anything may come: llama.cpp asks for two times there and for one behind longer keys
/// too. It is content with a half of all times; here it is two thirds, since drafts from one file have their odds in common,
/// and those of a doubtful key would be paid for by the sure ones.
pub fn clear_next(n_key: usize, nexts: &[(Token, u32)]) -> Option<Token> {
    let least = if n_key <= KEY_MIN { 2 } else { 1 };
    let n_all: u64 = nexts.iter().map(|(_, n)| u64::from(*n)).sum();
    let (next, n) = nexts.iter().max_by_key(|(_, n)| *n)?;
    let n = u64::from(*n);
    (n_key >= KEY_MIN && n_all >= least && n >= (n_all - n) * CLEAR).then_some(*next)
}

/// Reads a file that was made for a vocabulary of `n_vocab` tokens; `each` gets the keys, and what was seen behind each with
/// how often. All numbers are checked; that a key is there once isn't.
pub fn read(path: &Path, n_vocab: u32, each: impl FnMut(&[Token], &[(Token, u32)])) -> Result<(), NgramsError> {
    // Looked at before it is opened: opening a pipe would wait for its other end.
    if !std::fs::metadata(path)?.is_file() {
        return Err(NgramsError::NotAFile);
    }
    let file = File::open(path)?;
    let n = file.metadata()?.len();
    if n > FILE_BYTES_MAX {
        return Err(NgramsError::TooLarge { n });
    }
    read_entries(BufReader::with_capacity(1 << 18, file), n, n_vocab, each)
}

/// `source` has `n_bytes`.
fn read_entries(
    mut source: impl Read,
    n_bytes: u64,
    n_vocab: u32,
    mut each: impl FnMut(&[Token], &[(Token, u32)]),
) -> Result<(), NgramsError> {
    if n_bytes == 0 {
        return Err(NgramsError::Empty);
    }
    let mut nexts = Vec::new();
    let mut at = 0;
    while at < n_bytes {
        let refuse = |fault| NgramsError::Entry { at, fault };
        let left = n_bytes - at;
        if left < HEAD_BYTES {
            return Err(refuse(Fault::Cut));
        }
        let key: [Token; KEY_MAX] = numbers(&mut source, at)?;
        let n_key = key_length(&key, n_vocab).map_err(refuse)?;
        let [n] = numbers(&mut source, at)?;
        let n_nexts = u64::try_from(n).ok().filter(|n| (1..=u64::from(n_vocab)).contains(n));
        let n_nexts = n_nexts.ok_or_else(|| refuse(Fault::NoSuchNumber { n, n_vocab }))?;
        if n_nexts * NEXT_BYTES > left - HEAD_BYTES {
            return Err(refuse(Fault::Cut));
        }
        nexts.clear();
        for _ in 0..n_nexts {
            let [token, n] = numbers(&mut source, at)?;
            check_token(token, n_vocab).map_err(refuse)?;
            let n = u32::try_from(n).ok().filter(|n| *n > 0).ok_or_else(|| refuse(Fault::NoSuchCount { n }))?;
            nexts.push((token, n));
        }
        each(&key[..n_key], &nexts);
        at += HEAD_BYTES + n_nexts * NEXT_BYTES;
    }
    Ok(())
}

/// The next numbers of the entry at byte `at`.
fn numbers<const N: usize>(source: &mut impl Read, at: u64) -> Result<[i32; N], NgramsError> {
    let mut numbers = [0; N];
    for number in &mut numbers {
        let mut bytes = [0; 4];
        // It was long enough when it was opened.
        source.read_exact(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => NgramsError::Entry { at, fault: Fault::Cut },
            _ => error.into(),
        })?;
        *number = i32::from_le_bytes(bytes);
    }
    Ok(numbers)
}

fn key_length(key: &[Token; KEY_MAX], n_vocab: u32) -> Result<usize, Fault> {
    let n_key = key.iter().position(|token| *token == NO_TOKEN).unwrap_or(KEY_MAX);
    if n_key == 0 {
        return Err(Fault::NoKey);
    }
    if key[n_key..].iter().any(|token| *token != NO_TOKEN) {
        return Err(Fault::KeyWithGap);
    }
    key[..n_key].iter().try_for_each(|token| check_token(*token, n_vocab)).map(|()| n_key)
}

fn check_token(token: Token, n_vocab: u32) -> Result<(), Fault> {
    let is_known = u32::try_from(token).is_ok_and(|token| token < n_vocab);
    if is_known { Ok(()) } else { Err(Fault::NoSuchToken { token, n_vocab }) }
}

/// Texts as tokens, to be counted. **Bound:** 8 bytes for each token, half of them while they are written.
#[derive(Debug)]
pub struct Texts {
    /// Between texts, and before the first, nothing: no key goes over it.
    tokens: Vec<Token>,
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    pub n_keys: u64,
    pub n_bytes: u64,
}

impl Default for Texts {
    fn default() -> Self {
        // So that looking back from any place stays inside.
        Self { tokens: vec![NO_TOKEN; KEY_MAX] }
    }
}

impl Texts {
    /// Adds a text, whose ids are not negative.
    pub fn push(&mut self, text: &[Token]) {
        self.tokens.extend_from_slice(text);
        self.tokens.push(NO_TOKEN);
    }

    /// Counts them and writes the file; whoever calls flushes. Errors: also if it becomes too large to be read.
    pub fn write(&self, out: &mut impl Write) -> io::Result<Written> {
        let before = |place: u32, n: usize| self.tokens[place as usize - n];
        // A count fits into the format's 31 bits then.
        let end = i32::try_from(self.tokens.len()).map_err(|_| too_large())?.unsigned_abs();
        let has_key = |place: &u32| (0..=KEY_MIN).all(|n| before(*place, n) >= 0);
        let mut places: Vec<u32> = (KEY_MAX as u32..end).filter(has_key).collect();
        // By what stands before, the last token first: all places of a key are neighbours, and inside them those of each
        // longer one.
        let behind = |place: u32| (1..=KEY_MAX).map(move |n| before(place, n));
        places.sort_unstable_by(|one, other| behind(*one).cmp(behind(*other)));
        let mut writer = Writer { tokens: &self.tokens, out, nexts: Vec::new(), written: Written::default() };
        let is_same = |one: &u32, other: &u32| behind(*one).take(KEY_MIN).eq(behind(*other).take(KEY_MIN));
        for group in places.chunk_by(is_same) {
            writer.write(group, KEY_MIN)?;
        }
        Ok(writer.written)
    }
}

fn too_large() -> io::Error {
    let message = format!("the texts are too large: a file of counts has at most {FILE_BYTES_MAX} bytes");
    io::Error::new(io::ErrorKind::FileTooLarge, message)
}

struct Writer<'a, W> {
    tokens: &'a [Token],
    out: &'a mut W,
    /// Of the entry that is written.
    nexts: Vec<(Token, u32)>,
    written: Written,
}

impl<W: Write> Writer<'_, W> {
    /// The entry of the `n_key` tokens that stand before each of `places`, and those of longer keys that end with them.
    fn write(&mut self, places: &[u32], n_key: usize) -> io::Result<()> {
        self.count(places);
        self.write_entry(places[0] as usize, n_key)?;
        let is_said = self.nexts.len() == 1 && clear_next(n_key, &self.nexts).is_some();
        if is_said || n_key == KEY_MAX {
            return Ok(());
        }
        let tokens = self.tokens;
        let further = |place: &u32| tokens[*place as usize - n_key - 1];
        for group in places.chunk_by(|one, other| further(one) == further(other)) {
            // Not beyond the beginning of a text.
            if further(&group[0]) >= 0 {
                self.write(group, n_key + 1)?;
            }
        }
        Ok(())
    }

    fn count(&mut self, places: &[u32]) {
        let mut tokens: Vec<Token> = places.iter().map(|place| self.tokens[*place as usize]).collect();
        tokens.sort_unstable();
        self.nexts.clear();
        self.nexts.extend(tokens.chunk_by(Token::eq).map(|same| (same[0], same.len() as u32)));
    }

    fn write_entry(&mut self, place: usize, n_key: usize) -> io::Result<()> {
        let n_bytes = HEAD_BYTES + NEXT_BYTES * self.nexts.len() as u64;
        self.written.n_keys += 1;
        self.written.n_bytes += n_bytes;
        if self.written.n_bytes > FILE_BYTES_MAX {
            return Err(too_large());
        }
        let mut key = [NO_TOKEN; KEY_MAX];
        key[..n_key].copy_from_slice(&self.tokens[place - n_key..place]);
        let n_nexts = self.nexts.len() as u32;
        key.iter().try_for_each(|token| self.out.write_all(&token.to_le_bytes()))?;
        self.out.write_all(&n_nexts.to_le_bytes())?;
        self.nexts.iter().try_for_each(|(token, n)| {
            self.out.write_all(&token.to_le_bytes())?;
            self.out.write_all(&n.to_le_bytes())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Counts = BTreeMap<Vec<Token>, BTreeMap<Token, u32>>;

    fn written(texts: &[&[Token]]) -> Vec<u8> {
        let mut all = Texts::default();
        texts.iter().for_each(|text| all.push(text));
        let mut bytes = Vec::new();
        let written = all.write(&mut bytes).expect("a vector takes all");
        assert_eq!(written.n_bytes, bytes.len() as u64);
        bytes
    }

    fn read_back(bytes: &[u8], n_vocab: u32) -> Result<Counts, NgramsError> {
        let mut counts = Counts::new();
        read_entries(bytes, bytes.len() as u64, n_vocab, |key, nexts| {
            let is_new = counts.insert(key.to_vec(), nexts.iter().copied().collect()).is_none();
            assert!(is_new, "{key:?} is there twice");
        })?;
        Ok(counts)
    }

    fn counted(texts: &[&[Token]]) -> Counts {
        let mut counts = Counts::new();
        for n_key in KEY_MIN..=KEY_MAX {
            for window in texts.iter().flat_map(|text| text.windows(n_key + 1)) {
                *counts.entry(window[..n_key].to_vec()).or_default().entry(window[n_key]).or_default() += 1;
            }
        }
        counts
    }

    /// What is said behind `said`: by the longest key that is there.
    fn says(counts: &Counts, said: &[Token]) -> Option<Token> {
        let keys = (KEY_MIN..=KEY_MAX.min(said.len())).rev().map(|n| &said[said.len() - n..]);
        let (key, nexts) = keys.filter_map(|key| counts.get_key_value(key)).next()?;
        clear_next(key.len(), &nexts.iter().map(|(token, n)| (*token, *n)).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_written_is_llama_cpps_format() {
        // Written by hand after common_ngram_cache_save.
        let numbers = [1, 2, -1, -1, 1, 3, 2i32];
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        assert_eq!(written(&[&[1, 2, 3], &[1, 2, 3]]), bytes);
    }

    #[test]
    fn what_is_clear_hangs_on_how_often_it_came() {
        assert_eq!(clear_next(2, &[(5, 1)]), None, "two tokens that came once");
        assert_eq!(clear_next(2, &[(5, 2)]), Some(5));
        assert_eq!(clear_next(3, &[(5, 1)]), Some(5));
        assert_eq!(clear_next(3, &[(5, 1), (6, 1)]), None);
        assert_eq!(clear_next(4, &[(6, 1), (5, 2)]), Some(5));
        assert_eq!(clear_next(4, &[(6, 1), (5, 3), (7, 1)]), None);
        assert_eq!(clear_next(1, &[(5, 100)]), None);
        assert_eq!(clear_next(4, &[(5, u32::MAX), (6, u32::MAX)]), None);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told() {
        let good = [1, 2, -1, -1, 1, 3, 2i32];
        let fault = |change: &dyn Fn(&mut Vec<i32>)| {
            let mut numbers = [good, good].concat();
            change(&mut numbers);
            let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            match read_entries(bytes.as_slice(), bytes.len() as u64, 10, |_, _| {}) {
                Err(NgramsError::Entry { at: 28, fault }) => fault,
                other => panic!("{other:?}"),
            }
        };
        let n_vocab = 10;
        assert_eq!(fault(&|numbers| numbers[7] = -1), Fault::NoKey);
        assert_eq!(fault(&|numbers| numbers[10] = 3), Fault::KeyWithGap);
        assert_eq!(fault(&|numbers| numbers[8] = -2), Fault::NoSuchToken { token: -2, n_vocab });
        assert_eq!(fault(&|numbers| numbers[8] = 10), Fault::NoSuchToken { token: 10, n_vocab });
        assert_eq!(fault(&|numbers| numbers[12] = 10), Fault::NoSuchToken { token: 10, n_vocab });
        assert_eq!(fault(&|numbers| numbers[12] = -1), Fault::NoSuchToken { token: -1, n_vocab });
        for n in [0, -1, 11, i32::MAX] {
            assert_eq!(fault(&|numbers| numbers[11] = n), Fault::NoSuchNumber { n, n_vocab });
        }
        for n in [0, -1, i32::MIN] {
            assert_eq!(fault(&|numbers| numbers[13] = n), Fault::NoSuchCount { n });
        }
        assert_eq!(fault(&|numbers| numbers[11] = 2), Fault::Cut, "of two tokens one is there");
        (1..7).for_each(|n| assert_eq!(fault(&|numbers| numbers.truncate(14 - n)), Fault::Cut));
    }

    #[test]
    fn what_is_no_file_of_counts_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("counts");
        let said = |path: &Path| read(path, 10, |_, _| {}).expect_err("no such file").to_string();
        assert_eq!(said(dir.path()), "not a regular file");
        assert!(said(&path).contains("No such file"), "{}", said(&path));
        std::fs::write(&path, "").expect("a writable folder");
        assert_eq!(said(&path), "it is empty");
        std::fs::write(&path, "Once upon a time there was a house").expect("a writable folder");
        assert!(said(&path).contains("is no such file"), "{}", said(&path));
        let mut bytes = written(&[&[1, 2, 3]]);
        bytes.push(0);
        std::fs::write(&path, &bytes).expect("a writable folder");
        assert_eq!(said(&path), "the entry at byte 28: the file ends inside it");
        // Sparse: it takes no room.
        File::create(&path).and_then(|file| file.set_len(FILE_BYTES_MAX + 1)).expect("a writable folder");
        assert!(said(&path).contains("more than 1073741824"), "{}", said(&path));
    }

    proptest! {
        /// What is left out changes nothing of what is said, and llama.cpp's keys are all there.
        #[test]
        fn what_is_read_says_what_was_counted(texts in prop::collection::vec(prop::collection::vec(0i32..4, 0..40), 1..5)) {
            let texts: Vec<&[Token]> = texts.iter().map(Vec::as_slice).collect();
            let (bytes, all) = (written(&texts), counted(&texts));
            if all.is_empty() {
                prop_assert!(bytes.is_empty());
                return Ok(());
            }
            let some = read_back(&bytes, 4).expect("it was written just now");
            prop_assert!(some.iter().all(|(key, nexts)| all.get(key) == Some(nexts)));
            prop_assert!(all.keys().all(|key| key.len() > KEY_MIN || some.contains_key(key)));
            for said in all.keys().filter(|key| key.len() == KEY_MAX) {
                prop_assert_eq!(says(&some, said), says(&all, said));
            }
        }

        /// Nothing panics, whatever the bytes are.
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), small in prop::collection::vec(-1i32..5, 0..60)) {
            let small: Vec<u8> = small.iter().flat_map(|number| number.to_le_bytes()).collect();
            for bytes in [bytes, small] {
                let _ = read_entries(bytes.as_slice(), bytes.len() as u64, 4, |key, nexts| {
                    assert!((1..=KEY_MAX).contains(&key.len()) && !nexts.is_empty());
                });
            }
        }
    }
}
