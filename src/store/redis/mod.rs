//! Values in Redis, shared by all gateways that use the same Redis and prefix.
//!
//! A command waits for its reply no longer than its budget and no command waits for a connection: there is one, or the
//! store is down. How many commands and bytes wait for replies is bounded; what is over the bound is refused at once.

mod address;
mod client;
mod connection;
pub(super) mod limits;
mod link;
mod revoked;
mod script;
#[cfg(test)]
mod tests;
pub(super) mod turns;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, Value};
use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, unconstrained};

use super::{BadRedis, Entry, Key, LimitTiming, RedisSettings, StoreError, Timing};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::RedisLink;
use address::Address;
use client::Client;
use limits::SharedLimits;
use link::{Link, Probe, keep};
use turns::SharedTurns;

/// Gets that may wait for replies at once.
const READS: usize = 1024;
/// Puts that may wait for replies at once; each holds a value.
const WRITES: usize = 64;
/// Time budget of a put: no client waits for it.
const WRITE_BUDGET: Duration = LONGEST_BUDGET;
/// The longest time budget there is, if the configured one is not longer.
const LONGEST_BUDGET: Duration = Duration::from_secs(1);

pub(super) struct Redis {
    client: Client,
    settings: RedisSettings,
    link: Arc<Link>,
    keeper: JoinHandle<()>,
    prefix: Box<str>,
    timeout: Duration,
    /// Bytes of a reply at most.
    most_bytes: u64,
    reads: Semaphore,
    writes: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

/// The configured Redis cannot be used; the text holds no part of the URL.
#[derive(Debug)]
pub struct BadUrl(String);

impl fmt::Display for BadUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadUrl {}

/// Whether it can be used; nobody is asked and no file is read.
pub(super) fn check(settings: &RedisSettings) -> Result<(), BadRedis> {
    let RedisSettings { url, sentinel, timeout: _, prefix, ca_file } = settings;
    let bad = |field, why: &str| Err(BadRedis { field, why: BadUrl(why.to_owned()) });
    let address = Address::read(url).map_err(|why| BadRedis { field: "url", why })?;
    if !matches!(address, Address::Sentinel { .. }) {
        if sentinel.username.is_some() {
            return bad(
                "sentinel_username",
                "is for Sentinels, and the url names none: it begins with redis+sentinel://",
            );
        }
        if sentinel.password.is_some() {
            return bad(
                "sentinel_password",
                "is for Sentinels, and the url names none: it begins with redis+sentinel://",
            );
        }
    }
    if ca_file.is_some() && !address.is_tls() {
        return bad("ca_file", "is for TLS, and the url is without: begin it with rediss instead of redis");
    }
    // what stands in the first braces decides the slot of a key, and braces with nothing in them that it is the whole key
    if matches!(address, Address::Cluster(_)) && prefix.split_once('{').is_some_and(|(_, rest)| rest.starts_with('}')) {
        return bad("prefix", "holds {}, which would scatter keys that belong together over the cluster");
    }
    Ok(())
}

impl Redis {
    pub(super) fn new(settings: &RedisSettings, max_entry: u64, metrics: Arc<Metrics>) -> Result<Self, BadUrl> {
        let client = Client::new(settings)?;
        let link = Arc::new(Link::new(RedisLink::Values, &metrics));
        let keeper = tokio::spawn(keep(
            Arc::clone(&link),
            client.clone(),
            Probe::write(&settings.prefix),
            settings.timeout,
            READS + WRITES,
        ));
        Ok(Self {
            client,
            settings: settings.clone(),
            link,
            keeper,
            prefix: format!("{}cache:", settings.prefix).into(),
            timeout: settings.timeout,
            most_bytes: Entry::most_bytes(max_entry),
            reads: Semaphore::new(READS),
            writes: Arc::new(Semaphore::new(WRITES)),
            metrics,
        })
    }

    /// What is shared of turns, on a connection of its own: large values do not hold up the lanes.
    pub(super) fn open_turns(&self, timing: Timing) -> SharedTurns {
        SharedTurns::open(self.client.clone(), &self.settings, timing, Arc::clone(&self.metrics))
    }

    /// What is shared of limits, on a connection of its own: no value holds up a request's count.
    pub(super) fn open_limits(&self, timing: LimitTiming) -> SharedLimits {
        SharedLimits::open(self.client.clone(), &self.settings, timing, Arc::clone(&self.metrics))
    }

    pub(super) fn is_up(&self) -> bool {
        self.link.is_up()
    }

    pub(super) async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        let Ok(_permit) = self.reads.try_acquire() else {
            self.metrics.redis_error("refused");
            return Err(StoreError::Busy);
        };
        // a range, not the whole: whoever else writes to this Redis cannot make the gateway read without end; one byte
        // more than a value may have (both ends are included) tells one that was cut
        let mut command = Cmd::new();
        command.arg("GETRANGE").arg(self.redis_key(key)).arg(0).arg(self.most_bytes);
        match self.link.run(&command, self.timeout).await? {
            Value::BulkString(bytes) if bytes.is_empty() || bytes.len() as u64 > self.most_bytes => Ok(None),
            // another version's, or not the gateway's at all: it will be written over
            Value::BulkString(bytes) => Ok(Entry::decode(Bytes::from(bytes))),
            _ => {
                self.metrics.redis_error("reply");
                Err(StoreError::Reply)
            }
        }
    }

    /// Returns at once; the value is on its way or given up. A get that comes after finds it.
    pub(super) fn put(&self, key: &Key, entry: &Entry, ttl: Duration) {
        if !self.link.is_up() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.writes).try_acquire_owned() else {
            self.metrics.redis_error("refused");
            return;
        };
        let Some(value) = entry.encode() else { return };
        let milliseconds = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX).max(1);
        let mut command = Cmd::new();
        command.arg("SET").arg(self.redis_key(key)).arg(value).arg("PX").arg(milliseconds);
        let link = Arc::clone(&self.link);
        let mut put = Box::pin(async move {
            let _permit = permit;
            let _ = link.run(&command, WRITE_BUDGET).await;
        });
        // the first poll queues the command: its client may be answered and ask again before a task gets to run
        if unconstrained(put.as_mut()).now_or_never().is_none() {
            // ends by itself within its budget
            tokio::spawn(put);
        }
    }

    fn redis_key(&self, key: &Key) -> String {
        let mut text = String::with_capacity(self.prefix.len() + 2 * key.len());
        text.push_str(&self.prefix);
        text.push_str(&hex::encode(key));
        text
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// True for an error the server replied with: the connection is sound.
fn is_reply(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::UnexpectedReturnType)
}

/// True if what replied is not (any more) who is to be asked: a replica, a server that may not write or has no memory for
/// it, no whole cluster.
fn is_turned_away(error: &RedisError) -> bool {
    use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, ReadOnly};
    match error.kind() {
        ErrorKind::Server(kind) => matches!(kind, BusyLoading | ClusterDown | MasterDown | ReadOnly),
        ErrorKind::Extension => matches!(error.code(), Some("NOREPLICAS" | "MISCONF" | "OOM")),
        _ => false,
    }
}

/// What may be logged of an error: never its detail, which can hold what was sent.
fn told(error: &RedisError) -> String {
    match error.code() {
        _ if error.is_io_error() => error.to_string(),
        _ if error.kind() == ErrorKind::Parse => "what answers there is no Redis".to_owned(),
        Some(code @ "NOAUTH") => format!("it wants a password: write it into the URL ({code})"),
        Some(code @ "WRONGPASS") => format!("the URL has another user or password than it wants ({code})"),
        Some(code) if error.category().is_empty() => code.to_owned(),
        Some(code) => format!("{}: {code}", error.category()),
        None => error.category().to_owned(),
    }
}

#[cfg(test)]
impl Redis {
    /// Any command, with time to spare.
    pub(super) async fn run_for_test(&self, command: &Cmd) -> Result<Value, StoreError> {
        self.link.run(command, Duration::from_secs(20)).await
    }

    /// True if no command waits for its reply.
    pub(super) fn idle_for_test(&self) -> bool {
        self.reads.available_permits() == READS && self.writes.available_permits() == WRITES
    }
}
