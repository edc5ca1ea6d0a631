//! The metrics of one gateway process. They survive reloads, and their labels stay bounded: see `families`, the list.
//!
//! What a request touches is resolved to handles beforehand (`route`, `key`, `upstream`, `listener`): a count on the
//! hot path is an atomic addition and no look-up.

mod families;
mod handles;
mod keys;
mod link;
mod times;
mod turns;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{Encoder, Gauge, IntCounter, IntGauge, Registry, TextEncoder};

use crate::error::Cause;
use crate::letta::routes::{ROUTES, Route};
use families::Families;
pub use handles::{CacheResult, Gauged, ListenerMetrics, RouteMetrics, UpstreamMetrics};
use keys::KeyFamilies;
pub use keys::{Decision, KeyMetrics};
pub use link::{LinkUp, RedisLink};
pub use times::Times;
pub use turns::TurnMetrics;

/// The media type of [`Metrics::encode`].
pub const TEXT_FORMAT: &str = prometheus::TEXT_FORMAT;

/// Label `revision` of `build_info`: the commit the build was told of.
const COMMIT: &str = match option_env!("LETTA_GATEWAY_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// All metrics of one gateway process; survives reloads.
pub struct Metrics {
    families: Families,
    pub overhead: Times,
    pub in_flight: IntGauge,
    pub response_bytes: IntCounter,
    pub request_bytes: IntCounter,
    pub streams_broken: IntCounter,
    pub cache_entries: IntGauge,
    pub cache_bytes: IntGauge,
    /// Gateways alive, this one included.
    pub limit_gateways: IntGauge,
    pub redis_duration: Times,
    pub config_loaded: Gauge,
    pub log_dropped: IntCounter,
    pub turns: TurnMetrics,
    cache: [(CacheResult, IntCounter); 4],
    routes: Vec<OnceLock<RouteMetrics>>,
    unrouted: RouteMetrics,
    key_families: Arc<KeyFamilies>,
    keys: Mutex<HashMap<Box<str>, Arc<KeyMetrics>>>,
    upstreams: Mutex<Vec<Arc<UpstreamMetrics>>>,
    certificates: Mutex<Vec<[Box<str>; 2]>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let families = Families::new();
        families.build_info.with_label_values(&[env!("CARGO_PKG_VERSION"), COMMIT]).set(1);
        // told as 0 before the first one, so that an alert on their increase sees it
        for (counters, labels) in [
            (&families.reloads, &["ok", "error"][..]),
            (&families.retries, &["another_replica", "fresh_connection", "budget_spent"]),
            (&families.redis_errors, &["timeout", "connect", "refused", "reply"]),
            (&families.limit_without_store, &["local", "deny", "allow"]),
        ] {
            labels.iter().for_each(|label| drop(counters.with_label_values(&[label])));
        }
        // the process begins with a configuration
        families.config_loaded.set(unix_time());
        Self {
            overhead: families.overhead.clone(),
            in_flight: families.in_flight.clone(),
            response_bytes: families.response_bytes.clone(),
            request_bytes: families.request_bytes.clone(),
            streams_broken: families.streams_broken.clone(),
            cache_entries: families.cache_entries.clone(),
            cache_bytes: families.cache_bytes.clone(),
            limit_gateways: families.limit_gateways.clone(),
            redis_duration: families.redis_duration.clone(),
            config_loaded: families.config_loaded.clone(),
            log_dropped: families.log_dropped.clone(),
            turns: TurnMetrics::new(&families),
            cache: CacheResult::ALL.map(|result| (result, families.cache.with_label_values(&[result.as_str()]))),
            routes: ROUTES.iter().map(|_| OnceLock::new()).collect(),
            unrouted: RouteMetrics::new(&families, "none", "none"),
            key_families: KeyFamilies::new(&families),
            keys: Mutex::default(),
            upstreams: Mutex::default(),
            certificates: Mutex::default(),
            families,
        }
    }

    /// Everything, in the Prometheus text format. Takes milliseconds: not for a thread that serves requests.
    pub fn encode(&self) -> Result<Vec<u8>, Cause> {
        let mut text = Vec::with_capacity(64 << 10);
        TextEncoder::new().encode(&self.families.registry.gather(), &mut text)?;
        Ok(text)
    }

    /// For gathering.
    pub fn registry(&self) -> &Registry {
        &self.families.registry
    }

    /// The handles of `route`; those of requests that met no route for `None`.
    pub fn route(&self, route: Option<&'static Route>) -> &RouteMetrics {
        let Some((route, slot)) = route.and_then(|route| Some((route, self.routes.get(usize::from(route.index))?)))
        else {
            return &self.unrouted;
        };
        // made at the route's first request: a gateway uses few of the routes there are
        slot.get_or_init(|| RouteMetrics::new(&self.families, route.template, route.method.as_str()))
    }

    /// The handles of the key `id`; the same ones as long as the key is configured. It has series once it is used.
    pub fn key(&self, id: &str) -> Arc<KeyMetrics> {
        let mut keys = lock(&self.keys);
        if let Some(key) = keys.get(id) {
            return Arc::clone(key);
        }
        let key = Arc::new(KeyMetrics::new(&self.key_families, id));
        keys.insert(id.into(), Arc::clone(&key));
        key
    }

    /// The handles of the replica `id`; the same ones as long as it is configured.
    pub fn upstream(&self, id: &str) -> Arc<UpstreamMetrics> {
        let mut upstreams = lock(&self.upstreams);
        if let Some(upstream) = upstreams.iter().find(|upstream| &*upstream.id == id) {
            return Arc::clone(upstream);
        }
        let upstream = Arc::new(UpstreamMetrics::new(&self.families, id));
        upstreams.push(Arc::clone(&upstream));
        upstream
    }

    /// The handles of the replica `id`, if it is configured.
    pub fn known_upstream(&self, id: &str) -> Option<Arc<UpstreamMetrics>> {
        lock(&self.upstreams).iter().find(|upstream| &*upstream.id == id).map(Arc::clone)
    }

    /// Handles of one listener, by its configured address.
    pub fn listener(&self, address: &str) -> ListenerMetrics {
        ListenerMetrics::new(&self.families, address)
    }

    /// Forgets the keys and replicas that a reload took away. Call it once nothing asks for them any more.
    pub fn retain(&self, key: impl Fn(&str) -> bool, upstream: impl Fn(&str) -> bool) {
        lock(&self.keys).retain(|id, known| {
            let keep = key(id);
            if !keep {
                known.forget();
            }
            keep
        });
        lock(&self.upstreams).retain(|known| {
            let keep = upstream(&known.id);
            if !keep {
                known.forget(&self.families);
            }
            keep
        });
    }

    pub fn error(&self, reason: &'static str) {
        self.families.errors.with_label_values(&[reason]).inc();
    }

    pub fn cache(&self, result: CacheResult) {
        for (counted, counter) in &self.cache {
            if *counted == result {
                counter.inc();
            }
        }
    }

    /// `outcome`: `another_replica`, `fresh_connection`, `budget_spent`.
    pub fn retry(&self, outcome: &'static str) {
        self.families.retries.with_label_values(&[outcome]).inc();
    }

    /// A request's limits were decided without Redis: `local`, `deny`, `allow`.
    pub fn limit_without_store(&self, how: &'static str) {
        self.families.limit_without_store.with_label_values(&[how]).inc();
    }

    /// A Redis command failed: `timeout`, `connect`, `refused` (the breaker is open), `reply`.
    pub fn redis_error(&self, reason: &'static str) {
        self.families.redis_errors.with_label_values(&[reason]).inc();
    }

    pub fn redis_reply(&self, after: Duration) {
        self.redis_duration.observe(after);
    }

    /// `ends`: Unix time, seconds.
    pub fn certificate_expiry(&self, listener: &str, name: &str, ends: i64) {
        let labels = [listener, name];
        let mut known = lock(&self.certificates);
        if !known.iter().any(|known| known.each_ref().map(|label| &**label) == labels) {
            known.push(labels.map(Box::from));
        }
        self.families.certificate_expiry.with_label_values(&labels).set(ends as f64);
    }

    /// Forgets the certificates of `listener`, before those it serves now are told.
    pub fn forget_certificates(&self, listener: &str) {
        lock(&self.certificates).retain(|[of, name]| {
            let keep = &**of != listener;
            if !keep {
                let _ = self.families.certificate_expiry.remove_label_values(&[of, name]);
            }
            keep
        });
    }

    /// `result`: `ok`, the new configuration is in use, or `error`, the old one still is.
    pub fn reload(&self, result: &'static str) {
        self.families.reloads.with_label_values(&[result]).inc();
        if result == "ok" {
            self.config_loaded.set(unix_time());
        }
    }
}

/// In seconds.
fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
