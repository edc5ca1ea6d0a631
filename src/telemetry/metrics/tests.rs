//! What the metrics promise.

use std::collections::BTreeSet;
use std::net::IpAddr;

use http::{HeaderValue, Method, Version};
use tokio::time::Instant;

use super::*;
use crate::body::Watch;
use crate::error::Error;
use crate::telemetry::Record;
use crate::telemetry::access::AccessLog;
use crate::telemetry::record::Sink;

/// The samples of `family` as scraped, without its prefix.
fn scraped(metrics: &Metrics, family: &str) -> Vec<String> {
    let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
    let name = format!("letta_gateway_{family}");
    let samples = text.lines().filter_map(|line| line.strip_prefix(&name));
    samples.filter(|rest| rest.starts_with([' ', '{'])).map(str::to_owned).collect()
}

fn record(metrics: &Arc<Metrics>) -> Record {
    let sink = Sink::new(Arc::clone(metrics), AccessLog::off());
    Record::new(sink, HeaderValue::from_static("id"), IpAddr::from([127, 0, 0, 1]), Method::GET, Version::HTTP_11)
}

#[test]
fn names_follow_the_conventions_and_come_once() {
    let metrics = Metrics::new();
    metrics.error("client_left");
    metrics.key("k");
    metrics.upstream("u");
    let families = metrics.registry().gather();
    let names: BTreeSet<_> = families.iter().map(|family| family.name()).collect();
    assert_eq!(names.len(), families.len());
    for family in &families {
        let name = family.name();
        assert!(name.starts_with("letta_gateway_") || name.starts_with("process_"), "{name}");
        let counts = family.get_field_type() == prometheus::proto::MetricType::COUNTER;
        assert_eq!(counts, name.ends_with("_total"), "{name}");
        assert!(!family.help().is_empty(), "{name}");
    }
    assert!(names.contains("process_resident_memory_bytes"), "{names:?}");
}

#[test]
fn the_build_is_told() {
    let told = scraped(&Metrics::new(), "build_info");
    assert_eq!(told, [format!("{{revision=\"{COMMIT}\",version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"))]);
}

#[test]
fn histograms_reach_ten_minutes_and_fifty_microseconds() {
    let metrics = Metrics::new();
    for (family, least, most) in [("request_duration_seconds", "0.001", "600"), ("overhead_seconds", "0.00005", "0.1")]
    {
        let buckets = scraped(&metrics, &format!("{family}_bucket"));
        for le in [least, most, "+Inf"] {
            assert!(
                buckets.iter().any(|bucket| bucket.contains(&format!("le=\"{le}\""))),
                "{family} {le}: {buckets:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_is_counted_once_when_it_is_over_and_in_flight_until_then() {
    let metrics = Arc::new(Metrics::new());
    let mut first = record(&metrics);
    assert_eq!(metrics.in_flight.get(), 1);
    let start = Instant::now();
    let at = |millis| Some(start + Duration::from_millis(millis));
    (first.status, first.attempts) = (200, 1);
    (first.sent, first.answered, first.responded) = (at(1), at(11), at(13));
    first.key = Some(metrics.key("team-a"));
    first.upstream = Some(metrics.upstream("letta-1:8283"));
    first.response_bytes = 5;
    first.end(Ok(()));
    assert_eq!(scraped(&metrics, "key_requests_total").iter().filter(|line| !line.ends_with(" 0")).count(), 0);
    drop(first);
    assert_eq!((metrics.in_flight.get(), metrics.response_bytes.get()), (0, 5));
    assert!(scraped(&metrics, "requests_total").contains(&r#"{method="none",route="none",status="2xx"} 1"#.to_owned()));
    assert!(scraped(&metrics, "key_requests_total").contains(&r#"{key="team-a",status="2xx"} 1"#.to_owned()));
    assert_eq!(metrics.overhead.seen(), (1, 0.003));
    assert_eq!(metrics.upstream("letta-1:8283").response.seen().1, 0.01);
}

#[tokio::test(start_paused = true)]
async fn a_retried_request_does_not_count_its_failed_attempts_as_overhead() {
    let metrics = Arc::new(Metrics::new());
    let mut retried = record(&metrics);
    let start = Instant::now();
    retried.attempts = 2;
    retried.sent = Some(start + Duration::from_secs(5));
    retried.answered = retried.sent;
    retried.responded = retried.sent;
    drop(retried);
    assert_eq!(metrics.overhead.seen().0, 0);
}

#[test]
fn errors_are_counted_by_reason_and_a_client_that_left_has_no_status() {
    let metrics = Arc::new(Metrics::new());
    record(&metrics).failed(&Error::KeyMissing);
    drop(record(&metrics));
    assert_eq!(scraped(&metrics, "errors_total"), [r#"{reason="policy_key_missing"} 1"#]);
    assert!(
        scraped(&metrics, "requests_total").contains(&r#"{method="none",route="none",status="none"} 2"#.to_owned())
    );
}

#[test]
fn a_key_has_the_same_handles_until_a_reload_takes_it_away() {
    let metrics = Metrics::new();
    for id in ["a", "b"] {
        metrics.key(id).admitted().inc();
        metrics.upstream(id).ejections.inc();
    }
    assert_eq!(metrics.key("a").admitted().get(), 1);
    metrics.retain(|key| key == "a", |upstream| upstream == "a");
    let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
    assert!(!text.contains("=\"b\""), "{text}");
    assert_eq!((metrics.key("a").admitted().get(), metrics.upstream("a").ejections.get()), (1, 1));
    assert_eq!((metrics.key("b").admitted().get(), metrics.upstream("b").ejections.get()), (0, 0));
}

#[test]
fn a_key_has_no_series_until_it_is_used_and_then_all_of_them() {
    let metrics = Metrics::new();
    let keys: Vec<_> = (0..1000).map(|id| metrics.key(&format!("k{id}"))).collect();
    let told = |family| scraped(&metrics, family);
    let families = ["key_requests_total", "key_requests_in_flight", "limit_decisions_total", "budget_remaining"];
    assert_eq!(families.map(|family| told(family).len()), [0; 4]);
    keys[7].in_flight().inc();
    assert_eq!(families.map(|family| told(family).len()), [6, 1, 1, 0]);
    assert_eq!(told("key_requests_in_flight"), [r#"{key="k7"} 1"#]);
    assert_eq!(told("limit_decisions_total"), [r#"{key="k7",outcome="admitted",window="all"} 0"#]);
}

/// A request that was under way when a reload took its key away.
#[test]
fn a_key_that_is_used_after_a_reload_took_it_away_is_told_nowhere() {
    let metrics = Metrics::new();
    let (used, unused) = (metrics.key("used"), metrics.key("unused"));
    used.decided("rate_1m", Decision::Refused).inc();
    metrics.retain(|_| false, |_| true);
    for key in [used, unused] {
        key.in_flight().inc();
        key.admitted().inc();
        key.decided("rate_1h", Decision::Refused).inc();
        key.budget_remaining("tokens_1d", 1);
    }
    let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
    assert!(!text.contains("\"used\"") && !text.contains("\"unused\""), "{text}");
}

#[test]
fn a_renewed_certificate_replaces_the_old_one() {
    let metrics = Metrics::new();
    metrics.certificate_expiry("0.0.0.0:8443", "old.example", 1);
    metrics.certificate_expiry("0.0.0.0:9443", "other.example", 2);
    metrics.forget_certificates("0.0.0.0:8443");
    metrics.certificate_expiry("0.0.0.0:8443", "new.example", 1_795_489_519);
    let told = scraped(&metrics, "tls_certificate_expiry_timestamp_seconds");
    assert_eq!(
        told,
        [
            r#"{listener="0.0.0.0:8443",name="new.example"} 1795489519"#,
            r#"{listener="0.0.0.0:9443",name="other.example"} 2"#,
        ]
    );
}

#[test]
fn every_cache_result_has_a_counter_of_its_own() {
    let metrics = Metrics::new();
    for (times, result) in CacheResult::ALL.into_iter().enumerate() {
        (0..=times).for_each(|_| metrics.cache(result));
    }
    let told = scraped(&metrics, "cache_requests_total");
    assert_eq!(
        told,
        [r#"{result="bypass"} 3"#, r#"{result="hit"} 1"#, r#"{result="miss"} 2"#, r#"{result="unavailable"} 4"#,]
    );
}

#[test]
fn what_has_not_happened_yet_is_told_as_0() {
    let metrics = Metrics::new();
    for (name, series) in [
        ("config_reloads_total", 2),
        ("retries_total", 3),
        ("redis_errors_total", 4),
        ("limit_without_store_total", 3),
        ("lane_refusals_total", 2),
        ("conflicts_total", 3),
    ] {
        let told = scraped(&metrics, name);
        assert_eq!(told.len(), series, "{name}: {told:?}");
        assert!(told.iter().all(|line| line.ends_with(" 0")), "{name}: {told:?}");
    }
    metrics.retry("budget_spent");
    assert_eq!(scraped(&metrics, "retries_total").len(), 3, "a label that was not told as 0");
}

#[test]
fn only_a_configuration_that_is_in_use_counts_as_loaded() {
    let metrics = Metrics::new();
    assert!(metrics.config_loaded.get() > 1.7e9, "the one it began with");
    metrics.config_loaded.set(1.0);
    metrics.reload("error");
    assert_eq!(metrics.config_loaded.get(), 1.0);
    metrics.reload("ok");
    assert!(metrics.config_loaded.get() > 1.7e9);
    assert_eq!(scraped(&metrics, "config_reloads_total"), [r#"{result="error"} 1"#, r#"{result="ok"} 1"#]);
}
