//! Choices of one prompt on a memory that can't go back (recurrent, hybrid): it knows a sequence's present only, so the
//! prompt is computed up to its last token, and there the others take over what the first one holds.

use super::super::media;
use super::*;

/// Largest copy that is kept for choices that have no slot yet; beyond it they compute the prompt anew.
const BYTES_MAX: usize = 512 << 20;
/// Largest one that is kept while nothing runs.
const IDLE_BYTES_MAX: usize = 16 << 20;

/// What a sequence held in front of the last token of a prompt.
pub(super) struct Branch {
    family: u64,
    partition: u64,
    tokens: Vec<Token>,
    state: Vec<u8>,
}

/// Where the choices of a run's prompt part; `None`: it has no others, or is past it.
fn branch_of<S>(run: &Run<S>) -> Option<usize> {
    let at = (run.n_prompt as usize).saturating_sub(1);
    let is_whole = media::whole(&run.media, at) == at;
    (run.family != 0 && run.n_generated() == 0 && at > 0 && is_whole && !run.wants_prompt_logits()).then_some(at)
}

impl<M: Model> Worker<M> {
    /// No step goes beyond the point where the choices of a prompt part.
    pub(super) fn stop_at_branches(&self, wants: &mut [Want]) {
        if self.context.can_cut() {
            return;
        }
        for want in wants {
            let slot = &self.slots[want.slot];
            let at = slot.run.as_ref().and_then(|run| branch_of(run)).unwrap_or(0);
            if at > slot.kept.len() {
                want.gap = want.gap.min((at - slot.kept.len()) as u32);
            }
        }
    }

    /// Keeps a copy for choices that come later or find no slot now; the others share the sequence itself.
    pub(super) fn save_branch(&mut self, shares: &[Share]) {
        if self.context.can_cut() {
            return;
        }
        for share in shares {
            let slot = &self.slots[share.slot];
            let Some(run) = slot.run.as_ref().filter(|run| branch_of(run) == Some(slot.kept.len())) else { continue };
            if self.branch.as_ref().is_some_and(|branch| branch.family == run.family) {
                continue;
            }
            let (family, partition, tokens) = (run.family, run.partition, slot.kept.clone());
            let state = self.context.save(share.slot as u32, BYTES_MAX);
            self.branch = state.map(|state| Branch { family, partition, tokens, state });
        }
    }

    /// Lets slot `index` hold what the run's sibling held at the branch; returns how many tokens that is.
    pub(super) fn load_branch(&mut self, index: usize, run: &Run<M::Sampler>) -> usize {
        let fits = |branch: &Branch| {
            branch.family == run.family && branch.partition == run.partition && run.tokens.starts_with(&branch.tokens)
        };
        let Some(branch) = self.branch.take_if(|branch| fits(branch)) else { return 0 };
        let n = branch.tokens.len();
        self.cut(index, 0);
        let has_room = !self.context.shares_cells() || self.cells.n_free() >= n;
        let is_loaded = has_room && self.context.load(index as u32, &branch.state);
        if is_loaded {
            self.slots[index].kept.clone_from(&branch.tokens);
            if self.context.shares_cells() {
                self.cells.take(n, &mut self.slots[index].cells);
            }
        }
        self.branch = Some(branch);
        if is_loaded { n } else { 0 }
    }

    /// While nothing runs, memory is the system's.
    pub(super) fn drop_large_branch(&mut self) {
        self.branch.take_if(|branch| branch.state.len() > IDLE_BYTES_MAX);
    }
}
