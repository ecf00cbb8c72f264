//! Heads of requests, fuzzed (F4, F14).

use super::{HttpConfig, auth, client, edge, origin};
use crate::fuzz::{Shape, Target, fuzz, outcome};
use crate::telemetry::context::TraceContext;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, Version};
use std::net::IpAddr;

const WORDS: &str = "host: ¦authorization: ¦x-api-key: ¦x-forwarded-for: ¦forwarded: ¦traceparent: ¦tracestate: ¦\
    x-request-id: ¦origin: ¦access-control-request-headers: ¦url: ¦Bearer ¦bearer  ¦Basic ¦sk-hearth-¦\
    localhost¦127.0.0.1¦[::1]¦::ffff:127.0.0.1¦192.0.2.1¦10.0.0.1¦for=¦for=\"[¦_hidden¦unknown¦00-¦ff-¦-01¦\
    0af7651916cd43dd8448eb211c80319c¦b7ad6b7169203331¦=¦;¦,¦:¦@¦example.org¦app://x¦http://¦null¦[";

/// Lines of headers as a request; what no head can hold is left out.
fn request(input: &[u8]) -> Request<()> {
    let mut request = Request::new(());
    *request.version_mut() = if input.len().is_multiple_of(3) { Version::HTTP_2 } else { Version::HTTP_11 };
    for line in input.split(|byte| *byte == b'\n') {
        let Some(at) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..at], line[at + 1..].trim_ascii());
        if name == b"url" {
            if let Ok(url) = value.try_into() {
                *request.uri_mut() = url;
            }
        } else if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            // As many lines as a head may have.
            if request.headers().len() < 100 {
                request.headers_mut().append(name, value);
            }
        }
    }
    request
}

fn configs() -> [HttpConfig; 3] {
    let local = HttpConfig::default();
    let mut open = HttpConfig { hosts: vec![IpAddr::from([0, 0, 0, 0])], ..HttpConfig::default() };
    open.clients.trusted_proxies =
        vec!["10.0.0.0/8".parse().expect("a network"), "::1/128".parse().expect("a network")];
    let mut named = open.clone();
    named.allowed_hosts = vec!["*.example.org".into(), "[::2]:80".into()];
    named.cors_origins = vec!["https://a.example".into()];
    [local, open, named]
}

/// Whatever a head holds: a name that is not ours is no name of ours, an address is believed of a trusted proxy only, and what
/// is repeated to others is what a header may hold.
#[test]
fn heads() {
    let configs = configs();
    let target =
        Target { name: "heads", seeds: Vec::new(), shape: Shape::Text, words: &WORDS.split('¦').collect::<Vec<_>>() };
    fuzz(&target, |input| {
        let request = request(input);
        let headers = request.headers();
        let mut said = String::new();
        for config in &configs {
            let ours = origin::check_host(config, &request).is_ok();
            let admins = origin::check_admin_host(config, &request).is_ok();
            said.push_str(&format!("host {ours} admin {admins} "));
            for peer in ["10.1.2.3", "192.0.2.9"] {
                let peer: IpAddr = peer.parse().expect("an address");
                let address = config.clients.address(peer, headers);
                assert!(config.clients.trusts(peer) || address == peer, "{address} is believed of {peer}");
                assert_eq!(address, client::canonical(address));
                said.push_str(if address == peer { "peer " } else { "told " });
            }
            let allowed = headers.get("origin").filter(|origin| edge::is_allowed(config, origin));
            said.push_str(if allowed.is_some() { "origin " } else { "stranger " });
        }
        let answer = origin::preflight::<()>(headers);
        assert!(answer.headers().values().map(HeaderValue::len).sum::<usize>() < 4096);
        if let Some(id) = edge::client_request_id(headers) {
            assert!(id.len() <= 128 && id.is_ascii());
            said.push_str("named ");
        }
        trace(headers, &mut said);
        if let Some(key) = auth::presented(headers) {
            assert_eq!(key, key.trim());
            said.push_str(if key.is_empty() { "empty" } else { "presented" });
        }
        outcome(&said) ^ outcome(&said.split(' ').rev().collect::<Vec<_>>().join(" "))
    });
}

fn trace(headers: &HeaderMap, said: &mut String) {
    let lines = |name| headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let trace = TraceContext::read(lines("traceparent"), lines("tracestate"), 0.5);
    let told = trace.traceparent(trace.span);
    let again = TraceContext::read(std::iter::once(told.as_bytes()), std::iter::empty(), 0.5);
    assert_eq!((again.trace, again.parent, again.flags()), (trace.trace, Some(trace.span), trace.flags()), "{told}");
    if let Some(state) = &trace.state {
        assert!(HeaderValue::from_str(state).is_ok() && state.len() <= 8192, "{} bytes of notes", state.len());
        said.push_str("noted ");
    }
    said.push_str(if trace.parent.is_some() { "followed " } else { "begun " });
}
