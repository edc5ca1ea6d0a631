//! Redis that is more than one server: a master that Sentinels name, a cluster. Limits hold over both, no gateway needs a
//! restart, and no request waits for who is gone.

use std::collections::BTreeSet;

use crate::process::Process;
use crate::redis_server::RedisServer;
use crate::redis_server::cluster::Cluster;
use crate::redis_server::sentinel::Sentinel;
use crate::shared_limits::{CLIENTS, GATEWAYS, agent, fleet, hammer, without_store};
use crate::support::{Proxy, Replica, json, until, yaml};

const TIMEOUTS: &str = "letta_gateway_redis_errors_total{reason=\"timeout\"}";

fn store(url: &str, limits: &str, timeout: &str) -> String {
    format!("plans:\n  standard: {{ {limits} }}\nstore: {{ redis: {{ url: \"{url}\", timeout: {timeout} }} }}\n")
}

/// Waits until each of the three connections of each is there.
pub(crate) async fn all_are_up(proxies: &[Proxy]) {
    for proxy in proxies {
        for link in ["values", "turns", "limits"] {
            proxy.metric_is(&format!("letta_gateway_redis_up{{link=\"{link}\"}}"), 1.0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn four_gateways_on_a_cluster_admit_the_limit_exactly() {
    let cluster = Cluster::start();
    for round in 0..3 {
        let a = Replica::start(|_| json("{}")).await;
        let limits = "rate: [{ requests: 1, per: 1h, burst: 60 }, { requests: 300, per: 1d }], in_flight: 1000";
        let yaml = store(&cluster.url(), limits, &format!("10s, prefix: \"round-{round}:\""));
        let proxies = fleet(&a, &yaml).await;
        assert_eq!(hammer(&proxies, 12, &[429]).await, 60, "round {round}");
        assert_eq!(a.count(), 60);
        assert_eq!(without_store(&proxies, "local").await, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn after_a_failover_gateways_count_at_the_new_master_and_nobody_waited_for_the_old_one() {
    let mut redis = Sentinel::start();
    let a = Replica::start(|_| json("{}")).await;
    let proxies = fleet(&a, &store(&redis.url(""), "rate: { requests: 1, per: 1h, burst: 200 }", "10s")).await;
    for request in 0..80 {
        assert_eq!(proxies[request % GATEWAYS].get(&agent()).await.status, 200);
    }
    redis.servers[0].kill();
    // in the midst of it the master is gone, and each gateway has its share of what was left
    let admitted = hammer(&proxies, 4, &[429]).await;
    assert_eq!(a.count(), 80 + admitted);
    assert!(without_store(&proxies, "local").await > 0.0);
    redis.failed_over();
    all_are_up(&proxies).await;
    let before = without_store(&proxies, "local").await;
    // all that was left is given now, and no more
    hammer(&proxies, 20, &[429]).await;
    assert_eq!(without_store(&proxies, "local").await, before, "the new master counts");
    assert!((200 - CLIENTS..=200 + CLIENTS).contains(&a.count()), "{}", a.count());
    for proxy in &proxies {
        assert_eq!(proxy.metric(TIMEOUTS).await, 0.0, "nobody waited");
    }
}

#[tokio::test]
async fn what_is_lost_and_found_is_told_by_connection_and_server_without_a_password() {
    let mut server = RedisServer::start_with(&["--requirepass", "sesame"]);
    let url = format!("redis://:sesame@{}/0", server.address());
    let more = store(&url, "in_flight: 8", "5s");
    let process = Process::start(&yaml("    servers: [ { url: http://127.0.0.1:1 } ]", &more)).await;
    let address = server.address();
    let told = |message: &str| -> BTreeSet<String> {
        let said = process.said();
        let lines = said.iter().filter(|line| line["message"] == message && line["server"] == address.as_str());
        lines.filter_map(|line| line["link"].as_str()).map(String::from).collect()
    };
    let all = ["values", "turns", "limits"].map(String::from).into();
    until("all are found", || told("redis is reachable") == all).await;
    server.kill();
    until("all are lost", || told("redis is lost: going on without it") == all).await;
    until("none is found again", || told("redis cannot be reached: going on without it") == all).await;
    assert!(!format!("{:?}", process.said()).contains("sesame"));
}
