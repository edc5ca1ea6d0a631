//! TLS of one listener: certificates from PEM files, chosen by server name, ready to be swapped while connections live.
//!
//! TLS 1.2 and 1.3 by rustls with aws-lc-rs as the one crypto provider; ALPN offers `h2` and `http/1.1`; sessions
//! resume by stateless tickets. A certificate that does not belong to its key is refused when it is loaded, not when
//! the first client comes.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;

use super::{CertificateFiles, TlsSettings, TlsVersion};

/// The protocols offered by ALPN, best first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Makes aws-lc-rs the process's crypto provider, for every user of TLS in it. Later calls do nothing.
pub fn install_crypto_provider() {
    // an error means that there is one already
    let _ = aws_lc_rs::default_provider().install_default();
}

/// The certificates of one listener, checked and ready to serve.
#[derive(Debug)]
pub struct TlsCertificates {
    by_name: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// All, in the order of the configuration.
    all: Vec<Arc<CertifiedKey>>,
    expiry: Vec<(String, i64)>,
}

impl TlsCertificates {
    /// Reads and checks every certificate that `settings` name. One that has expired is served: whether its clients
    /// mind is theirs to say, and [`Self::expiry`] tells.
    pub fn load(settings: &TlsSettings) -> Result<Self, TlsError> {
        let provider = aws_lc_rs::default_provider();
        let mut certificates = Self { by_name: HashMap::new(), all: Vec::new(), expiry: Vec::new() };
        for files in &settings.certificates {
            certificates.add(files, &provider)?;
        }
        if certificates.all.is_empty() {
            return Err(TlsError { file: PathBuf::new(), problem: Problem::NoneConfigured });
        }
        Ok(certificates)
    }

    /// The first name of each certificate and when it ends (Unix time, seconds).
    pub fn expiry(&self) -> impl Iterator<Item = (&str, i64)> {
        self.expiry.iter().map(|(name, ends)| (name.as_str(), *ends))
    }

    fn add(&mut self, files: &CertificateFiles, provider: &CryptoProvider) -> Result<(), TlsError> {
        let CertificateFiles { cert_file, key_file } = files;
        let chain = read_chain(cert_file)?;
        let (names, ends) = describe(chain.first(), cert_file)?;
        let key =
            Arc::new(CertifiedKey::from_der(chain, read_key(key_file)?, provider).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    TlsError { file: key_file.clone(), problem: Problem::OtherKey { certificate: cert_file.clone() } }
                }
                rustls::Error::InvalidCertificate(_) => {
                    TlsError { file: cert_file.clone(), problem: Problem::BadCertificate(error.to_string()) }
                }
                error => TlsError { file: key_file.clone(), problem: Problem::BadKey(error.to_string()) },
            })?);
        let label = names.first().cloned().unwrap_or_else(|| cert_file.display().to_string());
        match self.expiry.iter_mut().find(|(name, _)| *name == label) {
            Some((_, earlier)) => *earlier = ends.min(*earlier),
            None => self.expiry.push((label, ends)),
        }
        for name in names {
            self.by_name.entry(name).or_default().push(Arc::clone(&key));
        }
        self.all.push(key);
        Ok(())
    }

    /// The certificates for `name`: those that name it, else those whose wildcard covers it, else all.
    fn candidates(&self, name: Option<&str>) -> &[Arc<CertifiedKey>] {
        let Some(name) = name else { return &self.all };
        if let Some(exact) = self.by_name.get(name) {
            return exact;
        }
        // RFC 6125 §6.4.3: a wildcard stands for exactly one label
        let wildcard = name.split_once('.').and_then(|(_, parent)| self.by_name.get(&format!("*.{parent}")));
        wildcard.unwrap_or(&self.all)
    }
}

impl ResolvesServerCert for TlsCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls hands the name on in lower case
        let candidates = self.candidates(hello.server_name());
        let usable = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        candidates.iter().find(usable).or(candidates.first()).cloned()
    }
}

/// The rustls configuration that serves `settings`; `tickets` outlive a reload, so that sessions resume after it.
pub(super) fn server_config(
    settings: &TlsSettings,
    certificates: TlsCertificates,
    tickets: Arc<dyn ProducesTickets>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let versions: &[&rustls::SupportedProtocolVersion] = match settings.min_version {
        TlsVersion::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::V1_3 => &[&rustls::version::TLS13],
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .map_err(TlsError::internal)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols = ALPN.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = tickets;
    Ok(Arc::new(config))
}

/// Encrypts session tickets with keys of this process, rotated every six hours.
pub(super) fn tickets() -> Result<Arc<dyn ProducesTickets>, TlsError> {
    aws_lc_rs::Ticketer::new().map_err(TlsError::internal)
}

fn read_chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(file)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = chain.map_err(|error| TlsError::pem(file, &error))?;
    if chain.is_empty() {
        let problem = match PrivateKeyDer::from_pem_slice(&text) {
            Ok(_) => Problem::KeyForCertificate,
            Err(_) => Problem::NoCertificate,
        };
        return Err(TlsError { file: file.to_owned(), problem });
    }
    Ok(chain)
}

fn read_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = read(file)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        let holds = |marker: &str| memchr::memmem::find(&text, marker.as_bytes()).is_some();
        let problem = match error {
            pem::Error::NoItemsFound if holds("ENCRYPTED PRIVATE KEY") => Problem::EncryptedKey,
            pem::Error::NoItemsFound if holds("BEGIN CERTIFICATE") => Problem::CertificateForKey,
            pem::Error::NoItemsFound => Problem::NoKey,
            error => return TlsError::pem(file, &error),
        };
        TlsError { file: file.to_owned(), problem }
    })
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(file).map_err(|error| TlsError { file: file.to_owned(), problem: Problem::Unreadable(error) })
}

/// The DNS names of a certificate, in lower case, and when it ends.
fn describe(certificate: Option<&CertificateDer<'_>>, file: &Path) -> Result<(Vec<String>, i64), TlsError> {
    let bad = |why: String| TlsError { file: file.to_owned(), problem: Problem::BadCertificate(why) };
    let der = certificate.map(|der| der.as_ref()).unwrap_or_default();
    let (_, certificate) = x509_parser::parse_x509_certificate(der).map_err(|error| bad(error.to_string()))?;
    let names = certificate.subject_alternative_name().map_err(|error| bad(error.to_string()))?;
    let names = names.map(|names| names.value.general_names.iter().filter_map(dns_name).collect()).unwrap_or_default();
    Ok((names, certificate.validity().not_after.timestamp()))
}

fn dns_name(name: &x509_parser::extensions::GeneralName<'_>) -> Option<String> {
    match name {
        x509_parser::extensions::GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    }
}

/// Why certificates cannot be served: the file, the problem, what to do.
#[derive(Debug)]
pub struct TlsError {
    file: PathBuf,
    problem: Problem,
}

#[derive(Debug)]
enum Problem {
    NoneConfigured,
    Unreadable(io::Error),
    NotPem(String),
    NoCertificate,
    KeyForCertificate,
    NoKey,
    CertificateForKey,
    EncryptedKey,
    BadCertificate(String),
    BadKey(String),
    OtherKey { certificate: PathBuf },
    Internal(String),
}

impl TlsError {
    fn pem(file: &Path, error: &pem::Error) -> Self {
        // the text of some errors quotes the file, and the file may be a key
        let why = match error {
            pem::Error::MissingSectionEnd { .. } => "a section has no END line: the file is cut off".to_owned(),
            pem::Error::IllegalSectionStart { .. } => "a BEGIN line is malformed".to_owned(),
            pem::Error::Base64Decode(_) => "a section is not base64".to_owned(),
            _ => "it cannot be read as PEM".to_owned(),
        };
        Self { file: file.to_owned(), problem: Problem::NotPem(why) }
    }

    fn internal(error: rustls::Error) -> Self {
        Self { file: PathBuf::new(), problem: Problem::Internal(error.to_string()) }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match &self.problem {
            Problem::NoneConfigured => f.write_str("tls names no certificate: set cert_file and key_file"),
            Problem::Unreadable(error) if error.kind() == io::ErrorKind::NotFound => {
                write!(f, "{file}: no such file: check the path")
            }
            Problem::Unreadable(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                write!(f, "{file}: not readable: give the gateway's user the right to read it")
            }
            Problem::Unreadable(error) => write!(f, "{file}: cannot be read: {error}"),
            Problem::NotPem(why) => write!(f, "{file}: {why}"),
            Problem::NoCertificate => {
                write!(
                    f,
                    "{file}: holds no certificate: it needs a `-----BEGIN CERTIFICATE-----` section (PEM, not DER)"
                )
            }
            Problem::KeyForCertificate => {
                write!(f, "{file}: holds a private key and no certificate: are cert_file and key_file swapped?")
            }
            Problem::NoKey => {
                write!(
                    f,
                    "{file}: holds no private key: it needs a `-----BEGIN PRIVATE KEY-----` section (PEM, not DER)"
                )
            }
            Problem::CertificateForKey => {
                write!(f, "{file}: holds a certificate and no private key: are cert_file and key_file swapped?")
            }
            Problem::EncryptedKey => {
                write!(f, "{file}: the private key is encrypted: decrypt it with `openssl pkey -in {file} -out …`")
            }
            Problem::BadCertificate(why) => write!(f, "{file}: the certificate cannot be used: {why}"),
            Problem::BadKey(why) => write!(f, "{file}: the private key cannot be used: {why}"),
            Problem::OtherKey { certificate } => {
                write!(f, "{file}: is not the key of {}: name the pair that was made together", certificate.display())
            }
            Problem::Internal(why) => write!(f, "TLS cannot be set up: {why}"),
        }
    }
}

impl std::error::Error for TlsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.problem {
            Problem::Unreadable(error) => Some(error),
            _ => None,
        }
    }
}
