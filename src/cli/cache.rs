//! The KV cache where nothing was said of it: as large and as exact as the memory allows, and a line that says why.
//!
//! # Design
//! What was not said is tried in order: the context with F16 elements, the same with Q8_0 (half the memory, and answers that
//! hardly differ), then half the context, and so on. A model that fits is never given less; one that would be refused is
//! served with less and says so. What was said is kept, or refused by the plan with what would fit.

use super::plan::{Model, ask};
use crate::config::ServedModel;
use crate::engine::EngineConfig;
use crate::engine::config::{FlashAttn, KvType};
use crate::model::Plan;
use crate::model::fit::bytes;

/// No context that nobody asked for is smaller.
const CTX_MIN: u64 = 1024;

/// What is left to choose.
#[derive(Debug, Clone, Copy)]
struct Open {
    context: bool,
    types: bool,
}

/// Chooses what was not said for `available` bytes, and logs it. What fits in no way is left for the plan to refuse.
pub(super) fn settle(served: &mut ServedModel, model: &Model, available: Option<u64>) {
    if model.shape.encoder {
        return;
    }
    let open = Open {
        context: served.engine.n_ctx.is_none(),
        types: !served.says_cache && served.engine.flash_attn != FlashAttn::Off && is_in_blocks(model),
    };
    let engine = &mut served.engine;
    let before = Plan::new(&model.file, &model.shape, ask(engine, &model.shape));
    let is_less = available.is_some_and(|available| choose(engine, model, open, available));
    let plan = Plan::new(&model.file, &model.shape, ask(engine, &model.shape));
    let (k, v) = (plan.ask.cache_k.name, plan.ask.cache_v.name);
    let elements = if k == v { k.to_owned() } else { format!("{k} keys and {v} values") };
    let attention = match engine.flash_attn {
        FlashAttn::On => "flash attention",
        FlashAttn::Off => "no flash attention",
        FlashAttn::Auto => "flash attention where this model has it",
    };
    let (id, n_ctx, n_train) = (&served.config.id, plan.ask.n_ctx, model.shape.n_ctx_train);
    if is_less {
        tracing::warn!(
            model = id,
            "context: {n_ctx} cells of {elements} ({}), because {} of {} take {} and this machine has {} for all of the model; \
             --ctx-size and --cache-type-k, --cache-type-v decide otherwise",
            bytes(plan.kv),
            before.ask.n_ctx,
            before.ask.cache_k.name,
            bytes(before.kv),
            bytes(available.unwrap_or_default()),
        );
    } else if open.context && n_ctx < n_train {
        let whole = Plan::new(&model.file, &model.shape, crate::model::Ask { n_ctx: n_train, ..plan.ask });
        tracing::info!(
            model = id,
            "context: {n_ctx} cells of {elements} ({}), {attention}; the model was trained with {n_train}, which take {} \
             (--ctx-size 0)",
            bytes(plan.kv),
            bytes(whole.kv),
        );
    } else {
        tracing::info!(model = id, "context: {n_ctx} cells of {elements} ({}), {attention}", bytes(plan.kv));
    }
}

/// Takes the first that fits; true: less than the first of all.
fn choose(engine: &mut EngineConfig, model: &Model, open: Open, available: u64) -> bool {
    let first = ask(engine, &model.shape).n_ctx;
    let halves = std::iter::successors(Some(first), |n| (open.context && n / 2 >= CTX_MIN).then_some(n / 2));
    let types: &[Option<KvType>] = if open.types { &[None, Some(KvType::Q8_0)] } else { &[None] };
    for (n_ctx, kind) in halves.flat_map(|n_ctx| types.iter().map(move |kind| (n_ctx, *kind))) {
        let mut tried = engine.clone();
        if n_ctx < first {
            tried.n_ctx = u32::try_from(n_ctx).ok();
        }
        if let Some(kind) = kind {
            (tried.cache_type_k, tried.cache_type_v) = (kind, kind);
        }
        if Plan::new(&model.file, &model.shape, ask(&tried, &model.shape)).total() <= available {
            let is_less = n_ctx < first || kind.is_some();
            *engine = tried;
            return is_less;
        }
    }
    false
}

/// Whether a head's keys and values are whole blocks of Q8_0, which llama.cpp insists on.
fn is_in_blocks(model: &Model) -> bool {
    let key = |name: &str| model.file.gguf.uint(&format!("{}.{name}", model.shape.architecture));
    let own = [key("attention.key_length"), key("attention.value_length")];
    let even = key("attention.head_count").filter(|n| *n > 0).map(|n| model.shape.n_embd / n);
    let (block, _) = KvType::Q8_0.block();
    own.into_iter().all(|length| length.or(even).is_some_and(|length| length > 0 && length % block == 0))
}

#[cfg(test)]
mod tests {
    use super::super::plan;
    use super::*;
    use crate::engine::config::ModelSource;
    use std::path::Path;

    fn demo() -> (EngineConfig, Model) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/hearth-demo.gguf");
        let engine = EngineConfig::new(ModelSource::Gguf(path));
        let model = plan::model(&engine).expect("a model of the tree").expect("a file");
        (engine, model)
    }

    #[test]
    fn less_memory_takes_smaller_elements_and_then_fewer_cells() {
        let (engine, model) = demo();
        let engine = EngineConfig { n_ctx: None, ..engine };
        let need = |engine: &EngineConfig| Plan::new(&model.file, &model.shape, ask(engine, &model.shape)).total();
        let chosen = |available| {
            let mut engine = engine.clone();
            let is_less = choose(&mut engine, &model, Open { context: true, types: true }, available);
            (is_less, ask(&engine, &model.shape).n_ctx, engine.cache_type_k, need(&engine) <= available)
        };
        let whole = need(&engine);
        let n_ctx = ask(&engine, &model.shape).n_ctx;
        assert_eq!(chosen(whole), (false, n_ctx, KvType::F16, true), "what fits is what was always taken");
        assert_eq!(chosen(whole - 1), (true, n_ctx, KvType::Q8_0, true));
        let small = EngineConfig { cache_type_k: KvType::Q8_0, cache_type_v: KvType::Q8_0, ..engine.clone() };
        let less = chosen(need(&small) - 1);
        assert!(less.0 && less.1 < n_ctx && less.3, "{less:?}");
        assert_eq!(chosen(1 << 20), (false, n_ctx, KvType::F16, false), "left for the plan to refuse");
    }

    #[test]
    fn what_was_said_stays() {
        let (engine, model) = demo();
        let mut kept = EngineConfig { n_ctx: Some(2048), ..engine };
        let before = kept.clone();
        assert!(!choose(&mut kept, &model, Open { context: false, types: false }, 1 << 20));
        assert_eq!((kept.n_ctx, kept.cache_type_k), (before.n_ctx, before.cache_type_k));
    }
}
