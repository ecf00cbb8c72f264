//! What limits say on the wire: the 429s in OpenAI's words, and what is left in every answer's head.

use super::error::ApiError;
use super::family::Family;
use crate::gateway::limits::{LimitKind, LimitRefusal, Rate, ScopeKind, Standing};
use crate::gateway::usd;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use std::time::{Duration, SystemTime};

/// SDKs wait as long as they are told up to this; a budget's next month is no time to wait for.
const QUOTA_WAIT_MAX: Duration = Duration::from_secs(120);

impl ApiError {
    /// A limit of a key, a team, an address or the server was reached.
    pub(super) fn limited(refusal: LimitRefusal, model: &str) -> Self {
        let LimitRefusal { scope, kind, limit, used, requested, retry_after } = refusal;
        let whose = whose(scope);
        let (on, of_kind) = match kind {
            LimitKind::Requests => ("requests per min (RPM)", "requests"),
            LimitKind::Tokens => ("tokens per min (TPM)", "tokens"),
            LimitKind::Parallel => ("requests at once", "requests"),
            LimitKind::Queue => {
                let message = format!(
                    "The server is busy, and {used} requests of {whose} wait already (limit {limit}). Please try again."
                );
                let seconds = retry_after.map_or(1, |wait| u32::try_from(wait.as_secs()).unwrap_or(60));
                return Self::unavailable("server_is_overloaded", message, seconds);
            }
            LimitKind::Money | LimitKind::BudgetTokens => return Self::quota(refusal),
        };
        let Some(wait) = retry_after else {
            let message = format!(
                "Request too large for {model} of {whose} on {on}: Limit {limit}, Requested {requested}. The input or \
                 output tokens must be reduced in order to run successfully."
            );
            let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, of_kind, Some("rate_limit_exceeded"), message);
            error.should_retry = Some(false);
            return error;
        };
        let message = format!(
            "Rate limit reached for {model} of {whose} on {on}: Limit {limit}, Used {used}, Requested {requested}. Please \
             try again in {}.",
            text_of(wait)
        );
        Self::new(StatusCode::TOO_MANY_REQUESTS, of_kind, Some("rate_limit_exceeded"), message).after(wait)
    }

    /// A budget is spent.
    fn quota(refusal: LimitRefusal) -> Self {
        let LimitRefusal { scope, kind, limit, used, requested, retry_after } = refusal;
        let amount = |n: u64| match kind {
            LimitKind::Money => format!("${}", usd(i64::try_from(n).unwrap_or(i64::MAX))),
            _ => format!("{n} tokens"),
        };
        let mut message = format!(
            "You exceeded your current quota: {} has a budget of {}, of which {} are spent or reserved, and this request may \
             take {}.",
            whose(scope),
            amount(limit),
            amount(used),
            amount(requested)
        );
        if let Some(wait) = retry_after {
            message += &format!(" It begins anew in {}.", text_of(wait));
        }
        const QUOTA: &str = "insufficient_quota";
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, QUOTA, Some(QUOTA), message);
        let mut error = match retry_after {
            Some(wait) if wait < QUOTA_WAIT_MAX => error.after(wait),
            _ => error,
        };
        error.should_retry = Some(false);
        error
    }
}

/// The owner of a limit, as the client may know it.
fn whose(scope: ScopeKind) -> &'static str {
    match scope {
        ScopeKind::Key => "this key",
        ScopeKind::EndUser => "this end user",
        ScopeKind::User => "this key's user",
        ScopeKind::Team => "this key's team",
        ScopeKind::Budget => "those who share this key's budget",
        ScopeKind::Ip => "this address",
        ScopeKind::Global => "this server",
    }
}

/// `12ms`, `1.5s`, `6m0s`, as OpenAI writes times. Rounded up, so that who waits so long waits long enough.
fn text_of(time: Duration) -> String {
    let ms = time.as_nanos().div_ceil(1_000_000);
    if ms < 1000 {
        return format!("{ms}ms");
    }
    if ms < 60_000 {
        let text = format!("{}.{:03}", ms / 1000, ms % 1000);
        return format!("{}s", text.trim_end_matches('0').trim_end_matches('.'));
    }
    let seconds = ms.div_ceil(1000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}h{minutes}m{seconds}s") } else { format!("{minutes}m{seconds}s") }
}

/// Says what the caller has left, as its API says it. The numbers hold while the request still runs: what it may come to is
/// taken already.
pub(super) fn mark(headers: &mut HeaderMap, standing: &Standing, family: Family) {
    let now = SystemTime::now();
    for (kind, rate) in [("requests", standing.requests), ("tokens", standing.tokens)] {
        let Some(Rate { limit, remaining, reset }) = rate else { continue };
        let names_and_values = match family {
            Family::Anthropic => [
                (format!("anthropic-ratelimit-{kind}-limit"), limit.to_string()),
                (format!("anthropic-ratelimit-{kind}-remaining"), remaining.to_string()),
                (format!("anthropic-ratelimit-{kind}-reset"), rfc3339(now + reset)),
            ],
            _ => [
                (format!("x-ratelimit-limit-{kind}"), limit.to_string()),
                (format!("x-ratelimit-remaining-{kind}"), remaining.to_string()),
                (format!("x-ratelimit-reset-{kind}"), text_of(reset)),
            ],
        };
        for (name, value) in names_and_values {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                headers.insert(name, value);
            }
        }
    }
}

/// In whole seconds, rounded up.
fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() + u64::from(since.subsec_nanos() > 0);
    let at = jiff::Timestamp::from_second(i64::try_from(seconds).unwrap_or(0)).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    at.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse;

    fn refusal(kind: LimitKind, retry_after: Option<Duration>) -> LimitRefusal {
        LimitRefusal { scope: ScopeKind::Key, kind, limit: 3, used: 3, requested: 1, retry_after }
    }

    #[test]
    fn times_are_written_as_openai_does_and_never_too_short() {
        for (ms, text) in [
            (0, "0ms"),
            (12, "12ms"),
            (1000, "1s"),
            (1500, "1.5s"),
            (20_050, "20.05s"),
            (60_000, "1m0s"),
            (360_001, "6m1s"),
            (7_200_000, "2h0m0s"),
        ] {
            assert_eq!(text_of(Duration::from_millis(ms)), text);
        }
        assert_eq!(text_of(Duration::from_micros(11_001)), "12ms");
    }

    #[test]
    fn a_rate_limit_has_the_words_clients_look_for() {
        let error = ApiError::limited(refusal(LimitKind::Requests, Some(Duration::from_millis(20_500))), "m");
        assert_eq!(
            error.problem.message,
            "Rate limit reached for m of this key on requests per min (RPM): Limit 3, Used 3, Requested 1. Please try \
             again in 20.5s."
        );
        assert_eq!((error.problem.kind, error.problem.code.as_deref()), ("requests", Some("rate_limit_exceeded")));
        let response = error.into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "21");
        assert_eq!(response.headers()["retry-after-ms"], "20500");
        assert!(!response.headers().contains_key("x-should-retry"));
        let error = ApiError::limited(refusal(LimitKind::Tokens, None), "m");
        assert!(error.problem.message.starts_with("Request too large for m"), "{}", error.problem.message);
        assert_eq!(error.into_response().headers()["x-should-retry"], "false");
    }

    #[test]
    fn a_spent_budget_is_no_reason_to_try_again() {
        let error = ApiError::limited(refusal(LimitKind::Money, Some(Duration::from_secs(3600))), "m");
        assert!(error.problem.message.contains("a budget of $0.000000003"), "{}", error.problem.message);
        assert_eq!(error.problem.code.as_deref(), Some("insufficient_quota"));
        let response = error.into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["x-should-retry"], "false");
        assert!(!response.headers().contains_key("retry-after"));
        let soon = ApiError::limited(refusal(LimitKind::BudgetTokens, Some(Duration::from_secs(7))), "m");
        assert_eq!(soon.into_response().headers()["retry-after"], "7");
        let busy = ApiError::limited(refusal(LimitKind::Queue, Some(Duration::from_secs(1))), "m").into_response();
        assert_eq!(busy.status(), 503);
        assert_eq!(busy.headers()["retry-after"], "1");
    }

    #[test]
    fn what_is_left_is_said_in_each_familys_headers() {
        let rate = Rate { limit: 60, remaining: 59, reset: Duration::from_secs(60) };
        let standing = Standing { requests: Some(rate), tokens: None };
        let mut headers = HeaderMap::new();
        mark(&mut headers, &standing, Family::OpenAi);
        assert_eq!(headers["x-ratelimit-limit-requests"], "60");
        assert_eq!(headers["x-ratelimit-remaining-requests"], "59");
        assert_eq!(headers["x-ratelimit-reset-requests"], "1m0s");
        assert_eq!(headers.len(), 3);
        let mut headers = HeaderMap::new();
        mark(&mut headers, &standing, Family::Anthropic);
        assert_eq!(headers["anthropic-ratelimit-requests-remaining"], "59");
        let reset = headers["anthropic-ratelimit-requests-reset"].to_str().unwrap();
        assert!(reset.ends_with('Z') && reset.contains('T') && reset.len() == 20, "{reset}");
    }
}
