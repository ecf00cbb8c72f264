//! One try at one upstream, up to its first content.

use super::class::{self, Class};
use super::stream::Remote;
use super::{Ticket, Upstream};
use crate::dialect::remote::{Outgoing, Reader, Said};
use crate::gateway::Price;
use crate::gateway::limits::Spend;
use crate::telemetry::context::{TRACEPARENT, TRACESTATE};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// What may come before the first content: role chunks, pings, empty deltas.
const HELD_EVENTS_MAX: usize = 64;
const HELD_BYTES_MAX: usize = 256 << 10;
/// Bytes of a request for one token of its prompt: right within a third for most languages.
const BYTES_A_TOKEN: u64 = 4;
/// Tokens of an answer that has no limit.
const ANSWER_TOKENS: u32 = 4096;
const HOP: header::HeaderName = header::HeaderName::from_static("x-hearth-hop");
const ANTHROPIC_VERSION: (&str, &str) = ("anthropic-version", "2023-06-01");

/// What an attempt needs to know of its request.
pub(in crate::gateway) struct Call<'a> {
    pub outgoing: &'a Outgoing,
    pub n_choices: usize,
    /// Servers like this one that it came through, this one included.
    pub hop: u8,
    /// Of all attempts together.
    pub deadline: Instant,
    /// Most tokens of an answer, where the client named a limit: a usage above it is a lie.
    pub max_tokens: Option<u32>,
}

impl Call<'_> {
    /// What an answer may cost at these prices: the prompt by its bytes, since nobody here counts it, and answers as long as
    /// they may be.
    pub(in crate::gateway) fn most(&self, price: &Price) -> Spend {
        let n_input = self.outgoing.body.len() as u64 / BYTES_A_TOKEN;
        let n_output = u64::from(self.max_tokens.unwrap_or(ANSWER_TOKENS)) * self.n_choices as u64;
        Spend { tokens: n_input + n_output, nusd: price.cost(n_input, 0, n_output) }
    }
}

/// Why an attempt came to nothing. Nothing of it has been handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gateway) struct Failed {
    pub class: Class,
    /// Ours, for the log and the record.
    pub word: &'static str,
    pub status: Option<u16>,
    pub retry_after: Option<Duration>,
    /// Nothing was sent: the breaker, a limit of ours.
    pub is_own: bool,
}

impl Failed {
    pub(super) fn new(class: Class, word: &'static str) -> Self {
        Self { class, word, status: None, retry_after: None, is_own: false }
    }
}

impl Upstream {
    /// Sends the request and waits for content, or for the answer's end if it has none. Cancel-safe: dropping it closes
    /// the connection.
    /// `trace`: what to say of it in `traceparent` and `tracestate`.
    pub(in crate::gateway) async fn attempt(
        self: &Arc<Self>,
        call: &Call<'_>,
        trace: (String, Option<&str>),
    ) -> Result<Remote, Failed> {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return Err(Failed { is_own: true, ..Failed::new(Class::Throttled, "all_places_taken") });
        };
        let mut ticket = self.admit()?;
        let started = Instant::now();
        let patience = call.deadline.min(started + self.config.timeouts.first_byte);
        let began = tokio::time::timeout_at(patience, self.begin(call, &trace)).await;
        let began = began.unwrap_or_else(|_| match Instant::now() >= call.deadline {
            true => Err(Failed::new(Class::Cancelled, "deadline")),
            false => Err(Failed::new(Class::Transient, "no_first_byte")),
        });
        match began {
            Ok(began) => {
                ticket.tell(Class::Ok);
                self.lock().latency.note(started.elapsed(), std::time::Instant::now());
                Ok(Remote::new(began, ticket, place, call))
            }
            Err(failed) => {
                self.note(&mut ticket, &failed);
                Err(failed)
            }
        }
    }

    fn note(&self, ticket: &mut Ticket, failed: &Failed) {
        ticket.tell(failed.class);
        ticket.count(failed.class);
        if let (Class::Throttled, Some(wait)) = (failed.class, failed.retry_after) {
            ticket.pause(wait);
        }
        let (upstream, status) = (self.config.name.as_str(), failed.status);
        tracing::warn!(upstream, class = failed.class.as_str(), status, reason = failed.word, "an upstream failed");
    }

    async fn begin(&self, call: &Call<'_>, trace: &(String, Option<&str>)) -> Result<Began, Failed> {
        let request = self.request(call, trace).ok_or(Failed::new(Class::Transient, "no_request"))?;
        let client = self.client.as_ref().map_err(|_| Failed::new(Class::Transient, "no_certificates"))?;
        let response = client.request(request).await.map_err(|error| {
            Failed::new(Class::Transient, if error.is_connect() { "not_connected" } else { "broken_off" })
        })?;
        check_head(&response)?;
        let mut began = Began {
            body: response.into_body(),
            reader: Reader::new(self.config.wire.kind, call.n_choices),
            said: Vec::new(),
            fault: None,
        };
        let (mut n_bytes, mut n_seen) = (0, 0);
        loop {
            let Some(frame) = began.body.frame().await else {
                return match began.said.iter().any(|said| matches!(said, Said::Finish(..))) {
                    true => Ok(began),
                    false => Err(Failed::new(Class::Transient, "ended_early")),
                };
            };
            let frame = frame.map_err(|_| Failed::new(Class::Transient, "broken_off"))?;
            let Ok(data) = frame.into_data() else { continue };
            n_bytes += data.len();
            if let Err(fault) = began.reader.push(&data, &mut began.said) {
                let (class, word) = class::of_fault(fault);
                // What came before the fault is the client's, and then there is no second try.
                if began.said[n_seen..].iter().any(is_content) {
                    began.fault = Some((class, word));
                    return Ok(began);
                }
                return Err(Failed::new(class, word));
            }
            if began.said[n_seen..].iter().any(|said| is_content(said) || *said == Said::End) {
                return Ok(began);
            }
            n_seen = began.said.len();
            if n_seen > HELD_EVENTS_MAX || n_bytes > HELD_BYTES_MAX {
                return Err(Failed::new(Class::Transient, "nothing_but_noise"));
            }
        }
    }

    fn request(
        &self,
        call: &Call<'_>,
        (parent, state): &(String, Option<&str>),
    ) -> Option<Request<super::connect::Body>> {
        let body = http_body_util::Full::new(Bytes::from(call.outgoing.body.clone()));
        let mut request = Request::post(self.config.base_url.join(call.outgoing.path)?)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "text/event-stream")
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::USER_AGENT, concat!("hearth/", env!("CARGO_PKG_VERSION")))
            .header(HOP, HeaderValue::from(u16::from(call.hop)))
            .body(body)
            .ok()?;
        let headers = request.headers_mut();
        headers.insert(TRACEPARENT, HeaderValue::from_str(parent).ok()?);
        if let Some(state) = state.and_then(|state| HeaderValue::from_str(state).ok()) {
            headers.insert(TRACESTATE, state);
        }
        if let Some((name, value)) = &self.key {
            headers.insert(name, value.clone());
        }
        if self.config.wire.kind == crate::dialect::remote::Kind::Anthropic {
            let (name, value) = ANTHROPIC_VERSION;
            headers.insert(name, HeaderValue::from_static(value));
        }
        Some(request)
    }
}

/// An answer that has begun.
pub(super) struct Began {
    pub(super) body: Incoming,
    pub(super) reader: Reader,
    /// Until now.
    pub(super) said: Vec<Said>,
    /// What broke it behind that.
    pub(super) fault: Option<(Class, &'static str)>,
}

/// Whether the client would see something of it.
fn is_content(said: &Said) -> bool {
    match said {
        Said::Delta(_, delta) => {
            !delta.content.is_empty() || !delta.reasoning.is_empty() || !delta.tool_calls.is_empty()
        }
        _ => false,
    }
}

fn check_head(response: &Response<Incoming>) -> Result<(), Failed> {
    let (status, headers) = (response.status().as_u16(), response.headers());
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let wait = class::retry_after(text("retry-after-ms"), text("retry-after"), SystemTime::now());
    let class = class::of_status(status, wait.is_some());
    if class != Class::Ok {
        return Err(Failed { status: Some(status), retry_after: wait, ..Failed::new(class, "status") });
    }
    let fault = |word| Err(Failed { status: Some(status), ..Failed::new(Class::Transient, word) });
    if is_encoded(headers) {
        return fault("encoded");
    }
    match text("content-type") {
        Some(kind) if kind.trim_start().to_ascii_lowercase().starts_with("text/event-stream") => Ok(()),
        _ => fault("not_a_stream"),
    }
}

/// Nothing is decompressed that nobody asked to be compressed.
fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity")
}
