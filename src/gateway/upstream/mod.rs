//! Other servers that answer in our stead: a second hearth, vLLM, a cloud.
//!
//! **Invariant:** nothing is connected to, nor a body written, unless the request may leave this server; that is decided
//! before anything here is called. What an upstream says is a stranger's: bounded, checked, and never repeated in an error
//! or a log. Once content was handed on there is no second try: two answers never become one.
//!
//! # Design
//! `class`, `breaker` and `budget` are pure and know no sockets; `attempt` is one try up to its first content; `stream` is
//! the rest of its answer, as events of an engine. Which target is tried when is the gateway's, in `answer`.

mod attempt;
mod breaker;
mod budget;
mod class;
mod collector;
mod connect;
mod health;
mod stream;

pub use breaker::{BreakerConfig, BreakerState};
pub use budget::RetryConfig;
pub use class::Class;
pub use collector::{Collector, CollectorConfig};
#[cfg(feature = "postgres")]
pub(in crate::gateway) use connect::tls as tls_of;
pub use health::HealthConfig;

pub(super) use attempt::{Call, Failed};
pub(super) use class::{Next, Situation, next};
pub(crate) use connect::{Body, Connector, HttpClient, client};
use health::{Latency, Probed};
pub(super) use stream::Remote;

use super::Price;
use crate::dialect::remote::Wire;
use crate::telemetry::metrics::UpstreamSeries;
use breaker::{Admit, Breaker, Outcome};
use budget::RetryBudget;
use http::{HeaderValue, Uri, header};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Most upstreams of one server.
pub const UPSTREAMS_MAX: usize = 64;

/// One `[[upstream]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamConfig {
    /// For routes, headers, metrics.
    pub name: String,
    pub base_url: BaseUrl,
    pub api_key: Option<Secret>,
    pub wire: Wire,
    pub timeouts: Timeouts,
    pub retry: RetryConfig,
    pub breaker: BreakerConfig,
    /// Requests at once.
    pub max_concurrency: u32,
    /// What its tokens cost.
    pub price: Price,
    /// Certificates to trust instead of the system's, PEM.
    pub ca: Option<PathBuf>,
    /// Sets of `[guardrails.NAME]` that hold for what it is asked.
    pub guardrails: Vec<String>,
    /// Asked whether it is well, beside what its answers tell.
    pub health: Option<HealthConfig>,
    /// An answer whose client has left is read on to the upstream's own count, up to [`DRAIN_MAX`].
    pub drains: bool,
}

/// Answers that are read on for their count at once, and the longest time of each.
const DRAINS_MAX: usize = 8;
pub(super) const DRAIN_MAX: Duration = Duration::from_secs(30);

impl UpstreamConfig {
    /// Reads what a connection needs. Errors: certificates that can't be read, in words for the operator.
    pub fn check(&self) -> Result<(), String> {
        self.connector().map(|_| ())
    }

    fn connector(&self) -> Result<Connector, String> {
        Connector::new(self.base_url.is_tls(), self.ca.as_deref(), self.timeouts.connect)
    }
}

/// `https://host[:port]/path`, without a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl {
    uri: Uri,
    text: String,
}

impl BaseUrl {
    /// `None`: not http(s), or with a user, a query or a fragment.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim_end_matches('/');
        let uri: Uri = text.parse().ok()?;
        let authority = uri.authority()?;
        let is_plain = !authority.as_str().contains('@') && uri.query().is_none() && !text.contains('#');
        let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
        (is_plain && is_web && !authority.host().is_empty()).then(|| Self { uri, text: text.to_owned() })
    }

    pub fn is_tls(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    pub fn host(&self) -> &str {
        self.uri.host().unwrap_or_default()
    }

    /// The address of `path`, which begins with a slash.
    pub(in crate::gateway) fn under(&self, path: &str) -> String {
        format!("{}{path}", self.text)
    }

    fn join(&self, path: &str) -> Option<Uri> {
        self.under(path).parse().ok()
    }
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// `None` where a header could not hold it.
    pub fn new(text: &str) -> Option<Self> {
        let fits = !text.is_empty() && text.len() <= 4096 && text.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| Self(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Duration,
    /// From the request to the first content.
    pub first_byte: Duration,
    /// Longest silence of a stream that has begun.
    pub idle: Duration,
    /// All attempts at all targets together, the answer's stream included.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            first_byte: Duration::from_secs(45),
            idle: Duration::from_secs(30),
            total: Duration::from_secs(600),
        }
    }
}

/// An upstream at work.
pub(super) struct Upstream {
    pub(super) config: UpstreamConfig,
    /// Errors are the operator's to cure: certificates that can't be read.
    client: Result<HttpClient, String>,
    /// `Authorization` or `x-api-key`.
    key: Option<(header::HeaderName, HeaderValue)>,
    state: Mutex<State>,
    places: Arc<Semaphore>,
    drains: Arc<Semaphore>,
    series: UpstreamSeries,
}

struct State {
    breaker: Breaker,
    budget: RetryBudget,
    last_class: Option<Class>,
    probed: Probed,
    latency: Latency,
}

/// How an upstream stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamStatus {
    pub name: String,
    pub breaker: BreakerState,
    pub n_in_flight: u32,
    /// Of the last attempt that ended.
    pub last_class: Option<Class>,
    /// Whether it was well when it was last asked; `None`: it is not asked.
    pub is_well: Option<bool>,
}

impl Upstream {
    pub(super) fn new(config: UpstreamConfig, series: UpstreamSeries) -> Arc<Self> {
        use crate::dialect::remote::Kind;
        let http = config.connector().map(|connector| client(connector, config.max_concurrency as usize));
        if let Err(error) = &http {
            tracing::error!(upstream = config.name, error, "an upstream can't be asked");
        }
        let key = config.api_key.as_ref().and_then(|Secret(key)| {
            let (name, text) = match config.wire.kind {
                Kind::Anthropic => (header::HeaderName::from_static("x-api-key"), key.clone()),
                Kind::OpenAi | Kind::Hearth => (header::AUTHORIZATION, format!("Bearer {key}")),
            };
            let mut value = HeaderValue::from_str(&text).ok()?;
            value.set_sensitive(true);
            Some((name, value))
        });
        let now = Instant::now();
        let state = State {
            breaker: Breaker::new(config.breaker.clone()),
            budget: RetryBudget::new(&config.retry, now),
            last_class: None,
            probed: Probed::default(),
            latency: Latency::new(now),
        };
        Arc::new(Self {
            client: http,
            key,
            state: Mutex::new(state),
            places: Arc::new(Semaphore::new(config.max_concurrency as usize)),
            drains: Arc::new(Semaphore::new(DRAINS_MAX)),
            series,
            config,
        })
    }

    pub(super) fn status(&self) -> UpstreamStatus {
        let state = self.lock();
        let n_free = u32::try_from(self.places.available_permits()).unwrap_or(u32::MAX);
        UpstreamStatus {
            name: self.config.name.clone(),
            breaker: state.breaker.state(),
            n_in_flight: self.config.max_concurrency.saturating_sub(n_free),
            last_class: state.last_class,
            is_well: self.config.health.is_some().then(|| !state.probed.is_down()),
        }
    }

    /// Asks it from now on whether it is well, where that is wanted; inside a runtime.
    pub(super) fn watch(self: &Arc<Self>) {
        if let (Some(config), Ok(runtime)) = (&self.config.health, tokio::runtime::Handle::try_current()) {
            runtime.spawn(health::watch(Arc::downgrade(self), config.clone()));
        }
    }

    /// Whether it would refuse at once; and its requests in flight, with one more, times the time to their first content.
    pub(super) fn standing(&self) -> (bool, f64) {
        let now = Instant::now();
        let state = self.lock();
        let n_free = self.places.available_permits();
        let is_down = state.probed.is_down() || state.breaker.refuses(now) || n_free == 0;
        let n_in_flight = (self.config.max_concurrency as usize).saturating_sub(n_free);
        (is_down, (n_in_flight + 1) as f64 * state.latency.seconds(now).max(1e-3))
    }

    /// Puts the breaker's state into its series.
    pub(super) fn tell_breaker(&self) {
        let state = self.lock().breaker.state();
        self.series.breaker(match state {
            BreakerState::Closed => 0,
            BreakerState::HalfOpen => 1,
            BreakerState::Open => 2,
        });
    }

    /// Counts a request that is meant for it, retries not.
    pub(super) fn note_request(&self) {
        self.lock().budget.request(Instant::now());
    }

    /// The pause before retry `n` (from 0), if the budget has one left.
    pub(super) fn retry(&self, n: u32) -> Option<Duration> {
        if !self.lock().budget.try_retry(Instant::now()) {
            return None;
        }
        self.series.retried();
        Some(self.config.retry.pause(n, rand::random()))
    }

    /// The right to make one attempt.
    fn admit(self: &Arc<Self>) -> Result<Ticket, Failed> {
        let admitted = {
            let mut state = self.lock();
            if state.probed.is_down() {
                return Err(Failed { is_own: true, ..Failed::new(Class::Transient, "unhealthy") });
            }
            state.breaker.admit(Instant::now())
        };
        let is_probe = match admitted {
            Admit::Go => false,
            Admit::Probe => true,
            Admit::Shut => return Err(Failed { is_own: true, ..Failed::new(Class::Transient, "breaker_open") }),
            Admit::Wait(wait) => {
                let failed = Failed::new(Class::Throttled, "asked_to_wait");
                return Err(Failed { retry_after: Some(wait), is_own: true, ..failed });
            }
        };
        Ok(Ticket { upstream: Arc::clone(self), is_probe, is_told: false })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One attempt as the breaker sees it. Dropped without a word, it says nothing about the target.
struct Ticket {
    upstream: Arc<Upstream>,
    is_probe: bool,
    is_told: bool,
}

impl Ticket {
    fn tell(&mut self, class: Class) {
        let outcome = match class {
            Class::Ok => Outcome::Good,
            // It answered, whatever it answered.
            Class::ClientFault | Class::PolicyStop | Class::Throttled if self.is_probe => Outcome::Good,
            class if class.is_failure() => Outcome::Bad,
            _ => Outcome::Neutral,
        };
        // The probe's verdict is its first; a failure behind it is one of a closed breaker.
        let is_probe = self.is_probe && !self.is_told;
        self.is_told = true;
        self.upstream.lock().breaker.record(Instant::now(), outcome, is_probe, rand::random());
    }

    fn pause(&self, wait: Duration) {
        self.upstream.lock().breaker.pause(Instant::now(), wait);
    }

    /// How it ended, for the counters; once.
    fn count(&self, class: Class) {
        self.upstream.lock().last_class = Some(class);
        self.upstream.series.ended(class.as_str());
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.is_told {
            self.tell(Class::Cancelled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_plain() {
        for good in ["https://api.openai.com/v1/", "http://127.0.0.1:8080/v1", "http://[::1]:80", "https://h"] {
            assert!(BaseUrl::new(good).is_some(), "{good}");
        }
        for bad in
            ["", "api.openai.com", "ftp://h/", "https://user@h/v1", "https://h/v1?x=1", "https://h/#x", "https:///v1"]
        {
            assert!(BaseUrl::new(bad).is_none(), "{bad}");
        }
        let url = BaseUrl::new("https://h:1/v1//").expect("an address");
        assert_eq!(url.join("/chat/completions").expect("an address"), "https://h:1/v1/chat/completions");
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", Secret::new("sk-1")), "Some(Secret(…))");
        assert!(Secret::new("a b").is_none() && Secret::new("").is_none() && Secret::new("a\nb").is_none());
    }
}
