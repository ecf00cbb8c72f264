//! Images that clients name by address, fetched (or read from disk) where the operator allows it and nowhere else.
//!
//! **Invariant:** a connection is made only to an address that was checked, never to a name that may resolve differently
//! the next time; redirects are checked like first addresses.

use super::Error;
use super::folder::{self, Folder};
use crate::chat::check::Refusal;
use crate::chat::{ChatPrompt, Media, MediaKind};
use crate::engine::media::ITEMS_MAX;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Time for all images of one request.
const TIME_MAX: Duration = Duration::from_secs(20);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
const REDIRECTS_MAX: usize = 3;
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 3;
/// Fetches at once, over all requests.
const FETCHES_MAX: usize = 8;
/// Bytes of images that one request may have fetched for it; with the body they must fit into a frame to the engine.
const REQUEST_BYTES_MAX: usize = 24 << 20;

/// An entry of the operator's list: `example.com`, `*.example.com`, `10.0.0.7` or any of them with `:port`. Without a port
/// it means 80 and 443.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaHost {
    host: String,
    port: Option<u16>,
}

impl MediaHost {
    /// `None` when the text is no such entry.
    pub fn new(text: &str) -> Option<Self> {
        let (host, port) = match text.rsplit_once(':') {
            // A bare IPv6 address has colons of its own; one with a port is written in brackets.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port.parse().ok()?)),
            _ => (text, None),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let name = host.strip_prefix("*.").unwrap_or(&host);
        let is_name = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
            && !name.starts_with('.');
        let is_address = host.parse::<IpAddr>().is_ok();
        (is_name || is_address).then_some(Self { host, port })
    }

    fn allows(&self, host: &str, port: u16) -> bool {
        let port_fits = self.port.map_or(port == 80 || port == 443, |wanted| wanted == port);
        let host_fits = match self.host.strip_prefix("*.") {
            Some(parent) => host.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.')),
            None => self.host == host,
        };
        port_fits && host_fits
    }
}

/// Fetches images for one gateway.
pub(super) struct Fetcher {
    hosts: Vec<MediaHost>,
    folder: Option<Folder>,
    turns: Semaphore,
    tls: OnceLock<Result<Arc<ClientConfig>, String>>,
}

/// Where an image is.
enum Place {
    Web(Uri),
    /// Below the operator's folder.
    File(PathBuf),
}

/// Where one request goes.
struct Target {
    is_tls: bool,
    host: String,
    port: u16,
    path: String,
}

impl Fetcher {
    /// `folder`: with all links resolved.
    pub fn new(hosts: Vec<MediaHost>, folder: Option<PathBuf>) -> Self {
        Self { hosts, folder: folder.map(Folder), turns: Semaphore::new(FETCHES_MAX), tls: OnceLock::new() }
    }

    /// Puts the images in the place of their addresses.
    ///
    /// Errors: `unsupported_content` for an address that is not allowed (nothing is connected to then),
    /// `invalid_image_url` for one that gives no image.
    pub async fn resolve(&self, prompt: &mut ChatPrompt) -> Result<(), Error> {
        let all = prompt.messages.iter_mut().flat_map(|message| &mut message.media).enumerate();
        let all: Vec<(usize, &mut Media)> = all.filter(|(_, media)| media.kind == MediaKind::RemoteImage).collect();
        let Some(first) = all.first().map(|(index, _)| *index) else { return Ok(()) };
        if all.len() > ITEMS_MAX {
            return Err(refuse(first, "invalid_value", &format!("at most {ITEMS_MAX} images are fetched")));
        }
        // Nothing is fetched for a request that is refused anyway.
        for (index, media) in &all {
            let place = self.place(&media.data).map_err(|(code, reason)| refuse(*index, code, &reason))?;
            if let Place::Web(uri) = place {
                self.target(&uri).map_err(|reason| refuse(*index, "unsupported_content", &reason))?;
            }
        }
        let fetch = async {
            let mut room = REQUEST_BYTES_MAX;
            for (index, media) in all {
                let fetched = self.fetch(&media.data, room).await;
                let data = fetched.map_err(|reason| refuse(index, "invalid_image_url", &reason))?;
                room -= data.len();
                (media.kind, media.data) = (MediaKind::Image, data);
            }
            Ok(())
        };
        let late = || refuse(first, "invalid_image_url", "the server that has it took too long");
        tokio::time::timeout(TIME_MAX, fetch).await.unwrap_or_else(|_| Err(late()))
    }

    async fn fetch(&self, address: &[u8], n_bytes_max: usize) -> Result<Vec<u8>, String> {
        let _turn = self.turns.acquire().await.map_err(|_| "the server is shutting down")?;
        let mut uri = match self.place(address).map_err(|(_, reason)| reason)? {
            Place::Web(uri) => uri,
            Place::File(path) => {
                let read = tokio::task::spawn_blocking(move || folder::read(&path, n_bytes_max)).await;
                return read.map_err(|_| "reading it failed")?;
            }
        };
        for _ in 0..=REDIRECTS_MAX {
            let target = self.target(&uri)?;
            match self.get(&target, n_bytes_max).await? {
                Fetched::Data(data) => return Ok(data),
                Fetched::Moved(location) => uri = moved(&target, &location)?,
            }
        }
        Err(format!("it is redirected more than {REDIRECTS_MAX} times"))
    }

    /// Errors: a code and a reason.
    fn place(&self, address: &[u8]) -> Result<Place, (&'static str, String)> {
        const SCHEME: &[u8] = b"file://";
        let is_file = address.get(..SCHEME.len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME));
        if !is_file {
            return uri_of(address).map(Place::Web).map_err(|reason| ("invalid_image_url", reason));
        }
        let Some(folder) = &self.folder else {
            return Err(("unsupported_content", "this server reads no files; send it as a data: URL".into()));
        };
        let path = std::str::from_utf8(&address[SCHEME.len()..]).ok().and_then(|path| folder.below(path));
        path.map(Place::File)
            .ok_or(("invalid_image_url", "its path leads out of the folder that images are read from".into()))
    }

    /// What an address asks for, if that is allowed.
    fn target(&self, uri: &Uri) -> Result<Target, String> {
        if self.hosts.is_empty() {
            return Err("this server fetches no images; send them as data: URLs".into());
        }
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("its address is neither http nor https".into()),
        };
        let authority = uri.authority().ok_or("its address names no host")?;
        if authority.as_str().contains('@') {
            return Err("its address holds a user name".into());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let host = host.trim_end_matches('.').to_owned();
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        if !self.hosts.iter().any(|entry| entry.allows(&host, port)) {
            return Err("its host is not among those that this server fetches images from".into());
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Target { is_tls, host, port, path })
    }

    async fn get(&self, target: &Target, n_bytes_max: usize) -> Result<Fetched, String> {
        let stream = self.connect(target).await?;
        if !target.is_tls {
            return request(stream, target, n_bytes_max).await;
        }
        let config = self.tls.get_or_init(tls_config).clone()?;
        let name = ServerName::try_from(target.host.clone()).map_err(|_| "its host is no name for TLS")?;
        let stream = TlsConnector::from(config).connect(name, stream).await;
        request(stream.map_err(|error| format!("TLS with its host failed: {error}"))?, target, n_bytes_max).await
    }

    async fn connect(&self, target: &Target) -> Result<TcpStream, String> {
        let found: Vec<SocketAddr> = match target.host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, target.port)],
            Err(_) => tokio::net::lookup_host((target.host.as_str(), target.port))
                .await
                .map_err(|_| "its host is unknown")?
                .collect(),
        };
        let addresses = found.iter().filter(|address| self.may_connect(address.ip())).take(ADDRESSES_MAX);
        let mut last = "its host is in a private network, and its address is not on the list".to_owned();
        for address in addresses {
            match tokio::time::timeout(CONNECT_TIME_MAX, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = format!("its host can't be reached: {error}"),
                Err(_) => last = "its host does not answer".to_owned(),
            }
        }
        Err(last)
    }

    /// Public addresses, and those that the operator listed as addresses.
    fn may_connect(&self, address: IpAddr) -> bool {
        let listed = || self.hosts.iter().any(|entry| entry.host.parse() == Ok(address));
        is_public(address) || listed()
    }
}

enum Fetched {
    Data(Vec<u8>),
    Moved(String),
}

async fn request<S>(stream: S, target: &Target, n_bytes_max: usize) -> Result<Fetched, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let failed = |error: hyper::Error| format!("its host gave no proper answer: {error}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // Ends with the sender below.
    let connection = tokio::spawn(connection);
    let request = Request::get(&target.path)
        .header(header::HOST, host_header(target))
        .header(header::USER_AGENT, concat!("hearth/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "image/*")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|_| "its address can't be asked for")?;
    let answer = read(sender.send_request(request).await.map_err(failed)?, n_bytes_max).await;
    connection.abort();
    answer
}

async fn read(response: http::Response<hyper::body::Incoming>, n_bytes_max: usize) -> Result<Fetched, String> {
    let status = response.status();
    if status.is_redirection() {
        let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        return location.map(|to| Fetched::Moved(to.to_owned())).ok_or_else(|| "it is redirected to nowhere".into());
    }
    if status != http::StatusCode::OK {
        return Err(format!("its host answered {}", status.as_u16()));
    }
    match Limited::new(response.into_body(), n_bytes_max).collect().await {
        Ok(body) => Ok(Fetched::Data(body.to_bytes().to_vec())),
        Err(error) if error.is::<LengthLimitError>() => Err(format!("it has more than {n_bytes_max} bytes")),
        Err(_) => Err("its host broke off".into()),
    }
}

fn host_header(target: &Target) -> String {
    let host = if target.host.contains(':') { format!("[{}]", target.host) } else { target.host.clone() };
    let is_usual = target.port == if target.is_tls { 443 } else { 80 };
    if is_usual { host } else { format!("{host}:{}", target.port) }
}

fn uri_of(address: &[u8]) -> Result<Uri, String> {
    Uri::try_from(address).map_err(|_| "its address can't be read".into())
}

/// Where a redirect leads: an address of its own, or another path of the same host.
fn moved(from: &Target, location: &str) -> Result<Uri, String> {
    let scheme = if from.is_tls { "https" } else { "http" };
    let text = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{}{location}", host_header(from))
    } else {
        location.to_owned()
    };
    let text = text.split('#').next().unwrap_or_default();
    uri_of(text.as_bytes())
}

fn tls_config() -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err("this server has no certificates to check its host with".into());
    }
    Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

/// `number`: among all images and sounds of the chat.
fn refuse(number: usize, code: &'static str, reason: &str) -> Error {
    Error::Refused(Refusal::new(format!("media[{number}]"), code, format!("The image can't be used: {reason}.")))
}

/// Whether an address is anybody's on the internet. Source: the IANA special-purpose address registries.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    let is_special = v4.is_private()
        || v4.is_loopback()
        || v4.is_link_local()
        || v4.is_multicast()
        || v4.is_documentation()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b)) // carriers' own
        || (a == 198 && (18..20).contains(&b)) // benchmarks
        || (a, b, c) == (192, 0, 0)
        || (a, b, c) == (192, 88, 99);
    !is_special
}

fn is_public_v6(v6: Ipv6Addr) -> bool {
    let s = v6.segments();
    let embedded = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match s {
        _ if v6.to_ipv4_mapped().is_some() => v6.to_ipv4_mapped().is_some_and(is_public_v4),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => is_public_v4(embedded(high, low)), // NAT64
        [0x2002, high, low, ..] => is_public_v4(embedded(high, low)),               // 6to4
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, ..] => false,      // protocols, documentation
        // Global unicast; everything else is special in one way or another.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetcher(hosts: &[&str]) -> Fetcher {
        Fetcher::new(hosts.iter().map(|host| MediaHost::new(host).expect(host)).collect(), None)
    }

    fn allows(fetcher: &Fetcher, address: &str) -> bool {
        uri_of(address.as_bytes()).is_ok_and(|uri| fetcher.target(&uri).is_ok())
    }

    #[test]
    fn only_listed_hosts_on_their_ports_are_asked() {
        let some = fetcher(&["example.com", "*.images.org", "10.0.0.7:8080", "[::1]:9000"]);
        for good in [
            "https://example.com/a.png",
            "http://EXAMPLE.com./a",
            "http://a.images.org/x?y=1",
            "http://10.0.0.7:8080/",
            "http://[::1]:9000/a",
        ] {
            assert!(allows(&some, good), "{good}");
        }
        for bad in [
            "https://example.com:8443/a.png",
            "https://evil.com/example.com",
            "https://example.com@evil.com/",
            "https://example.com.evil.com/",
            "https://images.org/",
            "https://badimages.org/",
            "http://10.0.0.7/",
            "ftp://example.com/",
            "file:///etc/passwd",
            "/relative",
            "",
        ] {
            assert!(!allows(&some, bad), "{bad}");
        }
        assert!(!allows(&fetcher(&[]), "https://example.com/a.png"), "nothing is fetched by default");
        assert!(["", "a b", "http://x", "*.", "x:port", "."].iter().all(|bad| MediaHost::new(bad).is_none()));
    }

    #[test]
    fn private_addresses_need_to_be_listed_themselves() {
        let private = [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:a00:1::",
            "ff02::1",
            "2001:db8::1",
        ];
        for address in private {
            assert!(!is_public(address.parse().expect(address)), "{address}");
        }
        for address in ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"] {
            assert!(is_public(address.parse().expect(address)), "{address}");
        }
        let listed = fetcher(&["localhost", "127.0.0.1"]);
        assert!(listed.may_connect("127.0.0.1".parse().expect("an address")));
        assert!(!listed.may_connect("127.0.0.2".parse().expect("an address")));
    }

    #[test]
    fn redirects_lead_to_checked_places() {
        let some = fetcher(&["example.com"]);
        let from =
            some.target(&uri_of(b"https://example.com/a").expect("an address")).unwrap_or_else(|e| panic!("{e}"));
        for (to, is_allowed) in [
            ("/b#top", true),
            ("https://example.com/c", true),
            ("//example.com/d", true),
            ("http://169.254.169.254/latest", false),
            ("//evil.com/", false),
            ("file:///etc/passwd", false),
        ] {
            let is_ok = moved(&from, to).is_ok_and(|uri| some.target(&uri).is_ok());
            assert_eq!(is_ok, is_allowed, "{to}");
        }
    }
}
