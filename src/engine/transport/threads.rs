//! The service on threads of this process.

use super::{Notice, Sink, Transport};
use crate::engine::config::EngineConfig;
use crate::engine::error::Failure;
use crate::engine::event::Event;
use crate::engine::handle::EngineState;
use crate::engine::request::{Command, RequestId};
use crate::engine::router::Router;
use crate::engine::service::Service;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

pub(super) struct Threads {
    /// `None` once closed.
    service: Mutex<Option<Arc<Service>>>,
    state: Arc<watch::Sender<EngineState>>,
}

impl Threads {
    pub(super) fn open(config: EngineConfig, router: Arc<Router>, state: watch::Sender<EngineState>) -> Self {
        let state = Arc::new(state);
        let sink = Arc::new(RouterSink { router, state: Arc::clone(&state) });
        Self { service: Mutex::new(Some(Arc::new(Service::start(config, sink)))), state }
    }
}

impl Transport for Threads {
    fn send(&self, id: RequestId, command: Command) -> Result<(), Failure> {
        let service = self.service.lock().unwrap_or_else(PoisonError::into_inner).clone();
        service.ok_or(Failure::ShuttingDown)?.submit(id, command)
    }

    fn close(&self) {
        let service = self.service.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(service) = service else { return };
        let state = Arc::clone(&self.state);
        let stop = move || {
            service.stop();
            state.send_replace(EngineState::Stopped);
        };
        // Joining the workers may take one decode step, which is too long for an async thread.
        if std::thread::Builder::new().name("engine-stop".into()).spawn(stop).is_err() {
            self.state.send_replace(EngineState::Stopped);
        }
    }

    fn n_restarts(&self) -> u32 {
        0
    }
}

struct RouterSink {
    router: Arc<Router>,
    state: Arc<watch::Sender<EngineState>>,
}

impl Sink for RouterSink {
    fn notice(&self, notice: Notice) {
        self.state.send_replace(match notice {
            Notice::Loading { progress } => EngineState::Loading { progress },
            Notice::Ready(description) => EngineState::Ready(Arc::new(*description)),
            Notice::LoadFailed { reason } => EngineState::Failed { reason },
        });
    }

    fn emit(&self, events: Vec<(RequestId, Event)>) {
        self.router.dispatch(events);
    }

    fn broken(&self, reason: &str) {
        tracing::error!(reason, "the engine can't go on");
        self.state.send_replace(EngineState::Failed { reason: reason.to_owned() });
        self.router.end_all(&Failure::Crashed { reason: reason.to_owned() }, true);
    }
}
