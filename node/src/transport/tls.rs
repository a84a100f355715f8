//! TLS of the client port: which certificate a client is shown.
//!
//! Belongs here: reading certificates and keys, choosing one by the name a client asks for, taking new ones
//! while clients are connected.
//! Stays out: the bytes of a session (`stream`), TLS between nodes (`mesh`).
//! Invariants: a set of files is taken whole or not at all; sessions that stand go on with what they began
//! with. What is printed of a problem names files, never content.
//! Source: RFC 8446; RFC 6066 §3 (server names); RFC 7301 (ALPN).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, ServerConnection};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::stream::ClientStream;
use crate::config::secrets::check_private;

/// What is spoken inside: the client port has no HTTP/2.
const ALPN: &[u8] = b"http/1.1";

/// Bytes of a file of certificates at most: a longer one is another file by mistake.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where one certificate and its key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, then its issuers (PEM).
    pub chain: PathBuf,
    /// Its private key (PEM); often the same file.
    pub key: PathBuf,
}

impl CertificateFiles {
    /// Reads `FILE`, which holds both, or `CHAIN:KEY`.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        let (chain, key) = text.split_once(':').unwrap_or((text, text));
        Self { chain: chain.into(), key: key.into() }
    }
}

/// A file does not hold what it should. Nothing has changed.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", file.display())]
pub struct CertificateError {
    /// Which file.
    pub file: PathBuf,
    /// What is wrong with it, and what to do.
    pub problem: String,
}

/// Certificates and keys, read and found to belong together.
#[derive(Clone, Debug)]
pub struct Certificates(Vec<Arc<CertifiedKey>>);

impl Certificates {
    /// Reads all of them. The first is shown to clients that name none, or one that no certificate is for.
    ///
    /// # Errors
    /// The first file that does not do.
    pub fn read(files: &[CertificateFiles]) -> Result<Self, CertificateError> {
        let provider = provider();
        files.iter().map(|files| read_one(files, &provider).map(Arc::new)).collect::<Result<_, _>>().map(Self)
    }
}

impl ResolvesServerCert for Certificates {
    /// The first one for the name asked for, else the first; of those whose kind of signature the client knows.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let known = || self.0.iter().filter(|key| key.key.choose_scheme(hello.signature_schemes()).is_some());
        let named = name.and_then(|name| known().find(|key| is_for(key, &name)));
        named.or_else(|| known().next()).cloned()
    }
}

fn is_for(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let parsed = key.end_entity_cert().and_then(ParsedCertificate::try_from);
    parsed.is_ok_and(|certificate| verify_server_name(&certificate, name).is_ok())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn read_one(files: &CertificateFiles, provider: &CryptoProvider) -> Result<CertifiedKey, CertificateError> {
    let fail = |file: &Path, problem: String| CertificateError { file: file.to_owned(), problem };
    let chain = read_file(&files.chain).map_err(|cause| fail(&files.chain, cause.to_string()))?;
    check_private(&files.key).map_err(|problem| fail(&files.key, problem))?;
    let key = read_file(&files.key).map_err(|cause| fail(&files.key, cause.to_string()))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
    let chain = chain.map_err(|_| fail(&files.chain, "not PEM".into()))?;
    if chain.is_empty() {
        return Err(fail(&files.chain, "holds no certificate (BEGIN CERTIFICATE)".into()));
    }
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| {
        fail(&files.key, "holds no private key (BEGIN PRIVATE KEY); give CHAIN:KEY if it is elsewhere".into())
    })?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| {
        fail(&files.key, format!("is not the key of the certificate in {}: {error}", files.chain.display()))
    })
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    match fs::metadata(path)?.len() {
        ..=FILE_BYTES_MAX => fs::read(path),
        _ => Err(io::Error::other("too long for certificates")),
    }
}

/// Begins TLS sessions with the newest certificates.
#[derive(Clone, Debug)]
pub struct TlsAcceptor {
    config: watch::Receiver<Arc<ServerConfig>>,
}

/// Changes the certificates of a [`TlsAcceptor`].
#[derive(Debug)]
pub struct CertificateSwitch {
    config: watch::Sender<Arc<ServerConfig>>,
    /// Stays the same, so that sessions can be resumed after a change.
    tickets: Arc<dyn ProducesTickets>,
}

/// TLS could not be set up. Only a broken build or a broken random source does this.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up TLS for clients")]
pub struct TlsSetupError(#[from] rustls::Error);

impl CertificateSwitch {
    /// An acceptor that shows `certificates`, and the way to change them.
    ///
    /// # Errors
    /// [`TlsSetupError`].
    pub fn new(certificates: Certificates) -> Result<(Self, TlsAcceptor), TlsSetupError> {
        let tickets = rustls::crypto::ring::Ticketer::new()?;
        let (tx, config) = watch::channel(server_config(certificates, tickets.clone())?);
        Ok((Self { config: tx, tickets }, TlsAcceptor { config }))
    }

    /// Sessions that begin from now on are shown these.
    ///
    /// # Errors
    /// [`TlsSetupError`]; nothing has changed.
    pub fn switch(&self, certificates: Certificates) -> Result<(), TlsSetupError> {
        self.config.send_replace(server_config(certificates, self.tickets.clone())?);
        Ok(())
    }
}

fn server_config(
    certificates: Certificates,
    tickets: Arc<dyn ProducesTickets>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let versions = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let mut config = versions.with_no_client_auth().with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.ticketer = tickets;
    Ok(Arc::new(config))
}

impl TlsAcceptor {
    /// A stream whose handshake is still to be done.
    ///
    /// # Errors
    /// When the session cannot be made.
    pub fn begin(&self, tcp: TcpStream) -> Result<ClientStream, rustls::Error> {
        let config = self.config.borrow().clone();
        Ok(ClientStream::tls(tcp, ServerConnection::new(config)?))
    }
}

#[cfg(test)]
mod tests;
