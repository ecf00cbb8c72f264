//! What a request's head says beside its body, in the gateway's words.

use crate::chat::CacheAsk;
use std::time::Duration;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Hints {
    /// Of `Cache-Control`.
    pub cache: CacheAsk,
    /// The request may not leave this server, whatever else says.
    pub never_leaves: bool,
    /// Servers like this one that it came through.
    pub hop: u8,
    /// How long the client waits.
    pub patience: Option<Duration>,
    /// Headers that routes may look at, names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Hints {
    /// Headers kept, and bytes of each value.
    pub const HEADERS_MAX: usize = 16;
    pub const VALUE_BYTES_MAX: usize = 256;
    /// Routes may look at headers of this name only: others may hold secrets.
    pub const HEADER_PREFIX: &str = "x-hearth-";

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The stricter of what head and body say about the cache.
    pub(super) fn cache_over(&self, body: &CacheAsk) -> CacheAsk {
        let least = |a: Option<u32>, b: Option<u32>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        CacheAsk {
            ttl_s: least(self.cache.ttl_s, body.ttl_s),
            max_age_s: least(self.cache.max_age_s, body.max_age_s),
            no_cache: self.cache.no_cache || body.no_cache,
            no_store: self.cache.no_store || body.no_store,
            namespace: body.namespace.clone().or_else(|| self.cache.namespace.clone()),
        }
    }
}
