//! The part of the YAML file that is about one listener; what `raw` promises holds here.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::units::{ByteSize, DurationText};

/// Where clients connect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct Listener {
    /// IP address and port, e.g. 0.0.0.0:8283. Takes a restart, as does one listener more or less.
    #[schemars(required)]
    pub address: Option<String>,
    /// Left out: plain HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Open connections at most; more are closed at once.
    pub max_connections: u32,
    /// The same from one client address, or from one IPv6 /64.
    pub max_connections_per_address: u32,
    /// For the TLS handshake, and for the HTTP/2 preface.
    pub handshake_timeout: DurationText,
    /// From a request's first byte to the end of its head.
    pub header_timeout: DurationText,
    /// How long a connection may stay without a request.
    pub idle_timeout: DurationText,
    /// How long a client may take no byte of what it is owed.
    pub write_timeout: DurationText,
    /// Size of a request's head at most.
    pub max_header_size: ByteSize,
    /// Requests at once on one HTTP/2 connection.
    pub max_streams: u32,
}

impl Default for Listener {
    fn default() -> Self {
        Self {
            address: None,
            tls: None,
            max_connections: 10_000,
            max_connections_per_address: 2000,
            handshake_timeout: DurationText::secs(10),
            header_timeout: DurationText::secs(15),
            idle_timeout: DurationText::secs(60),
            write_timeout: DurationText::secs(60),
            max_header_size: ByteSize::kib(32),
            max_streams: 128,
        }
    }
}

/// TLS of one listener: `cert_file` and `key_file`, or `certificates`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct Tls {
    /// PEM file of the certificate and its chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// PEM file of its private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Several certificates, chosen by the name the client asks for; the first where none fits.
    pub certificates: Vec<Certificate>,
    /// The lowest version offered.
    pub min_version: TlsVersion,
}

/// PEM files of one certificate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct Certificate {
    /// PEM file of the certificate and its chain.
    #[schemars(required)]
    pub cert_file: Option<PathBuf>,
    /// PEM file of its private key.
    #[schemars(required)]
    pub key_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(in crate::config) enum TlsVersion {
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    #[serde(rename = "1.3")]
    V1_3,
}
