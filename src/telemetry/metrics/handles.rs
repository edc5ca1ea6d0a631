//! Handles of one route, replica or listener, resolved once: no label look-up on the hot path.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{IntCounter, IntCounterVec, IntGauge};

use super::families::Families;
use super::times::Times;

/// One counter for each status class.
pub(super) struct Classes([IntCounter; 6]);

/// Values of the label `status`; `none` where there was no answer.
pub(super) const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

impl Classes {
    pub(super) fn new(of: impl Fn(&'static str) -> IntCounter) -> Self {
        Self(CLASSES.map(of))
    }

    pub(super) fn of(&self, status: u16) -> Option<&IntCounter> {
        let class = match status / 100 {
            class @ 1..=5 => usize::from(class),
            _ => 0,
        };
        self.0.get(class)
    }
}

/// Handles of one route.
pub struct RouteMetrics {
    requests: Classes,
    pub duration: Times,
    pub time_to_first_byte: Times,
}

impl RouteMetrics {
    pub(super) fn new(families: &Families, template: &str, method: &str) -> Self {
        Self {
            requests: Classes::new(|class| families.requests.with_label_values(&[template, method, class])),
            duration: families.durations.with_label_values(&[template, method]),
            time_to_first_byte: families.first_bytes.with_label_values(&[template, method]),
        }
    }

    pub fn requests(&self, status: u16) -> Option<&IntCounter> {
        self.requests.of(status)
    }
}

/// Handles of one replica.
pub struct UpstreamMetrics {
    pub id: Box<str>,
    requests: Classes,
    /// From a request handed to the replica to the head of its response.
    pub response: Times,
    /// 1 healthy, 0 ejected or failing its checks.
    pub healthy: IntGauge,
    pub in_flight: IntGauge,
    /// Open connections to it, idle ones included.
    pub connections: IntGauge,
    pub ejections: IntCounter,
    connect_failures: IntCounter,
    /// When it was last found to take no connection: milliseconds of Unix time, 0: never.
    refused_at: AtomicU64,
}

impl UpstreamMetrics {
    pub(super) fn new(families: &Families, id: &str) -> Self {
        Self {
            id: id.into(),
            requests: Classes::new(|class| families.upstream_requests.with_label_values(&[id, class])),
            response: families.upstream_responses.with_label_values(&[id]),
            healthy: families.upstream_healthy.with_label_values(&[id]),
            in_flight: families.upstream_in_flight.with_label_values(&[id]),
            connections: families.upstream_connections.with_label_values(&[id]),
            ejections: families.upstream_ejections.with_label_values(&[id]),
            connect_failures: families.upstream_connect_failures.with_label_values(&[id]),
            refused_at: AtomicU64::new(0),
        }
    }

    /// Takes the replica out of what is told; handles that are still held count for nobody.
    pub(super) fn forget(&self, families: &Families) {
        let id = &*self.id;
        for class in CLASSES {
            let _ = families.upstream_requests.remove_label_values(&[id, class]);
        }
        let _ = families.upstream_responses.remove_label_values(&[id]);
        for gauges in [&families.upstream_healthy, &families.upstream_in_flight, &families.upstream_connections] {
            let _ = gauges.remove_label_values(&[id]);
        }
        for counters in [&families.upstream_ejections, &families.upstream_connect_failures] {
            let _ = counters.remove_label_values(&[id]);
        }
    }

    /// A request found it to take no connection.
    pub fn connect_failed(&self) {
        self.connect_failures.inc();
        self.refused();
    }

    /// It takes no connection.
    pub fn refused(&self) {
        self.refused_at.store(unix_milliseconds(SystemTime::now()), Ordering::Relaxed);
    }

    /// It has been found to take no connection at `since` or later.
    pub fn has_refused_since(&self, since: SystemTime) -> bool {
        self.refused_at.load(Ordering::Relaxed) >= unix_milliseconds(since).max(1)
    }

    pub fn requests(&self, status: u16) -> Option<&IntCounter> {
        self.requests.of(status)
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
    pub(super) fn new(families: &Families, address: &str) -> Self {
        Self {
            accepted: families.connections.with_label_values(&[address]),
            open: families.connections_open.with_label_values(&[address]),
            errors: families.connection_errors.clone(),
            address: address.into(),
        }
    }

    /// `reason`: a closed set, e.g. `tls_handshake`, `parse`, `header_timeout`, `full`.
    pub fn error(&self, reason: &'static str) {
        self.errors.with_label_values(&[&*self.address, reason]).inc();
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

fn unix_milliseconds(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
