//! Sockets, TLS, HTTP/1.1 and HTTP/2, their timeouts, and drain.
//!
//! A listener hands whole request heads to a service and brings its answers to the client. Whatever a client does or
//! leaves undone, a connection costs a bounded amount of memory for a bounded time; see [`ConnectionLimits`]. What
//! hyper refuses by itself (a malformed or oversized head) never reaches the service and is counted here.

mod accept;
mod addresses;
mod connection;
mod frames;
mod incoming;
mod io;
mod outgoing;
mod progress;
mod reason;
mod shape;
mod socket;
mod streams;
mod tls;
mod watchdog;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::body::Response;
use crate::cutoff::Cutoff;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::ListenerMetrics;

pub use shape::Live;
pub use socket::BindError;
pub use tls::{TlsCertificates, TlsError, install_crypto_provider};

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

/// Bounds of one listener's connections. Besides these the kernel is told to give up peers that vanished: TCP
/// keepalive, and `write_timeout` for bytes that are never confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Open connections at most; more are closed at once.
    pub max_connections: u32,
    /// The same from one address, or from one IPv6 /64.
    pub max_connections_per_address: u32,
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

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_connections_per_address: 2000,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            max_header_bytes: 32 * 1024,
            max_streams: 128,
        }
    }
}

/// The other end of a client connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pub address: SocketAddr,
    pub tls: bool,
}

/// Marks a request, by its extensions, as one that is to be refused whatever it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unwanted {
    /// Begun on an HTTP/2 connection well after its client was told to begin no more there (RFC 9113 §6.8): a client that
    /// does not hear could hold up the drain for ever.
    Late,
    /// Sent without TLS to a listener that wants it.
    Plain,
}

/// What a listener serves: one clone a connection. It must always be ready; while it is not, requests are answered 503.
pub trait Service:
    tower::Service<(http::Request<Incoming>, Peer), Response = Response, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + 'static
{
}

impl<S> Service for S
where
    S: tower::Service<(http::Request<Incoming>, Peer), Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
    S: Clone + Send + 'static,
{
}

/// How long streams may take to tell their clients that they end.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// What ends listeners and their connections, in three steps: drain, cutoff, abort.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// No new connections; those between requests end at once, the others when their requests are over.
    pub drain: CancellationToken,
    /// What is still under way may say so to its client, within a quarter of a second.
    pub cutoff: Cutoff,
    /// Every connection ends at once.
    pub abort: CancellationToken,
    /// Every connection, and every HTTP/2 stream, while it lives.
    pub connections: TaskTracker,
}

impl Stop {
    pub fn new() -> Self {
        Self::default()
    }

    /// One whose cutoff others hear of too.
    pub fn with(cutoff: Cutoff) -> Self {
        Self { cutoff, ..Self::default() }
    }

    /// Ends everything: waits up to `within` for the requests in flight, then cuts the rest off. How many tasks were
    /// cut off; 0: every request came to its end.
    pub async fn finish(&self, within: Duration) -> usize {
        self.drain.cancel();
        self.connections.close();
        if tokio::time::timeout(within, self.connections.wait()).await.is_ok() {
            return 0;
        }
        let rest = self.connections.len();
        self.cutoff.come();
        if tokio::time::timeout(LAST_WORDS, self.connections.wait()).await.is_ok() {
            return rest;
        }
        self.abort.cancel();
        // dropping a connection cancels its requests; a task that will not hear of it is left behind
        let _ = tokio::time::timeout(Duration::from_secs(1), self.connections.wait()).await;
        rest
    }
}

/// A bound listener.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    live: Arc<Live>,
    metrics: Arc<ListenerMetrics>,
}

impl Listener {
    /// Opens the socket and loads the certificates. Must be called within a tokio runtime.
    pub fn bind(settings: &Settings, metrics: &Metrics) -> Result<Self, BindError> {
        let live = Live::new(settings, metrics).map_err(|error| BindError::tls(settings.address, error))?;
        let socket = socket::open(settings.address, settings.limits.write_timeout)?;
        let address = socket.local_addr().unwrap_or(settings.address);
        let metrics = metrics.listener(&settings.address.to_string());
        Ok(Self { socket, address, live: Arc::new(live), metrics: Arc::new(metrics) })
    }

    /// Where it listens; with port 0 in the settings, the port the kernel chose.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// What a reload swaps.
    pub fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live)
    }

    /// Serves connections by `service` until `stop` drains; connections that live then are in `stop.connections`.
    /// Dropping the future closes the socket and leaves the connections to `stop`.
    pub async fn serve<S: Service>(self, service: S, stop: Stop) {
        accept::accept(self.socket, self.live, self.metrics, service, stop).await;
    }
}
