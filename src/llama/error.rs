//! What can go wrong on the other side.

use super::{log, sys};

/// An error of llama.cpp, with the text it gave and what it logged just before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The arguments are to blame; nothing changed.
    #[error("{0}")]
    Invalid(String),
    /// A C++ exception.
    #[error("{0}")]
    Exception(String),
    /// An assertion failed: the object must be thrown away.
    #[error("llama.cpp's assertion failed: {0}")]
    Assertion(String),
}

impl Error {
    /// A shim's status as a result. llama.cpp says the reasons for many failures in its log only, so the last error
    /// lines of this thread are added.
    pub(super) fn from_status(status: i32, message: String) -> Result<(), Error> {
        if status == sys::HEARTH_OK.cast_signed() {
            return Ok(());
        }
        let logged = log::take_errors();
        let message = if logged.is_empty() { message } else { format!("{message}: {logged}") };
        Err(match status {
            sys::HEARTH_INVALID => Error::Invalid(message),
            sys::HEARTH_ASSERT => Error::Assertion(message),
            _ => Error::Exception(message),
        })
    }
}
