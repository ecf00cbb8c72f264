//! The memory plan of a configuration: shown before loading, refused when it cannot fit.

use crate::config::Config;
use crate::engine::EngineConfig;
use crate::engine::config::{FlashAttn, KvLayout, KvType, ModelSource};
use crate::model::fit::bytes;
use crate::model::{Ask, CacheType, FitError, Memory, ModelFile, Plan, Shape};
use anyhow::Result;

/// Builds with a GPU keep weights and caches in its memory, which the plan does not know.
const HAS_GPU: bool =
    cfg!(any(feature = "cuda", feature = "metal", feature = "vulkan", feature = "rocm", feature = "opencl"));

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

/// Settles the context where it follows from the model, logs the plan and refuses one that cannot fit.
pub(super) fn settle(config: &mut Config, model: &Model) -> Result<()> {
    let n_ctx_train = u32::try_from(model.shape.n_ctx_train).unwrap_or(u32::MAX);
    if config.ctx_from_model && n_ctx_train > 0 {
        config.engine.n_ctx = Some(n_ctx_train);
    }
    let n_ctx = ask(&config.engine, &model.shape).n_ctx;
    settle_layout(&mut config.engine, model);
    let mut plan = Plan::new(&model.file, &model.shape, ask(&config.engine, &model.shape));
    // The projector is small beside a model; what it computes with is smaller still.
    let mmproj = config.engine.mmproj.as_ref().and_then(|path| std::fs::metadata(path).ok());
    plan.weights += mmproj.map_or(0, |file| file.len());
    let memory = Memory::now();
    tracing::info!(
        "memory: {} in all: weights {}, KV cache {} for {} cells, recurrent state {}, compute about {}; {}",
        bytes(plan.total()),
        bytes(plan.weights),
        bytes(plan.kv),
        plan.ask.n_ctx * plan.ask.n_workers,
        bytes(plan.state),
        bytes(plan.compute),
        memory.map_or("how much is available is unknown".into(), |m| format!("{} available", bytes(m.available))),
    );
    if model.shape.n_ctx_train > 0 && n_ctx > model.shape.n_ctx_train.next_multiple_of(256) {
        tracing::warn!(
            "the context of {n_ctx} cells is larger than the {} tokens the model was trained with",
            model.shape.n_ctx_train
        );
    }
    if HAS_GPU && config.engine.n_gpu_layers != 0 {
        tracing::info!("whether the plan fits the GPU's memory is not checked");
        return Ok(());
    }
    match memory {
        Some(memory) => Ok(plan.check(&model.file, &model.shape, memory)?),
        None => Ok(()),
    }
}

/// Most memory that a context of its own for each slot may take without being asked for.
const OWN_CELLS_BYTES_MAX: u64 = 64 << 20;

/// Gives each slot a whole context of its own where that costs little: attention then looks at one request's cells instead
/// of everybody's, which is a tenth of the speed of a small model under load, and nobody is ever parked.
fn settle_layout(engine: &mut EngineConfig, model: &Model) {
    if engine.kv_layout != KvLayout::Auto {
        return;
    }
    engine.kv_layout = KvLayout::Unified;
    let pool = ask(engine, &model.shape);
    let own = Ask { n_ctx: pool.n_ctx * pool.n_slots, unified: false, ..pool };
    let kv = Plan::new(&model.file, &model.shape, own).kv;
    let n_ctx = u32::try_from(pool.n_ctx * pool.n_slots);
    if let (Ok(n_ctx), true, true) = (n_ctx, kv <= OWN_CELLS_BYTES_MAX, pool.n_slots > 1) {
        (engine.kv_layout, engine.n_ctx) = (KvLayout::Split, Some(n_ctx));
        tracing::info!("KV cache: each slot has a whole context of its own ({} in all)", bytes(kv));
    } else {
        tracing::info!("KV cache: one pool of cells for all slots");
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
    }
}

fn cache_type(kind: KvType) -> CacheType {
    let (block_elements, block_bytes) = kind.block();
    CacheType { name: kind.name(), block_elements, block_bytes }
}
