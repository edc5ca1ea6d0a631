//! Sockets, TLS, HTTP/1.1 and HTTP/2, their timeouts, and drain.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What the configuration says of one listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub address: SocketAddr,
    pub tls: Option<TlsSettings>,
    pub limits: ConnectionLimits,
}

/// Certificates of one listener; the first is served when no name matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    pub certificates: Vec<CertificateFiles>,
    /// The lowest version offered.
    pub min_version: TlsVersion,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    V1_2,
    V1_3,
}

/// PEM files of one certificate chain and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

/// Bounds of one listener's connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Open connections at most; more are closed at once.
    pub max_connections: u32,
    /// TLS handshake, HTTP/2 preface.
    pub handshake_timeout: Duration,
    /// From a request's first byte to the end of its head.
    pub header_timeout: Duration,
    /// Between requests.
    pub idle_timeout: Duration,
    /// Without one byte taken by a client that is owed some.
    pub write_timeout: Duration,
    /// Bytes of a request head at most.
    pub max_header_bytes: u32,
    /// Requests at once on one HTTP/2 connection.
    pub max_streams: u32,
}

/// The other end of a client connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pub address: SocketAddr,
    pub tls: bool,
}
