//! Shared state behind one door: in this process (the embedded default) or in Redis.
//!
//! What is kept here may be lost at any moment: no cached answer depends on it, and turns know what to do. A store that is slow or gone costs a
//! request at most its time budget, then nothing at all until it is back by itself.

mod entry;
mod limits;
mod memory;
mod redis;
#[cfg(test)]
mod tests;
mod turns;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::telemetry::Metrics;

use self::memory::Memory;
pub use self::redis::BadUrl;
use self::redis::Redis;
pub use self::redis::limits::SharedLimits;
pub use self::redis::turns::SharedTurns;
pub use entry::Entry;
pub use limits::{Account, Ask, Charged, Known, Lease, Ledger, LimitTiming, Pace, Spender, Tally, Used, Verdict};
pub use turns::{
    Abandoned, Appended, Claim, Cursor, Found, Index, LONGEST_NOTE, LanePlace, MOST_FOUND, Piece, Read, Timing, TurnId,
};

/// What a value is found by: a SHA-256.
pub type Key = [u8; 32];

/// Where values are kept and how many bytes they may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// None: in this process.
    pub redis: Option<RedisSettings>,
    /// Bytes of one value's body at most.
    pub max_entry: u64,
    /// Bytes of all values at most (in this process only; Redis has its own `maxmemory`).
    pub max_total: u64,
}

/// What becomes of a request whose limits are shared while the shared store is not there (`store.on_error`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnError {
    /// This gateway goes on with what it knows, as one of those there are.
    #[default]
    Local,
    /// It is refused.
    Deny,
    /// It passes.
    Allow,
}

/// What the configuration says of Redis.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisSettings {
    /// `redis://`, `redis+sentinel://` or `redis+cluster://`, with `rediss` for TLS; may hold a password, so it is never
    /// logged whole.
    pub url: String,
    /// What is said to Sentinels, whose passwords are not the master's.
    pub sentinel: Credentials,
    /// Time budget of one command; after it the request goes on without the store.
    pub timeout: Duration,
    /// In front of every Redis key of the gateway's.
    pub prefix: String,
    /// PEM file of the authorities a `rediss` server's certificate is checked against; None: the system's.
    pub ca_file: Option<PathBuf>,
}

/// Who one is, to a server.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    pub username: Option<String>,
    pub password: Option<String>,
}

/// What of [`RedisSettings`] cannot be used.
#[derive(Debug)]
pub struct BadRedis {
    /// Its name in the configuration.
    pub field: &'static str,
    /// Holds no part of the URL.
    pub why: BadUrl,
}

impl RedisSettings {
    /// Whether it can be used; no file is read, nobody is asked.
    pub fn check(&self) -> Result<(), BadRedis> {
        redis::check(self)
    }
}

impl fmt::Debug for RedisSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url: _, sentinel: _, timeout, prefix, ca_file } = self;
        f.debug_struct("RedisSettings")
            .field("timeout", timeout)
            .field("prefix", prefix)
            .field("ca_file", ca_file)
            .finish_non_exhaustive()
    }
}

/// The store; clones share it.
#[derive(Clone)]
pub struct Store {
    settings: Arc<Settings>,
    place: Place,
    /// Opened when it is first asked for; stays over reloads that keep the same Redis.
    turns: Arc<OnceLock<Arc<SharedTurns>>>,
    /// The same for limits.
    limits: Arc<OnceLock<Arc<SharedLimits>>>,
}

#[derive(Clone)]
enum Place {
    Memory(Arc<Memory>),
    Redis(Arc<Redis>),
}

/// Why the store gave no answer; the request goes on without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreError {
    /// It was not reached before, and is not asked until it is.
    Down,
    /// It did not reply within its budget.
    Timeout,
    /// The connection broke.
    Lost,
    /// As many commands as may be are waiting for their replies.
    Busy,
    /// It replied with an error or with something that is no value of the gateway's.
    Reply,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Down => "the store is not reachable",
            Self::Timeout => "the store did not reply in time",
            Self::Lost => "the connection to the store broke",
            Self::Busy => "too many commands wait for the store",
            Self::Reply => "the store replied with an error",
        })
    }
}

impl std::error::Error for StoreError {}

/// What `/readyz` says of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Ok,
    /// Requests go on without it; the text says why.
    Degraded(&'static str),
}

impl Store {
    /// Opens the store; nothing is waited for. The memory or connection of `previous` is kept if the settings are the
    /// same.
    ///
    /// Must be called within a tokio runtime: a task keeps the connection to Redis.
    pub fn new(settings: Settings, metrics: &Arc<Metrics>, previous: Option<&Self>) -> Result<Self, BadUrl> {
        if let Some(previous) = previous.filter(|previous| *previous.settings == settings) {
            return Ok(previous.clone());
        }
        let place = match &settings.redis {
            None => {
                metrics.forget_redis();
                Place::Memory(Arc::new(Memory::new(settings.max_total, metrics)))
            }
            Some(redis) => Place::Redis(Arc::new(Redis::new(redis, settings.max_entry, Arc::clone(metrics))?)),
        };
        let (turns, limits) = match previous.filter(|previous| previous.settings.redis == settings.redis) {
            Some(previous) => (Arc::clone(&previous.turns), Arc::clone(&previous.limits)),
            None => Default::default(),
        };
        Ok(Self { settings: Arc::new(settings), place, turns, limits })
    }

    /// What gateways share of turns; `None` if the store is in this process.
    ///
    /// Must be called within a tokio runtime: the first call begins to connect.
    pub fn shared_turns(&self) -> Option<Arc<SharedTurns>> {
        self.shared_turns_with(Timing::default())
    }

    fn shared_turns_with(&self, timing: Timing) -> Option<Arc<SharedTurns>> {
        match &self.place {
            Place::Memory(_) => None,
            Place::Redis(redis) => Some(Arc::clone(self.turns.get_or_init(|| Arc::new(redis.open_turns(timing))))),
        }
    }

    /// What gateways share of limits; `None` if the store is in this process.
    ///
    /// Must be called within a tokio runtime: the first call begins to connect.
    pub fn shared_limits(&self) -> Option<Arc<SharedLimits>> {
        self.shared_limits_with(LimitTiming::default())
    }

    fn shared_limits_with(&self, timing: LimitTiming) -> Option<Arc<SharedLimits>> {
        match &self.place {
            Place::Memory(_) => None,
            Place::Redis(redis) => Some(Arc::clone(self.limits.get_or_init(|| Arc::new(redis.open_limits(timing))))),
        }
    }

    /// The value of `key`, if there is one that has not expired.
    pub async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        match &self.place {
            Place::Memory(memory) => Ok(memory.get(key)),
            Place::Redis(redis) => redis.get(key).await,
        }
    }

    /// Keeps `entry` for `ttl`, unless it is too large or the store is in trouble. Nobody waits for it.
    pub fn put(&self, key: Key, entry: Entry, ttl: Duration) {
        if ttl.is_zero() || entry.body.len() as u64 > self.settings.max_entry {
            return;
        }
        match &self.place {
            Place::Memory(memory) => memory.put(key, entry, ttl),
            Place::Redis(redis) => redis.put(&key, &entry, ttl),
        }
    }

    /// How many keys were revoked, for all gateways together: more each time, unless Redis has lost its data.
    pub async fn revocations(&self) -> Result<u64, StoreError> {
        match &self.place {
            Place::Memory(_) => Ok(0),
            Place::Redis(redis) => redis.revocations().await,
        }
    }

    /// The digests of the keys that were revoked.
    pub async fn revoked(&self) -> Result<Vec<Key>, StoreError> {
        match &self.place {
            Place::Memory(_) => Ok(Vec::new()),
            Place::Redis(redis) => redis.revoked().await,
        }
    }

    /// Revokes the keys with these digests, for all gateways, for as long as Redis or one of them remembers it. In this
    /// process there is nobody to tell.
    pub async fn revoke(&self, digests: &[Key]) -> Result<(), StoreError> {
        match &self.place {
            Place::Memory(_) => Ok(()),
            Place::Redis(redis) => redis.revoke(digests).await,
        }
    }

    /// What each of `accounts` has used at all gateways together, in order; nothing is changed by it. In this process
    /// it is the gateway's own to tell: nothing then.
    pub async fn usage(&self, accounts: &[Account<'_>]) -> Result<Vec<Used>, StoreError> {
        match &self.place {
            Place::Memory(_) => Ok(Vec::new()),
            Place::Redis(redis) => redis.usage(accounts).await,
        }
    }

    pub fn health(&self) -> Health {
        match &self.place {
            Place::Memory(_) => Health::Ok,
            Place::Redis(redis) => {
                let turns = self.turns.get().is_none_or(|turns| turns.is_up());
                let limits = self.limits.get().is_none_or(|limits| limits.is_up());
                degraded(redis.is_up(), turns, limits).map_or(Health::Ok, Health::Degraded)
            }
        }
    }
}

/// What goes on without Redis, by the connections that do not work; `None`: nothing.
fn degraded(values: bool, turns: bool, limits: bool) -> Option<&'static str> {
    match (values, turns, limits) {
        (true, true, true) => None,
        (false, true, true) => Some("redis is not reachable for values: answers are not cached"),
        (true, false, true) => Some("redis is not reachable for turns: they are not shared"),
        (true, true, false) => Some("redis is not reachable for limits: they are not shared"),
        (true, false, false) => Some("redis is not reachable for turns and limits: they are not shared"),
        (false, false, true) => {
            Some("redis is not reachable for values and turns: answers are not cached, turns are not shared")
        }
        (false, true, false) => {
            Some("redis is not reachable for values and limits: answers are not cached, limits are not shared")
        }
        (false, false, false) => Some(
            "redis is not reachable for values, turns and limits: answers are not cached, turns and limits are not shared",
        ),
    }
}
