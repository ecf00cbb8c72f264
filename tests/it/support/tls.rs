//! Certificates made for a test, and a client that looks at them closely.

use hearth::http::{Tls, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ALL_VERSIONS, ClientConfig, RootCertStore, SupportedProtocolVersion};

/// A certificate authority in a folder of its own.
pub struct Authority {
    pub dir: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        let authority = Self { dir: tempfile::tempdir().expect("a temporary folder"), issuer };
        std::fs::write(authority.path("ca.pem"), authority.issuer.pem()).expect("a writable folder");
        authority
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes `NAME.pem` and `NAME.key`, a fresh pair for these names.
    pub fn issue(&self, file: &str, names: &[&str]) -> TlsFiles {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new(names).expect("names").signed_by(&key, &self.issuer);
        let (cert, key_file) = (self.path(&format!("{file}.pem")), self.path(&format!("{file}.key")));
        std::fs::write(&cert, certificate.expect("a certificate").pem()).expect("a writable folder");
        std::fs::write(&key_file, key.serialize_pem()).expect("a writable folder");
        TlsFiles { cert, key: key_file, client_ca: None }
    }

    pub fn server(&self) -> Tls {
        Tls::load(&self.issue("server", &["localhost"])).expect("a good pair")
    }

    pub fn client(&self) -> Client {
        Client { root: self.path("ca.pem"), own: None, alpn: "http/1.1", versions: ALL_VERSIONS.to_vec() }
    }
}

/// How to connect.
#[derive(Clone)]
pub struct Client {
    root: PathBuf,
    pub own: Option<TlsFiles>,
    pub alpn: &'static str,
    pub versions: Vec<&'static SupportedProtocolVersion>,
}

impl Client {
    pub async fn connect(&self, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.root)).expect("a root");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&self.versions)
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match &self.own {
            Some(files) => {
                let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
                builder.with_client_auth_cert(vec![certificate(&files.cert)], key).expect("a pair")
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![self.alpn.as_bytes().to_vec()];
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

fn certificate(path: &std::path::Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).expect("a certificate")
}

/// The certificate that the other side showed.
pub fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    let certificates = stream.get_ref().1.peer_certificates().expect("a certificate");
    certificates[0].to_vec()
}
