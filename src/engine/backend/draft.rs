//! What drafts for a model of llama.cpp: a smaller model, heads made for it, or its own.

use super::DraftTraits;
use super::llama_context::{LlamaContext, Traits};
use crate::engine::config::{DraftConfig, DraftMode, EngineConfig, ModelSource};
use crate::llama::{self, ContextParams, DraftKind, DraftParams, KvElement, ModelParams};
use crate::model::{ModelFile, Shape, beside};
use std::path::Path;
use std::sync::Arc;

/// Most tokens of a draft by heads that always make as many as they may; llama-server's default.
const HEADS_MAX: u32 = 3;
/// Most tokens of a draft by a model or a block of heads. Each costs a pass, or rows of a batch that has to hold a block for
/// every slot; a text's cost nothing.
const MODEL_MAX: u32 = 16;

/// A loaded draft.
pub(super) struct DraftSource {
    model: Arc<llama::Model>,
    params: DraftParams,
    /// Nobody asked for it, so it may be missing where it can't be used.
    is_optional: bool,
    /// Layers of it may be on a GPU, whatever the model's are.
    is_offloaded: bool,
    /// It attends over the model's cells.
    is_beside: bool,
}

impl DraftSource {
    /// Whether the model is to be loaded with its own heads.
    pub(super) fn wants_heads(config: &EngineConfig) -> bool {
        let draft = &config.draft;
        config.n_draft_max > 0 && draft.model.is_none() && matches!(draft.mode, DraftMode::Auto | DraftMode::Mtp)
    }

    /// `None`: nothing drafts. Errors: what was asked for can't be used, with the reason.
    ///
    /// `rows_back`: rows that the model's memory can be taken back by, where it can't be cut.
    pub(super) fn load(
        model: &Arc<llama::Model>,
        config: &EngineConfig,
        rows_back: u32,
    ) -> Result<Option<Self>, String> {
        let draft = &config.draft;
        if config.n_draft_max == 0 || draft.mode == DraftMode::None || !model.generates() {
            return Ok(None);
        }
        let goes_back = rows_back > 0 || !(model.is_recurrent() || model.is_hybrid());
        let Some(path) = &draft.model else { return Self::own(model, config, goes_back) };
        let refuse = |why: &str| format!("--model-draft {}: {why}", path.display());
        if !goes_back {
            return Err(refuse("the model's memory can't go back, so nothing can be tried ahead"));
        }
        let found = DraftKind::of_file(path).map_err(|error| refuse(&error.to_string()))?;
        let kind = asked_for(draft, found).map_err(|why| refuse(&why))?;
        let params = params(kind, config);
        let is_beside = is_beside(path, kind, config).map_err(|why| refuse(&why))?;
        // What attends over the model's cells computes where these are.
        let on_gpu = draft.gpu_layers.is_some() || (is_beside && config.gpu_layers.is_some());
        let is_offloaded = llama::offloads() && on_gpu;
        let loaded = Arc::new(open(path, kind, config)?);
        let source = Self { model: loaded, params, is_optional: false, is_offloaded, is_beside };
        if kind == DraftKind::Simple && (source.model.is_recurrent() || source.model.is_hybrid()) {
            return Err(refuse("the memory of its architecture can't go back, so it can't draft"));
        }
        let mismatch = model.draft_mismatch(&source.model, kind).map_err(|error| refuse(&error.to_string()))?;
        mismatch.map_or(Ok(Some(source)), |why| Err(refuse(&why)))
    }

    /// The heads that the model's own file brings along.
    fn own(model: &Arc<llama::Model>, config: &EngineConfig, goes_back: bool) -> Result<Option<Self>, String> {
        let mode = config.draft.mode;
        if !matches!(mode, DraftMode::Auto | DraftMode::Mtp) {
            return Ok(None);
        }
        let is_optional = mode == DraftMode::Auto;
        let because = |why: &str| {
            if is_optional { Ok(None) } else { Err(format!("--spec-type draft-mtp: {why}")) }
        };
        if model.n_mtp().map_err(|error| error.to_string())? == 0 {
            return because("the model has no heads for several tokens");
        }
        if !goes_back {
            return because("the model's memory can't go back");
        }
        let mismatch = model.draft_mismatch(model, DraftKind::Mtp).map_err(|error| error.to_string());
        match mismatch {
            Ok(None) => {}
            Ok(Some(reason)) | Err(reason) => {
                if is_optional {
                    tracing::warn!(%reason, "the model's own heads are not used for drafts");
                }
                return because(&reason);
            }
        }
        let is_offloaded = llama::offloads() && config.gpu_layers.is_some();
        let (model, params) = (Arc::clone(model), params(DraftKind::Mtp, config));
        Ok(Some(Self { model, params, is_optional, is_offloaded, is_beside: false }))
    }

    /// Lets it draft for a context of the model that it was loaded for.
    fn attach(&self, context: &mut llama::Context, params: ContextParams) -> Result<DraftTraits, String> {
        let n_drafted = self.params.n_max + 1;
        // Most rows of one of its batches; common/speculative asserts on them, and so does attention that is not causal,
        // which a block has.
        let n_rows = params.n_seq_max * n_drafted;
        let is_block = matches!(self.params.kind, DraftKind::Dflash | DraftKind::Dspark);
        let params = ContextParams {
            n_ctx: context.n_ctx(),
            n_batch: params.n_batch.max(n_rows),
            n_ubatch: if is_block { params.n_ubatch.max(n_rows) } else { params.n_ubatch },
            n_outputs_max: if is_block { n_rows } else { params.n_seq_max },
            // Its heads' width may not suit the target's types.
            type_k: KvElement::F16,
            type_v: KvElement::F16,
            // Drafts that were wrong are taken back; cells of the model are as they are.
            swa_full: params.swa_full || !self.is_beside,
            mtp: self.params.kind == DraftKind::Mtp,
            // Heads attend, whatever the model's own layers do, and their cells can be cut.
            n_rs_seq: 0,
            kernels: LlamaContext::kernels(self.is_offloaded),
            ..params
        };
        let beside = context.beside(&self.model, params).map_err(|error| error.to_string())?;
        if beside.n_batch() < n_rows {
            let n_ctx = params.n_ctx;
            return Err(format!("its batches of up to {n_rows} rows don't fit into a context of {n_ctx} tokens"));
        }
        context.speculate(beside, self.params, params.n_seq_max).map_err(|error| error.to_string())?;
        Ok(DraftTraits {
            follows: self.params.kind.follows(),
            is_fixed: self.params.kind != DraftKind::Simple,
            n_max: context.n_draft_max(),
            n_min: self.params.n_min.min(context.n_draft_max()),
            n_vocab: self.model.vocab_flags().n_tokens,
        })
    }
}

/// The kind that the operator named, if the file is of that kind.
fn asked_for(draft: &DraftConfig, found: DraftKind) -> Result<DraftKind, String> {
    let asked = match draft.mode {
        DraftMode::Auto | DraftMode::None => return Ok(found),
        DraftMode::Simple => DraftKind::Simple,
        DraftMode::Eagle3 => DraftKind::Eagle3,
        DraftMode::Mtp => DraftKind::Mtp,
        DraftMode::Dflash => DraftKind::Dflash,
        DraftMode::Dspark => DraftKind::Dspark,
    };
    // A whole model may bring heads along.
    if asked == found || (asked == DraftKind::Mtp && found == DraftKind::Simple) {
        return Ok(asked);
    }
    Err(format!("the file is made for {}, not for {}", name(found), name(asked)))
}

fn name(kind: DraftKind) -> &'static str {
    match kind {
        DraftKind::Simple => "draft-simple",
        DraftKind::Eagle3 => "draft-eagle3",
        DraftKind::Mtp => "draft-mtp",
        DraftKind::Dflash => "draft-dflash",
        DraftKind::Dspark => "draft-dspark",
    }
}

fn params(kind: DraftKind, config: &EngineConfig) -> DraftParams {
    let most = match kind {
        DraftKind::Eagle3 | DraftKind::Mtp => HEADS_MAX,
        DraftKind::Simple | DraftKind::Dflash | DraftKind::Dspark => MODEL_MAX,
    };
    let n_max = config.n_draft_max.min(most);
    DraftParams { kind, n_max, n_min: config.draft.n_min.min(n_max), p_min: config.draft.p_min }
}

/// Whether a file's heads attend over the cells of their model. Errors: they do, and this one's are not what they read.
fn is_beside(path: &Path, kind: DraftKind, config: &EngineConfig) -> Result<bool, String> {
    let ModelSource::Gguf(target) = &config.source else { return Ok(false) };
    if kind != DraftKind::Mtp {
        return Ok(false);
    }
    let shape = |path: &Path| {
        let file = ModelFile::open(path).map_err(|error| error.to_string())?;
        Shape::read(&file).map_err(|error| error.to_string())
    };
    let heads = shape(path)?;
    if !beside::is_beside(&heads) {
        return Ok(false);
    }
    beside::misfit(&shape(target)?, &heads).map_or(Ok(true), Err)
}

fn open(path: &Path, kind: DraftKind, config: &EngineConfig) -> Result<llama::Model, String> {
    let params = ModelParams {
        n_gpu_layers: config.draft.gpu_layers.count(),
        use_mmap: config.mmap,
        use_mlock: config.mlock,
        vocab_only: false,
        load_mtp: kind == DraftKind::Mtp,
    };
    let refuse = |why: String| format!("--model-draft {}: {why}", path.display());
    let model = llama::Model::load(path, params, |_| {}).map_err(|error| refuse(error.to_string()))?;
    if kind == DraftKind::Mtp && model.n_mtp().map_err(|error| refuse(error.to_string()))? == 0 {
        return Err(refuse("it has no heads for several tokens".into()));
    }
    Ok(model)
}

/// A context, with what drafts for it.
pub(super) fn with_drafts(
    mut context: llama::Context,
    traits: Traits,
    params: ContextParams,
    source: Option<&DraftSource>,
) -> Result<LlamaContext, String> {
    let Some(source) = source else { return Ok(LlamaContext::new(context, traits)) };
    let drafts = match source.attach(&mut context, params) {
        Ok(drafts) => Some(drafts),
        Err(reason) if source.is_optional => {
            tracing::warn!(%reason, "the model's own heads are not used for drafts");
            None
        }
        Err(reason) => return Err(format!("{} can't draft for this model: {reason}", name(source.params.kind))),
    };
    Ok(LlamaContext::new(context, traits).with_drafts(drafts))
}
