//! Log lines on stderr: for eyes on a terminal, JSON for everything else.

use std::io::IsTerminal;
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Human on a terminal, JSON otherwise.
    #[default]
    Auto,
    Human,
    Json,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A level (`info`) or `tracing` directives (`info,hearth::http=debug`).
    pub level: String,
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Auto }
    }
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("log level {level:?} is not a level or a list of directives: {cause}")]
    Level { level: String, cause: ParseError },
    #[error("a logger is already installed: {0}")]
    Installed(#[from] TryInitError),
}

/// Installs the process's logger. Standard output stays free for what a command prints.
pub fn init(config: &LogConfig) -> Result<(), LogError> {
    let filter =
        EnvFilter::try_new(&config.level).map_err(|cause| LogError::Level { level: config.level.clone(), cause })?;
    let human = match config.format {
        LogFormat::Auto => std::io::stderr().is_terminal(),
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if human {
        lines.with_ansi(std::io::stderr().is_terminal()).finish().try_init()?;
    } else {
        lines.json().flatten_event(true).with_ansi(false).finish().try_init()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_is_none_is_refused_by_its_text() {
        let config = LogConfig { level: "hearth=loudest".to_owned(), format: LogFormat::Json };
        let message = init(&config).unwrap_err().to_string();
        assert!(message.contains("hearth=loudest"), "{message}");
    }
}
