//! What is told of a slot's tokens, beside those of the other slots: its constraint takes them, its text grows by them, what
//! drafts for it follows them. What slots share waits until all are done.

use super::super::backend::{Chosen, Listener, Place};
use super::super::constraint::{Gate, Step};
use super::super::drafter::Drafter;
use super::super::text::{Released, TextBuilder};
use super::*;
use crate::chat::{Finish, Likely, TokenLogprob};

/// What a slot's tokens of one step came to.
#[derive(Default)]
pub(super) struct Told {
    /// Those that were added to the answer, with the text that each released; not one that ends the turn, which has none.
    pub tokens: Vec<(Token, Released)>,
    /// Why the answer is over.
    pub end: Option<End>,
    /// A token was chosen.
    pub is_begun: bool,
}

pub(super) enum End {
    Finish(Finish),
    /// The constraint can't go on.
    Constraint(String),
    Internal(String),
}

/// A run's parts that its tokens change.
pub(super) struct Teller<'a, M> {
    model: &'a M,
    gate: Option<&'a mut Gate>,
    /// The prompt and the answer.
    tokens: &'a mut Vec<Token>,
    n_prompt: usize,
    /// Most tokens of both.
    n_max: usize,
    preserved: &'a [Token],
    text: &'a mut TextBuilder,
    drafter: Option<&'a mut Drafter>,
    /// As in `Pick`.
    pub top: Option<(usize, &'a [(Token, f32)])>,
    pub told: Told,
}

/// What is told of a token at its place.
pub(super) fn entry<M: Model>(model: &M, id: Token, logprob: f32, top: Vec<(Token, f32)>) -> TokenLogprob {
    let bytes = |id: Token| model.piece(id).to_vec();
    let top = top.into_iter().map(|(id, logprob)| Likely { id, bytes: bytes(id), logprob }).collect();
    TokenLogprob { id, bytes: bytes(id), logprob, top }
}

impl<M: Model> Listener for Teller<'_, M> {
    fn place(&self, at: usize) -> Option<Place<'_>> {
        self.gate.as_ref().map_or(Some(Place::Chosen(None)), |gate| gate.place(at))
    }

    fn take(&mut self, chosen: &mut Vec<Result<Chosen, String>>, show: &mut dyn FnMut(Token) -> Result<(), String>) {
        let mut rows = chosen.drain(..).peekable();
        while let Some(first) = rows.next() {
            let is_shown = |next: &Result<Chosen, String>| next.as_ref().is_ok_and(|next| next.is_forced);
            let n_shown = std::iter::from_fn(|| rows.next_if(is_shown)).count();
            if let Err(end) = self.take_one(first, n_shown, show) {
                self.told.end = Some(end);
                return;
            }
        }
    }
}

impl<'a, M: Model> Teller<'a, M> {
    /// Of a run, beside its sampler.
    pub fn of(run: &'a mut Run<M::Sampler>, model: &'a M, n_ctx_seq: usize) -> (Self, &'a mut M::Sampler) {
        let n_prompt = run.n_prompt as usize;
        let teller = Self {
            model,
            gate: run.gate.as_deref_mut(),
            tokens: &mut run.tokens,
            n_prompt,
            n_max: (n_prompt + run.n_generate_max as usize).min(n_ctx_seq),
            preserved: &run.preserved,
            text: &mut run.text,
            drafter: run.drafter.as_deref_mut(),
            top: run.top_logprobs.map(|k| (usize::from(k), run.logit_bias.as_slice())),
            told: Told::default(),
        };
        (teller, &mut run.sampler)
    }

    /// Takes the token that was chosen, and what it forces, of which the sampler was shown the first `n_shown`.
    fn take_one(
        &mut self,
        chosen: Result<Chosen, String>,
        n_shown: usize,
        show: &mut dyn FnMut(Token) -> Result<(), String>,
    ) -> Result<(), End> {
        let Chosen { token, told, .. } =
            chosen.map_err(|reason| End::Internal(format!("no token could be chosen: {reason}")))?;
        self.told.is_begun = true;
        if self.model.is_end(token) {
            // The answer is over, whatever the constraint would say.
            self.tokens.push(token);
            return Err(End::Finish(Finish::EndOfTurn));
        }
        let step = match &mut self.gate {
            Some(gate) => gate.take(token, self.model.piece(token)),
            None => Ok(Step::default()),
        };
        let told = told.filter(|_| self.is_shown(token));
        let entry = told.map(|(logprob, top)| entry(self.model, token, logprob, top));
        // What the constraint makes of a token that ends the answer anyway doesn't matter.
        let is_last = step.as_ref().is_ok_and(|step| step.is_complete && step.forced.is_empty());
        self.tell(token, entry, is_last)?;
        let step = step.map_err(End::Constraint)?;
        for (at, token) in step.forced.iter().enumerate() {
            if at >= n_shown {
                show(*token).map_err(|reason| End::Internal(format!("a forced token was refused: {reason}")))?;
            }
            // A limit inside forced tokens cuts the answer there.
            let is_last = step.is_complete && at + 1 == step.forced.len();
            self.tell(*token, None, is_last)?;
        }
        Ok(())
    }

    fn is_shown(&self, token: Token) -> bool {
        !self.model.is_control(token) || self.preserved.contains(&token)
    }

    /// Adds a token to the answer, which is complete with it where it `is_last`; the error is its end.
    fn tell(&mut self, token: Token, entry: Option<TokenLogprob>, is_last: bool) -> Result<(), End> {
        self.tokens.push(token);
        let piece = if self.is_shown(token) { self.model.piece(token) } else { &[] };
        if let Some(drafter) = &mut self.drafter {
            drafter.follow(self.tokens, self.n_prompt);
        }
        let mut released = self.text.push(piece, entry);
        let stop = released.stop.take();
        self.told.tokens.push((token, released));
        match stop {
            Some(stop) => Err(End::Finish(Finish::StopString(stop))),
            None if is_last => Err(End::Finish(Finish::EndOfTurn)),
            None if self.tokens.len() >= self.n_max => Err(End::Finish(Finish::Length)),
            None => Ok(()),
        }
    }
}
