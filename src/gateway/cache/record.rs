//! An answer on its way into the cache, and out of it again.

use super::{Cache, Flight};
use crate::chat::{CacheAsk, Delta, Finish, TokenLogprob};
use crate::engine::{Event, Timings};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An answer with all its choices.
#[derive(Debug)]
pub(in crate::gateway) struct Entry {
    /// In the order in which they came; without acceptance and progress, which nobody makes again.
    pub(in crate::gateway) events: Box<[(usize, Event)]>,
    /// Prompt tokens of each choice.
    pub(in crate::gateway) accepted: Vec<u32>,
    /// The id of the model that made it.
    pub(in crate::gateway) model: String,
    pub(in crate::gateway) fingerprint: String,
    pub(super) made: Instant,
    pub(super) expires: Instant,
    pub(super) n_bytes: usize,
}

/// Copies the events of one answer. Dropped before [`Recorder::keep`], it leaves nothing behind.
pub(in crate::gateway) struct Recorder {
    flight: Flight,
    ttl: Duration,
    events: Vec<(usize, Event)>,
    n_bytes: usize,
    n_ended: usize,
    /// Too large, failed, or of a kind that is not kept.
    is_spoilt: bool,
}

/// The events of an entry, one after the other.
pub(in crate::gateway) struct Replay {
    entry: Arc<Entry>,
    at: usize,
}

impl Recorder {
    pub(super) fn new(flight: Flight, ask: &CacheAsk) -> Self {
        let most = flight.cache.config.ttl;
        let ttl = ask.ttl_s.map_or(most, |seconds| most.min(Duration::from_secs(seconds.into())));
        Self { flight, ttl, events: Vec::new(), n_bytes: 0, n_ended: 0, is_spoilt: false }
    }

    /// Whether the answer is complete now, of `n_choices` choices, and worth keeping.
    pub(in crate::gateway) fn observe(&mut self, idx: usize, event: &Event, n_choices: usize) -> bool {
        if self.is_spoilt {
            return false;
        }
        let event = match event {
            Event::Delta(delta) => {
                if !delta.tool_calls.is_empty() && !self.flight.cache.config.tool_calls {
                    self.spoil();
                    return false;
                }
                Event::Delta(delta.clone())
            }
            Event::Done(done) if done.finish == Finish::Filtered => {
                self.spoil();
                return false;
            }
            Event::Done(done) => {
                self.n_ended += 1;
                // Nothing is computed when it is given again.
                let mut done = done.clone();
                done.timings = Timings::default();
                Event::Done(done)
            }
            Event::Failed(_) => {
                self.spoil();
                return false;
            }
            _ => return false,
        };
        let n = n_bytes(&event);
        let cache = &self.flight.cache;
        if self.n_bytes + n > cache.entry_bytes_max() || !cache.reserve(n) {
            self.spoil();
            return false;
        }
        self.n_bytes += n;
        self.events.push((idx, event));
        self.n_ended == n_choices
    }

    /// The answer is complete: others may have it.
    pub(in crate::gateway) fn keep(mut self, accepted: Vec<u32>, model: &str, fingerprint: &str) {
        let made = Instant::now();
        let Some(expires) = made.checked_add(self.ttl).filter(|_| !self.is_spoilt) else { return };
        let entry = Entry {
            events: std::mem::take(&mut self.events).into_boxed_slice(),
            accepted,
            model: model.to_owned(),
            fingerprint: fingerprint.to_owned(),
            made,
            expires,
            n_bytes: 0,
        };
        self.flight.cache.keep(self.flight.key, entry.counted(), &self.flight.epoch);
        // The flight ends here, after the insertion: whoever waited finds the answer.
    }

    fn spoil(&mut self) {
        self.is_spoilt = true;
        self.flight.cache.release(std::mem::take(&mut self.n_bytes));
        self.events = Vec::new();
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let cache: &Cache = &self.flight.cache;
        cache.release(self.n_bytes);
    }
}

impl Replay {
    pub(in crate::gateway) fn new(entry: Arc<Entry>) -> Self {
        Self { entry, at: 0 }
    }

    pub(in crate::gateway) fn next(&mut self) -> Option<(usize, Event)> {
        let event = self.entry.events.get(self.at).cloned();
        self.at += 1;
        event
    }
}

impl Entry {
    /// An answer that was made a moment ago and is not kept anywhere.
    pub(in crate::gateway) fn of(
        events: Vec<(usize, Event)>,
        accepted: Vec<u32>,
        model: String,
        fingerprint: String,
    ) -> Self {
        let made = Instant::now();
        Self { events: events.into(), accepted, model, fingerprint, made, expires: made, n_bytes: 0 }
    }

    fn counted(mut self) -> Self {
        let events: usize = self.events.iter().map(|(_, event)| n_bytes(event)).sum();
        let names = self.model.len() + self.fingerprint.len();
        self.n_bytes = events + self.accepted.len() * 4 + names + size_of::<Self>();
        self
    }

    /// For a file: all but the times.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let kept = (&self.events, &self.accepted, &self.model, &self.fingerprint);
        postcard::to_stdvec(&kept).expect("these types have lengths and no maps; failing is a bug")
    }

    /// `None`: another build wrote it.
    pub(super) fn from_bytes(bytes: &[u8], made: Instant, expires: Instant) -> Option<Self> {
        let (events, accepted, model, fingerprint) = postcard::from_bytes(bytes).ok()?;
        Some(Self { events, accepted, model, fingerprint, made, expires, n_bytes: 0 }.counted())
    }
}

/// Estimate of an event's memory, on the high side.
fn n_bytes(event: &Event) -> usize {
    let own = size_of::<(usize, Event)>();
    let Event::Delta(Delta { content, reasoning, tool_calls, prompt, tokens, logprobs, n_tokens: _ }) = event else {
        return own;
    };
    let calls = tool_calls.iter().map(|piece| {
        let opening = piece.opening.as_ref().map_or(0, |(id, name)| id.len() + name.len());
        size_of_val(piece) + opening + piece.arguments.len()
    });
    let entry = |entry: &TokenLogprob| {
        let top = entry.top.iter().map(|likely| size_of_val(likely) + likely.bytes.len());
        size_of_val(entry) + entry.bytes.len() + top.sum::<usize>()
    };
    let entries = prompt.iter().chain(logprobs).map(entry);
    own + 4 * tokens.len() + content.len() + reasoning.len() + calls.sum::<usize>() + entries.sum::<usize>()
}
