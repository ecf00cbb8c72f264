//! A request's way through the targets of its alias: who is asked next, and when.
//!
//! **Invariant:** once content was handed on, no other target is asked. Until then the way goes on, also from a model here
//! that had accepted the request: when its engine dies, or has it wait for too long.

use super::answer::note;
use super::asked::Asked;
use super::cache::{self, Entered, Tenant};
use super::limits::{LimitKind, Permit};
use super::live::Live;
use super::meter::{Meter, word};
use super::route::{Hop, RouteConfig};
use super::running::Started;
use super::trace::{AttemptSlot, UsageSource};
use super::upstream::{Call, Class, Failed, Next, Remote, Situation, Upstream, next};
use super::{Caller, Error, Gateway, Running};
use crate::chat::check::Refusal;
use crate::dialect::remote::Unsupported;
use crate::engine::{Event, Failure};
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long the head of a stream waits for content where another target could still answer: with it goes out who answers.
/// Shorter than any proxy's patience.
const HEAD_WAIT: Duration = Duration::from_secs(5);

/// Why a target gave no answer.
pub(super) enum Missed {
    /// It has no word for this part of the request; it was not asked.
    Unfit(&'static str),
    /// Another target may do better.
    Failed(Error),
    /// No other target would.
    Final(Error),
}

/// What all tries for one request have in common.
#[derive(Clone, Copy)]
pub(super) struct With<'a> {
    pub(super) caller: &'a Caller,
    pub(super) permit: &'a Permit,
    /// The settings that it began with.
    pub(super) live: &'a Live,
    /// Sets of rules of the alias that it came by.
    pub(super) alias: &'a [String],
    /// The client asked for log-probabilities, and not the gateway for itself.
    pub(super) wants_logprobs: bool,
    /// Nobody else is asked: whoever is refused may come again.
    pub(super) is_last: bool,
}

/// A request and where it may go.
pub(super) struct Way {
    gateway: Arc<Gateway>,
    /// The settings that it began with.
    live: Arc<Live>,
    caller: Caller,
    permit: Permit,
    asked: Asked,
    route: Arc<RouteConfig>,
    chain: Vec<Hop>,
    /// Of all attempts together.
    deadline: Instant,
}

/// The way on from a model here, for as long as that has said nothing.
pub(super) struct Rescue {
    way: Arc<Way>,
    /// Its place in the chain.
    at: usize,
    /// When a request that still has no slot goes on.
    pub(super) leaves_at: Option<Instant>,
}

/// An answer whose tokens were judged.
enum Weighed {
    Sure(Running),
    Unsure(Running),
}

impl Way {
    pub(super) fn new(
        (gateway, live): (Arc<Gateway>, Arc<Live>),
        caller: Caller,
        permit: Permit,
        asked: Asked,
        route: Arc<RouteConfig>,
        chain: Vec<Hop>,
    ) -> Self {
        let patience = caller.hints.patience.unwrap_or(Duration::MAX).min(live.longest_wait(&chain));
        let deadline = Instant::now() + patience;
        Self { gateway, live, caller, permit, asked, route, chain, deadline }
    }

    /// Asks one target after the other, from place `from` of the chain on.
    pub(super) async fn walk(self: Arc<Self>, from: usize) -> Result<Running, Error> {
        let (mut last, mut doubted, mut skipped) = (None, None, None);
        for (at, hop) in self.chain.iter().copied().enumerate().skip(from) {
            let others = self.chain.len() - at - 1;
            let answer = match hop {
                Hop::Away(idx) => self.gateway.elsewhere(&self, idx, others > 0).await,
                Hop::Home(idx) if others > 0 && self.is_too_busy(idx) => {
                    skipped.get_or_insert(idx);
                    Err(Missed::Failed(self.busy(idx)))
                }
                Hop::Home(idx) => match self.route.min_logprob.filter(|_| others > 0 && !self.asked.is_stream()) {
                    None if others > 0 => self.with_rescue(idx, at).await,
                    None => self.at_home(idx, true).await,
                    Some(least) => match self.in_doubt(idx, least).await {
                        Ok(Weighed::Sure(running)) => Ok(running),
                        Ok(Weighed::Unsure(running)) => {
                            self.moved_on(at, "unsure");
                            let aside = self.caller.entry.as_ref().map(|entry| entry.set_aside());
                            doubted.get_or_insert((running, aside, idx));
                            continue;
                        }
                        Err(missed) => Err(missed),
                    },
                },
            };
            match answer {
                Ok(running) => return Ok(self.named(running)),
                Err(Missed::Final(error)) if doubted.is_none() => return Err(error),
                Err(Missed::Final(_)) => break,
                Err(Missed::Failed(error)) => {
                    self.moved_on(at, reason(&error));
                    last = Some(error);
                }
                Err(unfit @ Missed::Unfit(_)) => {
                    self.moved_on(at, "unfit");
                    // What went wrong before says more than what was never possible.
                    last.get_or_insert_with(|| unfit.into_error());
                }
            }
        }
        match (doubted, skipped, last) {
            (Some((running, aside, idx)), ..) => {
                let config = self.gateway.models.shared.entries[idx].config();
                self.caller.of_model(self.asked.model(), &config.id, config.price);
                if let (Some(entry), Some(aside)) = (&self.caller.entry, aside) {
                    entry.take_back(&aside);
                }
                self.caller.trace.served_by("local", &[]);
                Ok(self.named(running))
            }
            // Nobody else could: then it waits after all.
            (None, Some(idx), _) => self.at_home(idx, true).await.map_err(Missed::into_error).map(|it| self.named(it)),
            (None, None, Some(error)) => Err(error),
            (None, None, None) => Err(Error::Stays),
        }
    }

    fn named(&self, mut running: Running) -> Running {
        if self.route.reports_alias {
            running.rename(&self.route.name);
        }
        running
    }

    fn with(&self, is_last: bool) -> With<'_> {
        let wants_logprobs = self.asked.output().top_logprobs.is_some();
        let alias = self.route.guardrails.as_slice();
        With { caller: &self.caller, permit: &self.permit, live: &self.live, alias, wants_logprobs, is_last }
    }

    async fn at_home(&self, idx: usize, is_last: bool) -> Result<Running, Missed> {
        self.gateway.at_home(self.with(is_last), self.asked.clone(), idx).await
    }

    /// A model here, with the rest of the chain behind it. Returns with its first content, or when a stream's head can't
    /// wait any more.
    async fn with_rescue(self: &Arc<Self>, idx: usize, at: usize) -> Result<Running, Missed> {
        let leaves_at = self.route.burst_after.map(|wait| Instant::now() + wait);
        let mut running = self.at_home(idx, false).await?;
        running.rescue_by(Rescue { way: Arc::clone(self), at, leaves_at });
        let until = if self.asked.is_stream() { Instant::now() + HEAD_WAIT } else { self.deadline };
        running.await_content(until).await.map_err(Missed::Final)?;
        Ok(running)
    }

    /// A model here whose answer is weighed.
    async fn in_doubt(&self, idx: usize, least: f32) -> Result<Weighed, Missed> {
        let asked = self.asked.with_logprobs();
        let running = self.gateway.at_home(self.with(false), asked, idx).await?;
        weigh(running, &self.asked, least).await.map_err(|failure| {
            if let Some(entry) = &self.caller.entry {
                entry.set_aside();
            }
            Missed::of(failure.into())
        })
    }

    /// Whether the model would have the request wait for longer than its alias allows. Noted as an attempt.
    fn is_too_busy(&self, idx: usize) -> bool {
        let Some(most) = self.route.burst_after else { return false };
        let models = &self.gateway.models;
        let is_busy = models.engine(idx).is_some_and(|engine| engine.wait(self.owner()) > most);
        if is_busy {
            let config = models.shared.entries[idx].config();
            self.caller.trace.attempt(&config.id, false, config.price).failed(Class::Throttled, None);
        }
        is_busy
    }

    /// What a model's queue says to a request that will not wait in it.
    fn busy(&self, idx: usize) -> Error {
        let refused = self
            .gateway
            .models
            .engine(idx)
            .and_then(|engine| engine.refuse_long_wait(self.owner(), None, self.route.burst_after).err());
        refused.unwrap_or(Failure::Overloaded { n_places: 0, retry_after_s: 1 }).into()
    }

    fn owner(&self) -> u64 {
        self.gateway.share_of(&self.caller).1
    }

    fn moved_on(&self, at: usize, reason: &str) {
        if let Some(to) = self.chain.get(at + 1) {
            let name = |hop: &Hop| self.target_name(*hop);
            self.gateway.metrics.fell_back(&name(&self.chain[at]), &name(to), reason);
        }
    }
}

impl Way {
    fn target_name(&self, hop: Hop) -> String {
        match hop {
            Hop::Home(idx) => self.gateway.models.shared.entries[idx].config().id.clone(),
            Hop::Away(idx) => self.live.upstreams.get(idx).map(|it| it.config.name.clone()).unwrap_or_default(),
        }
    }
}

impl Rescue {
    /// Whether another target may do better than an engine that failed so.
    pub(super) fn helps(failure: &Failure) -> bool {
        matches!(
            failure,
            Failure::NotReady { .. }
                | Failure::Overloaded { .. }
                | Failure::Shed { .. }
                | Failure::Crashed { .. }
                | Failure::Internal(_)
        )
    }

    /// The model answers after all.
    pub(super) fn stay(&self) {
        if let Some(Hop::Home(idx)) = self.way.chain.get(self.at) {
            let config = self.way.gateway.models.shared.entries[*idx].config();
            self.way.caller.of_model(self.way.asked.model(), &config.id, config.price);
        }
    }

    /// Asks the rest of the chain. `reason`: a word for the metrics.
    pub(super) fn go_on(&self, reason: &str) -> BoxFuture<'static, Result<Running, Error>> {
        self.way.moved_on(self.at, reason);
        Box::pin(Arc::clone(&self.way).walk(self.at + 1))
    }
}

impl Gateway {
    /// An upstream, asked as often as its rules allow.
    async fn elsewhere(&self, way: &Way, idx: usize, has_other: bool) -> Result<Running, Missed> {
        let Way { live, caller, permit, deadline, .. } = way;
        let Some(upstream) = live.upstreams.get(idx) else { return Err(Missed::Final(Error::Stays)) };
        let config = &upstream.config;
        let With { alias, wants_logprobs, .. } = way.with(!has_other);
        let border = live.border(caller, alias, &config.guardrails).map_err(Missed::Final)?;
        let entered = self.enter_border(caller, &border, way.asked.clone(), wants_logprobs).await;
        let asked = entered.map_err(Missed::Final)?;
        let bounded = asked.of_length(Self::length(permit, asked.max_tokens()));
        let asked = bounded.as_ref().unwrap_or(&asked);
        let outgoing = asked.outgoing(&config.wire).map_err(|Unsupported(field)| Missed::Unfit(field))?;
        if let Some(field) = outgoing.dropped.first().filter(|_| live.config.strict) {
            return Err(Missed::Unfit(field));
        }
        self.capture(caller, || asked.prompts()).await.map_err(Missed::Final)?;
        let ask = caller.hints.cache_over(asked.cache());
        let url = config.base_url.under(outgoing.path);
        let key = |tenant: &Tenant| cache::remote(tenant, &config.name, &url, &outgoing.body);
        let recorder = match self.enter((caller, &border), &ask, asked.is_steady(), key).await {
            Entered::Hit(entry) => return Ok(self.replay(caller, permit, entry, asked.keep())),
            Entered::Miss(recorder) => recorder,
        };
        border.expect(&self.judge).await.map_err(Missed::Final)?;
        let call = Call {
            outgoing: &outgoing,
            n_choices: asked.n_choices(),
            hop: caller.hints.hop + 1,
            deadline: *deadline,
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
        Ok(running.screened(&border, asked.output(), (&self.judge, caller.principal.partition())))
    }
}

impl Live {
    /// The longest that a chain may take.
    fn longest_wait(&self, chain: &[Hop]) -> Duration {
        let total = |hop: &Hop| match hop {
            Hop::Away(idx) => self.upstreams.get(*idx).map(|upstream| upstream.config.timeouts.total),
            Hop::Home(_) => None,
        };
        chain.iter().filter_map(total).max().unwrap_or(Duration::from_secs(600))
    }
}

type Attempted = (Remote, AttemptSlot);

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
    pub(super) fn of(error: Error) -> Self {
        let is_ours = matches!(&error, Error::Engine(failure) if Rescue::helps(failure));
        if is_ours || is_too_dear(&error) { Missed::Failed(error) } else { Missed::Final(error) }
    }

    pub(super) fn into_error(self) -> Error {
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
