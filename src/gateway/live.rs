//! What of a running gateway can be changed without a restart, and the change.

use super::guardrails::Border;
use super::models::ModelConfig;
use super::names::Names;
use super::route::{Route, Routes};
use super::upstream::Upstream;
use super::{Caller, Error, Gateway, GatewayConfig, Guardrails, Principal};
use crate::telemetry::Metrics;
use std::sync::Arc;

/// One snapshot of it. Requests that run keep what they began with.
pub(super) struct Live {
    pub config: Arc<GatewayConfig>,
    pub names: Names,
    pub routes: Routes,
    pub upstreams: Vec<Arc<Upstream>>,
}

impl Live {
    /// Upstreams of `before` that are as they were go on as they are: with their breakers, connections and places.
    pub fn new<'a>(
        config: GatewayConfig,
        models: impl Iterator<Item = &'a ModelConfig> + Clone,
        before: Option<&Live>,
        metrics: &Metrics,
    ) -> Self {
        let names = Names::new(models.clone().map(|model| (model.id.as_str(), model.aliases.as_slice())));
        let ids: Vec<&str> = models.map(|model| model.id.as_str()).collect();
        let routes = Routes::new(&config.routing, &ids);
        let known = before.map_or(&[][..], |before| before.upstreams.as_slice());
        let may_leave = config.routing.may_leave;
        let was_watched = before.is_some_and(|before| before.config.routing.may_leave);
        let upstreams = config.routing.upstreams.iter().map(|config| {
            // One that nothing may be sent to is not asked how it is, either; nor one that was, and must not any more.
            let same = known.iter().find(|upstream| upstream.config == *config).filter(|_| was_watched == may_leave);
            if let Some(same) = same {
                return Arc::clone(same);
            }
            let upstream = Upstream::new(config.clone(), metrics.upstream(&config.name));
            if may_leave {
                upstream.watch();
            }
            upstream
        });
        let upstreams = upstreams.collect();
        config.guardrails.count_in(metrics);
        Self { config: Arc::new(config), names, routes, upstreams }
    }

    /// The route that a name means; `None`: it is a model's, or nobody's.
    pub fn route(&self, name: Option<&str>) -> Option<&Route> {
        let name = name?;
        let route = self.routes.find(name)?;
        (route.weight() >= self.names.weight(name)).then_some(route)
    }

    /// What the operator's rules ask of a request of `caller` at a target: those of the alias that it came by, of the target,
    /// the team and the key.
    pub fn border(&self, caller: &Caller, alias: &[String], target: &[String]) -> Result<Border, Error> {
        let key = caller.principal.key();
        let team = key.and_then(|key| key.team.as_ref()).map_or(&[][..], |team| team.spec.guardrails.as_slice());
        let own = key.map_or(&[][..], |key| key.spec.guardrails.as_slice());
        self.config.guardrails.border(alias.iter().chain(target).chain(team).chain(own), |name| self.names.find(name))
    }
}

impl Gateway {
    /// A model that `principal` may not use is as unknown to it as one that isn't there.
    pub(super) fn find(&self, principal: &Principal, name: Option<&str>) -> Result<usize, Error> {
        self.find_in(&self.live.load(), principal, name)
    }

    pub(super) fn find_in(&self, live: &Live, principal: &Principal, name: Option<&str>) -> Result<usize, Error> {
        let name = name.unwrap_or_default();
        let found = live.names.find(name).or(live.config.any_model.then_some(0));
        let may_use = |idx: &usize| principal.may_use(&self.models.shared.entries[*idx].config().id, name);
        found.filter(may_use).ok_or_else(|| Error::unknown_model(name))
    }

    /// The settings of this moment.
    pub fn config(&self) -> Arc<GatewayConfig> {
        Arc::clone(&self.live.load().config)
    }

    /// Whether there is a set of rules of this name.
    pub fn has_guardrail(&self, name: &str) -> bool {
        self.config().guardrails.has(name)
    }

    /// Refuses rules whose classifiers lack a label, as far as it is known of the models. Errors: for the operator.
    pub fn refuse_unknown_labels(&self, guardrails: &Guardrails) -> Result<(), String> {
        let live = self.live.load();
        guardrails.refuse_unknown_labels(|name| {
            let idx = live.names.find(name);
            let description = idx.and_then(|idx| {
                let known = self.models.known(idx).map(|known| known.description);
                known.or_else(|| self.models.shared.entries[idx].config().outline.clone())
            });
            description.map(|description| description.labels.clone()).unwrap_or_default()
        })
    }

    /// Takes other settings for the requests from now on: keys, names, aliases and routes, upstreams, limits, rules, prices,
    /// strictness, sampling defaults. What an engine, a fetcher, the cache or a store was made with stays as it is.
    ///
    /// `models`: as many as there are, in the same order; of each, what has no part in its loading is taken.
    pub fn reload(&self, config: GatewayConfig, models: Vec<ModelConfig>) {
        let entries = &self.models.shared.entries;
        assert_eq!(models.len(), entries.len(), "a reload can't change how many models there are; this is a bug");
        let models: Vec<ModelConfig> =
            entries.iter().zip(models).map(|(entry, new)| new.over(&entry.config())).collect();
        let live = Live::new(config, models.iter(), Some(&self.live.load()), &self.metrics);
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
            guardrails: self.guardrails,
            ..loaded.clone()
        }
    }
}
