//! Where a text may be cut before llama.cpp's tokenizer sees it, so that its tokens stay what they are.
//!
//! # Design
//! llama.cpp parts a text at its special tokens, and walks over all parts so far for each that it finds (llama-vocab.cpp,
//! `tokenizer_st_partition`, a `std::distance` over a forward list): a megabyte of `<s>` would keep a thread busy for minutes. What
//! is between two special tokens is tokenised by itself anyway, so a text with many of them is cut before one of them now and
//! then, and each piece has few.
//!
//! An RWKV vocabulary has its control tokens among those of text, so that whoever writes `<s>` gets the token; there the text of
//! one is cut behind its first sign.

use super::sys;
use aho_corasick::{AhoCorasick, MatchKind};

/// Special tokens of one piece, and bytes below which no text has enough of them to matter.
const TOKENS_MAX: usize = 256;
const BYTES_MIN: usize = 2 << 10;
/// Special tokens that are looked for; a vocabulary with more is not cut. Real ones have up to 6,000.
const PATTERNS_MAX: usize = 16 << 10;

#[derive(Debug, Default)]
pub(super) struct Specials {
    /// Those that are always tokens.
    of_text: Option<Finder>,
    /// Those, and markup.
    of_markup: Option<Finder>,
    /// Texts that would become markup where it is only text.
    unwanted: Option<AhoCorasick>,
}

#[derive(Debug)]
struct Finder {
    find: AhoCorasick,
    /// Whether a token takes the blanks before it, by pattern.
    strips: Vec<bool>,
}

impl Finder {
    fn new(tokens: &[(String, bool)]) -> Option<Self> {
        if tokens.is_empty() || tokens.len() > PATTERNS_MAX {
            return None;
        }
        let find = finder(tokens.iter().map(|(text, _)| text))?;
        Some(Self { find, strips: tokens.iter().map(|(_, strips)| *strips).collect() })
    }
}

fn finder<'t>(texts: impl Iterator<Item = &'t String>) -> Option<AhoCorasick> {
    AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts).ok()
}

impl Specials {
    /// # Safety
    /// `vocab` lives.
    pub(super) unsafe fn of(vocab: *const sys::llama_vocab) -> Self {
        let (mut of_text, mut of_markup, mut unwanted) = (Vec::new(), Vec::new(), Vec::new());
        // SAFETY: plain getters on a vocabulary that lives, with ids inside it.
        unsafe {
            let is_rwkv = sys::llama_vocab_type(vocab) == sys::LLAMA_VOCAB_TYPE_RWKV;
            for token in 0..sys::llama_vocab_n_tokens(vocab) {
                let attr = sys::llama_vocab_get_attr(vocab, token);
                let has = |flag| attr & flag != 0;
                let markup = sys::LLAMA_TOKEN_ATTR_CONTROL | sys::LLAMA_TOKEN_ATTR_UNKNOWN;
                if !has(markup | sys::LLAMA_TOKEN_ATTR_USER_DEFINED) {
                    continue;
                }
                let text = sys::text(sys::llama_vocab_get_text(vocab, token));
                if text.is_empty() {
                    continue;
                }
                if is_rwkv && has(sys::LLAMA_TOKEN_ATTR_CONTROL) && text.len() > 1 {
                    unwanted.push(text.clone());
                }
                let found = (text, has(sys::LLAMA_TOKEN_ATTR_LSTRIP));
                if !has(markup) {
                    of_text.push(found.clone());
                }
                of_markup.push(found);
            }
        }
        let unwanted = if unwanted.is_empty() { None } else { finder(unwanted.iter()) };
        Self { of_text: Finder::new(&of_text), of_markup: Finder::new(&of_markup), unwanted }
    }

    /// The pieces whose tokens are the text's; one, where there is nothing to cut.
    pub(super) fn pieces<'t>(&self, text: &'t str, parse_special: bool) -> Vec<&'t str> {
        let whole = match if parse_special { &self.of_markup } else { &self.of_text } {
            Some(finder) if text.len() >= BYTES_MIN => finder.pieces(text),
            _ => vec![text],
        };
        match &self.unwanted {
            Some(unwanted) if !parse_special => whole.into_iter().flat_map(|piece| broken(unwanted, piece)).collect(),
            _ => whole,
        }
    }
}

impl Finder {
    fn pieces<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let (mut pieces, mut start, mut n_tokens) = (Vec::new(), 0, 0);
        for found in self.find.find_iter(text) {
            if n_tokens >= TOKENS_MAX {
                let piece = &text[start..found.start()];
                let is_stripped = self.strips.get(found.pattern().as_usize()) == Some(&true);
                pieces.push(if is_stripped { piece.trim_end_matches(is_blank) } else { piece });
                (start, n_tokens) = (found.start(), 0);
            }
            n_tokens += 1;
        }
        pieces.push(&text[start..]);
        pieces
    }
}

/// C's `isspace`.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

/// Cut behind the first sign of each text that is not wanted.
fn broken<'t>(unwanted: &AhoCorasick, text: &'t str) -> Vec<&'t str> {
    let (mut pieces, mut start) = (Vec::new(), 0);
    for found in unwanted.find_iter(text) {
        let first = text[found.start()..].chars().next().map_or(1, char::len_utf8);
        pieces.push(&text[start..found.start() + first]);
        start = found.start() + first;
    }
    pieces.push(&text[start..]);
    pieces
}
