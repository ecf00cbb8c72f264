//! A context of llama.cpp: decodes rows, hands out logits, chooses tokens: for all slots at once, on the threads of a decode,
//! under masks and llama.cpp's grammars alike.

use super::projector;
use super::rollback::Rollback;
use super::{Chosen, Context, DecodeError, DraftAsk, DraftTraits, MediaRows, Pick, Row, Token};
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
        Self { context, batch, places, traits, rollback, drafts: None, per_pick: Duration::ZERO }
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
        let n_jobs = u32::try_from(jobs.len()).unwrap_or(u32::MAX);
        let n_useful = (self.per_pick * n_jobs).as_nanos() / HELP_MIN.as_nanos();
        let n_threads = usize::try_from(n_useful).unwrap_or(usize::MAX).min(self.traits.n_threads as usize);
        team.each(&mut jobs, n_threads, |(pick, rows, time)| {
            let start = Instant::now();
            let (mask, top) = (pick.mask, pick.top);
            pick.run(|at, sampler| {
                let row = rows[at].ok_or("the row has no logits")?;
                let token = sampler.choose(row, mask).map_err(|error| error.to_string())?;
                let told = top.map(|(k, bias)| logprobs::of_row(row, bias, token, k));
                Ok(Chosen { token, told })
            });
            *time = start.elapsed();
        });
        if n_jobs > 0 {
            let time: Duration = jobs.iter().map(|(.., time)| *time).sum();
            self.per_pick = (self.per_pick * 7 + time / n_jobs) / 8;
        }
    }

    fn accept(&mut self, sampler: &mut llama::Sampler, token: Token) -> Result<(), String> {
        sampler.follow(token).map_err(|error| error.to_string())
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
mod tests {
    use super::super::{Grammar, Model as _, Trigger, llama::LlamaModel};
    use super::*;
    use crate::chat::{Mirostat, SamplerKind, SamplingParams};
    use crate::engine::EngineConfig;
    use crate::engine::config::ModelSource;
    use std::path::Path;
    use std::sync::Arc;

    const N_SLOTS: u32 = 8;

    fn sampling(slot: u32, kind: u32) -> SamplingParams {
        let plain = SamplingParams { seed: slot * 31 + 7, temperature: 1.0, ..SamplingParams::default() };
        match kind {
            0 => plain,
            1 => SamplingParams { top_k: 0, top_p: 1.0, min_p: 0.0, ..plain },
            2 => SamplingParams { top_k: 0, top_p: 0.7, repeat_penalty: 1.3, presence_penalty: 0.5, ..plain },
            3 => SamplingParams { mirostat: Mirostat::V2, ..plain },
            4 => SamplingParams { logit_bias: vec![(300, 4.0), (301, f32::NEG_INFINITY)], ..plain },
            5 => SamplingParams { temperature: 0.0, ..plain },
            6 => {
                SamplingParams { logit_bias: (280..310).map(|id| (id, (id - 295) as f32)).collect(), top_k: 5, ..plain }
            }
            // EOS has two biases.
            7 => SamplingParams { logit_bias: vec![(2, 9.0), (300, 2.0)], ignore_eos: true, top_k: 5, ..plain },
            _ => greedy(SamplingParams { temperature: 0.0, ..plain }, kind - 8),
        }
    }

    /// Chains of temperature 0 that end with the greatest logit, and such as don't.
    fn greedy(plain: SamplingParams, kind: u32) -> SamplingParams {
        use SamplerKind::{Penalties, Temperature, TopK};
        match kind {
            0 => SamplingParams { top_n_sigma: 1.0, logit_bias: vec![(300, 4.0), (301, -2.0)], ..plain },
            1 => SamplingParams { typical_p: 0.3, ..plain },
            2 => SamplingParams { xtc_probability: 0.7, xtc_threshold: 0.05, ..plain },
            3 => {
                SamplingParams { samplers: vec![TopK, Penalties, Temperature], repeat_penalty: 1.8, top_k: 3, ..plain }
            }
            4 => SamplingParams { dynatemp_range: 1.5, ..plain },
            5 => SamplingParams { dry_multiplier: 2.0, dry_allowed_length: 1, ..plain },
            6 => SamplingParams { samplers: vec![TopK], top_k: 4, ..plain },
            _ => SamplingParams { samplers: vec![Temperature, TopK], ignore_eos: true, ..plain },
        }
    }

    fn loaded(n_threads: u32) -> (Arc<LlamaModel>, LlamaContext) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/stories260K.gguf");
        let mut config = EngineConfig::new(ModelSource::Gguf(path.clone()));
        (config.n_threads, config.n_slots, config.n_ctx) = (Some(n_threads), N_SLOTS, Some(512));
        let model = Arc::new(LlamaModel::load(&path, &config, |_| {}).expect("a model"));
        let context = model.context(&config, Arc::new(|| false)).expect("a context");
        (model, context)
    }

    /// Chooses as llama.cpp's own sampler does, in the context.
    fn sample(
        context: &mut LlamaContext,
        row: usize,
        theirs: &mut llama::Reference,
        mask: Option<&[u32]>,
    ) -> Result<Token, String> {
        let raw = context.logits(row).expect("a row").to_vec();
        let place = context.place(row);
        for (token, logit) in context.context.logits_mut(place).expect("a row").iter_mut().enumerate() {
            if mask.is_some_and(|mask| mask[token / 32] >> (token % 32) & 1 == 0) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let token = theirs.sample(&mut context.context, place).map_err(|error| error.to_string());
        context.context.logits_mut(place).expect("a row").copy_from_slice(&raw);
        token
    }

    /// Slots that choose together, on all threads, choose what llama.cpp's own sampler chooses for each, with masks, drafts
    /// and log-probabilities. Answers what each slot said behind the first token.
    fn choose_both_ways(
        (model, context): (&LlamaModel, &mut LlamaContext),
        (kind, n_steps): (u32, u32),
        grammar: impl Fn(u32) -> Option<Grammar>,
        mask: &[u32],
    ) -> Vec<Vec<Token>> {
        let prompt = [1, 60, 61];
        let sampler = |slot| model.sampler(&sampling(slot, kind), &prompt, grammar(slot).as_ref()).expect("a sampler");
        let theirs = |slot| model.reference(&sampling(slot, kind), &prompt, grammar(slot).as_ref()).expect("a sampler");
        let mut samplers: Vec<_> = (0..N_SLOTS).map(sampler).collect();
        let mut references: Vec<_> = (0..N_SLOTS).map(theirs).collect();
        let mut last: Vec<Token> = (0..N_SLOTS).map(|slot| (60 + slot * 9).cast_signed()).collect();
        let mut said = vec![Vec::new(); N_SLOTS as usize];
        for pos in 0..n_steps {
            let row = |seq: u32| Row { token: last[seq as usize], pos, seq, output: true };
            context.decode(&(0..N_SLOTS).map(row).collect::<Vec<_>>()).expect("a decode");
            let mask = |slot: usize| (slot % 4 == 1).then_some(mask);
            let bias = [(300, 4.0)];
            let top = |slot: usize| (slot % 4 < 2).then_some((3, bias.as_slice()));
            let drafts: Vec<Vec<Token>> = (0..N_SLOTS).map(|slot| vec![300; (slot == 2).into()]).collect();
            let mut picks: Vec<_> = (samplers.iter_mut().zip(&drafts).enumerate())
                .map(|(row, (sampler, draft))| {
                    let (mask, top) = (mask(row), top(row));
                    Pick { row, draft, sampler, mask, top, chosen: Vec::new() }
                })
                .collect();
            // Whatever they took before, all threads are asked.
            context.per_pick = Duration::from_secs(1);
            context.choose(&mut picks);
            let chosen: Vec<_> = picks.into_iter().map(|pick| pick.chosen).collect();
            for (row, theirs) in references.iter_mut().enumerate() {
                let (draft, mask, top) = (&drafts[row], mask(row), top(row));
                let mut pick = Pick { row, draft, sampler: theirs, mask, top, chosen: Vec::new() };
                pick.run(|at, theirs| {
                    let token = sample(context, row + at, theirs, mask)?;
                    let told =
                        top.map(|(k, bias)| logprobs::of_row(context.logits(row + at).expect("a row"), bias, token, k));
                    Ok(Chosen { token, told })
                });
                assert!(pick.chosen.iter().all(Result::is_ok), "{:?}", pick.chosen);
                assert_eq!(chosen[row], pick.chosen, "kind {kind}, step {pos}, slot {row}");
                let tokens = chosen[row].iter().flatten().map(|chosen| chosen.token);
                said[row].extend(tokens);
                last[row] = *said[row].last().expect("a token");
            }
        }
        (0..N_SLOTS).for_each(|slot| _ = context.forget(slot, 0));
        said
    }

    #[test]
    fn slots_that_choose_together_choose_what_each_would_alone() {
        let (model, mut context) = loaded(1);
        let mask: Vec<u32> = (0..16).map(|word| if word % 3 == 1 { 0xf0f0_1234 } else { 0 }).collect();
        (0..16).for_each(|kind| _ = choose_both_ways((&model, &mut context), (kind, 20), |_| None, &mask));
    }

    /// Grammars that hold from the first token on, from a word on, from a token on, and from a word on outside of thinking.
    fn grammars(model: &LlamaModel) -> [Grammar; 4] {
        let trigger = |text: &str| vec![Trigger { kind: Trigger::WORD, value: text.into() }];
        let gbnf = |first: &str| format!(r"root ::= {first} [^0-9]{{0,12}} ([0-9]{{1,3}} [a-e ]{{1,4}})*");
        let strict = Grammar { gbnf: gbnf(r#"("a" | "the") " ""#), ..Grammar::default() };
        let by_word = Grammar { gbnf: gbnf(r#""e""#), triggers: trigger("e"), ..Grammar::default() };
        let preserved = model.tokenize("was", false, true).expect("tokens");
        assert_eq!(preserved.len(), 1, "else it is no token that triggers");
        let by_token =
            Grammar { gbnf: gbnf(r#"" "? "was""#), triggers: trigger("was"), preserved, ..Grammar::default() };
        let outside = Grammar {
            generation_prompt: "he".into(),
            thinking_start: "he".into(),
            thinking_ends: vec!["to".into(), "a".into()],
            ..by_word.clone()
        };
        [strict, by_word, by_token, outside]
    }

    /// All tokens but every seventh.
    fn most() -> Vec<u32> {
        let word = |word: u32| (0..32).filter(|bit| !(word * 32 + bit).is_multiple_of(7)).map(|bit| 1 << bit).sum();
        (0..16).map(word).collect()
    }

    #[test]
    fn grammars_choose_what_llama_cpp_chooses() {
        let (model, mut context) = loaded(1);
        for (which, grammar) in grammars(&model).iter().enumerate() {
            let run = |kind| choose_both_ways((&model, &mut context), (kind, 32), |_| Some(grammar.clone()), &most());
            let said: Vec<Vec<Token>> = [0, 2, 5].into_iter().flat_map(run).collect();
            let is_number = |token: &Token| model.piece(*token).iter().any(u8::is_ascii_digit);
            let n_held = said.iter().filter(|said| said.iter().any(is_number)).count();
            assert!(n_held > 2, "stories have no numbers: grammar {which} held in {n_held} of {}", said.len());
        }
    }

    #[test]
    fn grammars_of_several_slots_choose_on_several_threads() {
        let (model, mut context) = loaded(2);
        let grammars = grammars(&model);
        let grammar = |slot: u32| grammars.get(slot as usize % 5).cloned();
        _ = choose_both_ways((&model, &mut context), (0, 24), grammar, &most());
    }

    #[test]
    fn what_only_a_bias_forbids_ends_an_answer_whose_grammar_is_through() {
        let (model, mut context) = loaded(1);
        context.decode(&[Row { token: 1, pos: 0, seq: 0, output: true }]).expect("a decode");
        let grammar = Grammar { gbnf: "root ::= [0-9]".into(), ..Grammar::default() };
        for kind in [0, 2, 5] {
            let params = SamplingParams { ignore_eos: true, ..sampling(0, kind) };
            let mut sampler = model.sampler(&params, &[1], Some(&grammar)).expect("a sampler");
            let mut next = || {
                let mut pick =
                    Pick { row: 0, draft: &[], sampler: &mut sampler, mask: None, top: None, chosen: Vec::new() };
                context.choose(std::slice::from_mut(&mut pick));
                pick.chosen.remove(0).expect("a token").token
            };
            assert!(model.piece(next()).iter().all(u8::is_ascii_digit));
            assert!(model.is_end(next()));
        }
    }

    #[test]
    fn a_mask_and_a_grammar_that_leave_nothing_are_an_error() {
        let (model, mut context) = loaded(1);
        let grammar = Grammar { gbnf: "root ::= [0-9]+".into(), ..Grammar::default() };
        let mut sampler = model.sampler(&sampling(0, 0), &[1], Some(&grammar)).expect("a sampler");
        context.decode(&[Row { token: 1, pos: 0, seq: 0, output: true }]).expect("a decode");
        let is_letter = |token: usize| model.piece(signed(token)).iter().all(u8::is_ascii_alphabetic);
        let mask: Vec<u32> =
            (0..16).map(|word| (0..32).filter(|bit| is_letter(word * 32 + bit)).map(|bit| 1 << bit).sum()).collect();
        let mut pick = |mask| {
            let mut pick = Pick { row: 0, draft: &[], sampler: &mut sampler, mask, top: None, chosen: Vec::new() };
            context.choose(std::slice::from_mut(&mut pick));
            pick.chosen.remove(0)
        };
        assert!(pick(Some(mask.as_slice())).is_err_and(|error| error.contains("allows no token")));
        let token = pick(None).expect("a number").token;
        assert!(model.piece(token).iter().all(u8::is_ascii_digit));
    }
}
