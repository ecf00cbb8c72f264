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
            let top: Vec<Value> = entry.top.iter().map(|(bytes, p)| token(bytes, *p).into()).collect();
            object.insert("top_logprobs".to_owned(), top.into());
            object.into()
        })
        .collect();
    json!({ "content": content, "refusal": null })
}

/// Text completions: parallel arrays. `n_chars` is how many characters came before, and is moved on.
pub(super) fn text(entries: &[TokenLogprob], n_chars: &mut usize) -> Value {
    let mut tokens = Vec::with_capacity(entries.len());
    let mut logprobs = Vec::with_capacity(entries.len());
    let mut tops = Vec::with_capacity(entries.len());
    let mut offsets = Vec::with_capacity(entries.len());
    for entry in entries {
        let starts = entry.bytes.iter().filter(|byte| !is_continuation(**byte)).count();
        // A token that begins inside a character belongs to that character's place.
        let inside = entry.bytes.first().is_some_and(|byte| is_continuation(*byte));
        offsets.push(n_chars.saturating_sub(usize::from(inside)));
        *n_chars += starts;
        tokens.push(name(&entry.bytes));
        logprobs.push(number(entry.logprob));
        let top: Map<String, Value> = entry.top.iter().map(|(bytes, p)| (name(bytes), number(*p))).collect();
        tops.push(Value::Object(top));
    }
    json!({ "tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets })
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

    fn entry(bytes: &[u8], logprob: f32) -> TokenLogprob {
        TokenLogprob { bytes: bytes.to_vec(), logprob, top: vec![(bytes.to_vec(), logprob)] }
    }

    #[test]
    fn halves_of_a_character_have_exact_bytes_and_distinct_names() {
        let entries = [entry(b"a", -0.1), entry(b"\xe2\x80", -0.2), entry(b"\x94", -9999.0), entry(b"b", 0.0)];
        let chat = chat(&entries);
        assert_eq!(chat["content"][1]["bytes"], json!([226, 128]));
        assert_eq!(chat["content"][0]["logprob"], json!(-0.1));
        let mut n_chars = 0;
        let text = text(&entries, &mut n_chars);
        assert_eq!(text["tokens"], json!(["a", "bytes:\\xe2\\x80", "bytes:\\x94", "b"]));
        assert_eq!(text["text_offset"], json!([0, 1, 1, 2]));
        assert_eq!(text["top_logprobs"][2], json!({"bytes:\\x94": -9999.0}));
        assert_eq!(n_chars, 3);
    }
}
