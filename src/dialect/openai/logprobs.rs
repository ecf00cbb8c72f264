//! Log-probabilities in the two shapes OpenAI has had.

use crate::chat::TokenLogprob;
use serde_json::{Map, Value, json};

/// Chat: one entry a token, exact bytes beside lossy text.
pub(in crate::dialect) fn chat(entries: &[TokenLogprob]) -> Value {
    let token = |bytes: &[u8], logprob: f32| {
        let mut object = Map::new();
        object.insert("token".to_owned(), String::from_utf8_lossy(bytes).into_owned().into());
        object.insert("logprob".to_owned(), number(logprob));
        object.insert("bytes".to_owned(), bytes.into());
        object
    };
    let content: Vec<Value> = entries
        .iter()
        .map(|entry| {
            let mut object = token(&entry.bytes, entry.logprob);
            let top: Vec<Value> = entry.top.iter().map(|other| token(&other.bytes, other.logprob).into()).collect();
            object.insert("top_logprobs".to_owned(), top.into());
            object.into()
        })
        .collect();
    json!({ "content": content, "refusal": null })
}

/// The parallel arrays of text completions.
#[derive(Debug, Default)]
pub(super) struct TextArrays {
    tokens: Vec<String>,
    logprobs: Vec<Value>,
    tops: Vec<Value>,
    offsets: Vec<usize>,
}

impl TextArrays {
    /// Tokens of an answer. `n_chars` is how many characters came before, and is moved on.
    pub(super) fn answer(&mut self, entries: &[TokenLogprob], n_chars: &mut usize) {
        for entry in entries {
            // A token that begins inside a character belongs to that character's place.
            let inside = entry.bytes.first().is_some_and(|byte| is_continuation(*byte));
            self.push(entry, n_chars.saturating_sub(usize::from(inside)), true);
            *n_chars += count_chars(&entry.bytes);
        }
    }

    /// Tokens of a prompt whose text is `text`. Tokens that aren't in it (BOS, a space that the vocabulary adds) have
    /// the place of what follows them. Nothing came before the first, so nothing is said of it.
    pub(super) fn prompt(&mut self, entries: &[TokenLogprob], text: &str, n_chars: &mut usize) {
        let (mut rest, mut n_before) = (text.as_bytes(), 0);
        for (i, entry) in entries.iter().enumerate() {
            let (skipped, length) = place(rest, &entry.bytes);
            n_before += count_chars(&rest[..skipped]);
            let inside = length > 0 && entry.bytes.first().is_some_and(|byte| is_continuation(*byte));
            self.push(entry, n_before.saturating_sub(usize::from(inside)), i > 0);
            n_before += count_chars(&rest[skipped..skipped + length]);
            rest = &rest[skipped + length..];
        }
        *n_chars += text.chars().count();
    }

    fn push(&mut self, entry: &TokenLogprob, offset: usize, is_known: bool) {
        self.tokens.push(name(&entry.bytes));
        self.offsets.push(offset);
        let top = || {
            entry.top.iter().map(|other| (name(&other.bytes), number(other.logprob))).collect::<Map<String, Value>>()
        };
        self.logprobs.push(if is_known { number(entry.logprob) } else { Value::Null });
        self.tops.push(if is_known { Value::Object(top()) } else { Value::Null });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    pub(super) fn into_json(self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.logprobs,
            "top_logprobs": self.tops,
            "text_offset": self.offsets,
        })
    }
}

/// Where a token lies in what is left of a text: (bytes before it, its bytes there).
fn place(rest: &[u8], token: &[u8]) -> (usize, usize) {
    /// How far a token may be from where the last one ended, when the vocabulary writes some of the text differently.
    const AHEAD_MAX: usize = 64;
    if rest.starts_with(token) {
        return (0, token.len());
    }
    if let Some(word) = token.strip_prefix(b" ").filter(|word| !word.is_empty() && rest.starts_with(word)) {
        return (0, word.len());
    }
    let ahead = &rest[..rest.len().min(AHEAD_MAX + token.len())];
    let is_word = token.len() > 1;
    match ahead.windows(token.len().max(1)).position(|window| is_word && window == token) {
        Some(at) => (at, token.len()),
        None => (0, 0),
    }
}

fn count_chars(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| !is_continuation(**byte)).count()
}

fn is_continuation(byte: u8) -> bool {
    byte & 0b1100_0000 == 0b1000_0000
}

/// A token as a key: its text, or its bytes spelled out, so that two tokens never share a key.
fn name(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |name, byte| name + &format!("\\x{byte:02x}")),
    }
}

/// An `f32` with its own digits, not those of the nearest double.
pub(in crate::dialect) fn number(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::Likely;

    fn entry(bytes: &[u8], logprob: f32) -> TokenLogprob {
        let top = vec![Likely { id: 1, bytes: bytes.to_vec(), logprob }];
        TokenLogprob { id: 1, bytes: bytes.to_vec(), logprob, top }
    }

    #[test]
    fn halves_of_a_character_have_exact_bytes_and_distinct_names() {
        let entries = [entry(b"a", -0.1), entry(b"\xe2\x80", -0.2), entry(b"\x94", -9999.0), entry(b"b", 0.0)];
        let chat = chat(&entries);
        assert_eq!(chat["content"][1]["bytes"], json!([226, 128]));
        assert_eq!(chat["content"][0]["logprob"], json!(-0.1));
        let (mut n_chars, mut arrays) = (0, TextArrays::default());
        arrays.answer(&entries, &mut n_chars);
        let text = arrays.into_json();
        assert_eq!(text["tokens"], json!(["a", "bytes:\\xe2\\x80", "bytes:\\x94", "b"]));
        assert_eq!(text["text_offset"], json!([0, 1, 1, 2]));
        assert_eq!(text["top_logprobs"][2], json!({"bytes:\\x94": -9999.0}));
        assert_eq!(n_chars, 3);
    }

    #[test]
    fn a_prompts_tokens_have_the_places_of_its_text() {
        let offsets = |text: &str, tokens: &[&[u8]]| {
            let entries: Vec<_> = tokens.iter().map(|bytes| entry(bytes, -1.0)).collect();
            let (mut n_chars, mut arrays) = (0, TextArrays::default());
            arrays.prompt(&entries, text, &mut n_chars);
            assert_eq!(n_chars, text.chars().count());
            arrays.into_json()
        };
        let plain = offsets("h\u{e9}y you", &[b"<s>", b"h\xc3", b"\xa9y", b" you"]);
        assert_eq!(plain["text_offset"], json!([0, 0, 1, 3]));
        assert_eq!(plain["token_logprobs"], json!([null, -1.0, -1.0, -1.0]));
        assert_eq!(plain["top_logprobs"][0], Value::Null);
        assert_eq!(offsets("Hi you", &[b" Hi", b" you"])["text_offset"], json!([0, 2]), "a space that was added");
        let special = offsets("a<|x|>bc", &[b"a", b"", b"bc"]);
        assert_eq!(special["text_offset"], json!([0, 1, 6]), "a special token without text");
    }
}
