//! How an engine says no.

use serde::{Deserialize, Serialize};

/// Why a request ended without its result. Texts never hold prompts, answers or keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// The request asks for something this model or engine can't do. `field` names the part of the request in engine
    /// terms (`prompt`, `messages`, `logit_bias`, …); `code` is the contract's word for it.
    #[error("{message}")]
    Invalid { field: String, code: String, message: String },
    /// The prompt leaves no room for an answer.
    #[error("the prompt has {n_prompt} tokens and the context holds {n_ctx}")]
    ContextExceeded {
        /// Counted tokens; a lower bound when `at_least`.
        n_prompt: u64,
        n_ctx: u32,
        /// The text was too long to be worth counting exactly.
        at_least: bool,
    },
    /// The queue is full. `retry_after_s`: when a place is likely to be free.
    #[error("all {n_places} places are taken")]
    Overloaded { n_places: u32, retry_after_s: u32 },
    /// Memory is short, so nothing new is begun.
    #[error("the server is short of memory")]
    Shed { retry_after_s: u32 },
    /// No model is ready: loading or restarting after a crash.
    #[error("{reason}")]
    NotReady { reason: String, retry_after_s: u32 },
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The engine died under this request.
    #[error("the engine stopped while it worked on this request ({reason})")]
    Crashed { reason: String },
    /// This same request was in flight at two crashes.
    #[error("this request was being worked on at {crashes} engine crashes and is refused for {remaining_s} s")]
    Quarantined { crashes: u32, remaining_s: u64 },
    /// Dropped by its owner; nobody is left to read this.
    #[error("cancelled")]
    Cancelled,
    /// A llama.cpp call failed in a way the request is not to blame for.
    #[error("{0}")]
    Internal(String),
    /// Another server that answered this request broke off. No engine says this: the gateway does, of a request that it
    /// had handed on. `class`: how it failed; `is_late`: the request's own time was up.
    #[error("the server that answered this request failed ({class})")]
    Upstream { class: String, is_late: bool },
}

impl Failure {
    /// Nobody knows when there will be memory again. Not all who are told come back at once.
    pub fn shed() -> Self {
        Failure::Shed { retry_after_s: rand::random_range(8..=12) }
    }

    pub fn invalid(field: &str, code: &str, message: impl Into<String>) -> Self {
        Failure::Invalid { field: field.to_owned(), code: code.to_owned(), message: message.into() }
    }
}
