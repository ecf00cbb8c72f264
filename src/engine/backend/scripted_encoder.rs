//! Vectors of the scripted backend: numbers that depend on an input's tokens only.

use super::scripted::{END, N_EMBD, ScriptedModel, wait};
use super::{DecodeError, Encoder, Interrupt, Row, Token};
use crate::engine::event::Pooling;
use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::time::Duration;

/// Vectors of what a sequence holds, in parts as an input comes.
pub struct ScriptedEncoder {
    model: Arc<ScriptedModel>,
    interrupt: Interrupt,
    held: FxHashMap<u32, Vec<Token>>,
    vectors: FxHashMap<u32, Vec<f32>>,
    /// Of the rows of the last pass.
    rows: Vec<Vec<f32>>,
}

impl ScriptedEncoder {
    pub(super) fn new(model: Arc<ScriptedModel>, interrupt: Interrupt) -> Self {
        Self { model, interrupt, held: FxHashMap::default(), vectors: FxHashMap::default(), rows: Vec::new() }
    }
}

impl Encoder for ScriptedEncoder {
    fn n_batch(&self) -> u32 {
        self.model.shape.n_batch
    }

    fn n_rows_aim(&self) -> u32 {
        self.model.shape.n_batch
    }

    fn n_seqs(&self) -> u32 {
        8
    }

    fn takes_whole_inputs(&self) -> bool {
        false
    }

    fn encode(&mut self, rows: &[Row]) -> Result<(), DecodeError> {
        let config = &self.model.config;
        let time = Duration::from_micros(config.step_us + rows.len() as u64 * config.prompt_token_us);
        if !time.is_zero() {
            wait(&self.interrupt, time)?;
        }
        self.vectors.clear();
        self.rows.clear();
        let is_pooled = self.is_pooled();
        for row in rows {
            let held = self.held.entry(row.seq).or_default();
            assert_eq!(held.len(), row.pos as usize, "positions of a sequence are contiguous; this is a bug");
            held.push(row.token);
            if !is_pooled {
                self.rows.push(vector_of(held));
            }
            self.vectors.insert(row.seq, Vec::new());
        }
        for (seq, vector) in &mut self.vectors {
            let tokens = &self.held[seq];
            *vector = match self.model.config.embeds {
                2 => vec![overlap(tokens)],
                _ => vector_of(tokens),
            };
        }
        Ok(())
    }

    fn is_pooled(&self) -> bool {
        self.model.pooling() != Some(Pooling::None)
    }

    fn vector(&mut self, seq: u32) -> Option<&[f32]> {
        self.vectors.get(&seq).map(Vec::as_slice)
    }

    fn row_vector(&mut self, row: usize) -> Option<&[f32]> {
        self.rows.get(row).map(Vec::as_slice)
    }

    fn forget(&mut self, seq: u32) {
        self.held.remove(&seq);
    }
}

/// Counts of the tokens by the remainder of their ids, and their order in the last number.
fn vector_of(tokens: &[Token]) -> Vec<f32> {
    let mut vector = vec![0.0; N_EMBD];
    for (at, token) in tokens.iter().enumerate() {
        vector[token.unsigned_abs() as usize % (N_EMBD - 1)] += 1.0;
        vector[N_EMBD - 1] += (token.unsigned_abs() % 7) as f32 / (at + 1) as f32;
    }
    vector
}

/// The share of what is before the first END that is behind it too.
fn overlap(tokens: &[Token]) -> f32 {
    let mut parts = tokens.split(|token| *token == END);
    let (query, document) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let n_shared = query.iter().filter(|token| document.contains(token)).count();
    n_shared as f32 / query.len().max(1) as f32
}
