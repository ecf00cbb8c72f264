//! How the gateway says no.

use super::limits::LimitRefusal;
use super::upstream::Class;
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
    /// A limit or a budget was reached by a request for this model.
    #[error("a limit of requests for `{model}` was reached: {refusal:?}")]
    Limited { refusal: LimitRefusal, model: String },
    /// The request's row can't be written now, so it is not answered.
    #[error("the ledger can't be written")]
    LedgerUnavailable,
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error("{0}")]
    Engine(#[from] Failure),
    /// A set of the operator's rules is named for this request and is not there, so nothing may pass.
    #[error("a guardrail that is named is not configured")]
    Unguarded,
    /// A classifier of the operator's rules can't answer now, so nothing may pass.
    #[error("a guardrail's classifier can't answer")]
    Unseen { retry_after_s: u32 },
    /// Only other servers could answer, and the request may not leave this one.
    #[error("this request may not leave this server")]
    Stays,
    /// All upstreams that were asked failed; this is the last one's end. `is_late`: the request's own time was up.
    #[error("the upstream failed ({})", class.as_str())]
    Upstream { class: Class, status: Option<u16>, retry_after_s: Option<u32>, is_late: bool },
}

impl Error {
    pub(super) fn unknown_model(name: &str) -> Self {
        Error::UnknownModel { name: name.chars().take(128).collect() }
    }
}
