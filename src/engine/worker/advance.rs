//! What follows from a decode: tokens are chosen, for all slots at once (see `Context::choose`), and told, runs end.

use super::super::backend::{Ask, Bounds, Chosen, Pick, Place};
use super::super::constraint::{Gate, Step};
use super::super::media;
use super::super::request::RequestId;
use super::*;
use crate::chat::{Finish, Likely, TokenLogprob};
use std::time::Instant;

/// What is told of a token at its place.
fn entry<M: Model>(model: &M, id: Token, logprob: f32, top: Vec<(Token, f32)>) -> TokenLogprob {
    let bytes = |id: Token| model.piece(id).to_vec();
    let top = top.into_iter().map(|(id, logprob)| Likely { id, bytes: bytes(id), logprob }).collect();
    TokenLogprob { id, bytes: bytes(id), logprob, top }
}

/// What a slot's row came to, and those of its draft.
#[derive(Default)]
struct Said {
    chosen: Vec<Result<Chosen, String>>,
    /// What followed from each that was not forced, where a constraint holds the answer.
    steps: Vec<Result<Step, String>>,
}

/// A run's constraint, beside the sampler of its slot.
struct Held<'a, M> {
    gate: &'a mut Gate,
    model: &'a M,
    steps: Vec<Result<Step, String>>,
}

impl<M: Model> Bounds for Held<'_, M> {
    fn place(&self, at: usize) -> Option<Place<'_>> {
        self.gate.place(at)
    }

    fn take(&mut self, token: Token) {
        // The answer is over, whatever the constraint would say.
        let is_end = self.model.is_end(token);
        self.steps.push(if is_end { Ok(Step::default()) } else { self.gate.take(token, self.model.piece(token)) });
    }
}

impl<M: Model> Worker<M> {
    /// The decode is done: remember what is computed, and go on with what has its logits. Answers how long choosing took.
    pub(super) fn advance(&mut self, shares: &[Share]) -> Duration {
        let drafts = std::mem::take(&mut self.drafts);
        let start = Instant::now();
        let said = self.choose(shares, &drafts);
        let choosing = start.elapsed();
        let asked = self.ask_prompts(shares, &drafts);
        for (((share, draft), said), asked) in shares.iter().zip(&drafts).zip(said).zip(asked) {
            let slot = &mut self.slots[share.slot];
            let Some(run) = &slot.run else {
                // It ended beside the decode: what was computed for it is nobody's.
                self.resync(share.slot);
                continue;
            };
            let from = slot.kept.len();
            slot.kept.extend_from_slice(&run.tokens[from..from + share.n_rows as usize]);
            if self.context.shares_cells() {
                self.cells.take(share.n_rows as usize, &mut slot.cells);
            }
            self.echo(share.slot, asked);
            self.charge(share.slot);
            let slot = &mut self.slots[share.slot];
            let Some(run) = &slot.run else { continue };
            if slot.kept.len() == run.tokens.len() {
                self.next_tokens(share.slot, said, share.n_rows, draft);
            } else if run.n_generated() == 0 {
                self.out.push(Item::Progress {
                    id: run.id,
                    n_prompt: run.n_prompt,
                    n_computed: slot.kept.len() as u32,
                    n_cached: run.n_cached,
                });
            }
        }
        self.drafts = drafts;
        choosing
    }

    /// The tokens of the shares that have their logits, in the order of the shares; none where the others are, or nobody wants
    /// any. Constraints have taken them.
    fn choose(&mut self, shares: &[Share], drafts: &[Draft]) -> Vec<Said> {
        let mut places = vec![None; self.slots.len()];
        let mut row = 0;
        for (at, (share, draft)) in shares.iter().zip(drafts).enumerate() {
            let last = row + share.n_rows as usize - 1;
            row = last + 1 + draft.tokens.len();
            places[share.slot] = Some((at, share.n_rows as usize, last));
        }
        let (model, mut choosers) = (&*self.model, Vec::new());
        for (slot, place) in self.slots.iter_mut().zip(places) {
            let Some((at, n_rows, row)) = place else { continue };
            let n_reached = slot.kept.len() + n_rows;
            let Some(run) = slot.run.as_mut().filter(|run| n_reached == run.tokens.len()) else { continue };
            if run.n_generate_max == 0 {
                continue;
            }
            let held = run.gate.as_mut().map(|gate| Held { gate, model, steps: Vec::new() });
            let top = run.top_logprobs.map(|k| (usize::from(k), run.logit_bias.as_slice()));
            choosers.push((at, row, &mut run.sampler, top, held));
        }
        let mut picks = Vec::new();
        for (at, row, sampler, top, held) in &mut choosers {
            let bounds = held.as_mut().map(|held| held as &mut dyn Bounds);
            picks.push(Pick {
                row: *row,
                draft: &drafts[*at].tokens,
                sampler: &mut **sampler,
                bounds,
                top: *top,
                chosen: Vec::new(),
            });
        }
        self.context.choose(&mut picks);
        let chosen: Vec<_> = picks.into_iter().map(|pick| pick.chosen).collect();
        let mut said: Vec<Said> = shares.iter().map(|_| Said::default()).collect();
        for ((at, .., held), chosen) in choosers.into_iter().zip(chosen) {
            said[at] = Said { chosen, steps: held.map_or(Vec::new(), |held| held.steps) };
        }
        said
    }

    /// Counts for the owner what was computed for the run in this slot.
    fn charge(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let Some(run) = &mut slot.run else { return };
        let (n_input, n_output) = run.news(slot.kept.len());
        if n_input + n_output > 0 {
            self.fair.charge(run.class, run.owner, n_input.into(), n_output.into());
        }
    }

    /// What is told of the prompts' tokens whose log-probabilities are wanted, in the order of the shares.
    fn ask_prompts(&mut self, shares: &[Share], drafts: &[Draft]) -> Vec<Vec<Ask>> {
        let (mut asks, mut counts) = (Vec::new(), Vec::new());
        let mut first = 0;
        for (share, draft) in shares.iter().zip(drafts) {
            let (slot, n_before) = (&self.slots[share.slot], asks.len());
            if let Some(run) = &slot.run
                && let Some(echo) = run.echo.as_ref().filter(|echo| echo.with_logprobs)
            {
                let mut next = echo.entries.len().max(1);
                for i in 0..share.n_rows as usize {
                    // The row of one token speaks about the next. A run that was parked has told some already.
                    let about = slot.kept.len() + i + 1;
                    if about < run.n_prompt as usize && about == next {
                        let k = usize::from(run.top_logprobs.unwrap_or(0));
                        asks.push(Ask { row: first + i, token: run.tokens[about], k, told: None });
                        next += 1;
                    }
                }
            }
            counts.push(asks.len() - n_before);
            first += share.n_rows as usize + draft.tokens.len();
        }
        if !asks.is_empty() {
            self.context.tell(&mut asks);
        }
        let mut asks = asks.into_iter();
        counts.into_iter().map(|n| asks.by_ref().take(n).collect()).collect()
    }

    /// Tells the prompt's tokens, where they are wanted.
    fn echo(&mut self, index: usize, asked: Vec<Ask>) {
        let Some(run) = &mut self.slots[index].run else { return };
        let n_prompt = run.n_prompt as usize;
        let Some(echo) = &mut run.echo else { return };
        let plain = |token: Token| entry(&*self.model, token, 0.0, Vec::new());
        if !echo.with_logprobs {
            echo.entries.extend(run.tokens[..n_prompt].iter().map(|token| plain(*token)));
        } else {
            if echo.entries.is_empty() {
                echo.entries.push(plain(run.tokens[0]));
            }
            for ask in asked {
                // Those behind one that can't be told have no place either.
                let Some((logprob, top)) = ask.told else { break };
                echo.entries.push(entry(&*self.model, ask.token, logprob, top));
            }
        }
        if echo.entries.len() >= n_prompt {
            let entries = std::mem::take(&mut echo.entries);
            run.echo = None;
            self.out.push(Item::Prompt { id: run.id, entries });
            if run.n_generate_max == 0 {
                self.end_run(index, |run, now| run.done(Finish::Length, now));
            }
        }
    }

    /// Goes on with what was chosen of its row, and of those behind it as long as the draft there was right.
    /// `n_before`: rows of the share before the draft's.
    fn next_tokens(&mut self, index: usize, said: Said, n_before: u32, draft: &Draft) {
        let (source, draft) = (draft.source, &draft.tokens);
        let mut n_right = 0;
        let (mut chosen, mut steps) = (said.chosen.into_iter().peekable(), said.steps.into_iter());
        'rows: while let Some(first) = chosen.next() {
            let mut tokens: Vec<Token> = first.iter().map(|first| first.token).collect();
            while let Some(Ok(forced)) = chosen.next_if(|next| next.as_ref().is_ok_and(|next| next.is_forced)) {
                tokens.push(forced.token);
            }
            let step = if first.is_ok() { steps.next() } else { None };
            if !self.next_token(index, first, step.unwrap_or(Ok(Step::default())), tokens.len().saturating_sub(1)) {
                break;
            }
            for token in tokens {
                if draft.get(n_right) != Some(&token) {
                    break 'rows;
                }
                // Its row was computed with the draft.
                n_right += 1;
                self.slots[index].kept.push(token);
                if self.context.shares_cells() {
                    self.cells.take(1, &mut self.slots[index].cells);
                }
            }
        }
        if draft.is_empty() {
            return;
        }
        self.settle(index, source, n_before, draft.len(), n_right);
        if n_right < draft.len() {
            self.resync(index);
        }
    }

    /// Tells the token that was chosen, and what it forces, of which the sampler was shown the first `n_shown`; false when the
    /// run ended with them.
    fn next_token(
        &mut self,
        index: usize,
        chosen: Result<Chosen, String>,
        step: Result<Step, String>,
        n_shown: usize,
    ) -> bool {
        let Some(run) = &mut self.slots[index].run else { return false };
        let Chosen { token, told, .. } = match chosen {
            Ok(chosen) => chosen,
            Err(reason) => {
                let failure = Failure::Internal(format!("no token could be chosen: {reason}"));
                self.end_run(index, |run, _| Item::Failed { id: run.id, failure });
                return false;
            }
        };
        if run.clock.first_token.is_none() {
            run.clock.first_token = Some(Instant::now());
            self.is_urgent = true;
        }
        if self.model.is_end(token) {
            run.tokens.push(token);
            self.end_run(index, |run, now| run.done(Finish::EndOfTurn, now));
            return false;
        }
        let is_shown = !self.model.is_control(token) || run.preserved.contains(&token);
        let told = told.filter(|_| is_shown);
        let entry = told.map(|(logprob, top)| entry(&*self.model, token, logprob, top));
        let is_last = step.as_ref().is_ok_and(|step| step.is_complete && step.forced.is_empty());
        self.tell(index, token, entry, is_last) && self.go_on(index, step, n_shown)
    }

    /// Adds a token to the answer, which is complete with it where it `is_last`; false when the run ended with it.
    fn tell(&mut self, index: usize, token: Token, entry: Option<TokenLogprob>, is_last: bool) -> bool {
        let Some(run) = &mut self.slots[index].run else { return false };
        run.tokens.push(token);
        let is_shown = !self.model.is_control(token) || run.preserved.contains(&token);
        let piece = if is_shown { self.model.piece(token) } else { &[] };
        if let Some(drafter) = &mut run.drafter {
            drafter.follow(&run.tokens, run.n_prompt as usize, self.answers.of(run.partition));
        }
        let mut released = run.text.push(piece, entry);
        let stop = released.stop.take();
        let is_full = run.tokens.len() >= self.context.n_ctx_seq() as usize;
        let is_long = run.n_generated() >= run.n_generate_max;
        self.out.push(Item::Token { id: run.id, released, token: run.with_tokens.then_some(token) });
        if let Some(stop) = stop {
            self.end_run(index, |run, now| run.done(Finish::StopString(stop), now));
        } else if is_last || is_long || is_full {
            let finish = if is_last { Finish::EndOfTurn } else { Finish::Length };
            self.end_run(index, |run, now| run.done(finish, now));
        } else {
            return true;
        }
        false
    }

    /// Goes on with what the run's constraint said of a token: tells what it forces; false when the run ended.
    fn go_on(&mut self, index: usize, step: Result<Step, String>, n_shown: usize) -> bool {
        let step = match step {
            Ok(step) => step,
            Err(reason) => {
                self.fail_constraint(index, &reason);
                return false;
            }
        };
        for (at, token) in step.forced.iter().enumerate() {
            let Some(run) = &mut self.slots[index].run else { return false };
            if at >= n_shown
                && let Err(reason) = self.context.accept(&mut run.sampler, *token)
            {
                let failure = Failure::Internal(format!("a forced token was refused: {reason}"));
                self.end_run(index, |run, _| Item::Failed { id: run.id, failure });
                return false;
            }
            // A limit inside forced tokens cuts the answer there.
            let is_last = step.is_complete && at + 1 == step.forced.len();
            if !self.tell(index, *token, None, is_last) {
                return false;
            }
        }
        true
    }

    pub(super) fn fail_constraint(&mut self, index: usize, reason: &str) {
        let failure = Failure::invalid("response_format", "invalid_json_schema", format!("the constraint: {reason}"));
        self.end_run(index, |run, _| Item::Failed { id: run.id, failure });
    }

    /// Frees the slot; what it holds stays for a request that continues it.
    pub(super) fn end_run(&mut self, index: usize, item: impl FnOnce(&mut Run<M::Sampler>, Instant) -> Item) {
        self.charge(index);
        let Some(mut run) = self.slots[index].run.take() else { return };
        self.fair.end(run.class, run.owner);
        self.n_ended += 1;
        if let Some(drafter) = &run.drafter {
            self.texts.learn(drafter);
            if let Some(pool) = self.answers.of(run.partition) {
                drafter.end(pool);
            }
        }
        self.lock_stats().tokens_generated += u64::from(run.n_generated());
        self.is_urgent = true;
        self.out.push(item(&mut run, Instant::now()));
        if !run.cache_prompt {
            self.cut(index, 0);
        }
    }

    /// After an aborted decode, or a draft that was wrong, the sequence holds more than `kept`: go back to it.
    pub(super) fn resync(&mut self, index: usize) {
        let slot = &self.slots[index];
        // Positions inside an image don't tell its rows apart.
        let held = media::whole(&slot.media, slot.kept.len());
        let pos = slot.position(held);
        let stays = if held > 0 && self.context.forget(index as u32, pos) { held } else { 0 };
        if stays == 0 {
            self.context.forget(index as u32, 0);
        }
        self.held_only(index, stays);
    }

    pub(super) fn fail_shares(&mut self, shares: &[Share], failure: &Failure) {
        for share in shares {
            self.end_run(share.slot, |run, _| Item::Failed { id: run.id, failure: failure.clone() });
            self.cut(share.slot, 0);
        }
    }

    pub(super) fn fail_everything(&mut self, failure: &Failure) {
        for index in 0..self.slots.len() {
            self.end_run(index, |run, _| Item::Failed { id: run.id, failure: failure.clone() });
        }
        self.fair = Fair::default();
        let waiting = self.waiting.drain(..).map(|run| run.id);
        let incoming: Vec<RequestId> = self.incoming.try_iter().map(|run| run.id).collect();
        let ids: Vec<RequestId> = waiting.chain(incoming).collect();
        self.out.extend(ids.into_iter().map(|id| Item::Failed { id, failure: failure.clone() }));
    }

    /// A new, empty context; runs that were not in the failed batch are computed again.
    pub(super) fn renew_context(&mut self) -> Result<(), Broken> {
        self.context = (self.reopen)().map_err(Broken)?;
        self.adapters.clear();
        if let Some(speculation) = &mut self.speculation {
            (0..self.slots.len()).for_each(|index| speculation.cleared(index));
        }
        for index in 0..self.slots.len() {
            self.held_only(index, 0);
        }
        Ok(())
    }
}
