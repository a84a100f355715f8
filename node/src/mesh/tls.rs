//! Certificates: the private CA that every holder of the cluster key derives, and this start's leaf.
//!
//! Belongs here: deriving the CA, issuing the leaf, both rustls configurations, the check that a
//! certificate is for the node that shows it.
//! Stays out: the key's file (`config`), what is said after the handshake (`hello`).
//! Invariants: TLS 1.3 only, both sides show a certificate of the CA, no resumption; the CA's bytes
//! are the same on every node, so nothing has to be exchanged.
//! Source: RFC 8446; RFC 8410 §7 (Ed25519 keys in PKCS #8); RFC 9001 (TLS in QUIC).

use std::fmt::Write as _;
use std::sync::Arc;

use mesh_proto::keys::{ClusterKey, Purpose};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};

/// The protocol spoken inside TLS. A QUIC client of anything else is refused by the handshake.
const ALPN: &[u8] = b"meshd/1";

/// The same on connections that carry tunnels.
pub(crate) const TUNNEL_ALPN: &[u8] = b"meshd-tunnel/1";

/// The name every node's certificate carries, asked for by every dialler. Which node it is stands in
/// a second name, checked against the hello.
pub(crate) const SERVER_NAME: &str = "peer.mesh";

/// What goes before the 32 bytes of an Ed25519 key in PKCS #8 version 1.
const PKCS8_ED25519: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// The certificates could not be made. Only a broken build or a broken random source does this.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Deriving or issuing.
    #[error("issuing the node's certificate")]
    Issue(#[from] rcgen::Error),
    /// Configuring TLS.
    #[error("configuring TLS")]
    Tls(#[from] rustls::Error),
    /// Building the verifier of peers' certificates.
    #[error("building the certificate verifier")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// The provider lacks QUIC's initial cipher suite.
    #[error("TLS provider without QUIC's cipher suite")]
    Suite(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// Both ends' TLS configuration.
pub(crate) struct Tls {
    pub(crate) server: Arc<QuicServerConfig>,
    pub(crate) client: Arc<QuicClientConfig>,
    /// For connections that carry tunnels.
    pub(crate) tunnel_client: Arc<QuicClientConfig>,
}

impl Tls {
    /// Derives the CA from `key` and issues a leaf for the node called `name`, with a fresh key.
    pub(crate) fn new(key: &ClusterKey, name: &str) -> Result<Self, TlsError> {
        let ca_key = ca_key(key)?;
        let ca_params = ca_params();
        let ca = ca_params.self_signed(&ca_key)?;
        let leaf_key = KeyPair::generate()?;
        let leaf = leaf_params(name)?.signed_by(&leaf_key, &Issuer::from_params(&ca_params, &ca_key))?;

        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone())?;
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = vec![leaf.der().clone()];
        let private = || PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));

        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
        let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), private())?;
        server.alpn_protocols = vec![ALPN.to_vec(), TUNNEL_ALPN.to_vec()];
        // A resumed handshake costs more than a full one here, and would outlive the leaf.
        server.send_tls13_tickets = 0;

        let mut client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, private())?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = rustls::client::Resumption::disabled();
        let mut tunnel_client = client.clone();
        tunnel_client.alpn_protocols = vec![TUNNEL_ALPN.to_vec()];

        Ok(Self {
            server: Arc::new(QuicServerConfig::try_from(server)?),
            client: Arc::new(QuicClientConfig::try_from(client)?),
            tunnel_client: Arc::new(QuicClientConfig::try_from(tunnel_client)?),
        })
    }
}

/// Whether the peer of `connection` showed a certificate for the node called `name`. The chain to
/// the CA was checked by the handshake.
pub(crate) fn certificate_names(connection: &quinn::Connection, name: &str) -> bool {
    let chain =
        connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let Some(leaf) = chain.as_ref().and_then(|chain| chain.first()) else { return false };
    let Ok(leaf) = ParsedCertificate::try_from(leaf) else { return false };
    ServerName::try_from(node_host(name)).is_ok_and(|host| verify_server_name(&leaf, &host).is_ok())
}

/// The host name that stands for the node called `name` in its certificate: 160 bits of SHA-256,
/// because node names need not be host names.
fn node_host(name: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
    let mut host = String::from("n");
    for byte in &digest.as_ref()[..20] {
        let _ = write!(host, "{byte:02x}");
    }
    host + ".mesh"
}

fn ca_key(key: &ClusterKey) -> Result<KeyPair, rcgen::Error> {
    let mut pkcs8 = PKCS8_ED25519.to_vec();
    pkcs8.extend_from_slice(&key.derive(Purpose::CertificateAuthority, b""));
    KeyPair::try_from(pkcs8)
}

/// Everything in it is fixed, and Ed25519 signs deterministically: the same bytes on every node.
fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "meshd cluster");
    params.serial_number = Some(SerialNumber::from_slice(&[1]));
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(2200, 1, 1);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// Valid for as long as the CA: the key lives in memory only and goes with the process, and a
/// validity that depended on the clock would refuse nodes whose clock is wrong.
fn leaf_params(name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned(), node_host(name)])?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(2200, 1, 1);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_holder_of_a_key_derives_the_same_authority() {
        let der = |byte| {
            let key = ca_key(&ClusterKey::new([byte; 32])).unwrap();
            ca_params().self_signed(&key).unwrap().der().to_vec()
        };
        assert_eq!(der(7), der(7));
        assert_ne!(der(7), der(8));
    }

    #[test]
    fn any_node_name_has_a_host_name() {
        for name in ["a", "node_1", "Zürich/rack 4", &"x".repeat(300)] {
            assert!(ServerName::try_from(node_host(name)).is_ok());
            assert!(Tls::new(&ClusterKey::new([7; 32]), name).is_ok());
        }
        assert_ne!(node_host("a"), node_host("b"));
    }
}
