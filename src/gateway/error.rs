//! How the gateway says no.

use crate::chat::check::Refusal;
use crate::engine::Failure;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No key, or none that opens this API.
    #[error("no valid API key was given")]
    Unauthorized,
    /// A right key that may not be used so; the text says how.
    #[error("{0}")]
    Forbidden(&'static str),
    /// `name` is as the client wrote it, cut to a readable length.
    #[error("the model `{name}` does not exist")]
    UnknownModel { name: String },
    /// The request's row can't be written now, so it is not answered.
    #[error("the ledger can't be written")]
    LedgerUnavailable,
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error("{0}")]
    Engine(#[from] Failure),
}

impl Error {
    pub(super) fn unknown_model(name: &str) -> Self {
        Error::UnknownModel { name: name.chars().take(128).collect() }
    }
}
