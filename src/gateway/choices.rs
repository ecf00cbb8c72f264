//! Several generations as one stream of events.

use super::cache::Replay;
use super::trace::UsageSource;
use super::upstream::Remote;
use crate::engine::{Canceller, Event, Generation};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use std::collections::VecDeque;

/// Events of all choices in order of arrival. Dropping it drops, and so cancels, every generation in it.
pub(super) enum Choices {
    /// One generation is awaited as it is: the usual case pays for nothing else.
    One(Generation),
    /// **Bound:** one future for each generation, each with its mailbox's own bound.
    Many { arrivals: FuturesUnordered<BoxFuture<'static, Arrival>>, cancellers: Vec<Canceller> },
    /// Nothing had to be generated.
    Ended(VecDeque<(usize, Event)>),
    /// It was generated before.
    Replay(Replay),
    /// Somebody else generates.
    Remote(Box<Remote>),
}

/// A generation with the event it had to say; `None` when it has ended.
type Arrival = (usize, Generation, Option<Event>);

impl Choices {
    pub(super) fn new(mut generations: Vec<Generation>) -> Self {
        match generations.pop() {
            Some(only) if generations.is_empty() => Choices::One(only),
            last => {
                let all: Vec<Generation> = generations.into_iter().chain(last).collect();
                let cancellers = all.iter().map(Generation::canceller).collect();
                let arrivals = all.into_iter().enumerate().map(|(idx, generation)| arrival(idx, generation)).collect();
                Choices::Many { arrivals, cancellers }
            }
        }
    }

    pub(super) fn ended(ends: Vec<Event>) -> Self {
        Choices::Ended(ends.into_iter().enumerate().collect())
    }

    /// Asks every generation to end; their events go on until they have.
    pub(super) fn cancel(&mut self) {
        match self {
            Choices::One(generation) => generation.canceller().cancel(),
            Choices::Many { cancellers, .. } => cancellers.iter().for_each(Canceller::cancel),
            Choices::Remote(remote) => remote.cancel(),
            Choices::Ended(_) | Choices::Replay(_) => {}
        }
    }

    /// Asks one generation to end; it goes on until it has. Choices of another server have one connection, so they end
    /// together, when `is_last`.
    pub(super) fn cancel_one(&mut self, idx: usize, is_last: bool) {
        match self {
            Choices::One(generation) => generation.canceller().cancel(),
            Choices::Many { cancellers, .. } => cancellers.iter().skip(idx).take(1).for_each(Canceller::cancel),
            Choices::Remote(remote) if is_last => remote.cancel(),
            Choices::Remote(_) | Choices::Ended(_) | Choices::Replay(_) => {}
        }
    }

    /// Whether it goes on for its count though nobody listens any more; see [`Remote::drain`].
    pub(super) fn drain(&mut self) -> bool {
        match self {
            Choices::Remote(remote) => remote.drain(),
            _ => false,
        }
    }

    /// Who counts its tokens.
    pub(super) fn source(&self) -> UsageSource {
        match self {
            Choices::One(_) | Choices::Many { .. } | Choices::Ended(_) => UsageSource::Engine,
            Choices::Replay(_) => UsageSource::Cache,
            Choices::Remote(remote) => remote.source(),
        }
    }

    /// The next event and the index of its choice; `None` when all have ended. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<(usize, Event)> {
        match self {
            Choices::One(generation) => generation.next().await.map(|event| (0, event)),
            Choices::Ended(ends) => ends.pop_front(),
            Choices::Replay(replay) => replay.next(),
            Choices::Remote(remote) => remote.next().await,
            Choices::Many { arrivals, .. } => loop {
                let (idx, generation, event) = arrivals.next().await?;
                if let Some(event) = event {
                    if !event.is_end() {
                        arrivals.push(arrival(idx, generation));
                    }
                    return Some((idx, event));
                }
            },
        }
    }
}

fn arrival(idx: usize, mut generation: Generation) -> BoxFuture<'static, Arrival> {
    Box::pin(async move {
        let event = generation.next().await;
        (idx, generation, event)
    })
}
