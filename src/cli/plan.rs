//! The memory plan of a configuration: shown before loading, refused when it cannot fit.

use super::cache;
use super::gpus::GpuMemory;
use crate::config::{Config, ConfigError, ServedModel};
use crate::engine::config::{FlashAttn, GpuLayers, KvLayout, KvType, ModelSource};
use crate::engine::{Description, EngineConfig, Pooling};
use crate::gateway::Size;
use crate::model::fit::{OWN_BYTES, bytes};
use crate::model::{Ask, CacheType, FitError, Memory, ModelFile, Offload, Plan, Shape};
use anyhow::{Result, bail};
use std::sync::Arc;

/// `pooling_type` of a model with a classification head. Source: LLAMA_POOLING_TYPE_RANK, llama.h.
const RANK: u64 = 4;

/// A model file with its sizes.
pub(super) struct Model {
    pub file: ModelFile,
    pub shape: Shape,
}

/// Reads the header of the configured model; `None` for a pretended one.
pub(super) fn model(engine: &EngineConfig) -> Result<Option<Model>> {
    let ModelSource::Gguf(path) = &engine.source else { return Ok(None) };
    let file = ModelFile::open(path)?;
    let shape = Shape::read(&file).map_err(FitError::from)?;
    Ok(Some(Model { file, shape }))
}

/// What a model will take.
pub(super) struct Settled {
    plan: Plan,
    /// The LoRA adapters, which the plan does not know.
    adapter_bytes: u64,
    /// Bytes of it that a GPU's own memory takes.
    on_gpu: u64,
}

impl Settled {
    fn total(&self) -> u64 {
        self.plan.total().saturating_add(self.adapter_bytes)
    }

    /// Refuses what does not fit beside `taken` bytes of others that are loaded with it.
    pub fn check(&self, model: &Model, taken: u64) -> Result<()> {
        let Some(memory) = Memory::now() else { return Ok(()) };
        let available = memory.available.saturating_sub(taken).saturating_sub(self.adapter_bytes);
        let memory = match self.on_gpu {
            0 => Memory { available, ..memory },
            n => Memory { available: available.saturating_add(n), limited_by: "the machine with its GPU" },
        };
        Ok(self.plan.check(&model.file, &model.shape, memory)?)
    }

    fn size(&self) -> Size {
        Size { machine: self.total().saturating_sub(self.on_gpu), gpu: self.on_gpu }
    }
}

/// Settles every model; refuses those that cannot fit, one by one where they are lazy, together where they are not.
/// Returns the first model, if it is a file.
pub(super) fn settle_all(config: &mut Config) -> Result<Option<Model>> {
    let (mut taken, mut first) = (0, None);
    // A pretended model says what it is when it is loaded.
    let mut heads = vec![true; config.models.len()];
    let mut gpus = GpuMemory::now();
    config.limits.gpu_bytes_max = gpus.free();
    // What a GPU takes of a memory that it shares with the machine is not known apart.
    config.limits.watch_machine = gpus.free().is_some() || !gpus.is_there();
    // Those that are loaded at the start come first: the others get along with what these leave, one at a time.
    let mut order: Vec<usize> = (0..config.models.len()).collect();
    order.sort_by_key(|idx| config.models[*idx].config.is_lazy);
    for idx in order {
        let served = &mut config.models[idx];
        let Some(model) = model(&served.engine)? else { continue };
        heads[idx] = has_head(&served.engine, &model);
        let settled = settle(served, &model, &gpus, if served.config.is_lazy { 0 } else { taken })?;
        if let Some(cap) = config.limits.loaded_bytes_max
            && settled.total() > cap
        {
            let id = &served.config.id;
            let (needs, cap) = (bytes(settled.total()), bytes(cap));
            bail!(ConfigError::unfit(format!(
                "the model {id} needs {needs}, more than max_loaded_memory allows ({cap})"
            )));
        }
        if !served.config.is_lazy {
            settled.check(&model, taken)?;
            taken += settled.size().machine;
            gpus.take(settled.on_gpu);
        } else if let Err(error) = settled.check(&model, 0) {
            tracing::warn!(model = served.config.id, "{error}; requests for it will be refused until there is more");
        }
        if idx == 0 {
            first = Some(model);
        }
    }
    check_classifiers(config, &heads)?;
    Ok(first)
}

/// Settles the context where it follows from the model, logs the plan and notes what the model will take, beside `taken` bytes
/// of others that are loaded with it.
pub(super) fn settle(served: &mut ServedModel, model: &Model, gpus: &GpuMemory, taken: u64) -> Result<Settled> {
    let n_ctx_train = u32::try_from(model.shape.n_ctx_train).unwrap_or(u32::MAX);
    if served.ctx_from_model && n_ctx_train > 0 {
        served.engine.n_ctx = Some(n_ctx_train);
    }
    if !served.says_ubatch {
        settle_ubatch(&mut served.engine, model, gpus);
    }
    // What a GPU holds is settled by layers.
    let machine = Memory::now().filter(|_| gpus.free().is_none());
    cache::settle(served, model, machine.map(|memory| memory.available.saturating_sub(taken)));
    let n_ctx = ask(&served.engine, &model.shape).n_ctx;
    settle_layout(&mut served.engine, model, gpus);
    let mut plan = Plan::new(&model.file, &model.shape, ask(&served.engine, &model.shape));
    // The projector is small beside a model; what it computes with is smaller still.
    let mmproj = served.engine.mmproj.as_ref().and_then(|path| std::fs::metadata(path).ok());
    let mut further = mmproj.map_or(0, |file| file.len());
    // Of a draft the weights too: its cache, if it keeps one, is as many cells of a model that is small beside this one.
    let draft = served.engine.draft.model.as_ref().and_then(|path| std::fs::metadata(path).ok());
    further += draft.map_or(0, |file| file.len());
    // What is kept of the counts of texts is less than their file; they are read before anything is computed.
    let corpus = served.engine.draft.corpus.as_ref().and_then(|path| std::fs::metadata(path).ok());
    further += corpus.map_or(0, |file| file.len());
    let mut adapter_bytes = 0u64;
    for lora in &served.engine.lora {
        let file = ModelFile::open(&lora.path)?;
        if file.gguf.text("general.type") != Some("adapter") {
            bail!(ConfigError::unfit(format!("{}: this is no LoRA adapter", lora.path.display())));
        }
        adapter_bytes = adapter_bytes.saturating_add(file.weight_bytes());
    }
    let offload = Offload::new(&model.file, &model.shape, &plan);
    plan.weights += further;
    let memory = Memory::now();
    tracing::info!(
        model = served.config.id,
        "memory: {} in all: weights {}, KV cache {} for {} cells, recurrent state {}, compute about {}, the server {}; {}",
        bytes(plan.total()),
        bytes(plan.weights),
        bytes(plan.kv),
        plan.ask.n_ctx * plan.ask.n_workers,
        bytes(plan.state),
        bytes(plan.compute),
        bytes(OWN_BYTES),
        memory.map_or("how much is available is unknown".into(), |m| format!("{} available", bytes(m.available))),
    );
    if model.shape.n_ctx_train > 0 && n_ctx > model.shape.n_ctx_train.next_multiple_of(256) {
        tracing::warn!(
            "the context of {n_ctx} cells is larger than the {} tokens the model was trained with",
            model.shape.n_ctx_train
        );
    }
    let (gpu_layers, on_gpu) =
        gpus.settle(served.engine.gpu_layers, &offload, further.saturating_add(adapter_bytes))
            .map_err(|error| ConfigError::unfit(format!("the model {}: {error}", served.config.id)))?;
    served.engine.gpu_layers = gpu_layers;
    let settled = Settled { plan, adapter_bytes, on_gpu };
    served.config.size = settled.size();
    served.config.outline = Some(Arc::new(outline(model, &served.engine)));
    Ok(settled)
}

/// What the file says of the model before it is loaded.
fn outline(model: &Model, engine: &EngineConfig) -> Description {
    let (shape, asked) = (&model.shape, ask(engine, &model.shape));
    let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let cells = if asked.unified { asked.n_ctx } else { asked.n_ctx / asked.n_slots.max(1) };
    Description {
        architecture: shape.architecture.clone(),
        n_params: model.file.n_params(),
        size_bytes: model.file.weight_bytes(),
        n_vocab: small(shape.n_vocab),
        n_embd: small(shape.n_embd),
        n_layer: small(shape.n_layer),
        n_ctx_train: small(shape.n_ctx_train),
        n_ctx: small(cells),
        chat_template: model.file.gguf.text("tokenizer.chat_template").map(str::to_owned),
        generates: !shape.encoder,
        labels: labels(model),
        ..Description::default()
    }
}

/// Names of a classification head's outputs, as far as the header was read.
fn labels(model: &Model) -> Vec<String> {
    let key = format!("{}.classifier.output_labels", model.shape.architecture);
    model.file.gguf.list(&key).map(|list| list.texts.clone()).unwrap_or_default()
}

/// Refuses classifiers of guardrails whose models can't be what they are said to be.
fn check_classifiers(config: &Config, heads: &[bool]) -> Result<()> {
    let find = |name: &str| {
        config.models.iter().position(|served| {
            let mut names = std::iter::once(&served.config.id).chain(&served.config.aliases);
            names.any(|known| known.eq_ignore_ascii_case(name))
        })
    };
    let guardrails = &config.gateway.guardrails;
    for name in guardrails.classifiers() {
        if find(name).is_some_and(|idx| !heads[idx]) {
            let message =
                format!("guardrails: {name} has no classification head in use (rerank = true), so it can't classify");
            bail!(ConfigError::unfit(message));
        }
    }
    let labels = |name: &str| {
        let outline = find(name).and_then(|idx| config.models[idx].config.outline.clone());
        outline.map(|outline| outline.labels.clone()).unwrap_or_default()
    };
    guardrails.refuse_unknown_labels(labels).map_err(|error| ConfigError::unfit(error).into())
}

/// Whether the model is served with a classification head.
pub(super) fn has_head(engine: &EngineConfig, model: &Model) -> bool {
    let own = model.file.gguf.uint(&format!("{}.pooling_type", model.shape.architecture));
    engine.pooling.map_or(own == Some(RANK), |pooling| pooling == Pooling::Rank)
}

/// Rows that a GPU computes at once where it has the memory: prompts of 2,036 tokens in all took an H200 25 ms at once, and
/// 46 to 55 in passes of 512 (0.5B model).
const GPU_UBATCH: u32 = 2048;

/// Gives a GPU that holds the whole model larger passes, if what they compute with is at most an eighth of its free memory.
fn settle_ubatch(engine: &mut EngineConfig, model: &Model, gpus: &GpuMemory) {
    let n_ubatch = GPU_UBATCH.min(engine.n_batch);
    let larger = EngineConfig { n_ubatch, ..engine.clone() };
    let plan = Plan::new(&model.file, &model.shape, ask(&larger, &model.shape));
    let fits = |free| Offload::new(&model.file, &model.shape, &plan).fit(free) == model.shape.layers.len() as u32 + 1;
    let is_whole = matches!(engine.gpu_layers, GpuLayers::Auto | GpuLayers::All);
    if is_whole && n_ubatch > engine.n_ubatch && gpus.free().is_some_and(|free| fits(free) && plan.compute <= free / 8)
    {
        engine.n_ubatch = n_ubatch;
    }
}

/// Memory that a context of its own for each slot may always take without being asked for.
const OWN_CELLS_BYTES: u64 = 64 << 20;

/// Most memory that it may take: a part of what is there.
fn own_cells_bytes_max(engine: &EngineConfig, gpus: &GpuMemory) -> u64 {
    let machine = || Memory::now().map(|memory| memory.available);
    let free = if engine.gpu_layers.is_some() { gpus.free().or_else(machine) } else { machine() };
    free.map_or(0, |free| free / 6).max(OWN_CELLS_BYTES)
}

/// Gives each slot a whole context of its own where there is memory for it: attention then looks at one request's cells
/// instead of everybody's, and nobody is ever parked. Sixteen streams of the 0.5B model that hold 90 tokens each take
/// 29.9 ms a step, 33.5 on one pool; with 500 tokens each 46.8 and 66.6.
///
/// A sixth of the free memory is a judgement: speed alone is bought with it, and what is left has to hold the weights, saved
/// prefixes (an eighth, see `--prefix-ram`), other models and whatever else runs, so that one engine's cache must not come
/// near half. An eighth refused eight slots of 32,768 cells of the 0.5B (3 GiB) on a machine of 24 GiB, whose short chats
/// beside 3,000-token prompts were then 8 to 15 % slower on the one pool.
fn settle_layout(engine: &mut EngineConfig, model: &Model, gpus: &GpuMemory) {
    if engine.kv_layout != KvLayout::Auto {
        return;
    }
    engine.kv_layout = KvLayout::Unified;
    if model.shape.encoder {
        return;
    }
    let pool = ask(engine, &model.shape);
    let own = Ask { n_ctx: pool.n_ctx * pool.n_slots, unified: false, ..pool };
    let kv = Plan::new(&model.file, &model.shape, own).kv;
    let n_ctx = u32::try_from(pool.n_ctx * pool.n_slots);
    let most = own_cells_bytes_max(engine, gpus);
    if let (Ok(n_ctx), true, true) = (n_ctx, kv <= most, pool.n_slots > 1) {
        (engine.kv_layout, engine.n_ctx) = (KvLayout::Split, Some(n_ctx));
        tracing::info!(
            "KV cache: each slot has a whole context of its own ({} in all, where {} may be taken for it: a sixth of what is \
             free); what prompts begin with alike is computed once and copied; --kv-unified takes less",
            bytes(kv),
            bytes(most)
        );
    } else if pool.n_slots > 1 {
        tracing::info!(
            "KV cache: one pool of cells for all slots, since a context for each would take {} (more than {}, a sixth of what \
             is free); what prompts begin with alike is computed once and its cells are shared",
            bytes(kv),
            bytes(most)
        );
    }
}

/// What an engine of this configuration asks of memory.
pub(super) fn ask(engine: &EngineConfig, shape: &Shape) -> Ask {
    let n_ctx = engine.n_ctx.map_or_else(
        || match shape.n_ctx_train {
            0 => u64::from(EngineConfig::DEFAULT_CTX_MAX),
            n => n.min(u64::from(EngineConfig::DEFAULT_CTX_MAX)),
        },
        u64::from,
    );
    Ask {
        n_ctx,
        n_slots: engine.n_slots.into(),
        n_workers: engine.n_workers.into(),
        n_ubatch: engine.n_ubatch.into(),
        // A step asks for one row of logits for each slot.
        n_outputs: engine.n_slots.into(),
        cache_k: cache_type(engine.cache_type_k),
        cache_v: cache_type(engine.cache_type_v),
        unified: engine.kv_layout.is_unified(),
        swa_full: engine.swa_full,
        flash_attn: engine.flash_attn != FlashAttn::Off,
        n_draft_max: engine.n_draft_max.into(),
    }
}

fn cache_type(kind: KvType) -> CacheType {
    let (block_elements, block_bytes) = kind.block();
    CacheType { name: kind.name(), block_elements, block_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_gpu_with_room_computes_more_rows_at_once() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/hearth-demo.gguf");
        let engine = EngineConfig::new(ModelSource::Gguf(path));
        let model = model(&engine).expect("a model of the tree").expect("a file");
        let of = |gpu_layers, gpus: &GpuMemory| {
            let mut engine = EngineConfig { gpu_layers, ..engine.clone() };
            settle_ubatch(&mut engine, &model, gpus);
            engine.n_ubatch
        };
        let roomy = GpuMemory::with(8 << 30);
        assert_eq!(of(GpuLayers::Auto, &roomy), GPU_UBATCH);
        assert_eq!(of(GpuLayers::Count(3), &roomy), engine.n_ubatch, "the rest is the CPU's");
        assert_eq!(of(GpuLayers::Auto, &GpuMemory::with(60 << 20)), engine.n_ubatch, "too small for larger passes");
    }
}
