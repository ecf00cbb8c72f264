//! Every request that generates, whoever answers it: the cache, a model here, or, where that can't and it is allowed, an
//! upstream.

use super::admission::cut_to_what_is_left;
use super::asked::Asked;
use super::cache::{self, CacheResult, CacheScope, Entered, Entry, Key, Recorder, Tenant};
use super::guardrails::Border;
use super::limits::{LimitKind, Permit, Spend};
use super::live::Live;
use super::meter::{Meter, word};
use super::models::Known;
use super::route::{Hop, Route};
use super::running::{Keep, Noted, Started};
use super::settle::{settle, settle_chat};
use super::trace::UsageSource;
use super::upstream::{Call, Class, Failed, Next, Situation, Upstream, next};
use super::work::{self, Work};
use super::{Caller, Error, Gateway, Running, Target};
use crate::chat::check::Refusal;
use crate::chat::{CacheAsk, ChatRequest, CompletionRequest, Prompt};
use crate::dialect::remote::Unsupported;
use crate::engine::{Event, Failure, choose_adapters};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What all tries for one request have in common.
#[derive(Clone, Copy)]
struct With<'a> {
    caller: &'a Caller,
    permit: &'a Permit,
    /// The settings that it began with.
    live: &'a Live,
    /// Sets of rules of the alias that it came by.
    alias: &'a [String],
    /// The client asked for them.
    wants_logprobs: bool,
}

/// Why a target gave no answer.
enum Missed {
    /// It has no word for this part of the request; it was not asked.
    Unfit(&'static str),
    /// Another target may do better.
    Failed(Error),
    /// No other target would.
    Final(Error),
}

impl Gateway {
    /// Starts a chat; returns when it is certain to run here, or when an upstream has begun to answer.
    pub async fn chat(&self, caller: &Caller, request: ChatRequest) -> Result<Running, Error> {
        // Boxed: what all targets need together is large, and every handler would carry it.
        Box::pin(self.answer(caller, Asked::Chat(request))).await
    }

    /// Starts a text completion, as [`Gateway::chat`]. Choice `p × n + i` is the `i`-th of prompt `p`.
    pub async fn complete(&self, caller: &Caller, request: CompletionRequest) -> Result<Running, Error> {
        Box::pin(self.answer(caller, Asked::Text(request))).await
    }

    async fn answer(&self, caller: &Caller, asked: Asked) -> Result<Running, Error> {
        caller.trace.asked_for(asked.numbers());
        // One snapshot for all of it: a reload changes nothing for what has begun.
        let live = self.live.load_full();
        let wants_logprobs = asked.output().top_logprobs.is_some();
        let Some(route) = live.route(asked.model()) else {
            let idx = self.find_in(&live, &caller.principal, asked.model())?;
            let permit =
                self.admit(caller, Some(idx), &self.models.shared.entries[idx].config().id, asked.end_user()).await?;
            let with = With { caller, permit: &permit, live: &live, alias: &[], wants_logprobs };
            return self.at_home(with, asked, idx).await.map_err(Missed::into_error);
        };
        if !route.is_open_to(&caller.principal, asked.model().unwrap_or_default()) {
            return Err(Error::unknown_model(asked.model().unwrap_or_default()));
        }
        let chain = live.routes.chain(route, asked.prompt_bytes(), caller);
        if chain.is_empty() {
            return Err(Error::Stays);
        }
        let home = chain.iter().find_map(|hop| match hop {
            Hop::Home(idx) => Some(*idx),
            Hop::Away(_) => None,
        });
        let permit = self.admit(caller, home, &route.config.name, asked.end_user()).await?;
        let with = With { caller, permit: &permit, live: &live, alias: &route.config.guardrails, wants_logprobs };
        let mut running = self.walk(with, asked, route, &chain).await?;
        if route.config.reports_alias {
            running.rename(&route.config.name);
        }
        Ok(running)
    }

    /// Asks one target after the other.
    async fn walk(&self, with: With<'_>, asked: Asked, route: &Route, chain: &[Hop]) -> Result<Running, Error> {
        let With { caller, live, .. } = with;
        let patience = caller.hints.patience.unwrap_or(Duration::MAX).min(longest_wait(live, chain));
        let deadline = Instant::now() + patience;
        let (mut last, mut doubted) = (None, None);
        for (i, hop) in chain.iter().enumerate() {
            let others = chain.len() - i - 1;
            let doubt = route.config.min_logprob.filter(|_| others > 0 && !asked.is_stream());
            let answer = match hop {
                Hop::Home(idx) => match doubt {
                    None => self.at_home(with, asked.clone(), *idx).await,
                    Some(least) => match self.at_home(with, asked.with_logprobs(), *idx).await {
                        Ok(running) => match weigh(running, &asked, least).await {
                            Ok(Weighed::Sure(running)) => Ok(running),
                            Ok(Weighed::Unsure(running)) => {
                                self.moved_on(live, chain, i, "unsure");
                                let aside = caller.entry.as_ref().map(|entry| entry.set_aside());
                                doubted.get_or_insert((running, aside, *idx));
                                continue;
                            }
                            Err(failure) => {
                                if let Some(entry) = &caller.entry {
                                    entry.set_aside();
                                }
                                Err(Missed::of(failure.into()))
                            }
                        },
                        missed => missed,
                    },
                },
                Hop::Away(idx) => self.elsewhere(with, asked.clone(), *idx, (others > 0, deadline)).await,
            };
            match answer {
                Ok(running) => return Ok(running),
                Err(Missed::Final(error)) if doubted.is_none() => return Err(error),
                Err(Missed::Final(_)) => break,
                Err(Missed::Failed(error)) => {
                    self.moved_on(live, chain, i, reason(&error));
                    last = Some(error);
                }
                Err(unfit @ Missed::Unfit(_)) => {
                    self.moved_on(live, chain, i, "unfit");
                    // What went wrong before says more than what was never possible.
                    last.get_or_insert_with(|| unfit.into_error());
                }
            }
        }
        match (doubted, last) {
            (Some((running, aside, idx)), _) => {
                let config = self.models.shared.entries[idx].config();
                caller.of_model(asked.model(), &config.id, config.price);
                if let (Some(entry), Some(aside)) = (&caller.entry, aside) {
                    entry.take_back(&aside);
                }
                caller.trace.served_by("local", &[]);
                Ok(running)
            }
            (None, Some(error)) => Err(error),
            (None, None) => Err(Error::Stays),
        }
    }

    /// A model of our own.
    async fn at_home(&self, with: With<'_>, asked: Asked, idx: usize) -> Result<Running, Missed> {
        let started = self.start_at_home(with, asked, idx).await;
        started.map_err(Missed::of)
    }

    async fn start_at_home(&self, with: With<'_>, asked: Asked, idx: usize) -> Result<Running, Error> {
        let With { caller, permit, live, alias, wants_logprobs } = with;
        let config = self.models.shared.entries[idx].config();
        caller.of_model(asked.model(), &config.id, config.price);
        let border = live.border(caller, alias, &config.guardrails)?;
        let asked = border.enter(asked, wants_logprobs)?;
        if self.cache.is_none() {
            let target = self.models.target(idx).await?;
            let work = self.work(permit, asked, &target.known()).await?;
            self.capture(caller, || work.prompts.clone()).await?;
            return self.start((caller, permit, &border), work, target, None).await;
        }
        // What was last known of the model is enough to find an answer, even while its engine is down.
        let (known, target) = match self.models.known(idx) {
            Some(known) => (known, None),
            None => {
                let target = self.models.target(idx).await?;
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
            None => self.models.target(idx).await?,
        };
        let now = target.known();
        if now == known {
            return self.start((caller, permit, &border), work, target, recorder).await;
        }
        // It was loaded anew, from another file or with other adapters: the key is of one that is gone.
        recorder.take();
        let work = self.work(permit, asked, &now).await?;
        self.start((caller, permit, &border), work, target, recorder).await
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
                } = request;
                self.admit_media(&mut prompt, n, description).await?;
                settle_chat(&mut prompt, config);
                let sampling = settle(sampling, config, description);
                let prompts = vec![Prompt::Chat(prompt)];
                Work { sampling, prompts, output, is_length_said: false, n, n_kept: n, cache_prompt, lora }
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
                Work { sampling, prompts, output, is_length_said: false, n, n_kept, cache_prompt, lora }
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
    ) -> Result<Running, Error> {
        let n_choices = work.n_choices();
        work::refuse_more_than_fits(n_choices, &work, &target.engine)?;
        if cut_to_what_is_left(&mut work, &target, permit).await? {
            // Another request's answer may be longer.
            recorder.take();
        }
        let slot = caller.trace.attempt(target.id(), false, target.config.price);
        let mut meter = Meter::new(self.metrics.model(target.id()), caller, work.n as usize, n_choices);
        let (keep, output) = (work.keep(), work.output.clone());
        let reserve = |most: Spend| self.reserve(permit, target.id(), most);
        let started = match work.output.max_tokens {
            Some(0) if !work.output.echo => work::count_only(work, &target, reserve).await,
            _ => {
                let share = self.share_of(caller);
                work::generate(caller, share, work, &target, reserve).await
            }
        };
        let (choices, accepted, reserved) = started.inspect_err(|error| slot.failed(class_of(error), None))?;
        let held = note(caller).await?;
        meter.hold(reserved, target.config.price);
        caller.trace.served_by("local", &[]);
        let fingerprint = work::fingerprint(&target);
        let model = target.id().to_owned();
        let started = Started { choices, accepted, keep, model, fingerprint, pin: Some(target.into_pin()) };
        Ok(Running::new(started, meter, recorder, Some(slot), held).screened(border, &output))
    }

    /// An answer that is there already.
    fn replay(&self, caller: &Caller, permit: &Permit, entry: Arc<Entry>, keep: Keep) -> Running {
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
    async fn enter(
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
            let partition = if team.is_some() { 0 } else { caller.principal.partition() };
            let tenant = Tenant { partition, team, namespace: ask.namespace.as_deref(), border: border.digest() };
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

    /// An upstream, asked as often as its rules allow.
    async fn elsewhere(
        &self,
        with: With<'_>,
        asked: Asked,
        idx: usize,
        (has_other, deadline): (bool, Instant),
    ) -> Result<Running, Missed> {
        let With { caller, permit, live, alias, wants_logprobs } = with;
        let Some(upstream) = live.upstreams.get(idx) else { return Err(Missed::Final(Error::Stays)) };
        let config = &upstream.config;
        let border = live.border(caller, alias, &config.guardrails).map_err(Missed::Final)?;
        let asked = border.enter(asked, wants_logprobs).map_err(Missed::Final)?;
        let bounded = asked.of_length(Self::length(permit, asked.max_tokens()));
        let asked = bounded.as_ref().unwrap_or(&asked);
        let outgoing = asked.outgoing(&config.wire).map_err(|Unsupported(field)| Missed::Unfit(field))?;
        if let Some(field) = outgoing.dropped.first().filter(|_| self.config().strict) {
            return Err(Missed::Unfit(field));
        }
        self.capture(caller, || asked.prompts()).await.map_err(Missed::Final)?;
        let ask = caller.hints.cache_over(asked.cache());
        let key = |tenant: &Tenant| cache::remote(tenant, &config.name, outgoing.path, &outgoing.body);
        let recorder = match self.enter((caller, &border), &ask, asked.is_steady(), key).await {
            Entered::Hit(entry) => return Ok(self.replay(caller, permit, entry, asked.keep())),
            Entered::Miss(recorder) => recorder,
        };
        let call = Call {
            outgoing: &outgoing,
            n_choices: asked.n_choices(),
            hop: caller.hints.hop + 1,
            deadline,
            max_tokens: asked.max_tokens(),
        };
        caller.of_model(asked.model(), &config.name, config.price);
        if let Some(entry) = &caller.entry {
            entry.of_upstream(&config.name);
        }
        let reserved = self.reserve(permit, &config.name, call.most(&config.price)).map_err(Missed::of)?;
        let (remote, slot) = try_upstream(caller, upstream, &call, has_other).await?;
        let held = note(caller).await.map_err(Missed::Final)?;
        let accepted = vec![remote.n_prompt(); call.n_choices];
        let mut meter = Meter::new(self.metrics.model(&config.name), caller, asked.keep().of, call.n_choices);
        meter.hold(reserved, config.price);
        caller.trace.served_by(&config.name, &outgoing.dropped);
        let started = Started {
            choices: super::choices::Choices::Remote(Box::new(remote.noted_in(slot))),
            accepted,
            keep: asked.keep(),
            model: config.name.clone(),
            fingerprint: format!("fp_{}", config.name),
            pin: None,
        };
        let running = Running::new(started, meter.from(UsageSource::Estimated), recorder, None, held);
        Ok(running.screened(&border, asked.output()))
    }

    fn moved_on(&self, live: &Live, chain: &[Hop], i: usize, reason: &str) {
        let name = |hop: &Hop| match hop {
            Hop::Home(idx) => self.models.shared.entries[*idx].config().id.clone(),
            Hop::Away(idx) => live.upstreams.get(*idx).map(|it| it.config.name.clone()).unwrap_or_default(),
        };
        if let Some(to) = chain.get(i + 1) {
            self.metrics.fell_back(&name(&chain[i]), &name(to), reason);
        }
    }
}

/// The longest that a chain may take.
fn longest_wait(live: &Live, chain: &[Hop]) -> Duration {
    let total = |hop: &Hop| match hop {
        Hop::Away(idx) => live.upstreams.get(*idx).map(|upstream| upstream.config.timeouts.total),
        Hop::Home(_) => None,
    };
    chain.iter().filter_map(total).max().unwrap_or(Duration::from_secs(600))
}

/// Notes on disk that the request runs, where rows are kept: once, however many targets are asked.
async fn note(caller: &Caller) -> Result<(Noted, CancellationToken), Error> {
    let noted = match &caller.entry {
        Some(entry) if !entry.is_running() => Noted::Waiting(entry.open().await?),
        _ => Noted::Yes,
    };
    Ok((noted, caller.principal.cut()))
}

type Attempted = (super::upstream::Remote, super::trace::AttemptSlot);

async fn try_upstream(
    caller: &Caller,
    upstream: &Arc<Upstream>,
    call: &Call<'_>,
    has_other_target: bool,
) -> Result<Attempted, Missed> {
    upstream.note_request();
    let attempts = upstream.config.retry.attempts.max(1);
    for n in 0.. {
        let slot = caller.trace.attempt(&upstream.config.name, true, upstream.config.price);
        let failed = match upstream.attempt(call, slot.context()).await {
            Ok(remote) => return Ok((remote, slot)),
            Err(failed) => failed,
        };
        slot.failed(failed.class, failed.status);
        let remaining = call.deadline.saturating_duration_since(Instant::now());
        // What was never sent is no reason to send it again at once.
        let attempts_left = if failed.is_own && failed.class != Class::Throttled { 0 } else { attempts - n - 1 };
        let error = Error::of_upstream(&failed);
        let situation = Situation {
            class: failed.class,
            first_byte_sent: false,
            has_other_target,
            attempts_left,
            retry_after: failed.retry_after,
            remaining,
        };
        let wait = match next(situation) {
            Next::Surface => return Err(Missed::Final(error)),
            Next::Other => return Err(Missed::Failed(error)),
            Next::Retry(wait) => wait,
        };
        let Some(pause) = upstream.retry(n) else { return Err(Missed::Failed(error)) };
        let pause = wait.unwrap_or(pause);
        if pause >= remaining {
            return Err(Missed::Failed(error));
        }
        tokio::time::sleep(pause).await;
    }
    Err(Missed::Final(Error::Stays))
}

enum Weighed {
    Sure(Running),
    Unsure(Running),
}

/// Reads a whole answer and judges it by the mean log-probability of its tokens. It was counted as it ran; what comes back
/// is the same answer once more, without the log-probabilities where nobody asked for them.
async fn weigh(mut running: Running, asked: &Asked, least: f32) -> Result<Weighed, Failure> {
    let wants_logprobs = asked.output().top_logprobs.is_some();
    let (mut events, mut sum, mut n) = (Vec::new(), 0.0_f64, 0_u32);
    while let Some((idx, mut event)) = running.next().await {
        match &mut event {
            Event::Delta(delta) => {
                sum += delta.logprobs.iter().map(|entry| f64::from(entry.logprob)).sum::<f64>();
                n += u32::try_from(delta.logprobs.len()).unwrap_or(u32::MAX);
                if !wants_logprobs {
                    delta.logprobs.clear();
                }
            }
            Event::Failed(failure) => return Err(failure.clone()),
            _ => {}
        }
        events.push((idx, event));
    }
    let is_sure = n == 0 || sum / f64::from(n) >= f64::from(least);
    if !is_sure {
        running.was_replaced();
    }
    let bug = || Failure::Internal("an answer was weighed twice; this is a bug".to_owned());
    let again = running.again(events).ok_or_else(bug)?;
    Ok(if is_sure { Weighed::Sure(again) } else { Weighed::Unsure(again) })
}

impl Missed {
    /// Of an engine here: what is no fault of the request may do better elsewhere.
    fn of(error: Error) -> Self {
        let is_ours = matches!(
            error,
            Error::Engine(
                Failure::NotReady { .. } | Failure::Overloaded { .. } | Failure::Crashed { .. } | Failure::Internal(_)
            )
        ) || is_too_dear(&error);
        if is_ours { Missed::Failed(error) } else { Missed::Final(error) }
    }

    fn into_error(self) -> Error {
        match self {
            Missed::Failed(error) | Missed::Final(error) => error,
            Missed::Unfit(field) => {
                let message = format!("{field} is not supported by the server that would answer this request.");
                Error::Refused(Refusal::new(field, "unsupported_parameter", message))
            }
        }
    }
}

impl Error {
    fn of_upstream(failed: &Failed) -> Self {
        let retry_after_s = failed.retry_after.map(|wait| u32::try_from(wait.as_secs()).unwrap_or(u32::MAX));
        let is_late = failed.word == "deadline";
        Error::Upstream { class: failed.class, status: failed.status, retry_after_s, is_late }
    }
}

/// A budget of money has no room for this target; another may cost less, or nothing.
fn is_too_dear(error: &Error) -> bool {
    matches!(error, Error::Limited { refusal, .. } if refusal.kind == LimitKind::Money)
}

fn reason(error: &Error) -> &'static str {
    match error {
        Error::Engine(failure) => word(failure),
        Error::Upstream { class, .. } => class.as_str(),
        Error::Limited { .. } => "too_dear",
        _ => "refused",
    }
}

/// What an error of an engine here would be called of an upstream.
fn class_of(error: &Error) -> Class {
    match error {
        Error::Engine(Failure::Overloaded { .. }) => Class::Throttled,
        Error::Engine(
            Failure::NotReady { .. } | Failure::Crashed { .. } | Failure::Internal(_) | Failure::ShuttingDown,
        ) => Class::Transient,
        Error::Engine(Failure::Cancelled) => Class::Cancelled,
        _ => Class::ClientFault,
    }
}
