//! Heads that keep nothing of their own: they attend over the KV cache of the model that they draft for.

use super::{Layer, Shape};

/// Their architecture. Source: LLM_ARCH_GEMMA4_ASSISTANT, src/llama-arch.cpp.
pub const ARCHITECTURE: &str = "gemma4-assistant";
/// What they are made for: llama.cpp takes the memory to be of its kind, whatever it is.
const TARGET: &str = "gemma4";

/// Whether a file holds such heads.
pub fn is_beside(heads: &Shape) -> bool {
    heads.architecture == ARCHITECTURE
}

/// Why heads can't read a model's cache, as a clause; llama.cpp would read past its rows.
/// Source: the layers that `llama_model::create_memory` shares, src/llama-model.cpp.
pub fn misfit(model: &Shape, heads: &Shape) -> Option<String> {
    if model.architecture != TARGET {
        return Some(format!(
            "its heads ({ARCHITECTURE}) attend over the memory of a {TARGET} model, and this one is {}",
            model.architecture
        ));
    }
    let [.., windowed, full] = model.layers.as_slice() else { return Some("the model has no two layers".into()) };
    if !windowed.windowed || full.windowed {
        return Some(
            "its heads attend over the model's last two layers, of which the first must have a sliding window and the other \
             none"
                .into(),
        );
    }
    let read = |layer: &Layer| if layer.windowed { windowed } else { full };
    let wrong = heads.layers.iter().find(|layer| layer.heads != read(layer).heads)?;
    let (n, k, v) = wrong.heads;
    let (n_own, k_own, v_own) = read(wrong).heads;
    Some(format!(
        "its heads read {n} heads of {k} and {v} elements, and the model keeps {n_own} of {k_own} and {v_own}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelFile;
    use std::path::Path;

    fn shape(name: &str) -> Shape {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny").join(name).with_extension("gguf");
        Shape::read(&ModelFile::open(&path).expect("a model of the tree")).expect("a model of the tree")
    }

    #[test]
    fn heads_read_what_their_model_keeps_and_keep_nothing() {
        let (model, heads) = (shape("tiny-gemma4"), shape("tiny-gemma4-assistant"));
        assert!(is_beside(&heads) && !is_beside(&model));
        assert_eq!(misfit(&model, &heads), None);
        assert!(heads.layers.iter().all(|layer| layer.k == 0 && layer.v == 0) && !heads.layers.is_empty());
        assert!(model.layers.iter().all(|layer| layer.k > 0 && layer.v > 0));
    }

    #[test]
    fn other_memories_are_refused() {
        let (model, heads) = (shape("tiny-gemma4"), shape("tiny-gemma4-assistant"));
        let why = |model: &Shape, heads: &Shape| misfit(model, heads).expect("a reason");
        assert!(why(&shape("tiny-gemma2"), &heads).contains("this one is gemma2"));
        let mut turned = model.clone();
        turned.layers.reverse();
        assert!(why(&turned, &heads).contains("sliding window"));
        turned.layers.clear();
        assert!(why(&turned, &heads).contains("no two layers"));
        let mut wide = heads.clone();
        wide.layers[0].heads.1 *= 2;
        assert!(why(&model, &wide).contains("its heads read"));
    }
}
