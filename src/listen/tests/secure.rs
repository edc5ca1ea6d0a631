//! TLS: versions, ALPN, names, reload, resumption, and what is said of files that cannot be served.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::{CertificateFiles, Settings, TlsCertificates, TlsSettings, TlsVersion};
use super::{HANDSHAKE, HEADER, IDLE, Rig, TICK, WRITE, limits, read_response, read_to_close};

/// Certificates made for one test.
struct Authority {
    dir: TempDir,
    roots: RootCertStore,
}

impl Authority {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), roots: RootCertStore::empty() }
    }

    /// A certificate for `names`, in files called `file`.
    fn issue(&mut self, file: &str, names: &[&str]) -> CertificateFiles {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        self.roots.add(made.cert.der().clone()).unwrap();
        let cert_file = self.write(&format!("{file}.pem"), &made.cert.pem());
        let key_file = self.write(&format!("{file}.key"), &made.signing_key.serialize_pem());
        CertificateFiles { cert_file, key_file }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn client(&self, version: &'static SupportedProtocolVersion, alpn: &[&str]) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }
}

fn tls(certificates: Vec<CertificateFiles>) -> TlsSettings {
    TlsSettings { certificates, min_version: TlsVersion::V1_2 }
}

async fn connect(rig: &Rig, config: &Arc<ClientConfig>, name: &str) -> std::io::Result<TlsStream<DuplexStream>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::clone(config)).connect(name, rig.connect()).await
}

/// A client that speaks HTTP/1 over TLS.
async fn connected() -> (Rig, TlsStream<DuplexStream>) {
    let mut authority = Authority::new();
    let rig = Rig::new(Some(tls(vec![authority.issue("a", &["a.test"])])));
    let config = Arc::new(authority.client(&rustls::version::TLS13, &[]));
    let stream = connect(&rig, &config, "a.test").await.unwrap();
    (rig, stream)
}

/// The certificate a client that asks for `name` is shown.
async fn shown(rig: &Rig, config: &Arc<ClientConfig>, name: &str) -> Vec<u8> {
    #[derive(Debug)]
    struct Anything(Arc<rustls::crypto::CryptoProvider>);
    impl rustls::client::danger::ServerCertVerifier for Anything {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = &self.0.signature_verification_algorithms;
            rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = &self.0.signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
    let mut config = ClientConfig::clone(config);
    config.resumption = Resumption::disabled();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    config.dangerous().set_certificate_verifier(Arc::new(Anything(provider)));
    let stream = connect(rig, &Arc::new(config), name).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn der(files: &CertificateFiles) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject as _;
    CertificateDer::from_pem_file(&files.cert_file).unwrap().to_vec()
}

#[tokio::test(start_paused = true)]
async fn tls_1_2_and_1_3_carry_both_protocols_as_the_client_asks() {
    let mut authority = Authority::new();
    let rig = Rig::new(Some(tls(vec![authority.issue("a", &["a.test"])])));
    let versions = [&rustls::version::TLS12, &rustls::version::TLS13];
    for version in versions {
        for (alpn, expected) in [
            (&[][..], Version::HTTP_11),
            (&["http/1.1"], Version::HTTP_11),
            (&["h2"], Version::HTTP_2),
            (&["http/1.1", "h2"], Version::HTTP_2),
        ] {
            let stream = connect(&rig, &Arc::new(authority.client(version, alpn)), "a.test").await.unwrap();
            assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
            let io = TokioIo::new(stream);
            let request =
                Request::get("https://a.test/peer").header("host", "a.test").body(Empty::<Bytes>::new()).unwrap();
            let response = if expected == Version::HTTP_2 {
                let (mut sender, connection) =
                    hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
                tokio::spawn(connection);
                sender.send_request(request).await.unwrap()
            } else {
                let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
                tokio::spawn(connection);
                sender.send_request(request).await.unwrap()
            };
            assert_eq!(response.version(), expected, "{version:?} {alpn:?}");
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "192.0.2.1:4711 true");
        }
    }
    assert_eq!(rig.errors(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_agreed_on_is_refused_and_counted() {
    let mut authority = Authority::new();
    let settings = TlsSettings { min_version: TlsVersion::V1_3, ..tls(vec![authority.issue("a", &["a.test"])]) };
    let rig = Rig::new(Some(settings));
    let old = authority.client(&rustls::version::TLS12, &[]);
    connect(&rig, &Arc::new(old), "a.test").await.expect_err("TLS 1.2 is spoken");
    let other = authority.client(&rustls::version::TLS13, &["h3"]);
    connect(&rig, &Arc::new(other), "a.test").await.expect_err("a protocol is spoken that is not there");
    let mut neither = rig.connect();
    neither.write_all(b"get / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    read_to_close(&mut neither).await;
    assert_eq!(rig.errors(), ["tls_handshake=3"]);
}

#[tokio::test(start_paused = true)]
async fn who_speaks_plain_http_to_a_tls_listener_is_told_so_and_not_served() {
    let mut authority = Authority::new();
    let rig = Rig::new(Some(tls(vec![authority.issue("a", &["a.test"])])));
    let mut plain = rig.connect();
    for byte in b"GET /peer HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n" {
        plain.write_all(&[*byte]).await.unwrap();
        // read before the next one comes
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let answer = read_to_close(&mut plain).await;
    assert!(String::from_utf8_lossy(&answer).ends_with("not encrypted"), "{answer:?}");

    let io = TokioIo::new(rig.connect());
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://a.test/peer").body(Empty::<Bytes>::new()).unwrap();
    let answer = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(answer, "not encrypted");
    assert_eq!(rig.served(), 0);
    assert_eq!(rig.errors(), [""; 0]);

    let begun = Instant::now();
    let mut silent = rig.connect();
    silent.write_all(b"G").await.unwrap();
    read_to_close(&mut silent).await;
    assert!(begun.elapsed() <= HEADER + TICK, "closed after {:?}", begun.elapsed());
    assert_eq!(rig.errors(), ["header_timeout=1"]);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_comes_byte_by_byte_is_one() {
    let mut authority = Authority::new();
    let rig = Rig::new(Some(tls(vec![authority.issue("a", &["a.test"])])));
    let config = Arc::new(authority.client(&rustls::version::TLS13, &[]));
    let name = ServerName::try_from("a.test").unwrap();
    let (client, relay) = tokio::io::duplex(64 * 1024);
    let (mut from_client, mut to_client) = tokio::io::split(relay);
    let (mut from_rig, mut to_rig) = tokio::io::split(rig.connect());
    tokio::spawn(async move { tokio::io::copy(&mut from_rig, &mut to_client).await });
    tokio::spawn(async move {
        while let Ok(byte) = from_client.read_u8().await {
            to_rig.write_all(&[byte]).await.unwrap();
            // read before the next one comes
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    TlsConnector::from(config).connect(name, client).await.unwrap();
    assert_eq!(rig.errors(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_has_its_time() {
    let mut authority = Authority::new();
    for (bytes, errors) in [(&b""[..], &[][..]), (b"\x16\x03\x01\x02\x00\x01\x00", &["tls_timeout=1"])] {
        let rig = Rig::new(Some(tls(vec![authority.issue("a", &["a.test"])])));
        let begun = Instant::now();
        let mut client = rig.connect();
        client.write_all(bytes).await.unwrap();
        read_to_close(&mut client).await;
        let took = begun.elapsed();
        assert!(took >= HANDSHAKE && took <= HANDSHAKE + TICK, "closed after {took:?}");
        assert_eq!(rig.errors(), errors);
    }
}

#[tokio::test(start_paused = true)]
async fn half_done_things_after_the_handshake_close_the_connection() {
    /// What ALPN says, the bytes sent, when the connection closes, the errors counted.
    type Row = (&'static [&'static str], &'static [u8], Duration, &'static [&'static str]);
    let table: &[Row] = &[
        (&["h2"], b"", HANDSHAKE, &["preface=1"]),
        (&["h2"], b"PRI * HT", HANDSHAKE, &["preface=1"]),
        (&["h2"], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", HEADER, &["header_timeout=1"]),
        (&["http/1.1"], b"", IDLE, &[]),
        (&["http/1.1"], b"GET / HT", HEADER, &["header_timeout=1"]),
    ];
    let mut authority = Authority::new();
    let files = authority.issue("a", &["a.test"]);
    for (alpn, bytes, expected, errors) in table {
        let rig = Rig::new(Some(tls(vec![files.clone()])));
        let config = Arc::new(authority.client(&rustls::version::TLS13, alpn));
        let mut stream = connect(&rig, &config, "a.test").await.unwrap();
        let begun = Instant::now();
        stream.write_all(bytes).await.unwrap();
        read_to_close(&mut stream).await;
        let took = begun.elapsed();
        let name = String::from_utf8_lossy(bytes);
        assert!(took >= *expected && took <= *expected + TICK, "{alpn:?} {name:?}: closed after {took:?}");
        assert_eq!(rig.errors(), *errors, "{alpn:?} {name:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_name_chooses_the_certificate() {
    let mut authority = Authority::new();
    let first = authority.issue("first", &["first.test"]);
    let exact = authority.issue("exact", &["Api.Example.test", "other.test"]);
    let wild = authority.issue("wild", &["*.example.test"]);
    let rig = Rig::new(Some(tls(vec![first.clone(), exact.clone(), wild.clone()])));
    let config = Arc::new(authority.client(&rustls::version::TLS13, &[]));
    let table = [
        ("first.test", &first),
        ("api.example.test", &exact),
        ("API.example.TEST", &exact),
        ("other.test", &exact),
        ("www.example.test", &wild),
        // one label only
        ("a.b.example.test", &first),
        ("example.test", &first),
        ("unknown.test", &first),
        // no name at all
        ("127.0.0.1", &first),
    ];
    for (name, expected) in table {
        assert!(shown(&rig, &config, name).await == der(expected), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reload_changes_new_connections_and_leaves_the_old_ones() {
    let mut authority = Authority::new();
    let old = authority.issue("old", &["a.test"]);
    let rig = Rig::new(Some(tls(vec![old.clone()])));
    let config = Arc::new(authority.client(&rustls::version::TLS13, &[]));
    let mut living = connect(&rig, &config, "a.test").await.unwrap();

    let new = authority.issue("new", &["a.test"]);
    let settings = |files: &CertificateFiles| Settings {
        address: "127.0.0.1:0".parse().unwrap(),
        tls: Some(tls(vec![files.clone()])),
        limits: limits(),
    };
    rig.live.reload(&settings(&new), &rig.metrics).unwrap();
    assert!(shown(&rig, &config, "a.test").await == der(&new));

    let mismatched = CertificateFiles { cert_file: old.cert_file, key_file: new.key_file.clone() };
    rig.live.reload(&settings(&mismatched), &rig.metrics).expect_err("the key is another's");
    assert!(shown(&rig, &config, "a.test").await == der(&new));

    living.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert_eq!(read_response(&mut living).await.1, "hello");
}

#[tokio::test(start_paused = true)]
async fn a_session_resumes_by_its_ticket_even_after_a_reload() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut authority = Authority::new();
        let settings = Settings {
            address: "127.0.0.1:0".parse().unwrap(),
            tls: Some(tls(vec![authority.issue("a", &["a.test"])])),
            limits: limits(),
        };
        let rig = Rig::new(settings.tls.clone());
        let config = Arc::new(authority.client(version, &[]));
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
            let mut stream = connect(&rig, &config, "a.test").await.unwrap();
            // TLS 1.3 tickets come with the first answer
            stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            read_response(&mut stream).await;
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(expected), "{version:?}");
            rig.live.reload(&settings, &rig.metrics).unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn over_tls_too_what_comes_early_is_the_next_request_and_who_leaves_cancels_the_one_under_way() {
    let (rig, mut stream) = connected().await;
    let wait = b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n";
    stream.write_all(wait).await.unwrap();
    rig.serves(1).await;
    stream.write_all(wait).await.unwrap();
    tokio::time::sleep(TICK).await;
    assert_eq!(rig.served(), 1, "one after the other");
    rig.world.go.notify_one();
    assert_eq!(read_response(&mut stream).await.1, "waited");
    rig.serves(2).await;
    stream.shutdown().await.unwrap();
    rig.all_let_go(TICK).await;
    rig.all_over(TICK).await;
    assert_eq!(rig.errors(), ["incomplete=1"]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_without_a_word_of_tls_cancels_its_request() {
    let (rig, mut stream) = connected().await;
    stream.write_all(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    rig.serves(1).await;
    drop(stream.into_inner().0);
    rig.all_let_go(TICK).await;
    rig.all_over(TICK).await;
    assert_eq!(rig.errors(), ["io=1"]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_over_tls_is_cut_off_too() {
    let mut authority = Authority::new();
    let rig = Rig::new(Some(tls(vec![authority.issue("a", &["a.test"])])));
    let config = Arc::new(authority.client(&rustls::version::TLS13, &[]));
    let name = ServerName::try_from("a.test").unwrap();
    let mut stream = TlsConnector::from(config).connect(name, rig.connect_with(1024)).await.unwrap();
    let begun = Instant::now();
    stream.write_all(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    rig.all_over(WRITE + 2 * TICK).await;
    assert!(begun.elapsed() >= WRITE);
    assert_eq!(rig.errors(), ["write_timeout=1"]);
    // in hyper and in TLS
    let handed = rig.world.handed.load(std::sync::atomic::Ordering::SeqCst);
    assert!(handed <= 64 * 1024, "{handed} bytes were held");
}

#[test]
fn files_that_cannot_be_served_are_named_with_the_fix() {
    let mut authority = Authority::new();
    let good = authority.issue("good", &["a.test"]);
    let other = authority.issue("other", &["a.test"]);
    let empty = authority.write("empty.pem", "");
    let cut = authority.write("cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    let junk = authority.write("junk.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let locked = authority.write("locked.key", locked);
    let missing = Path::new("/nowhere/missing.pem").to_owned();
    let table: &[(&Path, &Path, &[&str])] = &[
        (&missing, &good.key_file, &["/nowhere/missing.pem", "no such file"]),
        (&good.cert_file, &missing, &["/nowhere/missing.pem", "no such file"]),
        (&empty, &good.key_file, &["empty.pem", "no certificate", "BEGIN CERTIFICATE"]),
        (&good.cert_file, &empty, &["empty.pem", "no private key", "BEGIN PRIVATE KEY"]),
        (&good.key_file, &good.cert_file, &["good.key", "swapped"]),
        (&good.cert_file, &good.cert_file, &["good.pem", "swapped"]),
        (&cut, &good.key_file, &["cut.pem", "cut off"]),
        (&junk, &good.key_file, &["junk.pem", "certificate cannot be used"]),
        (&good.cert_file, &locked, &["locked.key", "encrypted", "openssl pkey"]),
        (&good.cert_file, &other.key_file, &["other.key", "is not the key of", "good.pem"]),
    ];
    for (cert_file, key_file, words) in table {
        let files = CertificateFiles { cert_file: (*cert_file).to_owned(), key_file: (*key_file).to_owned() };
        let message = TlsCertificates::load(&tls(vec![files])).expect_err("it is served").to_string();
        for word in *words {
            assert!(message.contains(word), "{message:?} does not say {word:?}");
        }
    }
    TlsCertificates::load(&tls(vec![good])).unwrap();
    TlsCertificates::load(&tls(Vec::new())).expect_err("no certificate is enough");
}

#[tokio::test]
async fn the_expiry_of_each_certificate_served_is_a_metric() {
    let mut authority = Authority::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(vec!["soon.test".to_owned()]).unwrap();
    parameters.not_after = rcgen::date_time_ymd(2031, 2, 3);
    let cert_file = authority.write("soon.pem", &parameters.self_signed(&key).unwrap().pem());
    let key_file = authority.write("soon.key", &key.serialize_pem());
    let soon = CertificateFiles { cert_file, key_file };
    let rig = Rig::new(Some(tls(vec![authority.issue("a", &["a.test", "b.test"]), soon.clone()])));
    let told = expiry(&rig);
    assert_eq!(told.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a.test", "soon.test"]);

    let address = "127.0.0.1:0".parse().unwrap();
    rig.live.reload(&Settings { address, tls: Some(tls(vec![soon])), limits: limits() }, &rig.metrics).unwrap();
    assert_eq!(expiry(&rig), [("soon.test".to_owned(), 1_927_843_200.0)]);
    rig.live.reload(&Settings { address, tls: None, limits: limits() }, &rig.metrics).unwrap();
    assert_eq!(expiry(&rig), []);
}

/// The names and ends that the metric has.
fn expiry(rig: &Rig) -> Vec<(String, f64)> {
    let families = rig.metrics.registry().gather();
    let family = families.iter().find(|family| family.name().ends_with("expiry_timestamp_seconds"));
    let told = family.map(|family| family.get_metric()).unwrap_or_default().iter().map(|metric| {
        let label = |name| metric.get_label().iter().find(|label| label.name() == name).unwrap().value();
        assert_eq!(label("listener"), "127.0.0.1:0");
        (label("name").to_owned(), metric.get_gauge().get_value())
    });
    told.collect()
}
