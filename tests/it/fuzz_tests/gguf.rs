//! Mutated model files through llama.cpp's loader, in an engine process, fuzzed (F9): a file that hearth's own reader lets through is
//! loaded, or refused with a reason; the process doesn't die of it and doesn't hang.
//!
//! HEARTH_ENGINE names another binary for the process, such as one with AddressSanitizer.

use super::gguf_edit::Facts;
use super::runtime;
use crate::fuzz::{Shape, Target, corpus, fuzz_few, outcome};
use crate::support::served::root;
use hearth::chat::Prompt;
use hearth::engine::config::ModelSource;
use hearth::engine::{Engine, EngineConfig, EngineMode, EngineState, Event, GenerateRequest, TokenizeRequest};
use hearth::model::{Ask, Memory, ModelFile, Plan, Shape as ModelShape};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A process that says nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a tiny model may want.
const MEMORY: Memory = Memory { available: 2 << 30, limited_by: "the test" };

const WORDS: &str = "general.architecture¦llama¦gemma2¦jamba¦mamba¦bert¦qwen2moe¦gpt2¦falcon¦phi3¦t5¦rwkv6¦deepseek2¦.block_count¦\
    .embedding_length¦.attention.head_count¦.attention.head_count_kv¦.context_length¦.feed_forward_length¦.expert_count¦\
    .expert_used_count¦.attention.sliding_window¦.ssm.inner_size¦.ssm.state_size¦.ssm.conv_kernel¦.ssm.time_step_rank¦\
    .attention.key_length¦.attention.value_length¦.rope.dimension_count¦.rope.freq_base¦.rope.scaling.type¦\
    .attention.layer_norm_rms_epsilon¦tokenizer.ggml.model¦spm¦gpt2¦bert¦t5¦rwkv¦plamo2¦none¦tokenizer.ggml.pre¦default¦qwen2¦\
    llama-bpe¦tokenizer.ggml.tokens¦tokenizer.ggml.token_type¦tokenizer.ggml.scores¦tokenizer.ggml.merges¦\
    tokenizer.ggml.bos_token_id¦tokenizer.ggml.eos_token_id¦tokenizer.ggml.precompiled_charsmap¦tokenizer.chat_template¦<0x-1>¦\
    <0xZZ>¦token_embd.weight¦output.weight¦output_norm.weight¦blk.0.¦attn_q¦attn_k¦ffn_gate¦.bias¦{{¦{%¦split.count";

/// Small ones, of every kind of memory.
const BASES: [&str; 8] = ["qwen2vl", "glm4moe", "mamba", "gemma2", "jamba", "bert", "qwen2moe", "llama"];

fn base(name: &str) -> PathBuf {
    root().join(format!("models/tiny/tiny-{name}.gguf"))
}

/// The header of a file with how much data there is behind it, in front: data is made of nothing again.
fn header(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).expect("a model of the tree");
    let file = ModelFile::open(path).expect("a good model");
    let n = usize::try_from(file.gguf.data_offset).expect("a small file");
    let mut input = ((bytes.len() - n) as u64).to_le_bytes().to_vec();
    input.extend_from_slice(&bytes[..n]);
    input
}

/// Of the data that an input asks for.
const DATA_BYTES_MAX: u64 = 8 << 20;

fn file(input: &[u8]) -> Option<Vec<u8>> {
    let (n_data, header) = input.split_first_chunk()?;
    let n_data = usize::try_from(u64::from_le_bytes(*n_data).min(DATA_BYTES_MAX)).ok()?;
    let mut bytes = header.to_vec();
    // Small numbers in every type.
    bytes.extend((0..n_data).map(|at| (at % 13) as u8));
    Some(bytes)
}

/// Whether hearth lets the file through to llama.cpp, as at the start of `hearth serve`.
fn passes(path: &Path) -> Result<(), String> {
    let file = ModelFile::open(path).map_err(|error| error.to_string())?;
    let shape = ModelShape::read(&file).map_err(|error| error.to_string())?;
    let plan = Plan::new(&file, &shape, Ask { n_ctx: 256, ..Ask::default() });
    plan.check(&file, &shape, MEMORY).map_err(|error| error.to_string())
}

fn engine_binary() -> PathBuf {
    std::env::var_os("HEARTH_ENGINE").map_or_else(|| env!("CARGO_BIN_EXE_hearth").into(), PathBuf::from)
}

/// How the load ended, in words; what the model then does, where it is one. Errors: the process died.
async fn load(path: &Path) -> Result<String, String> {
    let mut config = EngineConfig::new(ModelSource::Gguf(path.to_owned()));
    (config.n_ctx, config.n_threads) = (Some(256), Some(1));
    let mode = EngineMode::Process { exe: engine_binary(), args: vec!["--log-level".into(), "error".into()] };
    let engine = Engine::start(config, mode);
    let mut watch = engine.watch();
    let settled = watch.wait_for(|state| !matches!(state, EngineState::Loading { .. }));
    let state =
        tokio::time::timeout(PATIENCE, settled).await.expect("the process hangs").expect("the engine lives").clone();
    let said = match state {
        EngineState::Ready(description) => {
            let asked = TokenizeRequest {
                prompt: Prompt::Text("hello <0x41> Zä\n".into()),
                add_special: true,
                parse_special: true,
                with_pieces: true,
                partition: 0,
            };
            let tokens = tokio::time::timeout(PATIENCE, engine.tokenize(asked)).await.expect("the tokenizer hangs");
            let mut request = GenerateRequest::new(Prompt::Text("hello".into()));
            request.output.max_tokens = Some(2);
            let generated = match engine.generate(request) {
                Ok(mut generation) => {
                    let mut last = None;
                    while let Some(event) = tokio::time::timeout(PATIENCE, generation.next()).await.expect("it hangs") {
                        last = Some(event);
                    }
                    matches!(last, Some(Event::Done(_)))
                }
                Err(_) => false,
            };
            let state = engine.state();
            if let EngineState::Restarting { reason, .. } = state {
                engine.close().await;
                return Err(format!("in use: {reason}"));
            }
            Ok(format!("ready {} {} {generated}", description.architecture, tokens.is_ok()))
        }
        EngineState::Failed { reason } => Ok(format!("refused {reason}")),
        EngineState::Restarting { reason, .. } => Err(reason),
        EngineState::Loading { .. } | EngineState::Stopped => unreachable!("it was waited for"),
    };
    engine.close().await;
    said
}

/// What becomes of a file, in a number; how many reached llama.cpp is counted. Panics where the process dies of it.
fn judge(runtime: &tokio::runtime::Runtime, path: &Path, n_through: &mut u64) -> u64 {
    if let Err(refusal) = passes(path) {
        assert!(refusal.len() < 4096, "{refusal:.300}");
        return outcome(&refusal);
    }
    *n_through += 1;
    match runtime.block_on(load(path)) {
        Ok(said) => outcome(&said) ^ 1,
        Err(reason) => unreachable!("llama.cpp died of a file that was let through: {reason}"),
    }
}

fn place() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary folder")
}

/// Any bytes of the header may be others.
#[test]
fn model_files() {
    let (runtime, dir) = (runtime(), place());
    let words: Vec<&str> = WORDS.split('¦').collect();
    let seeds = BASES.map(|name| header(&base(name))).to_vec();
    let target = Target { name: "gguf", seeds, shape: Shape::Bytes, words: &words };
    let mut n_through = 0;
    fuzz_few(&target, 60, |input| {
        let Some(bytes) = file(input) else { return 0 };
        let path = dir.path().join("fuzzed.gguf");
        std::fs::write(&path, bytes).expect("a writable folder");
        judge(&runtime, &path, &mut n_through)
    });
    eprintln!("{n_through} files were let through to llama.cpp");
}

/// The file is whole in form, and its facts are others.
#[test]
fn facts_of_models() {
    let (runtime, dir) = (runtime(), place());
    let bases = BASES.map(|name| Facts::read(&base(name)));
    let seeds = [
        "base 0\nset .block_count u32 3\n",
        "base 1\nset .attention.head_count u32 0\nset .expert_used_count u32 9\n",
        "base 2\nset .ssm.state_size u32 17\nset .ssm.conv_kernel u32 1\n",
        "base 3\nset .attention.sliding_window u32 0\nset .rope.freq_base f32 0\n",
        "base 4\nelem .attention.head_count_kv 1 0\nlen .attention.head_count_kv 2\n",
        "base 5\nset tokenizer.ggml.model str bert\ndel tokenizer.ggml.merges\n",
        "base 6\nset general.architecture str llama\n",
        "base 7\nset tokenizer.ggml.model str llama\nelem tokenizer.ggml.tokens 5 <0x-1>\nelem tokenizer.ggml.token_type 5 6\n",
        "base 7\nset tokenizer.ggml.eos_token_id u32 4000000000\nset tokenizer.ggml.bos_token_id i32 -5\n",
        "base 7\nlen tokenizer.ggml.token_type 3\nlen tokenizer.ggml.tokens 2\n",
        "base 7\nset tokenizer.ggml.model str t5\nset tokenizer.ggml.precompiled_charsmap str x\n",
        "base 7\ndims token_embd.weight 1 4\ndims blk.0.attn_q.weight 0 96\nkind output.weight 8\n",
        "base 7\nset tokenizer.chat_template str {% for m in messages %}{{ m.content }}{% endfor %}\n",
    ];
    let seeds = seeds.iter().map(|text| text.as_bytes().to_vec()).chain(corpus("gguf_facts")).collect();
    let words = format!("set ¦del ¦elem ¦len ¦dims ¦kind ¦name ¦drop ¦base ¦u32 ¦i32 ¦f32 ¦str ¦bool ¦u64 ¦{WORDS}");
    let words: Vec<&str> = words.split('¦').collect();
    let target = Target { name: "gguf_facts", seeds, shape: Shape::Text, words: &words };
    let mut n_through = 0;
    fuzz_few(&target, 30, |input| {
        let text = String::from_utf8_lossy(input);
        let first = text.lines().next().and_then(|line| line.strip_prefix("base ")?.trim().parse::<usize>().ok());
        let mut facts = bases[first.unwrap_or(7) % bases.len()].clone();
        text.lines().take(50).for_each(|line| facts.edit(line));
        let path = dir.path().join("fuzzed.gguf");
        std::fs::write(&path, facts.written()).expect("a writable folder");
        judge(&runtime, &path, &mut n_through)
    });
    eprintln!("{n_through} files were let through to llama.cpp");
}
