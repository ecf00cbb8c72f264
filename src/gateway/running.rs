//! A request that was accepted, as its events come in.

use super::Error;
use super::choices::Choices;
use super::meter::Meter;
use super::target::{Pin, Target};
use crate::chat::Usage;
use crate::dialect::Answer;
use crate::engine::{Event, Failure};
use futures_util::FutureExt;

/// All choices of one request. Dropping it cancels what still runs and settles what it cost.
pub struct Running {
    choices: Choices,
    meter: Meter,
    model: String,
    fingerprint: String,
    /// Keeps the model loaded. Last, so that it is dropped after what runs on it.
    _pin: Pin,
}

impl Running {
    pub(super) fn new(
        choices: Choices,
        accepted: Vec<u32>,
        mut meter: Meter,
        target: Target,
        fingerprint: String,
    ) -> Self {
        for (idx, n_prompt) in accepted.into_iter().enumerate() {
            meter.observe(idx, &Event::Accepted { n_prompt });
        }
        Self { choices, meter, model: target.id().to_owned(), fingerprint, _pin: target.into_pin() }
    }

    /// The next event and the index of its choice; `None` when all have ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<(usize, Event)> {
        let (idx, event) = self.choices.next().await?;
        self.meter.observe(idx, &event);
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
                    n_left -= 1;
                }
                Event::Failed(failure) => return Err(failure.into()),
                _ => {}
            }
        }
        Ok((answers, self.usage()))
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
