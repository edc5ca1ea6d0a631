use super::*;

const SECOND: Rate = Rate { requests: 10, per: Duration::from_secs(1), burst: 20 };
const DAY: Rate = Rate { requests: 50, per: Duration::from_hours(24), burst: 50 };

fn windows(rates: &[Rate], in_flight: Option<u32>) -> Plan {
    Plan { name: "p".into(), rates: rates.to_vec(), in_flight, ..Plan::default() }
}

/// How many of `asked` requests pass.
fn admitted(limits: &Limits, key: &str, asked: u32) -> u32 {
    (0..asked).map(|_| u32::from(admit(limits, key, false).is_ok())).sum()
}

#[tokio::test(start_paused = true)]
async fn every_window_of_a_plan_holds_at_once_and_the_one_that_refuses_is_named() {
    let metrics = Metrics::new();
    let limits = limits(windows(&[SECOND, DAY], None), &metrics);
    assert_eq!(admitted(&limits, "a", 30), 20);
    let refused = refusal(&limits, "a");
    assert_eq!((&*refused.name, refused.limit, refused.retry_after), ("rate_1s", 20, Duration::from_millis(100)));
    advance(Duration::from_secs(2)).await;
    assert_eq!(admitted(&limits, "a", 30), 20);
    advance(Duration::from_secs(2)).await;
    assert_eq!(admitted(&limits, "a", 30), 10, "50 a day");
    let refused = refusal(&limits, "a");
    assert_eq!((&*refused.name, refused.limit), ("rate_1d", 50));
    assert!(refused.retry_after > Duration::from_mins(28));
    assert_eq!((refusals(&metrics, "a", "rate_1s"), refusals(&metrics, "a", "rate_1d")), (21, 21));
    assert_eq!(metrics.key("a").admitted().get(), 50);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_counted_when_any_window_refuses() {
    for rates in [[SECOND, DAY], [DAY, SECOND]] {
        let limits = limits(windows(&rates, Some(100)), &Metrics::new());
        assert_eq!(admitted(&limits, "a", 20), 20);
        advance(Duration::from_secs(10)).await;
        // the second is whole again, and what the day refuses is not counted there
        let day = Rate { requests: 1, per: Duration::from_hours(24), burst: 1 };
        let spent = Limits::new(&[windows(&[SECOND, day], Some(100))], &[key("a", "p")], &Metrics::new(), None);
        assert_eq!(admitted(&spent, "a", 1000), 1);
        let after = Limits::new(&[windows(&[SECOND], Some(100))], &[key("a", "p")], &Metrics::new(), Some(&spent));
        assert_eq!(admitted(&after, "a", 1000), 19);
        // nor what the second refuses in the day
        assert_eq!(admitted(&limits, "a", 1000), 20);
        advance(Duration::from_secs(10)).await;
        assert_eq!(admitted(&limits, "a", 1000), 10);
        assert_eq!(limits.in_flight("a"), 0);
    }
}

#[test]
fn exactly_what_the_tightest_window_gives_is_admitted_however_many_ask_at_once() {
    let hour = Rate { requests: 100, per: Duration::from_hours(1), burst: 100 };
    let wide = Rate { requests: 300, per: Duration::from_hours(24), burst: 120 };
    let limits = limits(windows(&[wide, hour], None), &Metrics::new());
    let total = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| total.fetch_add(admitted(&limits, "a", 100), Ordering::Relaxed));
        }
    });
    assert_eq!(total.into_inner(), 100);
}

#[test]
fn a_flood_is_turned_away_before_its_windows_are_asked() {
    let metrics = Metrics::new();
    let limits = limits(windows(&[Rate { burst: 3, ..ONE }], Some(3)), &metrics);
    let held: Vec<_> = (0..3).map(|_| admit(&limits, "a", false).unwrap()).collect();
    // the windows would say first that there is no place
    let refused = refusal(&limits, "a");
    assert_eq!((refused.window, &*refused.name, refused.limit), (Window::Rate, "rate_1d", 3));
    assert!(refused.retry_after > Duration::from_hours(23));
    assert_eq!((refusals(&metrics, "a", "rate_1d"), refusals(&metrics, "a", "in_flight")), (1, 0));
    assert!(admit(&limits, "b", false).is_ok(), "each has its own");
    drop(held);
}

#[test]
fn what_the_windows_would_let_pass_is_never_turned_away() {
    let limits = limits(windows(&[Rate { burst: 5, ..ONE }], Some(1)), &Metrics::new());
    let held = admit(&limits, "a", false).unwrap();
    // many more than the ceiling has room for, and none of them passes
    for _ in 0..100 {
        assert_eq!(refusal(&limits, "a").window, Window::InFlight);
    }
    drop(held);
    assert_eq!(admitted(&limits, "a", 100), 4);
}

#[tokio::test(start_paused = true)]
async fn a_window_that_is_looked_at_says_what_it_would_if_it_were_asked() {
    for rate in [SECOND, ONE, PLENTY] {
        let (limit, cell) = (RateLimit::new(rate), Cell::default());
        for step in 0..200 {
            let seen = limit.has_spent(&cell);
            assert_eq!(limit.spend(&cell, ALONE).err(), seen, "{rate:?}, step {step}");
            advance(Duration::from_millis(step % 130)).await;
        }
    }
}

#[test]
fn the_ceiling_forgets_whoever_has_as_much_as_a_new_one() {
    for (rate, kept) in [(ONE, 2), (Rate { requests: 1, per: Duration::from_nanos(1), burst: 1 }, 0)] {
        let ceiling = Ceiling::new(Quota::of(rate));
        assert!(ceiling.has_room(&[1; 16]) && ceiling.has_room(&[2; 16]));
        assert_eq!(ceiling.len(), 2);
        std::thread::yield_now();
        ceiling.forget_idle();
        assert_eq!(ceiling.len(), kept, "{rate:?}");
    }
}

#[test]
fn a_plan_in_shadow_refuses_nothing_and_tells_what_it_would_have() {
    let metrics = Metrics::new();
    let plan = Plan { mode: Mode::Shadow, ..windows(&[Rate { burst: 3, ..ONE }], Some(2)) };
    let limits = limits(plan, &metrics);
    assert_eq!(admitted(&limits, "a", 10), 10);
    let held: Vec<_> = (0..5).map(|_| admit(&limits, "a", false).unwrap()).collect();
    assert_eq!(limits.in_flight("a"), 5);
    let shadowed = |window| metrics.key("a").decided(window, Decision::Shadowed).get();
    assert_eq!((shadowed("rate_1d"), shadowed("in_flight")), (9, 3));
    assert_eq!((refusals(&metrics, "a", "rate_1d"), refusals(&metrics, "a", "in_flight")), (0, 0));
    assert_eq!(metrics.key("a").admitted().get(), 15);
    drop(held);
    assert_eq!(limits.in_flight("a"), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_every_window_is_told() {
    let limits = limits(windows(&[SECOND, DAY], Some(8)), &Metrics::new());
    let (_seat, told) = admit(&limits, "a", false).unwrap();
    let mut headers = http::HeaderMap::new();
    told.unwrap().tell(&mut headers);
    let policy = "\"rate_1s\";q=20;w=2, \"rate_1d\";q=50;w=86400, \"in_flight\";q=8;qu=\"concurrent-requests\"";
    assert_eq!(headers["ratelimit-policy"], policy);
    assert_eq!(headers["ratelimit"], "\"rate_1s\";r=19;t=1, \"rate_1d\";r=49;t=1728, \"in_flight\";r=7");
    // of the one of which the least is left
    assert_eq!(
        (&headers["x-ratelimit-limit"], &headers["x-ratelimit-remaining"]),
        (&"20".parse().unwrap(), &"19".parse().unwrap())
    );
    assert_eq!(refused_policy(), policy);

    fn refused_policy() -> http::HeaderValue {
        let limits = super::limits(windows(&[SECOND, DAY], Some(8)), &Metrics::new());
        let _held: Vec<_> = (0..8).map(|_| admit(&limits, "a", false).unwrap()).collect();
        refusal(&limits, "a").policy
    }
}
