//! A GGUF file through llama.cpp.

use super::call_grammar::CallStart;
use super::draft::{self, DraftSource};
use super::encode::LlamaEncoder;
use super::llama_context::{LlamaContext, Traits};
use super::params::{element, sampler_params};
use super::projector::Projector;
use super::render::{self, Plan, Way};
use super::{
    AnswerFrame, AnswerParser, Calls, EXTRA_OUTPUTS, Grammar, InfillTokens, Interrupt, Model, PairLayout, Parsed,
    ParsedCall, Piece, Reading, Rendered, Tags, Token,
};
use crate::chat::{ChatPrompt, ReasoningFormat, Sampling, SamplingParams};
use crate::engine::config::{EngineConfig, FlashAttn};
use crate::engine::error::Failure;
use crate::engine::event::{Description, Pooling};
use crate::engine::media::Bitmap;
use crate::llama::{self, ContextParams, ModelParams, Shape, Templates, ToolFormat, Trigger};
use crate::model::{self, Ask, ModelFile};
use serde_json::json;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

pub use crate::llama::Gpu;

/// Spinning between graphs helps only while no other process wants the core; low keeps a shared box usable.
pub(super) const POLL: u32 = 10;

pub struct LlamaModel {
    pub(super) model: Arc<llama::Model>,
    /// `None`: the template can't be compiled, with the reason.
    templates: Result<Templates, String>,
    pieces: Pieces,
    control: Vec<bool>,
    ends: Vec<bool>,
    control_texts: Vec<String>,
    projector: Option<Projector>,
    draft: Option<DraftSource>,
    /// Rows that drafts are taken back by where the memory can't be cut.
    rows_back: u32,
    /// Found out when the first tools come.
    tool_format: OnceLock<ToolFormat>,
    /// Found out when the first answer is constrained.
    answer_frame: OnceLock<Option<AnswerFrame>>,
    pub(super) config: EngineConfig,
    /// The vocabulary is BERT's, and its texts lose their accents.
    is_wordpiece: bool,
    /// How inputs become vectors, if they do.
    pub(super) pooling: Option<Pooling>,
}

/// Every token's bytes in one allocation: a vocabulary of 150,000 would else be as many.
struct Pieces {
    bytes: Vec<u8>,
    /// Start of each token's bytes, and the end of the last.
    starts: Vec<u32>,
}

impl Pieces {
    fn get(&self, token: Token) -> &[u8] {
        let range = usize::try_from(token).ok().and_then(|index| {
            let (start, end) = (*self.starts.get(index)?, *self.starts.get(index + 1)?);
            Some(start as usize..end as usize)
        });
        range.and_then(|range| self.bytes.get(range)).unwrap_or_default()
    }

    fn longest(&self) -> u32 {
        self.starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(1)
    }
}

/// What models run on here: llama.cpp's version, and the code for this CPU or why there is none.
pub fn ground() -> (String, Result<String, String>) {
    (llama::version(), llama::cpu().map(|cpu| cpu.to_string()).map_err(|error| error.to_string()))
}

/// The GPUs that models can be kept on. Opens each of them. Errors: what a driver said.
pub fn gpus() -> Result<Vec<Gpu>, String> {
    llama::gpus().map_err(|error| error.to_string())
}

pub use llama::has_gpu_code;

/// ggml's libraries for GPUs that are here and can't be loaded, with why.
pub fn unloadable() -> Result<Vec<String>, String> {
    llama::unloadable().map_err(|error| error.to_string())
}

impl LlamaModel {
    /// Errors: what llama.cpp said of the file or the template.
    pub fn load(path: &Path, config: &EngineConfig, progress: impl FnMut(f32)) -> Result<Self, String> {
        llama::init().map_err(|error| error.to_string())?;
        let params = ModelParams {
            n_gpu_layers: config.gpu_layers.count(),
            use_mmap: config.mmap,
            use_mlock: config.mlock,
            vocab_only: false,
            load_mtp: DraftSource::wants_heads(config),
        };
        let model = llama::Model::load(path, params, progress);
        let mut model = model.map_err(|error| format!("{}: {error}", path.display()))?;
        for lora in &config.lora {
            model.add_adapter(&lora.path).map_err(|error| format!("{}: {error}", lora.path.display()))?;
        }
        let model = Arc::new(model);
        let rows_back = rows_back(&model, path, config)?;
        let draft = DraftSource::load(&model, config, rows_back)?;
        let templates = Templates::new(&model, config.chat_template.as_deref()).map_err(|error| error.to_string());
        if let (Err(error), Some(_)) = (&templates, &config.chat_template) {
            // The model's own broken template only matters when somebody chats; one that was asked for matters now.
            return Err(format!("the chat template can't be used: {error}"));
        }
        let n_tokens = model.vocab_flags().n_tokens;
        let ids = || 0..i32::try_from(n_tokens).unwrap_or(i32::MAX);
        let mut pieces = Pieces { bytes: Vec::new(), starts: vec![0] };
        for id in ids() {
            pieces.bytes.extend(model.piece(id));
            pieces.starts.push(u32::try_from(pieces.bytes.len()).map_err(|_| "the vocabulary is over 4 GiB")?);
        }
        let control: Vec<bool> = ids().map(|id| model.is_control(id)).collect();
        let ends = ids().map(|id| model.is_eog(id)).collect();
        let control_texts = ids()
            .filter(|id| model.is_control(*id))
            .filter_map(|id| String::from_utf8(pieces.get(id).to_vec()).ok())
            .collect();
        let strips = model.meta("tokenizer.ggml.normalizer.strip_accents").is_none_or(|value| value != "false");
        let is_wordpiece = strips && model.meta("tokenizer.ggml.model").is_some_and(|kind| kind == "bert");
        let pooling = super::encode::pooling(&model, path, config)?;
        let projector = match &config.mmproj {
            None => None,
            Some(path) => {
                // Half the threads: encoding goes on beside decodes, which should keep theirs.
                let n_threads = threads(config).1.div_ceil(2);
                Some(Projector::load(path, &model, n_threads, config.gpu_layers.is_some())?)
            }
        };
        Ok(Self {
            model,
            templates,
            pieces,
            control,
            ends,
            control_texts,
            tool_format: OnceLock::new(),
            answer_frame: OnceLock::new(),
            config: config.clone(),
            is_wordpiece,
            pooling,
            projector,
            draft,
            rows_back,
        })
    }

    fn tool_format(&self, templates: &Templates) -> ToolFormat {
        self.tool_format.get_or_init(|| templates.tool_format().unwrap_or_default()).clone()
    }

    fn answer_frame(&self, templates: &Templates) -> Option<AnswerFrame> {
        self.answer_frame.get_or_init(|| templates.answer_frame().unwrap_or_default()).clone()
    }

    #[cfg(test)]
    pub(super) fn format_for_test(&self) -> ToolFormat {
        self.templates.as_ref().map(|templates| self.tool_format(templates)).unwrap_or_default()
    }

    /// The token that is spelled exactly so.
    fn token_of(&self, text: &str) -> Option<Token> {
        let tokens = self.model.tokenize(text, false, true).ok()?;
        (tokens.len() == 1).then(|| tokens[0])
    }

    /// The control tokens that shapes are written with.
    fn controls_in<'a>(&self, shapes: impl Iterator<Item = &'a Shape>) -> Vec<(String, Token)> {
        let mut controls = Vec::new();
        for shape in shapes {
            let parts = [shape.head.as_str(), &shape.mid, shape.sep.as_deref().unwrap_or_default(), &shape.tail];
            controls.extend(parts.iter().flat_map(|part| super::controls_in(self, part)));
        }
        controls
    }

    pub(super) fn meta_number<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.model.meta(key)?.trim().parse().ok()
    }

    /// What the model's makers suggest. Source: LLAMA_MODEL_META_KEY_SAMPLING_*, llama.h.
    fn suggested_sampling(&self) -> Sampling {
        let key = |name: &str| format!("general.sampling.{name}");
        Sampling {
            temperature: self.meta_number(&key("temp")),
            top_k: self.meta_number(&key("top_k")),
            top_p: self.meta_number(&key("top_p")),
            min_p: self.meta_number(&key("min_p")),
            repeat_last_n: self.meta_number(&key("penalty_last_n")),
            repeat_penalty: self.meta_number(&key("penalty_repeat")),
            xtc_probability: self.meta_number(&key("xtc_probability")),
            xtc_threshold: self.meta_number(&key("xtc_threshold")),
            ..Default::default()
        }
    }

    pub(super) fn n_ctx(&self) -> u32 {
        n_ctx(&self.model, &self.config)
    }

    pub(super) fn threads(&self) -> (u32, u32) {
        threads(&self.config)
    }
}

fn n_ctx(model: &llama::Model, config: &EngineConfig) -> u32 {
    config.n_ctx.unwrap_or(model.n_ctx_train().clamp(1, EngineConfig::DEFAULT_CTX_MAX))
}

/// How many rows drafts are taken back by where the memory can't be cut; 0: nothing is drafted there.
fn rows_back(model: &llama::Model, path: &Path, config: &EngineConfig) -> Result<u32, String> {
    if config.n_draft_max == 0 || !model.generates() || !(model.is_recurrent() || model.is_hybrid()) {
        return Ok(0);
    }
    let file = ModelFile::open(path).map_err(|error| error.to_string())?;
    let shape = model::Shape::read(&file).map_err(|error| error.to_string())?;
    let ask = Ask {
        n_ctx: n_ctx(model, config).into(),
        n_slots: config.n_slots.into(),
        n_workers: config.n_workers.into(),
        n_ubatch: config.n_ubatch.min(config.n_batch).into(),
        n_draft_max: config.n_draft_max.into(),
        ..Ask::default()
    };
    Ok(u32::try_from(model::rows_back(&shape, file.weight_bytes(), &ask)).unwrap_or(0))
}

/// Threads of a decode, and of a prompt's.
fn threads(config: &EngineConfig) -> (u32, u32) {
    let n_threads = config.n_threads.unwrap_or_else(|| super::cores::for_decode(config.n_workers));
    (n_threads, config.n_threads_batch.unwrap_or(n_threads))
}

#[cfg(test)]
impl LlamaModel {
    /// What llama.cpp has in place of `sampler`.
    pub(super) fn reference(
        &self,
        params: &SamplingParams,
        prompt: &[Token],
        grammar: Option<&Grammar>,
    ) -> Result<llama::Reference, llama::Error> {
        let raw = sampler_params(params, i32::try_from(self.n_ctx()).unwrap_or(i32::MAX));
        let mut reference = llama::Reference::new(&self.model, &raw, grammar)?;
        reference.accept(prompt)?;
        Ok(reference)
    }
}

impl Model for LlamaModel {
    type Sampler = llama::Sampler;
    type Context = LlamaContext;
    type Encoder = LlamaEncoder;
    type Chunk = llama::Chunk;

    fn describe(&self) -> Description {
        let flags = self.model.vocab_flags();
        let text = |token: Option<i32>| {
            token.map(|token| String::from_utf8_lossy(self.pieces.get(token)).into_owned()).unwrap_or_default()
        };
        let templates = self.templates.as_ref().ok();
        Description {
            architecture: self.model.meta("general.architecture").unwrap_or_default(),
            desc: self.model.desc(),
            n_params: self.model.n_params(),
            size_bytes: self.model.size_bytes(),
            n_vocab: flags.n_tokens,
            n_embd: self.model.n_embd(),
            n_layer: self.model.n_layer(),
            n_ctx_train: self.model.n_ctx_train(),
            n_ctx: self.n_ctx(),
            n_slots: self.config.n_slots * self.config.n_workers,
            n_batch: self.config.n_batch,
            n_ubatch: self.config.n_ubatch,
            n_threads: self.threads().0,
            chat_template: templates.filter(|found| found.is_explicit).map(|found| found.source.clone()),
            supports_thinking: templates.is_some_and(|found| found.supports_thinking),
            bos_token: text(flags.bos),
            eos_token: text(flags.eos),
            sampling: self.suggested_sampling(),
            piece_bytes_max: self.pieces.longest(),
            generates: self.model.generates(),
            has_tools: templates.is_some(),
            infills: self.model.infill_tokens().is_some(),
            pooling: self.pooling,
            n_embd_out: self.n_embd_out(),
            n_embed_max: self.n_embed_max(),
            labels: if self.pooling == Some(Pooling::Rank) { self.model.labels() } else { Vec::new() },
            media: self.projector.as_ref().map(Projector::takes).unwrap_or_default(),
            adapters: super::adapters(&self.config),
            files_mark: 0, // whoever opens the engine knows the files
            arithmetic_mark: 0,
            sha256: Vec::new(),
            build: llama::version(),
            cpu: llama::cpu().map(|cpu| cpu.to_string()).unwrap_or_default(),
        }
    }

    fn n_vocab(&self) -> u32 {
        self.model.vocab_flags().n_tokens
    }

    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<Token>, Failure> {
        let text = if self.is_wordpiece { super::encode::decompose_hangul(text) } else { text.into() };
        self.model.tokenize(&text, add_special, parse_special).map_err(|error| {
            Failure::invalid("prompt", "invalid_value", format!("the text can't be tokenised: {error}"))
        })
    }

    fn piece(&self, token: Token) -> &[u8] {
        self.pieces.get(token)
    }

    fn is_control(&self, token: Token) -> bool {
        usize::try_from(token).ok().and_then(|index| self.control.get(index)).copied().unwrap_or(false)
    }

    fn control_texts(&self) -> &[String] {
        &self.control_texts
    }

    fn is_end(&self, token: Token) -> bool {
        usize::try_from(token).ok().and_then(|index| self.ends.get(index)).copied().unwrap_or(false)
    }

    fn infill_tokens(&self) -> Option<InfillTokens> {
        let raw = self.model.infill_tokens()?;
        let (prefix, suffix, middle) = (raw.prefix, raw.suffix, raw.middle);
        Some(InfillTokens { prefix, suffix, middle, repo_and_file: raw.repo.zip(raw.file) })
    }

    fn render(&self, prompt: &ChatPrompt) -> Result<Rendered, Failure> {
        let refuse = |message: String| Failure::invalid("messages", "invalid_value", message);
        let templates = self
            .templates
            .as_ref()
            .map_err(|error| refuse(format!("the model's chat template can't be used: {error}")))?;
        let run = |plan: &Plan<'_>| templates.render(&request_of(&plan.shown, plan.native_tools()).to_string());
        let mut plan = Plan::new(prompt, || self.tool_format(templates))?;
        let mut result = run(&plan);
        if result.is_err() && !plan.shown.tools.is_empty() {
            // Templates stumble over schemas too (a property without a type, say): as text they are shown in any case.
            let text = Plan::new(prompt, ToolFormat::default)?;
            if let Ok(rendered) = run(&text) {
                (plan, result) = (text, Ok(rendered));
            }
        }
        let (rendered, parser) =
            result.map_err(|error| refuse(format!("the model's chat template refused the messages: {error}")))?;
        let preserved = rendered.preserved.iter().filter_map(|text| self.token_of(text));
        let mut preserved: Vec<Token> = preserved.collect();
        let (reading, calls) = match (&plan.way, parser) {
            (Way::Forced(shape), _) => {
                let controls = self.controls_in(std::iter::once(shape));
                preserved.extend(controls.iter().map(|(_, token)| *token));
                let starts = vec![CallStart { text: String::new(), shape: shape.clone() }];
                let grammar = plan.grammar(starts, &rendered, controls);
                (plan.reading(shape, "", &rendered), Calls::Forced(Box::new(grammar)))
            }
            (Way::Begun(begun), parser) => {
                let controls = self.controls_in(begun.starts.iter().map(|start| &start.shape));
                preserved.extend(controls.iter().map(|(_, token)| *token));
                preserved.extend(begun.starts.iter().filter_map(|start| self.token_of(&start.text)));
                let reading = match (parser, begun.starts.first()) {
                    (Some(parser), _) if begun.is_native => Reading::Parser(Box::new(Parser { parser })),
                    (_, Some(start)) => plan.reading(&start.shape, &start.text, &rendered),
                    (_, None) => Reading::Plain,
                };
                let grammar = plan.grammar(begun.starts.clone(), &rendered, controls);
                (reading, Calls::Begun(Box::new(grammar), begun.banned.clone()))
            }
            (Way::Native | Way::Never, Some(parser)) => {
                let mut calls = Calls::Never(plan.banned.clone());
                if !rendered.grammar.is_empty() {
                    let words = rendered.triggers.iter().filter(|trigger| trigger.kind == Trigger::WORD);
                    let starts = words.map(|trigger| trigger.value.clone()).collect();
                    let (gbnf, triggers) = (rendered.grammar.clone(), rendered.triggers.clone());
                    let grammar = Some(render::grammar(gbnf, triggers, &rendered, &preserved));
                    calls = Calls::Lazy { grammar, starts };
                }
                (Reading::Parser(Box::new(Parser { parser })), calls)
            }
            (_, None) => (plain_reading(&rendered, prompt.reasoning_format), Calls::Never(plan.banned.clone())),
        };
        let thinking = Tags {
            start: rendered.thinking_start.clone(),
            ends: render::thinking_ends(&rendered),
            opened: rendered.thinking_opened,
        };
        let frame = match reading {
            Reading::Parser(_) => self.answer_frame(templates),
            _ => None,
        };
        let (text, stops) = (rendered.prompt, rendered.stops);
        Ok(Rendered { text, reading, stops, preserved, calls, thinking, frame })
    }

    fn audio_rate(&self) -> Option<u32> {
        self.projector.as_ref()?.audio_rate()
    }

    fn split_media(&self, bitmap: &Bitmap) -> Result<Vec<Piece<llama::Chunk>>, String> {
        self.projector.as_ref().ok_or("the model has no projector")?.split(bitmap)
    }

    fn encode_media(&self, chunk: &llama::Chunk) -> Result<Vec<f32>, String> {
        self.projector.as_ref().ok_or("the model has no projector")?.encode(chunk)
    }

    fn sampler(
        &self,
        params: &SamplingParams,
        prompt: &[Token],
        grammar: Option<&Grammar>,
    ) -> Result<llama::Sampler, Failure> {
        let n_ctx = i32::try_from(self.n_ctx()).unwrap_or(i32::MAX);
        let raw = sampler_params(params, n_ctx);
        let refuse = |error: llama::Error| Failure::invalid("sampling", "invalid_value", error.to_string());
        let what = if grammar.is_some() { "grammar" } else { "sampling" };
        let mut sampler = llama::Sampler::new(&self.model, &raw, grammar)
            .map_err(|error| Failure::invalid(what, "invalid_value", error.to_string()))?;
        // Only what the penalties can still see.
        let window = raw.penalty_last_n.max(raw.dry_penalty_last_n).max(64);
        let seen = prompt.len().saturating_sub(usize::try_from(window).unwrap_or(0));
        sampler.accept(&prompt[seen..]).map_err(refuse)?;
        Ok(sampler)
    }

    fn context(self: &Arc<Self>, config: &EngineConfig, interrupt: Interrupt) -> Result<LlamaContext, String> {
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let (n_threads, n_threads_batch) = self.threads();
        let is_offloaded = llama::offloads() && config.gpu_layers.is_some();
        let params = ContextParams {
            n_ctx: self.n_ctx(),
            n_batch: config.n_batch,
            n_ubatch: config.n_ubatch.min(config.n_batch),
            n_seq_max: config.n_slots,
            // Of a whole decode, whatever the ubatch is: llama.cpp asserts on one more.
            n_outputs_max: config.n_slots + EXTRA_OUTPUTS,
            n_threads,
            n_threads_batch,
            flash_attn: match config.flash_attn {
                FlashAttn::Auto => None,
                FlashAttn::On => Some(true),
                FlashAttn::Off => Some(false),
            },
            type_k: element(config.cache_type_k),
            type_v: element(config.cache_type_v),
            kv_unified: config.kv_layout.is_unified(),
            swa_full: config.swa_full,
            offload_kqv: true,
            pooling: None,
            poll: POLL,
            mtp: false,
            n_rs_seq: self.rows_back,
            rounds_kv: false,
            kernels: LlamaContext::kernels(is_offloaded),
        };
        let context = llama::Context::new(&self.model, params, interrupt).map_err(|error| error.to_string())?;
        let n_swa = if config.swa_full { 0 } else { self.model.n_swa() };
        let shares_cells = params.kv_unified && !self.model.is_recurrent();
        let is_mrope = self.projector.as_ref().is_some_and(Projector::is_mrope);
        let can_cut = !self.model.is_recurrent() && !self.model.is_hybrid();
        draft::with_drafts(
            context,
            Traits { n_swa, shares_cells, can_cut, is_mrope, n_threads, is_offloaded },
            params,
            self.draft.as_ref(),
        )
    }

    fn encoder(self: &Arc<Self>, interrupt: Interrupt) -> Result<LlamaEncoder, String> {
        LlamaEncoder::new(self, &interrupt)
    }

    fn pair_layout(&self) -> PairLayout {
        super::encode::pair_layout(&self.model)
    }
}

/// Making contexts is not safe to do twice at once in llama.cpp (it may settle n_ctx_train meanwhile).
pub(super) static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The shim's request for a chat: messages in OpenAI's shape, which `common/chat` reads.
///
/// `callable`: tools that the answer may call in the template's format, as the shim wants them.
fn request_of(prompt: &ChatPrompt, callable: Vec<serde_json::Value>) -> serde_json::Value {
    let messages: Vec<serde_json::Value> = prompt
        .messages
        .iter()
        .map(|message| {
            let mut json = json!({ "role": message.role.as_str(), "content": message.content });
            if let Some(reasoning) = &message.reasoning {
                json["reasoning_content"] = json!(reasoning);
            }
            if let Some(name) = &message.name {
                json["name"] = json!(name);
            }
            if let Some(id) = &message.tool_call_id {
                json["tool_call_id"] = json!(id);
            }
            if !message.tool_calls.is_empty() {
                let calls = message.tool_calls.iter().map(|call| {
                    let function = json!({ "name": call.name, "arguments": arguments_of(&call.arguments) });
                    json!({ "id": call.id, "type": "function", "function": function })
                });
                json["tool_calls"] = calls.collect();
            } else if message.content.is_none() {
                // llama.cpp wants content or tool calls.
                json["content"] = json!("");
            }
            json
        })
        .collect();
    let mut kwargs: serde_json::Map<String, serde_json::Value> =
        prompt.template_kwargs.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let said = kwargs.get("enable_thinking").and_then(|value| value.as_str()).map(|value| value != "false");
    if let Some(effort) = &prompt.reasoning_effort {
        kwargs.entry("reasoning_effort").or_insert_with(|| json!(json!(effort).to_string()));
    }
    let effort_none = prompt.reasoning_effort.as_deref() == Some("none");
    let enable_thinking = prompt.enable_thinking.or(said).unwrap_or(!effort_none);
    let tools = prompt.tools.iter().map(|tool| {
        let description = tool.description.as_deref().unwrap_or_default();
        json!({ "name": tool.name, "description": description, "parameters": tool.parameters })
    });
    json!({
        "messages": messages,
        "add_generation_prompt": prompt.add_generation_prompt,
        "continue_final_message": prompt.continue_final_message,
        "reasoning": prompt.reasoning_format == ReasoningFormat::Separate,
        "enable_thinking": enable_thinking,
        "kwargs": kwargs,
        "tools": tools.collect::<Vec<_>>(),
        "callable": callable,
        "parallel_tool_calls": prompt.parallel_tool_calls,
    })
}

fn plain_reading(rendered: &llama::RenderedChat, format: ReasoningFormat) -> Reading {
    let ends: Vec<String> = rendered.thinking_ends.iter().filter(|end| !end.is_empty()).cloned().collect();
    if format == ReasoningFormat::Separate && !rendered.thinking_start.is_empty() && !ends.is_empty() {
        return Reading::Tags { start: rendered.thinking_start.clone(), ends, opened: rendered.thinking_opened };
    }
    Reading::Plain
}

/// Arguments as JSON of a sane depth, which templates parse without a bound of their own; what is none (a call that was cut
/// off, say) becomes a JSON string of itself.
fn arguments_of(text: &str) -> String {
    // serde_json stops at 128 levels.
    match serde_json::from_str::<serde_json::Value>(text) {
        Ok(_) => text.to_owned(),
        Err(_) => json!(text).to_string(),
    }
}

struct Parser {
    parser: llama::AnswerParser,
}

impl AnswerParser for Parser {
    fn parse(&mut self, text: &str, is_partial: bool) -> Option<Parsed> {
        let llama::ReadAnswer { reasoning, content, calls } = self.parser.parse(text, is_partial).ok()?;
        let call = |call: llama::ReadCall| ParsedCall { id: call.id, name: call.name, arguments: call.arguments };
        Some(Parsed { reasoning, content, calls: calls.into_iter().map(call).collect() })
    }
}
