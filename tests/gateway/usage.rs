//! `keys usage` in front of gateways that share a real Redis: it tells how every window stands, and changes none.

use bytes::Bytes;
use serde_json::{Value, json as value};

use crate::process::command;
use crate::redis_server::RedisServer;
use crate::support::{AGENT, KEY, Proxy, READER, Replica, json, letta_answer, start, yaml};

fn agent() -> String {
    format!("/v1/agents/{AGENT}")
}

fn shared(replica: &Replica, server: &RedisServer, plan: &str) -> String {
    let letta = format!("    servers: [ {{ url: http://{} }} ]", replica.address);
    let plans = format!("plans: {{ standard: {{ {plan} }} }}");
    yaml(&letta, &format!("{plans}\nstore: {{ redis: {{ url: \"{}\", timeout: 5s }} }}", server.url()))
}

/// `letta-gateway keys usage …` on this configuration: exit code, standard output, standard error.
async fn usage(yaml: &str, arguments: &[&str]) -> (i32, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.yaml");
    std::fs::write(&path, yaml).unwrap();
    let mut command = command(&["keys", "usage"]);
    command.args(arguments).arg("--config").arg(&path);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

async fn usage_json(yaml: &str, arguments: &[&str]) -> Vec<Value> {
    let (code, out, told) = usage(yaml, &[arguments, &["--json"]].concat()).await;
    assert_eq!(code, 0, "{told}");
    serde_json::from_str(&out).unwrap()
}

/// Of each window: its name, used, limit, remaining.
fn stand(entry: &Value) -> Vec<(String, u64, u64, u64)> {
    let windows = entry["windows"].as_array().unwrap().iter();
    let number = |window: &Value, field: &str| window[field].as_u64().unwrap();
    windows
        .map(|window| {
            let name = window["window"].as_str().unwrap().to_owned();
            (name, number(window, "used"), number(window, "limit"), number(window, "remaining"))
        })
        .collect()
}

fn windows(windows: &[(&str, u64, u64, u64)]) -> Vec<(String, u64, u64, u64)> {
    windows.iter().map(|(name, used, limit, left)| ((*name).to_owned(), *used, *limit, *left)).collect()
}

/// Waits until the store was told of all that is over.
async fn is_told(yaml: &str, expected: &[(&str, u64, u64, u64)]) {
    let looking = async {
        while stand(&usage_json(yaml, &["team-a"]).await[0]) != windows(expected) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, looking).await.expect("it is told");
}

async fn as_reader(proxy: &Proxy) -> u16 {
    let request = http::Request::builder().uri(format!("http://{}{}", proxy.address(), agent()));
    proxy.send(request.header("x-api-key", READER).body(Bytes::new()).unwrap()).await.status
}

#[tokio::test]
async fn every_window_of_a_key_is_told_over_all_gateways_and_looking_changes_none() {
    let server = RedisServer::start();
    let (a, mut feeds) = crate::support::streaming().await;
    let plan = "rate: [ { requests: 1, per: 1h, burst: 10 }, { requests: 100, per: 1d } ], in_flight: 4, \
                budgets: [ { turns: 2, per: 1d } ]";
    let text = shared(&a, &server, plan);
    let (one, other) = (start(&text).await, start(&text).await);
    let path = format!("{}/messages/stream", agent());
    let send = || one.open(one.request("POST", &path).body(Bytes::from("{\"input\":\"x\"}")).unwrap());
    let (first, feed) = tokio::join!(send(), feeds.recv());
    drop(feed);
    crate::support::Answer::of(first).await;
    let (held, _feed) = tokio::join!(send(), feeds.recv());
    for _ in 0..3 {
        assert_eq!(other.get(&agent()).await.status, 200);
    }
    let expected = [("rate_1h", 5, 10, 5), ("rate_1d", 5, 100, 95), ("in_flight", 1, 4, 3), ("turns_1d", 1, 2, 1)];
    is_told(&text, &expected).await;

    for _ in 0..20 {
        let all = usage_json(&text, &[]).await;
        let ids: Vec<_> = all.iter().map(|entry| entry["id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["team-a", "team-b", "reader"]);
        assert_eq!(stand(&all[0]), windows(&expected));
        assert!(stand(&all[1]).iter().all(|(_, used, limit, left)| *used == 0 && limit == left), "{all:?}");
        let resets: Vec<_> =
            all[0]["windows"].as_array().unwrap().iter().map(|w| w["reset_seconds"].as_u64()).collect();
        assert!(resets[0].is_some_and(|reset| (17_000..=18_000).contains(&reset)), "five hours: {resets:?}");
        assert!(resets[2].is_none() && resets[3].is_some_and(|reset| reset <= 86_400), "{resets:?}");
    }
    let (code, table, _) = usage(&text, &["team-a"]).await;
    let lines: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(code, 0);
    assert_eq!(lines[0].join(" "), "ID STATE PLAN COUNTED FOR WINDOW USED LIMIT REMAINING RESETS IN");
    assert_eq!(lines[2][..7], ["team-a", "active", "standard", "key", "rate_1d", "5", "100"], "{table}");
    assert_eq!(lines.len(), 5);

    let answer = other.get(&agent()).await;
    assert_eq!(answer.header("ratelimit").unwrap().split(";t=").next(), Some("\"rate_1h\";r=4"));
    // whoever looks is no gateway that limits are divided by
    for proxy in [&one, &other] {
        proxy.metric_is("letta_gateway_limit_gateways", 2.0).await;
    }
    drop(held);
}

#[tokio::test]
async fn keys_that_count_together_are_shown_what_their_plan_has_used_and_agents_one_by_one() {
    let server = RedisServer::start();
    let a = Replica::start(|_| json(letta_answer("hi"))).await;
    let plan = shared(&a, &server, "scope: plan, rate: { requests: 1, per: 1h, burst: 10 }");
    let proxy = start(&plan).await;
    assert_eq!((proxy.get(&agent()).await.status, as_reader(&proxy).await), (200, 200));
    let told = usage_json(&plan, &["team-a", "reader"]).await;
    for entry in &told {
        assert_eq!((&entry["scope"], stand(entry)), (&"plan".into(), windows(&[("rate_1h", 2, 10, 8)])));
    }

    let mut apart = RedisServer::start();
    let plan = shared(&a, &apart, "scope: agent, rate: { requests: 1, per: 1h, burst: 10 }");
    let proxy = start(&plan).await;
    for path in [&*agent(), &agent(), "/v1/agents/"] {
        assert_eq!(proxy.get(path).await.status, 200);
    }
    let told = usage_json(&plan, &["team-a", "--agent", &format!("{AGENT},agent-2")]).await;
    assert_eq!((&told[0]["agent"], stand(&told[0])), (&AGENT.into(), windows(&[("rate_1h", 2, 10, 8)])));
    assert_eq!((&told[1]["agent"], stand(&told[1])), (&"agent-2".into(), windows(&[("rate_1h", 0, 10, 10)])));
    let (_, table, _) = usage(&plan, &["team-a"]).await;
    assert!(table.contains("key without agent") && table.contains("--agent ID"), "{table}");
    assert_eq!(usage_json(&plan, &["team-a"]).await[0]["windows"][0]["used"], 1);

    apart.kill();
    let (code, out, told) = usage(&plan, &["team-a"]).await;
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(
        told.starts_with("error: store.redis: the store is not reachable; start it, or mend store.redis.url."),
        "{told}"
    );
    assert!(told.contains("/metrics") && !told.contains("nothing was done"), "{told}");
}

#[tokio::test]
async fn keys_that_open_nothing_are_marked_and_usage_without_redis_is_said_to_be_elsewhere() {
    let server = RedisServer::start();
    let a = Replica::start(|_| json("{}")).await;
    let text = shared(&a, &server, "in_flight: 2");
    let proxy = start(&text).await;
    let disabled = text.replace("id: team-b,", "id: team-b, disabled: true,");
    let expired = disabled.replace("id: reader,", "id: reader, expires_at: 2020-01-01T00:00:00Z,");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.yaml");
    std::fs::write(&path, &text).unwrap();
    let mut revoke = command(&["keys", "revoke", "team-a"]);
    revoke.arg("--config").arg(&path);
    assert!(tokio::task::spawn_blocking(move || revoke.output().unwrap()).await.unwrap().status.success());
    let told = usage_json(&expired, &[]).await;
    let states: Vec<_> = told.iter().map(|entry| entry["state"].clone()).collect();
    assert_eq!(states, [value!("revoked"), value!("disabled"), value!("expired")]);
    assert_eq!(usage(&text, &["nobody"]).await.0, 1);
    assert_eq!(usage(&text, &["--agent", "agent-1"]).await.0, 1, "nobody counts agents apart");
    drop(proxy);

    let alone = text.split("store:").next().unwrap().replace("admin: { address: 127.0.0.1:0 }", "");
    let (code, out, told) = usage(&alone, &[]).await;
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(told.contains("there is no store.redis, so what keys have used is in each gateway's process"), "{told}");
    assert!(told.contains("http://127.0.0.1:9090/metrics") && !told.contains(KEY), "{told}");
}
