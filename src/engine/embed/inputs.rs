//! Texts and pairs → the token lists that a model takes as inputs.

use crate::chat::{Prompt, PromptPart};
use crate::engine::backend::{Model, PairLayout, Token};
use crate::engine::error::Failure;
use crate::engine::request::{EmbedRequest, RerankRequest};
use crate::engine::service::Live;
use std::sync::atomic::Ordering;

/// Longest text that is tokenised, and most bytes of all vectors of an answer: it has to fit into a frame.
const TEXT_BYTES_MAX: usize = 8 << 20;
const ANSWER_BYTES_MAX: u64 = 128 << 20;

/// What an input may be like.
pub(in crate::engine) struct InputShape {
    /// Most tokens.
    pub n_max: u32,
    pub n_vocab: u32,
    /// Numbers of a vector.
    pub n_embd: u32,
    /// Each token has its vector.
    pub is_per_token: bool,
}

/// The inputs of `request`. Special tokens in a text are recognised, as by the tokenizers these models were trained with.
///
/// Errors: `input` for what can't be read, `ContextExceeded` for what is too long and not to be cut.
pub(in crate::engine) fn embed_inputs<M: Model>(
    model: &M,
    shape: &InputShape,
    request: EmbedRequest,
    live: &Live,
) -> Result<Vec<Vec<Token>>, Failure> {
    refuse_many("prompt", request.inputs.len(), shape)?;
    let mut inputs = Vec::with_capacity(request.inputs.len());
    let mut n_tokens = 0;
    for prompt in request.inputs {
        give_up_if_cancelled(live)?;
        let mut tokens = match prompt {
            Prompt::Text(text) => text_tokens(model, shape, &text, request.truncate)?,
            Prompt::Tokens(tokens) => checked(tokens, shape)?,
            Prompt::Mixed(parts) => checked(mixed_tokens(model, &parts)?, shape)?,
            Prompt::Chat(_) | Prompt::Infill(_) => {
                return Err(Failure::invalid("prompt", "invalid_type", "an input is a text or a list of token ids"));
            }
        };
        if tokens.is_empty() {
            return Err(Failure::invalid("prompt", "invalid_value", "an input has no tokens"));
        }
        if request.truncate {
            tokens.truncate(shape.n_max as usize);
        }
        refuse_long(tokens.len(), shape)?;
        n_tokens += tokens.len();
        if shape.is_per_token {
            refuse_many("prompt", n_tokens, shape)?;
        }
        inputs.push(tokens);
    }
    Ok(inputs)
}

/// One input for each document. Control tokens that a query or a document spells out are plain text in a pair, because
/// what separates the two must not be forged.
pub(in crate::engine) fn pair_inputs<M: Model>(
    model: &M,
    shape: &InputShape,
    request: &RerankRequest,
    live: &Live,
) -> Result<Vec<Vec<Token>>, Failure> {
    refuse_many("prompt", request.documents.len(), shape)?;
    let layout = model.pair_layout();
    let bytes = |text: &str| refuse_bytes(text.len());
    bytes(&request.query)?;
    let query = model.tokenize(&request.query, false, false)?;
    let mut inputs = Vec::with_capacity(request.documents.len());
    for document in &request.documents {
        give_up_if_cancelled(live)?;
        bytes(document)?;
        let mut tokens = model.tokenize(document, false, false)?;
        let is_cut = request.n_document_max.is_some_and(|n| tokens.len() > n as usize);
        if let Some(n) = request.n_document_max {
            tokens.truncate(n as usize);
        }
        let input = match &layout {
            PairLayout::Tokens { before, between, after } => {
                [before.as_slice(), &query, between, &tokens, after].concat()
            }
            PairLayout::Template(template) if is_cut => {
                let bytes: Vec<u8> = tokens.iter().flat_map(|token| model.piece(*token)).copied().collect();
                fill(model, template, &request.query, &String::from_utf8_lossy(&bytes))?
            }
            PairLayout::Template(template) => fill(model, template, &request.query, document)?,
        };
        if input.is_empty() {
            return Err(Failure::invalid("prompt", "invalid_value", "a document has no tokens"));
        }
        refuse_long(input.len(), shape)?;
        inputs.push(input);
    }
    Ok(inputs)
}

/// The template's tokens with both texts in it.
fn fill<M: Model>(model: &M, template: &str, query: &str, document: &str) -> Result<Vec<Token>, Failure> {
    let is_control =
        |text: &str| model.control_texts().iter().any(|control| control.len() > 1 && text.contains(control));
    if !is_control(query) && !is_control(document) {
        return model.tokenize(&fill_text(template, query, document), false, true);
    }
    // Piece by piece: tokens may then be cut differently where text and template meet, which is better than a forgery.
    let mut tokens = Vec::new();
    for (text, is_template) in parts(template, query, document) {
        if !text.is_empty() {
            tokens.extend(model.tokenize(text, false, is_template)?);
        }
    }
    Ok(tokens)
}

fn fill_text(template: &str, query: &str, document: &str) -> String {
    parts(template, query, document).into_iter().map(|(text, _)| text).collect()
}

/// The template cut at its places, with what stands there; the flag says whose text it is.
fn parts<'a>(template: &'a str, query: &'a str, document: &'a str) -> Vec<(&'a str, bool)> {
    const PLACES: [&str; 2] = ["{query}", "{document}"];
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some((at, place)) = PLACES.iter().filter_map(|place| Some((rest.find(place)?, *place))).min() {
        parts.push((&rest[..at], true));
        parts.push((if place == PLACES[0] { query } else { document }, false));
        rest = &rest[at + place.len()..];
    }
    parts.push((rest, true));
    parts
}

fn text_tokens<M: Model>(model: &M, shape: &InputShape, text: &str, truncate: bool) -> Result<Vec<Token>, Failure> {
    let end = (0..=text.len().min(TEXT_BYTES_MAX)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let text = if truncate { &text[..end] } else { text };
    // Some vocabularies drop blanks and have one token for any unknown word, so only counting shows what is too long.
    refuse_bytes(text.len())?;
    let tokens = model.tokenize(text, true, true)?;
    if truncate && tokens.len() > shape.n_max as usize {
        return Ok(cut_text(model, tokens, shape.n_max as usize));
    }
    Ok(tokens)
}

/// As llama.cpp's `tokenize_mixed`: only a text at the beginning gets what every text of this vocabulary begins with.
fn mixed_tokens<M: Model>(model: &M, parts: &[PromptPart]) -> Result<Vec<Token>, Failure> {
    refuse_bytes(parts.iter().map(|part| if let PromptPart::Text(text) = part { text.len() } else { 0 }).sum())?;
    let mut tokens = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        match part {
            PromptPart::Text(text) => tokens.extend(model.tokenize(text, i == 0, true)?),
            PromptPart::Token(token) => tokens.push(*token),
        }
    }
    Ok(tokens)
}

/// The first `n` tokens, but with the ones that every text of this vocabulary ends with.
fn cut_text<M: Model>(model: &M, mut tokens: Vec<Token>, n: usize) -> Vec<Token> {
    let frame = model.tokenize("", true, false).unwrap_or_default();
    // A frame of one token stands at the beginning or at the end.
    let has_ending = frame.len() > 1 || tokens.first() != frame.first();
    let ending = frame.last().filter(|last| has_ending && tokens.last() == Some(last)).copied();
    tokens.truncate(n);
    if let (Some(ending), Some(last)) = (ending, tokens.last_mut()) {
        *last = ending;
    }
    tokens
}

fn checked(tokens: Vec<Token>, shape: &InputShape) -> Result<Vec<Token>, Failure> {
    let is_known = |token: &Token| u32::try_from(*token).is_ok_and(|token| token < shape.n_vocab);
    match tokens.iter().find(|token| !is_known(token)) {
        None => Ok(tokens),
        Some(token) => Err(Failure::invalid(
            "prompt",
            "invalid_value",
            format!("token id {token} is outside the vocabulary (0 to {})", shape.n_vocab.saturating_sub(1)),
        )),
    }
}

fn refuse_many(field: &str, n: usize, shape: &InputShape) -> Result<(), Failure> {
    let n_max = ANSWER_BYTES_MAX / (4 * u64::from(shape.n_embd.max(1)));
    if n as u64 <= n_max {
        return Ok(());
    }
    Err(Failure::invalid(field, "array_above_max_length", format!("{n} vectors are too many here: at most {n_max}")))
}

fn refuse_bytes(n: usize) -> Result<(), Failure> {
    if n <= TEXT_BYTES_MAX {
        return Ok(());
    }
    Err(Failure::invalid("prompt", "invalid_value", format!("a text has {n} bytes, more than {TEXT_BYTES_MAX}")))
}

fn refuse_long(n: usize, shape: &InputShape) -> Result<(), Failure> {
    if n <= shape.n_max as usize {
        return Ok(());
    }
    Err(Failure::ContextExceeded { n_prompt: n as u64, n_ctx: shape.n_max, at_least: false })
}

fn give_up_if_cancelled(live: &Live) -> Result<(), Failure> {
    if live.cancelled.load(Ordering::Relaxed) { Err(Failure::Cancelled) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_cut_at_its_places_and_texts_are_not_searched() {
        assert_eq!(fill_text("<q>{query}</q><d>{document}</d>", "{document}", "x"), "<q>{document}</q><d>x</d>");
        assert_eq!(fill_text("no place", "q", "d"), "no place");
        let flags: Vec<bool> = parts("a{document}b{query}", "q", "d").iter().map(|(_, own)| *own).collect();
        assert_eq!(flags, [true, false, true, false, true]);
    }
}
