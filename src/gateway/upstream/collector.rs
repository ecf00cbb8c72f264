//! The way to a collector of traces, which is asked as upstreams are: same client, same certificates, no redirects.

use super::connect::{Connector, HttpClient, client};
use super::{BaseUrl, class};
use crate::telemetry::otlp::{Post, Posted};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

const CONNECT: Duration = Duration::from_secs(3);
/// For a whole exchange.
const PATIENCE: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Where OTLP's traces are, below a collector's address.
const PATH: &str = "/v1/traces";
const HEADERS_MAX: usize = 32;

/// Where traces go.
#[derive(Clone, PartialEq)]
pub struct CollectorConfig {
    /// With or without [`PATH`].
    pub endpoint: BaseUrl,
    /// Sent with every request; they may be secrets.
    pub headers: HeaderMap,
    /// Certificates to trust instead of the system's, PEM.
    pub ca: Option<PathBuf>,
}

impl fmt::Debug for CollectorConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CollectorConfig").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl CollectorConfig {
    /// Reads headers as OpenTelemetry's variables have them: `name=value` after commas or on lines, values percent-encoded.
    /// Errors say what is wrong, never what was given.
    pub fn headers(text: &str) -> Result<HeaderMap, &'static str> {
        let mut headers = HeaderMap::new();
        for pair in text.split([',', '\n']).map(str::trim).filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or("it is not name=value")?;
            let name = HeaderName::try_from(name.trim()).map_err(|_| "a name is no header's")?;
            let value = percent_encoding::percent_decode_str(value.trim());
            let value = HeaderValue::from_bytes(&value.collect::<Vec<u8>>());
            let mut value = value.map_err(|_| "a value can't stand in a header")?;
            if [header::HOST, header::CONTENT_LENGTH, header::CONTENT_TYPE, header::TRANSFER_ENCODING].contains(&name) {
                return Err("it names a header that is the connection's own");
            }
            value.set_sensitive(true);
            headers.insert(name, value);
            if headers.len() > HEADERS_MAX {
                return Err("it names too many headers");
            }
        }
        if headers.is_empty() { Err("it names no header") } else { Ok(headers) }
    }
}

/// A collector, with the connections to it.
pub struct Collector {
    client: HttpClient,
    uri: Uri,
    headers: HeaderMap,
}

impl Collector {
    /// Errors: certificates that can't be read, in words for the operator. Connects to nothing.
    pub fn new(config: &CollectorConfig) -> Result<Self, String> {
        let connector = Connector::new(config.endpoint.is_tls(), config.ca.as_deref(), CONNECT)?;
        let path = if config.endpoint.text.ends_with(PATH) { "" } else { PATH };
        let uri = config.endpoint.join(path).ok_or("the address is too long")?;
        Ok(Self { client: client(connector, 1), uri, headers: config.headers.clone() })
    }

    async fn exchange(&self, body: Vec<u8>) -> Result<Posted, &'static str> {
        let mut request = Request::post(self.uri.clone())
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::USER_AGENT, concat!("hearth/", env!("CARGO_PKG_VERSION")))
            .body(http_body_util::Full::new(Bytes::from(body)))
            .map_err(|_| "the request can't be made")?;
        request.headers_mut().extend(self.headers.clone());
        let response = self.client.request(request).await;
        let response = response
            .map_err(|error| if error.is_connect() { "it can't be reached" } else { "the connection broke off" })?;
        let (status, headers) = (response.status().as_u16(), response.headers());
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let retry_after = class::retry_after(None, text("retry-after"), SystemTime::now());
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        // What it says beside its status is only a remark.
        let body = body.map(|body| body.to_bytes().to_vec()).unwrap_or_default();
        Ok(Posted { status, retry_after, body })
    }
}

impl Post for Collector {
    fn post(&self, body: Vec<u8>) -> BoxFuture<'_, Result<Posted, &'static str>> {
        async move { tokio::time::timeout(PATIENCE, self.exchange(body)).await.unwrap_or(Err("it does not answer")) }
            .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_opentelemetry_has_them() {
        let headers =
            CollectorConfig::headers("Authorization=Basic%20cGs6c2s=, x-team = a%2Cb\nx-more=1\n").expect("headers");
        let text = |name: &str| headers[name].to_str().expect("text").to_owned();
        assert_eq!(text("authorization"), "Basic cGs6c2s=");
        assert_eq!((text("x-team"), text("x-more")), ("a,b".to_owned(), "1".to_owned()));
        assert!(!format!("{headers:?}").contains("cGs6"), "sensitive values are not shown");
        for bad in ["", " , ", "secret", "a b=secret", "x=%0Asecret", "host=secret"] {
            let error = CollectorConfig::headers(bad).expect_err(bad);
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_path_is_said_once() {
        for endpoint in ["http://h:4318", "http://h:4318/", "http://h:4318/v1/traces"] {
            let config = CollectorConfig {
                endpoint: BaseUrl::new(endpoint).expect("an address"),
                headers: HeaderMap::new(),
                ca: None,
            };
            assert_eq!(Collector::new(&config).expect("a collector").uri, "http://h:4318/v1/traces");
        }
    }
}
