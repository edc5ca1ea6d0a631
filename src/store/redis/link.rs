//! The connection to Redis and its circuit breaker.
//!
//! There is a connection that works, or none: one that breaks, or times out more often than it replies, is dropped with
//! all that waits on it, because a connection that hangs keeps hanging. One task then connects anew until a PING comes
//! back within the budget of a command. No request ever waits for that.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, Cmd, ErrorKind, RedisError, Value, cmd};
use arc_swap::ArcSwapOption;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::{READS, WRITES};
use crate::store::StoreError;
use crate::telemetry::Metrics;

/// Timeouts over replies that make a connection a bad one.
const TIMEOUTS: u32 = 3;
/// Time budget of a connection: name, TCP, TLS, AUTH.
const CONNECT_BUDGET: Duration = Duration::from_secs(1);
/// How often an unused connection is tried, so that trouble is known before a request meets it.
const PING_EVERY: Duration = Duration::from_secs(1);
/// Waits between attempts to connect: doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

pub(super) struct Link {
    /// None: the breaker is open.
    live: ArcSwapOption<Live>,
    lost: Notify,
    metrics: Arc<Metrics>,
}

/// A connection that works so far.
struct Live {
    connection: MultiplexedConnection,
    /// Timeouts less replies, never under zero.
    timeouts: AtomicU32,
}

impl Live {
    fn replied(&self) {
        if self.timeouts.load(Ordering::Relaxed) != 0 {
            let _ = self.timeouts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| now.checked_sub(1));
        }
    }

    /// True if that was one too many.
    fn timed_out(&self) -> bool {
        self.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= TIMEOUTS
    }
}

impl Link {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        metrics.redis_up.set(0);
        Self { live: ArcSwapOption::empty(), lost: Notify::new(), metrics }
    }

    pub(super) fn is_up(&self) -> bool {
        self.live.load().is_some()
    }

    /// Runs one command; its reply, or why there is none, is known within `budget`.
    pub(super) async fn run(&self, command: &Cmd, budget: Duration) -> Result<Value, StoreError> {
        let Some(live) = self.live.load_full() else {
            self.metrics.redis_error("refused");
            return Err(StoreError::Down);
        };
        self.run_on(&live, command, budget).await
    }

    async fn run_on(&self, live: &Arc<Live>, command: &Cmd, budget: Duration) -> Result<Value, StoreError> {
        let mut connection = live.connection.clone();
        let started = Instant::now();
        match timeout(budget, command.query_async(&mut connection)).await {
            Ok(Ok(value)) => {
                self.metrics.redis_reply(started.elapsed());
                live.replied();
                Ok(value)
            }
            Ok(Err(error)) if is_reply(&error) => {
                self.metrics.redis_reply(started.elapsed());
                self.metrics.redis_error("reply");
                live.replied();
                debug!(error = told(&error), "redis refused a command");
                Err(StoreError::Reply)
            }
            Ok(Err(error)) => {
                self.metrics.redis_error("connect");
                self.lose(live, &told(&error));
                Err(StoreError::Lost)
            }
            Err(_) => {
                self.metrics.redis_error("timeout");
                if live.timed_out() {
                    self.lose(live, "commands time out");
                }
                Err(StoreError::Timeout)
            }
        }
    }

    /// Opens the breaker, if `live` is what it holds.
    fn lose(&self, live: &Arc<Live>, why: &str) {
        let held = self.live.compare_and_swap(live, None);
        if held.as_ref().is_some_and(|held| Arc::ptr_eq(held, live)) {
            self.metrics.redis_up.set(0);
            warn!(why, "redis is lost: going on without it");
            self.lost.notify_one();
        }
    }

    fn holds(&self, live: &Arc<Live>) -> bool {
        self.live.load().as_ref().is_some_and(|held| Arc::ptr_eq(held, live))
    }
}

/// Keeps `link` connected for ever.
pub(super) async fn keep(link: Arc<Link>, client: Client, budget: Duration) {
    let mut wait = FIRST_WAIT;
    let mut failures = 0_u32;
    loop {
        match connect(&client, budget).await {
            Ok(connection) => {
                info!(failures, "redis is reachable");
                wait = FIRST_WAIT;
                failures = 0;
                let live = Arc::new(Live { connection, timeouts: AtomicU32::new(0) });
                link.live.store(Some(Arc::clone(&live)));
                link.metrics.redis_up.set(1);
                watch(&link, &live, budget).await;
            }
            Err(error) => {
                link.metrics.redis_error("connect");
                if failures == 0 {
                    warn!(error, "redis cannot be reached: going on without it");
                }
                failures = failures.saturating_add(1);
            }
        }
        sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Returns when `live` is lost.
async fn watch(link: &Link, live: &Arc<Live>, budget: Duration) {
    let ping = cmd("PING");
    while link.holds(live) {
        tokio::select! {
            () = link.lost.notified() => {}
            () = sleep(PING_EVERY) => {
                if link.run_on(live, &ping, budget).await.is_ok() {
                    // again and again, because the link that a reload has replaced tells of its end in the same gauge
                    link.metrics.redis_up.set(1);
                }
            }
        }
    }
}

/// A connection on which a PING came back in time.
async fn connect(client: &Client, budget: Duration) -> Result<MultiplexedConnection, String> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None)
        .set_pipeline_buffer_size(READS + WRITES);
    let connecting = client.get_multiplexed_async_connection_with_config(&config);
    let mut connection = timeout(CONNECT_BUDGET, connecting)
        .await
        .map_err(|_| "no connection in time".to_owned())?
        .map_err(|error| told(&error))?;
    timeout(budget, cmd("PING").query_async::<Value>(&mut connection))
        .await
        .map_err(|_| "no reply to PING in time".to_owned())?
        .map_err(|error| told(&error))?;
    Ok(connection)
}

/// True for an error the server replied with: the connection is sound.
fn is_reply(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::UnexpectedReturnType)
}

/// What may be logged of an error: never its detail, which can hold what was sent.
fn told(error: &RedisError) -> String {
    match error.code() {
        _ if error.is_io_error() => error.to_string(),
        Some(code) => format!("{}: {code}", error.category()),
        None => error.category().to_owned(),
    }
}
