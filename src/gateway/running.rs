//! A request that was accepted, as its events come in.

use super::Error;
use super::cache::{Entry, Recorder, Replay};
use super::choices::Choices;
use super::meter::Meter;
use super::target::Pin;
use super::trace::{AttemptSlot, UsageSource};
use crate::chat::Usage;
use crate::dialect::Answer;
use crate::engine::{Event, Failure};
use futures_util::FutureExt;
use std::sync::Arc;

/// All choices of one request. Dropping it cancels what still runs and settles what it cost.
pub struct Running {
    choices: Choices,
    meter: Meter,
    keep: Keep,
    accepted: Vec<u32>,
    model: String,
    fingerprint: String,
    /// Copies the answer for the cache. Before `_pin` and behind `choices`: it waits for nothing.
    recorder: Option<Recorder>,
    /// Its place in the request's record, where an engine here answers.
    slot: Option<AttemptSlot>,
    /// Keeps the model loaded. Last, so that it is dropped after what runs on it.
    _pin: Option<Pin>,
}

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
    ) -> Self {
        let Started { choices, accepted, keep, model, fingerprint, pin } = started;
        for (idx, n_prompt) in accepted.iter().enumerate() {
            meter.observe(idx, &Event::Accepted { n_prompt: *n_prompt });
        }
        Self { choices, meter, keep, accepted, model, fingerprint, recorder, slot, _pin: pin }
    }

    /// The same answer, read to its end as `events`, once more. It is not counted again.
    pub(super) fn again(mut self, events: Vec<(usize, Event)>) -> Self {
        let accepted = std::mem::take(&mut self.accepted);
        let entry = Entry::of(events, accepted, self.model.clone(), self.fingerprint.clone());
        let started = Started::again(Arc::new(entry), self.keep);
        Self::new(started, self.meter.echo(), None, None)
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
        let (idx, event) = self.choices.next().await?;
        self.meter.observe(idx, &event);
        if let Some(recorder) = &mut self.recorder
            && recorder.observe(idx, &event, self.accepted.len())
            && let Some(recorder) = self.recorder.take()
        {
            recorder.keep(self.accepted.clone(), &self.model, &self.fingerprint);
        }
        Some((idx, event))
    }

    /// An event that is already there, without waiting for one.
    pub fn try_next(&mut self) -> Option<(usize, Event)> {
        self.next().now_or_never().flatten()
    }

    /// Everything until the end, as whole answers in the order of their index. Their size is bounded by the context.
    pub async fn collect(mut self) -> Result<(Vec<Answer>, Usage), Error> {
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
                    answer.timings = done.timings;
                    n_left -= 1;
                }
                Event::Failed(failure) => return Err(failure.into()),
                _ => {}
            }
        }
        Ok((best(answers, self.keep), self.usage()))
    }

    pub fn n_choices(&self) -> usize {
        self.meter.n_choices()
    }

    /// Tokens so far; final once every choice has ended.
    pub fn usage(&self) -> Usage {
        self.meter.usage()
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
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            slot.settle(self.meter.class(), self.meter.usage(), UsageSource::Engine);
        }
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
        let entry = |logprob: &f32| TokenLogprob { bytes: Vec::new(), logprob: *logprob, top: Vec::new() };
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
