//! The projector of a llama.cpp model.

use super::{ChunkShape, Piece};
use crate::chat::MediaKind;
use crate::engine::media::Bitmap;
use crate::llama;
use crate::model::ModelFile;
use std::path::Path;
use std::sync::Arc;

pub struct Projector {
    projector: llama::Projector,
}

/// Projectors whose output depends on what stands before an image in the prompt, so that it can't be computed once and
/// kept. Source: mtmd_tokenizer::add_media, mtmd.cpp (`lead_pad`, `image_idx`).
const PLACE_BOUND: [&str; 2] = ["deepseek4v", "hunyuanvl"];

impl Projector {
    /// Errors: what is wrong with the file, or that it belongs to another model.
    pub fn load(path: &Path, model: &Arc<llama::Model>, n_threads: u32, use_gpu: bool) -> Result<Self, String> {
        // Read first in Rust, as models are: a broken header is refused with a sentence.
        let file = ModelFile::open(path).map_err(|error| error.to_string())?;
        let refuse = |reason: String| format!("{}: {reason}", path.display());
        if file.gguf.text("general.architecture") != Some("clip") {
            return Err(refuse("this is no multimodal projector (mmproj) file".into()));
        }
        let kinds = ["clip.projector_type", "clip.vision.projector_type", "clip.audio.projector_type"];
        if let Some(kind) = kinds.iter().filter_map(|key| file.gguf.text(key)).find(|kind| PLACE_BOUND.contains(kind)) {
            return Err(refuse(format!("projectors of the kind {kind} are not supported")));
        }
        let projector =
            llama::Projector::load(path, model, n_threads, use_gpu).map_err(|error| refuse(error.to_string()))?;
        Ok(Self { projector })
    }

    pub fn takes(&self) -> Vec<MediaKind> {
        let facts = self.projector.facts();
        let mut takes = Vec::new();
        if facts.vision {
            takes.push(MediaKind::Image);
        }
        if facts.sample_rate.is_some() {
            takes.push(MediaKind::Audio);
        }
        takes
    }

    pub fn audio_rate(&self) -> Option<u32> {
        self.projector.facts().sample_rate
    }

    pub fn split(&self, bitmap: &Bitmap) -> Result<Vec<Piece<llama::Chunk>>, String> {
        let pieces = match bitmap {
            Bitmap::Image { width, height, rgb } => self.projector.split_image(*width, *height, rgb),
            Bitmap::Sound { samples } => self.projector.split_audio(samples),
        };
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let piece = |piece: llama::Piece| match piece {
            llama::Piece::Text(tokens) => Piece::Text(tokens),
            llama::Piece::Media(mut chunk) => {
                let shape = ChunkShape {
                    n_tokens: number(chunk.n_tokens),
                    n_pos: number(chunk.n_pos),
                    is_non_causal: chunk.is_non_causal,
                    grid: std::mem::take(&mut chunk.grid),
                };
                Piece::Chunk { chunk, shape: Arc::new(shape) }
            }
        };
        Ok(pieces.map_err(|error| error.to_string())?.into_iter().map(piece).collect())
    }

    pub fn encode(&self, chunk: &llama::Chunk) -> Result<Vec<f32>, String> {
        self.projector.encode(chunk).map_err(|error| error.to_string())
    }

    /// Numbers of a position: 4 with M-RoPE.
    pub fn is_mrope(&self) -> bool {
        self.projector.facts().mrope
    }
}

/// Positions of `n` rows of a chunk, from row `first` on, as llama.cpp wants them: one number each, or with M-RoPE the
/// first numbers of all, then the second ones and so on. Source: set_position_mrope_2d and _1d, mtmd-helper-common.h.
pub fn positions(shape: &ChunkShape, pos: u32, first: u32, n: u32, is_mrope: bool) -> Vec<i32> {
    let number = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    let counted = |row: u32| number(pos + row);
    if !is_mrope {
        return (first..first + n).map(counted).collect();
    }
    (0..4)
        .flat_map(|part| (first..first + n).map(move |row| (part, row)))
        .map(|(part, row)| match shape.grid.get(row as usize) {
            Some(place) => place.get(part).map_or(0, |at| number(pos) + at),
            None => counted(row),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_laid_out_by_section() {
        let plain = ChunkShape { n_tokens: 3, n_pos: 3, is_non_causal: false, grid: Vec::new() };
        assert_eq!(positions(&plain, 10, 1, 2, false), [11, 12]);
        assert_eq!(positions(&plain, 10, 0, 2, true), [10, 11, 10, 11, 10, 11, 10, 11]);
        let grid = vec![[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]];
        let image = ChunkShape { n_tokens: 4, n_pos: 2, is_non_causal: false, grid };
        assert_eq!(positions(&image, 5, 0, 4, true), [5, 5, 5, 5, 5, 5, 6, 6, 5, 6, 5, 6, 0, 0, 0, 0]);
        assert_eq!(positions(&image, 5, 2, 2, true), [5, 5, 6, 6, 5, 6, 0, 0]);
    }
}
