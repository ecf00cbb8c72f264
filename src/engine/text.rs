//! Pieces of tokens to text: whole characters only, stop strings cut before they show.

use crate::chat::TokenLogprob;
use std::collections::VecDeque;

/// Builds the text of one answer. Work per token depends on the longest stop string, never on the answer.
#[derive(Debug)]
pub struct TextBuilder {
    stops: Vec<Vec<u8>>,
    /// Bytes not yet released: an unfinished character, or what may become a stop string. At most the longest stop
    /// string plus one piece plus three bytes.
    held: Vec<u8>,
    /// Bytes released (or cut) before `held`.
    n_released: usize,
    /// Bytes of the answer so far, `held` included.
    n_bytes: usize,
    /// Log-probabilities of tokens whose bytes are not all released, with the offset of their first byte.
    logprobs: VecDeque<(usize, TokenLogprob)>,
    longest_stop: usize,
}

/// What one token added to the visible text.
#[derive(Debug, Default, PartialEq)]
pub struct Released {
    pub text: String,
    /// Entries of tokens whose last byte is in `text`, with the offset of their first byte in it (0 when that came out
    /// earlier).
    pub logprobs: Vec<(usize, TokenLogprob)>,
    /// The stop string that ended the text, if one did.
    pub stop: Option<String>,
}

impl TextBuilder {
    pub fn new(stops: Vec<String>) -> Self {
        let stops: Vec<Vec<u8>> = stops.into_iter().filter(|stop| !stop.is_empty()).map(String::into_bytes).collect();
        let longest_stop = stops.iter().map(Vec::len).max().unwrap_or(0);
        Self { stops, held: Vec::new(), n_released: 0, n_bytes: 0, logprobs: VecDeque::new(), longest_stop }
    }

    /// Adds a token's bytes.
    pub fn push(&mut self, piece: &[u8], logprob: Option<TokenLogprob>) -> Released {
        if let Some(logprob) = logprob {
            self.logprobs.push_back((self.n_bytes, logprob));
        }
        // A match that ended before this piece would have been found then.
        let search_from = self.held.len().saturating_sub(self.longest_stop.saturating_sub(1));
        self.held.extend_from_slice(piece);
        self.n_bytes += piece.len();
        if let Some((at, stop)) = self.find_stop(search_from) {
            self.held.truncate(at);
            self.cut_logprobs(self.n_released + at);
            let released = self.release(self.held.len(), true);
            return Released { stop: Some(stop), ..released };
        }
        let n_safe = self.held.len() - self.possible_stop();
        let n_whole = whole_characters(&self.held[..n_safe]);
        self.release(n_whole, false)
    }

    /// The answer has ended without a stop string: everything held back is text.
    pub fn finish(&mut self) -> Released {
        self.release(self.held.len(), true)
    }

    /// The match of a stop string that was complete first (so that the cut doesn't depend on how the answer was split
    /// into tokens), looking from `from`.
    fn find_stop(&self, from: usize) -> Option<(usize, String)> {
        self.stops
            .iter()
            .filter_map(|stop| memchr::memmem::find(&self.held[from..], stop).map(|at| (from + at, stop)))
            .min_by_key(|(at, stop)| (at + stop.len(), *at))
            .map(|(at, stop)| (at, String::from_utf8_lossy(stop).into_owned()))
    }

    /// Bytes at the end of `held` that a stop string may begin with.
    fn possible_stop(&self) -> usize {
        let longest = self.longest_stop.saturating_sub(1).min(self.held.len());
        (1..=longest)
            .rev()
            .find(|n| {
                let tail = &self.held[self.held.len() - n..];
                self.stops.iter().any(|stop| stop.len() > *n && stop.starts_with(tail))
            })
            .unwrap_or(0)
    }

    fn release(&mut self, n: usize, is_last: bool) -> Released {
        let start = self.n_released;
        let text = String::from_utf8_lossy(&self.held[..n]).into_owned();
        self.held.drain(..n);
        self.n_released += n;
        let mut logprobs = Vec::new();
        // An entry goes out with the last of its bytes, since a stop string may still cut it.
        while let Some((offset, entry)) = self.logprobs.front()
            && (is_last || *offset + entry.bytes.len() <= self.n_released)
        {
            let at = offset.saturating_sub(start);
            logprobs.extend(self.logprobs.pop_front().map(|(_, entry)| (at, entry)));
        }
        Released { text, logprobs, stop: None }
    }

    /// Drops the entries of cut text; a token that straddles `end` keeps the bytes before it.
    fn cut_logprobs(&mut self, end: usize) {
        self.logprobs.retain(|(offset, _)| *offset < end);
        if let Some((offset, last)) = self.logprobs.back_mut() {
            last.bytes.truncate(end - *offset);
        }
    }
}

/// Length of the longest prefix of `bytes` that does not end inside a character. Bytes that can't be part of UTF-8 count
/// as whole.
fn whole_characters(bytes: &[u8]) -> usize {
    // A character has at most four bytes, so only the last three can be an unfinished one.
    for back in 1..=bytes.len().min(3) {
        let byte = bytes[bytes.len() - back];
        let needs = match byte {
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            0x80..=0xBF => continue,
            _ => return bytes.len(),
        };
        return if needs > back { bytes.len() - back } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(bytes: &[u8]) -> Option<TokenLogprob> {
        Some(TokenLogprob { id: 0, bytes: bytes.to_vec(), logprob: -1.0, top: Vec::new() })
    }

    #[test]
    fn a_character_is_never_cut() {
        let mut text = TextBuilder::new(Vec::new());
        let emoji = "😀".as_bytes();
        assert_eq!(text.push(&emoji[..2], None).text, "");
        assert_eq!(text.push(&emoji[2..], None).text, "😀");
        assert_eq!(text.push(&[0xF0], None).text, "");
        assert_eq!(text.finish().text, "\u{FFFD}");
        assert_eq!(text.push(&[0xFF], None).text, "\u{FFFD}", "not the start of anything: shown at once");
    }

    #[test]
    fn a_stop_string_over_several_tokens_never_shows() {
        let mut text = TextBuilder::new(vec!["STOP".into()]);
        assert_eq!(text.push(b"go S", None).text, "go ");
        assert_eq!(text.push(b"TO", None).text, "");
        let last = text.push(b"P on", None);
        assert_eq!((last.text.as_str(), last.stop.as_deref()), ("", Some("STOP")));
    }

    #[test]
    fn held_text_comes_out_when_it_was_no_stop_after_all() {
        let mut text = TextBuilder::new(vec!["STOP".into()]);
        assert_eq!(text.push(b"STO", None).text, "");
        assert_eq!(text.push(b"RM", None).text, "STORM");
        assert_eq!(text.push(b" ST", None).text, " ");
        assert_eq!(text.finish().text, "ST");
    }

    #[test]
    fn logprobs_spell_the_text_and_end_with_it() {
        let mut text = TextBuilder::new(vec!["xyz".into()]);
        let mut entries = Vec::new();
        for piece in [&b"ab"[..], b"cx", b"yz", b"!"] {
            let released = text.push(piece, entry(piece));
            entries.extend(released.logprobs.into_iter().map(|(_, entry)| entry.bytes));
            if released.stop.is_some() {
                break;
            }
        }
        assert_eq!(entries.concat(), b"abc");
    }

    proptest! {
        #[test]
        fn streamed_text_equals_whole_text_however_it_is_cut(
            answer in "[a-cß€😀]{0,40}", cuts in prop::collection::vec(1usize..5, 0..60),
            stops in prop::collection::vec("[a-cß€]{1,4}", 0..4),
        ) {
            let found = stops.iter().filter_map(|stop| answer.find(stop.as_str()).map(|at| (at + stop.len(), at)));
            let expected = &answer[..found.min().map_or(answer.len(), |(_, at)| at)];
            let mut text = TextBuilder::new(stops);
            let (mut rest, mut cuts) = (answer.as_bytes(), cuts.into_iter());
            let (mut shown, mut stopped) = (String::new(), false);
            while !rest.is_empty() && !stopped {
                let n = cuts.next().unwrap_or(3).min(rest.len());
                let released = text.push(&rest[..n], entry(&rest[..n]));
                shown += &released.text;
                stopped = released.stop.is_some();
                rest = &rest[n..];
            }
            if !stopped {
                shown += &text.finish().text;
            }
            prop_assert_eq!(shown, expected);
        }
    }
}
