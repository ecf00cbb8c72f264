//! Which client is at the other end, and whether its address may come in.
//!
//! # Design
//! A header that names an address is worth what its writer is. `X-Forwarded-For` and `Forwarded` count only on
//! connections from a trusted proxy, and of their addresses only the rightmost that no trusted proxy has: everything
//! left of it was written by whoever asked. A proxy is expected to set (or add to) one of the two; where it leaves a
//! client's own `Forwarded` standing beside its `X-Forwarded-For`, the latter counts.

use super::HttpConfig;
use http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;
use std::net::IpAddr;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Proxies in a row that are looked through; what stands further left is taken as it is.
const HOPS_MAX: usize = 32;

/// What is decided by a client's address.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientRules {
    /// Whose word about the client's address counts.
    pub trusted_proxies: Vec<IpNet>,
    /// Who may come in; none: everybody.
    pub allow: Vec<IpNet>,
    /// Who may not, also where `allow` has them.
    pub deny: Vec<IpNet>,
    /// Connections that one address may have open; 0: as many as there are. Trusted proxies may have any number.
    pub connections_max: u32,
    /// Requests of one address per second, in the long run; 0: any number.
    pub requests_per_second: f32,
    /// Requests that an address which was silent may send at once. At least 1.
    pub burst: u32,
    /// Wrong keys that one address may send in a minute before it is locked out; 0: any number.
    pub failures_max: u32,
    /// How long it is locked out then.
    pub ban: std::time::Duration,
}

impl Default for ClientRules {
    fn default() -> Self {
        Self {
            trusted_proxies: Vec::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            connections_max: 0,
            requests_per_second: 0.0,
            burst: 1,
            failures_max: 10,
            ban: std::time::Duration::from_secs(300),
        }
    }
}

impl ClientRules {
    pub(super) fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|net| net.contains(&address))
    }

    /// Whether the lists let `address` in.
    pub(super) fn admits(&self, address: IpAddr) -> bool {
        let is_in = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
        !is_in(&self.deny) && (self.allow.is_empty() || is_in(&self.allow))
    }

    /// The client's address: `peer`'s, or what trusted proxies say it is.
    pub(super) fn address(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.trusts(peer) {
            return peer;
        }
        let mut client = peer;
        for hop in hops(headers).take(HOPS_MAX) {
            // An obfuscated or broken address: the nearest one that is known stands for it.
            let Some(address) = hop else { break };
            client = address;
            if !self.trusts(address) {
                break;
            }
        }
        client
    }
}

/// `::ffff:192.0.2.1`, as a socket of both families has it, is 192.0.2.1 to every rule.
pub(super) fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// The addresses that proxies noted, the last one first; `None` for one that can't be read.
fn hops(headers: &HeaderMap) -> Box<dyn Iterator<Item = Option<IpAddr>> + '_> {
    let texts = |name: HeaderName| {
        let values = headers.get_all(name).iter().rev();
        values.flat_map(|value| value.to_str().unwrap_or("?").rsplit(',').map(str::trim))
    };
    if headers.contains_key(X_FORWARDED_FOR) {
        return Box::new(texts(X_FORWARDED_FOR).map(node));
    }
    Box::new(texts(header::FORWARDED).map(|element| node(forwarded_for(element)?)))
}

/// `for=` of one element of `Forwarded` (RFC 7239).
fn forwarded_for(element: &str) -> Option<&str> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| value.trim().trim_matches('"'))
    })
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn node(text: &str) -> Option<IpAddr> {
    let bare = match text.strip_prefix('[') {
        Some(rest) => rest.split(']').next()?,
        None if text.matches(':').count() == 1 => text.split(':').next()?,
        None => text,
    };
    bare.parse().ok().map(canonical)
}

/// Names that a connection over TLS, or from the operator, makes ours; see `origin`.
pub(super) fn names(config: &HttpConfig) -> impl Iterator<Item = &str> {
    let certified = config.tls.iter().flat_map(|tls| tls.names());
    config.allowed_hosts.iter().map(String::as_str).chain(certified)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn address(peer: &str, lines: &[(&'static str, &str)]) -> String {
        let rules = ClientRules { trusted_proxies: nets(&["10.0.0.0/8", "fd00::/8"]), ..Default::default() };
        rules.address(peer.parse().unwrap(), &headers(lines)).to_string()
    }

    #[test]
    fn only_a_trusted_proxy_says_who_asks() {
        let says = [("x-forwarded-for", "203.0.113.9")];
        assert_eq!(address("198.51.100.1", &says), "198.51.100.1");
        assert_eq!(address("10.0.0.1", &says), "203.0.113.9");
        assert_eq!(address("fd00::1", &says), "203.0.113.9");
        assert_eq!(address("10.0.0.1", &[]), "10.0.0.1");
    }

    #[test]
    fn the_rightmost_untrusted_address_counts() {
        for (line, client) in [
            ("1.2.3.4, 203.0.113.9", "203.0.113.9"),
            ("203.0.113.9, 10.1.1.1, 10.2.2.2", "203.0.113.9"),
            ("10.3.3.3, 10.2.2.2", "10.3.3.3"),
            ("1.2.3.4, unknown, 10.2.2.2", "10.2.2.2"),
            ("1.2.3.4, , 10.2.2.2", "10.2.2.2"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            ("203.0.113.9:4711", "203.0.113.9"),
            ("[2001:db8::1]:4711", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("", "10.0.0.1"),
        ] {
            assert_eq!(address("10.0.0.1", &[("x-forwarded-for", line)]), client, "{line}");
        }
        let two = [("x-forwarded-for", "1.1.1.1, 203.0.113.9"), ("x-forwarded-for", "10.2.2.2")];
        assert_eq!(address("10.0.0.1", &two), "203.0.113.9");
    }

    #[test]
    fn forwarded_is_read_where_there_is_no_x_forwarded_for() {
        for (line, client) in [
            ("for=203.0.113.9;proto=https", "203.0.113.9"),
            ("for=1.1.1.1, For=\"[2001:db8::1]:80\";by=10.0.0.1", "2001:db8::1"),
            ("proto=https", "10.0.0.1"),
            ("for=_hidden", "10.0.0.1"),
        ] {
            assert_eq!(address("10.0.0.1", &[("forwarded", line)]), client, "{line}");
        }
        let both = [("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "203.0.113.9")];
        assert_eq!(address("10.0.0.1", &both), "203.0.113.9");
    }

    proptest::proptest! {
        /// Whatever a proxy passes on: an address comes out, and it is one that was written, or the peer's.
        #[test]
        fn any_header_gives_an_address(bytes in proptest::collection::vec(32u8..=255, 0..200), name in 0usize..2) {
            let name = [X_FORWARDED_FOR, header::FORWARDED][name].clone();
            let mut headers = HeaderMap::new();
            if let Ok(value) = http::HeaderValue::from_bytes(&bytes) {
                headers.insert(name, value);
            }
            let rules = ClientRules { trusted_proxies: nets(&["0.0.0.0/0"]), ..Default::default() };
            let peer: IpAddr = "192.0.2.1".parse().unwrap();
            let address = rules.address(peer, &headers);
            let is_written = hops(&headers).any(|hop| hop == Some(address));
            proptest::prop_assert!(address == peer || is_written);
        }
    }

    #[test]
    fn denied_wins_over_allowed() {
        let rules =
            ClientRules { allow: nets(&["192.0.2.0/24"]), deny: nets(&["192.0.2.13/32"]), ..Default::default() };
        let admits = |text: &str| rules.admits(text.parse().unwrap());
        assert!(admits("192.0.2.1") && !admits("192.0.2.13") && !admits("198.51.100.1") && !admits("::1"));
        assert!(ClientRules::default().admits("198.51.100.1".parse().unwrap()));
    }
}
