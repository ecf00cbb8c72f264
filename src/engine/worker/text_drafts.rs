//! Drafts from texts, for all slots of a step.

use super::*;

/// Of a step, the part that asking constraints ahead may take beside it.
const MASK_PART: f64 = 0.25;

/// What the drafts of a step come beside.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beside {
    /// Rows of the step without drafts.
    pub n_planned: usize,
    /// Tokens that a model drafted.
    pub n_drafted: usize,
    /// The step makes another pass for a sequence that is longer than the others: one draft of a text is all that pays.
    pub is_apart: bool,
    /// Most tokens of the drafts together.
    pub n_extra: usize,
}

impl<M: Model> Worker<M> {
    /// The drafts of a step, in the order of `shares`: those of a model, and else from texts, as far as they pay.
    pub(super) fn text_drafts(
        &mut self,
        shares: &[Share],
        by_model: Vec<Vec<Token>>,
        mut beside: Beside,
    ) -> Vec<Draft> {
        // Counted already.
        let as_draft = |tokens| Draft { tokens, source: Source::Model, ..Draft::none() };
        let mut drafts: Vec<Draft> = by_model.into_iter().map(as_draft).collect();
        let mut may_try = !beside.is_apart;
        let mut n_useful = beside.n_planned as f64;
        // Of which each stream gets one.
        let per_token = self.cost.pass(beside.n_planned) / n_useful;
        for at in by_turn(shares, |share| self.slots[share.slot].drafted_at) {
            let share = &shares[at];
            let slot = &self.slots[share.slot];
            let Some(run) = &slot.run else { continue };
            let reaches = slot.kept.len() + share.n_rows as usize;
            if !drafts[at].tokens.is_empty() || !run.is_decoded(share) || reaches != run.tokens.len() {
                continue;
            }
            let Some((proposal, most)) = self.proposal(run, beside.n_extra) else { continue };
            let Proposal { source, chances, stake, is_proven, .. } = proposal;
            let with = match beside.is_apart {
                true => (0, self.cost.pass(beside.n_planned)),
                false => (beside.n_planned + beside.n_drafted, 0.0),
            };
            let affordable =
                self.cost.affordable((with.0, per_token), if is_proven { chances.next } else { 0.0 }, most, stake);
            let (mut n, mut n_right) = self.cost.worth(with, n_useful, chances, affordable);
            let mut tokens = proposal.text[..most].to_vec();
            let trial =
                if std::mem::take(&mut may_try) { self.cost.trial(with.0, n_useful, chances, most) } else { None };
            (n, n_right) = trial.unwrap_or((n, n_right));
            if n == 0 {
                continue;
            }
            tokens.truncate(n);
            let price = self.cost.price(with.0, n) / per_token;
            let draft = Draft { tokens, source, price, is_trial: trial.is_some() };
            n_useful += n_right;
            beside.n_drafted += draft.tokens.len();
            beside.n_extra = if beside.is_apart { 0 } else { beside.n_extra - draft.tokens.len() };
            self.slots[share.slot].drafted_at = self.step;
            drafts[at] = draft;
        }
        drafts
    }

    /// What may come behind the run's last token, and how many of its tokens, up to `n_extra`, may be tried.
    fn proposal<'a>(&self, run: &'a Run<M::Sampler>, n_extra: usize) -> Option<(Proposal<'a>, usize)> {
        let drafter = run.drafter.as_ref().filter(|_| n_extra > 0)?;
        let proposal = drafter.propose(&run.tokens)?;
        // The last token is chosen, not drafted.
        let left = run.n_generate_max.saturating_sub(run.n_generated()).saturating_sub(1);
        let room = self.context.n_ctx_seq().saturating_sub(run.tokens.len() as u32 + 1);
        let most = n_extra.min(left.min(room).min(self.n_draft_max) as usize).min(proposal.text.len());
        // With a token that ends the answer nothing is left to compute.
        let end = proposal.text[..most].iter().position(|token| self.model.is_end(*token));
        let most = end.unwrap_or(most);
        let most = self.n_ahead(run, &proposal.text[..most]);
        Some((proposal, most))
    }

    /// How many tokens of a draft the run's constraint can be asked about ahead.
    pub(super) fn n_ahead(&self, run: &Run<M::Sampler>, draft: &[Token]) -> usize {
        let pieces = draft.iter().map(|token| self.model.piece(*token));
        let n_ahead = run.gate.as_ref().map_or(draft.len(), |gate| gate.n_ahead(pieces));
        let is_asked = run.gate.as_ref().is_some_and(|gate| gate.is_asked());
        if is_asked { n_ahead.min(self.n_asked_max()) } else { n_ahead }
    }

    /// How many masks ahead fit beside a step for each slot whose constraint has to be asked: they come one after another, and
    /// beside a small model's step of 0.3 ms those of 24 tokens would be what everybody waits for.
    fn n_asked_max(&self) -> usize {
        let runs = self.slots.iter().filter_map(|slot| slot.run.as_ref());
        let gates = runs.clone().filter_map(|run| run.gate.as_ref());
        let n_asked = gates.filter(|gate| gate.is_asked()).count().max(1);
        let room = self.cost.pass(runs.count()) * MASK_PART;
        // Before anything is known nothing fits.
        let per_mask = if self.mask_time.is_zero() { f64::INFINITY } else { self.mask_time.as_secs_f64() };
        #[expect(clippy::cast_sign_loss, reason = "times are positive")]
        let n = (room / per_mask / n_asked as f64) as usize;
        n
    }
}

/// Places of `shares`, those first for which nothing was drafted for the longest time: where one draft is all that a step has
/// room for, each gets its turn.
fn by_turn(shares: &[Share], drafted_at: impl Fn(&Share) -> u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by_key(|at| drafted_at(&shares[*at]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_step_has_one_draft_the_slots_take_turns() {
        let shares: Vec<Share> = [2, 0, 1].map(|slot| Share { slot, n_rows: 1 }).to_vec();
        let mut drafted_at = [0; 3];
        let mut said = Vec::new();
        for step in 1..=7 {
            // Nothing pays for slot 0 in the third step: its turn is not lost.
            let order = by_turn(&shares, |share| drafted_at[share.slot]);
            let slots = order.iter().map(|at| shares[*at].slot);
            let Some(first) = slots.into_iter().find(|slot| (step, *slot) != (3, 1)) else { unreachable!() };
            drafted_at[first] = step;
            said.push(first);
        }
        assert_eq!(said, [2, 0, 2, 1, 0, 2, 1]);
    }
}
