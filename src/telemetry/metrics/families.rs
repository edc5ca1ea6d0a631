//! The list of all metrics: name, help, labels, buckets.
//!
//! Every label is a closed set or bounded by the configuration: route templates, methods, status classes, key ids,
//! upstream ids, listeners; never a path, an agent or anything else a client can make up.

use prometheus::core::Collector;
use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::times::{Times, TimesVec, times};

/// Upper bounds of request durations, in seconds: a cached answer takes under 1 ms, a turn may take ten minutes.
const DURATION: &[f64] =
    &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
/// Upper bounds of the gateway's own share and of Redis commands, in seconds: 50 µs to 100 ms.
const SHORT: &[f64] = &[0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1];

/// In front of every name but those of the process collector.
const PREFIX: &str = "letta_gateway_";

/// All metrics, registered.
pub(super) struct Families {
    pub(super) registry: Registry,
    pub(super) build_info: IntGaugeVec,
    pub(super) requests: IntCounterVec,
    pub(super) durations: TimesVec,
    pub(super) first_bytes: TimesVec,
    pub(super) overhead: Times,
    pub(super) in_flight: IntGauge,
    pub(super) request_bytes: IntCounter,
    pub(super) response_bytes: IntCounter,
    pub(super) errors: IntCounterVec,
    pub(super) streams_broken: IntCounter,
    pub(super) key_requests: IntCounterVec,
    pub(super) key_in_flight: IntGaugeVec,
    pub(super) limit_decisions: IntCounterVec,
    pub(super) budget_remaining: IntGaugeVec,
    pub(super) limit_without_store: IntCounterVec,
    pub(super) limit_gateways: IntGauge,
    pub(super) upstream_requests: IntCounterVec,
    pub(super) upstream_responses: TimesVec,
    pub(super) upstream_healthy: IntGaugeVec,
    pub(super) upstream_in_flight: IntGaugeVec,
    pub(super) upstream_connections: IntGaugeVec,
    pub(super) upstream_ejections: IntCounterVec,
    pub(super) upstream_connect_failures: IntCounterVec,
    pub(super) retries: IntCounterVec,
    pub(super) cache: IntCounterVec,
    pub(super) cache_entries: IntGauge,
    pub(super) cache_bytes: IntGauge,
    pub(super) redis_up: IntGaugeVec,
    pub(super) redis_errors: IntCounterVec,
    pub(super) redis_duration: Times,
    pub(super) turns: IntCounterVec,
    pub(super) turns_running: IntGauge,
    pub(super) turns_waiting: IntGauge,
    pub(super) turns_detached: IntCounter,
    pub(super) turns_alone: IntCounter,
    pub(super) turns_kept: IntGauge,
    pub(super) turn_log_bytes: IntGauge,
    pub(super) turn_repeats: IntCounterVec,
    pub(super) turn_queue: Times,
    pub(super) turn_durations: Times,
    pub(super) turn_first_events: Times,
    pub(super) turn_gaps: Times,
    pub(super) turn_tokens: IntCounterVec,
    pub(super) turn_steps: IntCounter,
    pub(super) lane_refusals: IntCounterVec,
    pub(super) conflicts: IntCounterVec,
    pub(super) connections: IntCounterVec,
    pub(super) connections_open: IntGaugeVec,
    pub(super) connection_errors: IntCounterVec,
    pub(super) certificate_expiry: GaugeVec,
    pub(super) reloads: IntCounterVec,
    pub(super) config_loaded: Gauge,
    pub(super) log_dropped: IntCounter,
}

impl Families {
    #[rustfmt::skip] // a table
    pub(super) fn new() -> Self {
        let registry = Registry::new();
        #[cfg(target_os = "linux")]
        register(&registry, prometheus::process_collector::ProcessCollector::for_self());
        let r = &registry;
        Self {
            build_info: gauges(r, "build_info", "Always 1; the labels tell the build", &["version", "revision"]),
            // requests
            requests: counters(r, "requests_total", "Requests by route and status class (none: the client left before the answer)", &["route", "method", "status"]),
            durations: histograms(r, "request_duration_seconds", "From the request's head to the response's last byte", &["route", "method"], DURATION),
            first_bytes: histograms(r, "time_to_first_byte_seconds", "From the request's head to the response's head", &["route", "method"], DURATION),
            overhead: histogram(r, "overhead_seconds", "The gateway's own share of a request, waiting for Letta left out; retried requests are not observed", SHORT),
            in_flight: gauge(r, "requests_in_flight", "Requests whose response has not ended"),
            request_bytes: counter(r, "request_bytes_total", "Bytes of request bodies taken from clients"),
            response_bytes: counter(r, "response_bytes_total", "Bytes of response bodies handed to clients"),
            errors: counters(r, "errors_total", "Answers the gateway gave itself and responses it broke off, by reason", &["reason"]),
            streams_broken: counter(r, "streams_broken_total", "Event streams a replica broke off"),
            // keys and limits
            key_requests: counters(r, "key_requests_total", "Requests by API key and status class", &["key", "status"]),
            key_in_flight: gauges(r, "key_requests_in_flight", "Requests in flight by API key", &["key"]),
            limit_decisions: counters(r, "limit_decisions_total", "What the limits decided, by API key: admitted by all windows, or by the window that refused, or would have (shadowed)", &["key", "window", "outcome"]),
            budget_remaining: gauges(r, "budget_remaining", "What was left of a budget when the key last asked or was charged, in what it counts; under 0: the last turn took more", &["key", "budget"]),
            limit_without_store: counters(r, "limit_without_store_total", "Requests whose limits were decided without Redis, by store.on_error: local, deny, allow", &["how"]),
            limit_gateways: gauge(r, "limit_gateways", "Gateways that share limits through Redis, as far as this one knows (no Redis configured: 0)"),
            // replicas
            upstream_requests: counters(r, "upstream_requests_total", "Attempts by replica and status class (none: no answer)", &["upstream", "status"]),
            upstream_responses: histograms(r, "upstream_response_seconds", "From a request handed to a replica to the head of its response", &["upstream"], DURATION),
            upstream_healthy: gauges(r, "upstream_healthy", "1 if the replica is in rotation", &["upstream"]),
            upstream_in_flight: gauges(r, "upstream_requests_in_flight", "Attempts in flight by replica", &["upstream"]),
            upstream_connections: gauges(r, "upstream_connections", "Open connections to the replica, idle ones included", &["upstream"]),
            upstream_ejections: counters(r, "upstream_ejections_total", "Times the replica left rotation, by failed health checks or failed requests", &["upstream"]),
            upstream_connect_failures: counters(r, "upstream_connect_failures_total", "Connections to the replica that failed", &["upstream"]),
            retries: counters(r, "retries_total", "Second attempts and those not made", &["outcome"]),
            // cache and store
            cache: counters(r, "cache_requests_total", "Cacheable requests by what the cache did", &["result"]),
            cache_entries: gauge(r, "cache_entries", "Answers in the in-process cache"),
            cache_bytes: gauge(r, "cache_bytes", "Bytes of answers in the in-process cache"),
            redis_up: gauges(r, "redis_up", "1 while this connection to Redis works: values (answers, revoked keys), turns, limits (no Redis configured: none)", &["link"]),
            redis_errors: counters(r, "redis_errors_total", "Redis commands that failed, by reason", &["reason"]),
            redis_duration: histogram(r, "redis_duration_seconds", "Redis commands, from call to reply", SHORT),
            // turns
            turns: counters(r, "turns_total", "Turns by how they ended, whatever the HTTP status: Letta's stop reason, error_event, refused, broken, never_sent", &["outcome"]),
            turns_running: gauge(r, "turns_running", "Turns that a replica is at work on"),
            turns_waiting: gauge(r, "turns_waiting", "Turns that wait for their agent's lane or for a busy conversation"),
            turns_detached: counter(r, "turns_detached_total", "Times the last client left a turn that Letta was at work on"),
            turns_alone: counter(r, "turns_alone_total", "Turns that other gateways could not be told of, because the shared store was gone"),
            turns_kept: gauge(r, "turns_kept", "Turns that are over and known still"),
            turn_log_bytes: gauge(r, "turn_log_bytes", "Bytes of what is kept of turns that are over, answers included"),
            turn_repeats: counters(r, "turn_repeats_total", "Sends that were a turn of before: joined while it ran, replayed after it, resumed from an offset", &["how"]),
            turn_queue: histogram(r, "turn_queue_seconds", "How long turns waited for their lane", DURATION),
            turn_durations: histogram(r, "turn_duration_seconds", "From a turn's send to the last byte of its answer", DURATION),
            turn_first_events: histogram(r, "turn_first_event_seconds", "From a streamed turn's send to its first event", DURATION),
            turn_gaps: histogram(r, "turn_event_gap_seconds", "Time between two events of a streamed turn", DURATION),
            turn_tokens: counters(r, "turn_tokens_total", "Tokens by Letta's own count", &["kind"]),
            turn_steps: counter(r, "turn_steps_total", "Steps by Letta's own count"),
            lane_refusals: counters(r, "lane_refusals_total", "Sends that a lane refused: full, or not free in time", &["reason"]),
            conflicts: counters(r, "conflicts_total", "Conflicts (409) of Letta's that were waited out: busy, freed, database", &["kind"]),
            // connections
            connections: counters(r, "connections_total", "Client connections accepted", &["listener"]),
            connections_open: gauges(r, "connections_open", "Client connections open", &["listener"]),
            connection_errors: counters(r, "connection_errors_total", "Client connections that ended badly, by reason", &["listener", "reason"]),
            certificate_expiry: float_gauges(r, "tls_certificate_expiry_timestamp_seconds", "When a served certificate ends, Unix time", &["listener", "name"]),
            // the process
            reloads: counters(r, "config_reloads_total", "Configuration reloads by result", &["result"]),
            config_loaded: float_gauge(r, "config_last_load_timestamp_seconds", "When the running configuration was loaded, Unix time"),
            log_dropped: counter(r, "access_log_dropped_total", "Access-log lines dropped because standard output is slow or gone"),
            registry,
        }
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("{PREFIX}{name}"), help)
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    made(registry, IntCounter::with_opts(opts(name, help)))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    made(registry, IntCounterVec::new(opts(name, help), labels))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    made(registry, IntGauge::with_opts(opts(name, help)))
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    made(registry, IntGaugeVec::new(opts(name, help), labels))
}

fn float_gauge(registry: &Registry, name: &str, help: &str) -> Gauge {
    made(registry, Gauge::with_opts(opts(name, help)))
}

fn float_gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
    made(registry, GaugeVec::new(opts(name, help), labels))
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &'static [f64]) -> Times {
    histograms(registry, name, help, &[], buckets).with_label_values::<&str>(&[])
}

fn histograms(registry: &Registry, name: &str, help: &str, labels: &[&str], buckets: &'static [f64]) -> TimesVec {
    made(registry, times(opts(name, help), labels, buckets))
}

#[expect(clippy::unwrap_used, reason = "names, labels and buckets are constants of this file; every test makes them")]
fn made<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.unwrap();
    register(registry, collector.clone());
    collector
}

#[expect(clippy::unwrap_used, reason = "fails if a name comes twice in this file; every test makes them")]
fn register(registry: &Registry, collector: impl Collector + 'static) {
    registry.register(Box::new(collector)).unwrap();
}
