//! The key in a request's head.

use http::{HeaderMap, header};

/// Paths that need no key, whatever the method: a balancer has none.
pub(super) fn is_public(path: &str) -> bool {
    matches!(path, "/" | "/health" | "/v1/health" | "/livez" | "/readyz" | "/openapi.json" | "/docs")
}

/// `Authorization: Bearer K`, or `x-api-key: K`; the first that is there counts.
pub(super) fn presented(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    bearer.or_else(|| headers.get("x-api-key")?.to_str().ok().map(str::trim))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_balancers_and_newcomers_ask_for_is_public() {
        for path in ["/", "/health", "/v1/health", "/livez", "/readyz", "/openapi.json", "/docs"] {
            assert!(is_public(path), "{path}");
        }
        for path in ["", "/v1/models", "/v1/chat/completions", "/metrics", "/health/", "/docs/x", "/slots", "/props"] {
            assert!(!is_public(path), "{path}");
        }
    }

    #[test]
    fn either_header_carries_a_key() {
        let with = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            presented(&headers).map(str::to_owned)
        };
        assert_eq!(with("authorization", "Bearer k"), Some("k".into()));
        assert_eq!(with("authorization", "bEARER  k"), Some("k".into()));
        assert_eq!(with("x-api-key", "k"), Some("k".into()));
        assert_eq!(with("authorization", "Basic k"), None);
        assert_eq!(with("authorization", "k"), None);
    }
}
