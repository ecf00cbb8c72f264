//! The receiving half of one request: events in, events out, text merged when the reader is slow.

use super::error::Failure;
use super::event::Event;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// A queue of one request's events with one reader.
///
/// **Bound:** deltas that wait are merged into one and progress reports that pile up replace each other, so an engine that keeps the
/// protocol leaves a handful of events here, whose text is at most the answer's; one that doesn't ends its request at
/// `EVENTS_MAX`. The writer never waits.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    state: Mutex<State>,
    readable: Notify,
}

/// More events than this come only from a broken engine.
const EVENTS_MAX: usize = 64;
/// Of them, how many may wait before progress is told by its last state only.
const PROGRESS_MAX: usize = 16;

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Event>,
    ended: bool,
}

impl Mailbox {
    /// Adds `event`; after an ending event everything else is dropped.
    pub(super) fn push(&self, event: Event) {
        {
            let mut state = self.lock();
            if state.ended {
                return;
            }
            if state.queue.len() >= EVENTS_MAX {
                state.queue.clear();
                state.queue.push_back(Event::Failed(Failure::Internal("the engine broke its protocol".into())));
                state.ended = true;
                drop(state);
                self.readable.notify_one();
                return;
            }
            state.ended = event.is_end();
            let is_behind = state.queue.len() >= PROGRESS_MAX;
            match (state.queue.back_mut(), event) {
                (Some(Event::Delta(last)), Event::Delta(more)) => {
                    last.content.push_str(&more.content);
                    last.reasoning.push_str(&more.reasoning);
                    last.logprobs.extend(more.logprobs);
                    last.prompt.extend(more.prompt);
                    last.tool_calls.extend(more.tool_calls);
                    last.n_tokens = last.n_tokens.saturating_add(more.n_tokens);
                    last.tokens.extend(more.tokens);
                }
                (Some(last @ Event::Progress { .. }), event @ Event::Progress { .. }) if is_behind => *last = event,
                (_, event) => state.queue.push_back(event),
            }
        }
        self.readable.notify_one();
    }

    /// The next event; `None` after the ending one was taken. Cancel-safe.
    pub(super) async fn next(&self) -> Option<Event> {
        loop {
            {
                let mut state = self.lock();
                if let Some(event) = state.queue.pop_front() {
                    return Some(event);
                }
                if state.ended {
                    return None;
                }
            }
            self.readable.notified().await;
        }
    }

    /// Whether an ending event has come in (taken or not).
    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding the lock; a poisoned one still holds whole events.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::Delta;

    /// Of the fuzzer: an engine may say any number.
    #[tokio::test]
    async fn counts_that_are_lies_end_at_the_largest_number() {
        let mailbox = Mailbox::default();
        for _ in 0..2 {
            mailbox.push(Event::Delta(Delta { n_tokens: u32::MAX, ..Default::default() }));
        }
        let Some(Event::Delta(delta)) = mailbox.next().await else { panic!("a delta") };
        assert_eq!(delta.n_tokens, u32::MAX);
    }

    fn delta(text: &str) -> Event {
        Event::Delta(Delta { content: text.into(), n_tokens: 1, ..Default::default() })
    }

    #[tokio::test]
    async fn an_engine_that_floods_a_reader_ends_the_request() {
        let mailbox = Mailbox::default();
        for n_prompt in 0..1000 {
            mailbox.push(Event::Accepted { n_prompt });
        }
        assert!(matches!(mailbox.next().await, Some(Event::Failed(Failure::Internal(_)))));
        assert_eq!(mailbox.next().await, None);
    }

    #[tokio::test]
    async fn progress_that_piles_up_is_told_by_its_last_state() {
        let mailbox = Mailbox::default();
        for n_computed in 0..1000 {
            mailbox.push(Event::Progress { n_prompt: 1000, n_computed, n_cached: 0 });
        }
        let mut told = Vec::new();
        while told.last() != Some(&999) {
            let Some(Event::Progress { n_computed, .. }) = mailbox.next().await else { panic!("progress") };
            told.push(n_computed);
        }
        assert_eq!((told.len(), told[0], told[1]), (PROGRESS_MAX, 0, 1));
    }

    #[tokio::test]
    async fn waiting_deltas_merge_and_nothing_follows_the_end() {
        let mailbox = Mailbox::default();
        mailbox.push(Event::Accepted { n_prompt: 3 });
        mailbox.push(delta("a"));
        mailbox.push(delta("b"));
        mailbox.push(Event::Failed(Failure::Cancelled));
        mailbox.push(delta("late"));
        assert_eq!(mailbox.next().await, Some(Event::Accepted { n_prompt: 3 }));
        let Some(Event::Delta(merged)) = mailbox.next().await else { panic!("a delta") };
        assert_eq!((merged.content.as_str(), merged.n_tokens), ("ab", 2));
        assert!(mailbox.next().await.is_some_and(|event| event.is_end()));
        assert_eq!(mailbox.next().await, None);
    }
}
