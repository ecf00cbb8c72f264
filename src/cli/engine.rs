//! `hearth engine`: the engine's own process. It is started by `serve` and speaks frames on stdin and stdout.

use crate::config::Raw;
use crate::telemetry::{self, LogConfig, LogFormat};
use clap::Args;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(super) struct EngineProcess {
    /// As of the process that starts this one
    #[arg(long)]
    log_level: Option<String>,
    #[arg(long)]
    log_format: Option<String>,
}

/// The flags that make an engine's process log as this one does.
pub(super) fn log_args(log: &LogConfig) -> Vec<String> {
    let format = match log.format {
        LogFormat::Auto => "auto",
        LogFormat::Human => "human",
        LogFormat::Json => "json",
    };
    ["--log-level", &log.level, "--log-format", format].map(str::to_owned).to_vec()
}

impl EngineProcess {
    pub fn run(self) -> ExitCode {
        super::harden::keep_memory_private();
        let given = [("log_level", self.log_level), ("log_format", self.log_format)];
        let variable = |name: &str| {
            let flag = given.iter().find(|(key, _)| name == format!("HEARTH_{}", key.to_uppercase()));
            flag.and_then(|(_, value)| value.clone()).or_else(|| std::env::var(name).ok())
        };
        let mut log = Raw::from_variables(variable).map(|raw| raw.log()).unwrap_or_default();
        // The file is the front's alone.
        log.file = None;
        if let Err(error) = telemetry::logging::init(&log) {
            eprintln!("hearth engine: {error}");
        }
        crate::engine::run_child()
    }
}
