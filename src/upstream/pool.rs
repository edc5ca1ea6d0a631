//! The connections to one replica: a bounded number, the latest used first, none kept past the replica's keep-alive.

use std::sync::{Arc, Mutex, PoisonError};

use http::Response;
use hyper::body::Incoming;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use super::connection::{Connection, Unanswered};
use super::{PoolSettings, Settings, Timeouts};
use crate::balance::Endpoint;
use crate::body::Request;
use crate::dial::Failure;
use crate::error::Error;
use crate::telemetry::metrics::UpstreamMetrics;

/// Connections to one replica.
pub struct Pool {
    authority: Box<str>,
    settings: PoolSettings,
    timeouts: Timeouts,
    /// The latest given back last.
    idle: Mutex<Vec<Connection>>,
    /// As many as there may be in use at once.
    slots: Semaphore,
    metrics: Arc<UpstreamMetrics>,
}

/// A connection in use; closed when dropped, unless it is given back first.
pub(super) struct Lease {
    connection: Connection,
    slot: Slot,
    /// It has been used before, and may have been closed since.
    pub(super) was_parked: bool,
}

/// One of the connections that may be in use at once; given back when dropped.
struct Slot(Arc<Pool>);

impl Slot {
    fn of(pool: &Arc<Pool>, permit: SemaphorePermit<'_>) -> Self {
        permit.forget();
        Self(Arc::clone(pool))
    }

    /// The latest used connection that may be open, or a new one. `fresh`: a new one.
    async fn lease(self, fresh: bool) -> Result<Lease, Error> {
        let Self(pool) = &self;
        if !fresh && let Some(connection) = pool.take(Instant::now()) {
            return Ok(Lease { connection, slot: self, was_parked: true });
        }
        match Connection::open(&pool.authority, pool.timeouts.connect, &pool.metrics).await {
            Ok(connection) => Ok(Lease { connection, slot: self, was_parked: false }),
            Err(Failure::Replica(cause)) => Err(Error::UpstreamConnect { upstream: pool.authority.to_string(), cause }),
            Err(Failure::Own { what, cause }) => Err(Error::Exhausted { what, cause: cause.into() }),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.slots.add_permits(1);
    }
}

impl Pool {
    pub(super) fn new(endpoint: &Endpoint, settings: &Settings) -> Self {
        let slots = usize::try_from(settings.pool.max_connections).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self {
            authority: endpoint.authority.clone(),
            settings: settings.pool.clone(),
            timeouts: settings.timeouts.clone(),
            idle: Mutex::default(),
            slots: Semaphore::new(slots),
            metrics: Arc::clone(&endpoint.metrics),
        }
    }

    /// True if this pool is what those settings ask for.
    pub(super) fn serves(&self, authority: &str, settings: &PoolSettings, timeouts: &Timeouts) -> bool {
        *self.authority == *authority && self.settings == *settings && self.timeouts == *timeouts
    }

    /// The latest used connection, if there is one that may be open `now` and nobody has to be waited for.
    pub(super) fn parked(self: &Arc<Self>, now: Instant) -> Option<Lease> {
        let slot = Slot::of(self, self.slots.try_acquire().ok()?);
        Some(Lease { connection: self.take(now)?, slot, was_parked: true })
    }

    /// The latest used connection that may be open, or a new one. `fresh`: a new one.
    pub(super) async fn lease(self: &Arc<Self>, fresh: bool) -> Result<Lease, Error> {
        let Ok(Ok(permit)) = timeout(self.settings.max_wait, self.slots.acquire()).await else {
            return Err(Error::UpstreamBusy { upstream: self.authority.to_string() });
        };
        Slot::of(self, permit).lease(fresh).await
    }

    /// The latest used connection that is not to be closed by `now`. Whoever sends on it learns whether the replica has
    /// closed it: then nothing is written.
    fn take(&self, now: Instant) -> Option<Connection> {
        let latest = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        // those before it have been unused for longer
        let is_kept = now.saturating_duration_since(latest.parked) < self.settings.idle_timeout;
        is_kept.then_some(latest)
    }

    /// Closes what was unused for too long. To be called about once a second: parked connections are polled by nobody.
    pub fn close_idle(&self, now: Instant) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // oldest first, so what is to be closed is in front
        let keep = idle.partition_point(|connection| {
            now.saturating_duration_since(connection.parked) >= self.settings.idle_timeout
        });
        let closing: Vec<Connection> = idle.drain(..keep).collect();
        drop(idle);
        drop(closing);
    }
}

impl Lease {
    /// Another connection in the place of this one, which is closed. Nobody is waited for: the place in use is kept.
    pub(super) async fn another(self) -> Result<Self, Error> {
        let Self { connection, slot, .. } = self;
        drop(connection);
        slot.lease(false).await
    }

    pub(super) fn exchange(
        &mut self,
        request: Request,
        deadline: Instant,
    ) -> impl Future<Output = Result<Response<Incoming>, Unanswered>> {
        self.connection.exchange(request, deadline)
    }

    /// The replica's `host:port`.
    pub(super) fn authority(&self) -> &str {
        &self.slot.0.authority
    }

    pub(super) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Gives the connection back `now`, if it can take another request.
    pub(super) fn give_back(self, now: Instant) {
        let Self { mut connection, slot, .. } = self;
        if connection.is_ready() {
            connection.parked = now;
            slot.0.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use tokio::net::TcpListener;

    use super::*;
    use crate::balance::Server;
    use crate::telemetry::Metrics;

    #[tokio::test]
    async fn who_goes_on_to_another_connection_does_not_queue_again() {
        let replica = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = replica.local_addr().unwrap().to_string();
        let metrics = Metrics::new();
        let endpoint =
            Endpoint::new(0, &Server { authority: authority.clone(), weight: 1 }, metrics.upstream(&authority), None);
        let long = Duration::from_secs(60);
        let settings = Settings {
            password: None,
            timeouts: Timeouts { connect: long, request: long, message: long, stream_idle: long },
            pool: PoolSettings { max_connections: 1, max_wait: long, idle_timeout: long },
            max_body: 0,
        };
        let pool = Arc::new(Pool::new(&endpoint, &settings));
        let first = pool.lease(false).await.unwrap();
        let mut waiting = Box::pin(pool.lease(false));
        assert!((&mut waiting).now_or_never().is_none());
        let another = first.another().await.unwrap();
        assert!((&mut waiting).now_or_never().is_none(), "there is one place, and it is taken");
        drop(another);
        assert!(waiting.await.is_ok());
    }
}
