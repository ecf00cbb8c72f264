//! TLS: a certificate chain and its key, read, checked and ready to be used.
//!
//! # Design
//! rustls with its defaults: TLS 1.2 and 1.3, authenticated ciphers only. A [`Tls`] is a value; a reload makes another
//! one, which new connections use from then on, while those that are open keep theirs.

use sha2::{Digest, Sha256};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{DEFAULT_VERSIONS, RootCertStore, ServerConfig};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// A file of certificates or a key that is larger is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Certificates of one file.
const CERTIFICATES_MAX: usize = 256;

/// Where the files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate and those that lead to a root, as PEM.
    pub cert: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
    /// Certificates of those who vouch for clients; with them, a client needs a certificate to connect.
    pub client_ca: Option<PathBuf>,
}

/// Which file can't be used, and why. The texts hold nothing of a key.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", path.display())]
pub struct TlsError {
    pub path: PathBuf,
    pub message: String,
}

/// An identity that this server can prove.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    expires: SystemTime,
    /// The DNS names that the certificate is for.
    names: Vec<String>,
    /// SHA-256 over all certificates and the key.
    digest: [u8; 32],
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("names", &self.names).field("expires", &self.expires).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads and checks the files. Errors: a file that can't be read, holds no certificate or key, a key of another
    /// certificate, a certificate that has expired or is not valid yet.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let chain = certificates(&files.cert)?;
        let (expires, names) = validity(&chain[0], SystemTime::now()).map_err(|message| fault(&files.cert, message))?;
        let key_pem = read(&files.key)?;
        let key = PrivateKeyDer::from_pem_slice(&key_pem)
            .map_err(|_| fault(&files.key, "this holds no private key in PEM that can be read"))?;
        let roots = files.client_ca.as_deref().map(certificates).transpose()?;
        let digest = digest(&chain, key.secret_der(), roots.as_deref());

        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(DEFAULT_VERSIONS)
            .map_err(|error| fault(&files.cert, error.to_string()))?;
        let builder = match (&files.client_ca, roots) {
            (Some(path), Some(roots)) => {
                let mut store = RootCertStore::empty();
                for root in roots {
                    store.add(root).map_err(|error| fault(path, error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| fault(path, error.to_string()))?)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            fault(&files.key, format!("not a key of the certificate in {}: {error}", files.cert.display()))
        })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), expires, names, digest })
    }

    pub(super) fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }

    /// When the certificate stops to be valid.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// The same in unix seconds.
    pub fn expires_unix(&self) -> u64 {
        self.expires.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }
}

fn fault(path: &Path, message: impl Into<String>) -> TlsError {
    TlsError { path: path.to_owned(), message: message.into() }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let metadata = std::fs::metadata(path).map_err(|error| fault(path, error.to_string()))?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return Err(fault(path, format!("not a file of at most {FILE_BYTES_MAX} bytes")));
    }
    std::fs::read(path).map_err(|error| fault(path, error.to_string()))
}

/// 1..=[`CERTIFICATES_MAX`] of them.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).take(CERTIFICATES_MAX + 1).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(fault(path, "this holds no certificate in PEM")),
        Ok(certificates) if certificates.len() > CERTIFICATES_MAX => {
            Err(fault(path, format!("more than {CERTIFICATES_MAX} certificates")))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(fault(path, format!("a certificate is broken: {error}"))),
    }
}

/// Until when it is valid, and for which names.
fn validity(der: &[u8], now: SystemTime) -> Result<(SystemTime, Vec<String>), String> {
    let certificate = Certificate::from_der(der).map_err(|error| format!("a certificate is broken: {error}"))?;
    let validity = certificate.tbs_certificate().validity();
    let begins = UNIX_EPOCH + validity.not_before.to_unix_duration();
    let expires = UNIX_EPOCH + validity.not_after.to_unix_duration();
    if let Ok(since) = now.duration_since(expires) {
        return Err(format!("the certificate expired {} ago", days(since)));
    }
    if let Ok(until) = begins.duration_since(now) {
        return Err(format!("the certificate is valid in {} only; is this machine's clock right?", days(until)));
    }
    let subject = certificate.tbs_certificate().get_extension::<SubjectAltName>().ok().flatten();
    let names = subject.into_iter().flat_map(|(_, subject)| subject.0).filter_map(|name| match name {
        GeneralName::DnsName(name) => Some(name.as_str().to_ascii_lowercase()),
        _ => None,
    });
    Ok((expires, names.collect()))
}

fn days(time: Duration) -> String {
    match (time.as_secs() / 86_400, time.as_secs() / 3600) {
        (0, 0) => "less than an hour".to_owned(),
        (0, hours) => format!("{hours} h"),
        (days, _) => format!("{days} days"),
    }
}

fn digest(chain: &[CertificateDer<'_>], key: &[u8], roots: Option<&[CertificateDer<'_>]>) -> [u8; 32] {
    let mut digest = Sha256::new();
    let mut add = |part: &[u8]| {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    };
    chain.iter().for_each(|part| add(part));
    add(key);
    roots.into_iter().flatten().for_each(|part| add(part));
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    fn params(names: &[&str]) -> CertificateParams {
        CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    struct Files {
        dir: tempfile::TempDir,
    }

    impl Files {
        fn of(params: CertificateParams) -> Self {
            let files = Self { dir: tempfile::tempdir().unwrap() };
            let key = KeyPair::generate().unwrap();
            files.write("cert", &params.self_signed(&key).unwrap().pem());
            files.write("key", &key.serialize_pem());
            files
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.dir.path().join(name), text).unwrap();
        }

        fn load(&self) -> Result<Tls, TlsError> {
            let path = |name: &str| self.dir.path().join(name);
            let client_ca = Some(path("ca")).filter(|path| path.exists());
            Tls::load(&TlsFiles { cert: path("cert"), key: path("key"), client_ca })
        }

        fn refusal(&self) -> String {
            self.load().expect_err("to be refused").to_string()
        }
    }

    #[test]
    fn a_certificate_tells_its_names_and_its_end() {
        let mut good = params(&["API.example", "*.lan", "192.0.2.1"]);
        good.not_after = date_time_ymd(2199, 1, 1);
        let tls = Files::of(good).load().unwrap();
        assert_eq!(tls.names().collect::<Vec<_>>(), ["api.example", "*.lan"]);
        assert_eq!(tls.expires().duration_since(UNIX_EPOCH).unwrap().as_secs(), 7_226_582_400);
        assert_eq!(tls, tls.clone());
        assert_ne!(tls, Files::of(params(&["api.example"])).load().unwrap());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_file() {
        let mut old = params(&["a"]);
        old.not_after = date_time_ymd(2020, 1, 1);
        let text = Files::of(old).refusal();
        assert!(text.contains("/cert: the certificate expired ") && text.ends_with(" days ago"), "{text}");
        let mut young = params(&["a"]);
        young.not_before = date_time_ymd(2199, 1, 1);
        assert!(Files::of(young).refusal().contains("/cert: the certificate is valid in "));

        let files = Files::of(params(&["a"]));
        let key = std::fs::read_to_string(files.dir.path().join("key")).unwrap();
        files.write("key", &KeyPair::generate().unwrap().serialize_pem());
        assert!(files.refusal().contains("/key: not a key of the certificate in "));
        files.write("key", "secret words");
        let text = files.refusal();
        assert!(text.contains("/key: this holds no private key") && !text.contains("secret"), "{text}");
        files.write("key", &key);
        files.write("ca", "");
        assert!(files.refusal().contains("/ca: this holds no certificate"));
        files.write("cert", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        assert!(files.refusal().contains("/cert: a certificate is broken"));
        std::fs::remove_file(files.dir.path().join("cert")).unwrap();
        assert!(files.refusal().contains("/cert: No such file"));
    }
}
