//! One answer's way through its constraint.

use super::ahead::{Hold, along};
use super::watch::{Seen, Watch};
use crate::engine::backend::{self, Token};
use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;
use std::time::{Duration, Instant};

/// Most tokens that are forced at once; more come after the next.
const FORCED_MAX: usize = 64;
/// Longest draft inside a constraint, whose masks are computed one after another.
const AHEAD_MAX: usize = 24;

/// What may stand before or instead of the constrained text, as the tokens that begin it.
#[derive(Debug, Clone)]
pub enum Opening {
    /// Thinking: the constraint begins behind its end tag.
    Thinking(Vec<Token>),
    /// A tool call, of the number in [`Rules::calls`].
    Call(usize, Vec<Token>),
}

impl Opening {
    fn tokens(&self) -> &[Token] {
        match self {
            Opening::Thinking(tokens) | Opening::Call(_, tokens) => tokens,
        }
    }
}

/// What an answer is held to.
pub struct Rules {
    /// What the answer must be; `None`: text, as far as `watch` lets it.
    pub answer: Option<Matcher>,
    /// The same behind a thought, where it is framed otherwise there.
    pub answer_after_thought: Option<Matcher>,
    /// What a call must be behind each text that begins one; empty: another grammar's business.
    pub calls: Vec<Matcher>,
    /// What may come before or instead of the answer.
    pub openings: Vec<Opening>,
    /// What may come instead of the answer behind a thought.
    pub openings_after_thought: Vec<Opening>,
    pub watch: Option<Watch>,
    /// Tags that end thinking.
    pub thinking_ends: Vec<String>,
    /// The prompt ended inside thinking.
    pub is_thinking: bool,
    /// What a thought may hold; `None`: anything, its turn's end too.
    pub thoughts: Option<SimpleVob>,
    /// The answer is only what must come before it: text follows, as far as `watch` lets it.
    pub is_prologue: bool,
    /// Forced tokens are taken without asking the model.
    pub forces: bool,
}

/// Lets through what the rules allow.
pub struct Gate {
    rules: Rules,
    place: Place,
    /// The end of the thought so far, at most as long as the longest tag.
    tail: Vec<u8>,
    mask: Option<SimpleVob>,
    /// Tokens that are computed beside the mask.
    draft: Vec<Token>,
    /// What may stand behind each of them, where the constraint holds.
    ahead: Option<Vec<Hold>>,
    /// What a mask of the constraint took on average, of those computed last.
    per_mask: Option<Duration>,
}

enum Place {
    /// The model thinks; anything goes until an end tag.
    Thinking,
    /// The constrained text or one of the openings, which may begin alike: these tokens are there, and the answer may
    /// still be what they begin.
    Start { said: Vec<Token>, is_answer: bool },
    /// `rules.answer` holds.
    Bound,
    /// Text, as far as `rules.watch` lets it.
    Watched,
    /// Another grammar has taken over, or none.
    Free,
}

/// Said of a bug.
const LOST: &str = "the constraint is lost";

fn allowed(matcher: &mut Option<Matcher>) -> Result<SimpleVob, String> {
    let matcher = matcher.as_mut().ok_or(LOST)?;
    matcher.compute_mask_or_eos().map_err(|error| super::first_line(&error.to_string()))
}

/// No token.
fn none(matcher: Option<&Matcher>) -> Result<SimpleVob, String> {
    let env = matcher.ok_or(LOST)?.tok_env().map_err(|error| super::first_line(&error.to_string()))?;
    Ok(env.tok_trie().alloc_token_set())
}

/// What follows from a token.
#[derive(Default)]
pub struct Step {
    /// Tokens that come next, whatever the model says.
    pub forced: Vec<Token>,
    /// Nothing can follow: the answer is complete.
    pub is_complete: bool,
}

impl Gate {
    pub fn new(mut rules: Rules) -> Self {
        for openings in [&mut rules.openings, &mut rules.openings_after_thought] {
            openings.retain(|opening| !opening.tokens().is_empty());
        }
        // The one that stands for the beginning may have gone on by then.
        if rules.answer_after_thought.is_none() && !rules.openings.is_empty() {
            rules.answer_after_thought.clone_from(&rules.answer);
        }
        let mut gate = Self {
            rules,
            place: Place::Free,
            tail: Vec::new(),
            mask: None,
            draft: Vec::new(),
            ahead: None,
            per_mask: None,
        };
        gate.place = if gate.rules.is_thinking { Place::Thinking } else { gate.beginning() };
        gate
    }

    /// Where the answer begins, behind a thought or without one.
    fn beginning(&self) -> Place {
        match (&self.rules.answer, &self.rules.watch) {
            (Some(_), _) if self.rules.openings.is_empty() => Place::Bound,
            (Some(_), _) => Place::Start { said: Vec::new(), is_answer: true },
            (None, Some(_)) => Place::Watched,
            (None, None) => Place::Free,
        }
    }

    /// Whether `prepare` has something to do before the next token.
    pub fn needs_mask(&self) -> bool {
        match self.place {
            Place::Free => false,
            Place::Thinking => self.rules.thoughts.is_some(),
            Place::Watched => self.rules.watch.as_ref().is_some_and(Watch::is_close),
            Place::Start { .. } | Place::Bound => true,
        }
    }

    /// The tokens of a draft are computed with the next row: `prepare` says what may stand behind each.
    pub fn expect(&mut self, draft: &[Token]) {
        self.draft.clear();
        self.draft.extend_from_slice(draft);
    }

    /// Computes which tokens may come next. Errors end the request.
    pub fn prepare(&mut self) -> Result<(), String> {
        (self.ahead, self.per_mask) = (None, None);
        let start = Instant::now();
        self.mask = match &self.place {
            _ if !self.needs_mask() => None,
            Place::Free => None,
            Place::Thinking => self.rules.thoughts.clone(),
            Place::Watched => self.rules.watch.as_ref().map(|watch| watch.mask(&mut self.rules.calls)),
            Place::Bound => Some(allowed(&mut self.rules.answer)?),
            Place::Start { said, is_answer } => {
                let mut mask = match is_answer {
                    true => allowed(&mut self.rules.answer)?,
                    false => none(self.rules.answer.as_ref())?,
                };
                for opening in &self.rules.openings {
                    if let Some(next) = opening.tokens().strip_prefix(said.as_slice()).and_then(<[Token]>::first) {
                        mask.allow_token(next.cast_unsigned());
                    }
                }
                Some(mask)
            }
        };
        if let (Place::Bound, Some(first)) = (&self.place, &self.mask)
            && !self.draft.is_empty()
        {
            let matcher = self.rules.answer.as_mut().ok_or(LOST)?;
            let n_forced = if self.rules.forces { FORCED_MAX } else { 0 };
            self.ahead = Some(along(matcher, &self.draft, first, n_forced)?);
        }
        if matches!(self.place, Place::Bound) {
            let ahead = self.ahead.iter().flatten().filter(|hold| matches!(hold, Hold::Mask(_)));
            self.per_mask = start.elapsed().checked_div(1 + ahead.count() as u32);
        }
        Ok(())
    }

    /// What may stand behind the first `at` tokens of the draft; `None`: the draft leaves the constraint, or is complete.
    pub fn place(&self, at: usize) -> Option<backend::Place<'_>> {
        match &self.ahead {
            Some(ahead) if at > 0 => ahead.get(at - 1).map(Hold::place),
            _ => Some(backend::Place::Chosen(self.mask())),
        }
    }

    /// Bit `t % 32` of word `t / 32` is set when token `t` may come next; `None`: any may.
    pub fn mask(&self) -> Option<&[u32]> {
        self.mask.as_ref().map(SimpleVob::as_slice)
    }

    /// What a mask of the constraint took, where `prepare` computed any.
    pub fn per_mask(&self) -> Option<Duration> {
        self.per_mask
    }

    /// Whether the constraint has to be asked about each token of a draft.
    pub fn is_asked(&self) -> bool {
        matches!(self.place, Place::Bound)
    }

    /// Whether anything may be drafted now.
    pub fn may_draft(&self) -> bool {
        self.is_asked() || self.is_steady()
    }

    /// Whether the next token is text or a thought that is not just about to become something else.
    pub fn is_steady(&self) -> bool {
        match &self.place {
            Place::Free | Place::Thinking => true,
            Place::Watched => self.rules.watch.as_ref().is_none_or(Watch::is_steady),
            Place::Start { .. } | Place::Bound => false,
        }
    }

    /// How many of these tokens, given by their bytes, may be drafted at once. Either they leave all as it is: the mask of the
    /// first holds for each of them and for the one behind, nothing is forced and nothing complete. Or the constraint holds
    /// throughout, and can be asked ahead of them.
    pub fn n_ahead<'a>(&self, pieces: impl Iterator<Item = &'a [u8]>) -> usize {
        if matches!(self.place, Place::Bound) {
            return pieces.take(AHEAD_MAX).count();
        }
        if !self.is_steady() {
            return 0;
        }
        match (&self.place, &self.rules.watch) {
            (Place::Thinking, _) => {
                let mut tail = self.tail.clone();
                pieces.take_while(|piece| self.goes_on_thinking(&mut tail, piece)).count()
            }
            (Place::Watched, Some(watch)) => watch.n_steady(pieces),
            _ => pieces.count(),
        }
    }

    /// Takes the token that was chosen, whose bytes are `piece`.
    pub fn take(&mut self, token: Token, piece: &[u8]) -> Result<Step, String> {
        (self.mask, self.ahead) = (None, None);
        self.draft.clear();
        match &mut self.place {
            Place::Free => Ok(Step::default()),
            Place::Thinking => {
                self.think(piece);
                Ok(Step::default())
            }
            Place::Watched => self.watch(piece),
            Place::Start { said, is_answer } => {
                said.push(token);
                let (said, is_answer) = (said.clone(), *is_answer);
                self.start(token, said, is_answer)
            }
            Place::Bound => self.consume(&[token.cast_unsigned()]),
        }
    }

    /// The answer begins: with what it must be, or with an opening.
    fn start(&mut self, token: Token, said: Vec<Token>, was_answer: bool) -> Result<Step, String> {
        let begun = |one: &Opening| one.tokens().starts_with(&said);
        let is_answer = was_answer && self.is_allowed(token);
        let whole = self.rules.openings.iter().position(|one| one.tokens() == said);
        let is_open = self.rules.openings.iter().any(begun);
        match whole {
            Some(which) if !is_answer => {
                self.open(which);
                Ok(Step::default())
            }
            _ if is_open && !is_answer => {
                self.place = Place::Start { said, is_answer };
                Ok(Step::default())
            }
            _ if is_open => {
                self.place = Place::Start { said, is_answer };
                let matcher = self.rules.answer.as_mut().ok_or(LOST)?;
                matcher.consume_token(token.cast_unsigned()).map_err(|error| super::first_line(&error.to_string()))?;
                Ok(Step::default())
            }
            _ => {
                self.place = Place::Bound;
                self.consume(&[token.cast_unsigned()])
            }
        }
    }

    fn is_allowed(&mut self, token: Token) -> bool {
        let matcher = self.rules.answer.as_mut();
        matcher.is_some_and(|matcher| matcher.validate_tokens(&[token.cast_unsigned()]).is_ok_and(|n| n == 1))
    }

    /// Tells the constraint of tokens, and finds out what follows from them.
    fn consume(&mut self, tokens: &[u32]) -> Result<Step, String> {
        let lost = |error: &dyn std::fmt::Display| super::first_line(&error.to_string());
        let matcher = self.rules.answer.as_mut().ok_or(LOST)?;
        matcher.consume_tokens(tokens).map_err(|error| lost(&error))?;
        let mut forced = Vec::new();
        if self.rules.forces && !matcher.is_stopped() {
            forced = matcher.compute_ff_tokens();
            forced.truncate(FORCED_MAX);
            matcher.consume_tokens(&forced).map_err(|error| lost(&error))?;
        }
        let mut is_complete = matcher.is_stopped();
        if is_complete && self.rules.is_prologue {
            is_complete = false;
            self.place = if self.rules.watch.is_some() { Place::Watched } else { Place::Free };
        }
        Ok(Step { forced: forced.into_iter().map(u32::cast_signed).collect(), is_complete })
    }

    /// Text goes on, or a thought or a call begins.
    fn watch(&mut self, piece: &[u8]) -> Result<Step, String> {
        let Some(watch) = &mut self.rules.watch else { return Ok(Step::default()) };
        match watch.take(piece) {
            Seen::Text => Ok(Step::default()),
            Seen::Thinking(thought) => {
                self.place = Place::Thinking;
                self.think(&thought);
                Ok(Step::default())
            }
            Seen::Call(which, more) => {
                let tokens = watch.tokens_of(&more);
                self.begin_call(which);
                self.consume(&tokens)
            }
        }
    }

    /// An opening is there as a whole.
    fn open(&mut self, which: usize) {
        match self.rules.openings[which] {
            Opening::Thinking(_) => self.place = Place::Thinking,
            Opening::Call(call, _) => self.begin_call(call),
        }
    }

    /// From here on the answer is a call.
    fn begin_call(&mut self, which: usize) {
        if which >= self.rules.calls.len() {
            self.place = Place::Free;
            return;
        }
        self.rules.answer = Some(self.rules.calls.swap_remove(which));
        self.rules.is_prologue = false;
        self.place = Place::Bound;
    }

    fn think(&mut self, piece: &[u8]) {
        let mut tail = std::mem::take(&mut self.tail);
        if self.goes_on_thinking(&mut tail, piece) {
            self.tail = tail;
            return;
        }
        let Some(end) = self.end_of_thought(&tail) else { return };
        // In some formats a call may end a thought.
        let call = self.rules.watch.as_ref().and_then(|watch| watch.call_of(end));
        self.rules.openings = std::mem::take(&mut self.rules.openings_after_thought);
        if let Some(after) = self.rules.answer_after_thought.take() {
            self.rules.answer = Some(after);
        }
        match call {
            Some(which) => self.begin_call(which),
            None => self.place = self.beginning(),
        }
    }

    /// Takes the bytes in behind `tail`, which stays as long as the longest tag; false when they end the thought.
    fn goes_on_thinking(&self, tail: &mut Vec<u8>, piece: &[u8]) -> bool {
        tail.extend_from_slice(piece);
        if self.end_of_thought(tail).is_some() {
            return false;
        }
        let longest = self.rules.thinking_ends.iter().map(String::len).max().unwrap_or(0);
        let n_old = tail.len().saturating_sub(longest);
        tail.drain(..n_old);
        true
    }

    /// The tag that ends the thought first.
    fn end_of_thought(&self, tail: &[u8]) -> Option<&str> {
        let ends = self.rules.thinking_ends.iter();
        let found = ends.filter_map(|end| Some((memchr::memmem::find(tail, end.as_bytes())?, end.as_str())));
        found.min().map(|(_, end)| end)
    }
}
