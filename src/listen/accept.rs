//! The accept loop: takes connections while there is room, and lives through everything the kernel may answer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::addresses::{Addresses, Place};
use super::connection::Connection;
use super::reason::Reason;
use super::shape::Live;
use super::{Service, Stop, socket};
use crate::body::{Counter, Permit};
use crate::socket::OnePiece;
use crate::telemetry::metrics::ListenerMetrics;

/// How long to wait when the process or the machine has no more file descriptors: doubled each time, up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The same complaint is logged once in so long.
const COMPLAINT_EVERY: Duration = Duration::from_secs(10);

/// Accepts until drain, and serves each connection in a task of its own, tracked by `stop`.
pub(super) async fn accept<S: Service>(
    listener: TcpListener,
    live: Arc<Live>,
    metrics: Arc<ListenerMetrics>,
    service: S,
    stop: Stop,
) {
    let open = Counter::new();
    let addresses = Addresses::default();
    let mut pause = FIRST_PAUSE;
    let mut complaint = Complaint::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.drain.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, mut address) = match accepted {
            Ok(accepted) => accepted,
            // the client was gone before it was accepted; the kernel has taken it off the queue
            Err(error) if is_the_connections_own(&error) => continue,
            Err(error) => {
                metrics.error(Reason::Io.as_str());
                if complaint.is_due() {
                    tracing::error!(%error, "cannot accept connections: raise the limit of open files or lower max_connections");
                }
                tokio::select! {
                    () = stop.drain.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
        };
        pause = FIRST_PAUSE;
        metrics.accepted.inc();
        let shape = live.shape();
        let Some(permit) = open.take(shape.limits.max_connections) else {
            metrics.error(Reason::Full.as_str());
            if complaint.is_due() {
                tracing::warn!(
                    max_connections = shape.limits.max_connections,
                    "connections are refused: the listener is full"
                );
            }
            continue;
        };
        address.set_ip(address.ip().to_canonical());
        let Some(place) = addresses.take(address.ip(), shape.limits.max_connections_per_address) else {
            metrics.error(Reason::AddressFull.as_str());
            if complaint.is_due() {
                tracing::warn!(
                    client = %address.ip(),
                    max_connections_per_address = shape.limits.max_connections_per_address,
                    "connections are refused: one address has too many"
                );
            }
            continue;
        };
        // a socket that is dead already shows itself at the first read
        let _ = socket::accepted(&stream);
        let open = Open::new(permit, place, Arc::clone(&metrics));
        let connection =
            Connection { address, shape, service: service.clone(), stop: stop.clone(), metrics: Arc::clone(&metrics) };
        stop.connections.spawn(serve(connection, stream, open));
    }
}

async fn serve<S: Service>(connection: Connection<S>, stream: TcpStream, open: Open) {
    connection.run(OnePiece(stream)).await;
    drop(open);
}

fn is_the_connections_own(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// One open connection; counted off when dropped.
struct Open {
    metrics: Arc<ListenerMetrics>,
    _permit: Permit,
    _place: Place,
}

impl Open {
    fn new(permit: Permit, place: Place, metrics: Arc<ListenerMetrics>) -> Self {
        metrics.open.inc();
        Self { metrics, _permit: permit, _place: place }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.open.dec();
    }
}

/// Says when something may be logged again.
#[derive(Default)]
struct Complaint {
    last: Option<Instant>,
}

impl Complaint {
    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = self.last.is_none_or(|last| now.duration_since(last) >= COMPLAINT_EVERY);
        if due {
            self.last = Some(now);
        }
        due
    }
}
