//! The one map from the rooms' errors to a status, headers and the envelope a client reads.

use super::family::Detail;
use crate::dialect::openai::error_body;
use crate::dialect::{Fault, Problem};
use crate::engine::Failure;
use crate::gateway::{self, Class};
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// What the endpoint calls its prompt; refusals of it name that field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Messages,
    Prompt,
    Content,
    Input,
    Tokens,
    Documents,
    Texts,
    Text2,
    /// An endpoint that takes no prompt.
    Nothing,
}

impl Asked {
    fn param(self) -> &'static str {
        match self {
            Asked::Messages => "messages",
            Asked::Prompt | Asked::Nothing => "prompt",
            Asked::Content => "content",
            Asked::Input => "input",
            Asked::Tokens => "tokens",
            Asked::Documents => "documents",
            Asked::Texts => "texts",
            Asked::Text2 => "text_2",
        }
    }
}

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) problem: Problem,
    /// Boxed: few errors have it, and every `Result` carries its room.
    detail: Option<Box<Detail>>,
    retry_after_s: Option<u32>,
    /// The same to the millisecond, for the SDKs that read it. 32 bits: every `Result` carries its room.
    retry_after_ms: Option<u32>,
    /// Whether trying again can help, where the status alone would mislead an SDK.
    pub(super) should_retry: Option<bool>,
    /// The connection is of no use afterwards.
    close: bool,
}

/// What an error says, left in the answer's extensions for the families that say it otherwise.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) problem: Problem,
    pub(super) detail: Option<Detail>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, kind: &'static str, code: Option<&str>, message: impl Into<String>) -> Self {
        let problem = Problem { message: message.into(), kind, param: None, code: code.map(str::to_owned) };
        Self {
            status,
            problem,
            detail: None,
            retry_after_s: None,
            retry_after_ms: None,
            should_retry: None,
            close: false,
        }
    }

    pub(super) fn refused(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self::new(status, INVALID, Some(code), message)
    }

    /// 503: `code` says what the server is busy with.
    pub(super) fn unavailable(code: &str, message: impl Into<String>, retry_after_s: u32) -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, Some(code), message);
        // The back-off of SDKs takes integers from 1; a longer wait than a minute makes some of them give up.
        error.retry_after_s = Some(retry_after_s.clamp(1, 60));
        error
    }

    /// Says when to try again.
    pub(super) fn after(mut self, wait: std::time::Duration) -> Self {
        let ms = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1);
        self.retry_after_ms = Some(u32::try_from(ms).unwrap_or(u32::MAX));
        self.retry_after_s = Some(u32::try_from(ms.div_ceil(1000)).unwrap_or(u32::MAX));
        self
    }

    pub(super) fn param(mut self, param: impl Into<String>) -> Self {
        self.problem.param = Some(param.into());
        self
    }

    /// With the field as the client's API calls it, where that is not as the engine does.
    pub(super) fn renamed(mut self, name: impl FnOnce(&str) -> String) -> Self {
        self.problem.param = self.problem.param.as_deref().map(name);
        self
    }

    fn detail(mut self, detail: Detail) -> Self {
        self.detail = Some(Box::new(detail));
        self
    }

    fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    pub(super) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            SERVER,
            Some("internal_error"),
            "The server failed on this request.",
        )
    }

    pub(super) fn unknown_url(method: &http::Method, path: &str) -> Self {
        let path: String = path.chars().take(128).collect();
        Self::refused(
            StatusCode::NOT_FOUND,
            "unknown_url",
            format!("Unknown request URL: {method} {path}. GET /docs lists what is served here."),
        )
    }

    pub(super) fn wrong_method(method: &http::Method) -> Self {
        let message = format!("The method {method} is not supported here; see the header Allow.");
        Self::refused(StatusCode::METHOD_NOT_ALLOWED, "method_not_supported", message)
    }

    /// What was named is not here, or not this caller's.
    pub(super) fn not_found(code: &str, message: impl Into<String>) -> Self {
        Self::refused(StatusCode::NOT_FOUND, code, message)
    }

    pub(super) fn forbidden(message: &str) -> Self {
        Self::refused(StatusCode::FORBIDDEN, "insufficient_permissions", message)
    }

    /// The `Host` of the request is missing, said twice, or no host.
    pub(super) fn bad_host(message: &str) -> Self {
        Self::refused(StatusCode::BAD_REQUEST, "invalid_host", message).closing()
    }

    /// The `Host` is a good one, but not of this server.
    pub(super) fn misdirected() -> Self {
        Self::refused(StatusCode::MISDIRECTED_REQUEST, "misdirected_request", "This Host is not served here.")
    }

    /// 429: this address, whoever uses it, may come again after `wait`. A client that tries again within a few seconds
    /// only makes it worse where the wait is long.
    pub(super) fn too_many(message: &str, wait: std::time::Duration) -> Self {
        let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
        let message = format!("{message} Please try again in {seconds}s.");
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, "requests", Some("rate_limit_exceeded"), message);
        error.retry_after_s = Some(seconds);
        error.should_retry = (seconds > 60).then_some(false);
        error
    }

    pub(super) fn content_type(message: &str) -> Self {
        Self::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_type", message)
    }

    pub(super) fn too_large(max: usize) -> Self {
        let message = format!("The request body may have at most {max} bytes.");
        Self::refused(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message).closing()
    }

    pub(super) fn body_timeout() -> Self {
        let message = "The request body did not arrive in time.";
        let mut error = Self::refused(StatusCode::REQUEST_TIMEOUT, "request_timeout", message).closing();
        error.should_retry = Some(false);
        error
    }

    pub(super) fn broken_body() -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, None, "The request body could not be read.").closing()
    }

    pub(super) fn bodies_full() -> Self {
        Self::unavailable("server_is_overloaded", "Too many large requests are being received.", 1).closing()
    }

    pub(super) fn shutting_down() -> Self {
        Self::unavailable("shutting_down", "The server is shutting down.", 5).closing()
    }

    /// What the gateway or the engine says, in the words of the endpoint that was asked.
    pub(super) fn of(error: gateway::Error, asked: Asked) -> Self {
        match error {
            gateway::Error::Unauthorized => {
                Self::refused(StatusCode::UNAUTHORIZED, "invalid_api_key", "No valid API key was given.")
            }
            gateway::Error::Forbidden(message) => Self::forbidden(message),
            gateway::Error::LedgerUnavailable => {
                Self::unavailable("ledger_unavailable", "The server can't keep its books now; please try again.", 2)
            }
            gateway::Error::UnknownModel { name } => {
                let message =
                    format!("The model `{name}` does not exist on this server; GET /v1/models lists those that do.");
                Self::refused(StatusCode::NOT_FOUND, "model_not_found", message)
                    .param("model")
                    .detail(Detail::UnknownModel(name))
            }
            gateway::Error::Limited { refusal, model } => Self::limited(refusal, &model),
            gateway::Error::Refused(refusal) => Fault::from(refusal).into(),
            gateway::Error::Engine(failure) => Self::of_engine(failure, asked),
            gateway::Error::Unguarded => {
                let message =
                    "The rules that hold for this request are not configured; the server's operator has to say them.";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("guardrail_missing"), message)
            }
            gateway::Error::Unseen { retry_after_s } => {
                let message = "This server's operator has requests and answers checked, and that can't be done now; please try again.";
                Self::unavailable("guardrail_unavailable", message, retry_after_s)
            }
            gateway::Error::Stays => {
                Self::forbidden("This request may not leave this server, and no model here answers it.")
            }
            gateway::Error::Upstream { class, status, retry_after_s, is_late } => {
                Self::of_upstream(class, status, retry_after_s, is_late)
            }
        }
    }

    /// The last of the other servers that were asked. Nothing of what it said is repeated.
    fn of_upstream(class: Class, status: Option<u16>, retry_after_s: Option<u32>, is_late: bool) -> Self {
        let said = status.map(|status| format!(" with status {status}")).unwrap_or_default();
        match (class, status) {
            _ if is_late => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, SERVER, Some("timeout"), "The request's time was up.")
            }
            // Its quota, not the client's; a client that waits is right.
            (Class::Throttled, _) => {
                let message = "The server that answers this request can't take more now; please try again.";
                Self::unavailable("server_is_overloaded", message, retry_after_s.unwrap_or(1))
            }
            // What it says of our key or address is the operator's to cure.
            (Class::ClientFault, None | Some(400 | 413 | 422)) => {
                let message = format!("The server that answers this request refused it{said}.");
                Self::refused(StatusCode::BAD_REQUEST, "upstream_refused", message)
            }
            (Class::PolicyStop, _) => {
                let message = "The server that answers this request stopped it by its policy.";
                Self::refused(StatusCode::BAD_REQUEST, "content_filter", message)
            }
            _ => {
                let message = format!("The server that answers this request failed{said}.");
                Self::new(StatusCode::BAD_GATEWAY, SERVER, Some("upstream_error"), message)
            }
        }
    }

    fn of_engine(failure: Failure, asked: Asked) -> Self {
        match failure {
            Failure::Invalid { field, code, message } => {
                let field = if field == "prompt" { asked.param().to_owned() } else { field };
                Self::refused(StatusCode::BAD_REQUEST, &code, message).param(field)
            }
            Failure::ContextExceeded { n_prompt, n_ctx, at_least } => {
                let (param, least) = (asked.param(), if at_least { "at least " } else { "" });
                // Clients match on the text: LiteLLM on its first words, LangChain on the code, which it looks for in the
                // message (openai-python's errors, since its version 3, show nothing else).
                let message = format!(
                    "This model's maximum context length is {n_ctx} tokens. However, your {param} resulted in \
                     {least}{n_prompt} tokens. Please reduce the length of the {param}. (context_length_exceeded)"
                );
                Self::refused(StatusCode::BAD_REQUEST, "context_length_exceeded", message)
                    .param(param)
                    .detail(Detail::Overflow { n_prompt, n_ctx })
            }
            Failure::Overloaded { n_places, retry_after_s } => {
                let message = format!(
                    "This server has {n_places} places for requests, and none that would be free in time; please try again."
                );
                Self::unavailable("server_is_overloaded", message, retry_after_s)
            }
            Failure::Shed { retry_after_s } => {
                let message = "This server is short of memory and begins nothing new for now; please try again.";
                Self::unavailable("server_is_overloaded", message, retry_after_s)
            }
            Failure::NotReady { reason, retry_after_s } => {
                Self::unavailable("model_loading", format!("The model is not ready: {reason}."), retry_after_s)
            }
            Failure::ShuttingDown => Self::shutting_down(),
            Failure::Quarantined { remaining_s, .. } => Self::refused(
                StatusCode::BAD_REQUEST,
                "request_quarantined",
                format!("The engine crashed twice on this request; it is refused for {remaining_s} seconds."),
            ),
            Failure::Crashed { reason } => {
                tracing::error!(reason, "the engine died under a request");
                Self::internal()
            }
            Failure::Cancelled => {
                tracing::error!("a request was cancelled while its client was there; this is a bug");
                Self::internal()
            }
            Failure::Upstream { is_late, .. } => Self::of_upstream(Class::Transient, None, None, is_late),
            Failure::Internal(reason) => {
                tracing::error!(reason, "the engine failed on a request");
                Self::internal()
            }
        }
    }
}

impl From<Fault> for ApiError {
    fn from(fault: Fault) -> Self {
        let mut error = Self::new(StatusCode::BAD_REQUEST, INVALID, fault.code, fault.message);
        error.problem.param = fault.param;
        error
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(error_body(&self.problem)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(ms) = self.retry_after_ms {
            headers.insert(RETRY_AFTER_MS, ms.into());
        }
        if let Some(should_retry) = self.should_retry {
            let value = if should_retry { "true" } else { "false" };
            headers.insert(SHOULD_RETRY, HeaderValue::from_static(value));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.extensions_mut().insert(Told { problem: self.problem, detail: self.detail.map(|detail| *detail) });
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overflow_has_the_words_clients_look_for() {
        let failure = Failure::ContextExceeded { n_prompt: 9000, n_ctx: 8192, at_least: false };
        let error = ApiError::of(failure.into(), Asked::Messages);
        assert_eq!(
            error.problem.message,
            "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens. \
             Please reduce the length of the messages. (context_length_exceeded)"
        );
        assert_eq!(error.problem.param.as_deref(), Some("messages"));
        assert_eq!(error.problem.code.as_deref(), Some("context_length_exceeded"));
    }

    #[test]
    fn what_a_retry_cures_says_when() {
        for (failure, code) in [
            (Failure::Overloaded { n_places: 4, retry_after_s: 0 }, "server_is_overloaded"),
            (Failure::shed(), "server_is_overloaded"),
            (Failure::NotReady { reason: "r".into(), retry_after_s: 2 }, "model_loading"),
            (Failure::ShuttingDown, "shutting_down"),
        ] {
            let error = ApiError::of(failure.into(), Asked::Prompt);
            assert_eq!(error.problem.code.as_deref(), Some(code));
            let response = error.into_response();
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            let seconds: u32 = response.headers()[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
            assert!(seconds >= 1);
        }
    }

    #[test]
    fn what_the_log_reads_is_not_what_the_client_reads() {
        let error = ApiError::of(Failure::Internal("/models/secret.gguf".into()).into(), Asked::Prompt);
        assert_eq!(error.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!error.problem.message.contains("secret"));
    }
}
