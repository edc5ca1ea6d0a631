//! The connection to Redis and its circuit breaker.
//!
//! There is a connection that works, or none: one that breaks, or times out more often than it replies, is dropped with
//! all that waits on it, because a connection that hangs keeps hanging. One task then connects anew until a PING comes
//! back within the budget of a command. No request ever waits for that.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, Cmd, ErrorKind, RedisError, RedisResult, ScriptInvocation, Value, cmd};
use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use crate::store::StoreError;
use crate::telemetry::Metrics;

/// Timeouts over replies that make a connection a bad one.
const TIMEOUTS: u32 = 3;
/// Time budget of a connection: name, TCP, TLS, AUTH.
const CONNECT_BUDGET: Duration = Duration::from_secs(1);
/// How often an unused connection is tried, so that trouble is known before a request meets it.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Waits between attempts to connect: doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

pub(super) struct Link {
    /// None: the breaker is open.
    live: ArcSwapOption<Live>,
    lost: Notify,
    /// When the last connection was made; it may be lost since.
    connected: watch::Sender<Option<Instant>>,
    /// When the last connection was lost, or began to be looked for.
    lost_at: Mutex<Instant>,
    /// What it is for, in the log.
    what: &'static str,
    metrics: Arc<Metrics>,
}

/// What Redis is asked when a connection is new and now and then after; it is there if that is no error.
pub(super) struct Probe {
    /// The very first attempt asks this.
    pub first: Cmd,
    pub again: Cmd,
}

impl Probe {
    pub(super) fn ping() -> Self {
        Self { first: cmd("PING"), again: cmd("PING") }
    }
}

/// A connection that works so far.
struct Live {
    connection: MultiplexedConnection,
    since: Instant,
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
    pub(super) fn new(what: &'static str, metrics: Arc<Metrics>) -> Self {
        metrics.redis_up.set(0);
        Self {
            live: ArcSwapOption::empty(),
            lost: Notify::new(),
            connected: watch::Sender::new(None),
            lost_at: Mutex::new(Instant::now()),
            what,
            metrics,
        }
    }

    /// Since when there is no connection; None: there is one.
    pub(super) fn down_since(&self) -> Option<Instant> {
        let lost_at = *self.lost_at.lock().unwrap_or_else(PoisonError::into_inner);
        (!self.is_up()).then_some(lost_at)
    }

    pub(super) fn is_up(&self) -> bool {
        self.live.load().is_some()
    }

    pub(super) fn connected_since(&self) -> Option<Instant> {
        self.live.load().as_ref().map(|live| live.since)
    }

    /// Waits for a connection made later than `seen`; when it was made.
    pub(super) async fn connected_after(&self, seen: Option<Instant>) -> Instant {
        let mut connected = self.connected.subscribe();
        loop {
            if let Some(since) = *connected.borrow_and_update()
                && seen.is_none_or(|seen| since > seen)
            {
                return since;
            }
            // an error cannot be: the sender is borrowed
            let _ = connected.changed().await;
        }
    }

    /// Runs one command; its reply, or why there is none, is known within `budget`.
    pub(super) async fn run(&self, command: &Cmd, budget: Duration) -> Result<Value, StoreError> {
        let live = self.live()?;
        self.run_on(&live, command, budget).await
    }

    /// Runs a script, which Redis is given anew if it does not know it; like [`run`](Self::run).
    pub(super) async fn invoke(&self, script: &ScriptInvocation<'_>, budget: Duration) -> Result<Value, StoreError> {
        let live = self.live()?;
        let mut connection = live.connection.clone();
        self.reply(&live, script.invoke_async(&mut connection), budget).await
    }

    fn live(&self) -> Result<Arc<Live>, StoreError> {
        self.live.load_full().ok_or_else(|| {
            self.metrics.redis_error("refused");
            StoreError::Down
        })
    }

    async fn run_on(&self, live: &Arc<Live>, command: &Cmd, budget: Duration) -> Result<Value, StoreError> {
        let mut connection = live.connection.clone();
        self.reply(live, command.query_async(&mut connection), budget).await
    }

    async fn reply(
        &self,
        live: &Arc<Live>,
        asked: impl Future<Output = RedisResult<Value>>,
        budget: Duration,
    ) -> Result<Value, StoreError> {
        let started = Instant::now();
        match timeout(budget, asked).await {
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
        // before the breaker opens: who finds it open finds since when
        *self.lost_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let held = self.live.compare_and_swap(live, None);
        if held.as_ref().is_some_and(|held| Arc::ptr_eq(held, live)) {
            self.metrics.redis_up.set(0);
            warn!(what = self.what, why, "redis is lost: going on without it");
            self.lost.notify_one();
        }
    }

    fn holds(&self, live: &Arc<Live>) -> bool {
        self.live.load().as_ref().is_some_and(|held| Arc::ptr_eq(held, live))
    }
}

/// Keeps `link` connected for ever; on a connection as many as `most` commands may wait.
pub(super) async fn keep(link: Arc<Link>, client: Client, probe: Probe, budget: Duration, most: usize) {
    let what = link.what;
    let mut wait = FIRST_WAIT;
    let mut failures = 0_u32;
    let mut greeting = &probe.first;
    loop {
        match connect(&client, greeting, budget, most).await {
            Ok(connection) => {
                info!(what, failures, "redis is reachable");
                wait = FIRST_WAIT;
                failures = 0;
                let since = Instant::now();
                let live = Arc::new(Live { connection, since, timeouts: AtomicU32::new(0) });
                link.live.store(Some(Arc::clone(&live)));
                link.metrics.redis_up.set(1);
                link.connected.send_replace(Some(since));
                watch(&link, &live, &probe.again, budget).await;
            }
            Err(error) => {
                link.metrics.redis_error("connect");
                if failures == 0 {
                    warn!(what, error, "redis cannot be reached: going on without it");
                }
                failures = failures.saturating_add(1);
            }
        }
        greeting = &probe.again;
        sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Returns when `live` is lost.
async fn watch(link: &Link, live: &Arc<Live>, probe: &Cmd, budget: Duration) {
    while link.holds(live) {
        tokio::select! {
            () = link.lost.notified() => {}
            () = sleep(PROBE_EVERY) => match link.run_on(live, probe, budget).await {
                // again and again, because the link that a reload has replaced tells of its end in the same gauge
                Ok(_) => link.metrics.redis_up.set(1),
                // it cannot be used any more, e.g. a master that has become a replica
                Err(StoreError::Reply) => link.lose(live, "it refuses the probe"),
                Err(_) => {}
            }
        }
    }
}

/// A connection on which the reply to `greeting` came in time.
async fn connect(
    client: &Client,
    greeting: &Cmd,
    budget: Duration,
    most: usize,
) -> Result<MultiplexedConnection, String> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None)
        .set_pipeline_buffer_size(most);
    let connecting = client.get_multiplexed_async_connection_with_config(&config);
    let mut connection = timeout(CONNECT_BUDGET, connecting)
        .await
        .map_err(|_| "no connection in time".to_owned())?
        .map_err(|error| told(&error))?;
    timeout(budget, greeting.query_async::<Value>(&mut connection))
        .await
        .map_err(|_| "no reply in time".to_owned())?
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
