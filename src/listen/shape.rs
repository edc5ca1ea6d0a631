//! How connections accepted from now on are served: everything of a listener that a reload can change.

use std::sync::Arc;

use arc_swap::ArcSwap;
use hyper::server::conn::{http1, http2};
use rustls::ServerConfig;
use rustls::server::ProducesTickets;
use tokio::sync::Semaphore;

use super::streams::Streams;
use super::tls::{self, TlsCertificates, TlsError};
use super::{ConnectionLimits, Settings};
use crate::telemetry::Metrics;

/// What hyper holds at most of an HTTP/1 response that its client does not take.
const HTTP1_BUFFER: usize = 32 * 1024;
/// The same for one HTTP/2 stream.
const HTTP2_SEND_BUFFER: usize = 32 * 1024;
/// What a client may send ahead on one stream, and on one connection.
const STREAM_WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// How often an HTTP/2 client is asked whether it is still there, and how long it may take to say so.
const PING_EVERY: std::time::Duration = std::time::Duration::from_secs(20);
const PING_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(20);

/// How connections are served.
pub(super) struct Shape {
    pub(super) limits: ConnectionLimits,
    pub(super) tls: Option<Arc<ServerConfig>>,
    /// Bounds handshakes at once to half of the connections, so that they cannot fill the listener.
    pub(super) handshakes: Arc<Semaphore>,
    pub(super) http1: http1::Builder,
}

impl Shape {
    fn new(limits: ConnectionLimits, tls: Option<Arc<ServerConfig>>) -> Self {
        let head = usize::try_from(limits.max_header_bytes).unwrap_or(HTTP1_BUFFER);
        let mut http1 = http1::Builder::new();
        // No timer: hyper would set one a request. The watchdog has its work. Half a close is none here, but it is the
        // wire that sees it: hyper would read ahead for it, into 8 KiB of their own while the last have the head.
        http1.half_close(true).max_header_size(head).max_buf_size(head.max(HTTP1_BUFFER));
        let handshakes =
            usize::try_from(limits.max_connections / 2).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS);
        Self { limits, tls, handshakes: Arc::new(Semaphore::new(handshakes)), http1 }
    }

    /// HTTP/2 with its streams run by `streams`. hyper's guards against floods of resets stay at their defaults.
    pub(super) fn http2(&self, streams: Streams) -> http2::Builder<Streams> {
        let mut http2 = http2::Builder::new(streams);
        http2
            .max_concurrent_streams(self.limits.max_streams)
            .max_header_list_size(self.limits.max_header_bytes)
            .max_send_buf_size(HTTP2_SEND_BUFFER)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT);
        http2
    }
}

/// The shape of one listener, which a reload swaps: connections that live keep the one they began with.
pub struct Live {
    shape: ArcSwap<Shape>,
    tickets: Arc<dyn ProducesTickets>,
    /// The listener's metric label.
    address: Box<str>,
}

impl Live {
    pub(super) fn new(settings: &Settings, metrics: &Metrics) -> Result<Self, TlsError> {
        let tickets = tls::tickets()?;
        let address = settings.address.to_string().into_boxed_str();
        let shape = ArcSwap::from_pointee(shape(settings, &tickets, &address, metrics)?);
        Ok(Self { shape, tickets, address })
    }

    pub(super) fn shape(&self) -> Arc<Shape> {
        self.shape.load_full()
    }

    /// Serves connections accepted from now on by `settings` (all but the address), certificates read anew. On an
    /// error all stays as it is. The kernel's own patience with unconfirmed bytes stays what it was when the socket was
    /// bound.
    pub fn reload(&self, settings: &Settings, metrics: &Metrics) -> Result<(), TlsError> {
        self.shape.store(Arc::new(shape(settings, &self.tickets, &self.address, metrics)?));
        Ok(())
    }
}

fn shape(
    settings: &Settings,
    tickets: &Arc<dyn ProducesTickets>,
    address: &str,
    metrics: &Metrics,
) -> Result<Shape, TlsError> {
    let mut expiry = Vec::new();
    let tls = match &settings.tls {
        None => None,
        Some(tls) => {
            let certificates = TlsCertificates::load(tls)?;
            expiry.extend(certificates.expiry().map(|(name, ends)| (name.to_owned(), ends)));
            Some(tls::server_config(tls, certificates, Arc::clone(tickets))?)
        }
    };
    metrics.forget_certificates(address);
    for (name, ends) in expiry {
        metrics.certificate_expiry(address, &name, ends);
    }
    Ok(Shape::new(settings.limits.clone(), tls))
}
