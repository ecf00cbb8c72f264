//! What a request's head says beside its body.

use crate::chat::CacheAsk;
use crate::gateway::{CacheResult, Hints, Told};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use std::time::Duration;

const EGRESS: &str = "x-hearth-egress";
const HOP: &str = "x-hearth-hop";
const PATIENCE: &str = "x-request-timeout-ms";

pub(super) fn read(headers: &HeaderMap) -> Hints {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let ours = headers.iter().filter(|(name, _)| name.as_str().starts_with(Hints::HEADER_PREFIX));
    let short = ours.filter_map(|(name, value)| {
        let value = value.to_str().ok().filter(|value| value.len() <= Hints::VALUE_BYTES_MAX)?;
        Some((name.as_str().to_owned(), value.to_owned()))
    });
    Hints {
        cache: cache_control(headers),
        // Whatever else it says is a mistake, and then nothing leaves.
        never_leaves: headers.contains_key(EGRESS) && text(EGRESS) != Some("allowed"),
        // One that can't be read has been tampered with.
        hop: if headers.contains_key(HOP) { text(HOP).and_then(|n| n.parse().ok()).unwrap_or(u8::MAX) } else { 0 },
        patience: text(PATIENCE).and_then(|ms| ms.parse().ok()).map(Duration::from_millis),
        headers: short.take(Hints::HEADERS_MAX).collect(),
    }
}

/// Source: RFC 9111, section 5.2.1. Directives that mean nothing here are left alone.
fn cache_control(headers: &HeaderMap) -> CacheAsk {
    let mut ask = CacheAsk::default();
    let lines = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    for directive in lines.flat_map(|line| line.split(',')) {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        match name.trim().to_ascii_lowercase().as_str() {
            "no-cache" => ask.no_cache = true,
            "no-store" => ask.no_store = true,
            "max-age" => ask.max_age_s = value.trim().trim_matches('"').parse().ok().or(ask.max_age_s),
            _ => {}
        }
    }
    ask
}

/// Tells who answered and what the cache did.
pub(super) fn tell(headers: &mut HeaderMap, told: &Told) {
    let mut set = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    if let Some(result) = told.cache.map(CacheResult::as_str) {
        set("x-hearth-cache", result);
    }
    if let Some(name) = &told.served_by {
        set("x-hearth-served-by", name);
    }
    if told.attempts.len() > 1 {
        set("x-hearth-attempts", &told.attempts.len().to_string());
    }
    if !told.dropped.is_empty() {
        set("x-hearth-dropped-params", &told.dropped.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hints(lines: &[(&'static str, &str)]) -> Hints {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        read(&headers)
    }

    #[test]
    fn what_heads_say() {
        let said = hints(&[
            ("cache-control", "No-Cache, max-age=5, private"),
            ("cache-control", "no-store"),
            ("x-hearth-task", "reasoning"),
            ("authorization", "Bearer k"),
            ("x-request-timeout-ms", "1500"),
            ("x-hearth-hop", "2"),
        ]);
        let cache = CacheAsk { max_age_s: Some(5), no_cache: true, no_store: true, ..Default::default() };
        assert_eq!((said.cache, said.never_leaves, said.hop), (cache, false, 2));
        assert_eq!(said.patience, Some(Duration::from_millis(1500)));
        assert!(said.headers.contains(&("x-hearth-task".into(), "reasoning".into())) && said.headers.len() == 2);
        assert_eq!(hints(&[]), Hints::default());
    }

    #[test]
    fn doubt_keeps_a_request_here() {
        assert!(hints(&[("x-hearth-egress", "never")]).never_leaves);
        assert!(hints(&[("x-hearth-egress", "Allowed")]).never_leaves);
        assert!(!hints(&[("x-hearth-egress", "allowed")]).never_leaves);
        assert_eq!(hints(&[("x-hearth-hop", "300")]).hop, u8::MAX);
        assert_eq!(hints(&[("x-hearth-hop", "-1")]).hop, u8::MAX);
    }
}
