//! Every setting, declared once: its key, type, default, and what it does.
//!
//! `n_ctx`-like abbreviations stay inside; the keys are llama-server's flag names where the meaning is the same. From the
//! key `ctx_size` follow the flag `--ctx-size`, the variable `HEARTH_CTX_SIZE` and the key `ctx_size` in `hearth.toml`.

use super::money::{Days, Usd};
use super::raw::{ConfigError, Origin, Said, Setting};
use super::tables::Tables;
use super::value::{ByteSize, CacheElement, Egress, LoadWhen, Lora, Reasoning, Seconds, Sha256Hex, Switch, Written};
use crate::chat::{Mirostat, SamplerKind};
use crate::engine::Pooling;
use crate::engine::config::{DraftMode, EmbedMode, FlashAttn, GpuLayers};
use crate::gateway::store::{Durability, OnFailure};
use crate::gateway::{CacheScope, KeepAlive};
use crate::telemetry::LogFormat;
use ipnet::IpNet;
use std::net::SocketAddr;
use std::path::PathBuf;

macro_rules! settings {
    ($($group:literal: { $(
        $(#[doc = $doc:literal])+
        $key:ident $(($short:literal))? : $kind:ty = $default:expr, $shown:literal $(, $secret:ident)? ;
    )* })*) => {
        /// What was written, wherever it was written. Settings that nobody wrote hold their default, if they have one.
        #[derive(Debug, Clone)]
        pub struct Raw {
            $($($(#[doc = $doc])+ pub $key: Said<$kind>,)*)*
            /// `[[model]]` and `[[alias]]` of the file.
            pub tables: Tables,
        }

        pub const SETTINGS: &[Setting] = &[
            $($(Setting {
                key: stringify!($key),
                group: $group,
                short: settings!(@short $($short)?),
                shown: $shown,
                help: concat!($($doc,)+),
                default: $default,
                is_switch: <$kind as Written>::IS_SWITCH,
                is_list: <$kind as Written>::IS_LIST,
                is_secret: settings!(@secret $($secret)?),
            },)*)*
        ];

        impl Default for Raw {
            fn default() -> Self {
                // A test reads every default, so none is missing here.
                Self { $($($key: Said::default_from($default),)*)* tables: Tables::default() }
            }
        }

        impl Raw {
            /// Sets one setting from its text forms. Errors name the origin, and show the text unless it is a secret.
            pub(super) fn set(&mut self, key: &str, texts: &[String], origin: Origin) -> Result<(), ConfigError> {
                match key {
                    $($(stringify!($key) => self.$key.set(texts, origin, settings!(@secret $($secret)?)),)*)*
                    _ => Ok(()),
                }
            }

            /// Every setting's value as TOML (`None`: nothing said and no default) and where it is from.
            pub fn shown(&self) -> Vec<(&'static Setting, Option<toml::Value>, &Origin)> {
                let values = [$($((self.$key.value.as_ref().map(Written::to_toml), &self.$key.origin),)*)*];
                SETTINGS.iter().zip(values).map(|(setting, (value, origin))| (setting, value, origin)).collect()
            }
        }
    };
    (@short) => { None };
    (@short $short:literal) => { Some($short) };
    (@secret) => { false };
    (@secret secret) => { true };
}

settings! {
    "Model": {
        /// The GGUF file to serve (the first part of a split one); `scripted:key=value,…` is a pretended model for tests
        model('m'): String = None, "FILE";
        /// Name of the model in the API, and further names after commas [default: the file's name]
        alias('a'): Vec<String> = None, "NAME";
        /// SHA-256 of the model's file, and of the further files of a split one, in order; at each load and restart of its
        /// engine another file is refused
        sha256: Vec<Sha256Hex> = None, "HEX";
        /// A Jinja chat template that replaces the model's own
        chat_template_file: PathBuf = None, "FILE";
        /// The same as text, or the name of one of llama.cpp's own templates (chatml, llama3, …), which know no tools
        chat_template: String = None, "TEXT|NAME";
        /// A multimodal projector (mmproj GGUF) of the model: images and sound in messages then reach it
        mmproj: PathBuf = None, "FILE";
        /// LoRA adapter to load with the model, and its scale where a request says nothing [default: 1]; may be given
        /// several times
        lora: Vec<Lora> = None, "FILE[:SCALE]";
        /// A smaller model of the same vocabulary, or heads made for this model (EAGLE-3, MTP, DFlash, DSpark), that
        /// drafts the next tokens (-md)
        model_draft: PathBuf = None, "FILE";
        /// What follows what in texts that answers may repeat, as hearth lookup or llama-lookup-create writes it: all
        /// answers of the model are drafted from it (-lcs)
        lookup_cache_static: PathBuf = None, "FILE";
        /// Make embeddings: auto where the model is an encoder or its file names a pooling; on with a chat model too
        embeddings: EmbedMode = Some("auto"), "auto|on|off";
        /// How the vectors of a text's tokens become one [default: as the file says; else last, for an encoder mean];
        /// none: they don't, and only POST /embedding gives them
        pooling: Pooling = None, "none|mean|cls|last|rank";
        /// Serve a model with a classification head for reranking, as --pooling rank
        rerank: Switch = Some("false"), "BOOL";
    }
    "Loading": {
        /// start: load the model with the server; lazy: at the first request for it
        load: LoadWhen = Some("start"), "start|lazy";
        /// How long a model stays loaded after its last request; -1: always, 0: not at all
        /// [default: always with load = start, else 5m]
        keep_alive: KeepAlive = None, "TIME";
        /// Longest wait of a request while its model is loaded
        load_timeout: Seconds = Some("300"), "TIME";
        /// Most memory of all loaded models together; idle ones make room for those that are asked for
        max_loaded_memory: ByteSize = None, "BYTES";
    }
    "Engine": {
        /// KV cells of each worker, so tokens of all its requests together; 0: as many as the model was trained with
        /// [default: that, at most 8192, and less where no more fits into the memory that is free]
        ctx_size('c'): u32 = None, "N";
        /// Requests answered at once by each worker (-np)
        parallel: u32 = Some("4"), "N";
        /// Contexts on the same weights, each with its own thread
        workers: u32 = Some("1"), "N";
        /// Requests that may wait for a slot; one more is refused with 503
        queue: u32 = Some("256"), "N";
        /// A request that would wait longer than this for a slot is refused at once with 503; 0: however long
        max_wait: Seconds = Some("0"), "TIME";
        /// An engine process that is not heard of, or gets nowhere with its work, for so long is killed and started anew;
        /// 0: never
        hang_timeout: Seconds = Some("60"), "TIME";
        /// Percent of the memory in use, of the cgroup's limit or the machine's, from which on caches, then batch requests,
        /// then new ones, then waiting ones are given up while something waits for memory; 0: nothing is
        memory_high: u32 = Some("95"), "PERCENT";
        /// Threads of one decode; 0: physical cores, shared among the workers
        threads('t'): u32 = None, "N";
        /// Threads while prompts are computed (-tb) [default: as --threads]
        threads_batch: u32 = None, "N";
        /// Most tokens of one decode call
        batch_size('b'): u32 = Some("2048"), "N";
        /// Tokens computed at once within it (-ub); not said, and with all layers on a GPU that has room: 2048
        ubatch_size: u32 = Some("512"), "N";
        /// Layers kept on the GPU, if this build has one (-ngl): a number, all, or auto: as many as its free memory takes
        n_gpu_layers: GpuLayers = Some("auto"), "N";
        /// Flash attention (-fa). Vectors of encoders on a CPU: auto is on, which is 1.3 times as fast for many texts (a text
        /// alone and in company: up to 7.5e-5 apart, 3e-5 with off); other vectors: auto is off
        flash_attn: FlashAttn = Some("auto"), "on|off|auto";
        /// Element type of the K cache (-ctk); auto: f16, or q8_0 where f16 does not fit into the memory that is free
        cache_type_k: CacheElement = Some("auto"), "TYPE";
        /// Element type of the V cache (-ctv)
        cache_type_v: CacheElement = Some("auto"), "TYPE";
        /// One pool of KV cells for all slots, so that one request may use all of them; off: an equal share for each.
        /// Not said: a whole context for each slot where that takes at most a sixth of the free memory, else one pool
        kv_unified: Switch = None, "BOOL";
        /// Most memory for prefixes of prompts that left the KV cache and may come back, besides the cache; 0: none
        /// [default: an eighth of what is available at start, at most 1GiB]
        prefix_ram: ByteSize = None, "BYTES";
        /// A folder that keeps what was computed of each [[prefix]] of hearth.toml for the next start
        prefix_store: PathBuf = None, "DIR";
        /// Most bytes of that folder; what was not used for the longest time makes room
        prefix_store_bytes: ByteSize = Some("8GiB"), "BYTES";
        /// Sliding-window layers keep the whole context
        swa_full: Switch = Some("false"), "BOOL";
        /// Map the file into memory instead of reading it
        mmap: Switch = Some("true"), "BOOL";
        /// Keep the weights from being swapped out
        mlock: Switch = Some("false"), "BOOL";
        /// Longest gap between two tokens of a stream to aim at while prompts are computed beside it; half of it where 128
        /// rows take no longer; up to four times it between the first two of streams that came at once
        max_gap_ms: u32 = Some("500"), "MS";
        /// Most tokens tried ahead at once, where an answer repeats its prompt, itself or a prediction, or where something
        /// drafts them, and where that is measured to pay; 0: none
        draft_max: u32 = Some("63"), "N";
        /// What drafts: auto is what the draft's file is made for, or the model's own heads (MTP), if it has some;
        /// none: only texts do
        spec_type: DraftMode = Some("auto"), "auto|none|draft-simple|draft-eagle3|draft-mtp|draft-dflash|draft-dspark";
        /// Drafts of a model that are shorter are not tried
        draft_min: u32 = Some("0"), "N";
        /// A draft of a model ends before a token that is less probable to it
        draft_p_min: f32 = Some("0"), "P";
        /// Layers of the draft's model kept on the GPU, if this build has one (-ngld)
        n_gpu_layers_draft: GpuLayers = Some("all"), "N";
        /// Run the engine on threads of this process: least memory, but a crash of it takes the server along
        in_process: Switch = Some("false"), "BOOL";
    }
    "Server": {
        /// Address to listen on; one that others can reach needs a key or --insecure. May be given several times
        host: Vec<String> = Some("127.0.0.1"), "ADDR";
        /// Port to listen on; 0: any free one
        port: u16 = Some("8080"), "PORT";
        /// Key that clients must send; may be given several times
        api_key: Vec<String> = None, "KEY", secret;
        /// File with one key per line; empty lines and lines with # are skipped
        api_key_file: PathBuf = None, "FILE";
        /// Serve an address that others can reach without any key
        insecure: Switch = Some("false"), "BOOL";
        /// Certificate chain (PEM) to serve HTTPS with; read again when the file changes
        tls_cert: PathBuf = None, "FILE";
        /// Private key (PEM) of --tls-cert
        tls_key: PathBuf = None, "FILE";
        /// Certificates (PEM) that vouch for clients: one without a certificate by them can't connect
        tls_client_ca: PathBuf = None, "FILE";
        /// Further host name that requests may name on a loopback address; may be given several times. On another address
        /// every name is taken, unless some are given
        allowed_host: Vec<String> = None, "HOST";
        /// Web origin that browsers may call from, besides local ones; may be given several times
        cors_origin: Vec<String> = None, "ORIGIN";
        /// Refuse requests with unknown fields instead of listing those in x-hearth-ignored
        strict: Switch = Some("false"), "BOOL";
        /// Answer whatever model name a request has
        any_model: Switch = Some("false"), "BOOL";
        /// Hosts that images are fetched from when a message names them by address (`example.com`, `*.example.com`, an IP
        /// address, each with `:port` where it isn't 80 or 443). A private address must be listed itself [default: none]
        media_host: Vec<String> = None, "HOST";
        /// Folder whose images messages may name as file://PATH, the path being one below it; links are not followed
        media_path: PathBuf = None, "DIR";
        /// Serve GET /slots
        slots: Switch = Some("false"), "BOOL";
        /// Largest request body
        body_limit: ByteSize = Some("64MiB"), "BYTES";
        /// Connections open at once; more wait
        max_connections: u32 = Some("4096"), "N";
        /// Connections of one client address; one more is closed. 0: any number [default: 64; on a loopback address 0]
        max_connections_per_ip: u32 = None, "N";
        /// Requests per second of one client address, in the long run; 0: any number
        ip_rps: f32 = Some("0"), "N";
        /// Requests that one address may send at once after a silence [default: twice --ip-rps]
        ip_burst: u32 = None, "N";
        /// Client addresses that may come in, as 192.0.2.0/24 or single ones; may be given several times [default: all]
        ip_allow: Vec<IpNet> = None, "CIDR";
        /// Client addresses that may not, whatever --ip-allow says
        ip_deny: Vec<IpNet> = None, "CIDR";
        /// Proxies whose X-Forwarded-For (or Forwarded) says where a client is; may be given several times
        trusted_proxy: Vec<IpNet> = None, "CIDR";
        /// Wrong keys that one address may send in a minute before it is locked out with 429; 0: any number
        auth_fail_limit: u32 = Some("10"), "N";
        /// How long it is locked out
        auth_fail_ban: Seconds = Some("5m"), "TIME";
        /// Longest wait for a TLS handshake, and for the head of a request
        header_timeout: Seconds = Some("10"), "TIME";
        /// Longest wait for a whole request body
        body_timeout: Seconds = Some("60"), "TIME";
        /// How long a connection may stay open without a request
        idle_timeout: Seconds = Some("75"), "TIME";
        /// How long a client may take nothing of its answer before it is cut off
        write_stall_timeout: Seconds = Some("60"), "TIME";
        /// Pause between signs of life on a stream that has nothing to say
        ping_interval: Seconds = Some("15"), "TIME";
        /// How long running answers may go on after SIGTERM
        drain_timeout: Seconds = Some("30"), "TIME";
    }
    "Keys and ledger": {
        /// Folder of this server's books, made if it is missing: keys and teams, one row for each request, the audit chain.
        /// With it every request needs a key; without it none of this exists [default: none]
        data_dir: PathBuf = None, "DIR";
        /// What a written row survives: power (loss of it; one fsync for each group of rows) or process (its end, kill -9 too)
        durability: Durability = Some("power"), "power|process";
        /// New requests while rows can't be written: reject them with 503, or degrade, which may lose rows
        on_store_failure: OnFailure = Some("reject"), "reject|degrade";
        /// Revoking or blocking a key also ends its running answers
        revoke_cuts_streams: Switch = Some("true"), "BOOL";
        /// Keep prompts and answers too, sealed, of keys (and teams) whose audit is content
        audit_content: Switch = Some("false"), "BOOL";
        /// What this server broke, by a crash of its engine, costs nothing; else what was delivered until then is charged
        refund_on_server_fault: Switch = Some("true"), "BOOL";
        /// File that gets a line for each checkpoint of the audit chain; somewhere that whoever takes the data folder can't write
        witness: PathBuf = None, "FILE";
        /// A PostgreSQL database that rows go on to, beside the books in the data folder: env:NAME or file:PATH of an address like
        /// postgres://USER:PASSWORD@HOST/DATABASE, or the address [default: none]
        store: String = None, "WHERE", secret;
        /// How long rows of requests are kept; sums by day stay [default: always]
        retention: Days = None, "TIME";
        /// Address for the admin API beside the socket admin.sock in the data folder [default: none]
        admin_listen: SocketAddr = None, "ADDR:PORT";
        /// Let --admin-listen be an address that others can reach although there is no certificate
        admin_insecure: Switch = Some("false"), "BOOL";
        /// Serve a page for administrators on the admin API
        admin_ui: Switch = Some("true"), "BOOL";
    }
    "Price": {
        /// Dollars for a million prompt tokens; what requests cost is in their rows and counts for budgets
        price_input: Usd = Some("0"), "USD";
        /// Dollars for a million prompt tokens that were in the KV cache [default: as --price-input]
        price_cached_input: Usd = None, "USD";
        /// Dollars for a million tokens of answers
        price_output: Usd = Some("0"), "USD";
    }
    "Responses API": {
        /// Responses kept for previous_response_id and GET /v1/responses/{id}; 0: none
        responses: u32 = Some("256"), "N";
        /// Bytes that kept responses may take together
        response_bytes: ByteSize = Some("256MiB"), "BYTES";
        /// How long a response is kept
        response_ttl: Seconds = Some("1h"), "TIME";
        /// Folder where responses are kept beside memory, so that they outlive a restart; without it nothing is written.
        /// Its files hold what was asked and answered
        response_store: PathBuf = None, "DIR";
    }
    "Cache of answers": {
        /// Give the answer to a request again when the same tenant sends the same request
        cache: Switch = Some("false"), "BOOL";
        /// How long an answer is kept
        cache_ttl: Seconds = Some("10m"), "TIME";
        /// Bytes that kept answers may take together; with --cache-persist, as many again on disk
        cache_bytes: ByteSize = Some("256MiB"), "BYTES";
        /// Keep answers in --data-dir too, sealed, so that they outlive a restart
        cache_persist: Switch = Some("false"), "BOOL";
        /// Who shares answers: the requests of one key, or of all keys of a team
        cache_scope: CacheScope = Some("key"), "key|team";
        /// Only requests of temperature 0 or with a seed
        cache_deterministic_only: Switch = Some("true"), "BOOL";
        /// Also answers that call tools
        cache_tool_calls: Switch = Some("false"), "BOOL";
    }
    "Upstreams": {
        /// Whether requests may be answered by the [[upstream]] servers of hearth.toml; aliases, models, keys and requests
        /// can only forbid it
        egress: Egress = Some("never"), "never|allowed";
    }
    "Answers, where a request says nothing": {
        /// Most tokens of an answer; -1: as many as fit
        n_predict('n'): i32 = Some("-1"), "N";
        /// Whether a model that can think does: on, off, or as its template has it
        reasoning: Reasoning = Some("auto"), "on|off|auto";
    }
    "Log": {
        /// error, warn, info, debug, trace, or tracing directives such as info,hearth::http=debug
        log_level: String = Some("info"), "LEVEL";
        /// human, json, or auto: human on a terminal and JSON otherwise
        log_format: LogFormat = Some("auto"), "FORMAT";
        /// Write the log there instead of to stderr; begun anew each day (UTC) and when it is full, the older ones beside it
        /// as FILE.1, FILE.2, … What an engine's process logs stays on stderr
        log_file: PathBuf = None, "FILE";
        /// When it is full
        log_file_size: ByteSize = Some("64MiB"), "BYTES";
        /// Older ones that are kept
        log_file_keep: u32 = Some("7"), "N";
    }
    "Traces": {
        /// Collector that traces are sent to, over OTLP (HTTP, protobuf): its address, with or without /v1/traces
        /// [default: none, nothing is sent]
        otlp_endpoint: String = None, "URL";
        /// Where the headers for it are, env:NAME or file:PATH, as name=value after commas, values percent-encoded:
        /// Authorization=Basic%20…
        otlp_headers: String = None, "env:NAME|file:PATH", secret;
        /// Part of new traces that are recorded, 0 to 1; of one that began elsewhere, its traceparent decides
        otlp_sample: f32 = Some("1"), "N";
        /// Name of this service in traces
        otlp_service: String = Some("hearth"), "NAME";
        /// Certificates (PEM) to check the collector with, instead of the system's
        otlp_ca: PathBuf = None, "FILE";
    }
    "Metrics": {
        /// Also give the series of /metrics under the names that dashboards for these servers ask for
        metrics_compat: Vec<String> = None, "llamacpp|vllm";
        /// Series for each key, of the first 200; what the others come to is in key="other"
        metrics_per_key: Switch = Some("false"), "BOOL";
    }
    "Sampling, where a request says nothing": {
        /// Temperature; 0: always the likeliest token
        temp: f32 = None, "N";
        /// Keep the N likeliest tokens; 0: all
        top_k: i32 = None, "N";
        /// Keep the likeliest tokens that make up this probability
        top_p: f32 = None, "N";
        /// Keep tokens at least this likely, relative to the likeliest
        min_p: f32 = None, "N";
        /// Locally typical sampling; 1: off
        typical: f32 = None, "N";
        /// Keep tokens within N standard deviations of the top; -1: off
        top_n_sigma: f32 = None, "N";
        /// Probability of XTC; 0: off
        xtc_probability: f32 = None, "N";
        /// Threshold of XTC
        xtc_threshold: f32 = None, "N";
        /// Temperature range of dynatemp; 0: off
        dynatemp_range: f32 = None, "N";
        /// Exponent of dynatemp
        dynatemp_exp: f32 = None, "N";
        /// Tokens the penalties look back; -1: the context
        repeat_last_n: i32 = None, "N";
        /// Penalty on repeated tokens; 1: off
        repeat_penalty: f32 = None, "N";
        /// Penalty on tokens that occurred
        presence_penalty: f32 = None, "N";
        /// Penalty on tokens by how often they occurred
        frequency_penalty: f32 = None, "N";
        /// Strength of DRY; 0: off
        dry_multiplier: f32 = None, "N";
        /// Base of DRY
        dry_base: f32 = None, "N";
        /// Repetitions up to this length are free of DRY
        dry_allowed_length: i32 = None, "N";
        /// Tokens DRY looks back; -1: the context
        dry_penalty_last_n: i32 = None, "N";
        /// Mirostat; 0: off
        mirostat: Mirostat = None, "0|1|2";
        /// Learning rate of Mirostat
        mirostat_lr: f32 = None, "N";
        /// Target entropy of Mirostat
        mirostat_ent: f32 = None, "N";
        /// Seed; without one every request gets a new one
        seed('s'): i64 = None, "N";
        /// Order of the samplers
        samplers: Vec<SamplerKind> = None, "NAMES";
        /// Never end an answer by itself
        ignore_eos: Switch = None, "BOOL";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_can_be_read() {
        let raw = Raw::default();
        for (setting, value, origin) in raw.shown() {
            assert_eq!(value.is_some(), setting.default.is_some(), "default of {}", setting.key);
            assert_eq!(*origin, Origin::Default);
        }
    }

    #[test]
    fn keys_and_shorts_are_unique_and_every_setting_says_what_it_does() {
        for (i, setting) in SETTINGS.iter().enumerate() {
            assert!(setting.help.len() > 8, "{}", setting.key);
            for other in &SETTINGS[..i] {
                assert_ne!(setting.key, other.key);
                assert!(setting.short.is_none() || setting.short != other.short, "-{:?}", setting.short);
            }
        }
    }
}
