//! Free text, watched for the texts that begin a tool call.

use super::vocabulary::Words;
use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;
use std::sync::Arc;

/// White space that may stand before a thought.
const LEAD_SPACE_MAX: usize = 64;

/// Looks at an answer's text as it comes.
///
/// A text may be one token or be spelled by several; the last of these may say more than the text. So, while the text so
/// far ends with the beginning of one, tokens that would complete it are looked at one by one.
#[derive(Clone)]
pub struct Watch {
    words: Arc<Words>,
    /// Texts of which each begins a call.
    calls: Vec<Vec<u8>>,
    /// May not be said.
    banned: Vec<Vec<u8>>,
    /// Tokens that say a banned text whole, or something behind `call` that no call goes on with.
    never: Vec<u32>,
    /// Begins a thought when the answer begins with it; empty: none may come.
    thinking_start: Vec<u8>,
    /// The answer so far, while it may still begin with a thought.
    lead: Option<Vec<u8>>,
    /// The end of the text so far: a byte less than the longest text that is looked for.
    tail: Vec<u8>,
}

/// What a token made of the text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Text,
    /// A thought began; the bytes are what the token said of it.
    Thinking(Vec<u8>),
    /// The call of this number began; the bytes are what the token said of it.
    Call(usize, Vec<u8>),
}

impl Watch {
    pub(super) fn new(
        words: Arc<Words>,
        calls: &[&str],
        banned: &[String],
        never: Vec<u32>,
        thinking_start: &str,
    ) -> Self {
        let bytes = |text: &str| text.as_bytes().to_vec();
        Self {
            words,
            calls: calls.iter().map(|text| bytes(text)).collect(),
            never,
            banned: banned.iter().filter(|text| !text.is_empty()).map(|text| bytes(text)).collect(),
            thinking_start: bytes(thinking_start),
            lead: (!thinking_start.is_empty()).then(Vec::new),
            tail: Vec::new(),
        }
    }

    /// Tokens that may not come wherever the text stands; from here on they are the caller's to keep out.
    pub fn take_never(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.never)
    }

    /// Whether some token may complete a text that matters.
    pub(super) fn is_close(&self) -> bool {
        !self.never.is_empty() || !self.is_steady()
    }

    /// Whether no text that matters has begun: `mask` is the same wherever it is so.
    pub(super) fn is_steady(&self) -> bool {
        !self.banned.iter().chain(&self.calls).any(|text| self.rests(text).next().is_some())
    }

    /// Behind how many of these tokens, given by their bytes, the text goes on and stays steady.
    pub(super) fn n_steady<'a>(&self, pieces: impl Iterator<Item = &'a [u8]>) -> usize {
        let mut ahead = self.clone();
        pieces.take_while(|piece| ahead.take(piece) == Seen::Text && ahead.is_steady()).count()
    }

    /// Which call `text` begins.
    pub(super) fn call_of(&self, text: &str) -> Option<usize> {
        self.calls.iter().position(|call| call == text.as_bytes())
    }

    /// What is still to come of `text`, for every way in which it may have begun.
    fn rests<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        (1..text.len()).filter(|n| self.tail.ends_with(&text[..*n])).map(|n| &text[n..])
    }

    /// Tokens that may come next. `matchers`: what must follow the texts that begin calls.
    pub(super) fn mask(&self, matchers: &mut [Matcher]) -> SimpleVob {
        let mut mask = self.words.env.tok_trie().alloc_token_set();
        mask.set_all(true);
        self.never.iter().for_each(|token| mask.disallow_token(*token));
        for rest in self.banned.iter().flat_map(|text| self.rests(text)) {
            self.words.beginning_with(rest).for_each(|(token, _)| mask.disallow_token(token));
        }
        for (text, matcher) in self.calls.iter().zip(matchers) {
            for (token, more) in self.rests(text).flat_map(|rest| self.words.beginning_with(rest)) {
                if !self.words.fits(matcher, more) {
                    mask.disallow_token(token);
                }
            }
        }
        mask
    }

    /// Tokens that spell `bytes`, for a grammar that reads bytes.
    pub(super) fn tokens_of(&self, bytes: &[u8]) -> Vec<u32> {
        self.words.env.tok_trie().greedy_tokenize(bytes)
    }

    /// Takes the bytes of the token that was chosen.
    pub(super) fn take(&mut self, piece: &[u8]) -> Seen {
        if let Some(lead) = &mut self.lead {
            lead.extend_from_slice(piece);
            let begun = lead.trim_ascii_start();
            let start = self.thinking_start.as_slice();
            if let Some(thought) = begun.strip_prefix(start) {
                let thought = thought.to_vec();
                self.lead = None;
                self.tail.clear();
                return Seen::Thinking(thought);
            }
            if !start.starts_with(begun) || lead.len() - begun.len() > LEAD_SPACE_MAX {
                self.lead = None;
            }
        }
        self.tail.extend_from_slice(piece);
        let found = self.calls.iter().enumerate().filter_map(|(which, text)| {
            Some((memchr::memmem::find(&self.tail, text)?, std::cmp::Reverse(text.len()), which))
        });
        if let Some((at, std::cmp::Reverse(n), which)) = found.min() {
            return Seen::Call(which, self.tail[at + n..].to_vec());
        }
        let longest = self.banned.iter().chain(&self.calls).map(Vec::len).max().unwrap_or(0);
        let n_gone = self.tail.len().saturating_sub(longest.saturating_sub(1));
        self.tail.drain(..n_gone);
        Seen::Text
    }
}
