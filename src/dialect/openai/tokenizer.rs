//! `/tokenize`, `/detokenize` and `/apply-template`, for llama-server's and vLLM's clients.

use super::chat::{Places, chat_prompt};
use super::completion::token_ids;
use super::to_wire::json;
use crate::chat::{ChatPrompt, Prompt};
use crate::dialect::fields::Object;
use crate::dialect::{Fault, Ignored, Read};
use crate::engine::TokenizeRequest;
use serde_json::json;

/// What `/tokenize` was asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Tokenize {
    pub model: Option<String>,
    pub request: TokenizeRequest,
    /// Of a chat's parts.
    pub places: Places,
}

/// What `/apply-template` was asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Render {
    pub model: Option<String>,
    pub prompt: ChatPrompt,
    pub places: Places,
}

/// `content` is llama-server's field, `prompt` vLLM's; they differ in whether BOS is added by default.
pub fn tokenize_request(body: &[u8]) -> Result<Read<Tokenize>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    let content = body.string("content")?;
    let text = body.string("prompt")?;
    let mut places = Places::default();
    let (prompt, special_default) = match (content, text) {
        (Some(content), None) => (Prompt::Text(content), false),
        (None, Some(text)) => (Prompt::Text(text), true),
        (None, None) if body.has("messages") => {
            let prompt;
            (prompt, places) = chat_prompt(&mut body, &mut ignored)?;
            (Prompt::Chat(prompt), false)
        }
        (None, None) => return Err(body.missing("content")),
        (Some(_), Some(_)) => {
            return Err(Fault::new("prompt", "invalid_value", "content and prompt can't both be given."));
        }
    };
    let plain = body.bool("add_special")?;
    let long = body.bool("add_special_tokens")?;
    let request = TokenizeRequest {
        prompt,
        add_special: plain.or(long).unwrap_or(special_default),
        parse_special: body.bool("parse_special")?.unwrap_or(true),
        with_pieces: body.bool("with_pieces")?.unwrap_or(false),
        partition: 0,
    };
    let model = body.string("model")?;
    body.finish(&mut ignored);
    Ok(Read { request: Tokenize { model, request, places }, ignored })
}

/// Pieces are text where they are UTF-8 and arrays of bytes where they are not.
pub fn tokenize_response(tokens: &[i32], pieces: Option<&[Vec<u8>]>, n_ctx: u32) -> Vec<u8> {
    // Written piece by piece: as a tree, a million tokens would take a gigabyte.
    let mut out = b"{\"tokens\":".to_vec();
    match pieces {
        None => out.extend(json(&tokens)),
        Some(pieces) => {
            for (i, (id, bytes)) in tokens.iter().zip(pieces).enumerate() {
                out.extend_from_slice(if i == 0 { b"[" } else { b"," });
                out.extend_from_slice(format!("{{\"id\":{id},\"piece\":").as_bytes());
                out.extend(match std::str::from_utf8(bytes) {
                    Ok(text) => json(&text),
                    Err(_) => json(bytes),
                });
                out.push(b'}');
            }
            out.extend_from_slice(if tokens.is_empty() { b"[]" } else { b"]" });
        }
    }
    out.extend_from_slice(format!(",\"count\":{},\"max_model_len\":{n_ctx}}}", tokens.len()).as_bytes());
    out
}

/// The model's name, when given, and the token ids.
pub type DetokenizeRequest = (Option<String>, Vec<i32>);

pub fn detokenize_request(body: &[u8]) -> Result<Read<DetokenizeRequest>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    let values = body.array("tokens")?.ok_or_else(|| body.missing("tokens"))?;
    let tokens = token_ids("tokens", &values)?;
    let model = body.string("model")?;
    body.finish(&mut ignored);
    Ok(Read { request: (model, tokens), ignored })
}

/// The text under both of its names.
pub fn detokenize_response(text: &str) -> Vec<u8> {
    json(&json!({ "content": text, "prompt": text }))
}

pub fn render_request(body: &[u8]) -> Result<Read<Render>, Fault> {
    let mut ignored = Ignored::default();
    let mut body = Object::parse(body)?;
    let (prompt, places) = chat_prompt(&mut body, &mut ignored)?;
    let model = body.string("model")?;
    body.finish(&mut ignored);
    Ok(Read { request: Render { model, prompt, places }, ignored })
}

pub fn render_response(prompt: &str) -> Vec<u8> {
    json(&json!({ "prompt": prompt }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn read(body: Value) -> Result<TokenizeRequest, Fault> {
        tokenize_request(body.to_string().as_bytes()).map(|read| read.request.request)
    }

    #[test]
    fn bos_is_added_by_default_where_vllm_adds_it() {
        assert!(!read(json!({"content": "x"})).unwrap().add_special);
        assert!(read(json!({"prompt": "x"})).unwrap().add_special);
        assert!(read(json!({"content": "x", "add_special": true})).unwrap().add_special);
        assert!(!read(json!({"prompt": "x", "add_special_tokens": false})).unwrap().add_special);
        assert!(matches!(read(json!({"messages": [{"role":"user","content":"x"}]})).unwrap().prompt, Prompt::Chat(_)));
        assert_eq!(read(json!({})).unwrap_err().param.as_deref(), Some("content"));
    }

    #[test]
    fn a_piece_is_text_or_bytes() {
        let body = tokenize_response(&[1, 2], Some(&[b"a".to_vec(), b"\xff".to_vec()]), 8);
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body, json!({"tokens":[{"id":1,"piece":"a"},{"id":2,"piece":[255]}],"count":2,"max_model_len":8}));
    }

    #[test]
    fn ids_are_integers_at_their_place() {
        let fault = detokenize_request(b"{\"tokens\":[1,-2]}").unwrap_err();
        assert_eq!(fault.param.as_deref(), Some("tokens[1]"));
    }
}
