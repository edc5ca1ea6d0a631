//! The listening side against raw bytes and real clients, with a service that does what its path says.
//!
//! Connections run over an in-memory pipe under a paused clock wherever time matters, and over loopback sockets where
//! the kernel does.

mod http1;
mod http2;
mod listener;
mod secure;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncReadExt as _, DuplexStream};
use tokio::sync::Notify;

use super::connection::Connection;
use super::shape::Live;
use super::{ConnectionLimits, Peer, Service, Settings, Stop, TlsSettings, Unwanted};
use crate::body::{Body, Response};
use crate::error::Error;
use crate::telemetry::Metrics;

/// What the service under the connections saw and may do.
#[derive(Default)]
struct World {
    /// Requests served.
    served: AtomicUsize,
    /// Bytes of `/endless` handed to connections.
    handed: AtomicUsize,
    /// Bodies and calls begun that are not over.
    alive: AtomicUsize,
    /// Requests that came too late to be served.
    late: AtomicUsize,
    /// Lets `/wait` answer and `/events` end.
    go: Notify,
}

/// Counted alive until dropped.
struct Alive(Arc<World>);

impl Alive {
    fn new(world: &Arc<World>) -> Self {
        world.alive.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(world))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A body of 8 KiB pieces that has no end.
struct Endless(Alive);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let piece = Bytes::from_static(&[b'x'; 8192]);
        self.0.0.handed.fetch_add(piece.len(), Ordering::SeqCst);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl crate::body::Stream for Endless {}

fn service(world: Arc<World>) -> impl Service {
    crate::step::service(move |(request, peer): (Request<Incoming>, Peer)| {
        let world = Arc::clone(&world);
        async move {
            match request.extensions().get::<Unwanted>() {
                None => {}
                Some(Unwanted::Late) => {
                    world.late.fetch_add(1, Ordering::SeqCst);
                    return Response::new(Body::whole(Bytes::from_static(b"too late")));
                }
                Some(Unwanted::Plain) => return Response::new(Body::whole(Bytes::from_static(b"not encrypted"))),
            }
            world.served.fetch_add(1, Ordering::SeqCst);
            answer(request, peer, &world).await
        }
    })
}

async fn answer(request: Request<Incoming>, peer: Peer, world: &Arc<World>) -> Response {
    let alive = Alive::new(world);
    match request.uri().path() {
        "/endless" => Response::new(Body::stream(Endless(alive))),
        "/megabyte" => Response::new(Body::whole(Bytes::from_static(&[b'm'; 1 << 20]))),
        "/wait" => {
            world.go.notified().await;
            Response::new(Body::whole(Bytes::from_static(b"waited")))
        }
        "/wait-and-echo" => {
            world.go.notified().await;
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Response::new(Body::whole(body))
        }
        "/echo" => {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Response::new(Body::whole(body))
        }
        "/refuse" => {
            let mut response = Response::new(Body::whole(Bytes::from_static(b"no")));
            *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
            response
        }
        "/peer" => Response::new(Body::whole(Bytes::from(format!("{} {}", peer.address, peer.tls)))),
        _ => Response::new(Body::whole(Bytes::from_static(b"hello"))),
    }
}

/// Connections over in-memory pipes.
struct Rig {
    stop: Stop,
    metrics: Metrics,
    live: Live,
    world: Arc<World>,
}

const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADER: Duration = Duration::from_secs(15);
const IDLE: Duration = Duration::from_secs(75);
const WRITE: Duration = Duration::from_secs(40);
/// How late a deadline may be seen.
const TICK: Duration = Duration::from_secs(1);

fn limits() -> ConnectionLimits {
    ConnectionLimits {
        handshake_timeout: HANDSHAKE,
        header_timeout: HEADER,
        idle_timeout: IDLE,
        write_timeout: WRITE,
        max_header_bytes: 16 * 1024,
        ..ConnectionLimits::default()
    }
}

impl Rig {
    fn plain() -> Self {
        Self::new(None)
    }

    fn new(tls: Option<TlsSettings>) -> Self {
        let settings = Settings { address: "127.0.0.1:0".parse().unwrap(), tls, limits: limits() };
        let metrics = Metrics::new();
        let live = Live::new(&settings, &metrics).unwrap();
        Self { stop: Stop::new(), metrics, live, world: Arc::default() }
    }

    /// A client's end of a new connection whose pipe holds `room` bytes in each direction.
    fn connect_with(&self, room: usize) -> DuplexStream {
        let (client, server) = tokio::io::duplex(room);
        let connection = Connection {
            address: "192.0.2.1:4711".parse().unwrap(),
            shape: self.live.shape(),
            service: service(Arc::clone(&self.world)),
            stop: self.stop.clone(),
            metrics: Arc::new(self.metrics.listener("test")),
        };
        self.stop.connections.spawn(connection.run(server));
        client
    }

    fn connect(&self) -> DuplexStream {
        self.connect_with(64 * 1024)
    }

    /// Connections that ended badly, as `reason=count`.
    fn errors(&self) -> Vec<String> {
        errors(&self.metrics)
    }

    fn served(&self) -> usize {
        self.world.served.load(Ordering::SeqCst)
    }

    /// Waits until so many requests have come to the service.
    async fn serves(&self, requests: usize) {
        while self.served() < requests {
            tokio::task::yield_now().await;
        }
    }

    /// Waits until nothing the service began is alive; fails if that takes longer than `within`.
    async fn all_let_go(&self, within: Duration) {
        let all = async {
            while self.world.alive.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(within, all).await.expect("a request is held on to");
    }

    /// Waits until every connection is over; fails if that takes longer than `within`.
    async fn all_over(&self, within: Duration) {
        self.stop.connections.close();
        tokio::time::timeout(within, self.stop.connections.wait()).await.expect("a connection lives on");
    }
}

fn errors(metrics: &Metrics) -> Vec<String> {
    let families = metrics.registry().gather();
    let errors = families.iter().find(|family| family.name() == "letta_gateway_connection_errors_total");
    let mut counts = Vec::new();
    for metric in errors.map(|family| family.get_metric()).unwrap_or_default() {
        let reason = metric.get_label().iter().find(|label| label.name() == "reason").unwrap().value();
        counts.push(format!("{reason}={}", metric.get_counter().get_value()));
    }
    counts
}

/// Reads one HTTP/1 response with a `content-length`: its head and its body.
async fn read_response(client: &mut (impl AsyncRead + Unpin)) -> (String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.expect("the head ends early"));
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
    let mut body = vec![0; length.parse().unwrap()];
    client.read_exact(&mut body).await.expect("the body ends early");
    (head, String::from_utf8(body).unwrap())
}

/// Reads until the connection is closed; what came.
async fn read_to_close(client: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    // a reset is a close too
    let _ = client.read_to_end(&mut bytes).await;
    bytes
}
