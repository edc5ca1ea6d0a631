//! Certificates of a test's own, and clients that trust them.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::Door;

/// Makes certificates that sign themselves; trusts those it made.
pub(crate) struct Authority {
    folder: TempDir,
    roots: RootCertStore,
}

/// PEM files of a certificate and its key.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    pub(crate) cert_file: PathBuf,
    pub(crate) key_file: PathBuf,
    pub(crate) der: Vec<u8>,
}

impl Certificate {
    /// As it stands in a YAML mapping.
    pub(crate) fn yaml(&self) -> String {
        format!("cert_file: \"{}\", key_file: \"{}\"", self.cert_file.display(), self.key_file.display())
    }
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), roots: RootCertStore::empty() }
    }

    /// A certificate for `names` until the end of `year`, in files called `file`; what they held before is gone.
    pub(crate) fn issue(&mut self, file: &str, names: &[&str], year: i32) -> Certificate {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = rcgen::CertificateParams::new(names).expect("names");
        parameters.not_after = rcgen::date_time_ymd(year, 12, 31);
        let key = rcgen::KeyPair::generate().expect("a key");
        let made = parameters.self_signed(&key).expect("a certificate");
        self.roots.add(made.der().clone()).expect("a root");
        let [cert_file, key_file] = [("pem", made.pem()), ("key", key.serialize_pem())].map(|(extension, pem)| {
            let path = self.folder.path().join(format!("{file}.{extension}"));
            std::fs::write(&path, pem).expect("written");
            path
        });
        Certificate { cert_file, key_file, der: made.der().to_vec() }
    }

    /// A client that speaks `versions` and offers `alpn`.
    pub(crate) fn client(&self, versions: &[&'static SupportedProtocolVersion], alpn: &[&str]) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }
}

/// The YAML of a gateway with a TLS listener alone.
pub(crate) fn over_tls(yaml: &str, tls: &str) -> String {
    let plain = "  - address: 127.0.0.1:0\n";
    assert!(yaml.contains(plain), "{yaml}");
    yaml.replacen(plain, &format!("  - {{ address: 127.0.0.1:0, tls: {{ {tls} }} }}\n"), 1)
}

/// Connects to the first listener and asks for `name`.
pub(crate) async fn connect(door: &Door, client: ClientConfig, name: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(door.address()).await?;
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    TlsConnector::from(Arc::new(client)).connect(name, socket).await
}
