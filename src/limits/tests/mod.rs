mod budgets;
mod scopes;
mod windows;

use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use tokio::time::advance;

use super::account::{ALONE, Asking};
use super::ceiling::Ceiling;
use super::fields::Told;
use super::rate::{Cell, Left, Quota, RateLimit};
use super::*;
use crate::auth::key;
use crate::body::Body;
use crate::error::{Error, Refusal, Window};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Decision;

const READ: Asking = Asking { may_repeat: false, starts_turn: false };
const PLENTY: Rate = Rate { requests: 60, per: Duration::from_secs(60), burst: 20 };
/// One request, and none back for a day.
const ONE: Rate = Rate { requests: 1, per: Duration::from_hours(24), burst: 1 };

fn plan(name: &str, rate: impl Into<Option<Rate>>, in_flight: impl Into<Option<u32>>) -> Plan {
    Plan { name: name.into(), rates: rate.into().into_iter().collect(), in_flight: in_flight.into(), ..Plan::default() }
}

fn key(id: &str, plan: &str) -> key::Settings {
    key::Settings::new(id, [0; 32], plan, &[])
}

fn limits(plan: Plan, metrics: &Metrics) -> Limits {
    let keys = [key("a", &plan.name), key("b", &plan.name)];
    Limits::new(&[plan], &keys, metrics, None)
}

/// The output of a future that waits for nothing.
fn now<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(output) => output,
        std::task::Poll::Pending => panic!("it waits"),
    }
}

fn admit(limits: &Limits, key: &str, may_repeat: bool) -> Result<(Seat, Option<Told>), Error> {
    now(limits.admit(key, None, Asking { may_repeat, starts_turn: false }))
}

fn refusal(limits: &Limits, key: &str) -> Box<Refusal> {
    match admit(limits, key, false) {
        Err(Error::Limited(refusal)) => refusal,
        Err(other) => panic!("not refused: {other:?}"),
        Ok(_) => panic!("not refused"),
    }
}

/// How often the window refused the key's requests.
fn refusals(metrics: &Metrics, key: &str, window: &str) -> u64 {
    metrics.key(key).decided(window, Decision::Refused).get()
}

#[tokio::test(start_paused = true)]
async fn a_burst_passes_at_once_and_then_one_request_each_period() {
    let quota = Quota::of(PLENTY);
    assert_eq!((quota.period, quota.burst.get()), (Duration::from_secs(1), 20));
    let (limit, cell) = (RateLimit::new(PLENTY), Cell::default());
    for spent in 1..=20 {
        let left = limit.spend(&cell, ALONE).unwrap();
        assert_eq!(left, Left { limit: 20, remaining: 20 - spent, reset: Duration::from_secs(spent.into()) });
    }
    advance(Duration::from_millis(400)).await;
    let refused = limit.spend(&cell, ALONE).unwrap_err();
    assert_eq!(refused.retry_after, Duration::from_millis(600));
    assert_eq!(refused.reset, Duration::from_millis(19_600));
    advance(refused.retry_after).await;
    assert_eq!(limit.spend(&cell, ALONE).unwrap().remaining, 0);
    assert!(limit.spend(&cell, ALONE).is_err());
    advance(Duration::from_secs(60)).await;
    assert_eq!(limit.spend(&cell, ALONE).unwrap().remaining, 19);
}

#[test]
fn any_rate_makes_a_limiter() {
    for requests in [0, 1, u32::MAX] {
        for per in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            for burst in [0, 1, u32::MAX] {
                let limits = limits(plan("p", Rate { requests, per, burst }, None), &Metrics::new());
                assert!(admit(&limits, "a", false).is_ok(), "{requests} per {per:?}, {burst} at once");
                let _ = admit(&limits, "a", false);
            }
        }
    }
}

#[test]
fn exactly_the_burst_is_admitted_however_many_ask_at_once() {
    let metrics = Metrics::new();
    let rate = Rate { requests: 1, per: Duration::from_hours(24), burst: 100 };
    let limits = limits(plan("p", rate, None), &metrics);
    let admitted = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..100 {
                    admitted.fetch_add(u32::from(admit(&limits, "a", false).is_ok()), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(admitted.into_inner(), 100);
    assert_eq!(metrics.key("a").admitted().get(), 100);
    assert_eq!(refusals(&metrics, "a", "rate_1d"), 700);
}

#[test]
fn never_more_in_flight_than_the_plan_says_however_many_ask_at_once() {
    let limits = limits(plan("p", None, 8), &Metrics::new());
    let most = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..200 {
                    if let Ok(_admission) = admit(&limits, "a", false) {
                        most.fetch_max(limits.in_flight("a"), Ordering::Relaxed);
                        std::thread::yield_now();
                    }
                }
            });
        }
    });
    assert!((1..=8).contains(&most.into_inner()));
    assert_eq!(limits.in_flight("a"), 0);
}

#[test]
fn a_refusal_by_one_limit_does_not_spend_the_other() {
    let metrics = Metrics::new();
    let rate = Rate { burst: 2, ..ONE };
    let limits = limits(plan("p", rate, 1), &metrics);
    let first = admit(&limits, "a", false).unwrap();
    for _ in 0..10 {
        let refused = refusal(&limits, "a");
        assert_eq!((refused.window, refused.limit), (Window::InFlight, 1));
        assert!(refused.retry_after >= Duration::from_secs(1));
    }
    drop(first);
    // the ten spent nothing of the burst
    drop(admit(&limits, "a", false).unwrap());
    assert_eq!(refusal(&limits, "a").window, Window::Rate);
    // and that one holds no place
    assert_eq!(limits.in_flight("a"), 0);
    assert_eq!(refusals(&metrics, "a", "in_flight"), 10);
    assert_eq!(refusals(&metrics, "a", "rate_1d"), 1);
}

#[test]
fn one_key_does_not_spend_what_is_anothers() {
    let limits = limits(plan("p", ONE, 1), &Metrics::new());
    let _held = admit(&limits, "a", false).unwrap();
    assert!(admit(&limits, "a", false).is_err());
    assert!(admit(&limits, "b", false).is_ok());
}

#[test]
fn a_plan_without_limits_refuses_nothing_but_counts() {
    let limits = limits(plan("p", None, None), &Metrics::new());
    let held: Vec<_> = (0..1000).map(|_| admit(&limits, "a", false).unwrap()).collect();
    assert!(held.iter().all(|(_, left)| left.is_none()));
    assert_eq!(limits.in_flight("a"), 1000);
}

#[test]
fn a_key_without_a_plan_does_not_pass() {
    let limits = Limits::new(&[], &[key("a", "gone")], &Metrics::new(), None);
    assert!(matches!(admit(&limits, "a", false), Err(Error::Internal(_))));
}

#[tokio::test]
async fn a_place_is_held_until_the_last_byte_of_the_stream() {
    let metrics = Metrics::new();
    let limits = limits(plan("p", None, 1), &metrics);
    let (frames, body) = stream();
    let admission = admit(&limits, "a", false).unwrap();
    let mut body = Body::stream(body).holding(admission.0.take().unwrap());
    let gauge = metrics.key("a").in_flight().clone();

    frames.send("first").unwrap();
    assert_eq!(next(&mut body).await.unwrap(), "first");
    assert!(admit(&limits, "a", false).is_err());
    assert_eq!(gauge.get(), 1);
    drop(frames);
    assert!(next(&mut body).await.is_none());
    assert_eq!((limits.in_flight("a"), gauge.get()), (0, 0));
    assert!(admit(&limits, "a", false).is_ok());
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_place_back() {
    let limits = limits(plan("p", None, 1), &Metrics::new());
    let (_frames, body) = stream();
    let body = Body::stream(body).holding(admit(&limits, "a", false).unwrap().0.take().unwrap());
    assert!(admit(&limits, "a", false).is_err());
    drop(body);
    assert!(admit(&limits, "a", false).is_ok());
}

#[test]
fn a_reload_keeps_what_was_spent_and_who_is_in_flight() {
    let metrics = Metrics::new();
    let before = limits(plan("p", ONE, 2), &metrics);
    let held = admit(&before, "a", false).unwrap();

    // the same rate under another name, one more key
    let keys = [key("a", "q"), key("b", "q"), key("c", "q")];
    let after = Limits::new(&[plan("q", ONE, 2)], &keys, &metrics, Some(&before));
    assert_eq!(refusal(&after, "a").window, Window::Rate);
    assert!(admit(&after, "b", false).is_ok() && admit(&after, "c", false).is_ok());

    // another rate starts anew; the request in flight is still counted
    let faster = Rate { requests: 2, ..ONE };
    let after = Limits::new(&[plan("q", faster, 1)], &keys, &metrics, Some(&after));
    assert_eq!(refusal(&after, "a").window, Window::InFlight);
    drop(held);
    assert!(admit(&after, "a", false).is_ok());
    assert_eq!(metrics.key("a").in_flight().get(), 0);
}

#[test]
fn requests_without_a_key_are_few_across_reloads_too() {
    let metrics = Metrics::new();
    let before = limits(plan("p", None, None), &metrics);
    let mut held: Vec<_> = (0..16).map(|_| before.admit_keyless().unwrap()).collect();
    let after = Limits::new(&[], &[], &metrics, Some(&before));
    assert!(matches!(after.admit_keyless(), Err(Error::KeylessFull { most: 16 })));
    assert!(admit(&before, "a", false).is_ok());
    held.pop();
    assert!(after.admit_keyless().is_ok());
}

/// A body fed by the test; it ends when the sender is dropped.
fn stream() -> (tokio::sync::mpsc::UnboundedSender<&'static str>, Fed) {
    let (frames, fed) = tokio::sync::mpsc::unbounded_channel();
    (frames, Fed(fed))
}

struct Fed(tokio::sync::mpsc::UnboundedReceiver<&'static str>);

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Error>>> {
        self.0.poll_recv(cx).map(|data| data.map(|data| Ok(http_body::Frame::data(data.into()))))
    }
}

impl crate::body::Stream for Fed {}

async fn next(body: &mut Body) -> Option<Bytes> {
    use http_body_util::BodyExt as _;
    body.frame().await.map(|frame| frame.unwrap().into_data().unwrap())
}

#[test]
fn a_repeat_goes_on_without_a_place_and_gets_none_that_is_not_there() {
    let metrics = Metrics::new();
    let limits = limits(plan("p", PLENTY, 1), &metrics);
    let (held, _) = admit(&limits, "a", true).unwrap();
    let held = held.take().unwrap();
    let (full, left) = admit(&limits, "a", true).unwrap();
    assert!(left.is_some(), "a repeat spends of the rate");
    assert_eq!(limits.in_flight("a"), 1);
    assert!(matches!(full.take(), Err(Error::Limited(refusal)) if refusal.window == Window::InFlight));
    drop(held);
    assert_eq!(limits.in_flight("a"), 0);
}
