//! Limits over all gateways on one real Redis: exact while it is there, and what each `on_error` promises when it is not.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::future::join_all;

use crate::redis_server::RedisServer;
use crate::support::{AGENT, Answer, Proxy, Replica, Reply, gateway, json, until};

pub(crate) const GATEWAYS: usize = 4;
pub(crate) const CLIENTS: usize = 16;

pub(crate) fn agent() -> String {
    format!("/v1/agents/{AGENT}")
}

/// `limits` counted in `server`; `store` is what stands beside its URL.
fn yaml(server: &RedisServer, limits: &str, redis: &str, store: &str) -> String {
    let url = server.url();
    format!("plans:\n  standard: {{ {limits} }}\nstore: {{ redis: {{ url: \"{url}\", {redis} }}, {store} }}\n")
}

/// Four gateways in front of `replica`, each of which knows of all.
pub(crate) async fn fleet(replica: &Replica, yaml: &str) -> Vec<Proxy> {
    let mut fleet = Vec::new();
    for _ in 0..GATEWAYS {
        fleet.push(gateway(&[replica], yaml).await);
    }
    for proxy in &fleet {
        proxy.metric_is("letta_gateway_limit_gateways", GATEWAYS as f64).await;
    }
    fleet
}

/// How many of the requests of 16 clients are admitted, each asking `times` at one gateway after the other; the others
/// are refused with `refusal`.
pub(crate) async fn hammer(fleet: &[Proxy], times: usize, refusal: &[u16]) -> usize {
    let path = agent();
    let admitted = AtomicUsize::new(0);
    join_all((0..CLIENTS).map(|client| {
        let (path, admitted) = (&path, &admitted);
        async move {
            for request in 0..times {
                let answer = fleet[(client + request) % fleet.len()].get(path).await;
                if answer.status == 200 {
                    admitted.fetch_add(1, Ordering::Relaxed);
                } else {
                    assert!(refusal.contains(&answer.status), "{answer:?}");
                }
            }
        }
    }))
    .await;
    admitted.into_inner()
}

pub(crate) async fn without_store(fleet: &[Proxy], how: &str) -> f64 {
    let series = format!("letta_gateway_limit_without_store_total{{how=\"{how}\"}}");
    let mut sum = 0.0;
    for proxy in fleet {
        sum += proxy.metric(&series).await;
    }
    sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn four_gateways_admit_a_rate_and_a_day_exactly_ten_times_out_of_ten() {
    let server = RedisServer::start();
    for round in 0..10 {
        let a = Replica::start(|_| json("{}")).await;
        let redis = format!("timeout: 10s, prefix: \"round-{round}:\"");
        let limits = "rate: [{ requests: 1, per: 1h, burst: 60 }, { requests: 300, per: 1d }]";
        let proxies = fleet(&a, &yaml(&server, limits, &redis, "on_error: deny")).await;
        assert_eq!(hammer(&proxies, 12, &[429]).await, 60, "round {round}: a rate");
        assert_eq!(a.count(), 60);
        // gateways of their own, counted apart
        let redis = format!("timeout: 10s, prefix: \"day-{round}:\"");
        let limits = "rate: [{ requests: 10000, per: 1s }, { requests: 100, per: 1d }]";
        let proxies = fleet(&a, &yaml(&server, limits, &redis, "on_error: deny")).await;
        assert_eq!(hammer(&proxies, 12, &[429]).await, 100, "round {round}: a day");
        assert_eq!(a.count(), 160);
        assert_eq!(without_store(&proxies, "deny").await, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn four_gateways_let_exactly_so_many_be_in_flight_ten_times_out_of_ten() {
    let server = RedisServer::start();
    for round in 0..10 {
        let a = Replica::start(|_| Reply::Hang).await;
        let redis = format!("timeout: 10s, prefix: \"round-{round}:\"");
        let proxies = fleet(&a, &yaml(&server, "in_flight: 9", &redis, "on_error: deny")).await;
        let path = agent();
        let refused = AtomicUsize::new(0);
        let all = join_all((0..CLIENTS).map(|client| {
            let (proxies, path, refused) = (&proxies, &path, &refused);
            async move {
                // whoever is admitted hangs
                for request in 0.. {
                    let answer = proxies[(client + request) % GATEWAYS].get(path).await;
                    assert_eq!((answer.status, &answer.json()["error"]["window"]), (429, &"in_flight".into()));
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        }));
        let seen = async {
            a.waits_for(9).await;
            let before = refused.load(Ordering::Relaxed);
            until("the others go on asking", || refused.load(Ordering::Relaxed) > before + 100).await;
            // before the clients leave, which frees their places
            a.count()
        };
        let count = tokio::select! {
            _ = all => unreachable!("they ask for ever"),
            count = seen => count,
        };
        assert_eq!(count, 9, "round {round}");
    }
}

#[tokio::test]
async fn a_place_is_held_over_all_gateways_until_the_last_byte() {
    let server = RedisServer::start();
    let (a, mut feeds) = crate::support::streaming().await;
    let proxies = fleet(&a, &yaml(&server, "in_flight: 1", "timeout: 10s", "on_error: deny")).await;
    let [one, other, ..] = &proxies[..] else { unreachable!() };
    let path = format!("{}/messages/stream", agent());
    let stream = one.open(one.request("POST", &path).body(Bytes::from("{\"input\":\"x\"}")).unwrap()).await;
    let feed = feeds.recv().await.unwrap();
    for _ in 0..3 {
        assert_eq!(other.get(&agent()).await.json()["error"]["window"], "in_flight");
    }
    feed.send(Some(Bytes::from("data: [DONE]\n\n"))).await.unwrap();
    assert_eq!(other.get(&agent()).await.status, 429);
    drop(feed);
    Answer::of(stream).await;
    let asking = async {
        while other.get(&agent()).await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, asking).await.expect("the place comes free");
    assert_eq!(a.count(), 2);
}

/// Gateways that have all seen the same, with 120 of 200 left.
async fn eighty_spent(a: &Replica, server: &RedisServer, on_error: &str) -> Vec<Proxy> {
    let limits = "rate: { requests: 1, per: 1h, burst: 200 }";
    let proxies = fleet(a, &yaml(server, limits, "timeout: 10s", on_error)).await;
    for request in 0..80 {
        assert_eq!(proxies[request % GATEWAYS].get(&agent()).await.status, 200);
    }
    proxies
}

#[tokio::test]
async fn without_redis_each_gateway_gives_its_share_of_what_is_left() {
    let mut server = RedisServer::start();
    let a = Replica::start(|_| json("{}")).await;
    let proxies = eighty_spent(&a, &server, "on_error: local").await;
    server.kill();
    let admitted = hammer(&proxies, 40, &[429]).await;
    // 120 were left, and the four last saw 120, 121, 122 and 123 of them
    assert!((116..=123).contains(&admitted), "{admitted}");
    assert_eq!(a.count(), 80 + admitted);
    assert!(without_store(&proxies, "local").await > 600.0);
    let ready = proxies[0].admin("/readyz").await;
    assert_eq!((ready.status, &ready.json()["status"]), (200, &"degraded".into()));
    assert!(ready.json()["store"]["problem"].as_str().unwrap().contains("limits"), "{}", ready.text());

    // no gateway needs a restart
    server.restart();
    for proxy in &proxies {
        proxy.metric_is("letta_gateway_redis_up{link=\"limits\"}", 1.0).await;
    }
    let shared = async {
        for proxy in &proxies {
            loop {
                let before = without_store(std::slice::from_ref(proxy), "local").await;
                proxy.get(&agent()).await;
                if without_store(std::slice::from_ref(proxy), "local").await == before {
                    break;
                }
            }
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, shared).await.expect("Redis is asked again");
    // it is empty, and still nobody gets more than there was
    hammer(&proxies, 20, &[429]).await;
    assert!((194..=203).contains(&a.count()), "{}", a.count());
}

#[tokio::test]
async fn a_redis_that_is_paused_and_woken_is_told_what_passed_without_it() {
    let server = RedisServer::start();
    let a = Replica::start(|_| json("{}")).await;
    let limits = "rate: { requests: 1, per: 1h, burst: 200 }";
    let proxies = fleet(&a, &yaml(&server, limits, "timeout: 500ms", "on_error: local")).await;
    for request in 0..80 {
        assert_eq!(proxies[request % GATEWAYS].get(&agent()).await.status, 200);
    }
    server.hang();
    // one of the four is asked alone, and gives its own share
    let admitted = hammer(&proxies[..1], 10, &[429]).await;
    assert!((28..=33).contains(&admitted), "{admitted}");
    server.wake();
    for proxy in &proxies {
        proxy.metric_is("letta_gateway_redis_up{link=\"limits\"}", 1.0).await;
    }
    // Its own share is spent: what it lets pass now it has asked Redis for, and told it what it gave meanwhile. Before that
    // the others would be given it, too.
    let told = async { while proxies[0].get(&agent()).await.status != 200 {} };
    tokio::time::timeout(crate::support::PATIENCE, told).await.expect("Redis is asked again");
    let all = async {
        // those that were under way when it hung were counted when it woke
        while a.count() < 160 {
            hammer(&proxies, 4, &[429]).await;
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, all).await.expect("the others' shares are given, too");
    hammer(&proxies, 20, &[429]).await;
    assert!(a.count() <= 203, "{}", a.count());
}

#[tokio::test]
async fn without_redis_a_gateway_that_is_to_deny_refuses_and_one_that_is_to_allow_holds_to_the_whole_limit() {
    let mut server = RedisServer::start();
    let a = Replica::start(|_| json("{}")).await;
    let denies = eighty_spent(&a, &server, "on_error: deny").await;
    let mut other = RedisServer::start();
    let b = Replica::start(|_| json("{}")).await;
    let allows = eighty_spent(&b, &other, "on_error: allow").await;
    server.kill();
    other.kill();
    assert_eq!(hammer(&denies, 5, &[503]).await, 0);
    let refused = denies[0].get(&agent()).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(refused.json()["error"]["type"], "gateway_limits_unknown");
    assert_eq!(a.count(), 80, "Letta has seen none of them");
    assert!(without_store(&denies, "deny").await >= 80.0);
    let admitted = hammer(&allows, 40, &[429]).await;
    assert!((480..=486).contains(&admitted), "{admitted}: four times what was left");
}

#[tokio::test]
async fn a_redis_that_hangs_holds_a_few_requests_for_the_budget_and_then_none() {
    let server = RedisServer::start();
    let a = Replica::start(|_| json("{}")).await;
    let limits = "rate: { requests: 1000000, per: 1s }, in_flight: 1000";
    let proxy = gateway(&[&a], &yaml(&server, limits, "timeout: 50ms", "on_error: local")).await;
    proxy.metric_is("letta_gateway_limit_gateways", 1.0).await;
    assert_eq!(proxy.get(&agent()).await.status, 200);
    server.hang();
    for _ in 0..60 {
        assert_eq!(proxy.get(&agent()).await.status, 200);
    }
    // three waits open the breaker of each of the three connections, and a probe may wait beside them
    let timeouts = proxy.metric("letta_gateway_redis_errors_total{reason=\"timeout\"}").await;
    assert!((3.0..=12.0).contains(&timeouts), "{timeouts}");
    assert!(without_store(std::slice::from_ref(&proxy), "local").await >= 60.0);
    server.wake();
    let back = async {
        loop {
            let before = without_store(std::slice::from_ref(&proxy), "local").await;
            assert_eq!(proxy.get(&agent()).await.status, 200);
            if without_store(std::slice::from_ref(&proxy), "local").await == before {
                break;
            }
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, back).await.expect("Redis is asked again");
}
