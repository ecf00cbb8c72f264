//! Prefixes that the operator named: computed when the engine starts, shared by all tenants, never let go.

use super::super::backend::{Context, DecodeError, Model, Row, Token};
use super::super::prepare::Preparer;
use super::{LOAD_MIN, Saved, disk::Folder};
use crate::chat::{Message, Prompt, Role};
use crate::engine::adapters;
use crate::engine::config::{PrefixConfig, PrefixText};
use std::sync::Arc;
use std::time::Instant;

/// The tenant of what all share. Tenants of keys are hashes; that one is this number is no likelier than two that are one.
pub const SHARED: u64 = u64::MAX;
/// Fewer tokens are not worth a state: they are not loaded either, see `LOAD_MIN`.
const TOKENS_MIN: usize = LOAD_MIN;

/// A named prefix as tokens.
#[derive(Debug)]
pub struct Named {
    pub name: String,
    pub tokens: Vec<Token>,
}

impl<M: Model> Preparer<M> {
    /// The tokens with which every prompt begins that begins with this text; logged when there are none of use.
    pub(in crate::engine) fn named(&self, prefix: &PrefixConfig) -> Option<Named> {
        let read = |prompt: &Prompt| self.lead_tokens(prompt);
        let tokens = match &prefix.text {
            PrefixText::Prompt(text) => read(&Prompt::Text(text.clone())).map(|mut tokens| {
                // What follows may be read together with the last word.
                tokens.pop();
                tokens
            }),
            PrefixText::Chat(begun) => {
                // Whatever two users say that have nothing in common.
                let chat = |said: &str| {
                    let mut chat = begun.clone();
                    chat.messages.push(Message::new(Role::User, said));
                    Prompt::Chat(chat)
                };
                read(&chat("A")).and_then(|one| {
                    let other = read(&chat("7"))?;
                    let n = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
                    Ok(one[..n].to_vec())
                })
            }
        };
        match tokens {
            Ok(tokens) if tokens.len() >= TOKENS_MIN => Some(Named { name: prefix.name.clone(), tokens }),
            Ok(tokens) => {
                let n = tokens.len();
                tracing::warn!(
                    prefix = prefix.name,
                    "prompts with it have {n} tokens in common: fewer than {TOKENS_MIN} are soon computed, and not kept"
                );
                None
            }
            Err(failure) => {
                tracing::warn!(prefix = prefix.name, "it is not kept: {failure}");
                None
            }
        }
    }
}

/// The states of the named prefixes: from the folder where they fit, else computed, and kept there. `adapters`: those of a
/// request that names none. Errors: the context broke.
pub fn warm<C: Context>(
    context: &mut C,
    named: &[Named],
    folder: Option<&Folder>,
    adapters: &[(u32, f32)],
) -> Result<Vec<Saved>, String> {
    let mut states = Vec::new();
    if named.is_empty() {
        return Ok(states);
    }
    context.set_adapters(adapters)?;
    for Named { name, tokens } in named {
        let start = Instant::now();
        let n = tokens.len();
        let kept = folder.and_then(|folder| {
            let loaded = folder.load(tokens);
            loaded.unwrap_or_else(|error| {
                tracing::warn!(prefix = name, "its file can't be used and is made anew: {error}");
                None
            })
        });
        // A trial, since what doesn't load would never be of use.
        let kept = kept.filter(|state| {
            let loads = context.load(0, state);
            context.forget(0, 0);
            loads
        });
        let from_folder = kept.is_some();
        let state = match kept {
            Some(state) => Some(state),
            None => compute(context, tokens)?,
        };
        let Some(state) = state else {
            tracing::warn!(prefix = name, "its {n} tokens are not kept: there is no room for them");
            continue;
        };
        let how = if from_folder { "loaded from the folder" } else { "computed" };
        let ms = start.elapsed().as_millis();
        tracing::info!(prefix = name, "{n} tokens {how} in {ms} ms, {} bytes", state.len());
        if let Some(folder) = folder.filter(|_| !from_folder)
            && let Err(error) = folder.save(tokens, &state)
        {
            tracing::warn!(prefix = name, "it could not be kept for the next start: {error}");
        }
        let (partition, tokens, state) = (adapters::partition(SHARED, adapters), tokens.clone(), Arc::new(state));
        states.push(Saved { partition, tokens, media: Arc::new([]), state, family: 0, is_pinned: true });
    }
    // As a worker finds it.
    context.set_adapters(&[])?;
    Ok(states)
}

/// The memory that these states take, however many workers have them.
pub fn n_bytes(states: &[Saved]) -> u64 {
    states.iter().map(|saved| saved.state.len() as u64).sum()
}

/// Computes tokens on the empty sequence 0 and copies the state out; `None` when they don't fit, or the engine stops.
fn compute<C: Context>(context: &mut C, tokens: &[Token]) -> Result<Option<Vec<u8>>, String> {
    if tokens.len() >= context.n_ctx_seq() as usize {
        return Ok(None);
    }
    let chunk = context.n_batch().max(1) as usize;
    for (index, part) in tokens.chunks(chunk).enumerate() {
        let pos = |at: usize| (index * chunk + at) as u32;
        let row = |(at, token): (usize, &Token)| Row { token: *token, pos: pos(at), seq: 0, output: false };
        let mut rows: Vec<Row> = part.iter().enumerate().map(row).collect();
        if let Some(last) = rows.last_mut() {
            last.output = true;
        }
        match context.decode(&rows) {
            Ok(()) => {}
            Err(DecodeError::Broken(reason)) => return Err(reason),
            Err(DecodeError::Aborted | DecodeError::NoKvSlot) => {
                context.forget(0, 0);
                return Ok(None);
            }
        }
    }
    let state = context.save(0, usize::MAX);
    context.forget(0, 0);
    Ok(state)
}
