//! The sizes that decide how much memory a model's context takes, read from its metadata.

use super::{Gguf, ModelFile, beside};

/// Most layers a model may have. Source: LLAMA_MAX_LAYERS, src/llama-hparams.h.
const LAYERS_MAX: u64 = 512;
/// No size of a model comes near; keeps every product below u64's end.
const SIZE_MAX: u64 = 1 << 24;

/// What a model keeps for each layer between tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Layer {
    /// Elements of K for each cell; 0: this layer has no KV cache.
    pub k: u64,
    /// Elements of V for each cell.
    pub v: u64,
    /// Heads of K and V, and elements of each: the layer's own, or those of another layer that it reads.
    pub heads: (u64, u64, u64),
    /// Only the last `Shape::window` positions are kept.
    pub windowed: bool,
    /// Elements of recurrent state (F32) for each sequence.
    pub state: u64,
}

impl Layer {
    /// Bytes of recurrent state for each sequence.
    pub fn state_bytes(&self) -> u64 {
        self.state.saturating_mul(4)
    }
}

/// Sizes of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    pub architecture: String,
    pub n_layer: u64,
    pub n_embd: u64,
    pub n_vocab: u64,
    pub n_ctx_train: u64,
    pub n_head_max: u64,
    /// Width of the widest feed-forward step of one token.
    pub n_ff_max: u64,
    /// Width of the recurrent layers' inner state; 0 without.
    pub n_inner: u64,
    /// Positions a windowed layer sees; 0 without such layers.
    pub window: u64,
    pub layers: Vec<Layer>,
    /// Keeps nothing between calls and generates nothing.
    pub encoder: bool,
}

/// Metadata that says something impossible.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ShapeError {
    #[error("the metadata has no {0:?}")]
    Missing(String),
    #[error("{key:?} is {value}, more than {max}")]
    TooLarge { key: String, value: u64, max: u64 },
    #[error("\"general.architecture\" has {0} bytes, more than {ARCHITECTURE_BYTES_MAX}")]
    LongName(usize),
}

/// Real ones have up to twenty; errors repeat it.
const ARCHITECTURE_BYTES_MAX: usize = 64;

/// Architectures that attend over nothing but their own input. Source: `llama_model::create_memory`, src/llama-model.cpp.
const ENCODERS: [&str; 10] = [
    "bert",
    "jina-bert-v2",
    "jina-bert-v3",
    "nomic-bert",
    "nomic-bert-moe",
    "neo-bert",
    "eurobert",
    "modern-bert",
    "gemma-embedding",
    "t5encoder",
];

/// Source: `llm_arch_is_recurrent`, src/llama-arch.cpp.
const RECURRENT: [&str; 6] = ["mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"];

/// Architectures with sliding windows: the default pattern (every n-th layer is full) and whether the full one comes
/// first. Those not listed are taken to keep everything, which can only make the plan too large.
/// Source: `load_swa_pattern` calls in src/models/.
const WINDOWED: [(&str, u64, bool); 15] = [
    ("gemma2", 2, false),
    ("gemma3", 6, false),
    ("gemma3n", 5, false),
    ("gemma4", 6, false),
    ("cohere2", 4, false),
    ("cohere2moe", 4, true),
    ("exaone4", 4, false),
    ("exaone-moe", 4, false),
    ("olmo2", 4, false),
    ("afmoe", 4, false),
    ("gpt-oss", 2, false),
    ("plamo3", 8, false),
    ("smallthinker", 4, true),
    ("mellum", 4, false),
    ("llama4", 4, false),
];

impl Shape {
    pub fn read(file: &ModelFile) -> Result<Self, ShapeError> {
        let gguf = &file.gguf;
        let architecture = gguf
            .text("general.architecture")
            .ok_or_else(|| ShapeError::Missing("general.architecture".to_owned()))?
            .to_owned();
        if architecture.len() > ARCHITECTURE_BYTES_MAX {
            return Err(ShapeError::LongName(architecture.len()));
        }
        let keys = Keys { gguf, prefix: &architecture };
        let n_layer = keys.required("block_count", LAYERS_MAX)?;
        let n_embd = keys.required("embedding_length", SIZE_MAX)?;
        let heads = keys.per_layer("attention.head_count", n_layer)?;
        let n_vocab = n_vocab(file, &keys)?;
        let mut shape = Shape {
            n_ctx_train: keys.size("context_length")?,
            n_head_max: heads.iter().copied().max().unwrap_or(0),
            n_ff_max: n_ff_max(&keys, n_layer)?,
            n_inner: keys.size("ssm.inner_size")?,
            window: window(&keys)?,
            layers: Vec::new(),
            encoder: ENCODERS.contains(&architecture.as_str()),
            n_layer,
            n_embd,
            n_vocab,
            architecture: architecture.clone(),
        };
        if !shape.encoder {
            shape.layers = layers(&keys, &shape, &heads)?;
        }
        Ok(shape)
    }

    /// Bytes of one sequence's recurrent state, of all layers.
    pub fn state_bytes(&self) -> u64 {
        self.layers.iter().map(Layer::state_bytes).fold(0, u64::saturating_add)
    }

    /// Whether any layer keeps a recurrent state.
    pub fn is_recurrent(&self) -> bool {
        self.layers.iter().any(|layer| layer.state > 0)
    }
}

/// Metadata under an architecture's prefix.
struct Keys<'a> {
    gguf: &'a Gguf,
    prefix: &'a str,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn bounded(&self, key: &str, value: u64, max: u64) -> Result<u64, ShapeError> {
        if value > max {
            return Err(ShapeError::TooLarge { key: self.full(key), value, max });
        }
        Ok(value)
    }

    fn has(&self, key: &str) -> bool {
        self.gguf.value(&self.full(key)).is_some()
    }

    fn required(&self, key: &str, max: u64) -> Result<u64, ShapeError> {
        let value = self.gguf.uint(&self.full(key)).ok_or_else(|| ShapeError::Missing(self.full(key)))?;
        self.bounded(key, value, max)
    }

    /// A size, 0 when it is not there.
    fn size(&self, key: &str) -> Result<u64, ShapeError> {
        self.bounded(key, self.gguf.uint(&self.full(key)).unwrap_or(0), SIZE_MAX)
    }

    /// One value for each layer, written as one number or as a list; zeros when it is not there.
    fn per_layer(&self, key: &str, n_layer: u64) -> Result<Vec<u64>, ShapeError> {
        let mut values = Vec::new();
        let list = self.gguf.list(&self.full(key));
        let scalar = self.size(key)?;
        for layer in 0..usize::try_from(n_layer).unwrap_or(0) {
            let value = match list {
                Some(list) => list.numbers.get(layer).map_or(0, |n| u64::try_from(*n).unwrap_or(0)),
                None => scalar,
            };
            values.push(self.bounded(key, value, SIZE_MAX)?);
        }
        Ok(values)
    }
}

fn n_vocab(file: &ModelFile, keys: &Keys) -> Result<u64, ShapeError> {
    let tokens = file.gguf.list("tokenizer.ggml.tokens").map(|list| list.len);
    let rows = || file.tensors().find(|tensor| tensor.name == "token_embd.weight")?.dims.get(1).copied();
    let n = tokens.or_else(rows).unwrap_or(0).max(keys.size("vocab_size")?);
    keys.bounded("vocab_size", n, SIZE_MAX)
}

fn n_ff_max(keys: &Keys, n_layer: u64) -> Result<u64, ShapeError> {
    let dense = keys.per_layer("feed_forward_length", n_layer)?.into_iter().max().unwrap_or(0);
    let each = keys.per_layer("expert_feed_forward_length", n_layer)?.into_iter().max().unwrap_or(0);
    let used = keys.size("expert_used_count")?;
    let each = if each == 0 && used > 0 { dense } else { each };
    let experts = used.saturating_mul(each).saturating_add(keys.size("expert_shared_feed_forward_length")?);
    Ok(dense.max(experts).min(SIZE_MAX))
}

fn window(keys: &Keys) -> Result<u64, ShapeError> {
    let known = WINDOWED.iter().any(|(name, ..)| *name == keys.prefix);
    if !known && !keys.has("attention.sliding_window_pattern") {
        return Ok(0);
    }
    let window = keys.size("attention.sliding_window")?;
    Ok(match keys.prefix {
        "gemma2" if window == 0 => 4096,
        "llama4" if window == 0 => keys.size("attention.chunk_size")?.max(8192),
        _ => window,
    })
}

fn is_windowed(keys: &Keys, layer: u64) -> bool {
    let key = keys.full("attention.sliding_window_pattern");
    if let Some(list) = keys.gguf.list(&key) {
        return usize::try_from(layer).ok().and_then(|at| list.numbers.get(at)).is_some_and(|n| *n != 0);
    }
    let (_, default, full_first) =
        WINDOWED.iter().find(|(name, ..)| *name == keys.prefix).copied().unwrap_or(("", 1, false));
    match keys.gguf.uint(&key).unwrap_or(default) {
        0 => true,
        n if full_first => !layer.is_multiple_of(n),
        n => layer % n < n - 1,
    }
}

/// What each layer keeps. Source: `llama_hparams::n_embd_{k,v}_gqa`, `n_embd_r`, `n_embd_s`, src/llama-hparams.cpp.
fn layers(keys: &Keys, shape: &Shape, heads: &[u64]) -> Result<Vec<Layer>, ShapeError> {
    let n_layer = shape.n_layer;
    let heads_kv = if keys.has("attention.head_count_kv") {
        keys.per_layer("attention.head_count_kv", n_layer)?
    } else {
        heads.to_vec()
    };
    let head = shape.n_embd.checked_div(shape.n_head_max).unwrap_or(0);
    let or_head = |n: u64| if n == 0 { head } else { n };
    let length = |key: &str| Ok(or_head(keys.size(key)?));
    let (k_len, v_len) = (length("attention.key_length")?, length("attention.value_length")?);
    let swa = |key: &str, full: u64| Ok(if keys.has(key) { keys.size(key)? } else { full });
    let (k_swa, v_swa) = (swa("attention.key_length_swa", k_len)?, swa("attention.value_length_swa", v_len)?);
    // Multi-head latent attention keeps one compressed row for both, in K.
    let latent = keys.has("attention.key_length_mla");
    let n_kv_layers = n_layer.saturating_sub(keys.size("attention.shared_kv_layers")?);
    let state = state(keys, shape.n_embd, shape.n_head_max)?;
    let n_ff = keys.per_layer("feed_forward_length", n_layer)?;
    let n_trunk = n_layer.saturating_sub(keys.size("nextn_predict_layers")?);
    let mut layers = Vec::new();
    for ((layer, n_kv), n_ff) in (0..n_layer).zip(heads_kv).zip(n_ff) {
        let (attends, recurs) = kinds(keys, layer, n_trunk, n_kv, n_ff);
        let windowed = shape.window > 0 && is_windowed(keys, layer);
        let (k, v) = if windowed { (k_swa, v_swa) } else { (k_len, v_len) };
        let kept = attends && layer < n_kv_layers;
        layers.push(Layer {
            k: if kept { n_kv.saturating_mul(k) } else { 0 },
            v: if kept && !latent { n_kv.saturating_mul(v) } else { 0 },
            heads: (n_kv, k, v),
            windowed,
            state: if recurs { state } else { 0 },
        });
    }
    Ok(layers)
}

/// Whether a layer attends and whether it recurs. `n_trunk`: layers that are no heads.
fn kinds(keys: &Keys, layer: u64, n_trunk: u64, n_kv: u64, n_ff: u64) -> (bool, bool) {
    if RECURRENT.contains(&keys.prefix) {
        return (false, true);
    }
    match keys.prefix {
        "falcon-h1" => (true, true),
        // It attends over the cells of the model that it drafts for.
        beside::ARCHITECTURE => (false, false),
        "jamba" | "granitehybrid" | "lfm2" | "lfm2moe" | "plamo2" | "kimi-linear" => (n_kv > 0, n_kv == 0),
        // A layer is one of three: it attends, recurs or feeds forward.
        "nemotron_h" | "nemotron_h_moe" => (n_kv > 0, n_kv == 0 && n_ff == 0),
        "qwen3next" | "qwen35" | "qwen35moe" => {
            let every = keys.gguf.uint(&keys.full("full_attention_interval")).unwrap_or(4).max(1);
            // Heads for several tokens are the last layers, and none of them recurs.
            let full = (layer + 1).is_multiple_of(every) || layer >= n_trunk;
            (full, !full)
        }
        _ => (true, false),
    }
}

/// Elements of one sequence's recurrent state in one layer: convolution and state together.
fn state(keys: &Keys, n_embd: u64, n_head: u64) -> Result<u64, ShapeError> {
    let wkv = keys.size("wkv.head_size")?;
    if wkv > 0 {
        let shifts = keys.size("token_shift_count")?.max(2);
        return Ok(n_embd.saturating_mul(shifts.saturating_add(wkv)));
    }
    let short = keys.size("shortconv.l_cache")?;
    if short > 0 {
        return Ok(n_embd.saturating_mul(short - 1));
    }
    let conv = keys.size("ssm.conv_kernel")?;
    let kda = keys.size("kda.head_dim")?;
    if kda > 0 {
        let shifts = if conv > 0 { conv - 1 } else { 3 };
        let width = n_head.saturating_mul(kda);
        return Ok(width.saturating_mul(3 * shifts).saturating_add(width.saturating_mul(kda)));
    }
    let (inner, n_state, groups) =
        (keys.size("ssm.inner_size")?, keys.size("ssm.state_size")?, keys.size("ssm.group_count")?);
    let columns = inner.saturating_add(groups.saturating_mul(n_state).saturating_mul(2));
    Ok(columns.saturating_mul(conv.saturating_sub(1)).saturating_add(inner.saturating_mul(n_state)))
}
