//! A request's record → its spans.
//!
//! **Invariant:** numbers, words of ours and names that the operator gave; of the client's own only what was checked for it
//! ([`super::report`]). No prompt, answer, tool, stop string or header, whatever a key allows.
//!
//! # Design
//! ```text
//! chat qwen                what the client waited for
//! ├─ engine qwen           a try at a model here
//! │  ├─ queue              from acceptance to a slot
//! │  ├─ prefill            to the first token
//! │  └─ decode             to the last
//! └─ upstream cloud        a try at another server, whose own spans are parts of it
//! ```
//! Made once, when all is known, so that a request that is not recorded costs nothing on its way.

use super::trace::{Attempt, Generated, Told};
use crate::telemetry::context::{SpanId, TraceContext};
use crate::telemetry::semconv::{PROVIDER, attribute, event, span};
use crate::telemetry::spans::{Span, SpanKind};
use std::time::{Duration, Instant, SystemTime};

/// Longest name of a model, as a client gave it, that a span repeats.
const NAME_BYTES_MAX: usize = 128;

/// When things were, by the wall clock of the request's begin: one that is set meanwhile moves nothing.
struct Clock(Instant, SystemTime);

impl Clock {
    fn at(&self, instant: Instant) -> SystemTime {
        self.1 + instant.saturating_duration_since(self.0)
    }

    fn after(&self, time: Duration) -> SystemTime {
        self.1 + time
    }
}

/// Empty where no model was asked to make anything.
pub(super) fn spans(context: &TraceContext, began: (Instant, SystemTime), told: &Told) -> Vec<Span> {
    let Some(operation) = told.head.operation else { return Vec::new() };
    let clock = Clock(began.0, began.1);
    let mut spans = vec![request(context, &clock, operation, told)];
    for attempt in &told.attempts {
        spans.push(tried(context, &clock, attempt));
        // The answer that is given is the last that was made here.
        let is_given = attempt.class == super::Class::Ok || told.attempts.len() == 1;
        if let (false, true, Some(made)) = (attempt.is_upstream, is_given, &told.generated) {
            spans.extend(phases(context, &clock, attempt.span, made));
        }
    }
    spans
}

fn new(context: &TraceContext, name: String, kind: SpanKind, (start, end): (SystemTime, SystemTime)) -> Span {
    Span {
        context: context.clone(),
        id: SpanId::fresh(),
        parent: Some(context.span),
        name,
        kind,
        start,
        end,
        attributes: Vec::new(),
        events: Vec::new(),
        has_failed: false,
    }
}

fn request(context: &TraceContext, clock: &Clock, operation: &'static str, told: &Told) -> Span {
    let (head, end) = (&told.head, told.end.as_ref());
    let took = end.map_or_else(|| clock.0.elapsed(), |end| end.took);
    // One that may be anything is not repeated; then it is called what it means.
    let asked = told.model_asked.as_deref().filter(|name| is_plain(name)).or(told.model.as_deref());
    let name = asked.map_or_else(|| operation.to_owned(), |model| format!("{operation} {model}"));
    let mut root = new(context, name, SpanKind::Server, (clock.1, clock.after(took)));
    (root.id, root.parent) = (context.span, context.parent);
    root.say(attribute::OPERATION_NAME, operation);
    root.say(attribute::PROVIDER_NAME, PROVIDER);
    root.may_say(attribute::REQUEST_MODEL, asked);
    root.may_say(attribute::RESPONSE_MODEL, told.model.as_deref().filter(|_| told.generated.is_some()));
    root.say(attribute::HTTP_METHOD, head.method);
    root.may_say(attribute::HTTP_ROUTE, head.endpoint.as_deref());
    root.say(attribute::REQUEST_ID, head.request_id.as_str());
    root.may_say(attribute::CLIENT_REQUEST_ID, head.client_request_id.as_deref());
    root.may_say(attribute::KEY_ID, head.key_id.as_deref());
    root.may_say(attribute::TEAM_ID, head.team_id.as_deref());
    root.may_say(attribute::SERVED_BY, told.served_by.as_deref());
    root.may_say(attribute::CACHE, told.cache.map(|result| result.as_str()));
    if let Some(asked) = &told.asked {
        root.may_say(attribute::REQUEST_CHOICE_COUNT, Some(asked.n_choices).filter(|n| *n != 1));
        root.may_say(attribute::REQUEST_MAX_TOKENS, asked.max_tokens);
        root.may_say(attribute::REQUEST_TEMPERATURE, asked.temperature);
        root.may_say(attribute::REQUEST_TOP_P, asked.top_p);
        root.may_say(attribute::REQUEST_TOP_K, asked.top_k);
        root.may_say(attribute::REQUEST_SEED, asked.seed);
        root.may_say(attribute::REQUEST_FREQUENCY_PENALTY, asked.frequency_penalty);
        root.may_say(attribute::REQUEST_PRESENCE_PENALTY, asked.presence_penalty);
    }
    if let Some(made) = &told.generated {
        answer(&mut root, clock, made);
    }
    if let Some(end) = end {
        root.say(attribute::HTTP_STATUS, end.status);
        root.say(attribute::STREAM, end.is_stream);
        root.has_failed = end.status >= 500 || (end.error_code.is_some() && end.status < 400);
        if end.status >= 400 || root.has_failed {
            let status = end.status.to_string();
            root.say(attribute::ERROR_TYPE, end.error_code.as_deref().unwrap_or(&status));
        }
    }
    root
}

/// What was made for it.
fn answer(root: &mut Span, clock: &Clock, made: &Generated) {
    use super::trace::UsageSource;
    let usage = &made.usage;
    root.say(attribute::OUTCOME, made.outcome);
    root.say(attribute::USAGE_INPUT_TOKENS, usage.prompt_tokens);
    if made.first_token.is_some() || usage.completion_tokens > 0 {
        root.say(attribute::USAGE_OUTPUT_TOKENS, usage.completion_tokens);
    }
    root.may_say(attribute::USAGE_CACHE_READ, Some(usage.cached_tokens).filter(|n| *n > 0));
    root.may_say(attribute::USAGE_REASONING, Some(usage.reasoning_tokens).filter(|n| *n > 0));
    root.say(attribute::USAGE_SOURCE, made.source.as_str());
    root.may_say(attribute::USAGE_COST, Some(made.cost_nusd).filter(|cost| *cost > 0).map(|cost| cost as f64 / 1e9));
    if !made.finishes.is_empty() {
        root.say(attribute::RESPONSE_FINISH_REASONS, made.finishes.clone());
    }
    if let Some(first) = made.first_token.filter(|_| made.source != UsageSource::Cache) {
        root.events.push((event::FIRST_TOKEN, clock.at(first)));
    }
}

fn tried(context: &TraceContext, clock: &Clock, attempt: &Attempt) -> Span {
    let (word, kind) =
        if attempt.is_upstream { (span::UPSTREAM, SpanKind::Client) } else { (span::ENGINE, SpanKind::Internal) };
    let times = (clock.after(attempt.began), clock.after(attempt.began + attempt.took));
    let mut tried = new(context, format!("{word} {}", attempt.target), kind, times);
    tried.id = attempt.span;
    tried.say(attribute::TARGET, attempt.target.as_str());
    tried.say(attribute::CLASS, attempt.class.as_str());
    tried.may_say(attribute::HTTP_STATUS, attempt.status);
    tried.say(attribute::USAGE_SOURCE, attempt.source.as_str());
    tried.may_say(attribute::REPLACED, Some(true).filter(|_| attempt.was_replaced));
    tried.has_failed = attempt.class.is_failure();
    if tried.has_failed {
        tried.say(attribute::ERROR_TYPE, attempt.class.as_str());
    }
    tried
}

/// Where the time of an answer went that an engine here made, as the engine measured it, counted from the first token.
fn phases(context: &TraceContext, clock: &Clock, parent: SpanId, made: &Generated) -> Vec<Span> {
    let Some(timings) = made.timings else { return Vec::new() };
    // An empty answer has none.
    let first = made.first_token.unwrap_or(made.ended);
    let micros = Duration::from_micros;
    let (slot, last) = (first.checked_sub(micros(timings.prompt_us)), first + micros(timings.predicted_us));
    let slot = slot.unwrap_or(made.began).max(made.began);
    let accepted = slot.checked_sub(micros(timings.queue_us)).unwrap_or(made.began).max(made.began);
    let last = last.min(made.ended);
    [(span::QUEUE, accepted, slot), (span::PREFILL, slot, first), (span::DECODE, first, last)]
        .map(|(name, start, end)| {
            let mut phase = new(context, name.to_owned(), SpanKind::Internal, (clock.at(start), clock.at(end)));
            phase.parent = Some(parent);
            phase
        })
        .to_vec()
}

/// A name as models have them, and no text.
fn is_plain(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/@+-".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_plain)
}
