//! The connection to Redis and its circuit breaker.
//!
//! There is a connection that works, or none: one that breaks, leads to a server that may not write, or times out more
//! often than it replies, is dropped with all that waits on it, because a connection that hangs keeps hanging. One task
//! then looks anew for who is to be asked, until a write comes back within the budget of a command. No request ever
//! waits for that.
//!
//! A cluster is there as a whole or not at all: a primary that does not answer takes the connection down, because what
//! others reply does not tell who waits in vain.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::redis::{Cmd, ErrorKind, RedisResult, ServerErrorKind, Value, cmd};
use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::client::Client;
use super::connection::Connection;
use super::script::Call;
use super::{is_reply, is_turned_away, told};
use crate::store::StoreError;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{LinkUp, RedisLink};

/// Timeouts over replies, and probes in a row, that make a connection a bad one.
const TIMEOUTS: u32 = 3;
/// How often an unused connection is tried, so that trouble is known before a request meets it.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Waits between attempts to connect: doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_millis(500);

pub(super) struct Link {
    /// None: the breaker is open.
    live: ArcSwapOption<Live>,
    lost: Notify,
    /// There is reason to look whether all of it is there.
    doubted: Notify,
    /// When the last connection was made; it may be lost since.
    connected: watch::Sender<Option<Instant>>,
    /// When the last connection was lost, or began to be looked for.
    lost_at: Mutex<Instant>,
    /// What it is for.
    link: RedisLink,
    up: LinkUp,
    metrics: Arc<Metrics>,
}

/// What Redis is asked when a connection is new and now and then after; it is there if that is no error.
pub(super) struct Probe {
    /// The very first attempt asks this.
    pub first: Cmd,
    pub again: Cmd,
}

impl Probe {
    /// Writes nothing to a key that is never there, which makes none: whoever may not write, or has no memory left,
    /// refuses it.
    pub(super) fn write(prefix: &str) -> Self {
        let mut write = cmd("SETRANGE");
        write.arg(format!("{prefix}probe")).arg(0).arg("");
        Self { first: write.clone(), again: write }
    }
}

/// A connection that works so far.
struct Live {
    connection: Connection,
    /// Which one it leads to: host and port.
    server: String,
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
    pub(super) fn new(link: RedisLink, metrics: &Arc<Metrics>) -> Self {
        let up = metrics.redis_up(link);
        up.set(false);
        Self {
            live: ArcSwapOption::empty(),
            lost: Notify::new(),
            doubted: Notify::new(),
            connected: watch::Sender::new(None),
            lost_at: Mutex::new(Instant::now()),
            link,
            up,
            metrics: Arc::clone(metrics),
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
        let mut connection = live.connection.clone();
        self.reply(&live, connection.ask(command), budget).await
    }

    /// Runs a script, which Redis is given anew if it does not know it; like [`run`](Self::run).
    pub(super) async fn invoke(&self, call: &Call<'_>, budget: Duration) -> Result<Value, StoreError> {
        let live = self.live()?;
        let mut connection = live.connection.clone();
        self.reply(&live, call.run(&mut connection), budget).await
    }

    fn live(&self) -> Result<Arc<Live>, StoreError> {
        self.live.load_full().ok_or_else(|| {
            self.metrics.redis_error("refused");
            StoreError::Down
        })
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
            Ok(Err(error)) if is_turned_away(&error) => {
                self.metrics.redis_error("reply");
                self.lose(live, &told(&error));
                Err(StoreError::Lost)
            }
            Ok(Err(error)) if is_reply(&error) => {
                self.metrics.redis_reply(started.elapsed());
                self.metrics.redis_error("reply");
                live.replied();
                debug!(link = self.link.as_str(), error = told(&error), "redis refused a command");
                if error.kind() == ErrorKind::Server(ServerErrorKind::Moved) {
                    // sent from one node of a cluster to another that is not there
                    self.doubted.notify_one();
                }
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
                self.doubted.notify_one();
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
            self.up.set(false);
            warn!(link = self.link.as_str(), server = live.server, why, "redis is lost: going on without it");
            self.lost.notify_one();
        }
    }

    fn holds(&self, live: &Arc<Live>) -> bool {
        self.live.load().as_ref().is_some_and(|held| Arc::ptr_eq(held, live))
    }
}

/// Keeps `link` connected for ever; on a connection as many as `most` commands may wait.
pub(super) async fn keep(link: Arc<Link>, client: Client, probe: Probe, budget: Duration, most: usize) {
    let name = link.link.as_str();
    let mut wait = FIRST_WAIT;
    let mut failures = 0_u32;
    let mut greeting = &probe.first;
    loop {
        match connect(&client, greeting, budget, most).await {
            Ok((connection, server)) => {
                info!(link = name, server, failures, "redis is reachable");
                failures = 0;
                let since = Instant::now();
                let live = Arc::new(Live { connection, server, since, timeouts: AtomicU32::new(0) });
                link.live.store(Some(Arc::clone(&live)));
                link.up.set(true);
                link.connected.send_replace(Some(since));
                watch(&link, &live, &probe.again, budget).await;
                // one that is lost again and again is not asked for all the time
                if since.elapsed() > LONGEST_WAIT {
                    wait = FIRST_WAIT;
                }
            }
            Err(error) => {
                link.metrics.redis_error("connect");
                if failures == 0 {
                    warn!(link = name, server = %client.address(), error, "redis cannot be reached: going on without it");
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
async fn watch(link: &Link, live: &Arc<Live>, command: &Cmd, budget: Duration) {
    let mut silent = 0_u32;
    while link.holds(live) {
        tokio::select! {
            () = link.lost.notified() => continue,
            () = link.doubted.notified() => {}
            () = sleep(PROBE_EVERY) => {}
        }
        let mut connection = live.connection.clone();
        match link.reply(live, probe(&mut connection, command), budget).await {
            Ok(_) => {
                silent = 0;
                // again and again, because the link that a reload has replaced tells of its end in the same gauge
                link.up.set(true);
            }
            // it cannot be used any more
            Err(StoreError::Reply) => link.lose(live, "it refuses the probe"),
            // of a cluster it is one of many that hangs: the others' replies make up for no timeout of a probe
            Err(StoreError::Timeout) => {
                silent += 1;
                if silent >= TIMEOUTS {
                    link.lose(live, "probes time out");
                }
            }
            Err(_) => {}
        }
    }
}

/// A connection on which the replies to `greeting` came in time, and to which server.
async fn connect(
    client: &Client,
    greeting: &Cmd,
    budget: Duration,
    most: usize,
) -> Result<(Connection, String), String> {
    let (mut connection, server) = client.connect(most).await?;
    timeout(budget, probe(&mut connection, greeting))
        .await
        .map_err(|_| "no reply in time".to_owned())?
        .map_err(|error| told(&error))?;
    Ok((connection, server))
}

async fn probe(connection: &mut Connection, command: &Cmd) -> RedisResult<Value> {
    connection.check().await?;
    connection.ask(command).await
}
