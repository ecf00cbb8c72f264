//! How an engine is set up. The front sends this to the engine process as its first frame.

use super::event::Pooling;
use crate::chat::ChatPrompt;
use crate::model::lock::Mark;
use crate::model::{Memory, ModelFile};
use serde::{Deserialize, Serialize};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::time::Duration;

/// Element type of a KV cache. Names as llama-server's `--cache-type-k`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvType {
    F32,
    #[default]
    F16,
    Bf16,
    #[serde(rename = "q8_0")]
    Q8_0,
    #[serde(rename = "q4_0")]
    Q4_0,
    #[serde(rename = "q4_1")]
    Q4_1,
    #[serde(rename = "iq4_nl")]
    Iq4Nl,
    #[serde(rename = "q5_0")]
    Q5_0,
    #[serde(rename = "q5_1")]
    Q5_1,
}

impl KvType {
    pub const ALL: [(KvType, &'static str); 9] = [
        (KvType::F32, "f32"),
        (KvType::F16, "f16"),
        (KvType::Bf16, "bf16"),
        (KvType::Q8_0, "q8_0"),
        (KvType::Q4_0, "q4_0"),
        (KvType::Q4_1, "q4_1"),
        (KvType::Iq4Nl, "iq4_nl"),
        (KvType::Q5_0, "q5_0"),
        (KvType::Q5_1, "q5_1"),
    ];

    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("?", |(_, name)| name)
    }

    /// (elements, bytes) of one block. Source: ggml's `type_traits`.
    pub fn block(self) -> (u64, u64) {
        match self {
            KvType::F32 => (1, 4),
            KvType::F16 | KvType::Bf16 => (1, 2),
            KvType::Q8_0 => (32, 34),
            KvType::Q4_0 | KvType::Iq4Nl => (32, 18),
            KvType::Q4_1 => (32, 20),
            KvType::Q5_0 => (32, 22),
            KvType::Q5_1 => (32, 24),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlashAttn {
    #[default]
    Auto,
    On,
    Off,
}

/// How many of a model's layers are kept on GPUs, the last ones first; the outputs count as a layer behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuLayers {
    /// Whoever plans memory decides; the engine itself takes it as `All`.
    #[default]
    Auto,
    All,
    Count(u32),
}

impl GpuLayers {
    /// As llama.cpp takes it: negative for all. Source: `llama_model_params`, llama.h.
    pub fn count(self) -> i32 {
        match self {
            GpuLayers::Auto | GpuLayers::All => -1,
            GpuLayers::Count(n) => i32::try_from(n).unwrap_or(i32::MAX),
        }
    }

    pub fn is_some(self) -> bool {
        self != GpuLayers::Count(0)
    }
}

/// How the KV cache is laid out over the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvLayout {
    /// Whoever plans memory decides; the engine itself takes it as `Unified`.
    #[default]
    Auto,
    /// One pool of cells: a request may use the whole context, slots that don't fit together take turns.
    Unified,
    /// Each slot has its own `n_ctx / n_slots` cells.
    Split,
}

impl KvLayout {
    pub fn is_unified(self) -> bool {
        self != KvLayout::Split
    }
}

/// Whether inputs may become vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmbedMode {
    /// Where the model is an encoder, its file names a pooling, or one is set.
    #[default]
    Auto,
    /// Also with a model that was made to chat; the load fails with one that can't.
    On,
    Off,
}

/// How the next tokens are drafted, besides from texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DraftMode {
    /// By the draft's file, if there is one, else by the model's own heads, if it has some that can be used.
    #[default]
    Auto,
    /// Not at all.
    None,
    /// By a smaller model of the same vocabulary.
    Simple,
    Eagle3,
    /// By heads for several tokens, the model's own or those of the draft's file.
    Mtp,
    Dflash,
    Dspark,
}

/// What drafts beside a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DraftConfig {
    pub mode: DraftMode,
    /// The file of a model or of heads that draft.
    pub model: Option<PathBuf>,
    /// A file of what follows what in texts of the operator's; see `model::ngrams`.
    pub corpus: Option<PathBuf>,
    /// Shorter drafts are not tried; at most `DRAFT_MAX`.
    pub n_min: u32,
    /// A draft ends before a token that is less probable to what drafts, 0..=1.
    pub p_min: f32,
    /// Layers of the draft's model on the GPU; negative: all.
    pub gpu_layers: GpuLayers,
    /// Drafts are as long as may be whether or not that is measured to pay, as llama-server does it: for tests, which must
    /// not depend on a machine's speed, and for measuring what the measurement is worth.
    pub always: bool,
}

impl Default for DraftConfig {
    fn default() -> Self {
        Self {
            mode: DraftMode::Auto,
            model: None,
            corpus: None,
            n_min: 0,
            p_min: 0.0,
            gpu_layers: GpuLayers::All,
            always: false,
        }
    }
}

/// Which backend a worker drives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ModelSource {
    /// A GGUF file through llama.cpp.
    Gguf(PathBuf),
    /// Deterministic tokens without a model, for tests and for measuring the server itself.
    Scripted(ScriptedConfig),
}

/// Behaviour of the scripted backend; every delay and fault is explicit. See `engine/backend/scripted.rs`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScriptedConfig {
    /// Time of one decode call, whatever is in it.
    pub step_us: u64,
    /// Extra time per prompt token in a decode call.
    pub prompt_token_us: u64,
    /// Extra time for each row beyond whole groups of four, as kernels have it that take rows in groups.
    pub part_row_us: u64,
    /// Time the load takes.
    pub load_ms: u64,
    /// Abort the process at the n-th decode call (0: never).
    pub crash_at_decode: u64,
    /// The memory can't be cut, but be taken back by so many rows of its last decode; 0: it can be cut.
    pub rows_back: u64,
    /// 1: it makes vectors too, 2: it ranks, 3: it makes a vector of each token; 0: none of it.
    pub embeds: u64,
}

/// A LoRA adapter to load with the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    pub path: PathBuf,
    /// Where a request says nothing; 0: only when asked for.
    pub scale: f32,
}

/// A beginning of prompts that the operator named. All tenants share what is computed of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PrefixConfig {
    pub name: String,
    pub text: PrefixText,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PrefixText {
    /// What chats have in common that begin with these messages and tools.
    Chat(ChatPrompt),
    /// The beginning of a raw prompt.
    Prompt(String),
}

/// Everything an engine needs to know before it loads. `None`: chosen from the model and the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineConfig {
    pub source: ModelSource,
    /// KV cells of each worker; `None`: the model's training context, capped at `DEFAULT_CTX_MAX`.
    pub n_ctx: Option<u32>,
    /// Parallel slots of each worker, 1..=256.
    pub n_slots: u32,
    /// Contexts on the same weights, each with its own thread.
    pub n_workers: u32,
    pub n_batch: u32,
    pub n_ubatch: u32,
    /// Threads of one decode; `None`: physical cores within the cgroup's quota, shared among workers.
    pub n_threads: Option<u32>,
    pub n_threads_batch: Option<u32>,
    /// Layers on the GPU; negative: all.
    pub gpu_layers: GpuLayers,
    pub flash_attn: FlashAttn,
    pub cache_type_k: KvType,
    pub cache_type_v: KvType,
    pub kv_layout: KvLayout,
    pub swa_full: bool,
    pub mmap: bool,
    pub mlock: bool,
    /// Text of a chat template that replaces the model's own.
    pub chat_template: Option<String>,
    /// What the model's file must be, or it is not loaded: its SHA-256 in lower-case hex, one for each file of a split model.
    /// Empty: whatever it is.
    pub sha256: Vec<String>,
    /// A projector (mmproj) for images and sound.
    pub mmproj: Option<PathBuf>,
    /// At most `LORA_MAX`; requests name them by their index.
    pub lora: Vec<LoraConfig>,
    pub embeddings: EmbedMode,
    /// How the vectors of an input's tokens become one; `None`: as the file says, else the last token's for a causal model
    /// and the mean for an encoder.
    pub pooling: Option<Pooling>,
    /// Beginnings of prompts that are computed when the engine starts; at most `PREFIXES_MAX`.
    pub prefixes: Vec<PrefixConfig>,
    /// A folder that keeps what was computed of them.
    pub prefix_store: Option<PathBuf>,
    /// **Bound** of the folder's states together.
    pub prefix_store_bytes: u64,
    /// Most bytes of the host's memory for prefixes that left the context, over all workers; `None`: an eighth of what is
    /// available when the engine starts, at most `SAVED_BYTES_MAX`.
    pub saved_bytes: Option<u64>,
    /// Target for the longest gap between two tokens of a running stream while prompts are computed beside it; half of it
    /// where 128 rows of them take no longer.
    pub max_gap: Duration,
    /// Most tokens that are tried ahead at once where it pays, of a model or heads fewer; 0: none. At most `DRAFT_MAX`.
    pub n_draft_max: u32,
    pub draft: DraftConfig,
    /// Requests that may wait for a slot, over all workers; one more is refused.
    pub n_queue: u32,
    /// A request that would wait longer for a slot is refused at once; `None`: however long.
    pub max_wait: Option<Duration>,
    /// An engine process that is not heard of, or gets nowhere with its work, for so long is killed; `None`: never.
    pub hang_timeout: Option<Duration>,
}

impl EngineConfig {
    /// Largest context chosen without being asked: more is a memory decision the operator makes.
    pub const DEFAULT_CTX_MAX: u32 = 8192;
    pub const SLOTS_MAX: u32 = 256;
    /// A step of 64 rows, which is what flash attention on CPUs takes in one tile (ggml-cpu/common.h, `ggml_fa_tile_config`).
    pub const DRAFT_MAX: u32 = 63;
    pub const LORA_MAX: usize = 64;
    /// Beyond it an adapter leaves nothing of the model, and floats overflow.
    pub const LORA_SCALE_MAX: f32 = 100.0;

    pub const PREFIXES_MAX: usize = 64;
    /// Most that is taken for saved prefixes without being asked for.
    pub const SAVED_BYTES_MAX: u64 = 1 << 30;

    /// Bytes for saved prefixes.
    pub fn saved_bytes(&self) -> usize {
        let eighth = || Memory::now().map_or(64 << 20, |memory| memory.available / 8).min(Self::SAVED_BYTES_MAX);
        usize::try_from(self.saved_bytes.unwrap_or_else(eighth)).unwrap_or(usize::MAX)
    }

    /// What must be the same of two contexts for the state of one to fit the other, besides model and build.
    ///
    /// A state that a GPU computed is good on a CPU too, but for its last bits: so it is the number of layers asked for that
    /// counts, as in [`Self::arithmetic_mark`], not the devices that are there. Where those lay out a state otherwise (with
    /// and without flash attention), llama.cpp refuses the other's, and it is computed anew.
    pub fn state_shape(&self, n_ctx_seq: u32) -> String {
        let (k, v) = (self.cache_type_k.name(), self.cache_type_v.name());
        let (layout, attention, gpu) = (self.kv_layout.is_unified(), self.flash_attn, self.gpu_layers.count());
        format!("{n_ctx_seq} {k} {v} unified={layout} {attention:?} swa_full={} gpu={gpu}", self.swa_full)
    }

    /// A number of the files that make up the model, all parts of a split one among them, as they lie on disk now: their paths
    /// and their [`Mark`]s. 0 where there are none.
    pub fn files_mark(&self) -> u64 {
        let ModelSource::Gguf(path) = &self.source else { return 0 };
        let mut hasher = DefaultHasher::new();
        let adapters = self.lora.iter().map(|adapter| &adapter.path);
        let drafts = self.draft.model.iter().chain(&self.draft.corpus);
        for path in std::iter::once(path).chain(&self.mmproj).chain(drafts).chain(adapters) {
            // What can't be read is not loaded either.
            let parts = ModelFile::open(path).map_or_else(|_| vec![path.clone()], |file| file.paths());
            for part in parts {
                std::fs::metadata(&part).ok().map(|file| Mark::of(&file)).hash(&mut hasher);
                part.hash(&mut hasher);
            }
        }
        hasher.finish()
    }

    /// A number of the settings that change by which arithmetic an answer is computed, and so now and then a token of it; what
    /// a description says by itself is not in it.
    pub fn arithmetic_mark(&self) -> u64 {
        // Named one by one: a new field has to be thought of here.
        let Self {
            cache_type_k,
            cache_type_v,
            flash_attn,
            kv_layout,
            swa_full,
            gpu_layers,
            n_threads_batch,
            n_draft_max,
            draft,
            source: _,
            n_ctx: _,
            n_slots: _,
            n_workers: _,
            n_batch: _,
            n_ubatch: _,
            n_threads: _,
            mmap: _,
            mlock: _,
            chat_template: _,
            sha256: _,
            mmproj: _,
            lora: _,
            embeddings: _,
            pooling: _,
            // Texts that are computed once for many are computed as for one.
            prefixes: _,
            prefix_store: _,
            prefix_store_bytes: _,
            saved_bytes: _,
            max_gap: _,
            n_queue: _,
            max_wait: _,
            hang_timeout: _,
        } = self;
        let DraftConfig { mode, model: _, corpus: _, n_min, p_min, gpu_layers: draft_layers, always } = draft;
        let mut hasher = DefaultHasher::new();
        (cache_type_k, cache_type_v, flash_attn, kv_layout.is_unified(), swa_full).hash(&mut hasher);
        (gpu_layers, n_threads_batch, n_draft_max).hash(&mut hasher);
        (mode, n_min, p_min.to_bits(), draft_layers, always).hash(&mut hasher);
        hasher.finish()
    }

    pub fn new(source: ModelSource) -> Self {
        Self {
            source,
            n_ctx: None,
            n_slots: 4,
            n_workers: 1,
            n_batch: 2048,
            n_ubatch: 512,
            n_threads: None,
            n_threads_batch: None,
            gpu_layers: GpuLayers::Auto,
            flash_attn: FlashAttn::Auto,
            cache_type_k: KvType::F16,
            cache_type_v: KvType::F16,
            kv_layout: KvLayout::Auto,
            swa_full: false,
            mmap: true,
            mlock: false,
            chat_template: None,
            sha256: Vec::new(),
            mmproj: None,
            lora: Vec::new(),
            embeddings: EmbedMode::Auto,
            pooling: None,
            prefixes: Vec::new(),
            prefix_store: None,
            prefix_store_bytes: 8 << 30,
            saved_bytes: None,
            max_gap: Duration::from_millis(500),
            n_draft_max: Self::DRAFT_MAX,
            draft: DraftConfig::default(),
            n_queue: 256,
            max_wait: None,
            hang_timeout: Some(Duration::from_secs(60)),
        }
    }

    /// Requests the engine holds at once: in slots and waiting.
    pub fn n_places(&self) -> u32 {
        self.n_slots * self.n_workers + self.n_queue
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A header without tensors, of a model of so many parts.
    pub(in crate::engine) fn header(n_parts: u16) -> Vec<u8> {
        let key = "split.count";
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(0u64.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        bytes.extend((key.len() as u64).to_le_bytes());
        bytes.extend(key.as_bytes());
        // An unsigned number of two bytes.
        bytes.extend(2u32.to_le_bytes());
        bytes.extend(n_parts.to_le_bytes());
        bytes
    }

    #[test]
    fn another_part_of_a_split_model_is_another_model() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let part = |n: u32| dir.path().join(format!("m-{n:05}-of-00003.gguf"));
        (1..=3).for_each(|n| std::fs::write(part(n), header(3)).expect("a writable folder"));
        let config = EngineConfig::new(ModelSource::Gguf(part(1)));
        let mut marks = vec![config.files_mark()];
        assert_eq!(config.files_mark(), marks[0]);
        for n in 1..=3 {
            let fresh = dir.path().join("fresh");
            std::fs::write(&fresh, header(3)).expect("a writable folder");
            std::fs::rename(&fresh, part(n)).expect("a writable folder");
            let mark = config.files_mark();
            assert!(!marks.contains(&mark), "part {n}");
            marks.push(mark);
        }
    }

    #[test]
    fn settings_of_the_arithmetic_are_told_apart_and_others_are_not() {
        let of = |change: fn(&mut EngineConfig)| {
            let mut config = EngineConfig::new(ModelSource::Scripted(ScriptedConfig::default()));
            change(&mut config);
            config.arithmetic_mark()
        };
        let mut marks = vec![of(|_| {})];
        let changes: [fn(&mut EngineConfig); 7] = [
            |config| config.cache_type_k = KvType::Q8_0,
            |config| config.cache_type_v = KvType::Q8_0,
            |config| config.flash_attn = FlashAttn::Off,
            |config| config.kv_layout = KvLayout::Split,
            |config| config.swa_full = true,
            |config| config.gpu_layers = GpuLayers::Count(3),
            |config| config.draft.mode = DraftMode::None,
        ];
        for (i, change) in changes.into_iter().enumerate() {
            let mark = of(change);
            assert!(!marks.contains(&mark), "{i}");
            marks.push(mark);
        }
        assert_eq!(of(|config| config.n_queue = 1), marks[0]);
    }
}
