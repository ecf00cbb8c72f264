//! Log lines on stderr, or in a file: for eyes on a terminal, JSON for everything else.

use super::log_file::{LogFile, LogFileConfig};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::OnceLock;
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
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
    /// Instead of stderr.
    pub file: Option<LogFileConfig>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Auto, file: None }
    }
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("log level {level:?} is not a level or a list of directives: {cause}")]
    Level { level: String, cause: ParseError },
    #[error("the log {}: {cause}", path.display())]
    File { path: PathBuf, cause: std::io::Error },
    #[error("a logger is already installed: {0}")]
    Installed(#[from] TryInitError),
    #[error("the logger is gone: {0}")]
    Gone(#[from] tracing_subscriber::reload::Error),
}

/// Sets another filter on the logger of this process.
type Refilter = Box<dyn Fn(EnvFilter) -> Result<(), tracing_subscriber::reload::Error> + Send + Sync>;
static REFILTER: OnceLock<Refilter> = OnceLock::new();

/// Installs the process's logger. Standard output stays free for what a command prints.
pub fn init(config: &LogConfig) -> Result<(), LogError> {
    let filter = filter(config)?;
    let human = match config.format {
        LogFormat::Auto => config.file.is_none() && std::io::stderr().is_terminal(),
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let writer = match &config.file {
        None => BoxMakeWriter::new(std::io::stderr),
        Some(file) => {
            let opened = LogFile::open(file.clone());
            BoxMakeWriter::new(opened.map_err(|cause| LogError::File { path: file.path.clone(), cause })?)
        }
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let refilter: Refilter = if human {
        let lines = lines.with_ansi(config.file.is_none() && std::io::stderr().is_terminal()).with_filter_reloading();
        let handle = lines.reload_handle();
        lines.finish().try_init()?;
        Box::new(move |filter| handle.reload(filter))
    } else {
        let lines = lines.json().flatten_event(true).with_ansi(false).with_filter_reloading();
        let handle = lines.reload_handle();
        lines.finish().try_init()?;
        Box::new(move |filter| handle.reload(filter))
    };
    // The logger was installed just now, for the first time.
    let _ = REFILTER.set(refilter);
    Ok(())
}

/// Whether [`set_level`] would take it.
pub fn check(config: &LogConfig) -> Result<(), LogError> {
    filter(config).map(|_| ())
}

/// Another level for the logger that is installed; its format stays.
pub fn set_level(config: &LogConfig) -> Result<(), LogError> {
    let filter = filter(config)?;
    match REFILTER.get() {
        Some(refilter) => Ok(refilter(filter)?),
        None => Ok(()),
    }
}

fn filter(config: &LogConfig) -> Result<EnvFilter, LogError> {
    // What libraries say at these levels is bytes and headers of others' requests: they are heard only by name.
    let directives = match config.level.trim() {
        level if ["debug", "trace"].iter().any(|it| it.eq_ignore_ascii_case(level)) => {
            format!("info,hearth={level},llama={level}")
        }
        other => other.to_owned(),
    };
    EnvFilter::try_new(directives).map_err(|cause| LogError::Level { level: config.level.clone(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_is_none_is_refused_by_its_text() {
        let config = LogConfig { level: "hearth=loudest".to_owned(), format: LogFormat::Json, file: None };
        let message = init(&config).unwrap_err().to_string();
        assert!(message.contains("hearth=loudest"), "{message}");
    }
}
