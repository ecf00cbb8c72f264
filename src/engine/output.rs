//! From what a worker has to say to events: a thread of its own, so that reading answers and writing frames cost the
//! worker nothing.

use super::backend::Token;
use super::error::Failure;
use super::event::{Done, Event, Timings};
use super::reading::Reader;
use super::request::RequestId;
use super::service::Registry;
use super::text::Released;
use super::transport::Sink;
use crate::chat::{Delta, Finish, TokenLogprob, Usage};
use crossbeam_channel::{Receiver, Sender};
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// What a worker says about one request.
pub(super) enum Item {
    /// It has a slot; nothing of its answer came before this.
    Begin {
        id: RequestId,
        reader: Box<Reader>,
    },
    Progress {
        id: RequestId,
        n_prompt: u32,
        n_computed: u32,
        n_cached: u32,
    },
    /// One more token and the text it released.
    Token {
        id: RequestId,
        released: Released,
        /// Where its id is wanted.
        token: Option<Token>,
    },
    /// The prompt's tokens; comes before any of the answer's.
    Prompt {
        id: RequestId,
        entries: Vec<TokenLogprob>,
    },
    /// The answer is complete; `rest` is the text that was held back.
    Done {
        id: RequestId,
        rest: Released,
        finish: Finish,
        usage: Usage,
        timings: Timings,
    },
    Failed {
        id: RequestId,
        failure: Failure,
    },
}

/// Batches of items waiting for the output thread; a worker that is this far ahead waits.
const BATCHES_MAX: usize = 256;

pub(super) fn channel() -> (Sender<Vec<Item>>, Receiver<Vec<Item>>) {
    crossbeam_channel::bounded(BATCHES_MAX)
}

/// Runs until every worker is gone.
pub(super) fn run(items: &Receiver<Vec<Item>>, registry: &Registry, sink: &Arc<dyn Sink>) {
    let mut readers: FxHashMap<RequestId, Box<Reader>> = FxHashMap::default();
    while let Ok(first) = items.recv() {
        let mut events = Vec::with_capacity(first.len());
        let waiting = std::iter::from_fn(|| items.try_recv().ok()).take(BATCHES_MAX);
        for item in std::iter::once(first).chain(waiting).flatten() {
            to_events(item, &mut readers, &mut events);
        }
        for (id, event) in &events {
            if event.is_end() {
                registry.remove(*id);
            }
        }
        sink.emit(events);
    }
}

fn to_events(item: Item, readers: &mut FxHashMap<RequestId, Box<Reader>>, events: &mut Vec<(RequestId, Event)>) {
    match item {
        Item::Begin { id, reader } => {
            readers.insert(id, reader);
        }
        Item::Progress { id, n_prompt, n_computed, n_cached } => {
            events.push((id, Event::Progress { n_prompt, n_computed, n_cached }));
        }
        Item::Token { id, released, token } => {
            if let Some(reader) = readers.get_mut(&id) {
                let delta = Delta { tokens: token.into_iter().collect(), ..reader.push(released, 1, false) };
                events.push((id, Event::Delta(delta)));
            }
        }
        Item::Prompt { id, entries } => {
            events.push((id, Event::Delta(Delta { prompt: entries, ..Default::default() })));
        }
        Item::Done { id, rest, finish, mut usage, timings } => {
            if let Some(mut reader) = readers.remove(&id) {
                if matches!(finish, Finish::Length | Finish::StopString(_)) {
                    reader.cut();
                }
                let delta = reader.push(rest, 0, true);
                if delta != Delta::default() {
                    events.push((id, Event::Delta(delta)));
                }
                usage.reasoning_tokens = reader.n_reasoning_tokens().min(usage.completion_tokens);
            }
            events.push((id, Event::Done(Done { finish, usage, timings })));
        }
        Item::Failed { id, failure } => {
            readers.remove(&id);
            events.push((id, Event::Failed(failure)));
        }
    }
}
