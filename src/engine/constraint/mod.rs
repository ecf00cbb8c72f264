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
//! A call that the model may make is not held from the first token: its text is watched (see [`Watch`]) until a call begins.
//!
//! JSON is written compactly, `", "` and `": "` between its parts: fixed white space is bounded white space, and forced.

mod ahead;
mod gate;
pub(super) mod masks;
pub(super) mod schema;
mod vocabulary;
mod watch;

pub(super) use gate::{Gate, Opening, Rules, Step};
pub(super) use watch::Watch;

use super::backend::{Model, Token};
use super::error::Failure;
use crate::chat::Constraint;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{InferenceCapabilities, SimpleVob, TokEnv};
use llguidance::{Matcher, ParserFactory};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use vocabulary::Words;

/// Longest text of one constraint.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// Longest regular expression: its lexer is built before the answer begins.
const REGEX_BYTES_MAX: usize = 64 << 10;
/// Most entries of a choice: their lexer is built before the answer begins.
const CHOICES_MAX: usize = 10_000;
/// Compiled constraints that are kept, and the text they may have together: a program asks for few, again and again.
const KEPT_MAX: usize = 64;
const KEPT_BYTES_MAX: usize = 4 << 20;

/// Texts whose tokens are remembered; they are the templates', so there are few.
const SPELLED_MAX: usize = 64;

/// Compiles the constraints of one model's requests.
pub(super) struct Constraints<M: Model> {
    model: Arc<M>,
    /// Made at the first constraint: the trie of a large vocabulary takes a moment and some megabytes.
    factory: OnceLock<Result<Tools, String>>,
    /// Newest last, what can't be used too: it comes again. Copies of one compiled constraint share what its lexer has
    /// learnt. By partition: what another tenant has had compiled would be there sooner, and tell that it was asked for.
    kept: Mutex<VecDeque<Kept>>,
    /// Tokens that hold a text, by the text; newest last.
    spelled: Mutex<VecDeque<(String, Arc<Spelled>)>>,
}

/// A constraint, and what stands around the text that it holds, in Lark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Framed {
    pub before: String,
    pub constraint: Constraint,
    pub after: String,
}

impl Framed {
    fn n_bytes(&self) -> usize {
        self.before.len() + text_bytes(&self.constraint) + self.after.len()
    }
}

/// Whose constraint, which, and what it came to.
type Kept = ((u64, Framed), Result<Matcher, String>);

/// Tokens, and what each says behind a text that it holds.
type Spelled = Vec<(u32, Vec<u8>)>;

/// What is made of a vocabulary.
struct Tools {
    parsers: ParserFactory,
    words: Arc<Words>,
}

impl<M: Model> Constraints<M> {
    pub fn new(model: Arc<M>) -> Self {
        Self { model, factory: OnceLock::new(), kept: Mutex::default(), spelled: Mutex::default() }
    }

    /// A matcher at the start of `constraint`, and the environment its tokens live in.
    ///
    /// Errors: `Invalid`, with what is wrong with the constraint.
    #[cfg(test)]
    pub fn compile(&self, constraint: &Constraint) -> Result<Matcher, Failure> {
        self.compile_framed(0, [String::new(), String::new()], constraint)
    }

    /// A matcher of what the frame says and, in it, what `constraint` says.
    ///
    /// Errors: `Invalid`, with what is wrong with the constraint.
    pub fn compile_framed(
        &self,
        partition: u64,
        [before, after]: [String; 2],
        constraint: &Constraint,
    ) -> Result<Matcher, Failure> {
        let framed = Framed { before, constraint: constraint.clone(), after };
        self.matcher(partition, framed).map_err(|reason| refusal(constraint, &reason))
    }

    /// A matcher of a grammar of our own, which may hold a client's schemas.
    ///
    /// Errors: the bare reason.
    pub fn compile_lark(&self, partition: u64, lark: String) -> Result<Matcher, String> {
        let none = String::new;
        self.matcher(partition, Framed { before: none(), constraint: Constraint::Lark(lark), after: none() })
    }

    fn matcher(&self, partition: u64, framed: Framed) -> Result<Matcher, String> {
        let mut kept = self.lock();
        if let Some(at) = kept.iter().position(|((whose, known), _)| *whose == partition && *known == framed)
            && let Some(found) = kept.remove(at)
        {
            let matcher = found.1.clone();
            kept.push_back(found);
            return matcher;
        }
        drop(kept);
        let n_bytes = framed.n_bytes();
        if n_bytes > TEXT_BYTES_MAX {
            return Err(format!("it has {n_bytes} bytes, and at most {TEXT_BYTES_MAX} are taken"));
        }
        let made = self.compile_anew(&framed);
        let copy = made.clone();
        let mut kept = self.lock();
        kept.push_back(((partition, framed), made));
        let n_bytes = |kept: &VecDeque<Kept>| kept.iter().map(|((_, known), _)| known.n_bytes()).sum::<usize>();
        while kept.len() > KEPT_MAX || n_bytes(&kept) > KEPT_BYTES_MAX {
            kept.pop_front();
        }
        copy
    }

    /// Watches text for `calls`, of which each begins a call that its matcher must take from there on, and keeps `banned`
    /// out of it; a thought may come first where `thinking_start` is not empty.
    ///
    /// Errors: the vocabulary can't be used for constraints at all.
    pub fn watch(
        &self,
        calls: &[&str],
        matchers: &mut [Matcher],
        banned: &[String],
        thinking_start: &str,
    ) -> Result<Watch, Failure> {
        let words = Arc::clone(&self.tools()?.words);
        let mut never: Vec<u32> = Vec::new();
        for text in banned.iter().filter(|text| !text.is_empty()) {
            never.extend(self.spelled(&words, text).iter().map(|(token, _)| *token));
        }
        for (text, matcher) in calls.iter().zip(matchers) {
            let spelled = self.spelled(&words, text);
            never.extend(spelled.iter().filter(|(_, more)| !words.fits(matcher, more)).map(|(token, _)| *token));
        }
        Ok(Watch::new(words, calls, banned, never, thinking_start))
    }

    fn spelled(&self, words: &Words, text: &str) -> Arc<Spelled> {
        let lock = || self.spelled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = lock().iter().find(|(known, _)| known == text) {
            return Arc::clone(found);
        }
        let found: Spelled = words.holding(text.as_bytes()).map(|(token, more)| (token, more.to_vec())).collect();
        let found = Arc::new(found);
        let mut spelled = lock();
        spelled.push_back((text.to_owned(), Arc::clone(&found)));
        if spelled.len() > SPELLED_MAX {
            spelled.pop_front();
        }
        found
    }

    fn tools(&self) -> Result<&Tools, Failure> {
        let tools = self.factory.get_or_init(|| tools(&self.model)).as_ref();
        tools.map_err(|reason| Failure::invalid("response_format", "unsupported_operation", reason))
    }

    /// All tokens but those that end a turn.
    ///
    /// Errors: the vocabulary can't be used for constraints at all.
    pub fn endless(&self) -> Result<SimpleVob, Failure> {
        let trie = self.tools()?.words.env.tok_trie();
        let mut all = trie.alloc_token_set();
        all.set_all(true);
        trie.eos_tokens().iter().for_each(|token| all.disallow_token(*token));
        Ok(all)
    }

    fn compile_anew(&self, framed: &Framed) -> Result<Matcher, String> {
        let parser = |grammar| self.parser(around(framed, grammar));
        match &framed.constraint {
            Constraint::JsonObject => parser(TopLevelGrammar::from_json_schema(schema::object())),
            Constraint::JsonSchema(text) => {
                let given: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
                schema::check(&given)?;
                let closed = parser(TopLevelGrammar::from_json_schema(schema::normalise(&given, true)));
                // Closing objects that are composed of several may leave nothing that fits.
                closed.or_else(|first| {
                    parser(TopLevelGrammar::from_json_schema(schema::normalise(&given, false))).map_err(|_| first)
                })
            }
            Constraint::Regex(regex) if regex.len() > REGEX_BYTES_MAX => {
                Err(format!("it has {} bytes, and at most {REGEX_BYTES_MAX} are taken", regex.len()))
            }
            Constraint::Regex(regex) => parser(TopLevelGrammar::from_regex(regex)),
            Constraint::Lark(lark) => parser(TopLevelGrammar::from_lark(lark.clone())),
            Constraint::Choice(choices) if choices.is_empty() => Err("there is nothing to choose from".into()),
            Constraint::Choice(choices) if choices.len() > CHOICES_MAX => {
                Err(format!("it has {} entries, and at most {CHOICES_MAX} are taken", choices.len()))
            }
            Constraint::Choice(choices) => {
                let quoted = choices.iter().map(|choice| serde_json::Value::from(choice.as_str()).to_string());
                let lark = format!("start: {}", quoted.collect::<Vec<_>>().join(" | "));
                parser(TopLevelGrammar::from_lark(lark))
            }
            Constraint::Gbnf(_) => Err("GBNF is not llguidance's".into()),
        }
    }

    fn parser(&self, grammar: TopLevelGrammar) -> Result<Matcher, String> {
        let tools = self.factory.get_or_init(|| tools(&self.model));
        let parser = tools.as_ref().map_err(Clone::clone)?.parsers.create_parser(grammar);
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

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tools<M: Model>(model: &Arc<M>) -> Result<Tools, String> {
    let env: TokEnv = vocabulary::environment(model)?;
    let capabilities = InferenceCapabilities { ff_tokens: true, ..Default::default() };
    let slices = llguidance::earley::SlicedBiasComputer::json_slices();
    let mut parsers = ParserFactory::new(&env, capabilities, &slices).map_err(|error| error.to_string())?;
    parsers.quiet();
    // The other limits are llguidance's: at most some 20 ms of lexer work to compile, some 15 ms a mask.
    parsers.limits_mut().verbose_errors = false;
    Ok(Tools { parsers, words: Arc::new(Words::new(env)) })
}

/// The grammar of what the frame holds, with the frame around it.
fn around(framed: &Framed, mut inner: TopLevelGrammar) -> TopLevelGrammar {
    if framed.before.is_empty() && framed.after.is_empty() {
        return inner;
    }
    let mut grammar = TopLevelGrammar::from_lark(format!("start: {} @answer {}", framed.before, framed.after));
    if let Some(first) = inner.grammars.first_mut() {
        first.name = Some("answer".into());
    }
    grammar.grammars.append(&mut inner.grammars);
    grammar
}

/// The text as Lark: control tokens, which `controls` names with their ids, by id, and the rest as strings.
pub(super) fn lark_literal(text: &str, controls: &[(String, Token)]) -> String {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let next = controls.iter().filter_map(|(control, token)| Some((rest.find(control.as_str())?, control, token)));
        let next = next.min_by_key(|(at, control, _)| (*at, std::cmp::Reverse(control.len())));
        let end = next.as_ref().map_or(rest.len(), |(at, ..)| *at);
        if end > 0 {
            parts.push(serde_json::Value::from(&rest[..end]).to_string());
        }
        rest = &rest[end..];
        if let Some((_, control, token)) = next {
            parts.push(format!("<[{token}]>"));
            rest = &rest[control.len()..];
        }
    }
    parts.join(" ")
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
