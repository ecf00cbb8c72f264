//! The settings of one server: gathered from flags, variables, `hearth.toml` and defaults, then checked as a whole.
//!
//! **Invariant:** a [`Config`] exists only if every value in it may be used as it is; nothing to the right of this room
//! reads a flag, a variable or the file. Secrets appear in no error, print or log.
//!
//! # Design
//! Each room defines its own config struct; this room composes them. [`Raw`] is what was written, with where it was
//! written, so that every refusal can name the flag, variable or line at fault; every setting is declared once, in
//! `settings.rs`, and its flag, variable, key, help text and default follow from that line. Relative paths in the file
//! are relative to the working directory, as on the command line. A reload gathers and checks all of it again;
//! `reload.rs` lists the settings that a running server takes, and a change of any other is refused by name.

mod granted;
mod guardrails;
mod limits;
mod masked;
mod money;
mod names;
mod prefixes;
mod raw;
mod reload;
mod resolve;
mod server;
mod settings;
mod tables;
mod telemetry;
mod upstreams;
mod value;

pub use guardrails::guardrail_lines;
pub use limits::limit_lines;
pub use raw::{ConfigError, Origin, Said, Setting, misspelt};
pub use settings::{Raw, SETTINGS};
pub use tables::GrantTable;
pub use telemetry::OtlpSetup;

use crate::engine::EngineConfig;
use crate::gateway::{BooksConfig, GatewayConfig, LoadLimits, MemoryWatch, ModelConfig};
use crate::http::HttpConfig;
use crate::telemetry::LogConfig;
use crate::telemetry::metrics::MetricsConfig;
use std::net::SocketAddr;

/// Everything a server needs to know, one struct per room.
#[derive(Debug, Clone)]
pub struct Config {
    pub http: HttpConfig,
    pub gateway: GatewayConfig,
    /// At least one; the first is meant by no name.
    pub models: Vec<ServedModel>,
    pub limits: LoadLimits,
    /// Looks at the memory while the server runs; `None`: nobody does.
    pub memory: Option<MemoryWatch>,
    /// Keys, ledger and audit; `None`: none of them.
    pub books: Option<BooksConfig>,
    /// An address of the admin API, beside its socket.
    pub admin_listen: Option<SocketAddr>,
    /// Whether the admin API has its page.
    pub admin_ui: bool,
    pub log: LogConfig,
    pub metrics: MetricsConfig,
    /// Where traces go; `None`: nowhere.
    pub otlp: Option<OtlpSetup>,
    /// Run the engine on threads of this process instead of a child.
    pub in_process: bool,
    /// What is allowed but looks like a mistake; for the log.
    pub warnings: Vec<String>,
}

/// One model and how it is served.
#[derive(Debug, Clone)]
pub struct ServedModel {
    pub config: ModelConfig,
    pub engine: EngineConfig,
    /// `--ctx-size 0`: take the context the model was trained with, whatever memory that needs.
    pub ctx_from_model: bool,
    /// `--ubatch-size` was given.
    pub says_ubatch: bool,
    /// An element type of the KV cache was given.
    pub says_cache: bool,
}

impl Config {
    /// The one model of a command that takes no more.
    pub fn into_first(mut self) -> ServedModel {
        self.models.swap_remove(0)
    }
}

#[cfg(test)]
mod fuzz_tests;
