//! Answers shared through a real Redis, and a Redis in trouble: nobody's request depends on it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::failover::all_are_up;
use crate::redis_server::RedisServer;
use crate::support::{AGENT, Answer, PATIENCE, Proxy, Replica, gateway, json, letta_answer};

const HELLO: &str = "{\"input\":\"hello\"}";
const UP: &str = "letta_gateway_redis_up{link=\"values\"}";
const UNAVAILABLE: &str = "letta-gateway; fwd=miss; detail=store-unavailable";

async fn counting() -> Replica {
    let count = AtomicUsize::new(0);
    Replica::start(move |_| json(letta_answer(&format!("answer {}", count.fetch_add(1, Ordering::Relaxed))))).await
}

/// `timeout` is the budget of one command.
fn cache(server: &RedisServer, timeout: &str) -> String {
    format!("cache: {{ agents: [\"*\"] }}\nstore: {{ redis: {{ url: \"{}\", timeout: {timeout} }} }}", server.url())
}

async fn say(proxy: &Proxy, body: &str) -> Answer {
    proxy.post(&format!("/v1/agents/{AGENT}/messages"), body).await
}

fn status(answer: &Answer) -> &str {
    answer.header("cache-status").unwrap_or("no Cache-Status")
}

/// Asks until an answer comes from the cache. Nobody waits for what is kept in Redis, the client neither.
async fn hit(proxy: &Proxy) -> Answer {
    let asking = async {
        loop {
            let answer = say(proxy, HELLO).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            if status(&answer).starts_with("letta-gateway; hit; ttl=") {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("an answer is kept")
}

async fn readiness(proxy: &Proxy) -> (u16, serde_json::Value) {
    let ready = proxy.admin("/readyz").await;
    (ready.status, ready.json())
}

#[tokio::test]
async fn gateways_on_one_redis_share_their_answers() {
    let server = RedisServer::start();
    let (a, b) = (counting().await, Replica::start(|_| json(letta_answer("never asked"))).await);
    let one = gateway(&[&a], &cache(&server, "5s")).await;
    let other = gateway(&[&b], &cache(&server, "5s")).await;
    one.metric_is(UP, 1.0).await;
    other.metric_is(UP, 1.0).await;
    let kept = hit(&one).await;
    let asked = a.count();
    let shared = say(&other, HELLO).await;
    assert!(status(&shared).starts_with("letta-gateway; hit; ttl="), "{shared:?}");
    assert_eq!((&shared.body, shared.header("content-type")), (&kept.body, Some("application/json")));
    assert!(shared.header("age").is_some());
    assert_eq!((a.count(), b.count()), (asked, 0));
    all_are_up(std::slice::from_ref(&one)).await;
    let (code, ready) = readiness(&one).await;
    assert_eq!((code, &ready["status"], &ready["store"]["state"]), (200, &"ready".into(), &"ok".into()));
}

#[tokio::test]
async fn without_redis_answers_are_kept_in_this_process() {
    let a = counting().await;
    let proxy = gateway(&[&a], "cache: { agents: [\"*\"] }").await;
    hit(&proxy).await;
    let (code, ready) = readiness(&proxy).await;
    assert_eq!((code, &ready["status"], &ready["store"]["state"]), (200, &"ready".into(), &"in_process".into()));
}

#[tokio::test]
async fn requests_go_on_while_redis_is_gone_and_it_is_used_again_when_it_is_back() {
    let mut server = RedisServer::start();
    let a = counting().await;
    let proxy = gateway(&[&a], &cache(&server, "5s")).await;
    proxy.metric_is(UP, 1.0).await;
    hit(&proxy).await;
    let before = a.count();
    server.kill();
    for _ in 0..5 {
        let answer = say(&proxy, HELLO).await;
        assert_eq!((answer.status, status(&answer)), (200, UNAVAILABLE));
    }
    assert_eq!(a.count(), before + 5);
    proxy.metric_is(UP, 0.0).await;
    let (code, ready) = readiness(&proxy).await;
    assert_eq!((code, &ready["status"]), (200, &"degraded".into()), "it still answers requests");
    assert_eq!(ready["store"]["state"], "degraded");
    assert!(ready["store"]["problem"].as_str().unwrap().contains("redis"), "{ready}");
    assert!(proxy.metric("letta_gateway_redis_errors_total{reason=\"refused\"}").await >= 4.0);
    assert_eq!(proxy.log(before + 5).await[before + 4]["cache"], "unavailable");

    server.restart();
    proxy.metric_is(UP, 1.0).await;
    hit(&proxy).await;
    all_are_up(std::slice::from_ref(&proxy)).await;
    assert_eq!(readiness(&proxy).await.1["status"], "ready");
}

#[tokio::test]
async fn a_redis_without_memory_is_one_that_is_gone_and_not_one_that_is_well() {
    let server = RedisServer::start();
    let a = counting().await;
    let proxy = gateway(&[&a], &cache(&server, "5s")).await;
    all_are_up(std::slice::from_ref(&proxy)).await;
    hit(&proxy).await;
    assert_eq!(server.ask(&["CONFIG", "SET", "maxmemory", "1"]).trim(), "OK");
    proxy.metric_is(UP, 0.0).await;
    let (code, ready) = readiness(&proxy).await;
    assert_eq!((code, &ready["status"], &ready["store"]["state"]), (200, &"degraded".into(), &"degraded".into()));
    assert_eq!(say(&proxy, HELLO).await.status, 200);
    assert_eq!(server.ask(&["EXISTS", "letta-gateway:probe"]).trim(), "0", "asking leaves nothing behind");

    assert_eq!(server.ask(&["CONFIG", "SET", "maxmemory", "0"]).trim(), "OK");
    all_are_up(std::slice::from_ref(&proxy)).await;
    assert_eq!(readiness(&proxy).await.1["status"], "ready");
}

#[tokio::test]
async fn a_redis_that_hangs_costs_a_few_requests_their_budget_and_then_none() {
    let server = RedisServer::start();
    let a = counting().await;
    let proxy = gateway(&[&a], &cache(&server, "100ms")).await;
    proxy.metric_is(UP, 1.0).await;
    hit(&proxy).await;
    server.hang();
    for _ in 0..30 {
        let answer = say(&proxy, HELLO).await;
        assert_eq!((answer.status, status(&answer)), (200, UNAVAILABLE));
    }
    let timeouts = proxy.metric("letta_gateway_redis_errors_total{reason=\"timeout\"}").await;
    // at each of three connections, those of answers, turns and limits
    assert!((1.0..=15.0).contains(&timeouts), "{timeouts} commands of 30 requests waited for a Redis that hangs");
    assert_eq!(proxy.metric(UP).await, 0.0);
    let (code, ready) = readiness(&proxy).await;
    assert_eq!((code, &ready["status"], &ready["store"]["state"]), (200, &"degraded".into(), &"degraded".into()));
    // routes that have nothing to do with it never met it
    assert_eq!(proxy.get(&format!("/v1/agents/{AGENT}")).await.status, 200);

    server.wake();
    proxy.metric_is(UP, 1.0).await;
    hit(&proxy).await;
    all_are_up(std::slice::from_ref(&proxy)).await;
    assert_eq!(readiness(&proxy).await.1["status"], "ready");
}

#[tokio::test]
async fn a_gateway_starts_without_its_redis() {
    let mut server = RedisServer::start();
    server.kill();
    let a = counting().await;
    let proxy = gateway(&[&a], &cache(&server, "5s")).await;
    let answer = say(&proxy, HELLO).await;
    assert_eq!((answer.status, status(&answer)), (200, UNAVAILABLE));
    let (code, ready) = readiness(&proxy).await;
    assert_eq!((code, &ready["status"]), (200, &"degraded".into()));
    server.restart();
    hit(&proxy).await;
}
