//! Models that an administrator loads and unloads, by the names of the configuration.

use super::{Error, Gateway};
use crate::chat::Class;

/// What became of a wish to unload a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unloading {
    /// Its memory is free, until a request asks for it again.
    Done,
    /// Requests are at work with it.
    Busy,
}

impl Gateway {
    /// Loads a model and returns when it can answer. Errors: `UnknownModel` for what is no id of a model, and those of
    /// [`Gateway::target`].
    pub async fn load_model(&self, id: &str) -> Result<(), Error> {
        let idx = self.by_id(id)?;
        self.opened(idx, Class::default()).await.map(|_| ())
    }

    /// Ends a model's engine.
    pub async fn unload_model(&self, id: &str) -> Result<Unloading, Error> {
        let idx = self.by_id(id)?;
        Ok(if self.models.unload(idx).await { Unloading::Done } else { Unloading::Busy })
    }

    fn by_id(&self, id: &str) -> Result<usize, Error> {
        let mut entries = self.models.shared.entries.iter();
        entries.position(|entry| entry.config().id.eq_ignore_ascii_case(id)).ok_or_else(|| Error::unknown_model(id))
    }
}
