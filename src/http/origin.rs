//! Who may call from a browser: `Host`, `Origin` and CORS.

use super::HttpConfig;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use std::net::IpAddr;

const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, DELETE, OPTIONS");
const EXPOSED: HeaderValue = HeaderValue::from_static("x-request-id, request-id, retry-after, x-hearth-ignored");
/// `*` does not cover `authorization` in browsers, so everything our clients send is spelled out.
const REQUEST_HEADERS: &str = "authorization, content-type, x-api-key, anthropic-version, anthropic-beta, \
     x-stainless-arch, x-stainless-lang, x-stainless-os, x-stainless-package-version, x-stainless-retry-count, \
     x-stainless-runtime, x-stainless-runtime-version, x-stainless-timeout, x-stainless-helper-method";
/// Longest list of headers that a preflight gets back.
const ASKED_BYTES_MAX: usize = 2048;

/// With a loopback bind, only loopback's names and configured ones: another name that leads here was rebound.
pub(super) fn host_is_allowed<B>(config: &HttpConfig, request: &Request<B>) -> bool {
    if !config.host.is_loopback() {
        return true;
    }
    let host = match request.headers().get(header::HOST) {
        Some(value) => value.to_str().ok(),
        // HTTP/2 has it in the URI; HTTP/1.0 may have none, and no browser speaks it.
        None => request.uri().authority().map(|authority| authority.as_str()).or(Some("localhost")),
    };
    let Some(name) = host.map(without_port) else { return false };
    is_loopback(name) || config.allowed_hosts.iter().any(|allowed| without_port(allowed).eq_ignore_ascii_case(name))
}

/// Whether a web page from `origin` may call.
pub(super) fn is_allowed(config: &HttpConfig, origin: &str) -> bool {
    if config.cors_origins.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin)) {
        return true;
    }
    match origin.split_once("://") {
        Some(("app" | "vscode-webview", _)) => true,
        Some(("http" | "https", rest)) => is_loopback(without_port(rest)),
        _ => false,
    }
}

/// The answer to any `OPTIONS`: no key needed, no body.
pub(super) fn preflight<B: Default>(headers: &HeaderMap) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let asked = headers
        .get(header::ACCESS_CONTROL_REQUEST_HEADERS)
        .and_then(|value| value.to_str().ok())
        .filter(|asked| asked.len() <= ASKED_BYTES_MAX);
    let allowed = match asked {
        Some(asked) => format!("{asked}, {REQUEST_HEADERS}"),
        None => REQUEST_HEADERS.to_owned(),
    };
    let answer = response.headers_mut();
    answer.insert(header::ALLOW, METHODS);
    answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    if let Ok(allowed) = HeaderValue::try_from(allowed) {
        answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    }
    answer.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

/// Tells a browser that the page may read the answer. `allowed` is the request's origin, or `None`.
pub(super) fn mark(headers: &mut HeaderMap, allowed: Option<HeaderValue>) {
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    match allowed {
        Some(origin) => {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
        None => {
            for name in [
                header::ACCESS_CONTROL_ALLOW_METHODS,
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                header::ACCESS_CONTROL_MAX_AGE,
            ] {
                headers.remove(name);
            }
        }
    }
}

fn without_port(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None if host.matches(':').count() > 1 => host,
        None => host.split(':').next().unwrap_or_default(),
    }
}

fn is_loopback(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_pages_and_apps_may_call_and_others_not() {
        let mut config = HttpConfig::default();
        for origin in [
            "http://localhost",
            "http://localhost:3000",
            "https://127.0.0.1:8443",
            "http://[::1]:80",
            "app://obsidian.md",
            "vscode-webview://abc",
        ] {
            assert!(is_allowed(&config, origin), "{origin}");
        }
        for origin in ["http://evil.example", "null", "http://localhost.evil.example", "http://127.0.0.1.evil", ""] {
            assert!(!is_allowed(&config, origin), "{origin}");
        }
        config.cors_origins = vec!["https://chat.example".into()];
        assert!(is_allowed(&config, "https://chat.example"));
    }

    #[test]
    fn a_rebound_name_is_refused_on_loopback_only() {
        let mut config = HttpConfig { allowed_hosts: vec!["box.lan".into()], ..Default::default() };
        let with = |host: &str| Request::builder().header(header::HOST, host).body(()).unwrap();
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "[::1]:8080", "box.lan:1"] {
            assert!(host_is_allowed(&config, &with(host)), "{host}");
        }
        for host in ["evil.example", "evil.example:8080", "localhost.evil.example", ""] {
            assert!(!host_is_allowed(&config, &with(host)), "{host}");
        }
        config.host = "0.0.0.0".parse().unwrap();
        assert!(host_is_allowed(&config, &with("evil.example")));
    }
}
