//! Answers that must have a form: JSON Schema, regex, Lark, a choice. Compiled by llguidance, token by token.
//!
//! **Invariant:** a constraint that can't be honoured is a refusal before the answer begins, never an answer without it.
//! Compiling happens on the preparers' threads and is bounded in text, depth, grammar size and lexer work; masks are
//! computed beside the forward pass (see [`masks`]).
//!
//! # Design
//! GBNF stays with llama.cpp's own grammar sampler, which defines it (see `prepare`). Everything else is llguidance's: its masks of a
//! 32k vocabulary take tens of microseconds where the grammar sampler takes milliseconds, and it tells which tokens are
//! forced, so that property names and punctuation cost no forward pass of their own.
//!
//! JSON is written compactly, `", "` and `": "` between its parts: fixed white space is bounded white space, and forced.

mod gate;
pub(super) mod masks;
pub(super) mod schema;
mod vocabulary;

pub(super) use gate::{Gate, Opening};

use super::backend::Model;
use super::error::Failure;
use crate::chat::Constraint;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{InferenceCapabilities, SimpleVob, TokEnv};
use llguidance::{Matcher, ParserFactory};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Longest text of one constraint.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// Most entries of a choice: their lexer is built before the answer begins.
const CHOICES_MAX: usize = 10_000;
/// Compiled constraints that are kept, and the text they may have together: a program asks for few, again and again.
const KEPT_MAX: usize = 64;
const KEPT_BYTES_MAX: usize = 4 << 20;

/// Compiles the constraints of one model's requests.
pub(super) struct Constraints<M: Model> {
    model: Arc<M>,
    /// Made at the first constraint: the trie of a large vocabulary takes a moment and some megabytes.
    factory: OnceLock<Result<ParserFactory, String>>,
    /// Newest last. Copies of one compiled constraint share what its lexer has learnt.
    kept: Mutex<VecDeque<(Constraint, Matcher)>>,
}

impl<M: Model> Constraints<M> {
    pub fn new(model: Arc<M>) -> Self {
        Self { model, factory: OnceLock::new(), kept: Mutex::default() }
    }

    /// A matcher at the start of `constraint`, and the environment its tokens live in.
    ///
    /// Errors: `Invalid`, with what is wrong with the constraint.
    pub fn compile(&self, constraint: &Constraint) -> Result<Matcher, Failure> {
        let mut kept = self.lock();
        if let Some(at) = kept.iter().position(|(known, _)| known == constraint)
            && let Some(found) = kept.remove(at)
        {
            let matcher = found.1.clone();
            kept.push_back(found);
            return Ok(matcher);
        }
        drop(kept);
        let n_bytes = text_bytes(constraint);
        if n_bytes > TEXT_BYTES_MAX {
            return Err(refusal(
                constraint,
                &format!("it has {n_bytes} bytes, and at most {TEXT_BYTES_MAX} are taken"),
            ));
        }
        let matcher = self.compile_anew(constraint).map_err(|reason| refusal(constraint, &reason))?;
        let copy = matcher.clone();
        let mut kept = self.lock();
        kept.push_back((constraint.clone(), matcher));
        let too_much = |kept: &VecDeque<(Constraint, Matcher)>| {
            kept.len() > KEPT_MAX || kept.iter().map(|(known, _)| text_bytes(known)).sum::<usize>() > KEPT_BYTES_MAX
        };
        while too_much(&kept) {
            kept.pop_front();
        }
        Ok(copy)
    }

    /// All tokens but those that end a turn.
    ///
    /// Errors: the vocabulary can't be used for constraints at all.
    pub fn endless(&self) -> Result<SimpleVob, Failure> {
        let factory = self.factory.get_or_init(|| factory(&self.model)).as_ref();
        let factory = factory.map_err(|reason| Failure::invalid("response_format", "unsupported_operation", reason))?;
        let trie = factory.tok_env().tok_trie();
        let mut all = trie.alloc_token_set();
        all.set_all(true);
        trie.eos_tokens().iter().for_each(|token| all.disallow_token(*token));
        Ok(all)
    }

    fn compile_anew(&self, constraint: &Constraint) -> Result<Matcher, String> {
        match constraint {
            Constraint::JsonObject => self.parser(TopLevelGrammar::from_json_schema(schema::object())),
            Constraint::JsonSchema(text) => {
                let given: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
                schema::check(&given)?;
                let closed = self.parser(TopLevelGrammar::from_json_schema(schema::normalise(&given, true)));
                // Closing objects that are composed of several may leave nothing that fits.
                closed.or_else(|first| {
                    let open = TopLevelGrammar::from_json_schema(schema::normalise(&given, false));
                    self.parser(open).map_err(|_| first)
                })
            }
            Constraint::Regex(regex) => self.parser(TopLevelGrammar::from_regex(regex)),
            Constraint::Lark(lark) => self.parser(TopLevelGrammar::from_lark(lark.clone())),
            Constraint::Choice(choices) if choices.is_empty() => Err("there is nothing to choose from".into()),
            Constraint::Choice(choices) if choices.len() > CHOICES_MAX => {
                Err(format!("it has {} entries, and at most {CHOICES_MAX} are taken", choices.len()))
            }
            Constraint::Choice(choices) => {
                let quoted = choices.iter().map(|choice| serde_json::Value::from(choice.as_str()).to_string());
                let lark = format!("start: {}", quoted.collect::<Vec<_>>().join(" | "));
                self.parser(TopLevelGrammar::from_lark(lark))
            }
            Constraint::Gbnf(_) => Err("GBNF is not llguidance's".into()),
        }
    }

    fn parser(&self, grammar: TopLevelGrammar) -> Result<Matcher, String> {
        let factory = self.factory.get_or_init(|| factory(&self.model));
        let parser = factory.as_ref().map_err(Clone::clone)?.create_parser(grammar);
        let mut matcher = Matcher::new(parser);
        if let Some(error) = matcher.get_error() {
            return Err(first_line(&error));
        }
        // A grammar without a first token is one that nothing fits.
        let mask = matcher.compute_mask().map_err(|error| first_line(&error.to_string()))?;
        if mask.is_zero() {
            return Err("nothing fits it".into());
        }
        Ok(matcher)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<(Constraint, Matcher)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn factory<M: Model>(model: &Arc<M>) -> Result<ParserFactory, String> {
    let env: TokEnv = vocabulary::environment(model)?;
    let capabilities = InferenceCapabilities { ff_tokens: true, ..Default::default() };
    let slices = llguidance::earley::SlicedBiasComputer::json_slices();
    let mut factory = ParserFactory::new(&env, capabilities, &slices).map_err(|error| error.to_string())?;
    factory.quiet();
    // The other limits are llguidance's: at most some 20 ms of lexer work to compile, some 15 ms a mask.
    factory.limits_mut().verbose_errors = false;
    Ok(factory)
}

fn text_bytes(constraint: &Constraint) -> usize {
    match constraint {
        Constraint::JsonObject => 0,
        Constraint::JsonSchema(text) | Constraint::Gbnf(text) | Constraint::Regex(text) | Constraint::Lark(text) => {
            text.len()
        }
        Constraint::Choice(choices) => choices.iter().map(|choice| choice.len() + 4).sum(),
    }
}

fn refusal(constraint: &Constraint, reason: &str) -> Failure {
    let (field, code, what) = match constraint {
        Constraint::JsonObject | Constraint::JsonSchema(_) => {
            ("response_format", "invalid_json_schema", "the JSON schema")
        }
        Constraint::Gbnf(_) => ("grammar", "invalid_value", "the grammar"),
        Constraint::Lark(_) => ("grammar", "invalid_value", "the Lark grammar"),
        Constraint::Regex(_) => ("regex", "invalid_value", "the regular expression"),
        Constraint::Choice(_) => ("choice", "invalid_value", "the choice"),
    };
    Failure::invalid(field, code, format!("{what} can't be used: {reason}"))
}

/// llguidance's errors repeat the grammar behind the first line, which is the client's text and can be long.
fn first_line(error: &str) -> String {
    error.lines().next().unwrap_or("unknown error").chars().take(300).collect()
}

#[cfg(test)]
mod tests;
