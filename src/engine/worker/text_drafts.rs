//! Drafts from texts, for all slots of a step.

use super::*;

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
        let as_draft = |tokens| Draft { tokens, source: Source::Model };
        let mut drafts: Vec<Draft> = by_model.into_iter().map(as_draft).collect();
        let mut n_useful = beside.n_planned as f64;
        for at in by_turn(shares, |share| self.slots[share.slot].drafted_at) {
            let share = &shares[at];
            let slot = &self.slots[share.slot];
            let Some(run) = &slot.run else { continue };
            let reaches = slot.kept.len() + share.n_rows as usize;
            if !drafts[at].tokens.is_empty() || !run.is_decoded(share) || reaches != run.tokens.len() {
                continue;
            }
            let (draft, n_right) = self.draft(run, beside, n_useful);
            if draft.tokens.is_empty() {
                continue;
            }
            n_useful += n_right;
            beside.n_drafted += draft.tokens.len();
            beside.n_extra = if beside.is_apart { 0 } else { beside.n_extra - draft.tokens.len() };
            self.slots[share.slot].drafted_at = self.step;
            drafts[at] = draft;
        }
        drafts
    }

    /// Tokens to try behind the run's last one, in a step that gets `n_useful` tokens on; and how many of them are expected
    /// to be right.
    fn draft(&self, run: &Run<M::Sampler>, beside: Beside, n_useful: f64) -> (Draft, f64) {
        let Beside { n_planned, n_drafted, is_apart, n_extra } = beside;
        let drafter = run.drafter.as_ref().filter(|_| n_extra > 0);
        let Some(proposal) = drafter.and_then(|drafter| drafter.propose(&run.tokens)) else {
            return (Draft::none(), 0.0);
        };
        // The last token is chosen, not drafted.
        let left = run.n_generate_max.saturating_sub(run.n_generated()).saturating_sub(1);
        let room = self.context.n_ctx_seq().saturating_sub(run.tokens.len() as u32 + 1);
        let most = n_extra.min(left.min(room).min(self.n_draft_max) as usize).min(proposal.text.len());
        // With a token that ends the answer nothing is left to compute.
        let end = proposal.text[..most].iter().position(|token| self.model.is_end(*token));
        let most = end.unwrap_or(most);
        // Behind a token that the run's constraint has something to say about, it would have to be asked.
        let most = self.n_steady(run, &proposal.text[..most]);
        let beside = match is_apart {
            true => (0, self.cost.pass(n_planned)),
            false => (n_planned + n_drafted, 0.0),
        };
        let (n, n_right) = self.cost.worth(beside, n_useful, proposal.odds, most);
        (Draft { tokens: proposal.text[..n].to_vec(), source: proposal.source }, n_right)
    }

    /// How many tokens of a draft leave the run's constraint as it is.
    pub(super) fn n_steady(&self, run: &Run<M::Sampler>, draft: &[Token]) -> usize {
        let pieces = draft.iter().map(|token| self.model.piece(*token));
        run.gate.as_ref().map_or(draft.len(), |gate| gate.n_steady(pieces))
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
