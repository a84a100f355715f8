use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;

use rcgen::{CertifiedKey as Made, KeyPair, generate_simple_self_signed};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

fn made(name: &str) -> Made<KeyPair> {
    generate_simple_self_signed([name.to_owned()]).unwrap()
}

/// A directory of one test, gone with it.
struct Files(PathBuf);

impl Files {
    fn new(test: &str) -> Self {
        let directory =
            std::env::temp_dir().join(format!("meshd-certificates-{}-{test}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// One file with both.
    fn certificate(&self, name: &str) -> (CertificateFiles, CertificateDer<'static>) {
        let made = made(name);
        let path = self.write(name, &(made.cert.pem() + &made.signing_key.serialize_pem()), 0o600);
        (CertificateFiles::from_text(path.to_str().unwrap()), made.cert.der().clone())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A client that trusts one certificate and asks for `name`.
fn client(trusted: &CertificateDer<'static>, name: &str) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let config =
        ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned()).unwrap()).unwrap()
}

/// Says a word and reads the answer, over TLS.
async fn ask(acceptor: &TlsAcceptor, session: ClientConnection) -> io::Result<Vec<u8>> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asking = tokio::task::spawn_blocking(move || {
        let mut stream = StreamOwned::new(session, std::net::TcpStream::connect(address)?);
        stream.write_all(b"ping")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        io::Result::Ok(answer)
    });
    let mut stream = acceptor.begin(listener.accept().await.unwrap().0).unwrap();
    if stream.handshake().await.is_ok() {
        let mut word = [0; 4];
        stream.read_exact(&mut word).await?;
        // Many records, more than a socket takes at once.
        stream.write_all(&word.repeat(500_000)).await?;
        stream.shutdown().await?;
    }
    asking.await.unwrap()
}

#[tokio::test]
async fn a_client_is_shown_the_certificate_for_the_name_it_asks_for() {
    let files = Files::new("names");
    let ((first, first_der), (second, second_der)) =
        (files.certificate("a.example"), files.certificate("b.example"));
    let (_switch, acceptor) = CertificateSwitch::new(Certificates::read(&[first, second]).unwrap()).unwrap();
    for (trusted, name) in [(&first_der, "a.example"), (&second_der, "b.example")] {
        let answer = ask(&acceptor, client(trusted, name)).await.unwrap();
        assert!(answer.len() == 2_000_000 && answer.chunks(4).all(|word| word == b"ping"), "{name}");
    }
    assert!(ask(&acceptor, client(&first_der, "b.example")).await.is_err(), "shown the one of its name");
    assert!(ask(&acceptor, client(&second_der, "c.example")).await.is_err(), "shown the first");
}

#[tokio::test]
async fn new_certificates_are_shown_to_new_clients() {
    let files = Files::new("switch");
    let (old, old_der) = files.certificate("a.example");
    let (switch, acceptor) =
        CertificateSwitch::new(Certificates::read(std::slice::from_ref(&old)).unwrap()).unwrap();
    assert!(ask(&acceptor, client(&old_der, "a.example")).await.is_ok());
    let (new, new_der) = files.certificate("a.example");
    switch.switch(Certificates::read(&[new]).unwrap()).unwrap();
    assert!(ask(&acceptor, client(&old_der, "a.example")).await.is_err());
    assert!(ask(&acceptor, client(&new_der, "a.example")).await.is_ok());
}

#[test]
fn files_that_do_not_do_are_named_with_what_to_do() {
    let files = Files::new("bad");
    let (one, other) = (made("a.example"), made("a.example"));
    let chain = files.write("chain.pem", &one.cert.pem(), 0o644);
    let key = files.write("key.pem", &one.signing_key.serialize_pem(), 0o600);
    let open = files.write("open.pem", &one.signing_key.serialize_pem(), 0o644);
    let strange = files.write("strange.pem", &other.signing_key.serialize_pem(), 0o600);
    let empty = files.write("empty.pem", "", 0o600);
    let text = |chain: &Path, key: &Path| format!("{}:{}", chain.display(), key.display());
    assert!(Certificates::read(&[CertificateFiles::from_text(&text(&chain, &key))]).is_ok());
    let secret = one.signing_key.serialize_pem().lines().nth(1).unwrap().to_owned();
    let cases = [
        (text(&chain, &open), "open to every user"),
        (text(&chain, &strange), "is not the key of the certificate"),
        (text(&chain, &empty), "holds no private key"),
        (text(&empty, &key), "holds no certificate"),
        (text(&files.0.join("missing"), &key), "No such file"),
        (chain.display().to_string(), "open to every user"),
        (key.display().to_string(), "holds no certificate"),
    ];
    for (listed, problem) in cases {
        let error = Certificates::read(&[CertificateFiles::from_text(&listed)]).unwrap_err().to_string();
        assert!(error.contains(problem) && !error.contains(&secret), "{listed}: {error}");
    }
}
