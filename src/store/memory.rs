//! Values in this process: bounded in bytes, each with its own time to live.

use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use foldhash::fast::RandomState;
use moka::Expiry;
use moka::sync::Cache;
use tokio::time::Instant;

use super::{Entry, Key};
use crate::telemetry::Metrics;

/// What the cache itself keeps for each value: its key twice, hash table, LRU and timer nodes.
const OVERHEAD: usize = 256;

pub(super) struct Memory {
    values: Cache<Key, Kept, RandomState>,
    metrics: Arc<Metrics>,
    max_total: u64,
}

#[derive(Clone)]
struct Kept {
    entry: Entry,
    ttl: Duration,
    expires: Instant,
}

impl Kept {
    fn size(&self) -> u32 {
        u32::try_from(self.entry.size() + OVERHEAD).unwrap_or(u32::MAX)
    }
}

impl Memory {
    pub(super) fn new(max_total: u64, metrics: &Arc<Metrics>) -> Self {
        let told = Arc::clone(metrics);
        let values = Cache::builder()
            .max_capacity(max_total)
            .weigher(|_, kept: &Kept| kept.size())
            .expire_after(TimeToLive)
            .eviction_listener(move |_, kept: Kept, _| {
                told.cache_entries.dec();
                told.cache_bytes.sub(i64::from(kept.size()));
            })
            .build_with_hasher(RandomState::default());
        Self { values, metrics: Arc::clone(metrics), max_total }
    }

    pub(super) fn get(&self, key: &Key) -> Option<Entry> {
        let kept = self.values.get(key)?;
        // moka looks at its own clock; this is the one the rest of the gateway (and its tests) lives by
        (kept.expires > Instant::now()).then_some(kept.entry)
    }

    pub(super) fn put(&self, key: Key, entry: Entry, ttl: Duration) {
        let now = Instant::now();
        let expires = now.checked_add(ttl).unwrap_or_else(|| now + Duration::from_hours(24 * 365));
        let kept = Kept { entry, ttl, expires };
        if u64::from(kept.size()) > self.max_total {
            return;
        }
        self.metrics.cache_entries.inc();
        self.metrics.cache_bytes.add(i64::from(kept.size()));
        self.values.insert(key, kept);
        // moka would evict at its leisure, and 64 answers over the bound may be many bytes
        if u64::try_from(self.metrics.cache_bytes.get()).is_ok_and(|bytes| bytes > self.max_total) {
            self.values.run_pending_tasks();
        }
    }

    /// Does now what the cache does now and then: expiry and eviction.
    #[cfg(test)]
    pub(super) fn settle(&self) {
        self.values.run_pending_tasks();
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // so that the gauges do not go on counting values nobody can ask for (after a reload)
        self.values.invalidate_all();
        self.values.run_pending_tasks();
    }
}

struct TimeToLive;

impl Expiry<Key, Kept> for TimeToLive {
    fn expire_after_create(&self, _: &Key, kept: &Kept, _: StdInstant) -> Option<Duration> {
        Some(kept.ttl)
    }

    fn expire_after_update(&self, _: &Key, kept: &Kept, _: StdInstant, _: Option<Duration>) -> Option<Duration> {
        Some(kept.ttl)
    }
}
