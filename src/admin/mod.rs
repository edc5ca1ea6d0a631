//! The admin listener: `/metrics`, `/livez`, `/readyz` on an address of their own.
//!
//! It asks nobody for a key, so its address is for the operator's network only, and it gives nothing away but counts and
//! states. It cannot be worn down: one request a connection, `MOST` connections, `LONGEST` for each. It outlives the
//! drain, so that a load balancer sees `/readyz` turn.

mod answer;
mod readiness;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::telemetry::Metrics;
pub use readiness::{Readiness, StoreState};

/// Open connections at most; more are closed at once.
const MOST: usize = 64;
/// A connection lives no longer, whatever its client reads or sends.
const LONGEST: Duration = Duration::from_secs(30);
/// From the connection to the end of the request's head.
const HEAD: Duration = Duration::from_secs(5);
/// Bytes of a request's head at most.
const HEAD_BYTES: usize = 16 << 10;
/// After an accept that failed for want of descriptors or memory.
const RESPITE: Duration = Duration::from_millis(100);
/// How long answers under way have once the listener is closed.
const FAREWELL: Duration = Duration::from_secs(1);

/// What the configuration says of the admin listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub address: SocketAddr,
}

/// A listener that is bound and not served yet.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
}

fn told(address: SocketAddr, error: &io::Error) -> String {
    let fix = match error.kind() {
        io::ErrorKind::AddrInUse => {
            ": another process has this port (`ss -ltnp` names it): choose another admin.address"
        }
        _ => "",
    };
    format!("admin address {address}: {error}{fix}")
}

impl Admin {
    /// Binds the address; the error names it.
    pub fn bind(settings: &Settings) -> io::Result<Self> {
        let bound = TcpListener::bind(settings.address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(Self { address: listener.local_addr()?, listener })
        });
        bound.map_err(|error| io::Error::new(error.kind(), told(settings.address, &error)))
    }

    /// The bound address, its port no longer 0.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown`, which comes after the drain. Fails only outside of a runtime.
    pub async fn serve(
        self,
        metrics: Arc<Metrics>,
        readiness: impl Fn() -> Readiness + Send + Sync + 'static,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        tracing::info!(address = %self.address, "admin listening");
        let readiness = Arc::new(readiness);
        let room = Arc::new(Semaphore::new(MOST));
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "admin accept failed");
                    sleep(RESPITE).await;
                    continue;
                }
            };
            // no room: dropping the stream closes it
            let Ok(place) = Arc::clone(&room).try_acquire_owned() else { continue };
            let (metrics, readiness) = (Arc::clone(&metrics), Arc::clone(&readiness));
            connections.spawn(async move {
                serve_one(stream, &metrics, &*readiness).await;
                drop(place);
            });
        }
        drop(listener);
        connections.close();
        // what is left is dropped with the runtime
        let _ = timeout(FAREWELL, connections.wait()).await;
        Ok(())
    }
}

/// One request and its answer; a client that breaks off or dawdles is its own affair.
async fn serve_one(stream: TcpStream, metrics: &Arc<Metrics>, readiness: &(impl Fn() -> Readiness + Sync)) {
    let answer = service_fn(|request| answer::answer(request, metrics, readiness));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer);
    if let Ok(Err(error)) = timeout(LONGEST, connection).await {
        tracing::debug!(%error, "admin connection failed");
    }
}

#[cfg(test)]
mod tests;
