//! A request that was accepted, as its events come in.

use super::Error;
use super::books;
use super::cache::{Entry, Recorder, Replay};
use super::choices::Choices;
use super::guardrails::{Border, Hold, Judge, Screen};
use super::meter::{Meter, word};
use super::store::Noting;
use super::target::Pin;
use super::trace::{AttemptSlot, Trace, UsageSource};
use super::upstream::DRAIN_MAX;
use super::walk::Rescue;
use crate::chat::{Delta, Output, Usage};
use crate::dialect::Answer;
use crate::engine::{Event, Failure};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// All choices of one request. Dropping it cancels what still runs and settles what it cost.
pub struct Running {
    choices: Choices,
    /// Always there, but for a moment in the drop.
    meter: Option<Meter>,
    keep: Keep,
    accepted: Vec<u32>,
    model: String,
    fingerprint: String,
    /// Looks at what the operator has rules for, before anything else sees it.
    screen: Option<Screen>,
    /// Keeps it until a classifier has looked at all of it.
    hold: Option<Hold>,
    /// Copies the answer for the cache.
    recorder: Option<Recorder>,
    /// Its place in the request's record, where an engine here answers.
    slot: Option<AttemptSlot>,
    noted: Noted,
    /// Events that came while a commit, or the first content, was waited for. **Bound:** `READY_MAX`.
    ready: VecDeque<(usize, Event)>,
    /// Who is asked if the engine here fails; `None` once there is content, or where nobody is.
    rescue: Option<Rescue>,
    moving: Option<Moving>,
    /// Why nobody else could answer either.
    error: Option<Error>,
    /// Cancelled when the key is revoked.
    cut: CancellationToken,
    /// Keeps the model loaded. Last, so that it is dropped after what runs on it.
    pin: Option<Pin>,
}

/// Others are asked in place of who answers now.
struct Moving {
    rescue: Rescue,
    others: BoxFuture<'static, Result<Running, Error>>,
    /// How who answers now has failed, and in which choice; `None`: it only takes long, and may go on if nobody else can.
    failure: Option<(usize, Failure)>,
}

/// Most events that are held back for the first content.
const READY_MAX: usize = 64;

/// Whether the row that says that this request runs is committed. Nothing of an answer goes out before.
#[derive(Debug)]
pub(super) enum Noted {
    /// There are no books, or it is.
    Yes,
    Waiting(Noting),
    /// It can't be: the request fails.
    No,
}

/// How long a cancelled request may take to say what it came to.
const CANCEL_WAIT: Duration = Duration::from_secs(5);

/// Of every `of` choices of a prompt, the best `n` are the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Keep {
    pub of: usize,
    pub n: usize,
}

/// A request that is certain to run, or has run.
pub(super) struct Started {
    pub choices: Choices,
    /// Prompt tokens of each choice.
    pub accepted: Vec<u32>,
    pub keep: Keep,
    /// Under which name the answer is given.
    pub model: String,
    pub fingerprint: String,
    pub pin: Option<Pin>,
}

impl Started {
    /// An answer that was made before.
    pub(super) fn again(entry: Arc<Entry>, keep: Keep) -> Self {
        Self {
            accepted: entry.accepted.clone(),
            keep,
            model: entry.model.clone(),
            fingerprint: entry.fingerprint.clone(),
            choices: Choices::Replay(Replay::new(entry)),
            pin: None,
        }
    }
}

impl Running {
    pub(super) fn new(
        started: Started,
        mut meter: Meter,
        recorder: Option<Recorder>,
        slot: Option<AttemptSlot>,
        (noted, cut): (Noted, CancellationToken),
    ) -> Self {
        let Started { choices, accepted, keep, model, fingerprint, pin } = started;
        for (idx, n_prompt) in accepted.iter().enumerate() {
            meter.observe(idx, &Event::Accepted { n_prompt: *n_prompt });
        }
        let meter = Some(meter);
        Self {
            choices,
            meter,
            keep,
            accepted,
            model,
            fingerprint,
            screen: None,
            hold: None,
            recorder,
            slot,
            noted,
            ready: VecDeque::new(),
            rescue: None,
            moving: None,
            error: None,
            cut,
            pin,
        }
    }

    /// With what looks at its events. For an answer that is being made: one that was made before was looked at then.
    pub(super) fn screened(mut self, border: &Border, output: &Output, judge: (&Arc<Judge>, u64)) -> Self {
        self.screen = border.screen(output, &self.accepted);
        self.hold = border.hold(judge.0, judge.1, self.accepted.len());
        self
    }

    /// The next event that may go on. Cancel-safe.
    async fn arrival(&mut self) -> Option<(usize, Event)> {
        let Some(hold) = &mut self.hold else { return next_screened(&mut self.choices, &mut self.screen).await };
        loop {
            if let Some(passed) = hold.next().await {
                return Some(passed);
            }
            let (idx, event) = next_screened(&mut self.choices, &mut self.screen).await?;
            hold.push(idx, event);
        }
    }

    /// Whether it failed by the operator's rules: no other target helps.
    fn is_refused(&self) -> bool {
        self.hold.as_ref().is_some_and(|hold| hold.error().is_some())
    }

    /// Others may answer as long as this has said nothing.
    pub(super) fn rescue_by(&mut self, rescue: Rescue) {
        self.rescue = Some(rescue);
    }

    /// Returns when it is certain who answers: with the first content, which [`Running::next`] then has, at the end of an
    /// answer without any, or `until`. Errors: it failed, and nobody else could.
    pub(super) async fn await_content(&mut self, until: Instant) -> Result<(), Error> {
        while self.ready.len() < READY_MAX {
            let Ok(pulled) = tokio::time::timeout_at(until, self.pull()).await else { return Ok(()) };
            let Some((idx, event)) = pulled else { return Ok(()) };
            if let Event::Failed(failure) = event {
                return Err(self.error(failure));
            }
            let is_content = !matches!(event, Event::Progress { .. });
            self.ready.push_back((idx, event));
            if is_content {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The same answer, read to its end as `events`, once more. It is not counted again.
    pub(super) fn again(mut self, events: Vec<(usize, Event)>) -> Option<Self> {
        let accepted = std::mem::take(&mut self.accepted);
        let entry = Entry::of(events, accepted, self.model.clone(), self.fingerprint.clone());
        let started = Started::again(Arc::new(entry), self.keep);
        let meter = self.meter.as_ref()?.echo();
        if let Some(entry) = meter.entry() {
            entry.untell();
        }
        Some(Self::new(started, meter, None, None, (Noted::Yes, self.cut.clone())))
    }

    /// The answer is whole and another target is asked all the same.
    pub(super) fn was_replaced(&self) {
        self.slot.iter().for_each(AttemptSlot::replaced);
    }

    /// Answers carry this name from now on.
    pub(super) fn rename(&mut self, model: &str) {
        model.clone_into(&mut self.model);
    }

    /// The next event and the index of its choice; `None` when all have ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<(usize, Event)> {
        if self.ready.is_empty() {
            let pulled = self.pull().await?;
            self.ready.push_back(pulled);
        }
        if matches!(self.ready.front(), Some((_, Event::Delta(_) | Event::Done(_)))) {
            self.await_note().await;
            if matches!(self.noted, Noted::No) {
                let failure = Failure::NotReady { reason: "the ledger can't be written".into(), retry_after_s: 2 };
                return self.ready.pop_front().map(|(idx, _)| (idx, Event::Failed(failure)));
            }
        }
        self.ready.pop_front()
    }

    /// The next event of whoever answers, counted. Cancel-safe.
    async fn pull(&mut self) -> Option<(usize, Event)> {
        loop {
            if let Some(moving) = &mut self.moving {
                let moved = moving.others.as_mut().await;
                let Some(Moving { rescue, failure, .. }) = self.moving.take() else { continue };
                match (moved, failure) {
                    (Ok(other), _) => {
                        self.become_one_of_others(other);
                        if let Some(event) = self.ready.pop_front() {
                            return Some(event);
                        }
                    }
                    (Err(error), Some((idx, failure))) => {
                        self.error = Some(error);
                        let event = Event::Failed(failure);
                        self.observe(idx, &event);
                        return Some((idx, event));
                    }
                    // It goes on to wait where it waits.
                    (Err(_), None) => rescue.stay(),
                }
                continue;
            }
            let (idx, event) = match self.rescue.as_ref().and_then(|rescue| rescue.leaves_at) {
                None => self.arrival().await?,
                Some(at) => match tokio::time::timeout_at(at, self.arrival()).await {
                    Ok(next) => next?,
                    Err(_) => {
                        self.ask_others("busy", None);
                        continue;
                    }
                },
            };
            let is_refused = self.is_refused();
            match (event, &mut self.rescue) {
                (Event::Failed(failure), Some(_)) if Rescue::helps(&failure) && !is_refused => {
                    self.give_up(word(&failure));
                    self.ask_others(word(&failure), Some((idx, failure)));
                }
                (event, rescue) => {
                    match (&event, rescue) {
                        // It has its slot.
                        (Event::Progress { .. }, Some(rescue)) => rescue.leaves_at = None,
                        (Event::Delta(delta), Some(rescue)) if says_nothing(delta) => rescue.leaves_at = None,
                        (_, rescue) => *rescue = None,
                    }
                    self.observe(idx, &event);
                    return Some((idx, event));
                }
            }
        }
    }

    fn ask_others(&mut self, reason: &'static str, failure: Option<(usize, Failure)>) {
        if let Some(rescue) = self.rescue.take() {
            self.moving = Some(Moving { others: rescue.go_on(reason), rescue, failure });
        }
    }

    /// Who answers now will not: what is held for it goes back, and its try is noted.
    fn give_up(&mut self, reason: &'static str) {
        self.choices = Choices::ended(Vec::new());
        (self.screen, self.hold, self.recorder) = (None, None, None);
        self.pin = None;
        if let Some(meter) = &mut self.meter {
            meter.give_up(reason);
            settle(self.slot.take().as_ref(), meter);
        }
    }

    /// Another answers in its place; what was noted on disk for the request holds for it, too.
    fn become_one_of_others(&mut self, mut other: Running) {
        if !self.meter.as_ref().is_some_and(Meter::is_over) {
            self.give_up("overloaded");
        }
        if matches!(other.noted, Noted::Yes) {
            other.noted = std::mem::replace(&mut self.noted, Noted::Yes);
        }
        *self = other;
    }

    fn observe(&mut self, idx: usize, event: &Event) {
        let Some(meter) = &mut self.meter else { return };
        if matches!(self.choices, Choices::Remote(_)) {
            *meter.source_mut() = self.choices.source();
        }
        meter.observe(idx, event);
        if meter.is_over() {
            settle(self.slot.as_ref(), meter);
        }
        if self.hold.as_ref().is_some_and(Hold::has_passed_unseen) {
            self.recorder = None;
        }
        if let Some(recorder) = &mut self.recorder
            && recorder.observe(idx, event, self.accepted.len())
            && let Some(recorder) = self.recorder.take()
        {
            recorder.keep(self.accepted.clone(), &self.model, &self.fingerprint);
        }
    }

    /// Cancel-safe: the note stays where it is until it has its word.
    async fn await_note(&mut self) {
        if let Noted::Waiting(noting) = &mut self.noted {
            self.noted = match noting.committed().await {
                Ok(()) => Noted::Yes,
                Err(_) => Noted::No,
            };
        }
    }

    /// Why it failed: what an event said, or the books.
    pub fn error(&self, failure: Failure) -> Error {
        match self.noted {
            Noted::No => Error::LedgerUnavailable,
            _ => {
                let refused = self.hold.as_ref().and_then(Hold::error);
                self.error.as_ref().or(refused).cloned().unwrap_or_else(|| failure.into())
            }
        }
    }

    /// Writes the request's row, where rows are kept; to be awaited before the last byte of a stream. How it ended is what
    /// its events said, or else `finish`.
    ///
    /// Errors: the row can be neither written nor kept.
    pub async fn settle(&mut self, finish: &str) -> Result<(), Error> {
        match self.entry().cloned() {
            Some(entry) => {
                entry.end(finish);
                entry.settle().await
            }
            None => Ok(()),
        }
    }

    /// The request's record.
    pub fn trace(&self) -> Option<&Trace> {
        self.meter.as_ref().map(Meter::trace)
    }

    pub fn entry(&self) -> Option<&Arc<books::Entry>> {
        self.meter.as_ref().and_then(Meter::entry)
    }

    /// Cancelled when the key of this request is revoked or blocked.
    pub fn cut(&self) -> CancellationToken {
        self.cut.clone()
    }

    /// An event that is already there, without waiting for one.
    pub fn try_next(&mut self) -> Option<(usize, Event)> {
        self.next().now_or_never().flatten()
    }

    /// Its answer goes out whole, after its row was committed, so nothing has to wait for the note that it runs.
    pub fn as_whole(mut self) -> Self {
        self.noted = Noted::Yes;
        self
    }

    /// Everything until the end, as whole answers in the order of their index. Their size is bounded by the context.
    pub async fn collect(mut self) -> Result<(Vec<Answer>, Usage), Error> {
        self = self.as_whole();
        let mut answers = vec![Answer::default(); self.n_choices()];
        let mut n_left = answers.len();
        while n_left > 0 {
            let Some((idx, event)) = self.next().await else {
                return Err(Failure::Internal("a generation ended without a word; this is a bug".to_owned()).into());
            };
            let Some(answer) = answers.get_mut(idx) else { continue };
            match event {
                Event::Delta(delta) => answer.push(delta),
                Event::Done(done) => {
                    answer.finish = done.finish;
                    (answer.usage, answer.timings) = (done.usage, done.timings);
                    n_left -= 1;
                }
                Event::Failed(failure) => return Err(self.error(failure)),
                _ => {}
            }
        }
        Ok((best(answers, self.keep), self.usage()))
    }

    pub fn n_choices(&self) -> usize {
        self.meter.as_ref().map_or(0, Meter::n_choices)
    }

    /// Tokens so far; final once every choice has ended.
    pub fn usage(&self) -> Usage {
        self.meter.as_ref().map(Meter::usage).unwrap_or_default()
    }

    /// The id of the model that answers, whatever name was asked for.
    pub fn model(&self) -> &str {
        &self.model
    }

    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

impl Drop for Running {
    /// What runs is cancelled. With books, somebody stays until the engine has said what it came to, so that the row has the
    /// engine's own count; the model stays loaded as long.
    fn drop(&mut self) {
        let Some(mut meter) = self.meter.take() else { return };
        let slot = self.slot.take();
        if let Some(hold) = self.hold.take().filter(|_| !meter.is_over()) {
            // It was generated, whoever was to see it.
            hold.abandon().for_each(|(idx, event)| meter.observe(idx, &event));
            if meter.is_over() {
                return settle(slot.as_ref(), &meter);
            }
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return settle(slot.as_ref(), &meter);
        };
        if meter.is_over() {
            return;
        }
        let drains = self.choices.drain();
        if meter.entry().is_none() && !drains {
            return settle(slot.as_ref(), &meter);
        }
        // Others are not asked any more, and count what they have come to by themselves.
        self.moving = None;
        let mut choices = std::mem::replace(&mut self.choices, Choices::ended(Vec::new()));
        let (pin, mut screen) = (self.pin.take(), self.screen.take());
        let patience = if drains { DRAIN_MAX + CANCEL_WAIT } else { CANCEL_WAIT };
        match meter.entry() {
            // What the upstream says of its end is not how it ended here.
            Some(entry) if drains => entry.end("aborted"),
            _ if drains => {}
            _ => choices.cancel(),
        }
        runtime.spawn(async move {
            let rest = async {
                // What is kept of it is looked at to the end.
                while let Some((idx, event)) = next_screened(&mut choices, &mut screen).await {
                    *meter.source_mut() = choices.source();
                    meter.observe(idx, &event);
                }
            };
            if tokio::time::timeout(patience, rest).await.is_err() {
                tracing::warn!("a cancelled request did not end in time; its row has what was known");
            }
            settle(slot.as_ref(), &meter);
            drop(meter);
            drop(pin);
        });
    }
}

/// The next event that the operator's rules let through. Cancel-safe.
async fn next_screened(choices: &mut Choices, screen: &mut Option<Screen>) -> Option<(usize, Event)> {
    let Some(screen) = screen else { return choices.next().await };
    loop {
        if let Some(passed) = screen.pop() {
            return Some(passed);
        }
        let (idx, event) = choices.next().await?;
        let is_cancelled = event == Event::Failed(Failure::Cancelled);
        if screen.push(idx, event) {
            choices.cancel_one(idx, screen.is_over());
        }
        if is_cancelled && matches!(choices, Choices::Remote(_)) {
            screen.cancelled();
        }
    }
}

/// Tokens alone: nothing that a client could read.
fn says_nothing(delta: &Delta) -> bool {
    *delta == Delta { n_tokens: delta.n_tokens, ..Delta::default() }
}

/// Notes in the request's record how an engine here did.
fn settle(slot: Option<&AttemptSlot>, meter: &Meter) {
    if let Some(slot) = slot {
        slot.settle(meter.class(), meter.usage(), UsageSource::Engine);
    }
}

/// The best answers of each prompt, the best one first. Where all are kept their order stays.
fn best(answers: Vec<Answer>, keep: Keep) -> Vec<Answer> {
    if keep.n >= keep.of {
        return answers;
    }
    let mut answers = answers.into_iter();
    let mut kept = Vec::with_capacity(answers.len() / keep.of * keep.n);
    loop {
        let mut group: Vec<(f64, Answer)> =
            answers.by_ref().take(keep.of).map(|answer| (mean_logprob(&answer), answer)).collect();
        if group.is_empty() {
            return kept;
        }
        group.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        kept.extend(group.into_iter().take(keep.n).map(|(_, answer)| answer));
    }
}

/// Of the answer's tokens; one without any is worse than all others.
fn mean_logprob(answer: &Answer) -> f64 {
    if answer.logprobs.is_empty() {
        return f64::NEG_INFINITY;
    }
    answer.logprobs.iter().map(|entry| f64::from(entry.logprob)).sum::<f64>() / answer.logprobs.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::TokenLogprob;

    fn answer(content: &str, logprobs: &[f32]) -> Answer {
        let entry = |logprob: &f32| TokenLogprob { id: 0, bytes: Vec::new(), logprob: *logprob, top: Vec::new() };
        Answer { content: content.to_owned(), logprobs: logprobs.iter().map(entry).collect(), ..Default::default() }
    }

    #[test]
    fn the_best_of_each_prompt_are_kept() {
        let answers = || {
            vec![
                answer("a", &[-1.0, -3.0]),
                answer("b", &[-0.5]),
                answer("c", &[]),
                answer("d", &[-9.0]),
                answer("e", &[-8.0, -8.0]),
                answer("f", &[-8.0]),
            ]
        };
        let texts = |keep: Keep| best(answers(), keep).into_iter().map(|answer| answer.content).collect::<String>();
        assert_eq!(texts(Keep { of: 3, n: 1 }), "be");
        assert_eq!(texts(Keep { of: 3, n: 2 }), "baef", "equals keep their order");
        assert_eq!(texts(Keep { of: 6, n: 3 }), "bae");
        assert_eq!(texts(Keep { of: 1, n: 1 }), "abcdef");
    }
}
