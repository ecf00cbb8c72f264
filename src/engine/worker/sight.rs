//! Chunks of images and sound, which a context computes in decodes of their own.

use super::super::backend::MediaRows;
use super::super::media;
use super::*;

impl<M: Model> Worker<M> {
    /// Computes rows of one chunk, for the slot that waited longest for it. Beside running streams a causal chunk goes in
    /// pieces, like any prompt; one that is not causal holds the streams up once, for as long as it takes.
    pub(super) fn compute_media(&mut self) -> Result<(), Broken> {
        let waiting = self.slots.iter().enumerate().filter(|(_, slot)| slot.next_span().is_some());
        let Some(index) = waiting.min_by_key(|(_, slot)| slot.served_at).map(|(index, _)| index) else { return Ok(()) };
        let Some((span, done)) = self.slots[index].next_span() else { return Ok(()) };
        let span = span.clone();
        let n_rows = self.room_for_media(index, &span, done);
        let n_tokens = self.slots[index].run.as_ref().map_or(0, |run| run.tokens.len());
        if n_rows == 0 {
            return Ok(());
        }
        self.step += 1;
        self.slots[index].served_at = self.step;
        let share = [Share { slot: index, n_rows }];
        if let Err(reason) = self.apply_adapters(&share) {
            self.fail_shares(&share, &Failure::Internal(reason));
            return Ok(());
        }
        let Some(rows) = &span.rows else {
            self.fail_shares(&share, &Failure::Internal("a chunk was not encoded; this is a bug".into()));
            return Ok(());
        };
        let n_embd = rows.rows.len() / span.shape.n_tokens.max(1) as usize;
        let from = done as usize * n_embd;
        let rows = MediaRows {
            rows: &rows.rows[from..from + n_rows as usize * n_embd],
            n_rows,
            pos: self.slots[index].position(span.start as usize),
            first: done,
            shape: &span.shape,
            seq: index as u32,
            output: span.start as usize + (done + n_rows) as usize == n_tokens,
        };
        self.cancels.begin_batch(self.slots[index].run.iter().map(|run| &run.live), self.swept);
        self.begin_masks(&share);
        let start = Instant::now();
        let result = self.context.decode_media(rows);
        let time = start.elapsed();
        self.collect_masks();
        match result {
            Ok(()) => {
                self.pace.observe(0, Prefill { n_rows, depth: span.start + done + n_rows / 2 }, time);
                self.rows.clear();
                self.count(0, n_rows);
                self.drafts.clear();
                self.drafts.push(Draft::none());
                self.advance(&share);
                Ok(())
            }
            Err(error) => self.not_computed(&share, error),
        }
    }

    /// Rows of the span that can be computed now, with their cells free.
    fn room_for_media(&mut self, index: usize, span: &media::Span, done: u32) -> u32 {
        let left = span.shape.n_tokens - done;
        let beside = self.slots.iter().any(|slot| slot.run.as_ref().is_some_and(|run| run.n_generated() > 0));
        let budget = self.pace.budget(u32::MAX, span.start + done);
        let step = if beside { budget.n_prefill_shared } else { budget.n_prefill_alone };
        let most = left.min(self.context.n_batch());
        let wanted = if span.shape.is_non_causal { most } else { most.min(step.max(1)) };
        if !self.context.shares_cells() {
            return wanted;
        }
        loop {
            self.free_idle(wanted as usize);
            if self.slots[index].run.is_none() {
                return 0; // it was the youngest itself
            }
            let n_free = u32::try_from(self.cells.n_free()).unwrap_or(u32::MAX);
            if n_free >= wanted {
                return wanted;
            }
            if !span.shape.is_non_causal && n_free > 0 {
                return n_free;
            }
            if !self.park_youngest() {
                return 0; // alone, it fits: no request may be longer than the cells
            }
        }
    }
}
