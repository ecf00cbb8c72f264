//! A context of llama.cpp: decodes rows, hands out logits, chooses tokens: for all slots at once, on the threads of a decode,
//! under masks and llama.cpp's grammars alike.

use super::projector;
use super::rollback::Rollback;
use super::{Ask, Chosen, Context, DecodeError, DraftAsk, DraftTraits, MediaRows, Pick, Row, Token};
use crate::engine::logprobs;
use crate::llama::{self, Batch, Decoded, EmbeddingRows, KernelChoice};
use std::time::{Duration, Instant};

/// What a thread must have to do in a step to be worth asking.
const HELP_MIN: Duration = Duration::from_micros(100);

pub struct LlamaContext {
    context: llama::Context,
    batch: Batch,
    /// Where each row of the last decode is in the batch; empty: where it was.
    places: Vec<i32>,
    traits: Traits,
    /// What can be taken back where it can't be cut.
    rollback: Rollback,
    /// `None`: nothing drafts for it, or what did failed.
    drafts: Option<DraftTraits>,
    /// What choosing for a slot took lately.
    per_pick: Duration,
    /// What telling of a token took lately.
    per_ask: Duration,
}

/// What the model's kind of memory can do.
pub(super) struct Traits {
    /// Width of the sliding window; 0: all positions stay.
    pub n_swa: u32,
    pub shares_cells: bool,
    /// No recurrent state, which knows its present only.
    pub can_cut: bool,
    pub is_mrope: bool,
    /// Threads of a decode.
    pub n_threads: u32,
    /// Layers are on a GPU.
    pub is_offloaded: bool,
}

impl LlamaContext {
    pub(super) fn new(mut context: llama::Context, traits: Traits) -> Self {
        let rollback = Rollback::new(if traits.can_cut { 0 } else { context.n_rs_seq() });
        let (batch, places) = (Batch::default(), Vec::new());
        let (per_pick, per_ask) = (Duration::ZERO, Duration::ZERO);
        Self { context, batch, places, traits, rollback, drafts: None, per_pick, per_ask }
    }

    /// What is computed by kernels of our own; with layers on a GPU nothing, since each node would then be waited for alone.
    pub(super) fn kernels(is_offloaded: bool) -> Option<KernelChoice> {
        (!is_offloaded).then_some(KernelChoice { products: false, attention: true })
    }

    /// Rows by their sequences: where each has its own cells, llama.cpp computes together only those whose ids follow one
    /// another in the batch (llama-batch.cpp, `split_equal`).
    fn in_order(&mut self, rows: &[Row]) -> Vec<Row> {
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|at| rows[*at].seq);
        self.places.resize(rows.len(), 0);
        for (place, at) in order.iter().enumerate() {
            self.places[*at] = signed(place);
        }
        order.into_iter().map(|at| rows[at]).collect()
    }

    fn place(&self, row: usize) -> i32 {
        self.places.get(row).copied().unwrap_or_else(|| signed(row))
    }

    /// Notes what a decode of these sequences' rows came to.
    fn note(&mut self, decoded: &Result<(), DecodeError>, seqs: impl Iterator<Item = u32> + Clone) {
        match decoded {
            Ok(()) => self.rollback.decoded(seqs),
            Err(DecodeError::Aborted) => self.rollback.aborted(seqs),
            // Nothing changed, or all is thrown away.
            Err(DecodeError::NoKvSlot | DecodeError::Broken(_)) => {}
        }
    }

    /// Forgets positions `from..`, where states are kept for the last rows.
    fn take_back(&mut self, seq: u32, from: u32) -> bool {
        if self.rollback.is_lost(seq) {
            return false;
        }
        let n = self.context.seq_pos_max(signed(seq)) + 1 - signed(from);
        match u32::try_from(n) {
            Err(_) | Ok(0) => true,
            Ok(n) => self.rollback.take(seq, n) && self.context.seq_rm(signed(seq), signed(from)).unwrap_or(false),
        }
    }

    pub(super) fn with_drafts(self, drafts: Option<DraftTraits>) -> Self {
        Self { drafts, ..self }
    }

    /// What a call to the draft's side came to; a failed one ends drafting, and nothing else.
    fn drafted<T: Default>(&mut self, result: Result<T, llama::Error>) -> T {
        result.unwrap_or_else(|error| {
            if self.drafts.take().is_some() {
                tracing::warn!(%error, "drafts by a model are over until the engine starts anew");
            }
            T::default()
        })
    }
}

/// Threads that have enough to do with so many jobs.
fn n_helpful(per_job: Duration, n_jobs: usize) -> usize {
    let n_jobs = u32::try_from(n_jobs).unwrap_or(u32::MAX);
    usize::try_from((per_job * n_jobs).as_nanos() / HELP_MIN.as_nanos()).unwrap_or(usize::MAX)
}

/// What a job took lately, after these too.
fn lately(per_job: Duration, times: impl ExactSizeIterator<Item = Duration>) -> Duration {
    match u32::try_from(times.len()) {
        Ok(n) if n > 0 => (per_job * 7 + times.sum::<Duration>() / n) / 8,
        _ => per_job,
    }
}

/// Sequence ids, positions and rows are far below 2^31: 256 sequences, a context that fits into memory.
pub(super) fn signed(n: impl TryInto<i32>) -> i32 {
    n.try_into().unwrap_or(i32::MAX)
}

pub(super) fn decode(context: &mut llama::Context, batch: &mut Batch, rows: &[Row]) -> Result<(), DecodeError> {
    batch.clear();
    for row in rows {
        batch.push(row.token, signed(row.pos), signed(row.seq), row.output);
    }
    outcome(context.decode(batch))
}

fn outcome(decoded: Result<Decoded, llama::Error>) -> Result<(), DecodeError> {
    match decoded {
        Ok(Decoded::Done) => Ok(()),
        Ok(Decoded::NoKvSlot) => Err(DecodeError::NoKvSlot),
        Ok(Decoded::Aborted) => Err(DecodeError::Aborted),
        Ok(Decoded::InvalidBatch) => Err(DecodeError::Broken("llama.cpp refused the batch".into())),
        Ok(Decoded::Failed(code)) => Err(DecodeError::Broken(format!("llama_decode returned {code}"))),
        Err(error) => Err(DecodeError::Broken(error.to_string())),
    }
}

impl Context for LlamaContext {
    type Sampler = llama::Sampler;

    fn n_batch(&self) -> u32 {
        self.context.n_batch()
    }

    fn n_cells(&self) -> u32 {
        self.context.n_ctx()
    }

    fn n_ctx_seq(&self) -> u32 {
        self.context.n_ctx_seq()
    }

    fn shares_cells(&self) -> bool {
        self.traits.shares_cells
    }

    fn can_cut(&self) -> bool {
        self.traits.can_cut
    }

    fn goes_back(&self) -> bool {
        self.traits.can_cut && self.traits.n_swa == 0
    }

    fn goes_back_by(&self) -> u32 {
        if self.traits.can_cut { u32::MAX } else { self.rollback.n_kept() }
    }

    fn records_steps(&self) -> bool {
        self.traits.is_offloaded
    }

    fn set_adapters(&mut self, adapters: &[(u32, f32)]) -> Result<(), String> {
        self.context.set_adapters(adapters).map_err(|error| error.to_string())
    }

    fn decode(&mut self, rows: &[Row]) -> Result<(), DecodeError> {
        self.places.clear();
        let decoded = if self.traits.shares_cells || rows.is_sorted_by_key(|row| row.seq) {
            decode(&mut self.context, &mut self.batch, rows)
        } else {
            let rows = self.in_order(rows);
            decode(&mut self.context, &mut self.batch, &rows)
        };
        self.note(&decoded, rows.iter().map(|row| row.seq));
        decoded
    }

    fn decode_media(&mut self, rows: MediaRows<'_>) -> Result<(), DecodeError> {
        self.places.clear();
        let positions = projector::positions(rows.shape, rows.pos, rows.first, rows.n_rows, self.traits.is_mrope);
        let decoded = outcome(self.context.decode_embeddings(EmbeddingRows {
            rows: rows.rows,
            positions: &positions,
            seq: signed(rows.seq),
            output_last: rows.output,
            is_non_causal: rows.shape.is_non_causal,
        }));
        // Its positions don't count its rows.
        self.note(&decoded, std::iter::once(rows.seq));
        decoded
    }

    fn logits(&mut self, row: usize) -> Option<&[f32]> {
        let place = self.place(row);
        self.context.logits(place)
    }

    fn choose(&mut self, picks: &mut [Pick<'_, llama::Sampler>]) {
        let places: Vec<i32> =
            picks.iter().flat_map(|pick| (pick.row..=pick.row + pick.draft.len()).map(|row| self.place(row))).collect();
        let (rows, mut team) = self.context.rows(places.into_iter());
        let (mut rows, mut jobs) = (rows.as_slice(), Vec::new());
        for pick in picks {
            let (own, others) = rows.split_at(pick.draft.len() + 1);
            rows = others;
            jobs.push((pick, own, Duration::ZERO));
        }
        let n_threads = n_helpful(self.per_pick, jobs.len()).min(self.traits.n_threads as usize);
        team.each(&mut jobs, n_threads, |(pick, rows, time)| {
            let start = Instant::now();
            let top = pick.top;
            let choose = |at: usize, mask: Option<&[u32]>, sampler: &mut llama::Sampler| {
                let row = rows[at].ok_or("the row has no logits")?;
                let token = sampler.choose(row, mask).map_err(|error| error.to_string())?;
                let told = top.map(|(k, bias)| logprobs::of_row(row, bias, token, k));
                Ok(Chosen { token, told, is_forced: false })
            };
            pick.run(choose, |sampler, token| sampler.follow(token).map_err(|error| error.to_string()));
            *time = start.elapsed();
        });
        self.per_pick = lately(self.per_pick, jobs.iter().map(|(.., time)| *time));
    }

    fn tell(&mut self, asks: &mut [Ask]) {
        let places: Vec<i32> = asks.iter().map(|ask| self.place(ask.row)).collect();
        let (rows, mut team) = self.context.rows(places.into_iter());
        let mut jobs: Vec<_> = asks.iter_mut().zip(rows).map(|(ask, row)| (ask, row, Duration::ZERO)).collect();
        let n_threads = n_helpful(self.per_ask, jobs.len()).min(self.traits.n_threads as usize);
        team.each(&mut jobs, n_threads, |(ask, row, time)| {
            let start = Instant::now();
            ask.told = row.map(|row| logprobs::of_row(row, &[], ask.token, ask.k));
            *time = start.elapsed();
        });
        self.per_ask = lately(self.per_ask, jobs.iter().map(|(.., time)| *time));
    }

    fn share(&mut self, from: u32, to: u32, n: u32) -> bool {
        if self.rollback.n_kept() > 0
            && (self.context.seq_pos_max(signed(from)) + 1 != signed(n) || !self.rollback.share(from, to))
        {
            return false;
        }
        self.context.seq_cp(signed(from), signed(to), signed(n)).unwrap_or(false)
    }

    fn save(&mut self, seq: u32, most: usize) -> Option<Vec<u8>> {
        if self.rollback.is_lost(seq) {
            return None;
        }
        self.context.seq_save(signed(seq), most).unwrap_or_default()
    }

    fn load(&mut self, seq: u32, state: &[u8]) -> bool {
        self.rollback.renewed(seq);
        self.context.seq_load(signed(seq), state).unwrap_or(false)
    }

    fn forget(&mut self, seq: u32, from: u32) -> bool {
        if self.rollback.n_kept() > 0 && from > 0 {
            return self.take_back(seq, from);
        }
        self.rollback.renewed(seq);
        self.context.seq_rm(signed(seq), signed(from)).unwrap_or(false)
    }

    fn can_resume(&mut self, seq: u32, from: u32) -> bool {
        if self.rollback.is_lost(seq) {
            return false;
        }
        if self.traits.n_swa == 0 {
            return true;
        }
        // Position `from` looks back n_swa positions; cells older than that may be gone, younger ones must not.
        let oldest = self.context.seq_pos_min(signed(seq));
        oldest >= 0 && oldest <= signed(from.saturating_sub(self.traits.n_swa))
    }

    fn drafts(&self) -> Option<DraftTraits> {
        self.drafts
    }

    fn draft_feed(&mut self, rows: &[Row]) -> bool {
        if self.drafts.is_none() {
            return false;
        }
        let mut order: Vec<&Row> = rows.iter().collect();
        if !self.places.is_empty() && self.drafts.is_some_and(|drafts| drafts.follows) {
            // As they were in the decode; see `in_order`.
            order.sort_by_key(|row| row.seq);
        }
        self.batch.clear();
        for row in order {
            self.batch.push(row.token, signed(row.pos), signed(row.seq), false);
        }
        let fed = self.context.draft_process(&mut self.batch);
        self.drafted(fed)
    }

    fn draft(&mut self, asks: &[DraftAsk]) -> Vec<Option<Vec<Token>>> {
        if self.drafts.is_none() {
            return vec![None; asks.len()];
        }
        let raw = |ask: &DraftAsk| llama::DraftAsk {
            seq: signed(ask.seq),
            pos: signed(ask.pos),
            last: ask.last,
            n_max: ask.n_max,
        };
        let raw_asks: Vec<_> = asks.iter().map(raw).collect();
        for ask in &raw_asks {
            let cut = self.context.draft_forget(ask.seq, ask.pos);
            self.drafted(cut);
        }
        let drafts = self.context.draft(&raw_asks);
        let mut drafts = self.drafted(drafts);
        drafts.resize(asks.len(), None);
        drafts
    }

    fn draft_accept(&mut self, seq: u32, n: u32) {
        let told = self.context.draft_accept(signed(seq), u16::try_from(n).unwrap_or(u16::MAX));
        self.drafted(told);
    }

    fn draft_share(&mut self, from: u32, to: u32, n: u32) -> bool {
        let shared = self.context.draft_share(signed(from), signed(to), signed(n));
        self.drafted(shared)
    }

    fn draft_clear(&mut self, seq: u32) -> bool {
        let held = self.context.draft_clear(signed(seq));
        self.drafted(held)
    }
}

#[cfg(test)]
#[path = "llama_context_tests.rs"]
mod tests;
