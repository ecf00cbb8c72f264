//! Vectors through llama.cpp: a context of its own, so that one file can chat and embed.
//!
//! Shapes that llama.cpp asserts on are kept from it here: `n_seq_max` is a power of two that divides `n_ubatch`, and an
//! input that is pooled as a whole fits one ubatch.

use super::llama::{LlamaModel, ONE_AT_A_TIME, POLL};
use super::llama_context::{decode, signed};
use super::{DecodeError, Encoder, Interrupt, PairLayout, Row, Token};
use crate::engine::config::{EmbedMode, EngineConfig, FlashAttn};
use crate::engine::event::Pooling;
use crate::llama::{self, Batch, ContextParams, KernelChoice, KvElement, PoolingType};
use crate::model::ModelFile;
use std::borrow::Cow;
use std::path::Path;
use std::sync::{Arc, PoisonError};

/// Rows of a batch at least: short inputs share a decode.
const BATCH_MIN: u32 = 256;
/// Rows from which a CPU's flash attention works in tiles with sums in F32. Source: GGML_FA_TILE_Q, ggml-cpu/common.h.
const TILE_ROWS: u32 = 64;
/// Passes of so many rows are filled up to a tile: there they take no longer.
const FILL_FROM: usize = 48;
/// Rows of a batch from which a CPU gains nothing: every row attends to all rows of the batch, only to find that most are
/// another input's. Measured in benches/README.md, with flash attention and without.
const ROWS_AIM: u32 = 256;
const ROWS_AIM_PLAIN: u32 = 96;
/// Most inputs of one batch. A causal model pays for each with a recurrent state, if it has one.
const SEQS_MAX: u32 = 64;
const SEQS_MAX_CAUSAL: u32 = 16;
/// llama.cpp keeps a row of logits for each row of a batch, also where nobody wants any: a causal model's batch is kept
/// small enough that they take about this much.
const LOGIT_BYTES: u64 = 128 << 20;

/// How inputs become vectors; `None`: they don't. Errors name what the file lacks.
pub(super) fn pooling(model: &llama::Model, path: &Path, config: &EngineConfig) -> Result<Option<Pooling>, String> {
    let architecture = model.meta("general.architecture").unwrap_or_default();
    let own = model.meta(&format!("{architecture}.pooling_type")).and_then(|kind| match kind.trim() {
        // A file that says 0 leaves the choice to whoever loads it.
        "1" => Some(Pooling::Mean),
        "2" => Some(Pooling::Cls),
        "3" => Some(Pooling::Last),
        "4" => Some(Pooling::Rank),
        _ => None,
    });
    let asked = match config.embeddings {
        EmbedMode::Off => return Ok(None),
        EmbedMode::On => true,
        EmbedMode::Auto => config.pooling.is_some(),
    };
    if !model.embeds() {
        let refusal = format!("embeddings: models of the architecture {architecture} make no vectors here");
        return if asked { Err(refusal) } else { Ok(None) };
    }
    if !asked && model.generates() && own.is_none() {
        return Ok(None);
    }
    let default = if model.generates() { Pooling::Last } else { Pooling::Mean };
    let chosen = config.pooling.or(own).unwrap_or(default);
    if chosen == Pooling::Rank && !has_head(path)? {
        return Err("pooling: the model has no classification head (cls tensors), so it can't rank".into());
    }
    Ok(Some(chosen))
}

/// Hangul syllables as their letters, which is how BERT's vocabularies were made (NFD); llama.cpp's table of
/// decompositions lacks them, since they follow a rule. Source: the Unicode Standard, 3.12.
pub(super) fn decompose_hangul(text: &str) -> Cow<'_, str> {
    const FIRST: u32 = 0xAC00;
    const LAST: u32 = 0xD7A3;
    let is_syllable = |c: char| (FIRST..=LAST).contains(&u32::from(c));
    if !text.contains(is_syllable) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() * 3);
    for c in text.chars() {
        if !is_syllable(c) {
            out.push(c);
            continue;
        }
        let index = u32::from(c) - FIRST;
        let tail = (!index.is_multiple_of(28)).then(|| 0x11A7 + index % 28);
        let letters = [0x1100 + index / 588, 0x1161 + index % 588 / 28].into_iter().chain(tail);
        out.extend(letters.filter_map(char::from_u32));
    }
    Cow::Owned(out)
}

fn has_head(path: &Path) -> Result<bool, String> {
    let file = ModelFile::open(path).map_err(|error| error.to_string())?;
    Ok(file.tensors().any(|tensor| matches!(tensor.name.as_str(), "cls.weight" | "cls.output.weight")))
}

/// Source: `tokenizer.chat_template.rerank`, and format_prompt_rerank of llama-server.
pub(super) fn pair_layout(model: &llama::Model) -> PairLayout {
    if let Some(template) = model.meta("tokenizer.chat_template.rerank") {
        return PairLayout::Template(template);
    }
    let flags = model.vocab_flags();
    let only = |wanted: bool, token: Option<Token>| token.filter(|_| wanted);
    let eos = only(flags.add_eos, flags.eos.or(flags.sep));
    let sep = only(flags.add_sep, flags.sep);
    PairLayout::Tokens {
        before: only(flags.add_bos, flags.bos).into_iter().collect(),
        between: eos.into_iter().chain(sep).collect(),
        // A vocabulary without EOS ends with its separator, as in pairs of BERT.
        after: eos.or(sep).into_iter().collect(),
    }
}

impl LlamaModel {
    pub(super) fn n_embd_out(&self) -> u32 {
        match self.pooling {
            None => 0,
            Some(Pooling::Rank) => self.model.n_cls_out(),
            Some(_) => self.model.n_embd_out(),
        }
    }

    /// Whether the rows of an input may come in several batches: each position sees only what was before it, and only
    /// the last one counts, or each by itself.
    fn takes_parts(&self) -> bool {
        self.model.generates() && matches!(self.pooling, Some(Pooling::Last | Pooling::Rank | Pooling::None))
    }

    /// Most tokens of one input.
    pub(super) fn n_embed_max(&self) -> u32 {
        let n_ctx = self.n_ctx().min(self.model.n_ctx_train().max(1));
        match self.pooling {
            None => 0,
            Some(_) if self.takes_parts() => n_ctx,
            Some(_) => n_ctx.min(self.config.n_batch),
        }
    }
}

pub struct LlamaEncoder {
    context: llama::Context,
    /// For passes of fewer rows than a tile, without flash attention: there it would sum in F16, not only round to it.
    small: Option<llama::Context>,
    is_last_small: bool,
    batch: Batch,
    /// A pass that was filled up.
    filled: Vec<Row>,
    n_seqs: u32,
    n_rows_aim: u32,
    takes_parts: bool,
    is_pooled: bool,
}

/// Whether flash attention is used: for none of the passes, for those of many rows, or for all.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attention {
    Plain,
    Tiled,
    Flash,
}

impl Attention {
    /// On a CPU, for encoders, flash attention in tiles takes two thirds of the time, and rounds keys and values to F16. A
    /// small pass rounds them too, or a text alone would be up to 1.2e-4 away from the same text in company
    /// (all-MiniLM-L6-v2).
    fn choose(model: &llama::Model, asked: FlashAttn, is_causal: bool, is_offloaded: bool) -> Self {
        // Their bias of relative positions is not taken by flash attention, whatever a context says.
        let is_t5 = model.meta("general.architecture").is_some_and(|name| name.starts_with("t5"));
        match asked {
            FlashAttn::Off => Self::Plain,
            _ if is_t5 => Self::Plain,
            // A causal model's inputs may come in parts, which would lie in two contexts.
            FlashAttn::On if is_causal || is_offloaded => Self::Flash,
            FlashAttn::Auto if is_causal || is_offloaded => Self::Plain,
            FlashAttn::On | FlashAttn::Auto => Self::Tiled,
        }
    }
}

impl LlamaEncoder {
    pub(super) fn new(model: &LlamaModel, interrupt: &Interrupt) -> Result<Self, String> {
        let pooling = match model.pooling {
            None => return Err("this model makes no vectors; this is a bug".into()),
            Some(Pooling::None) => PoolingType::Rows,
            Some(Pooling::Mean) => PoolingType::Mean,
            Some(Pooling::Cls) => PoolingType::Cls,
            Some(Pooling::Last) => PoolingType::Last,
            Some(Pooling::Rank) => PoolingType::Rank,
        };
        let is_causal = model.model.generates();
        let is_offloaded = llama::offloads() && model.config.gpu_layers.is_some();
        let attention = Attention::choose(&model.model, model.config.flash_attn, is_causal, is_offloaded);
        let takes_parts = model.takes_parts();
        let n_embed_max = model.n_embed_max();
        let n_batch = if takes_parts {
            let row_bytes = 4 * u64::from(model.model.vocab_flags().n_tokens.max(1));
            let n_rows = u32::try_from((LOGIT_BYTES / row_bytes).max(1)).unwrap_or(u32::MAX);
            power_of_two_below(n_rows).clamp(64, 2 * BATCH_MIN)
        } else {
            n_embed_max.next_power_of_two().max(BATCH_MIN)
        };
        let (n_threads, n_threads_batch) = model.threads();
        let n_seqs = if is_causal { SEQS_MAX_CAUSAL } else { SEQS_MAX };
        let params = ContextParams {
            // One input that is computed in parts, and a batch beside it.
            n_ctx: if takes_parts { n_embed_max + n_batch } else { n_batch },
            n_batch,
            n_ubatch: n_batch,
            n_seq_max: n_seqs,
            n_outputs_max: n_batch,
            n_threads,
            n_threads_batch,
            // Nothing is kept between inputs, so a smaller type would save nothing.
            flash_attn: Some(attention != Attention::Plain),
            type_k: KvElement::F16,
            type_v: KvElement::F16,
            kv_unified: true,
            swa_full: true,
            offload_kqv: true,
            mtp: false,
            n_rs_seq: 0,
            rounds_kv: false,
            // Not attention: a text alone, which is a small pass, would be 1.1e-4 from the same in company, where 1e-4 is held.
            kernels: (!is_offloaded).then_some(KernelChoice { products: true, attention: false }),
            pooling: Some(pooling),
            poll: POLL,
        };
        let of_tile = ContextParams {
            n_ctx: TILE_ROWS,
            n_batch: TILE_ROWS,
            n_ubatch: TILE_ROWS,
            n_outputs_max: TILE_ROWS,
            flash_attn: Some(false),
            rounds_kv: true,
            ..params
        };
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let context = llama::Context::new(&model.model, params, Arc::clone(interrupt));
        let context = context.map_err(|error| error.to_string())?;
        let small = (attention == Attention::Tiled).then(|| context.on_same_threads(of_tile, Arc::clone(interrupt)));
        let small = small.transpose().map_err(|error| error.to_string())?;
        let n_rows_aim = match attention {
            _ if is_causal || is_offloaded => n_batch,
            Attention::Plain => ROWS_AIM_PLAIN,
            Attention::Tiled | Attention::Flash => ROWS_AIM,
        };
        Ok(Self {
            context,
            small,
            is_last_small: false,
            batch: Batch::default(),
            filled: Vec::new(),
            n_seqs,
            n_rows_aim,
            takes_parts,
            is_pooled: model.pooling != Some(Pooling::None),
        })
    }

    /// The context of the last pass.
    fn last(&mut self) -> &mut llama::Context {
        self.small.as_mut().filter(|_| self.is_last_small).unwrap_or(&mut self.context)
    }
}

/// Makes it `n` rows at least, by a sequence that no row has, which nobody reads.
fn fill(rows: &mut Vec<Row>, n: u32) {
    let n_missing = n.saturating_sub(rows.len() as u32);
    // Fewer than `n` rows have fewer than `n` sequences.
    if let Some(seq) = (0..n).find(|seq| rows.iter().all(|row| row.seq != *seq)).filter(|_| n_missing > 0) {
        rows.extend((0..n_missing).map(|pos| Row { token: 0, pos, seq, output: true }));
    }
}

fn power_of_two_below(n: u32) -> u32 {
    1 << n.max(1).ilog2()
}

impl Encoder for LlamaEncoder {
    fn n_batch(&self) -> u32 {
        self.context.n_batch()
    }

    fn n_rows_aim(&self) -> u32 {
        self.n_rows_aim
    }

    fn n_seqs(&self) -> u32 {
        self.n_seqs
    }

    fn takes_whole_inputs(&self) -> bool {
        !self.takes_parts
    }

    fn encode(&mut self, rows: &[Row]) -> Result<(), DecodeError> {
        let Some(small) = &mut self.small else { return decode(&mut self.context, &mut self.batch, rows) };
        self.is_last_small = rows.len() < FILL_FROM;
        if self.is_last_small {
            return decode(small, &mut self.batch, rows);
        }
        self.filled.clear();
        self.filled.extend_from_slice(rows);
        fill(&mut self.filled, TILE_ROWS);
        decode(&mut self.context, &mut self.batch, &self.filled)
    }

    fn is_pooled(&self) -> bool {
        self.is_pooled
    }

    fn vector(&mut self, seq: u32) -> Option<&[f32]> {
        self.last().pooled(signed(seq))
    }

    fn row_vector(&mut self, row: usize) -> Option<&[f32]> {
        self.last().row_embedding(signed(row))
    }

    fn forget(&mut self, seq: u32) {
        if let Err(error) = self.last().seq_rm(signed(seq), 0) {
            tracing::warn!(%error, "a sequence of the embeddings context could not be emptied");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syllables_are_taken_apart() {
        assert_eq!(decompose_hangul("a 한가"), "a \u{1112}\u{1161}\u{11AB}\u{1100}\u{1161}");
        assert!(matches!(decompose_hangul("plain"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_pass_is_filled_up_by_a_sequence_of_its_own() {
        let row = |seq| Row { token: 7, pos: 0, seq, output: true };
        let mut rows: Vec<Row> = [0, 1, 3].map(row).to_vec();
        fill(&mut rows, 5);
        let seen: Vec<(u32, u32)> = rows.iter().map(|row| (row.seq, row.pos)).collect();
        assert_eq!(seen, [(0, 0), (1, 0), (3, 0), (2, 0), (2, 1)]);
        fill(&mut rows, 4);
        assert_eq!(rows.len(), 5);
        let mut all: Vec<Row> = (0..63).map(row).collect();
        fill(&mut all, 64);
        assert_eq!((all.len(), all[63].seq), (64, 63));
    }

    #[test]
    fn batches_are_powers_of_two() {
        assert_eq!([1, 2, 3, 220, 512].map(power_of_two_below), [1, 2, 2, 128, 512]);
    }
}
