//! Errors in the shape of the API that was asked: which one, the path says.
//!
//! # Design
//! [`ApiError`](super::error::ApiError) speaks OpenAI's, and leaves what it knows in the answer's extensions. Errors come
//! from everywhere (the edge, extractors, the router's fallbacks, handlers), so the one place that all answers pass
//! writes them again for the other families.

use super::error::Told;
use crate::dialect::{Problem, anthropic, ollama};
use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};

/// Clients of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    OpenAi,
    Anthropic,
    Ollama,
}

/// What a family words by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Detail {
    Overflow { n_prompt: u64, n_ctx: u32 },
    UnknownModel(String),
}

impl Family {
    pub(super) fn of(path: &str) -> Self {
        let is_under =
            |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if is_under("/v1/messages") {
            Family::Anthropic
        } else if is_under("/api") {
            Family::Ollama
        } else {
            Family::OpenAi
        }
    }

    /// The answer as this family's clients read it; what is no error stays as it is.
    pub(super) fn recast(self, mut response: Response, request_id: &str) -> Response {
        let Some(told) = response.extensions_mut().remove::<Told>() else { return response };
        let Told { problem, detail } = told;
        let (status, body) = match self {
            Family::OpenAi => return response,
            Family::Anthropic => {
                let status = overloaded(response.status());
                let message = match detail {
                    // Claude Code makes room when it reads this sentence.
                    Some(Detail::Overflow { n_prompt, n_ctx }) => {
                        let most = u64::from(n_ctx).min(n_prompt.saturating_sub(1));
                        format!("prompt is too long: {n_prompt} tokens > {most} maximum")
                    }
                    _ => named(&problem),
                };
                (status, anthropic::error_body(kind(status), &message, request_id))
            }
            Family::Ollama => {
                let message = match detail {
                    Some(Detail::Overflow { n_prompt, n_ctx }) => {
                        format!("the request ({n_prompt} tokens) exceeds the available context size ({n_ctx} tokens)")
                    }
                    Some(Detail::UnknownModel(name)) => format!("model '{name}' not found"),
                    None => named(&problem),
                };
                (response.status(), ollama::error_body(&message))
            }
        };
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::CONTENT_TYPE, json_type(self));
        response.map(|_| Body::from(body))
    }
}

/// The type of a family's JSON.
pub(super) fn json_type(family: Family) -> HeaderValue {
    HeaderValue::from_static(match family {
        Family::Ollama => "application/json; charset=utf-8",
        _ => "application/json",
    })
}

/// 529 is Anthropic's word for a server that can't take more now.
fn overloaded(status: StatusCode) -> StatusCode {
    match status {
        StatusCode::SERVICE_UNAVAILABLE => StatusCode::from_u16(529).unwrap_or(status),
        other => other,
    }
}

fn kind(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

/// These families have no field for the parameter, so the text names it.
fn named(problem: &Problem) -> String {
    match &problem.param {
        Some(param) if !problem.message.contains(param.as_str()) => format!("{param}: {}", problem.message),
        _ => problem.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_says_the_family() {
        for (path, family) in [
            ("/v1/messages", Family::Anthropic),
            ("/v1/messages/count_tokens", Family::Anthropic),
            ("/v1/messages2", Family::OpenAi),
            ("/api/chat", Family::Ollama),
            ("/api", Family::Ollama),
            ("/apis", Family::OpenAi),
            ("/v1/chat/completions", Family::OpenAi),
        ] {
            assert_eq!(Family::of(path), family, "{path}");
        }
    }

    #[test]
    fn every_status_has_a_kind() {
        for (status, name) in [
            (400, "invalid_request_error"),
            (405, "invalid_request_error"),
            (415, "invalid_request_error"),
            (413, "request_too_large"),
            (500, "api_error"),
        ] {
            assert_eq!(kind(StatusCode::from_u16(status).unwrap()), name);
        }
        assert_eq!(kind(overloaded(StatusCode::SERVICE_UNAVAILABLE)), "overloaded_error");
    }

    #[test]
    fn a_text_names_the_field_once() {
        let problem = |message: &str| Problem {
            message: message.into(),
            kind: "invalid_request_error",
            param: Some("tools[0]".into()),
            code: None,
        };
        assert_eq!(named(&problem("can't be compiled")), "tools[0]: can't be compiled");
        assert_eq!(named(&problem("tools[0] is odd")), "tools[0] is odd");
    }
}
