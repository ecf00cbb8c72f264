//! The group "Server": where to listen, whom to admit, how long to wait.

use super::raw::{ConfigError, Said};
use super::resolve::{on, rule, seconds, within};
use super::settings::Raw;
use super::value::{ByteSize, Seconds};
use crate::http::{ClientRules, HttpConfig, Tls, TlsFiles};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

/// Addresses to listen on.
const HOSTS_MAX: usize = 16;
/// The most bytes of one request's body. It has to fit into one frame to the engine with room to spare
/// (`engine/transport/frame.rs`).
const BODY_BYTES_MAX: usize = 128 << 20;
const CONNECTIONS_MAX: u32 = 1 << 20;
/// Of one address, where others can reach the server and nothing is said.
const CONNECTIONS_PER_IP: u32 = 64;
const REQUESTS_PER_SECOND_MAX: f32 = 1e6;
const REQUESTS_PER_SECOND_MIN: f32 = 1e-4;
const BURST_MAX: u32 = 1 << 20;
const FAILURES_MAX: u32 = 1 << 20;
/// Networks of one list: each request may be held against all of them.
const NETWORKS_MAX: usize = 1024;
/// Shortest timeout: below it good clients fail.
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
/// A certificate that ends sooner is worth a warning.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 86_400);

impl Raw {
    pub(super) fn http(&self, has_keys: bool, warnings: &mut Vec<String>) -> Result<HttpConfig, ConfigError> {
        let default = HttpConfig::default();
        let hosts = self.hosts()?;
        let open = hosts.iter().find(|host| !host.is_loopback()).copied();
        if let Some(host) = open.filter(|_| !has_keys) {
            if !self.may_listen(host, has_keys) {
                return Err(rule(
                    &self.host,
                    format!(
                        "{host} can be reached by others and no key is set: give --api-key, --api-key-file, --data-dir or --insecure"
                    ),
                ));
            }
            warnings.push(format!("{host} can be reached by others and no key is set (--insecure)"));
        }
        let body_bytes_max = self.body_limit.value.map_or(default.body_bytes_max, |ByteSize(n)| n);
        if !(1024..=BODY_BYTES_MAX).contains(&body_bytes_max) {
            return Err(rule(
                &self.body_limit,
                format!("{body_bytes_max} bytes is not within 1024..={BODY_BYTES_MAX}"),
            ));
        }
        for origin in self.cors_origin.value.iter().flatten() {
            if origin != "*" && !origin.contains("://") {
                return Err(rule(&self.cors_origin, format!("{origin:?} is no origin such as https://example.org")));
            }
        }
        Ok(HttpConfig {
            hosts,
            port: self.port.value.unwrap_or(default.port),
            tls: self.tls(warnings)?,
            allowed_hosts: self.allowed_host.value.clone().unwrap_or_default(),
            cors_origins: self.cors_origin.value.clone().unwrap_or_default(),
            clients: self.clients(open.is_none())?,
            body_bytes_max,
            header_timeout: timeout(&self.header_timeout, default.header_timeout)?,
            body_timeout: timeout(&self.body_timeout, default.body_timeout)?,
            idle_timeout: timeout(&self.idle_timeout, default.idle_timeout)?,
            stall_timeout: timeout(&self.write_stall_timeout, default.stall_timeout)?,
            ping_interval: timeout(&self.ping_interval, default.ping_interval)?,
            drain_deadline: seconds(&self.drain_timeout, default.drain_deadline),
            connections_max: within(&self.max_connections, 4096, 1, CONNECTIONS_MAX)? as usize,
            expose_slots: on(&self.slots),
            hands_over: default.hands_over,
        })
    }

    /// Whether a server that listens at `address`, whoever chose that, may do so with these settings: one that others can
    /// reach needs keys, or the operator's word.
    pub fn may_listen(&self, address: IpAddr, has_keys: bool) -> bool {
        address.is_loopback() || has_keys || on(&self.insecure)
    }

    /// Addresses; `localhost` is the only name, since a name server must not decide who can reach the server.
    fn hosts(&self) -> Result<Vec<IpAddr>, ConfigError> {
        let texts = self.host.value.as_deref().unwrap_or_default();
        if texts.is_empty() || texts.len() > HOSTS_MAX {
            return Err(rule(&self.host, format!("{} addresses are not within 1..={HOSTS_MAX}", texts.len())));
        }
        let mut hosts = Vec::with_capacity(texts.len());
        for text in texts {
            let host = match text.as_str() {
                "localhost" => Ok(IpAddr::from([127, 0, 0, 1])),
                text => text.trim_start_matches('[').trim_end_matches(']').parse(),
            };
            let host = host.map_err(|_| rule(&self.host, format!("{text:?} is no IP address (and not localhost)")))?;
            if hosts.contains(&host) {
                return Err(rule(&self.host, format!("{host} is given twice")));
            }
            hosts.push(host);
        }
        Ok(hosts)
    }

    /// The certificate and its key, read; both or none.
    fn tls(&self, warnings: &mut Vec<String>) -> Result<Option<Tls>, ConfigError> {
        let client_ca = self.tls_client_ca.value.clone();
        let files = match (&self.tls_cert.value, &self.tls_key.value) {
            (Some(cert), Some(key)) => TlsFiles { cert: cert.clone(), key: key.clone(), client_ca },
            (Some(_), None) => return Err(rule(&self.tls_cert, "needs its private key beside it (tls_key)")),
            (None, Some(_)) => return Err(rule(&self.tls_key, "needs its certificate beside it (tls_cert)")),
            (None, None) if client_ca.is_some() => {
                return Err(rule(&self.tls_client_ca, "needs a certificate of the server, too (tls_cert, tls_key)"));
            }
            (None, None) => return Ok(None),
        };
        let tls = Tls::load(&files).map_err(|error| {
            let said = [&self.tls_cert, &self.tls_key, &self.tls_client_ca];
            let said = said.into_iter().find(|said| said.value.as_ref() == Some(&error.path));
            rule(said.unwrap_or(&self.tls_cert), error.to_string())
        })?;
        if super::resolve::is_world_readable(&files.key) {
            warnings.push(format!("{} can be read by every user of this machine (chmod 600)", files.key.display()));
        }
        let left = tls.expires().duration_since(SystemTime::now()).unwrap_or_default();
        if left < EXPIRES_SOON {
            warnings.push(format!("{}: this certificate ends in {} h", files.cert.display(), left.as_secs() / 3600));
        }
        Ok(Some(tls))
    }

    fn clients(&self, is_local: bool) -> Result<ClientRules, ConfigError> {
        let default = ClientRules::default();
        // All clients of a loopback address are this machine's own.
        let connections = if is_local { 0 } else { CONNECTIONS_PER_IP };
        let rate = self.ip_rps.value.unwrap_or_default();
        if rate != 0.0 && !(REQUESTS_PER_SECOND_MIN..=REQUESTS_PER_SECOND_MAX).contains(&rate) {
            let range = format!("{REQUESTS_PER_SECOND_MIN}..={REQUESTS_PER_SECOND_MAX}");
            return Err(rule(&self.ip_rps, format!("{rate} is neither 0 nor within {range}")));
        }
        if rate == 0.0 && self.ip_burst.value.is_some() {
            return Err(rule(&self.ip_burst, "has no meaning without --ip-rps"));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the bounds above")]
        let burst = (rate * 2.0).ceil().max(1.0) as u32;
        let nets = |said: &Said<Vec<ipnet::IpNet>>| match &said.value {
            Some(nets) if nets.len() > NETWORKS_MAX => Err(rule(said, format!("more than {NETWORKS_MAX} networks"))),
            nets => Ok(nets.clone().unwrap_or_default()),
        };
        Ok(ClientRules {
            trusted_proxies: nets(&self.trusted_proxy)?,
            allow: nets(&self.ip_allow)?,
            deny: nets(&self.ip_deny)?,
            connections_max: within(&self.max_connections_per_ip, connections, 0, CONNECTIONS_MAX)?,
            requests_per_second: rate,
            burst: within(&self.ip_burst, burst, 1, BURST_MAX)?,
            failures_max: within(&self.auth_fail_limit, default.failures_max, 0, FAILURES_MAX)?,
            ban: seconds(&self.auth_fail_ban, default.ban),
        })
    }
}

fn timeout(said: &Said<Seconds>, default: Duration) -> Result<Duration, ConfigError> {
    match seconds(said, default) {
        time if time < TIMEOUT_MIN => Err(rule(said, format!("{time:?} is less than {TIMEOUT_MIN:?}"))),
        time => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Origin};

    fn resolve(flags: &[(&'static str, &str)]) -> Result<Config, ConfigError> {
        let mut all = vec![("model", vec!["scripted".to_owned()], Origin::Argument)];
        let flag =
            |(key, text): &(&'static str, &str)| (*key, vec![(*text).to_owned()], Origin::Flag(key.replace('_', "-")));
        all.extend(flags.iter().map(flag));
        let no_file = tempfile::NamedTempFile::new().expect("a temporary file");
        Raw::gather(Some(no_file.path()), |_| None, &all)?.resolve()
    }

    fn refusal(flags: &[(&'static str, &str)]) -> String {
        resolve(flags).expect_err("to be refused").to_string()
    }

    #[test]
    fn one_address_may_have_so_many_connections_where_others_can_reach() {
        let per_ip = |flags: &[_]| resolve(flags).map(|config| config.http.clients.connections_max).ok();
        assert_eq!(per_ip(&[]), Some(0));
        assert_eq!(per_ip(&[("host", "0.0.0.0"), ("api_key", "k")]), Some(64));
        assert_eq!(per_ip(&[("max_connections_per_ip", "10")]), Some(10));
        assert_eq!(refusal(&[("max_connections", "0")]), "--max-connections: 0 is not within 1..=1048576");
    }

    #[test]
    fn addresses_are_lists_of_networks() {
        let config =
            resolve(&[("ip_allow", "10.0.0.0/8,192.0.2.1"), ("trusted_proxy", "127.0.0.1"), ("ip_rps", "0.5")])
                .expect("good settings");
        let clients = config.http.clients;
        assert_eq!((clients.allow.len(), clients.trusted_proxies[0].to_string().as_str()), (2, "127.0.0.1/32"));
        assert_eq!((clients.requests_per_second, clients.burst), (0.5, 1));
        assert!(
            refusal(&[("ip_deny", "10.0.0.0/33")]).starts_with("--ip-deny: \"10.0.0.0/33\" is not a list of networks")
        );
        assert!(refusal(&[("ip_rps", "-1")]).starts_with("--ip-rps: -1 is neither 0 nor within"));
        assert!(refusal(&[("ip_rps", "nan")]).starts_with("--ip-rps: "));
        assert!(refusal(&[("ip_burst", "3")]).starts_with("--ip-burst: has no meaning"));
        let many = vec!["10.0.0.1"; 1025].join(",");
        assert_eq!(refusal(&[("ip_allow", &many)]), "--ip-allow: more than 1024 networks");
    }

    #[test]
    fn tls_needs_both_files_and_names_the_bad_one() {
        assert!(refusal(&[("tls_cert", "c.pem")]).starts_with("--tls-cert: needs its private key"));
        assert!(refusal(&[("tls_key", "k.pem")]).starts_with("--tls-key: needs its certificate"));
        assert!(refusal(&[("tls_client_ca", "ca.pem")]).starts_with("--tls-client-ca: needs"));
        let text = refusal(&[("tls_cert", "/nowhere/c.pem"), ("tls_key", "k.pem")]);
        assert!(text.starts_with("--tls-cert: /nowhere/c.pem: No such file"), "{text}");
        let identity = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).expect("a certificate");
        let dir = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: String| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("a writable folder");
            path.to_str().expect("a plain path").to_owned()
        };
        let (cert, key) = (write("c", identity.cert.pem()), write("k", identity.signing_key.serialize_pem()));
        let config = resolve(&[("tls_cert", &cert), ("tls_key", &key)]).expect("a good pair");
        assert!(config.http.tls.is_some());
        assert!(config.warnings.iter().any(|warning| warning.contains("/k can be read by every user")));
        let text = refusal(&[("tls_cert", &cert), ("tls_key", &cert)]);
        assert!(text.contains("this holds no private key"), "{text}");
    }

    #[test]
    fn timeouts_are_not_too_short() {
        assert!(refusal(&[("header_timeout", "10ms")]).starts_with("--header-timeout: 10ms is less than"));
        let http = resolve(&[("idle_timeout", "2m"), ("write_stall_timeout", "1")]).expect("good settings").http;
        assert_eq!((http.idle_timeout, http.stall_timeout), (Duration::from_secs(120), Duration::from_secs(1)));
    }
}
