//! The one door between clients' requests and engines: who asks, for which model, under which defaults, and what it cost.
//!
//! **Invariant:** nothing here knows JSON or status codes. A request that leaves for the engine has its sampling settled
//! and checked, and everything it holds comes back when its [`Running`] is dropped, whatever ended it.
//!
//! # Design
//! [`Gateway::chat`] returns only when every choice was accepted by the engine: validated, rendered, tokenised, fitting the
//! context and queued. Until then a failure is a plain error; after it, only the engine can fail the request. Choices of
//! one prompt start in two steps, the first alone: it proves that the prompt fits before it is copied for the others.

mod admission;
mod answer;
mod asked;
mod balance;
mod books;
mod cache;
mod choices;
mod error;
mod fetch;
mod folder;
mod guardrails;
mod hints;
mod keys;
pub mod limits;
mod live;
mod loading;
mod meter;
mod models;
mod names;
mod pressure;
mod report;
mod responses;
mod room;
mod route;
mod running;
mod scrape;
mod seal;
mod settle;
mod setup;

mod ship;
mod spans;
mod spec;
pub mod store;
mod target;
mod tenants;
mod trace;
mod upstream;
mod vectors;
mod walk;
mod work;

pub use books::{
    Books, BooksConfig, BooksError, BudgetChange, Capture, Entry, EntryHead, Granted, GrantedKey, GrantedTeam,
    KeyChange, Ledger, MASTER, Made, SOCKET, TeamChange, read_master,
};
pub use cache::{CacheConfig, CacheResult, CacheScope};
pub use error::Error;
pub use fetch::MediaHost;
pub use guardrails::{ClassifySpec, GuardrailSpec, Guardrails, RuleSpec};
pub use hints::Hints;
pub use keys::{
    ApiKey, BudgetRecord, Credential, Fixed, KEYS_MAX, KeyEntry, KeyHash, KeyRecord, Keyring, Pepper, Principal,
    Snapshot, TeamRecord, hmac, masked, random_base62,
};
pub use loading::Unloading;
pub use models::{KeepAlive, Listed, LoadLimits, MODELS_MAX, ModelConfig, ModelSetup, ModelStatus, Size};
pub use names::{NAMES_MAX, is_wild};
pub use pressure::MemoryWatch;
pub use responses::{ResponseStore, ResponsesConfig, StoredResponse};
pub use route::{CHAIN_MAX, Condition, HOPS_MAX, RULES_MAX, RouteConfig, RoutingConfig};
pub use running::Running;
pub use settle::default_sampling;
pub use ship::{Lag, ShipConfig};
pub use spec::{
    AuditLevel, BudgetSpec, Egress, KeySpec, LimitSpec, NUSD, NUSD_MAX, Period, PeriodUnit, Price, Role, SharedSpec,
    TeamSpec, nusd, usd,
};
pub use target::Target;
pub use trace::{AskedFor, Attempt, EndOfAnswer, Generated, Head, Told, Trace, UsageSource};
pub use upstream::{
    BaseUrl, BreakerConfig, BreakerState, Class, Collector, CollectorConfig, HealthConfig, RetryConfig, Secret,
    Timeouts, UPSTREAMS_MAX, UpstreamConfig, UpstreamStatus,
};
pub(crate) use upstream::{Body as HttpClientBody, Connector as HttpConnector, HttpClient, client as http_client};
pub use vectors::{Classified, Embedded, Scored};

use crate::chat::{ChatPrompt, Prompt, Sampling};
use crate::engine::{
    Description, Engine, EngineMode, EngineState, Failure, Load, Stats, TokenizeRequest, Tokenized, choose_adapters,
};
use crate::telemetry::Metrics;
use crate::telemetry::context::TraceContext;
use crate::telemetry::otlp::Exporter;
use arc_swap::ArcSwap;
use cache::Cache;
use fetch::Fetcher;
use guardrails::Judge;
use limits::{LimitSets, Limiter};
use live::Live;
use models::Models;
use report::Reporter;
use route::Route;
use settle::{refuse_media, settle_chat};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// What the operator decides about the API, independent of sockets.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// The name under which the model is served; every answer carries it. Of several models, the first.
    pub model_id: String,
    /// Further names that clients may use, also patterns such as `gpt-*`.
    pub aliases: Vec<String>,
    /// Keys that open the API; none: it is open.
    pub api_keys: Vec<ApiKey>,
    /// Refuse requests with fields that nobody knows, instead of listing them in a header.
    pub strict: bool,
    /// Serve whatever model name is asked for.
    pub any_model: bool,
    /// The operator's sampling defaults: under the client's, over the model's. Checked by whoever reads them.
    pub sampling: Sampling,
    /// What the first model's tokens cost.
    pub price: Price,
    /// When the model began to be served, in unix seconds.
    pub n_created: u64,
    /// Where images may be fetched from; none: nowhere.
    pub media_hosts: Vec<MediaHost>,
    /// Folder whose images `file://` addresses name, with all links in its own path resolved.
    pub media_path: Option<std::path::PathBuf>,
    /// What is kept of the Responses API's answers.
    pub responses: ResponsesConfig,
    /// The cache of answers, and other servers that may answer.
    pub routing: RoutingConfig,
    /// Named sets of limits.
    pub limits: LimitSets,
    /// Named sets of rules for what comes in and goes out.
    pub guardrails: Guardrails,
}

/// Who asks, and under which name the log knows the request.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    pub principal: Principal,
    pub request_id: String,
    /// What the request's head says beside.
    pub hints: Hints,
    /// What becomes of it.
    pub trace: Trace,
    /// Where the client is, as far as trusted proxies tell; `None`: not on a network.
    pub client_ip: Option<IpAddr>,
    /// Its row, where rows are kept.
    pub entry: Option<Arc<Entry>>,
}

impl Caller {
    /// Which model its request is for, under which name it was asked for, and what that costs.
    fn of_model(&self, asked: Option<&str>, model: &str, price: Price) {
        self.trace.of_model(asked, model);
        if let Some(entry) = &self.entry {
            entry.of_model(asked, model, price);
        }
    }
}

pub struct Gateway {
    /// What a reload swaps; each use takes the snapshot of its time.
    live: ArcSwap<Live>,
    models: Models,
    metrics: Arc<Metrics>,
    fetcher: Fetcher,
    /// Asks the classifiers of the operator's rules.
    judge: Arc<Judge>,
    responses: Arc<ResponseStore>,
    cache: Option<Arc<Cache>>,
    limiter: Limiter,
    reporter: Arc<Reporter>,
    /// Of `--data-dir`; none: the static keys are all, and nothing is written.
    books: Option<Arc<Books>>,
}

/// Longest wait for the engine's counters at a scrape; an engine deep in a decode answers after it.
const STATS_WAIT: Duration = Duration::from_secs(2);

impl Gateway {
    /// Serves one model, whose engine runs already.
    pub fn new(config: GatewayConfig, engine: Engine, metrics: Arc<Metrics>) -> Self {
        let model = ModelConfig {
            aliases: config.aliases.clone(),
            sampling: config.sampling.clone(),
            n_created: config.n_created,
            price: config.price,
            ..ModelConfig::new(config.model_id.clone())
        };
        Self::of(config, Models::given(model, engine), metrics)
    }

    /// Serves several models, each with an engine of its own; the first is the one meant by no name. Starts those that
    /// are to be loaded at the start; must be called inside a tokio runtime. `models`: 1..=[`MODELS_MAX`].
    pub fn open(
        config: GatewayConfig,
        models: Vec<ModelSetup>,
        mode: &EngineMode,
        limits: LoadLimits,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self::of(config, Models::open(models, mode, limits), metrics)
    }

    fn of(config: GatewayConfig, models: Models, metrics: Arc<Metrics>) -> Self {
        let responses = Arc::new(ResponseStore::open(config.responses.clone()));
        let fetcher = Fetcher::new(config.media_hosts.clone(), config.media_path.clone());
        let configs: Vec<_> = models.shared.entries.iter().map(models::Entry::config).collect();
        let cache = config.routing.cache.enabled.then(|| Cache::new(config.routing.cache.clone()));
        let (limiter, reporter) = (admission::limiter(), Arc::new(Reporter::of(Arc::clone(&metrics), None)));
        let live = ArcSwap::from_pointee(Live::new(config, configs.iter().map(Arc::as_ref), None, &metrics));
        let judge = Judge::new(Arc::clone(&models.shared), Arc::clone(&metrics));
        Self { live, models, metrics, responses, fetcher, judge, cache, limiter, reporter, books: None }
    }

    /// With the keys of `books` beside the static ones, and a row in them for every request.
    pub fn with_books(mut self, books: Arc<Books>) -> Self {
        self.books = Some(books);
        self
    }

    /// With traces that go to a collector.
    pub fn with_traces(mut self, exporter: Arc<Exporter>) -> Self {
        self.reporter = Arc::new(Reporter::of(Arc::clone(&self.metrics), Some(exporter)));
        self
    }

    /// Part of new traces that are recorded.
    pub fn trace_ratio(&self) -> f64 {
        self.reporter.ratio()
    }

    pub fn books(&self) -> Option<&Arc<Books>> {
        self.books.as_ref()
    }

    /// The record of a request that came in: to be held by all who work on it.
    pub fn trace(&self, context: TraceContext, head: Head) -> Trace {
        Trace::new(context, Some(Arc::clone(&self.reporter)), head)
    }

    /// Whether `presented` opens the API from `ip`. Static keys first: they are few.
    pub fn authenticate(&self, presented: Option<&str>, ip: Option<IpAddr>) -> Result<Principal, Error> {
        let live = self.live.load();
        let fixed = &live.config.api_keys;
        let Some(books) = &self.books else { return keys::authenticate(fixed, presented) };
        if !fixed.is_empty()
            && let Ok(principal) = keys::authenticate(fixed, presented)
        {
            return Ok(principal);
        }
        books.keyring().authenticate(presented.unwrap_or_default(), ip, unix_ms())
    }

    pub async fn tokenize(
        &self,
        caller: &Caller,
        model: Option<&str>,
        mut request: TokenizeRequest,
    ) -> Result<(Tokenized, u32), Error> {
        let target = self.target(caller, model).await?;
        request.partition = caller.principal.partition();
        if let Prompt::Chat(prompt) = &mut request.prompt {
            self.admit_media(prompt, 1, &target.description).await?;
            settle_chat(prompt, &target.config);
        }
        Ok((target.engine.tokenize(request).await?, target.description.n_ctx))
    }

    /// How many tokens the prompt of a chat would have: with the operator's instruction, of which nothing else is told.
    pub async fn count(&self, caller: &Caller, model: Option<&str>, mut prompt: ChatPrompt) -> Result<usize, Error> {
        let live = self.live.load_full();
        let alias = live.route(model).map_or(&[][..], |route| route.config.guardrails.as_slice());
        let target = self.target(caller, model).await?;
        let border = live.border(caller, alias, &target.config.guardrails)?;
        border.enter_chat(&mut prompt)?;
        let tenant = caller.principal.partition();
        border.judge(&self.judge, (tenant, None), || border.texts_of_chat(&prompt)).await?;
        let prompt = Prompt::Chat(prompt);
        let request =
            TokenizeRequest { prompt, add_special: true, parse_special: true, with_pieces: false, partition: tenant };
        Ok(self.tokenize(caller, model, request).await?.0.tokens.len())
    }

    pub async fn detokenize(&self, caller: &Caller, model: Option<&str>, tokens: Vec<i32>) -> Result<String, Error> {
        Ok(self.target(caller, model).await?.engine.detokenize(tokens).await?)
    }

    pub async fn render(&self, caller: &Caller, model: Option<&str>, mut prompt: ChatPrompt) -> Result<String, Error> {
        let target = self.target(caller, model).await?;
        self.admit_media(&mut prompt, 1, &target.description).await?;
        settle_chat(&mut prompt, &target.config);
        Ok(target.engine.render(prompt).await?)
    }

    /// Refuses media that the model doesn't take, then fetches those that stand elsewhere.
    async fn admit_media(
        &self,
        prompt: &mut ChatPrompt,
        n_choices: u32,
        description: &Description,
    ) -> Result<(), Error> {
        refuse_media(prompt, n_choices, description)?;
        self.fetcher.resolve(prompt).await?;
        refuse_media(prompt, n_choices, description)
    }

    /// The model that `name` means (no name: the first), loaded and held until the target is dropped. A lazy model is
    /// loaded first, and the load waited for.
    ///
    /// Errors: `UnknownModel`, also for one that `caller` may not use · `NotReady` while a model that is loaded at the start still loads, when a load failed or
    /// takes too long, or when no memory can be freed for it · `Overloaded` when too many wait for the same load.
    pub async fn target(&self, caller: &Caller, name: Option<&str>) -> Result<Target, Error> {
        let idx = self.find(&caller.principal, name)?;
        let config = self.models.shared.entries[idx].config();
        caller.of_model(name, &config.id, config.price);
        self.opened(idx, self.share_of(caller).0).await
    }

    /// What is loaded, if `name` (or no name) means it. Loads nothing; see [`Gateway::target`].
    pub fn model(&self, caller: &Caller, name: Option<&str>) -> Result<Arc<Description>, Error> {
        self.models.description(self.find(&caller.principal, name)?)
    }

    /// What is loaded of the first model, whatever it is called.
    pub fn description(&self) -> Result<Arc<Description>, Error> {
        self.models.description(0)
    }

    /// The name to ask for when an API has names of its own for the served model: one that fits `pattern` and means no
    /// model here stands for the first. For Anthropic's clients, which ask for `claude-*`.
    pub fn stand_in(&self, name: Option<String>, pattern: &str) -> Option<String> {
        let live = self.live.load();
        let is_known = |name: &String| live.names.find(name).is_some() || live.routes.find(name).is_some();
        name.filter(|name| is_known(name) || !names::fits(pattern, name))
    }

    /// Sets how long the model that `name` means stays loaded after its last request, until it is unloaded; 0 unloads it
    /// once nobody needs it. Models that the operator wants to stay do. To be called while a request holds the model (a
    /// [`Target`] or [`Running`] lives): without one, 0 takes effect at once.
    pub fn touch(&self, caller: &Caller, name: Option<&str>, keep_alive: KeepAlive) -> Result<(), Error> {
        // What others serve stays as long as they like.
        if self.live.load().route(name).is_none_or(Route::has_home) {
            self.models.touch(self.find(&caller.principal, name)?, keep_alive);
        }
        Ok(())
    }

    /// Sets the scales of a model's LoRA adapters where requests say nothing; those not named are off. Kept until the
    /// server stops, also when the model is unloaded. Errors: an id or a scale that is refused, as `lora[i]`.
    pub async fn set_adapter_scales(
        &self,
        caller: &Caller,
        name: Option<&str>,
        asked: &[(u32, f32)],
    ) -> Result<(), Error> {
        let target = self.target(caller, name).await?;
        let chosen = choose_adapters(&target.adapter_scales(), Some(asked))?;
        let mut scales = vec![0.0; target.description.adapters.len()];
        for (id, scale) in chosen {
            scales[id as usize] = scale;
        }
        target.set_adapter_scales(scales);
        Ok(())
    }

    /// All models, in the order of the configuration.
    pub fn models(&self) -> Vec<Listed> {
        self.models.list()
    }

    /// The models that `principal` may use, each with the names it may use them under: first the id, then aliases that
    /// are no patterns. A model of which only an alias is granted has that as its first name.
    pub fn models_for(&self, principal: &Principal) -> Vec<(Vec<String>, Listed)> {
        let named = |listed: Listed| {
            let id = listed.config.id.as_str();
            let aliases = listed.config.aliases.iter().map(String::as_str).filter(|name| !is_wild(name));
            let names = std::iter::once(id).chain(aliases).filter(|name| principal.may_use(id, name));
            let names: Vec<String> = names.map(str::to_owned).collect();
            (!names.is_empty()).then_some((names, listed))
        };
        self.models.list().into_iter().filter_map(named).collect()
    }

    /// The model that `name` means, loaded or not.
    pub fn listed(&self, caller: &Caller, name: Option<&str>) -> Result<Listed, Error> {
        let idx = self.find(&caller.principal, name)?;
        self.models.list().into_iter().nth(idx).ok_or_else(|| Error::unknown_model(name.unwrap_or_default()))
    }

    pub fn responses(&self) -> &Arc<ResponseStore> {
        &self.responses
    }

    /// The id and state of the first model that is loaded at the start and not ready; `None` when all are.
    pub fn unready(&self) -> Option<(String, EngineState)> {
        let states = self.models.started().into_iter().map(|(id, states)| (id, states.borrow().clone()));
        states.into_iter().find(|(_, state)| state.refusal().is_some())
    }

    /// The states of the models that are loaded at the start, with their ids.
    pub fn started(&self) -> Vec<(String, watch::Receiver<EngineState>)> {
        self.models.started()
    }

    /// Stops all engines; requests still in flight end with `ShuttingDown`. Returns when they are gone.
    pub async fn close(&self) {
        self.models.close().await;
        self.close_cache().await;
    }

    /// Requests in flight and the room for them, over all loaded models.
    pub fn load(&self) -> Load {
        let mut sum = Load::default();
        for engine in (0..self.models.shared.entries.len()).filter_map(|idx| self.models.engine(idx)) {
            let load = engine.load();
            sum.n_in_flight += load.n_in_flight;
            sum.n_places += load.n_places;
            sum.n_slots_free += load.n_slots_free;
            sum.n_restarts += load.n_restarts;
        }
        sum
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Counters of the model that `name` means, if it is loaded.
    pub async fn stats(&self, caller: &Caller, name: Option<&str>) -> Result<Stats, Error> {
        let idx = self.find(&caller.principal, name)?;
        self.models.description(idx)?;
        let engine = self.models.engine(idx).ok_or(Failure::ShuttingDown)?;
        stats(&engine).await
    }

    /// Name, context and counters of each loaded model; one that can't be asked now is left out.
    pub async fn slots(&self) -> Vec<(String, u32, Stats)> {
        let read = |(idx, listed): (usize, Listed)| async move {
            let n_ctx = self.models.description(idx).ok()?.n_ctx;
            let stats = stats(&self.models.engine(idx)?).await.ok()?;
            Some((listed.config.id.clone(), n_ctx, stats))
        };
        let all = futures_util::future::join_all(self.models().into_iter().enumerate().map(read)).await;
        all.into_iter().flatten().collect()
    }

    /// Keeps the request's words, where the operator, its key and its team all allow it.
    async fn capture(&self, caller: &Caller, prompts: impl FnOnce() -> Vec<Prompt>) -> Result<(), Error> {
        let (Some(books), Some(entry), Some(key)) = (&self.books, &caller.entry, caller.principal.key()) else {
            return Ok(());
        };
        let capture = books.capture(key).await.map_err(|error| {
            tracing::error!(%error, "a request's words can't be kept");
            Error::LedgerUnavailable
        })?;
        if let Some(capture) = capture {
            entry.keep(capture, prompts().iter());
        }
        Ok(())
    }
}

async fn stats(engine: &Engine) -> Result<Stats, Error> {
    match tokio::time::timeout(STATS_WAIT, engine.stats()).await {
        Ok(stats) => Ok(stats?),
        Err(_) => Err(Failure::NotReady { reason: "the engine is busy".to_owned(), retry_after_s: 1 }.into()),
    }
}

/// Milliseconds since 1970 by the wall clock.
pub fn unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// A fresh name: `prefix` and 24 letters or digits (142 bits).
pub fn random_name(prefix: &str) -> String {
    prefix.to_owned() + &random_letters(24)
}

/// A name for a request. Later ones sort behind earlier ones, so that what is ordered by them grows at its end.
pub fn request_name() -> String {
    let mut ms = u64::try_from(unix_ms()).unwrap_or_default();
    let mut time = [b'0'; 7];
    for place in time.iter_mut().rev() {
        *place = ALPHABET[(ms % 62) as usize];
        ms /= 62;
    }
    let time: String = time.into_iter().map(char::from).collect();
    format!("req_{time}{}", random_letters(17))
}

/// In the order of their bytes.
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

fn random_letters(n: usize) -> String {
    (0..n).map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_fresh_and_of_one_length() {
        let (a, b) = (random_name("req_"), random_name("req_"));
        assert_ne!(a, b);
        assert_eq!(a.len(), 28);
        assert!(a.starts_with("req_") && a[4..].bytes().all(|byte| byte.is_ascii_alphanumeric()));
        let first = request_name();
        std::thread::sleep(std::time::Duration::from_millis(3));
        let second = request_name();
        assert!(first < second && first.len() == 28 && first.starts_with("req_"), "{first} {second}");
    }
}
