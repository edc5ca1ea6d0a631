//! One replica as the balancer sees it: its load, its health, its ejections.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::time::Instant;

use super::{Ejection, Server};
use crate::body::Counter;
use crate::telemetry::metrics::UpstreamMetrics;

/// An ejection lasts at most this many times its configured duration.
const LONGEST_EJECTION: u32 = 10;

/// One replica. Health and load outlive a reload; place and weight do not.
pub struct Endpoint {
    /// `host:port`.
    pub authority: Box<str>,
    /// Place in the configuration.
    pub place: usize,
    pub weight: u32,
    /// Mixed with the agent's hash.
    pub(super) seed: u64,
    /// Attempts whose response has not ended.
    pub load: Arc<Counter>,
    pub metrics: Arc<UpstreamMetrics>,
    health: Arc<Health>,
}

/// What is known of a replica's health.
#[derive(Debug)]
pub struct Health {
    /// What the active checks say; well until they say otherwise.
    checked_well: AtomicBool,
    /// Failures seen on requests, in a row.
    failures: AtomicU32,
    /// Ejections in a row.
    ejections: AtomicU32,
    /// Milliseconds since this process began; 0: not ejected.
    ejected_until: AtomicU64,
    /// It has refused the gateway's password, and not taken it since.
    wrong_password: AtomicBool,
    load: Arc<Counter>,
}

impl Endpoint {
    pub fn new(place: usize, server: &Server, metrics: Arc<UpstreamMetrics>, known: Option<Arc<Health>>) -> Self {
        let health = known.unwrap_or_else(|| {
            metrics.healthy.set(1);
            Arc::new(Health {
                checked_well: AtomicBool::new(true),
                failures: AtomicU32::new(0),
                ejections: AtomicU32::new(0),
                ejected_until: AtomicU64::new(0),
                wrong_password: AtomicBool::new(false),
                load: Counter::new(),
            })
        });
        Self {
            authority: server.authority.as_str().into(),
            place,
            weight: server.weight,
            seed: super::pick::hash(0, server.authority.as_bytes()),
            load: Arc::clone(&health.load),
            metrics,
            health,
        }
    }

    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// In rotation at `now`: its checks pass and it is not ejected.
    pub fn is_available(&self, now: Instant) -> bool {
        self.health.checked_well.load(Ordering::Relaxed) && !self.is_ejected(now)
    }

    fn is_ejected(&self, now: Instant) -> bool {
        let until = self.health.ejected_until.load(Ordering::Relaxed);
        until != 0 && milliseconds(now) < until
    }

    /// A request was answered.
    pub fn succeeded(&self) {
        // reads are shared between cores, writes are not: most answers find nothing to reset
        if self.health.failures.load(Ordering::Relaxed) != 0 {
            self.health.failures.store(0, Ordering::Relaxed);
            self.health.ejections.store(0, Ordering::Relaxed);
        }
    }

    /// It wants another password than the gateway's.
    pub(super) fn refuses_password(&self) {
        if !self.health.wrong_password.swap(true, Ordering::Relaxed) {
            tracing::error!(
                upstream = %self.authority,
                "replica refuses the gateway's password (401): upstreams.letta.password must be Letta's LETTA_SERVER_PASSWORD"
            );
        }
    }

    /// It has answered what it answers nobody without the password.
    pub(super) fn takes_password(&self) {
        if self.health.wrong_password.load(Ordering::Relaxed) {
            self.health.wrong_password.store(false, Ordering::Relaxed);
            tracing::info!(upstream = %self.authority, "replica takes the gateway's password");
        }
    }

    pub fn has_wrong_password(&self) -> bool {
        self.health.wrong_password.load(Ordering::Relaxed)
    }

    /// A request failed. Returns how long the replica is left out, if it now is; never without `others` in rotation.
    pub(super) fn failed(&self, ejection: &Ejection, others: bool, now: Instant) -> Option<Duration> {
        let failures = self.health.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures < ejection.after || !others || self.is_ejected(now) {
            return None;
        }
        let times = 1_u32 << self.health.ejections.fetch_add(1, Ordering::Relaxed).min(4);
        let pause = ejection.duration * times.min(LONGEST_EJECTION);
        self.health.failures.store(0, Ordering::Relaxed);
        self.health.ejected_until.store(milliseconds(now + pause), Ordering::Relaxed);
        self.metrics.ejections.inc();
        self.metrics.healthy.set(0);
        Some(pause)
    }

    /// What an active check found, once it has found it often enough in a row. True if that is news.
    pub(super) fn checked(&self, well: bool) -> bool {
        let news = self.health.checked_well.swap(well, Ordering::Relaxed) != well;
        if news && well {
            self.health.ejected_until.store(0, Ordering::Relaxed);
            self.health.failures.store(0, Ordering::Relaxed);
        } else if news {
            self.metrics.ejections.inc();
        }
        news
    }

    /// Lets an ejection that is going on last until `until` at least.
    pub(super) fn hold_out(&self, until: Instant) {
        if self.is_ejected(Instant::now()) {
            self.health.ejected_until.fetch_max(milliseconds(until), Ordering::Relaxed);
        }
    }

    /// Brings the gauge up to date: an ejection ends without an event.
    pub fn tell(&self, now: Instant) {
        self.metrics.healthy.set(i64::from(self.is_available(now)));
        self.metrics.in_flight.set(i64::from(self.load.now()));
    }
}

/// Milliseconds between the first call and `now`, at least 1.
fn milliseconds(now: Instant) -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(now.saturating_duration_since(*START).as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    const EJECTION: Ejection = Ejection { after: 3, duration: Duration::from_secs(10) };

    fn endpoint() -> Endpoint {
        let server = Server { authority: "replica:8283".into(), weight: 1 };
        Endpoint::new(0, &server, Metrics::new().upstream("replica:8283"), None)
    }

    #[test]
    fn failures_in_a_row_eject_for_longer_each_time() {
        let (endpoint, mut now) = (endpoint(), Instant::now());
        for seconds in [10, 20, 40, 80, 100, 100] {
            assert_eq!(endpoint.failed(&EJECTION, true, now), None);
            assert_eq!(endpoint.failed(&EJECTION, true, now), None);
            assert_eq!(endpoint.failed(&EJECTION, true, now), Some(Duration::from_secs(seconds)));
            assert!(!endpoint.is_available(now));
            now += Duration::from_secs(seconds) + Duration::from_millis(2);
            assert!(endpoint.is_available(now));
        }
    }

    #[test]
    fn an_answer_in_between_starts_the_count_anew() {
        let (endpoint, now) = (endpoint(), Instant::now());
        for _ in 0..5 {
            endpoint.failed(&EJECTION, true, now);
            endpoint.failed(&EJECTION, true, now);
            endpoint.succeeded();
        }
        assert!(endpoint.is_available(now));
    }

    #[test]
    fn the_last_one_in_rotation_is_not_ejected() {
        let (endpoint, now) = (endpoint(), Instant::now());
        for _ in 0..10 {
            assert_eq!(endpoint.failed(&EJECTION, false, now), None);
        }
        assert!(endpoint.is_available(now));
    }

    #[test]
    fn a_check_that_passes_all_the_time_does_not_end_an_ejection() {
        let (endpoint, now) = (endpoint(), Instant::now());
        for _ in 0..3 {
            endpoint.failed(&EJECTION, true, now);
        }
        assert!(!endpoint.checked(true), "its checks never failed: no news");
        assert!(!endpoint.is_available(now), "it answers checks, and 503 to everything else");
    }

    #[test]
    fn an_ejection_lasts_while_checks_fail_and_ends_with_one_that_passes() {
        let (endpoint, now) = (endpoint(), Instant::now());
        for _ in 0..3 {
            endpoint.failed(&EJECTION, true, now);
        }
        endpoint.hold_out(now + Duration::from_secs(60));
        assert!(!endpoint.is_available(now + Duration::from_secs(59)));
        assert!(endpoint.checked(false));
        assert!(endpoint.checked(true));
        assert!(endpoint.is_available(now));
    }

    #[test]
    fn a_check_that_fails_ejects_nobody_by_itself() {
        let (endpoint, now) = (endpoint(), Instant::now());
        endpoint.hold_out(now + Duration::from_secs(60));
        assert!(endpoint.is_available(now));
    }
}
