//! What a model takes on GPUs, by the number of its layers that are kept there.

use super::{ModelFile, Plan, Shape};

/// Bytes on GPUs for each number of layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offload {
    /// For 0, 1, … layers; the last is for all.
    needs: Vec<u64>,
}

impl Offload {
    /// llama.cpp keeps the outputs there first, as if they were a layer behind the last one, then layers from the last to the
    /// first, each with its cache and its state; the tokens' embeddings stay with the CPU, but where they are the outputs too
    /// they are copied. Source: `llama_model_base::load_tensors`, src/llama-model.cpp.
    pub fn new(file: &ModelFile, shape: &Shape, plan: &Plan) -> Self {
        let mut layers = plan.of_layers(shape);
        let (mut embeddings, mut outputs, mut has_output) = (0u64, 0u64, false);
        for tensor in file.tensors() {
            let layer = tensor.name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
            let place = match layer.and_then(|layer| layers.get_mut(layer)) {
                Some(layer) => layer,
                None if tensor.name == "token_embd.weight" => &mut embeddings,
                None if tensor.name.starts_with("per_layer_token_embd") => continue,
                None => {
                    has_output |= tensor.name == "output.weight";
                    &mut outputs
                }
            };
            *place = place.saturating_add(tensor.n_bytes);
        }
        if !has_output && !shape.encoder {
            outputs = outputs.saturating_add(embeddings);
        }
        let mut need = plan.compute.saturating_add(outputs);
        let mut needs = vec![0, need];
        for layer in layers.into_iter().rev() {
            need = need.saturating_add(layer);
            needs.push(need);
        }
        Self { needs }
    }

    /// All layers, the outputs among them.
    pub fn n_max(&self) -> u32 {
        u32::try_from(self.needs.len() - 1).unwrap_or(u32::MAX)
    }

    /// Bytes for `n` layers; more than there are take what all do.
    pub fn need(&self, n: u32) -> u64 {
        self.needs[(n as usize).min(self.needs.len() - 1)]
    }

    /// The most layers that take no more than `free` bytes.
    pub fn fit(&self, free: u64) -> u32 {
        let n = self.needs.partition_point(|need| *need <= free);
        u32::try_from(n.saturating_sub(1)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Ask;
    use super::*;
    use std::path::Path;

    fn read(name: &str) -> (ModelFile, Plan, Offload) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name);
        let file = ModelFile::open(&path).expect("a model of the tree");
        let shape = Shape::read(&file).expect("a model of the tree");
        let plan = Plan::new(&file, &shape, Ask { n_ctx: 2048, ..Ask::default() });
        let offload = Offload::new(&file, &shape, &plan);
        (file, plan, offload)
    }

    #[test]
    fn all_layers_take_all_but_the_embeddings_of_tokens() {
        for name in ["hearth-demo.gguf", "tiny/tiny-qwen2moe.gguf", "tiny/tiny-jamba.gguf"] {
            let (file, plan, offload) = read(name);
            let of = |wanted: &str| file.tensors().filter(|t| t.name == wanted).map(|t| t.n_bytes).sum::<u64>();
            let embeddings = if of("output.weight") > 0 { of("token_embd.weight") } else { 0 };
            assert_eq!(
                offload.need(offload.n_max()),
                plan.weights + plan.kv + plan.state + plan.compute - embeddings,
                "{name}"
            );
        }
    }

    #[test]
    fn the_most_layers_that_fit_are_found() {
        let (_, plan, offload) = read("hearth-demo.gguf");
        assert_eq!((offload.need(0), offload.fit(0), offload.fit(plan.compute)), (0, 0, 0));
        for n in 1..=offload.n_max() {
            assert!(offload.need(n) > offload.need(n - 1));
            assert_eq!((offload.fit(offload.need(n)), offload.fit(offload.need(n) - 1)), (n, n - 1));
        }
        assert_eq!(offload.fit(u64::MAX), offload.n_max());
        assert_eq!(offload.need(u32::MAX), offload.need(offload.n_max()));
    }
}
