//! How many rows a recurrent state can be taken back by.
//!
//! # Design
//! A recurrent state knows its present only, so tokens can be tried ahead only where the states behind the last rows are
//! kept. Each is a whole state of every slot, so there are as many as are modest beside the weights. A step writes them
//! too (a row one, some architectures all), and that is why there are never many.

use super::{Ask, Shape};

/// Architectures whose graphs in llama.cpp keep states, of those whose states have a size known here.
/// Source: `llm_arch_supports_rs_rollback`, src/llama-arch.cpp.
const ARCHITECTURES: [&str; 6] = ["lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe", "qwen35", "qwen35moe"];
/// Most rows.
const ROWS_MAX: u64 = 8;
/// The kept states take at most this part of the weights' bytes.
const PART: u64 = 4;

/// Rows that the states of a model with `weights` bytes can be taken back by, as it is asked for; 0: not at all.
pub fn rows_back(shape: &Shape, weights: u64, ask: &Ask) -> u64 {
    if !ARCHITECTURES.contains(&shape.architecture.as_str()) {
        return 0;
    }
    let n_seqs = ask.n_slots.max(1).saturating_mul(ask.n_workers.max(1));
    let by_memory = (weights / PART).checked_div(shape.state_bytes().saturating_mul(n_seqs)).unwrap_or(0);
    // llama.cpp asserts that a ubatch holds a row more than there are states (llama-batch.cpp, `split_equal`).
    let by_ubatch = ask.n_ubatch.min(ask.n_ctx).saturating_sub(2);
    ask.n_draft_max.min(ROWS_MAX).min(by_memory).min(by_ubatch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelFile;
    use std::path::Path;

    #[test]
    fn as_many_rows_as_are_modest_beside_the_weights() {
        let rows = |name: &str, ask: Ask| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny").join(name);
            let file = ModelFile::open(&path).expect("a model of the tree");
            let shape = Shape::read(&file).expect("a model of the tree");
            (rows_back(&shape, file.weight_bytes(), &ask), shape.state_bytes())
        };
        let ask = Ask { n_draft_max: 63, ..Ask::default() };
        // Two layers of two positions, in F32.
        assert_eq!(rows("tiny-lfm2.gguf", ask), (ROWS_MAX, 2 * 2 * 64 * 4));
        // Two layers of three positions of 128 channels, and four heads of 16 x 16: 0.7 MB / 4 hold 15 of its states.
        let qwen = 2 * (3 * 128 + 4 * 16 * 16) * 4;
        assert_eq!(rows("tiny-qwen35.gguf", ask), (3, qwen));
        assert_eq!(rows("tiny-qwen35.gguf", Ask { n_slots: 1, ..ask }), (ROWS_MAX, qwen));
        assert_eq!(rows("tiny-qwen35.gguf", Ask { n_slots: 8, n_workers: 4, ..ask }), (0, qwen));
        // Its head keeps no state.
        assert_eq!(rows("tiny-qwen35-mtp.gguf", ask), (4, qwen));
        assert_eq!(rows("tiny-lfm2.gguf", Ask { n_draft_max: 3, ..ask }).0, 3);
        assert_eq!(rows("tiny-lfm2.gguf", Ask { n_ubatch: 4, ..ask }).0, 2);
        assert_eq!(rows("tiny-lfm2.gguf", Ask { n_ubatch: 1, ..ask }).0, 0);
        assert_eq!(rows("tiny-jamba.gguf", ask).0, 0, "its graph keeps none");
        assert_eq!(rows("tiny-llama.gguf", ask).0, 0, "it has no state");
    }
}
