//! Who may call from a browser: `Host`, `Origin` and CORS.

use super::error::ApiError;
use super::{HttpConfig, client};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use std::net::IpAddr;

const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, DELETE, OPTIONS");
const EXPOSED: HeaderValue =
    HeaderValue::from_static("x-request-id, request-id, retry-after, x-hearth-ignored, traceparent");
/// `*` does not cover `authorization` in browsers, so everything our clients send is spelled out.
const REQUEST_HEADERS: &str = "authorization, content-type, x-api-key, anthropic-version, anthropic-beta, \
     x-stainless-arch, x-stainless-lang, x-stainless-os, x-stainless-package-version, x-stainless-retry-count, \
     x-stainless-runtime, x-stainless-runtime-version, x-stainless-timeout, x-stainless-helper-method";
/// Longest list of headers that a preflight gets back.
const ASKED_BYTES_MAX: usize = 2048;

/// Refuses a request whose host is not clear, or not ours.
///
/// With a loopback bind, only loopback's names, configured ones and the certificate's are: another name that leads here
/// was rebound. Elsewhere any host is ours, unless some are configured; an address can't be rebound and is always ours.
pub(super) fn check_host<B>(config: &HttpConfig, request: &Request<B>) -> Result<(), ApiError> {
    let Some(host) = host(request)? else { return Ok(()) };
    let name = without_port(host.as_str());
    if config.is_local() {
        let is_ours = is_own_name(config, name);
        return if is_ours { Ok(()) } else { Err(ApiError::forbidden("This Host is not served here.")) };
    }
    let is_ours = config.allowed_hosts.is_empty() || is_own_name(config, name) || is_address(name);
    if is_ours { Ok(()) } else { Err(ApiError::misdirected()) }
}

/// Refuses a request to the admin plane by a name that is not this server's, wherever it listens: an address can't be rebound,
/// and of names only loopback's, configured ones and the certificate's are ours.
pub(super) fn check_admin_host<B>(config: &HttpConfig, request: &Request<B>) -> Result<(), ApiError> {
    let Some(host) = host(request)? else { return Ok(()) };
    let name = without_port(host.as_str());
    if is_own_name(config, name) || is_address(name) { Ok(()) } else { Err(ApiError::misdirected()) }
}

/// Loopback's names, configured ones and the certificate's.
fn is_own_name(config: &HttpConfig, name: &str) -> bool {
    is_loopback(name) || client::names(config).any(|listed| is_named(without_port(listed), name))
}

fn is_address(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok()
}

/// The one host that a request names; `None` for HTTP/1.0 without one, which no browser speaks. Two hosts that differ, in
/// whatever way they are said, are how requests are smuggled past a proxy that believes the other one.
fn host<B>(request: &Request<B>) -> Result<Option<Authority>, ApiError> {
    let mut named = request.headers().get_all(header::HOST).iter();
    let (first, more) = (named.next(), named.next());
    if more.is_some() {
        return Err(ApiError::bad_host("The request has more than one Host."));
    }
    let in_header = match first {
        Some(value) => {
            let host = Authority::try_from(value.as_bytes()).ok().filter(|host| !host.as_str().contains('@'));
            Some(host.ok_or_else(|| ApiError::bad_host("The Host of the request is no host."))?)
        }
        None => None,
    };
    match (request.uri().authority(), in_header) {
        (Some(in_uri), Some(host)) if *in_uri != host => {
            Err(ApiError::bad_host("The request names two hosts, in its URL and in its Host."))
        }
        (Some(in_uri), None) if request.version() >= Version::HTTP_2 => Ok(Some(in_uri.clone())),
        (_, None) if request.version() == Version::HTTP_10 => Ok(None),
        (_, None) => Err(ApiError::bad_host("The request has no Host.")),
        (_, host) => Ok(host),
    }
}

/// Whether a name is what a certificate or the operator listed; `*.` in front stands for one label.
fn is_named(listed: &str, name: &str) -> bool {
    match listed.strip_prefix("*.") {
        Some(parent) => name.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent)),
        None => listed.eq_ignore_ascii_case(name),
    }
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

    fn with(hosts: &[&str], uri: &str, version: Version) -> Request<()> {
        let mut request = Request::builder().uri(uri).version(version);
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        request.body(()).unwrap()
    }

    fn status(config: &HttpConfig, host: &str) -> u16 {
        check_host(config, &with(&[host], "/", Version::HTTP_11)).map_or_else(|error| error.status.as_u16(), |()| 200)
    }

    #[test]
    fn a_rebound_name_is_refused_on_loopback() {
        let config = HttpConfig { allowed_hosts: vec!["box.lan".into()], ..Default::default() };
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "[::1]:8080", "box.lan:1", "Box.LAN"] {
            assert_eq!(status(&config, host), 200, "{host}");
        }
        for host in ["evil.example", "evil.example:8080", "localhost.evil.example", "192.0.2.1"] {
            assert_eq!(status(&config, host), 403, "{host}");
        }
        for host in ["", "a b", "localhost@evil.example", "evil.example/localhost", "localhost:80:80", "[::1"] {
            assert_eq!(status(&config, host), 400, "{host}");
        }
    }

    #[test]
    fn elsewhere_the_operator_may_say_which_hosts_are_ours() {
        let mut config = HttpConfig { hosts: vec!["0.0.0.0".parse().unwrap()], ..Default::default() };
        assert_eq!(status(&config, "any.example"), 200);
        config.allowed_hosts = vec!["api.example".into(), "*.lan".into()];
        for host in ["api.example:443", "box.lan", "localhost:8080", "192.0.2.1:80", "[2001:db8::1]"] {
            assert_eq!(status(&config, host), 200, "{host}");
        }
        for host in ["any.example", "lan", "a.b.lan", "api.example.evil"] {
            assert_eq!(status(&config, host), 421, "{host}");
        }
    }

    #[test]
    fn the_admin_plane_is_nobody_elses_name() {
        for hosts in [["127.0.0.1"], ["0.0.0.0"]] {
            let hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
            let config = HttpConfig { hosts, allowed_hosts: vec!["box.lan".into()], ..Default::default() };
            let status = |host: &str| {
                let checked = check_admin_host(&config, &with(&[host], "/", Version::HTTP_11));
                checked.map_or_else(|error| error.status.as_u16(), |()| 200)
            };
            for host in ["localhost:9090", "127.0.0.1", "[::1]:9090", "192.0.2.1:9090", "box.lan"] {
                assert_eq!(status(host), 200, "{host}");
            }
            for host in ["evil.example", "localhost.evil.example:9090", "127.0.0.1.evil.example"] {
                assert_eq!(status(host), 421, "{host}");
            }
        }
    }

    #[test]
    fn two_hosts_are_none() {
        let config = HttpConfig::default();
        let code = |hosts: &[&str], uri: &str, version| {
            check_host(&config, &with(hosts, uri, version)).map_or_else(|error| error.status.as_u16(), |()| 200)
        };
        let (one, two) = (Version::HTTP_11, Version::HTTP_2);
        assert_eq!(code(&["localhost", "localhost"], "/", one), 400);
        assert_eq!(code(&["localhost"], "http://evil.example/", one), 400);
        assert_eq!(code(&["localhost"], "http://localhost/", one), 200);
        assert_eq!(code(&[], "/", one), 400);
        assert_eq!(code(&[], "/", Version::HTTP_10), 200);
        assert_eq!(code(&[], "http://localhost/", two), 200);
        assert_eq!(code(&["evil.example"], "http://localhost/", two), 400);
        assert_eq!(code(&[], "http://evil.example/", two), 403);
    }
}
