//! Every request that generates, whoever answers it: the cache, a model here, or, by way of [`super::walk`], another.

use super::admission::cut_to_what_is_left;
use super::asked::Asked;
use super::cache::{self, CacheResult, CacheScope, Entered, Entry, Key, Recorder, Tenant};
use super::guardrails::Border;
use super::limits::{Permit, Spend};
use super::meter::Meter;
use super::models::Known;
use super::route::Hop;
use super::running::{Keep, Noted, Started};
use super::settle::{settle, settle_chat};
use super::tenants::owner;
use super::trace::UsageSource;
use super::upstream::Class;
use super::walk::{Missed, Way, With};
use super::work::{self, Work};
use super::{Caller, Error, Gateway, Running, Target};
use crate::chat::{self, CacheAsk, ChatRequest, CompletionRequest, Prompt};
use crate::engine::{Failure, choose_adapters};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

impl Gateway {
    /// Starts a chat; returns when it is certain to run here, or when an upstream has begun to answer.
    pub async fn chat(self: &Arc<Self>, caller: &Caller, request: ChatRequest) -> Result<Running, Error> {
        // Boxed: what all targets need together is large, and every handler would carry it.
        Box::pin(self.answer(caller, Asked::Chat(request))).await
    }

    /// Starts a text completion, as [`Gateway::chat`]. Choice `p × n + i` is the `i`-th of prompt `p`.
    pub async fn complete(self: &Arc<Self>, caller: &Caller, request: CompletionRequest) -> Result<Running, Error> {
        Box::pin(self.answer(caller, Asked::Text(request))).await
    }

    async fn answer(self: &Arc<Self>, caller: &Caller, asked: Asked) -> Result<Running, Error> {
        caller.trace.asked_for(asked.numbers());
        // One snapshot for all of it: a reload changes nothing for what has begun.
        let live = self.live.load_full();
        let Some(route) = live.route(asked.model()) else {
            let idx = self.find_in(&live, &caller.principal, asked.model())?;
            let permit =
                self.admit(caller, Some(idx), &self.models.shared.entries[idx].config().id, asked.end_user()).await?;
            let wants_logprobs = asked.output().top_logprobs.is_some();
            let with = With { caller, permit: &permit, live: &live, alias: &[], wants_logprobs, is_last: true };
            return self.at_home(with, asked, idx).await.map_err(Missed::into_error);
        };
        if !route.is_open_to(&caller.principal, asked.model().unwrap_or_default()) {
            return Err(Error::unknown_model(asked.model().unwrap_or_default()));
        }
        let chain =
            live.routes.chain(route, asked.prompt_bytes(), caller, |equals| self.balance(&live, equals, caller));
        if chain.is_empty() {
            return Err(Error::Stays);
        }
        let home = chain.iter().find_map(|hop| match hop {
            Hop::Home(idx) => Some(*idx),
            Hop::Away(_) => None,
        });
        let permit = self.admit(caller, home, &route.config.name, asked.end_user()).await?;
        let route = Arc::clone(&route.config);
        let way = Way::new((Arc::clone(self), live), caller.clone(), permit, asked, route, chain);
        Arc::new(way).walk(0).await
    }

    /// A model of our own.
    pub(super) async fn at_home(&self, with: With<'_>, asked: Asked, idx: usize) -> Result<Running, Missed> {
        let started = self.start_at_home(with, asked, idx).await;
        started.map_err(Missed::of)
    }

    async fn start_at_home(&self, with: With<'_>, asked: Asked, idx: usize) -> Result<Running, Error> {
        let With { caller, permit, live, alias, wants_logprobs, is_last } = with;
        let config = self.models.shared.entries[idx].config();
        caller.of_model(asked.model(), &config.id, config.price);
        let border = live.border(caller, alias, &config.guardrails)?;
        let asked = self.enter_border(caller, &border, asked, wants_logprobs).await?;
        let class = self.share_of(caller).0.or(asked.class());
        if self.cache.is_none() {
            let target = self.opened(idx, class).await?;
            let work = self.work(permit, asked, &target.known()).await?;
            self.capture(caller, || work.prompts.clone()).await?;
            return self.start((caller, permit, &border), work, target, None, is_last).await;
        }
        // What was last known of the model is enough to find an answer, even while its engine is down.
        let (known, target) = match self.models.known(idx) {
            Some(known) => (known, None),
            None => {
                let target = self.opened(idx, class).await?;
                (target.known(), Some(target))
            }
        };
        let ask = caller.hints.cache_over(asked.cache());
        let work = self.work(permit, asked.clone(), &known).await?;
        let is_steady = work.sampling.temperature <= 0.0 || work.sampling.seed != u32::MAX;
        let key = |tenant: &Tenant| {
            let identity = cache::identity(&known.config, &known.description, &known.adapter_scales);
            cache::local(tenant, &known.config.id, identity, &work)
        };
        self.capture(caller, || work.prompts.clone()).await?;
        let mut recorder = match self.enter((caller, &border), &ask, is_steady, key).await {
            Entered::Hit(entry) => return Ok(self.replay(caller, permit, entry, work.keep())),
            Entered::Miss(recorder) => recorder,
        };
        let target = match target {
            Some(target) => target,
            None => self.opened(idx, class).await?,
        };
        let now = target.known();
        if now == known {
            return self.start((caller, permit, &border), work, target, recorder, is_last).await;
        }
        // It was loaded anew, from another file or with other adapters: the key is of one that is gone.
        recorder.take();
        let work = self.work(permit, asked, &now).await?;
        self.start((caller, permit, &border), work, target, recorder, is_last).await
    }

    /// What is asked, settled for one model.
    async fn work(&self, permit: &Permit, asked: Asked, known: &Known) -> Result<Work, Error> {
        let Known { config, description, adapter_scales } = known;
        if !description.generates {
            return Err(Failure::invalid("model", "unsupported_operation", "This model can't generate text.").into());
        }
        let mut work = match asked {
            Asked::Chat(request) => {
                // Named one by one: what is asked is never lost on the way.
                let ChatRequest {
                    model: _,
                    mut prompt,
                    sampling,
                    output,
                    n,
                    stream: _,
                    include_usage: _,
                    cache_prompt,
                    lora,
                    end_user: _,
                    cache: _,
                    class,
                } = request;
                self.admit_media(&mut prompt, n, description).await?;
                settle_chat(&mut prompt, config);
                let sampling = settle(sampling, config, description);
                let prompts = vec![Prompt::Chat(prompt)];
                Work { sampling, prompts, output, is_length_said: false, n, n_kept: n, cache_prompt, lora, class }
            }
            Asked::Text(request) => {
                let CompletionRequest {
                    model: _,
                    prompts,
                    sampling,
                    mut output,
                    n,
                    best_of,
                    stream: _,
                    include_usage: _,
                    cache_prompt,
                    lora,
                    end_user: _,
                    cache: _,
                } = request;
                if best_of > n {
                    // What the choices are ranked by.
                    output.top_logprobs = output.top_logprobs.or(Some(0));
                }
                let sampling = settle(sampling, config, description);
                let (n, n_kept) = (best_of.max(n), n);
                let class = chat::Class::default();
                Work { sampling, prompts, output, is_length_said: false, n, n_kept, cache_prompt, lora, class }
            }
        };
        if work.lora.is_some() || !description.adapters.is_empty() {
            work.lora = Some(choose_adapters(adapter_scales, work.lora.as_deref())?);
        }
        work.is_length_said = work.output.max_tokens.is_some();
        work.output.max_tokens = Self::length(permit, work.output.max_tokens.or(config.n_predict));
        Ok(work)
    }

    async fn start(
        &self,
        (caller, permit, border): (&Caller, &Permit, &Border),
        mut work: Work,
        target: Target,
        mut recorder: Option<Recorder>,
        is_last: bool,
    ) -> Result<Running, Error> {
        border.expect(&self.judge).await?;
        let n_choices = work.n_choices();
        work::refuse_more_than_fits(n_choices, &work, &target.engine)?;
        let (class, owner) = self.share_of(caller);
        let share = (class.or(work.class), owner);
        let which = is_last.then(|| work.mark());
        if let Err(failure) = target.engine.refuse_long_wait(share.1, which, caller.hints.patience) {
            caller.trace.attempt(target.id(), false, target.config.price).failed(Class::Throttled, None);
            return Err(failure.into());
        }
        if cut_to_what_is_left(caller, &mut work, &target, permit).await? {
            // Another request's answer may be longer.
            recorder.take();
        }
        let slot = caller.trace.attempt(target.id(), false, target.config.price);
        let mut meter = Meter::new(self.metrics.model(target.id()), caller, work.n as usize, n_choices);
        let (keep, output) = (work.keep(), work.output.clone());
        let reserve = |most: Spend| self.reserve(permit, target.id(), most);
        let started = match work.output.max_tokens {
            Some(0) if !work.output.echo => work::count_only(caller, work, &target, reserve).await,
            _ => work::generate(caller, share, is_last, work, &target, reserve).await,
        };
        if let Err(Error::Engine(failure)) = &started {
            self.count_shed(failure, share.0);
        }
        let (choices, accepted, reserved) = started.inspect_err(|error| slot.failed(class_of(error), None))?;
        let held = note(caller).await?;
        meter.hold(reserved, target.config.price);
        caller.trace.served_by("local", &[]);
        let fingerprint = work::fingerprint(&target);
        let model = target.id().to_owned();
        let started = Started { choices, accepted, keep, model, fingerprint, pin: Some(target.into_pin()) };
        let judge = (&self.judge, caller.principal.partition());
        Ok(Running::new(started, meter, recorder, Some(slot), held).screened(border, &output, judge))
    }

    /// A request as the operator's rules let it in: looked at by lists, then by classifiers.
    pub(super) async fn enter_border(
        &self,
        caller: &Caller,
        border: &Border,
        asked: Asked,
        wants_logprobs: bool,
    ) -> Result<Asked, Error> {
        let asked = border.enter(asked, wants_logprobs)?;
        let tenant = caller.principal.partition();
        border.judge(&self.judge, (tenant, None), || border.texts(&asked)).await?;
        Ok(asked)
    }

    /// An answer that is there already.
    pub(super) fn replay(&self, caller: &Caller, permit: &Permit, entry: Arc<Entry>, keep: Keep) -> Running {
        // It counts as a request; its tokens were counted when they were made.
        permit.keep();
        let n_choices = entry.accepted.len();
        let series = self.metrics.model(&entry.model);
        let meter = Meter::new(series, caller, keep.of, n_choices).from(UsageSource::Cache);
        caller.trace.served_by("cache", &[]);
        if let Some(entry) = &caller.entry {
            entry.of_cache();
        }
        // Nothing runs that a crash could leave uncounted.
        let held = (Noted::Yes, caller.principal.cut());
        Running::new(Started::again(entry, keep), meter, None, None, held)
    }

    /// Looks into the cache, if there is one and the request may use it.
    pub(super) async fn enter(
        &self,
        (caller, border): (&Caller, &Border),
        ask: &CacheAsk,
        is_steady: bool,
        key: impl FnOnce(&Tenant) -> Key,
    ) -> Entered {
        let Some(cache) = &self.cache else { return Entered::Miss(None) };
        let config = cache.config();
        let entered = if is_steady || !config.deterministic_only {
            let team = caller.principal.team().filter(|_| config.scope == CacheScope::Team);
            let owner = owner(config.scope, &caller.principal);
            let partition = if team.is_some() { 0 } else { caller.principal.partition() };
            let namespace = ask.namespace.as_deref();
            let tenant = Tenant { owner, partition, team, namespace, border: border.digest() };
            cache.enter(key(&tenant), ask).await
        } else {
            Entered::Miss(None)
        };
        let result = match &entered {
            Entered::Hit(_) => CacheResult::Hit,
            Entered::Miss(Some(_)) if !ask.no_cache => CacheResult::Miss,
            Entered::Miss(_) => CacheResult::Bypass,
        };
        caller.trace.cache(result);
        self.metrics.cache_request(result.as_str());
        entered
    }
}

/// Notes on disk that the request runs, where rows are kept: once, however many targets are asked.
pub(super) async fn note(caller: &Caller) -> Result<(Noted, CancellationToken), Error> {
    let noted = match &caller.entry {
        Some(entry) if !entry.is_running() => Noted::Waiting(entry.open().await?),
        _ => Noted::Yes,
    };
    Ok((noted, caller.principal.cut()))
}

/// What an error of an engine here would be called of an upstream.
fn class_of(error: &Error) -> Class {
    match error {
        Error::Engine(Failure::Overloaded { .. } | Failure::Shed { .. }) => Class::Throttled,
        Error::Engine(
            Failure::NotReady { .. } | Failure::Crashed { .. } | Failure::Internal(_) | Failure::ShuttingDown,
        ) => Class::Transient,
        Error::Engine(Failure::Cancelled) => Class::Cancelled,
        _ => Class::ClientFault,
    }
}
