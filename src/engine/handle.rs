//! [`Engine`]: the front's side of the door.

use super::config::EngineConfig;
use super::error::Failure;
use super::event::{Description, Event, Stats, Vectors};
use super::mailbox::Mailbox;
use super::request::{Command, EmbedRequest, GenerateRequest, RequestId, RerankRequest, TokenizeRequest};
use super::router::{Place, Router};
use super::transport::{self, EngineMode, Transport};
use crate::chat::{ChatPrompt, Class};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Where the engine stands. Only `Ready` takes requests.
#[derive(Debug, Clone)]
pub enum EngineState {
    /// 0.0..=1.0 of the weights are in.
    Loading {
        progress: f32,
    },
    Ready(Arc<Description>),
    /// It died and comes back by itself.
    Restarting {
        reason: String,
        n_restarts: u32,
        retry_in: Duration,
    },
    /// It can't be loaded, and trying again would not help.
    Failed {
        reason: String,
    },
    Stopped,
}

impl EngineState {
    /// Why no request can be taken now; `None` when ready.
    pub fn refusal(&self) -> Option<Failure> {
        match self {
            EngineState::Ready(_) => None,
            EngineState::Loading { progress } => Some(Failure::NotReady {
                reason: format!("the model is loading ({:.0} %)", progress * 100.0),
                retry_after_s: 1,
            }),
            EngineState::Restarting { reason, retry_in, .. } => Some(Failure::NotReady {
                reason: format!("the engine is restarting ({reason})"),
                retry_after_s: u32::try_from(retry_in.as_secs()).unwrap_or(60).clamp(1, 60),
            }),
            EngineState::Failed { reason } => {
                Some(Failure::NotReady { reason: format!("the model can't be loaded: {reason}"), retry_after_s: 60 })
            }
            EngineState::Stopped => Some(Failure::ShuttingDown),
        }
    }
}

/// A model that answers. Cheap to clone; the last clone's drop stops the engine.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    router: Arc<Router>,
    transport: Box<dyn Transport>,
    state: watch::Receiver<EngineState>,
    max_wait: Option<Duration>,
}

/// Text as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokenized {
    pub tokens: Vec<i32>,
    /// Each token's bytes; empty unless asked for.
    pub pieces: Vec<Vec<u8>>,
}

/// Requests in flight and the room for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    pub n_in_flight: u32,
    pub n_places: u32,
    pub n_slots_free: u32,
    /// Times the engine died and was started again.
    pub n_restarts: u32,
}

impl Engine {
    /// Starts loading in the background; must be called inside a tokio runtime.
    pub fn start(config: EngineConfig, mode: EngineMode) -> Engine {
        let router = Arc::new(Router::new(config.n_places(), config.n_slots * config.n_workers));
        let (state, watch) = watch::channel(EngineState::Loading { progress: 0.0 });
        let max_wait = config.max_wait;
        let transport = transport::open(config, mode, Arc::clone(&router), state);
        Engine { shared: Arc::new(Shared { router, transport, state: watch, max_wait }) }
    }

    pub fn state(&self) -> EngineState {
        self.shared.state.borrow().clone()
    }

    pub fn watch(&self) -> watch::Receiver<EngineState> {
        self.shared.state.clone()
    }

    /// What is loaded; `None` unless ready.
    pub fn description(&self) -> Option<Arc<Description>> {
        match &*self.shared.state.borrow() {
            EngineState::Ready(description) => Some(Arc::clone(description)),
            _ => None,
        }
    }

    pub fn load(&self) -> Load {
        Load {
            n_in_flight: self.shared.router.in_flight().0,
            n_places: self.shared.router.n_places(),
            n_slots_free: self.shared.router.n_slots_free(),
            n_restarts: self.shared.transport.n_restarts(),
        }
    }

    /// How long a request of `owner` that comes now would wait for a slot, as far as anybody can tell.
    pub fn wait(&self, owner: u64) -> Duration {
        self.shared.router.wait(owner)
    }

    /// Errors: `Overloaded`, when the wait of a request of `owner` would be longer than the operator allows, or than
    /// `patience`. `which`: a number that the same request has when it comes again, as it is told to; `None`: it won't.
    pub fn refuse_long_wait(&self, owner: u64, which: Option<u64>, patience: Option<Duration>) -> Result<(), Failure> {
        let Some(most) = self.shared.max_wait.into_iter().chain(patience).min() else { return Ok(()) };
        self.shared.router.refuse_longer(owner, which, most, Instant::now())
    }

    /// Starts one generation. Errors at once when not ready, full, or refused for earlier crashes.
    pub fn generate(&self, request: GenerateRequest) -> Result<Generation, Failure> {
        self.refuse_under_pressure(request.class)?;
        let GenerateRequest { owner, class, comes_back, .. } = request;
        let place = Place::Generate { fingerprint: request.fingerprint(), owner, class, comes_back };
        self.submit(place, Command::Generate(Box::new(request)))
    }

    pub async fn tokenize(&self, request: TokenizeRequest) -> Result<Tokenized, Failure> {
        match self.ask(Command::Tokenize(request)).await? {
            Event::Tokens { tokens, pieces } => Ok(Tokenized { tokens, pieces }),
            other => Err(unexpected(&other)),
        }
    }

    /// Bytes of the tokens as text; what is not UTF-8 becomes U+FFFD.
    pub async fn detokenize(&self, tokens: Vec<i32>) -> Result<String, Failure> {
        match self.ask(Command::Detokenize(tokens)).await? {
            Event::Text(text) => Ok(text),
            other => Err(unexpected(&other)),
        }
    }

    /// The prompt that the model's chat template makes of `prompt`.
    pub async fn render(&self, prompt: ChatPrompt) -> Result<String, Failure> {
        match self.ask(Command::RenderChat(prompt)).await? {
            Event::Text(text) => Ok(text),
            other => Err(unexpected(&other)),
        }
    }

    /// Starts making vectors; returns when the inputs are tokens and fit.
    pub async fn embed(&self, request: EmbedRequest) -> Result<Vectorizing, Failure> {
        self.vectorize(Command::Embed(request)).await
    }

    /// Starts scoring documents; as [`Engine::embed`].
    pub async fn rerank(&self, request: RerankRequest) -> Result<Vectorizing, Failure> {
        self.vectorize(Command::Rerank(request)).await
    }

    async fn vectorize(&self, command: Command) -> Result<Vectorizing, Failure> {
        self.refuse_under_pressure(Class::Interactive)?;
        let mut generation = self.submit(Place::Short(command.fingerprint()), command)?;
        match generation.next().await {
            Some(Event::Accepted { n_prompt }) => Ok(Vectorizing { n_tokens: n_prompt, generation, ready: None }),
            // Nothing had to be computed.
            Some(Event::Vectors(vectors)) => Ok(Vectorizing { n_tokens: 0, generation, ready: Some(vectors) }),
            ended => Err(ended_by(ended)),
        }
    }

    pub async fn stats(&self) -> Result<Stats, Failure> {
        match self.ask(Command::Stats).await? {
            Event::Stats(stats) => Ok(stats),
            other => Err(unexpected(&other)),
        }
    }

    /// Stops the engine; requests still in flight end with `ShuttingDown`. Returns when it is gone.
    pub async fn close(&self) {
        self.shared.transport.close();
        let mut state = self.shared.state.clone();
        // An error means that the sender is gone, which is as stopped as can be.
        let _ = state.wait_for(|state| matches!(state, EngineState::Stopped)).await;
        self.shared.router.end_all(&Failure::ShuttingDown, false);
    }

    /// For what else is said to an engine.
    pub(super) fn parts(&self) -> (&Router, &dyn Transport) {
        (&self.shared.router, &*self.shared.transport)
    }

    fn submit(&self, place: Place, command: Command) -> Result<Generation, Failure> {
        if let Some(refusal) = self.shared.state.borrow().refusal() {
            return Err(refusal);
        }
        let (id, mailbox) = self.shared.router.admit(place)?;
        let generation = Generation { id, mailbox, engine: Arc::clone(&self.shared) };
        if let Err(failure) = self.shared.transport.send(id, command) {
            self.shared.router.dispatch(vec![(id, Event::Failed(failure.clone()))]);
            return Err(failure);
        }
        Ok(generation)
    }

    async fn ask(&self, command: Command) -> Result<Event, Failure> {
        match self.submit(Place::Short(command.fingerprint()), command)?.next().await {
            Some(Event::Failed(failure)) => Err(failure),
            Some(event) => Ok(event),
            None => Err(ended_by(None)),
        }
    }
}

fn unexpected(event: &Event) -> Failure {
    let kind = match event {
        Event::Accepted { .. } => "Accepted",
        Event::Progress { .. } => "Progress",
        Event::Delta(_) => "Delta",
        Event::Done(_) => "Done",
        Event::Tokens { .. } => "Tokens",
        Event::Text(_) => "Text",
        Event::Stats(_) => "Stats",
        Event::Vectors(_) => "Vectors",
        Event::Failed(_) => "Failed",
    };
    Failure::Internal(format!("the engine answered with {kind}, which does not belong here; this is a bug"))
}

/// Why there is no answer of the kind that was asked for.
fn ended_by(event: Option<Event>) -> Failure {
    match event {
        Some(Event::Failed(failure)) => failure,
        Some(other) => unexpected(&other),
        None => Failure::Internal("the engine ended the request without an answer; this is a bug".into()),
    }
}

/// Vectors that are being made. Dropping it cancels.
pub struct Vectorizing {
    /// Of all inputs.
    pub n_tokens: u32,
    generation: Generation,
    ready: Option<Vectors>,
}

impl Vectorizing {
    pub async fn finish(mut self) -> Result<Vectors, Failure> {
        if let Some(vectors) = self.ready {
            return Ok(vectors);
        }
        match self.generation.next().await {
            Some(Event::Vectors(vectors)) => Ok(vectors),
            ended => Err(ended_by(ended)),
        }
    }
}

/// The receiving half of a request. Dropping it before its ending cancels the request.
pub struct Generation {
    id: RequestId,
    mailbox: Arc<Mailbox>,
    engine: Arc<Shared>,
}

impl Generation {
    /// The next event, `None` after the ending one. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.mailbox.next().await
    }
}

impl Generation {
    /// A way to cancel it while somebody waits for its events: they go on to its ending, with all that was generated.
    pub fn canceller(&self) -> Canceller {
        Canceller { id: self.id, mailbox: Arc::clone(&self.mailbox), engine: Arc::clone(&self.engine) }
    }
}

/// Cancels one generation.
pub struct Canceller {
    id: RequestId,
    mailbox: Arc<Mailbox>,
    engine: Arc<Shared>,
}

impl Canceller {
    pub fn cancel(&self) {
        if !self.mailbox.has_ended() {
            // An error means that the engine is gone, and the request with it.
            let _ = self.engine.transport.send(self.id, Command::Cancel);
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.mailbox.has_ended() {
            // An error means that the engine is gone, and the request with it.
            let _ = self.engine.transport.send(self.id, Command::Cancel);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.transport.close();
    }
}
