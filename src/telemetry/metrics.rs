//! The metrics registry. Every label is a closed set or bounded by the configuration: route templates, methods, status
//! classes, key ids, upstream ids; never a path, an agent or anything else a client can make up.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

use crate::error::Window;
use crate::letta::routes::{ROUTES, Route};

/// Upper bounds of request durations, in seconds: a cached answer takes under 1 ms, a turn may take ten minutes.
const DURATION: &[f64] =
    &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
/// Upper bounds of the gateway's own share, in seconds: 50 µs to 100 ms.
const OVERHEAD: &[f64] =
    &[0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1];
const REDIS: &[f64] = &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1];

/// All metrics of one gateway process; survives reloads.
pub struct Metrics {
    registry: Registry,
    pub build_info: IntGaugeVec,
    requests: IntCounterVec,
    durations: HistogramVec,
    pub overhead: Histogram,
    time_to_first_byte: HistogramVec,
    pub in_flight: IntGauge,
    pub response_bytes: IntCounter,
    pub request_bytes: IntCounter,
    errors: IntCounterVec,
    routes: Vec<OnceLock<RouteMetrics>>,
    unrouted: RouteMetrics,
    key_requests: IntCounterVec,
    key_in_flight: IntGaugeVec,
    limit_decisions: IntCounterVec,
    keys: Mutex<Vec<Arc<KeyMetrics>>>,
    upstream_requests: IntCounterVec,
    upstream_healthy: IntGaugeVec,
    upstream_in_flight: IntGaugeVec,
    upstream_connections: IntGaugeVec,
    upstream_ejections: IntCounterVec,
    upstream_connect_failures: IntCounterVec,
    upstreams: Mutex<Vec<Arc<UpstreamMetrics>>>,
    cache: IntCounterVec,
    pub cache_entries: IntGauge,
    pub cache_bytes: IntGauge,
    retries: IntCounterVec,
    pub streams_broken: IntCounter,
    pub redis_up: IntGauge,
    redis_errors: IntCounterVec,
    pub redis_duration: Histogram,
    connections: IntCounterVec,
    connections_open: IntGaugeVec,
    connection_errors: IntCounterVec,
    certificate_expiry: GaugeVec,
    reloads: IntCounterVec,
    pub config_loaded: Gauge,
    pub log_dropped: IntCounter,
}

/// Handles of one route, resolved once: no label look-up on the hot path.
pub struct RouteMetrics {
    /// By status class: 1xx … 5xx, index 0 for none (the client left first).
    requests: [IntCounter; 6],
    pub duration: Histogram,
    pub time_to_first_byte: Histogram,
}

/// Handles of one API key.
pub struct KeyMetrics {
    pub id: Box<str>,
    requests: [IntCounter; 6],
    pub in_flight: IntGauge,
    pub admitted: IntCounter,
    pub rate_refused: IntCounter,
    pub in_flight_refused: IntCounter,
}

/// Handles of one replica.
pub struct UpstreamMetrics {
    pub id: Box<str>,
    requests: [IntCounter; 6],
    /// 1 healthy, 0 ejected or failing its checks.
    pub healthy: IntGauge,
    pub in_flight: IntGauge,
    /// Open connections to it, idle ones included.
    pub connections: IntGauge,
    pub ejections: IntCounter,
    pub connect_failures: IntCounter,
}

/// What the cache did with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheResult {
    /// Answered from the store.
    Hit,
    /// Not there; Letta answered.
    Miss,
    /// The client asked for a fresh answer (`no-cache`, `no-store`) or the request cannot be cached.
    Bypass,
    /// The store is slow or gone; Letta answered.
    Unavailable,
}

impl CacheResult {
    pub const ALL: [Self; 4] = [Self::Hit, Self::Miss, Self::Bypass, Self::Unavailable];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Bypass => "bypass",
            Self::Unavailable => "unavailable",
        }
    }
}

const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

fn class(status: u16) -> usize {
    match status / 100 {
        class @ 1..=5 => usize::from(class),
        _ => 0,
    }
}

impl RouteMetrics {
    pub fn requests(&self, status: u16) -> Option<&IntCounter> {
        self.requests.get(class(status))
    }
}

impl KeyMetrics {
    pub fn requests(&self, status: u16) -> Option<&IntCounter> {
        self.requests.get(class(status))
    }

    pub fn refused(&self, window: Window) -> &IntCounter {
        match window {
            Window::Rate => &self.rate_refused,
            Window::InFlight => &self.in_flight_refused,
        }
    }
}

impl UpstreamMetrics {
    pub fn requests(&self, status: u16) -> Option<&IntCounter> {
        self.requests.get(class(status))
    }
}

#[expect(clippy::unwrap_used, reason = "names and labels are constants of this file; every test makes a registry")]
impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        let requests = counters(r, "requests_total", "Requests by route and status class", &["route", "method", "status"]);
        let durations = histograms(
            r,
            "request_duration_seconds",
            "From the request's head to the response's last byte",
            &["route", "method"],
            DURATION,
        );
        let time_to_first_byte = histograms(
            r,
            "time_to_first_byte_seconds",
            "From the request's head to the response's head",
            &["route", "method"],
            DURATION,
        );
        let unrouted = route_metrics(&requests, &durations, &time_to_first_byte, "none", "none");
        let overhead = Histogram::with_opts(
            HistogramOpts::new("letta_gateway_overhead_seconds", "The gateway's own share of a request, waiting for Letta left out")
                .buckets(OVERHEAD.to_vec()),
        )
        .unwrap();
        r.register(Box::new(overhead.clone())).unwrap();
        let redis_duration = Histogram::with_opts(
            HistogramOpts::new("letta_gateway_redis_duration_seconds", "Redis commands, from call to reply").buckets(REDIS.to_vec()),
        )
        .unwrap();
        r.register(Box::new(redis_duration.clone())).unwrap();
        let config_loaded =
            Gauge::new("letta_gateway_config_last_load_timestamp_seconds", "When the running configuration was loaded, Unix time").unwrap();
        r.register(Box::new(config_loaded.clone())).unwrap();
        let certificate_expiry = GaugeVec::new(
            Opts::new("letta_gateway_tls_certificate_expiry_timestamp_seconds", "When a served certificate ends, Unix time"),
            &["listener", "name"],
        )
        .unwrap();
        r.register(Box::new(certificate_expiry.clone())).unwrap();
        #[cfg(target_os = "linux")]
        r.register(Box::new(prometheus::process_collector::ProcessCollector::for_self())).unwrap();
        let metrics = Self {
            build_info: gauges(r, "build_info", "Always 1; the labels tell the build", &["version", "rustc"]),
            overhead,
            in_flight: gauge(r, "requests_in_flight", "Requests whose response has not ended"),
            response_bytes: counter(r, "response_bytes_total", "Bytes of response bodies handed to clients"),
            request_bytes: counter(r, "request_bytes_total", "Bytes of request bodies taken from clients"),
            errors: counters(r, "errors_total", "Answers the gateway gave itself and streams it ended, by reason", &["reason"]),
            routes: ROUTES.iter().map(|_| OnceLock::new()).collect(),
            unrouted,
            key_requests: counters(r, "key_requests_total", "Requests by API key and status class", &["key", "status"]),
            key_in_flight: gauges(r, "key_requests_in_flight", "Requests in flight by API key", &["key"]),
            limit_decisions: counters(r, "limit_decisions_total", "What the limits decided, by key", &["key", "decision"]),
            keys: Mutex::default(),
            upstream_requests: counters(r, "upstream_requests_total", "Attempts by replica and status class (none: no answer)", &["upstream", "status"]),
            upstream_healthy: gauges(r, "upstream_healthy", "1 if the replica is in rotation", &["upstream"]),
            upstream_in_flight: gauges(r, "upstream_requests_in_flight", "Attempts in flight by replica", &["upstream"]),
            upstream_connections: gauges(r, "upstream_connections", "Open connections to the replica, idle ones included", &["upstream"]),
            upstream_ejections: counters(r, "upstream_ejections_total", "Times the replica left rotation", &["upstream"]),
            upstream_connect_failures: counters(r, "upstream_connect_failures_total", "Connections to the replica that failed", &["upstream"]),
            upstreams: Mutex::default(),
            cache: counters(r, "cache_requests_total", "Cacheable requests by what the cache did", &["result"]),
            cache_entries: gauge(r, "cache_entries", "Answers in the in-process cache"),
            cache_bytes: gauge(r, "cache_bytes", "Bytes of answers in the in-process cache"),
            retries: counters(r, "retries_total", "Second attempts and those not made", &["outcome"]),
            streams_broken: counter(r, "streams_broken_total", "Event streams a replica broke off"),
            redis_up: gauge(r, "redis_up", "1 if the last Redis command or probe succeeded (absent store: 0)"),
            redis_errors: counters(r, "redis_errors_total", "Redis commands that failed", &["reason"]),
            redis_duration,
            connections: counters(r, "connections_total", "Client connections accepted", &["listener"]),
            connections_open: gauges(r, "connections_open", "Client connections open", &["listener"]),
            connection_errors: counters(r, "connection_errors_total", "Client connections that ended badly, by reason", &["listener", "reason"]),
            certificate_expiry,
            reloads: counters(r, "config_reloads_total", "Configuration reloads by result", &["result"]),
            config_loaded,
            log_dropped: counter(r, "access_log_dropped_total", "Access-log lines dropped because standard output is slow"),
            requests,
            durations,
            time_to_first_byte,
            registry,
        };
        metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION"), env!("CARGO_PKG_RUST_VERSION")]).set(1);
        metrics
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// For gathering.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The handles of `route`; those of requests that met no route for `None`.
    pub fn route(&self, route: Option<&'static Route>) -> &RouteMetrics {
        let Some((route, slot)) = route.and_then(|route| Some((route, self.routes.get(usize::from(route.index))?))) else {
            return &self.unrouted;
        };
        slot.get_or_init(|| {
            route_metrics(&self.requests, &self.durations, &self.time_to_first_byte, route.template, route.method.as_str())
        })
    }

    /// The handles of the key `id`; the same ones as long as the key lives.
    pub fn key(&self, id: &str) -> Arc<KeyMetrics> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = keys.iter().find(|key| &*key.id == id) {
            return Arc::clone(key);
        }
        let key = Arc::new(KeyMetrics {
            id: id.into(),
            requests: CLASSES.map(|class| self.key_requests.with_label_values(&[id, class])),
            in_flight: self.key_in_flight.with_label_values(&[id]),
            admitted: self.limit_decisions.with_label_values(&[id, "admitted"]),
            rate_refused: self.limit_decisions.with_label_values(&[id, "rate"]),
            in_flight_refused: self.limit_decisions.with_label_values(&[id, "in_flight"]),
        });
        keys.push(Arc::clone(&key));
        key
    }

    /// The handles of the replica `id`; the same ones as long as it is configured.
    pub fn upstream(&self, id: &str) -> Arc<UpstreamMetrics> {
        let mut upstreams = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(upstream) = upstreams.iter().find(|upstream| &*upstream.id == id) {
            return Arc::clone(upstream);
        }
        let upstream = Arc::new(UpstreamMetrics {
            id: id.into(),
            requests: CLASSES.map(|class| self.upstream_requests.with_label_values(&[id, class])),
            healthy: self.upstream_healthy.with_label_values(&[id]),
            in_flight: self.upstream_in_flight.with_label_values(&[id]),
            connections: self.upstream_connections.with_label_values(&[id]),
            ejections: self.upstream_ejections.with_label_values(&[id]),
            connect_failures: self.upstream_connect_failures.with_label_values(&[id]),
        });
        upstreams.push(Arc::clone(&upstream));
        upstream
    }

    pub fn error(&self, reason: &'static str) {
        self.errors.with_label_values(&[reason]).inc();
    }

    pub fn cache(&self, result: CacheResult) {
        self.cache.with_label_values(&[result.as_str()]).inc();
    }

    /// `outcome`: `another_replica`, `fresh_connection`, `budget_spent`.
    pub fn retry(&self, outcome: &'static str) {
        self.retries.with_label_values(&[outcome]).inc();
    }

    /// A Redis command failed: `timeout`, `connect`, `refused` (the breaker is open), `reply`.
    pub fn redis_error(&self, reason: &'static str) {
        self.redis_errors.with_label_values(&[reason]).inc();
    }

    pub fn redis_reply(&self, after: Duration) {
        self.redis_duration.observe(after.as_secs_f64());
    }

    /// Handles of one listener, by its configured address.
    pub fn listener(&self, address: &str) -> ListenerMetrics {
        ListenerMetrics {
            accepted: self.connections.with_label_values(&[address]),
            open: self.connections_open.with_label_values(&[address]),
            errors: self.connection_errors.clone(),
            address: address.into(),
        }
    }

    /// `ends`: Unix time, seconds.
    pub fn certificate_expiry(&self, listener: &str, name: &str, ends: i64) {
        #[expect(clippy::cast_precision_loss, reason = "Unix seconds fit a double for the next hundred million years")]
        self.certificate_expiry.with_label_values(&[listener, name]).set(ends as f64);
    }

    /// `result`: `ok` or `error`.
    pub fn reload(&self, result: &'static str) {
        self.reloads.with_label_values(&[result]).inc();
    }
}

/// One of those a gauge counts; counted off when dropped.
pub struct Gauged(IntGauge);

impl Gauged {
    pub fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Gauged {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Handles of one listener.
pub struct ListenerMetrics {
    pub accepted: IntCounter,
    pub open: IntGauge,
    errors: IntCounterVec,
    address: Box<str>,
}

impl ListenerMetrics {
    /// `reason`: a closed set, e.g. `tls_handshake`, `parse`, `header_timeout`, `full`.
    pub fn error(&self, reason: &'static str) {
        self.errors.with_label_values(&[&*self.address, reason]).inc();
    }
}

fn route_metrics(
    requests: &IntCounterVec,
    durations: &HistogramVec,
    first_byte: &HistogramVec,
    template: &str,
    method: &str,
) -> RouteMetrics {
    RouteMetrics {
        requests: CLASSES.map(|class| requests.with_label_values(&[template, method, class])),
        duration: durations.with_label_values(&[template, method]),
        time_to_first_byte: first_byte.with_label_values(&[template, method]),
    }
}

macro_rules! metric {
    ($function:ident, $made:ty, |$opts:ident $(, $labels:ident)?| $make:expr) => {
        #[expect(clippy::unwrap_used, reason = "names and labels are constants of this file")]
        fn $function(registry: &Registry, name: &str, help: &str $(, $labels: &[&str])?) -> $made {
            let $opts = Opts::new(format!("letta_gateway_{name}"), help);
            let made = $make.unwrap();
            registry.register(Box::new(made.clone())).unwrap();
            made
        }
    };
}

metric!(counter, IntCounter, |opts| IntCounter::with_opts(opts));
metric!(gauge, IntGauge, |opts| IntGauge::with_opts(opts));
metric!(counters, IntCounterVec, |opts, labels| IntCounterVec::new(opts, labels));
metric!(gauges, IntGaugeVec, |opts, labels| IntGaugeVec::new(opts, labels));

#[expect(clippy::unwrap_used, reason = "names and labels are constants of this file")]
fn histograms(registry: &Registry, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
    let opts = HistogramOpts::new(format!("letta_gateway_{name}"), help).buckets(buckets.to_vec());
    let made = HistogramVec::new(opts, labels).unwrap();
    registry.register(Box::new(made.clone())).unwrap();
    made
}
