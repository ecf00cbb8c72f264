//! One answer's way through its constraint.

use crate::engine::backend::Token;
use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

/// Most tokens that are forced at once; more come after the next.
const FORCED_MAX: usize = 64;

/// What may stand before or instead of the constrained text, as the tokens that begin it.
#[derive(Debug, Clone)]
pub enum Opening {
    /// Thinking: the constraint begins behind its end tag.
    Thinking(Vec<Token>),
    /// A tool call in the model's own format, which has a grammar of its own.
    Call(Vec<Token>),
}

impl Opening {
    fn tokens(&self) -> &[Token] {
        match self {
            Opening::Thinking(tokens) | Opening::Call(tokens) => tokens,
        }
    }
}

/// Lets through what the constraint allows.
pub struct Gate {
    matcher: Matcher,
    place: Place,
    openings: Vec<Opening>,
    /// Tags that end thinking.
    ends: Vec<String>,
    /// The end of the thought so far, at most as long as the longest tag.
    tail: Vec<u8>,
    mask: Option<SimpleVob>,
    /// While the model thinks, everything but the end of its turn.
    thoughts: SimpleVob,
    /// Forced tokens are taken without asking the model.
    forces: bool,
}

enum Place {
    /// The model thinks; anything goes until an end tag.
    Thinking,
    /// Nothing was said: the constrained text or one of the openings.
    Start,
    /// Inside an opening, of which this many tokens are there.
    Opening(usize, usize),
    Bound,
    /// Another grammar has taken over.
    Free,
}

/// What follows from a token.
pub struct Step {
    /// Tokens that come next, whatever the model says.
    pub forced: Vec<Token>,
    /// Nothing can follow: the answer is complete.
    pub is_complete: bool,
}

impl Gate {
    /// `thinking`: the prompt ended inside thinking, whose end tags are `ends`.
    pub fn new(
        matcher: Matcher,
        thoughts: SimpleVob,
        openings: Vec<Opening>,
        ends: Vec<String>,
        thinking: bool,
        forces: bool,
    ) -> Self {
        let place = match (thinking, openings.is_empty()) {
            (true, _) => Place::Thinking,
            (false, false) => Place::Start,
            (false, true) => Place::Bound,
        };
        let openings = openings.into_iter().filter(|opening| !opening.tokens().is_empty()).collect();
        Self { matcher, place, openings, ends, tail: Vec::new(), mask: None, thoughts, forces }
    }

    /// Computes which tokens may come next. Errors end the request.
    pub fn prepare(&mut self) -> Result<(), String> {
        self.mask = match self.place {
            Place::Free => None,
            Place::Thinking => Some(self.thoughts.clone()),
            Place::Bound => Some(self.allowed()?),
            Place::Start => {
                let mut mask = self.allowed()?;
                for token in self.openings.iter().filter_map(|opening| opening.tokens().first()) {
                    mask.allow_token(token.cast_unsigned());
                }
                Some(mask)
            }
            Place::Opening(which, n) => {
                let mut mask = self.thoughts.clone();
                mask.set_all(false);
                if let Some(token) = self.openings.get(which).and_then(|opening| opening.tokens().get(n)) {
                    mask.allow_token(token.cast_unsigned());
                }
                Some(mask)
            }
        };
        Ok(())
    }

    /// Bit `t % 32` of word `t / 32` is set when token `t` may come next; `None`: any may.
    pub fn mask(&self) -> Option<&[u32]> {
        self.mask.as_ref().map(SimpleVob::as_slice)
    }

    fn allowed(&mut self) -> Result<SimpleVob, String> {
        self.matcher.compute_mask_or_eos().map_err(|error| super::first_line(&error.to_string()))
    }

    /// Takes the token that was chosen, whose bytes are `piece`.
    pub fn take(&mut self, token: Token, piece: &[u8]) -> Result<Step, String> {
        self.mask = None;
        let open = Step { forced: Vec::new(), is_complete: false };
        match self.place {
            Place::Free => return Ok(open),
            Place::Thinking => {
                self.think(piece);
                return Ok(open);
            }
            Place::Start => {
                self.place = Place::Bound;
                if self.matcher.validate_tokens(&[token.cast_unsigned()]).is_ok_and(|n| n == 0)
                    && let Some(which) = self.openings.iter().position(|one| one.tokens().first() == Some(&token))
                {
                    self.open(which, 1);
                    return Ok(open);
                }
            }
            Place::Opening(which, n) => {
                self.open(which, n + 1);
                return Ok(open);
            }
            Place::Bound => {}
        }
        let lost = |error: &dyn std::fmt::Display| super::first_line(&error.to_string());
        self.matcher.consume_token(token.cast_unsigned()).map_err(|error| lost(&error))?;
        let mut forced = Vec::new();
        if self.forces && !self.matcher.is_stopped() {
            forced = self.matcher.compute_ff_tokens();
            forced.truncate(FORCED_MAX);
            self.matcher.consume_tokens(&forced).map_err(|error| lost(&error))?;
        }
        let forced = forced.into_iter().map(u32::cast_signed).collect();
        Ok(Step { forced, is_complete: self.matcher.is_stopped() })
    }

    /// `n` tokens of an opening are there.
    fn open(&mut self, which: usize, n: usize) {
        self.place = match &self.openings[which] {
            opening if n < opening.tokens().len() => Place::Opening(which, n),
            Opening::Thinking(_) => Place::Thinking,
            Opening::Call(_) => Place::Free,
        };
    }

    fn think(&mut self, piece: &[u8]) {
        self.tail.extend_from_slice(piece);
        let is_over = self.ends.iter().any(|end| memchr::memmem::find(&self.tail, end.as_bytes()).is_some());
        if is_over {
            self.tail.clear();
            // Behind a thought, a call may still come instead.
            self.openings.retain(|opening| matches!(opening, Opening::Call(_)));
            self.place = if self.openings.is_empty() { Place::Bound } else { Place::Start };
            return;
        }
        let longest = self.ends.iter().map(String::len).max().unwrap_or(0);
        let n_old = self.tail.len().saturating_sub(longest);
        self.tail.drain(..n_old);
    }
}
