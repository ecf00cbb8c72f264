//! The models of one server: which are loaded, who holds them, and when they go.
//!
//! # Design
//! Each loaded model has a keeper, a task that follows its engine from the start of the load to its end: it notes a load
//! that failed, and unloads the model when it was idle for long enough or has to make room. Requests only start engines
//! and wait, so one that leaves leaves nothing half done: the load goes on and serves the next. Everything is decided
//! under one lock; nobody holds it while waiting.

use super::Error;
use super::room::{Held, Limits, Room, room};
pub use super::setup::{KeepAlive, LoadLimits, ModelConfig, ModelSetup, Size};
use super::target::{Pin, Target};
use crate::engine::{Description, Engine, EngineConfig, EngineMode, EngineState, Failure, Pressure, PressureNow};
use crate::model::Memory;
use arc_swap::ArcSwap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Most models of one server.
pub const MODELS_MAX: usize = 64;
/// A load that failed is not tried again for this long: its requests get the same answer at once.
const FAILURE_KEPT: Duration = Duration::from_secs(5);

/// A model as the lists show it.
#[derive(Debug, Clone)]
pub struct Listed {
    pub config: Arc<ModelConfig>,
    /// What is or was loaded, or what the file says; `None` for a pretended model that was never loaded.
    pub description: Option<Arc<Description>>,
    pub status: ModelStatus,
    /// When it will be unloaded if no request comes; `None`: it is not loaded, at work, or stays.
    pub expires_in: Option<Duration>,
}

/// What a request's meaning depends on beside itself.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub config: Arc<ModelConfig>,
    pub description: Arc<Description>,
    /// Scales of the adapters where a request says nothing.
    pub adapter_scales: Vec<f32>,
}

impl PartialEq for Known {
    fn eq(&self, other: &Self) -> bool {
        let same = Arc::ptr_eq(&self.description, &other.description) || self.description == other.description;
        same && Arc::ptr_eq(&self.config, &other.config) && self.adapter_scales == other.adapter_scales
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelStatus {
    Unloaded,
    Loading,
    Loaded,
    /// The last load failed, or its engine did and does not come back.
    Failed,
}

/// All models of a server.
pub(super) struct Models {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub entries: Vec<Entry>,
    states: Mutex<Vec<State>>,
    /// Ticks whenever something happened that somebody may wait for.
    changed: watch::Sender<u64>,
    limits: LoadLimits,
    closing: CancellationToken,
    /// How short memory is, as of the last look.
    pub pressure: PressureNow,
}

pub(super) struct Entry {
    /// Swapped by a reload; who holds one keeps it.
    config: ArcSwap<ModelConfig>,
    /// `None`: the engine was given and can't be started again.
    source: Option<(EngineConfig, EngineMode)>,
}

impl Entry {
    fn new(config: ModelConfig, source: Option<(EngineConfig, EngineMode)>) -> Self {
        Self { config: ArcSwap::from_pointee(config), source }
    }

    pub fn config(&self) -> Arc<ModelConfig> {
        self.config.load_full()
    }

    pub fn set_config(&self, config: ModelConfig) {
        self.config.store(Arc::new(config));
    }
}

pub(super) struct State {
    phase: Phase,
    pub n_pins: u32,
    pub last_used: Instant,
    /// As configured, or as the last client wished, until it is unloaded.
    pub keep_alive: KeepAlive,
    /// Of the last load, also when that is over.
    description: Option<Arc<Description>>,
    /// The engine was ready since it was started.
    was_ready: bool,
    /// Of the last load that was done.
    load_time: Duration,
    failure: Option<(String, Instant)>,
    pub adapter_scales: Option<Vec<f32>>,
}

enum Phase {
    Unloaded,
    /// `waits`: requests wait for its load instead of being sent away.
    Open {
        engine: Engine,
        waits: bool,
    },
    /// Asked to leave; its keeper closes it.
    Closing(Engine),
}

/// What a request does next.
enum Step {
    Go(Engine, Arc<Description>),
    Wait,
}

impl Models {
    /// One model whose engine runs already.
    pub(super) fn given(config: ModelConfig, engine: Engine) -> Self {
        let entry = Entry::new(config, None);
        let shared = Shared::new(vec![entry], LoadLimits::default());
        shared.lock()[0].phase = Phase::Open { engine, waits: false };
        Self { shared }
    }

    /// Starts those that are to be loaded at the start; must be called inside a runtime. `setups`: 1..=`MODELS_MAX`.
    pub(super) fn open(setups: Vec<ModelSetup>, mode: &EngineMode, limits: LoadLimits) -> Self {
        let entry = |setup: ModelSetup| Entry::new(setup.config, Some((setup.engine, mode.clone())));
        let shared = Shared::new(setups.into_iter().map(entry).collect(), limits);
        for idx in 0..shared.entries.len() {
            if !shared.entries[idx].config().is_lazy {
                shared.start(&mut shared.lock(), idx, false);
            }
        }
        Self { shared }
    }

    /// The model by its index, loaded; loads it where it has to be. Cancel-safe: whoever stops waiting leaves the load
    /// to the others.
    pub(super) async fn target(&self, idx: usize) -> Result<Target, Error> {
        self.shared.target(idx).await
    }

    /// The description if the model is loaded now, else why it can't answer.
    pub(super) fn description(&self, idx: usize) -> Result<Arc<Description>, Error> {
        match &self.shared.lock()[idx].phase {
            Phase::Open { engine, .. } => match engine.state() {
                EngineState::Ready(description) => Ok(description),
                other => Err(other.refusal().unwrap_or(Failure::ShuttingDown).into()),
            },
            _ => Err(not_ready("the model is not loaded; a request for it loads it".to_owned(), 1)),
        }
    }

    /// What is known of the model from its last load, whether or not its engine lives. `None`: it was never loaded.
    pub(super) fn known(&self, idx: usize) -> Option<Known> {
        let now = self.description(idx).ok();
        let states = self.shared.lock();
        let description = now.or_else(|| states[idx].description.clone())?;
        let scales = states[idx].adapter_scales.clone();
        let adapter_scales = scales.unwrap_or_else(|| description.adapters.iter().map(|it| it.scale).collect());
        Some(Known { config: self.shared.entries[idx].config(), description, adapter_scales })
    }

    /// The engine, if there is one.
    pub(super) fn engine(&self, idx: usize) -> Option<Engine> {
        self.shared.engine(idx)
    }

    /// A client's wish for how long the model stays loaded after its requests.
    pub(super) fn touch(&self, idx: usize, keep_alive: KeepAlive) {
        if self.shared.entries[idx].config().keep_alive == KeepAlive::Forever {
            return;
        }
        let mut states = self.shared.lock();
        states[idx].keep_alive = keep_alive;
        states[idx].last_used = Instant::now();
        drop(states);
        self.shared.tell();
    }

    /// How long the last load took.
    pub(super) fn load_time(&self, idx: usize) -> Duration {
        self.shared.lock()[idx].load_time
    }

    /// Ends the model's engine and returns when it is gone; `false`: requests hold it, or it can't be started again.
    pub(super) async fn unload(&self, idx: usize) -> bool {
        let mut changed = self.shared.changed.subscribe();
        {
            let mut states = self.shared.lock();
            let can_go = states[idx].n_pins == 0 && self.shared.entries[idx].source.is_some();
            if !can_go {
                return matches!(states[idx].phase, Phase::Unloaded);
            }
            states[idx].leave();
        }
        self.shared.tell();
        loop {
            changed.mark_unchanged();
            if !matches!(self.shared.lock()[idx].phase, Phase::Closing(_)) {
                return true;
            }
            // The sender is in `shared`, so it can't be gone.
            drop(changed.changed().await);
        }
    }

    pub(super) fn list(&self) -> Vec<Listed> {
        let states = self.shared.lock();
        let listed = |(entry, state): (&Entry, &State)| {
            let opened = match &state.phase {
                Phase::Open { engine, .. } => Some(engine.state()),
                _ => None,
            };
            let status = match &opened {
                Some(EngineState::Ready(_)) => ModelStatus::Loaded,
                Some(EngineState::Failed { .. } | EngineState::Stopped) => ModelStatus::Failed,
                Some(_) => ModelStatus::Loading,
                None if state.failure.is_some() => ModelStatus::Failed,
                None => ModelStatus::Unloaded,
            };
            let now = match opened {
                Some(EngineState::Ready(description)) => Some(description),
                _ => None,
            };
            let description = now.or_else(|| state.description.clone()).or_else(|| entry.config().outline.clone());
            let expires_in = match (status, state.expires_at()) {
                (ModelStatus::Loaded, Some(at)) => Some(at.saturating_duration_since(Instant::now())),
                _ => None,
            };
            Listed { config: entry.config(), description, status, expires_in }
        };
        self.shared.entries.iter().zip(states.iter()).map(listed).collect()
    }

    /// Where the engines stand that were started with the server, and not again at a request since.
    pub(super) fn started(&self) -> Vec<(String, watch::Receiver<EngineState>)> {
        let watch = |(entry, state): (&Entry, &State)| match &state.phase {
            Phase::Open { engine, waits: false } => Some((entry.config().id.clone(), engine.watch())),
            _ => None,
        };
        self.shared.entries.iter().zip(self.shared.lock().iter()).filter_map(watch).collect()
    }

    /// Ends every engine; nothing is loaded after it.
    pub(super) async fn close(&self) {
        self.shared.closing.cancel();
        let engines: Vec<Engine> = self
            .shared
            .lock()
            .iter()
            .filter_map(|state| match &state.phase {
                Phase::Open { engine, .. } | Phase::Closing(engine) => Some(engine.clone()),
                Phase::Unloaded => None,
            })
            .collect();
        futures_util::future::join_all(engines.iter().map(Engine::close)).await;
    }
}

impl Drop for Models {
    fn drop(&mut self) {
        // The keepers leave, and with them the last handles of the engines.
        self.shared.closing.cancel();
    }
}

impl Shared {
    fn new(entries: Vec<Entry>, limits: LoadLimits) -> Arc<Self> {
        let state = |entry: &Entry| State {
            phase: Phase::Unloaded,
            n_pins: 0,
            last_used: Instant::now(),
            keep_alive: entry.config().keep_alive,
            description: None,
            was_ready: false,
            load_time: Duration::ZERO,
            failure: None,
            adapter_scales: None,
        };
        let states = Mutex::new(entries.iter().map(state).collect());
        Arc::new(Self {
            entries,
            states,
            changed: watch::Sender::new(0),
            limits,
            closing: CancellationToken::new(),
            pressure: PressureNow::default(),
        })
    }

    /// See [`Models::target`].
    pub(super) async fn target(self: &Arc<Self>, idx: usize) -> Result<Target, Error> {
        let mut changed = self.changed.subscribe();
        let pin = Pin::new(self, idx);
        let wait = async {
            loop {
                changed.mark_unchanged();
                match self.step(idx)? {
                    Step::Go(engine, description) => return Ok((engine, description)),
                    // The sender is in `self`, so it can't be gone.
                    Step::Wait => drop(changed.changed().await),
                }
            }
        };
        match tokio::time::timeout(self.limits.load_wait, wait).await {
            Ok(done) => done.map(|(engine, description)| Target::new(engine, description, pin)),
            Err(_) => Err(not_ready("the model is still loading".to_owned(), 10)),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn engine(&self, idx: usize) -> Option<Engine> {
        match &self.lock()[idx].phase {
            Phase::Open { engine, .. } => Some(engine.clone()),
            _ => None,
        }
    }

    pub(super) fn tell(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Opens an engine and gives it a keeper.
    fn start(self: &Arc<Self>, states: &mut [State], idx: usize, waits: bool) {
        let Some((config, mode)) = self.entries[idx].source.clone() else { return };
        let engine = Engine::start(config, mode);
        states[idx].phase = Phase::Open { engine: engine.clone(), waits };
        states[idx].was_ready = false;
        states[idx].failure = None;
        tokio::spawn(keep(Arc::clone(self), idx, engine, waits));
    }

    /// One look at the model for a request that wants it; the request holds a pin.
    fn step(self: &Arc<Self>, idx: usize) -> Result<Step, Error> {
        let mut states = self.lock();
        if self.closing.is_cancelled() {
            return Err(Failure::ShuttingDown.into());
        }
        let state = &states[idx];
        match &state.phase {
            Phase::Open { engine, waits } => match engine.state() {
                EngineState::Ready(description) => {
                    let engine = engine.clone();
                    states[idx].description = Some(Arc::clone(&description));
                    return Ok(Step::Go(engine, description));
                }
                // The keeper tells how the load ended.
                _ if *waits && !state.was_ready => {}
                other => return Err(other.refusal().unwrap_or(Failure::ShuttingDown).into()),
            },
            Phase::Closing(_) => {}
            Phase::Unloaded => {
                if let Some((reason, at)) = &state.failure
                    && at.elapsed() < FAILURE_KEPT
                {
                    return Err(not_ready(format!("the model can't be loaded: {reason}"), 5));
                }
                // Nothing takes more memory than a load.
                if self.pressure.get() >= Pressure::New {
                    return Err(Failure::shed().into());
                }
                self.make_room(&mut states, idx)?;
            }
        }
        let n_places = self.entries[idx].source.as_ref().map_or(u32::MAX, |(config, _)| config.n_places());
        if states[idx].n_pins > n_places {
            return Err(Failure::Overloaded { n_places, retry_after_s: 2 }.into());
        }
        Ok(Step::Wait)
    }

    /// Starts the model if there is room, or asks idle ones to leave; errors when neither can help.
    fn make_room(self: &Arc<Self>, states: &mut [State], idx: usize) -> Result<(), Error> {
        let (mut held, mut loading) = (Vec::new(), 0u64);
        for (i, state) in states.iter().enumerate() {
            let entry = &self.entries[i];
            let (is_closing, is_idle) = match &state.phase {
                Phase::Unloaded => continue,
                Phase::Closing(_) => (true, false),
                Phase::Open { engine, .. } => {
                    if !matches!(engine.state(), EngineState::Ready(_)) {
                        loading = loading.saturating_add(entry.config().size.machine);
                    }
                    (false, state.n_pins == 0 && entry.source.is_some())
                }
            };
            let size = entry.config().size;
            held.push(Held { idx: i, size, is_closing, is_idle, last_used: state.last_used });
        }
        let machine = Memory::now().filter(|_| self.limits.watch_machine).map(|memory| memory.available);
        let limits = Limits {
            all: self.limits.loaded_bytes_max,
            machine_free: machine.map(|available| available.saturating_sub(loading)),
            gpu: self.limits.gpu_bytes_max,
        };
        match room(self.entries[idx].config().size, limits, held) {
            Room::There => self.start(states, idx, true),
            Room::Wait => {}
            Room::Evict(idle) => {
                for i in idle {
                    states[i].leave();
                }
                self.tell();
            }
            Room::None => {
                let reason = "the memory for loaded models is taken by models at work".to_owned();
                return Err(not_ready(reason, 2));
            }
        }
        Ok(())
    }
}

impl State {
    /// `None`: at work, or stays.
    fn expires_at(&self) -> Option<Instant> {
        match self.keep_alive {
            KeepAlive::For(time) if self.n_pins == 0 => self.last_used.checked_add(time),
            _ => None,
        }
    }

    /// Asks the keeper to unload it.
    fn leave(&mut self) {
        if let Phase::Open { engine, .. } = &self.phase {
            self.phase = Phase::Closing(engine.clone());
        }
    }
}

/// Follows one engine from its start to its end.
async fn keep(shared: Arc<Shared>, idx: usize, engine: Engine, waits: bool) {
    let closing = shared.closing.clone();
    let failure = tokio::select! {
        failure = live(&shared, idx, &engine, waits) => failure,
        () = closing.cancelled() => return, // whoever closes the server closes the engines
    };
    engine.close().await;
    drop(engine);
    let mut states = shared.lock();
    let state = &mut states[idx];
    state.phase = Phase::Unloaded;
    state.keep_alive = shared.entries[idx].config().keep_alive;
    state.failure = failure.map(|reason| (reason, Instant::now()));
    drop(states);
    shared.tell();
}

/// Returns when the engine has to go: with the reason where it failed. What can't be loaded at the start stays as it is,
/// for whoever runs the server to see.
async fn live(shared: &Shared, idx: usize, engine: &Engine, waits: bool) -> Option<String> {
    let id = shared.entries[idx].config().id.clone();
    let started = Instant::now();
    let mut states = engine.watch();
    let mut changed = shared.changed.subscribe();
    let mut was_ready = false;
    loop {
        // Cloned, since a borrow must not be held while locking.
        let state = states.borrow_and_update().clone();
        match state {
            EngineState::Ready(description) if !was_ready => {
                was_ready = true;
                tracing::debug!(model = id, load_ms = started.elapsed().as_millis() as u64, "the model is loaded");
                let mut states = shared.lock();
                states[idx].description = Some(description);
                states[idx].was_ready = true;
                states[idx].load_time = started.elapsed();
                states[idx].last_used = Instant::now();
                drop(states);
                shared.tell();
            }
            EngineState::Failed { reason } if waits => return Some(reason),
            // It died while loading: the next request tries again.
            EngineState::Restarting { reason, .. } if waits && !was_ready => return Some(reason),
            _ => {}
        }
        changed.mark_unchanged();
        let expires_at = {
            let mut states = shared.lock();
            let expires_at = if was_ready { states[idx].expires_at() } else { None };
            if expires_at.is_some_and(|at| at <= Instant::now()) {
                tracing::info!(model = id, "idle: the model is unloaded");
                states[idx].leave();
            }
            if matches!(states[idx].phase, Phase::Closing(_)) {
                return None;
            }
            expires_at
        };
        let expiry = async {
            match expires_at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return None },
            _ = changed.changed() => {}
            () = expiry => {}
        }
    }
}

fn not_ready(reason: String, retry_after_s: u32) -> Error {
    Failure::NotReady { reason, retry_after_s }.into()
}
