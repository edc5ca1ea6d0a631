//! One client connection, from its first byte to its last: TLS, the choice of the protocol, hyper, and the watchdog
//! beside it.
//!
//! hyper's own per-protocol connections are driven, never its `auto` one, which waits for half a preface for ever.
//! The protocol is what ALPN says or, where the client speaks no TLS, what the first bytes say. A connection ends by
//! itself, by its watchdog, by drain (once its requests are over) or by abort (at once); dropping it cancels every
//! request on it.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::incoming::answering;
use super::io::{Socket, Transport, Wire};
use super::progress::Progress;
use super::reason::Reason;
use super::shape::Shape;
use super::streams::Streams;
use super::watchdog::{Protocol, Verdict, Watchdog};
use super::{Peer, Service, Stop, Unwanted};
use crate::telemetry::metrics::ListenerMetrics;

/// TLS bytes held for a client that does not take them.
const TLS_BUFFER: usize = 16 * 1024;

/// What a connection is made of besides its socket.
pub(super) struct Connection<S> {
    pub(super) address: SocketAddr,
    pub(super) shape: Arc<Shape>,
    pub(super) service: S,
    pub(super) stop: Stop,
    pub(super) metrics: Arc<ListenerMetrics>,
}

impl<S: Service> Connection<S> {
    /// Serves `socket` until it ends.
    pub(super) async fn run<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self, socket: T) {
        let metrics = Arc::clone(&self.metrics);
        let address = self.address;
        if let Err(reason) = self.serve(socket).await {
            metrics.error(reason.as_str());
            tracing::debug!(client = %address, reason = reason.as_str(), "connection ended");
        }
    }

    async fn serve<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self, socket: T) -> Result<(), Reason> {
        let Self { address, shape, service, stop, metrics } = self;
        let progress = Progress::new();
        let opening = open(Socket::new(socket, Arc::clone(&progress)), &shape, &progress);
        let Opened { wire, protocol, unwanted } = tokio::select! {
            biased;
            // nothing was asked yet, so nothing is cut off
            () = stop.drain.cancelled() => return Ok(()),
            opened = tokio::time::timeout(shape.limits.handshake_timeout, opening) => match opened {
                Ok(Ok(opened)) => opened,
                // a probe that connects and leaves, and a browser's spare connection, are no faults
                Ok(Err(_)) | Err(_) if !progress.heard() => return Ok(()),
                Ok(Err(reason)) => return Err(reason),
                Err(_) if shape.tls.is_some() => return Err(Reason::TlsTimeout),
                Err(_) => return Err(Reason::Preface),
            },
        };
        let peer = Peer { address, tls: wire.is_encrypted() };
        let io = TokioIo::new(wire);
        let watchdog = Watchdog::new(protocol, &shape.limits, Instant::now());
        match protocol {
            Protocol::Http1 => {
                let service = answering(service, peer, Arc::clone(&progress), None, unwanted);
                let connection = pin!(shape.http1.serve_connection(io, service));
                drive(connection, watchdog, &progress, &stop).await
            }
            Protocol::Http2 => {
                let streams = Streams::new(stop.connections.clone(), shape.limits.write_timeout, metrics);
                let service = answering(service, peer, Arc::clone(&progress), Some(streams.clone()), unwanted);
                // boxed: twice as large, and an HTTP/1 connection would have to be as large, too
                let mut connection =
                    Box::pin(shape.http2(streams).timer(TokioTimer::new()).serve_connection(io, service));
                Box::pin(drive(connection.as_mut(), watchdog, &progress, &stop)).await
            }
        }
    }
}

/// A connection whose client can be heard.
struct Opened<T> {
    wire: Wire<T>,
    protocol: Protocol,
    /// Why none of its requests is wanted, if none is.
    unwanted: Option<Unwanted>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Opened<T> {
    fn new(wire: Wire<T>, protocol: Protocol, unwanted: Option<Unwanted>) -> Self {
        let wire = if protocol == Protocol::Http2 { wire.following_frames() } else { wire };
        Self { wire, protocol, unwanted }
    }
}

/// The TLS handshake, if there is to be one, and which protocol the client speaks.
async fn open<T: AsyncRead + AsyncWrite + Unpin>(
    mut socket: Socket<T>,
    shape: &Shape,
    progress: &Arc<Progress>,
) -> Result<Opened<T>, Reason> {
    let Some(tls) = &shape.tls else {
        return open_plain(socket, progress, None).await;
    };
    // Methods begin with a capital, and no record of TLS does (RFC 8446 §5.1). Who forgot the `s` of `https` is told so.
    // Asked before there is a slot: who says nothing takes none.
    if socket.first().await.map_err(|_| Reason::Io)?.is_some_and(|byte| byte.is_ascii_uppercase()) {
        return open_plain(socket, progress, Some(Unwanted::Plain)).await;
    }
    let Ok(_slot) = shape.handshakes.acquire().await else {
        return Err(Reason::TlsTimeout);
    };
    let stream = TlsAcceptor::from(Arc::clone(tls))
        .accept_with(socket, |session| session.set_buffer_limit(Some(TLS_BUFFER)))
        .await
        .map_err(|error| {
            tracing::debug!(%error, "TLS handshake failed");
            Reason::TlsHandshake
        })?;
    let protocol = if stream.get_ref().1.alpn_protocol() == Some(b"h2") { Protocol::Http2 } else { Protocol::Http1 };
    Ok(Opened::new(Wire::new(Transport::Tls(Box::new(stream)), Arc::clone(progress)), protocol, None))
}

/// Which protocol a client speaks that speaks no TLS.
async fn open_plain<T: AsyncRead + AsyncWrite + Unpin>(
    socket: Socket<T>,
    progress: &Arc<Progress>,
    unwanted: Option<Unwanted>,
) -> Result<Opened<T>, Reason> {
    let mut wire = Wire::new(Transport::Plain(socket), Arc::clone(progress));
    match wire.speaks_http2().await {
        Ok(true) => Ok(Opened::new(wire, Protocol::Http2, unwanted)),
        Ok(false) => Ok(Opened::new(wire, Protocol::Http1, unwanted)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Reason::Incomplete),
        Err(_) => Err(Reason::Io),
    }
}

/// A connection of hyper's.
trait Http: Future<Output = hyper::Result<()>> {
    /// Lets the requests begun come to their end and takes no more.
    fn retire(self: Pin<&mut Self>);
}

impl<I, S> Http for hyper::server::conn::http1::Connection<I, S>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: hyper::service::HttpService<hyper::body::Incoming, Error = Infallible>,
    S::ResBody: 'static,
    <S::ResBody as http_body::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn retire(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, S, E> Http for hyper::server::conn::http2::Connection<I, S, E>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: hyper::service::HttpService<hyper::body::Incoming, Error = Infallible>,
    S::ResBody: 'static,
    <S::ResBody as http_body::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, S::ResBody>,
{
    fn retire(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Polls the connection, and beside it what may end it: drain, abort and the watchdog's alarm. These wake through
/// `progress`, so that they are polled when one of them has something to say and not whenever the socket has; a client
/// that is heard of while its request is under way rings there, too.
async fn drive<C: Http>(
    mut connection: Pin<&mut C>,
    mut watchdog: Watchdog,
    progress: &Arc<Progress>,
    stop: &Stop,
) -> Result<(), Reason> {
    let bell = Waker::from(Arc::clone(progress));
    let mut drain = pin!(stop.drain.cancelled());
    let mut abort = pin!(stop.abort.cancelled());
    let mut alarm = pin!(tokio::time::sleep_until(Instant::now()));
    let mut draining = false;
    let mut cutoff = stop.cutoff.ear();
    let mut cut = false;
    poll_fn(|cx| {
        progress.belongs_to(cx.waker());
        loop {
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                let reason = result.err().as_ref().and_then(Reason::of);
                // a socket that breaks between requests is one way for a client to leave
                let left = reason == Some(Reason::Io) && progress.seen().in_flight == 0;
                return Poll::Ready(reason.filter(|_| !left).map_or(Ok(()), Err));
            }
            if !progress.called() {
                return Poll::Pending;
            }
            let cx = &mut Context::from_waker(&bell);
            if abort.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(Reason::DrainDeadline));
            }
            if !cut && cutoff.poll(cx).is_ready() {
                // its request may say so now
                cut = true;
                continue;
            }
            let mut retire = false;
            if !draining && drain.as_mut().poll(cx).is_ready() {
                (draining, retire) = (true, true);
                progress.drain();
            }
            loop {
                if retire {
                    watchdog.retire(Instant::now());
                }
                match watchdog.look(Instant::now(), progress.seen()) {
                    Verdict::Wait { at, asleep } => {
                        progress.fall_asleep(asleep);
                        alarm.as_mut().reset(at);
                        if alarm.as_mut().poll(cx).is_pending() {
                            break;
                        }
                    }
                    Verdict::Retire => retire = true,
                    Verdict::Gone => return Poll::Ready(Ok(())),
                    Verdict::Cut(reason) => return Poll::Ready(Err(reason)),
                }
            }
            if !retire {
                return Poll::Pending;
            }
            if watchdog.is_quiet() {
                progress.close_idle();
            }
            connection.as_mut().retire();
        }
    })
    .await
}
