//! Headers of model files, and what is made of them before llama.cpp sees them, fuzzed (F8).

use super::fit::{Ask, Memory, Plan};
use super::{Gguf, ModelFile, Shape as ModelShape};
use crate::fuzz::{Shape, Target, fuzz, outcome};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

const WORDS: &str = "general.architecture¦general.alignment¦llama¦gemma2¦jamba¦mamba¦bert¦qwen2moe¦glm4moe¦.block_count¦\
    .embedding_length¦.attention.head_count¦.attention.head_count_kv¦.context_length¦.feed_forward_length¦\
    .attention.sliding_window¦.ssm.inner_size¦.ssm.state_size¦.attention.key_length¦tokenizer.ggml.tokens¦\
    tokenizer.ggml.token_type¦tokenizer.chat_template¦split.count¦<0x-1>¦token_embd¦output.weight";

/// The header of a file, and how long the whole is, in front of it.
fn header(path: &Path) -> Vec<u8> {
    let n_bytes = path.metadata().expect("a file").len();
    let gguf = Gguf::read(std::io::BufReader::new(File::open(path).expect("a file")), n_bytes).expect("a good header");
    let mut input = n_bytes.to_le_bytes().to_vec();
    File::open(path).expect("a file").take(gguf.data_offset).read_to_end(&mut input).expect("it can be read");
    input
}

#[test]
fn gguf_headers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(root).expect("models").flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    paths.sort();
    let seeds = paths.iter().map(|path| header(path)).collect();
    let target =
        Target { name: "gguf_headers", seeds, shape: Shape::Bytes, words: &WORDS.split('¦').collect::<Vec<_>>() };
    fuzz(&target, |input| {
        let Some((n_bytes, header)) = input.split_first_chunk() else { return 0 };
        let n_bytes = u64::from_le_bytes(*n_bytes);
        let gguf = match Gguf::read(header, n_bytes) {
            Ok(gguf) => gguf,
            Err(error) => {
                let message = error.to_string();
                assert!(message.len() < 4096, "{message:.200}");
                return outcome(&message);
            }
        };
        let ends = gguf.tensors.iter().map(|tensor| gguf.data_offset + tensor.offset + tensor.n_bytes);
        assert!(ends.max().unwrap_or(0) <= n_bytes, "a tensor beyond the end");
        let file = ModelFile { path: PathBuf::from("fuzzed.gguf"), gguf, parts: Vec::new() };
        match ModelShape::read(&file) {
            Ok(shape) => {
                for ask in
                    [Ask::default(), Ask { n_ctx: u64::MAX / 2, flash_attn: false, unified: false, ..Ask::default() }]
                {
                    let plan = Plan::new(&file, &shape, ask);
                    let memory = Memory { available: 1 << 30, limited_by: "the test" };
                    let _ = plan.check(&file, &shape, memory).map_err(|error| error.to_string());
                }
                outcome(&shape.architecture).wrapping_add(shape.layers.len() as u64)
            }
            Err(error) => outcome(&error.to_string()) ^ 1,
        }
    });
}
