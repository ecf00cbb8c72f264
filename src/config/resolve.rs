//! Raw settings → checked configuration.

use super::raw::{ConfigError, Said};
use super::settings::Raw;
use super::value::{ByteSize, Egress, Lora, Seconds, Sha256Hex, Switch};
use super::{Config, Origin, ServedModel};
use crate::chat::{self, Sampling};
use crate::engine::config::{DraftConfig, DraftMode, EmbedMode, KvLayout, LoraConfig, ModelSource, ScriptedConfig};
use crate::engine::{EngineConfig, Pooling};
use crate::gateway::limits::LimitSets;
use crate::gateway::{
    ApiKey, CacheConfig, GatewayConfig, LoadLimits, MediaHost, MemoryWatch, ResponsesConfig, RoutingConfig,
};
use crate::telemetry::{LogConfig, LogFileConfig};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bounds of what an operator may ask. Beyond them lies a typing mistake rather than a machine.
const WORKERS_MAX: u32 = 64;
const QUEUE_MAX: u32 = 1 << 16;
const THREADS_MAX: u32 = 512;
const CTX_MAX: u32 = 1 << 27;
const BATCH_MAX: u32 = 1 << 17;
const GAP_MS_MAX: u32 = 60_000;
const KEYS_MAX: usize = 4096;
const KEY_BYTES_MAX: usize = 512;
const KEY_FILE_BYTES_MAX: u64 = 4 << 20;
const TEMPLATE_BYTES_MAX: u64 = 1 << 20;
const RESPONSES_MAX: u32 = 1 << 20;
/// A log file is not begun anew for less, and no more of them are kept.
const LOG_BYTES_MIN: u64 = 64 << 10;
const LOG_FILES_MAX: u32 = 1000;

impl Raw {
    /// Checks everything together. Reads the key and template files; the model file is only looked at.
    pub fn resolve(&self) -> Result<Config, ConfigError> {
        let mut warnings = Vec::new();
        let api_keys = self.api_keys(&mut warnings)?;
        let has_keys = !api_keys.is_empty() || self.data_dir.value.is_some();
        let http = self.http(has_keys, &mut warnings)?;
        let (books, admin_listen) = (self.books()?, self.admin_listen(&mut warnings)?);
        let mut models = self.models()?;
        self.add_prefixes(&mut models, &mut warnings)?;
        let first = &models[0].config;
        let gateway = GatewayConfig {
            model_id: first.id.clone(),
            aliases: first.aliases.clone(),
            api_keys: api_keys.into_iter().filter_map(|key| ApiKey::new(&key)).collect(),
            strict: on(&self.strict),
            any_model: on(&self.any_model),
            sampling: first.sampling.clone(),
            price: first.price,
            n_created: first.n_created,
            media_hosts: self.media_hosts()?,
            media_path: self.media_path()?,
            responses: self.responses()?,
            limits: LimitSets::new(self.tables.limits.clone()),
            guardrails: self.guardrails(&models)?,
            routing: self.routing(&models)?,
        };
        let default = LoadLimits::default();
        let load_wait = seconds(&self.load_timeout, default.load_wait);
        if load_wait < Duration::from_millis(100) {
            return Err(rule(&self.load_timeout, format!("{load_wait:?} is less than 100ms")));
        }
        let limits = LoadLimits {
            loaded_bytes_max: self.max_loaded_memory.value.map(|ByteSize(n)| n as u64),
            load_wait,
            ..default
        };
        Ok(Config {
            http,
            gateway,
            models,
            limits,
            memory: self.memory()?,
            books,
            admin_listen,
            admin_ui: on(&self.admin_ui),
            log: self.log(),
            metrics: self.metrics()?,
            otlp: self.otlp(|name| std::env::var(name).ok())?,
            in_process: on(&self.in_process),
            warnings,
        })
    }

    fn memory(&self) -> Result<Option<MemoryWatch>, ConfigError> {
        let percent = within(&self.memory_high, 95, 0, 100)?;
        Ok((percent > 0).then(|| MemoryWatch::new(f64::from(percent) / 100.0)))
    }

    /// The cache, and other servers with the aliases that lead to them.
    fn routing(&self, models: &[ServedModel]) -> Result<RoutingConfig, ConfigError> {
        let default = CacheConfig::default();
        let cache = CacheConfig {
            enabled: on(&self.cache),
            ttl: seconds(&self.cache_ttl, default.ttl),
            bytes_max: self.cache_bytes.value.map_or(default.bytes_max, |ByteSize(n)| n),
            persist: self.cache_persist()?,
            scope: self.cache_scope.value.unwrap_or_default(),
            deterministic_only: on(&self.cache_deterministic_only),
            tool_calls: on(&self.cache_tool_calls),
        };
        let upstreams = self.upstreams(models, |name| std::env::var(name).ok())?;
        let routes = self.routes(models, &upstreams)?;
        // The models of the tables come last, in their order.
        let n_before = models.len() - self.tables.models.len();
        let named = models[n_before..].iter().zip(&self.tables.models);
        let kept = named.filter(|(_, table)| table.never_leaves).map(|(model, _)| model.config.id.clone()).collect();
        Ok(RoutingConfig { cache, may_leave: self.egress.value == Some(Egress::Allowed), kept, upstreams, routes })
    }

    /// Whether answers outlive a restart.
    fn cache_persist(&self) -> Result<bool, ConfigError> {
        let persist = on(&self.cache_persist);
        if persist && !on(&self.cache) {
            return Err(rule(&self.cache_persist, "there are no answers to keep without --cache"));
        }
        if persist && self.data_dir.value.is_none() {
            let message = "answers are sealed with a secret of --data-dir and kept in it, and there is none";
            return Err(rule(&self.cache_persist, message));
        }
        Ok(persist)
    }

    /// What is kept of responses, and where. The folder is made if it is missing.
    fn responses(&self) -> Result<ResponsesConfig, ConfigError> {
        let default = ResponsesConfig::default();
        let dir = self.response_store.value.clone();
        if let Some(dir) = &dir {
            let refuse = |error: std::io::Error| rule(&self.response_store, format!("{}: {error}", dir.display()));
            std::fs::create_dir_all(dir).map_err(refuse)?;
            let probe = dir.join(".hearth");
            std::fs::write(&probe, b"").and_then(|()| std::fs::remove_file(&probe)).map_err(refuse)?;
        }
        Ok(ResponsesConfig {
            count_max: within(&self.responses, 256, 0, RESPONSES_MAX)? as usize,
            bytes_max: self.response_bytes.value.map_or(default.bytes_max, |ByteSize(n)| n),
            age_max: seconds(&self.response_ttl, default.age_max),
            dir,
        })
    }

    /// How to log, which is needed before anything else can be said.
    pub fn log(&self) -> LogConfig {
        let default = LogConfig::default();
        LogConfig {
            level: self.log_level.value.clone().unwrap_or(default.level),
            format: self.log_format.value.unwrap_or(default.format),
            file: self.log_file.value.clone().map(|path| LogFileConfig {
                path,
                bytes_max: self.log_file_size.value.map_or(64 << 20, |ByteSize(n)| n as u64).max(LOG_BYTES_MIN),
                keep: self.log_file_keep.value.unwrap_or(7).min(LOG_FILES_MAX),
            }),
        }
    }

    /// The model, checked to be a file that can be read, or a pretended one.
    pub fn source(&self) -> Result<ModelSource, ConfigError> {
        let text = self.model.value.as_deref().ok_or(ConfigError::NoModel)?;
        match text.strip_prefix("scripted:").or_else(|| (text == "scripted").then_some("")) {
            Some(settings) => scripted(settings, &self.model.origin).map(ModelSource::Scripted),
            None => Ok(ModelSource::Gguf(PathBuf::from(text))),
        }
    }

    fn api_keys(&self, warnings: &mut Vec<String>) -> Result<Vec<String>, ConfigError> {
        let mut keys = self.api_key.value.clone().unwrap_or_default();
        if let Some(path) = &self.api_key_file.value {
            let text = read_text(path, KEY_FILE_BYTES_MAX, &self.api_key_file)?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            let n_before = keys.len();
            keys.extend(lines.map(str::to_owned));
            if keys.len() == n_before {
                return Err(rule(&self.api_key_file, format!("{} holds no key", path.display())));
            }
            if is_world_readable(path) {
                warnings.push(format!("{} can be read by every user of this machine (chmod 600)", path.display()));
            }
        }
        let origin = if self.api_key_file.value.is_some() { &self.api_key_file.origin } else { &self.api_key.origin };
        let refuse = |message: String| ConfigError::Rule { origin: origin.clone(), message };
        if keys.len() > KEYS_MAX {
            return Err(refuse(format!("{} keys, more than {KEYS_MAX}", keys.len())));
        }
        // A key travels in a header, so what can't stand there can never match.
        let is_sendable = |key: &str| key.len() <= KEY_BYTES_MAX && key.bytes().all(|b| b.is_ascii_graphic());
        if !keys.iter().all(|key| is_sendable(key)) {
            return Err(refuse(format!(
                "a key is longer than {KEY_BYTES_MAX} bytes or not plain ASCII without spaces"
            )));
        }
        Ok(keys)
    }

    pub(super) fn engine(&self) -> Result<EngineConfig, ConfigError> {
        let source = self.source()?;
        match &source {
            ModelSource::Gguf(path) => check_file(path)?,
            ModelSource::Scripted(_) if self.sha256.value.is_some() => {
                return Err(rule(&self.sha256, "a pretended model has no file"));
            }
            ModelSource::Scripted(_) => {}
        }
        let default = EngineConfig::new(source);
        let n_batch = within(&self.batch_size, default.n_batch, 1, BATCH_MAX)?;
        let n_ctx = self.ctx_size.value.filter(|n| *n > 0);
        if n_ctx.is_some_and(|n| n > CTX_MAX) {
            return Err(rule(&self.ctx_size, format!("more than {CTX_MAX}")));
        }
        let threads = |said: &Said<u32>| match said.value {
            Some(n) if n > THREADS_MAX => Err(rule(said, format!("{n} is more than {THREADS_MAX}"))),
            value => Ok(value.filter(|n| *n > 0)),
        };
        let n_slots = within(&self.parallel, default.n_slots, 1, EngineConfig::SLOTS_MAX)?;
        if n_ctx.is_some_and(|n| n < n_slots) {
            return Err(rule(&self.ctx_size, format!("fewer cells than the {n_slots} slots")));
        }
        let max_gap_ms = u32::try_from(default.max_gap.as_millis()).unwrap_or(GAP_MS_MAX);
        let max_gap_ms = within(&self.max_gap_ms, max_gap_ms, 1, GAP_MS_MAX)?;
        if let Some(mmproj) = &self.mmproj.value {
            check_file(mmproj)?;
        }
        Ok(EngineConfig {
            n_ctx,
            n_slots,
            n_workers: within(&self.workers, default.n_workers, 1, WORKERS_MAX)?,
            n_batch,
            n_ubatch: within(&self.ubatch_size, default.n_ubatch, 1, BATCH_MAX)?.min(n_batch),
            n_threads: threads(&self.threads)?,
            n_threads_batch: threads(&self.threads_batch)?,
            gpu_layers: self.n_gpu_layers.value.unwrap_or(default.gpu_layers),
            flash_attn: self.flash_attn.value.unwrap_or(default.flash_attn),
            cache_type_k: self.cache_type_k.value.and_then(|said| said.0).unwrap_or(default.cache_type_k),
            cache_type_v: self.cache_type_v.value.and_then(|said| said.0).unwrap_or(default.cache_type_v),
            kv_layout: match self.kv_unified.value {
                None => KvLayout::Auto,
                Some(Switch(true)) => KvLayout::Unified,
                Some(Switch(false)) => KvLayout::Split,
            },
            prefixes: Vec::new(),
            prefix_store: self.prefix_store.value.clone(),
            prefix_store_bytes: self
                .prefix_store_bytes
                .value
                .map_or(default.prefix_store_bytes, |ByteSize(n)| n as u64),
            saved_bytes: self.prefix_ram.value.map(|ByteSize(n)| n as u64),
            swa_full: on(&self.swa_full),
            mmap: on(&self.mmap),
            mlock: on(&self.mlock),
            lora: self.lora()?,
            chat_template: self.template()?,
            sha256: self.sha256.value.iter().flatten().map(|Sha256Hex(hex)| hex.clone()).collect(),
            embeddings: self.embeddings.value.unwrap_or_default(),
            pooling: self.pooling()?,
            mmproj: self.mmproj.value.clone(),
            max_gap: Duration::from_millis(max_gap_ms.into()),
            n_draft_max: within(&self.draft_max, default.n_draft_max, 0, EngineConfig::DRAFT_MAX)?,
            draft: self.draft()?,
            n_queue: within(&self.queue, default.n_queue, 0, QUEUE_MAX)?,
            max_wait: Some(seconds(&self.max_wait, Duration::ZERO)).filter(|wait| !wait.is_zero()),
            hang_timeout: self.hang_timeout()?,
            source: default.source,
        })
    }

    fn draft(&self) -> Result<DraftConfig, ConfigError> {
        let mode = self.spec_type.value.unwrap_or_default();
        let needs_file = matches!(mode, DraftMode::Simple | DraftMode::Eagle3 | DraftMode::Dflash | DraftMode::Dspark);
        match &self.model_draft.value {
            Some(path) => check_file(path)?,
            None if needs_file => return Err(rule(&self.spec_type, "this kind of drafts needs --model-draft")),
            None => {}
        }
        let p_min = self.draft_p_min.value.unwrap_or_default();
        if !(0.0..=1.0).contains(&p_min) {
            return Err(rule(&self.draft_p_min, format!("{p_min} is not within 0..=1")));
        }
        if let Some(path) = &self.lookup_cache_static.value {
            check_file(path).map_err(|error| rule(&self.lookup_cache_static, error.to_string()))?;
        }
        let default = DraftConfig::default();
        Ok(DraftConfig {
            mode,
            model: self.model_draft.value.clone().filter(|_| mode != DraftMode::None),
            corpus: self.lookup_cache_static.value.clone(),
            n_min: within(&self.draft_min, default.n_min, 0, EngineConfig::DRAFT_MAX)?,
            p_min,
            gpu_layers: self.n_gpu_layers_draft.value.unwrap_or(default.gpu_layers),
            always: default.always,
        })
    }

    /// `None`: never. Errors: less than a step may take on a busy machine.
    fn hang_timeout(&self) -> Result<Option<Duration>, ConfigError> {
        const LEAST: Duration = Duration::from_secs(1);
        let timeout = seconds(&self.hang_timeout, Duration::from_secs(60));
        if !timeout.is_zero() && timeout < LEAST {
            return Err(rule(&self.hang_timeout, format!("{timeout:?} is less than {LEAST:?}")));
        }
        Ok(Some(timeout).filter(|timeout| !timeout.is_zero()))
    }

    /// `--rerank` is a pooling by another name.
    fn pooling(&self) -> Result<Option<Pooling>, ConfigError> {
        match (on(&self.rerank), self.pooling.value) {
            (true, Some(other)) if other != Pooling::Rank => {
                Err(rule(&self.rerank, "--rerank needs --pooling rank, or none at all".to_owned()))
            }
            (true, _) if self.embeddings.value == Some(EmbedMode::Off) => {
                Err(rule(&self.rerank, "--rerank does not go with --embeddings off".to_owned()))
            }
            (true, _) => Ok(Some(Pooling::Rank)),
            (false, pooling) => Ok(pooling),
        }
    }

    fn media_hosts(&self) -> Result<Vec<MediaHost>, ConfigError> {
        let texts = self.media_host.value.iter().flatten();
        let host = |text: &String| {
            MediaHost::new(text).ok_or_else(|| rule(&self.media_host, format!("\"{text}\" is no host name or address")))
        };
        texts.map(host).collect()
    }

    /// With all links resolved: below it none is followed.
    fn media_path(&self) -> Result<Option<PathBuf>, ConfigError> {
        let Some(path) = &self.media_path.value else { return Ok(None) };
        let refuse = |why: String| rule(&self.media_path, format!("{}: {why}", path.display()));
        let root = path.canonicalize().map_err(|error| refuse(error.to_string()))?;
        if root.is_dir() { Ok(Some(root)) } else { Err(refuse("this is no folder".to_owned())) }
    }

    pub(super) fn sampling(&self) -> Result<Sampling, ConfigError> {
        let sampling = Sampling {
            seed: self.seed.value.map(chat::check::fold_seed),
            temperature: self.temp.value,
            dynatemp_range: self.dynatemp_range.value,
            dynatemp_exponent: self.dynatemp_exp.value,
            top_k: self.top_k.value,
            top_p: self.top_p.value,
            min_p: self.min_p.value,
            typical_p: self.typical.value,
            top_n_sigma: self.top_n_sigma.value,
            xtc_probability: self.xtc_probability.value,
            xtc_threshold: self.xtc_threshold.value,
            repeat_last_n: self.repeat_last_n.value,
            repeat_penalty: self.repeat_penalty.value,
            presence_penalty: self.presence_penalty.value,
            frequency_penalty: self.frequency_penalty.value,
            dry_multiplier: self.dry_multiplier.value,
            dry_base: self.dry_base.value,
            dry_allowed_length: self.dry_allowed_length.value,
            dry_penalty_last_n: self.dry_penalty_last_n.value,
            mirostat: self.mirostat.value,
            mirostat_tau: self.mirostat_ent.value,
            mirostat_eta: self.mirostat_lr.value,
            ignore_eos: self.ignore_eos.value.map(|Switch(yes)| yes),
            samplers: self.samplers.value.clone(),
            ..Sampling::default()
        };
        // The same rules as for a request; its words for the fields differ from ours in a few places.
        chat::check::sampling(&sampling).map_err(|refusal| {
            let key = match refusal.field.as_str() {
                "temperature" => "temp",
                "dynatemp_exponent" => "dynatemp_exp",
                "typical_p" => "typical",
                "mirostat_tau" => "mirostat_ent",
                "mirostat_eta" => "mirostat_lr",
                same => same,
            };
            let origin = self.origin(key);
            ConfigError::Rule { origin, message: refusal.message }
        })?;
        Ok(sampling)
    }

    fn template(&self) -> Result<Option<String>, ConfigError> {
        match (&self.chat_template_file.value, &self.chat_template.value) {
            (Some(_), Some(_)) => Err(rule(&self.chat_template, "not together with chat_template_file")),
            (Some(path), None) => read_text(path, TEMPLATE_BYTES_MAX, &self.chat_template_file).map(Some),
            (None, text) => Ok(text.clone().filter(|text| !text.is_empty())),
        }
    }

    /// The most tokens of an answer, where a request does not say.
    pub(super) fn n_predict(&self) -> Result<Option<u32>, ConfigError> {
        match self.n_predict.value {
            None | Some(-1) => Ok(None),
            Some(n) => match u32::try_from(n) {
                Ok(n @ 1..) => Ok(Some(n)),
                _ => Err(rule(&self.n_predict, format!("{n} is neither -1 nor at least 1"))),
            },
        }
    }

    fn origin(&self, key: &str) -> Origin {
        let found = self.shown().into_iter().find(|(setting, ..)| setting.key == key);
        found.map_or(Origin::Default, |(_, _, origin)| origin.clone())
    }

    fn lora(&self) -> Result<Vec<LoraConfig>, ConfigError> {
        let given = self.lora.value.iter().flatten();
        let lora: Vec<LoraConfig> =
            given.map(|Lora { path, scale }| LoraConfig { path: path.clone(), scale: *scale }).collect();
        let (most, scale_max) = (EngineConfig::LORA_MAX, EngineConfig::LORA_SCALE_MAX);
        if lora.len() > most {
            return Err(rule(&self.lora, format!("{} adapters, more than {most}", lora.len())));
        }
        for LoraConfig { path, scale } in &lora {
            if !(-scale_max..=scale_max).contains(scale) {
                return Err(rule(&self.lora, format!("{scale} is not within -{scale_max}..={scale_max}")));
            }
            check_file(path)?;
        }
        Ok(lora)
    }
}

pub(super) fn rule<T>(said: &Said<T>, message: impl Into<String>) -> ConfigError {
    ConfigError::Rule { origin: said.origin.clone(), message: message.into() }
}

pub(super) fn on(said: &Said<Switch>) -> bool {
    said.value == Some(Switch(true))
}

pub(super) fn seconds(said: &Said<Seconds>, default: Duration) -> Duration {
    said.value.map_or(default, |Seconds(time)| time)
}

pub(super) fn within(said: &Said<u32>, default: u32, min: u32, max: u32) -> Result<u32, ConfigError> {
    let n = said.value.unwrap_or(default);
    if (min..=max).contains(&n) {
        return Ok(n);
    }
    Err(rule(said, format!("{n} is not within {min}..={max}")))
}

/// Refuses at once what can't be a model; its header is read later.
fn check_file(path: &Path) -> Result<(), ConfigError> {
    use crate::model::ModelError;
    let path = path.to_owned();
    Err(match std::fs::File::open(&path).and_then(|file| file.metadata()) {
        Ok(metadata) if metadata.is_dir() => ModelError::Directory { path }.into(),
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => ModelError::Missing { path }.into(),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => ModelError::Forbidden { path }.into(),
        Err(error) => ModelError::Io { path, error }.into(),
    })
}

/// `step_us=1000,load_ms=5` → the scripted backend's configuration.
fn scripted(settings: &str, origin: &Origin) -> Result<ScriptedConfig, ConfigError> {
    let refuse = |message: String| ConfigError::Rule { origin: origin.clone(), message };
    let mut config = ScriptedConfig::default();
    for pair in settings.split(',').filter(|pair| !pair.is_empty()) {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| refuse(format!("scripted: {pair:?} is not key=value")))?;
        let n: u64 = value.parse().map_err(|_| refuse(format!("scripted: {value:?} is not a whole number")))?;
        match key {
            "step_us" => config.step_us = n,
            "prompt_token_us" => config.prompt_token_us = n,
            "part_row_us" => config.part_row_us = n,
            "load_ms" => config.load_ms = n,
            "crash_at_decode" => config.crash_at_decode = n,
            "rows_back" => config.rows_back = n,
            "embeds" => config.embeds = n,
            _ => {
                return Err(refuse(format!(
                    "scripted: there is no {key:?} (step_us, prompt_token_us, part_row_us, load_ms, crash_at_decode, \
                     rows_back, embeds)"
                )));
            }
        }
    }
    Ok(config)
}

pub(super) fn read_text<T>(path: &Path, n_bytes_max: u64, said: &Said<T>) -> Result<String, ConfigError> {
    let refuse = |what: String| rule(said, format!("{}: {what}", path.display()));
    let metadata = std::fs::metadata(path).map_err(|error| refuse(error.to_string()))?;
    if !metadata.is_file() || metadata.len() > n_bytes_max {
        return Err(refuse(format!("not a file of at most {n_bytes_max} bytes")));
    }
    std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))
}

#[cfg(unix)]
pub(super) fn is_world_readable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

#[cfg(not(unix))]
pub(super) fn is_world_readable(_: &Path) -> bool {
    false
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
