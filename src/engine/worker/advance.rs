//! What follows from a decode: tokens are chosen, for all slots at once (see `Context::choose`), and told, runs end.

use super::super::backend::{Ask, Pick};
use super::super::media;
use super::super::request::RequestId;
use super::teller::{End, Teller, Told, entry};
use super::*;
use crate::chat::Finish;
use std::time::Instant;

impl<M: Model> Worker<M> {
    /// The decode is done: remember what is computed, and go on with what has its logits. Answers how long choosing took.
    pub(super) fn advance(&mut self, shares: &[Share]) -> Duration {
        let drafts = std::mem::take(&mut self.drafts);
        let start = Instant::now();
        let told = self.choose(shares, &drafts);
        let choosing = start.elapsed();
        let asked = self.ask_prompts(shares, &drafts);
        for (((share, draft), told), asked) in shares.iter().zip(&drafts).zip(told).zip(asked) {
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
            if let Some(told) = told {
                self.go_on(share.slot, told, share.n_rows, draft);
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

    /// Chooses tokens for the shares that have their logits, all slots beside one another, and tells of them; in the order of the
    /// shares, `None` where the logits are others, or nobody wants any.
    fn choose(&mut self, shares: &[Share], drafts: &[Draft]) -> Vec<Option<Told>> {
        let mut places = vec![None; self.slots.len()];
        let mut row = 0;
        for (at, (share, draft)) in shares.iter().zip(drafts).enumerate() {
            let last = row + share.n_rows as usize - 1;
            row = last + 1 + draft.tokens.len();
            places[share.slot] = Some((at, share.n_rows as usize, last));
        }
        let (model, n_ctx_seq) = (&*self.model, self.context.n_ctx_seq() as usize);
        let mut choosers = Vec::new();
        for (slot, place) in self.slots.iter_mut().zip(places) {
            let Some((at, n_rows, row)) = place else { continue };
            let n_reached = slot.kept.len() + n_rows;
            let Some(run) = slot.run.as_mut().filter(|run| n_reached == run.tokens.len()) else { continue };
            if run.n_generate_max > 0 {
                let (teller, sampler) = Teller::of(run, model, n_ctx_seq);
                choosers.push((at, row, teller, sampler));
            }
        }
        let mut picks = Vec::new();
        for (at, row, teller, sampler) in &mut choosers {
            picks.push(Pick {
                row: *row,
                draft: &drafts[*at].tokens,
                sampler: &mut **sampler,
                top: teller.top,
                listener: Some(teller),
                chosen: Vec::new(),
            });
        }
        self.context.choose(&mut picks);
        let mut told: Vec<Option<Told>> = shares.iter().map(|_| None).collect();
        for (at, _, teller, _) in choosers {
            told[at] = Some(teller.told);
        }
        told
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

    /// Goes on with what was told of its tokens, of which a draft may have foretold the first: what slots share.
    /// `n_before`: rows of the share before the draft's.
    fn go_on(&mut self, index: usize, told: Told, n_before: u32, draft: &Draft) {
        let Told { tokens, end, is_begun } = told;
        let slot = &mut self.slots[index];
        let Some(run) = &mut slot.run else { return };
        if is_begun && run.clock.first_token.is_none() {
            run.clock.first_token = Some(Instant::now());
            self.is_urgent = true;
        }
        if let Some(drafter) = &mut run.drafter {
            let answer = &run.tokens[run.n_prompt as usize..slot.kept.len() + tokens.len()];
            drafter.share(answer, tokens.len(), self.tenants.pool(run.partition));
        }
        // The rows of a draft's tokens that came were computed with it; the last token's is not wanted yet.
        let came = tokens.iter().map(|(token, _)| token).take(tokens.len().saturating_sub(usize::from(end.is_none())));
        let n_right = draft.tokens.iter().zip(came).take_while(|(one, other)| one == other).count();
        slot.kept.extend_from_slice(&draft.tokens[..n_right]);
        if self.context.shares_cells() {
            self.cells.take(n_right, &mut slot.cells);
        }
        let (id, with_tokens) = (run.id, run.with_tokens);
        let item = |(token, released)| Item::Token { id, released, token: with_tokens.then_some(token) };
        self.out.extend(tokens.into_iter().map(item));
        if !draft.tokens.is_empty() {
            self.settle(index, draft, n_before, n_right);
            if n_right < draft.tokens.len() {
                self.resync(index);
            }
        }
        match end {
            None => {}
            Some(End::Finish(finish)) => self.end_run(index, |run, now| run.done(finish, now)),
            Some(End::Constraint(reason)) => self.fail_constraint(index, &reason),
            Some(End::Internal(reason)) => {
                self.end_run(index, |run, _| Item::Failed { id: run.id, failure: Failure::Internal(reason) });
            }
        }
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
        if let Some(drafter) = run.drafter.as_ref().filter(|_| run.cache_prompt)
            && let Some(lately) = self.tenants.lately(run.partition)
        {
            lately.learn(drafter);
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
