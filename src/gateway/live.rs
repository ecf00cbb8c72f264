//! What of a running gateway can be changed without a restart, and the change.

use super::models::ModelConfig;
use super::names::Names;
use super::{Error, Gateway, GatewayConfig, Principal};
use std::sync::Arc;

/// One snapshot of it. Requests that run keep what they began with.
pub(super) struct Live {
    pub config: Arc<GatewayConfig>,
    pub names: Names,
}

impl Live {
    pub fn new<'a>(config: GatewayConfig, models: impl Iterator<Item = &'a ModelConfig> + Clone) -> Self {
        let names = Names::new(models.map(|model| (model.id.as_str(), model.aliases.as_slice())));
        Self { config: Arc::new(config), names }
    }
}

impl Gateway {
    /// A model that `principal` may not use is as unknown to it as one that isn't there.
    pub(super) fn find(&self, principal: &Principal, name: Option<&str>) -> Result<usize, Error> {
        let (name, live) = (name.unwrap_or_default(), self.live.load());
        let found = live.names.find(name).or(live.config.any_model.then_some(0));
        let may_use = |idx: &usize| principal.may_use(&self.models.shared.entries[*idx].config().id, name);
        found.filter(may_use).ok_or_else(|| Error::unknown_model(name))
    }

    /// The settings of this moment.
    pub fn config(&self) -> Arc<GatewayConfig> {
        Arc::clone(&self.live.load().config)
    }

    /// Takes other settings for the requests from now on: keys, names and aliases, strictness, sampling defaults. What an
    /// engine, a fetcher, an upstream, the cache or a store was made with stays as it is.
    ///
    /// `models`: as many as there are, in the same order; of each, what has no part in its loading is taken.
    pub fn reload(&self, config: GatewayConfig, models: Vec<ModelConfig>) {
        let entries = &self.models.shared.entries;
        assert_eq!(models.len(), entries.len(), "a reload can't change how many models there are; this is a bug");
        let models: Vec<ModelConfig> =
            entries.iter().zip(models).map(|(entry, new)| new.over(&entry.config())).collect();
        let live = Live::new(config, models.iter());
        for (entry, model) in entries.iter().zip(models) {
            entry.set_config(model);
        }
        self.live.store(Arc::new(live));
    }
}

impl ModelConfig {
    /// This one, with what belongs to the model as it is loaded taken from `loaded`.
    fn over(self, loaded: &ModelConfig) -> ModelConfig {
        ModelConfig {
            id: self.id,
            aliases: self.aliases,
            sampling: self.sampling,
            n_predict: self.n_predict,
            thinks: self.thinks,
            price: self.price,
            ..loaded.clone()
        }
    }
}
