//! How commands reach a service and its events come back: threads of this process, or a supervised child.

mod child;
mod frame;
mod process;
mod pulse;
mod supervisor;
mod threads;

pub use child::run_child;

use super::config::EngineConfig;
use super::error::Failure;
use super::event::{Description, Event};
use super::handle::EngineState;
use super::request::{Command, RequestId};
use super::router::Router;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;

/// Where the service runs.
#[derive(Debug, Clone)]
pub enum EngineMode {
    /// On threads of this process: least memory, but a crash in llama.cpp takes the server along.
    InProcess,
    /// In a child started as `exe engine ARGS`: a crash ends its requests and nothing else.
    Process { exe: PathBuf, args: Vec<String> },
}

impl EngineMode {
    /// A child of this executable, without further arguments.
    pub fn child(exe: impl Into<PathBuf>) -> Self {
        Self::Process { exe: exe.into(), args: Vec::new() }
    }
}

/// The front's end of a connection to a service.
pub(super) trait Transport: Send + Sync {
    /// Hands a command over without waiting. After an error the command was not and will not be seen by the engine.
    fn send(&self, id: RequestId, command: Command) -> Result<(), Failure>;
    /// Starts to stop; the state becomes `Stopped` when done.
    fn close(&self);
    fn n_restarts(&self) -> u32;
}

/// The service's end: where it puts what it has to say. Calls come from several threads.
pub(super) trait Sink: Send + Sync {
    fn notice(&self, notice: Notice);
    fn emit(&self, events: Vec<(RequestId, Event)>);
    /// The engine can't go on: end what is in flight and, in a child, leave so that a new one is started.
    fn broken(&self, reason: &str);
}

/// What an engine says about itself rather than about a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Notice {
    Loading {
        progress: f32,
    },
    Ready(Box<Description>),
    /// The model can't be loaded; another try would end the same way.
    LoadFailed {
        reason: String,
    },
}

pub(super) fn open(
    config: EngineConfig,
    mode: EngineMode,
    router: Arc<Router>,
    state: watch::Sender<EngineState>,
) -> Box<dyn Transport> {
    match mode {
        EngineMode::InProcess => Box::new(threads::Threads::open(config, router, state)),
        EngineMode::Process { exe, args } => Box::new(process::Process::open(config, (exe, args), router, state)),
    }
}

#[cfg(test)]
mod fuzz_tests;
