//! Limits of each key: exactly what its plan gives, said so that clients know when to come back.

use bytes::Bytes;

use crate::support::{AGENT, Answer, Proxy, READER, Replica, Reply, gateway, json, nobody, start, streaming, yaml};

fn plan(limits: &str) -> String {
    format!("plans:\n  standard: {{ {limits} }}")
}

fn agent() -> String {
    format!("/v1/agents/{AGENT}")
}

/// A read of the reader's, who has the same plan.
async fn reader(proxy: &Proxy) -> Answer {
    let request = http::Request::builder().uri(format!("http://{}{}", proxy.address(), agent()));
    proxy.send(request.header("x-api-key", READER).body(Bytes::new()).unwrap()).await
}

fn decisions(key: &str, window: &str, outcome: &str) -> String {
    format!("letta_gateway_limit_decisions_total{{key=\"{key}\",outcome=\"{outcome}\",window=\"{window}\"}}")
}

#[tokio::test]
async fn a_burst_is_admitted_exactly_and_the_rest_never_reaches_letta() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], &plan("rate: { requests: 1, per: 1h, burst: 20 }")).await;
    let path = agent();
    let answers = futures_util::future::join_all((0..60).map(|_| proxy.get(&path))).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 20);
    assert_eq!(answers.iter().filter(|answer| answer.status == 429).count(), 40);
    assert_eq!(a.count(), 20);
    assert_eq!(proxy.metric(&decisions("team-a", "all", "admitted")).await, 20.0);
    assert_eq!(proxy.metric(&decisions("team-a", "rate_1h", "refused")).await, 40.0);
}

#[tokio::test]
async fn a_refusal_says_when_to_come_back() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], &plan("rate: { requests: 2, per: 60s, burst: 2 }")).await;
    for _ in 0..2 {
        assert_eq!(proxy.get(&agent()).await.status, 200);
    }
    let refused = proxy.post(&format!("{}/messages", agent()), "{\"input\":\"x\"}").await;
    assert_eq!(refused.status, 429);
    let number = |name: &str| -> u64 {
        let value = refused.header(name).unwrap_or_else(|| panic!("{name} is missing: {refused:?}"));
        value.parse().unwrap_or_else(|_| panic!("{name} is no integer: {value}"))
    };
    let (seconds, milliseconds) = (number("retry-after"), number("retry-after-ms"));
    assert!((1..=30).contains(&seconds), "{seconds}");
    assert!(milliseconds <= seconds * 1000 && milliseconds > (seconds - 1) * 1000, "{milliseconds} for {seconds} s");
    assert_eq!((number("x-ratelimit-limit"), number("x-ratelimit-remaining")), (2, 0));
    assert!((seconds..=60).contains(&number("x-ratelimit-reset")));
    assert_eq!(refused.header("x-should-retry"), None, "the official clients wait up to 60 s");
    let told = refused.json();
    assert_eq!(told["error"]["type"], "policy_rate_limited");
    assert_eq!(told["detail"], format!("too many requests (rate_1m): try again in {seconds} s"));
    assert_eq!((&told["error"]["window"], &told["error"]["scope"]), (&"rate_1m".into(), &"key".into()));
    assert_eq!(refused.header("ratelimit-policy"), Some("\"rate_1m\";q=2;w=60"));
    assert_eq!(refused.header("ratelimit"), Some(&*format!("\"rate_1m\";r=0;t={seconds}")));
    assert_eq!(a.count(), 2);
    let log = proxy.log(3).await;
    assert_eq!((&log[2]["status"], &log[2]["reason"]), (&429.into(), &"policy_rate_limited".into()));
    assert_eq!((&log[2]["key"], log[2].get("upstream")), (&"team-a".into(), None));
}

/// The official Python client takes no wait over 60 s and would come back at once, the TypeScript one sleeps it all.
#[tokio::test]
async fn a_wait_that_no_client_waits_out_is_not_to_be_tried_again() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], &plan("rate: { requests: 1, per: 1h, burst: 1 }")).await;
    assert_eq!(proxy.get(&agent()).await.header("x-should-retry"), None);
    let refused = proxy.get(&agent()).await;
    assert_eq!((refused.status, refused.header("x-should-retry")), (429, Some("false")));
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((3500..=3600).contains(&seconds), "{seconds}");
    assert_eq!(a.count(), 1);
}

#[tokio::test]
async fn a_request_back_is_admitted_again() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], &plan("rate: { requests: 5, per: 1s, burst: 1 }")).await;
    let mut refused = 0;
    let mut admitted = 0;
    let both = async {
        while refused == 0 || admitted < 3 {
            let answer = proxy.get(&agent()).await;
            if answer.status == 200 {
                admitted += 1;
            } else {
                refused += 1;
                assert_eq!((answer.status, answer.header("retry-after")), (429, Some("1")), "never 0");
                let wait: u64 = answer.header("retry-after-ms").unwrap().parse().unwrap();
                assert!((1..=200).contains(&wait), "{wait}");
            }
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, both).await.expect("requests come back");
    assert_eq!(a.count(), admitted);
}

#[tokio::test]
async fn an_admitted_answer_tells_what_is_left() {
    let a = Replica::start(|seen| {
        // a limit of Letta's own, should there be one, is not the client's to know
        let headers = vec![("x-ratelimit-remaining", "77"), ("content-type", "application/json")];
        Reply::Full(if seen.target.ends_with("tools") { 404 } else { 200 }, headers, "{}".into())
    })
    .await;
    let proxy = gateway(&[&a], &plan("rate: { requests: 1, per: 1h, burst: 3 }")).await;
    for (path, status, left) in [(agent(), 200, "2"), (format!("{}/tools", agent()), 404, "1"), (agent(), 200, "0")] {
        let answer = proxy.get(&path).await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("x-ratelimit-limit"), Some("3"));
        assert_eq!(answer.headers.get_all("x-ratelimit-remaining").iter().collect::<Vec<_>>(), [left]);
        assert!(answer.header("x-ratelimit-reset").unwrap().parse::<u64>().unwrap() > 3500);
    }
}

#[tokio::test]
async fn keys_of_one_plan_do_not_share() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], &plan("rate: { requests: 1, per: 1h, burst: 2 }")).await;
    for status in [200, 200, 429, 429] {
        assert_eq!(proxy.get(&agent()).await.status, status);
    }
    for status in [200, 200, 429] {
        assert_eq!(reader(&proxy).await.status, status);
    }
    assert_eq!(a.count(), 4);
    assert_eq!(proxy.metric(&decisions("reader", "rate_1h", "refused")).await, 1.0);
}

#[tokio::test]
async fn what_is_refused_before_the_limits_costs_nothing() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], &plan("rate: { requests: 1, per: 1h, burst: 1 }")).await;
    for target in ["/v1/nothing", "/v1/agents/../x", "/v1/agents/"] {
        for _ in 0..3 {
            let request = http::Request::builder().method("DELETE").uri(format!("http://{}{target}", proxy.address()));
            let status = proxy.send(request.header("x-api-key", READER).body(Bytes::new()).unwrap()).await.status;
            assert!([400, 403, 404, 405].contains(&status), "{status}");
        }
    }
    assert_eq!(reader(&proxy).await.status, 200);
    assert_eq!(a.count(), 1);
}

#[tokio::test]
async fn open_routes_spend_nothing_of_a_key() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], &plan("rate: { requests: 1, per: 1h, burst: 1 }, in_flight: 1")).await;
    for _ in 0..5 {
        let answer = proxy.get("/v1/health/").await;
        assert_eq!((answer.status, answer.header("x-ratelimit-limit")), (200, None));
    }
    assert_eq!(proxy.get(&agent()).await.status, 200);
}

#[tokio::test]
async fn a_stream_is_in_flight_until_its_last_byte() {
    let (a, mut feeds) = streaming().await;
    let proxy = gateway(&[&a], &format!("{}\nturns: {{ lane: off }}", plan("in_flight: 2"))).await;
    let path = format!("{}/messages/stream", agent());
    let request = || proxy.request("POST", &path).body(Bytes::from("{\"input\":\"x\"}")).unwrap();
    let (first, second) = (proxy.open(request()).await, proxy.open(request()).await);
    let (feed, _other) = (feeds.recv().await.unwrap(), feeds.recv().await.unwrap());
    for _ in 0..3 {
        let refused = proxy.get(&agent()).await;
        assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
        assert_eq!(refused.header("x-ratelimit-limit"), Some("2"));
        assert_eq!(refused.json()["error"]["type"], "policy_in_flight_limited");
    }
    assert_eq!(a.count(), 2, "a refusal never reaches Letta");
    assert_eq!(reader(&proxy).await.status, 200, "another key has its own");
    let gauge = "letta_gateway_key_requests_in_flight{key=\"team-a\"}";
    assert_eq!(proxy.metric(gauge).await, 2.0);
    assert_eq!(proxy.metric(&decisions("team-a", "in_flight", "refused")).await, 3.0);
    // all but the end has come
    feed.send(Some(Bytes::from("data: [DONE]\n\n"))).await.unwrap();
    assert_eq!(proxy.get(&agent()).await.status, 429);
    drop(feed);
    assert_eq!(Answer::of(first).await.text(), "data: [DONE]\n\n");
    proxy.metric_is(gauge, 1.0).await;
    assert_eq!(proxy.get(&agent()).await.status, 200);
    drop(second);
}

#[tokio::test]
async fn a_place_is_free_when_the_turn_is_over_or_the_client_of_a_read_has_left() {
    let (a, mut feeds) = streaming().await;
    let proxy = gateway(&[&a], &plan("in_flight: 1")).await;
    let path = format!("{}/messages/stream", agent());
    let request = || proxy.request("POST", &path).body(Bytes::from("{\"input\":\"x\"}")).unwrap();
    let gauge = "letta_gateway_key_requests_in_flight{key=\"team-a\"}";
    // in the middle of a stream
    let stream = proxy.open(request()).await;
    let feed = feeds.recv().await.unwrap();
    assert_eq!(proxy.get(&agent()).await.status, 429);
    drop(stream);
    proxy.metric_is("letta_gateway_turns_detached_total", 1.0).await;
    assert_eq!(proxy.get(&agent()).await.status, 429, "its turn goes on at Letta without it");
    drop(feed);
    proxy.metric_is(gauge, 0.0).await;
    assert_eq!(proxy.get(&agent()).await.status, 200);
    // before the head of an answer
    let hangs = Replica::start(|_| Reply::Hang).await;
    let proxy = gateway(&[&hangs], &plan("in_flight: 1")).await;
    let path = agent();
    tokio::select! {
        answer = proxy.get(&path) => panic!("it hangs: {answer:?}"),
        () = hangs.waits_for(1) => {}
    }
    proxy.metric_is(gauge, 0.0).await;
}

#[tokio::test]
async fn one_limits_refusal_does_not_spend_the_other() {
    let (a, mut feeds) = streaming().await;
    let proxy = gateway(&[&a], &plan("rate: { requests: 1, per: 1h, burst: 2 }, in_flight: 1")).await;
    let path = format!("{}/messages/stream", agent());
    let stream = proxy.open(proxy.request("POST", &path).body(Bytes::from("{\"input\":\"x\"}")).unwrap()).await;
    for _ in 0..5 {
        assert_eq!(proxy.get(&agent()).await.json()["error"]["type"], "policy_in_flight_limited");
    }
    drop(feeds.recv().await.unwrap());
    Answer::of(stream).await;
    proxy.metric_is("letta_gateway_key_requests_in_flight{key=\"team-a\"}", 0.0).await;
    assert_eq!(proxy.get(&agent()).await.status, 200, "the burst was 2");
    for _ in 0..3 {
        assert_eq!(proxy.get(&agent()).await.json()["error"]["type"], "policy_rate_limited");
    }
    assert_eq!(a.count(), 2);
    assert_eq!(proxy.metric("letta_gateway_key_requests_in_flight{key=\"team-a\"}").await, 0.0);
}

#[tokio::test]
async fn a_request_that_fails_gives_its_place_back() {
    let letta = format!("    servers: [ {{ url: http://{} }} ]", nobody().await);
    let proxy = start(&yaml(&letta, &plan("in_flight: 1"))).await;
    for _ in 0..3 {
        assert_eq!(proxy.get(&agent()).await.json()["error"]["type"], "upstream_connect");
        proxy.metric_is("letta_gateway_key_requests_in_flight{key=\"team-a\"}", 0.0).await;
    }
}

/// The 429 of a model behind Letta is Letta's answer: it passes as it is.
#[tokio::test]
async fn lettas_own_429_is_told_apart() {
    let body = "{\"error\":{\"type\":\"llm_rate_limit\",\"message\":\"slow down\",\"detail\":\"…\"}}";
    let a = Replica::start(move |_| Reply::Json(429, body.into())).await;
    let proxy = gateway(&[&a], &plan("rate: { requests: 1, per: 1h, burst: 5 }")).await;
    let answer = proxy.post(&format!("{}/messages", agent()), "{\"input\":\"x\"}").await;
    assert_eq!((answer.status, answer.text().as_str()), (429, body));
    assert_eq!((answer.header("retry-after"), answer.header("x-ratelimit-remaining")), (None, Some("4")));
    let line = &proxy.log(1).await[0];
    assert_eq!((line.get("reason"), &line["ended_by"]), (None, &"complete".into()));
}

#[tokio::test]
async fn a_plan_has_any_number_of_windows_and_a_refusal_names_the_one_that_refused() {
    let a = Replica::start(|_| json("{}")).await;
    let windows = "rate: [{ requests: 1, per: 1h, burst: 3 }, { requests: 5, per: 1d }], in_flight: 4";
    let proxy = gateway(&[&a], &plan(windows)).await;
    let answer = proxy.get(&agent()).await;
    let policy = "\"rate_1h\";q=3;w=10800, \"rate_1d\";q=5;w=86400, \"in_flight\";q=4;qu=\"concurrent-requests\"";
    assert_eq!(answer.header("ratelimit-policy"), Some(policy));
    assert_eq!(answer.header("ratelimit"), Some("\"rate_1h\";r=2;t=3600, \"rate_1d\";r=4;t=17280, \"in_flight\";r=3"));
    for _ in 0..2 {
        assert_eq!(proxy.get(&agent()).await.status, 200);
    }
    let refused = proxy.get(&agent()).await;
    assert_eq!((refused.status, &refused.json()["error"]["window"]), (429, &"rate_1h".into()));
    assert_eq!(refused.header("ratelimit-policy"), Some(policy));
    assert_eq!(a.count(), 3);
    assert_eq!(proxy.metric(&decisions("team-a", "rate_1h", "refused")).await, 1.0);
    assert_eq!(proxy.metric(&decisions("team-a", "rate_1d", "refused")).await, 0.0);
}

#[tokio::test]
async fn keys_of_a_plan_that_counts_as_one_share_and_agents_may_count_apart() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], &plan("scope: plan, rate: { requests: 1, per: 1h, burst: 2 }")).await;
    assert_eq!((proxy.get(&agent()).await.status, reader(&proxy).await.status), (200, 200));
    assert_eq!((proxy.get(&agent()).await.status, reader(&proxy).await.status), (429, 429));
    // a client that has asked for little itself is told whose the limit is
    let told = reader(&proxy).await.json();
    let message = told["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("too many requests (rate_1h of the plan, whose keys count together): "), "{message}");
    assert_eq!((&told["error"]["window"], &told["error"]["scope"]), (&"rate_1h".into(), &"plan".into()));
    let proxy = gateway(&[&a], &plan("scope: agent, rate: { requests: 1, per: 1h, burst: 1 }")).await;
    let other = format!("{}2", &agent()[..agent().len() - 1]);
    for (path, status) in [(agent(), 200), (agent(), 429), (other.clone(), 200), (other.clone(), 429)] {
        assert_eq!(proxy.get(&path).await.status, status, "{path}");
    }
    let told = proxy.get(&other).await.json();
    assert!(told["detail"].as_str().unwrap().starts_with("too many requests (rate_1h at one agent): "), "{told}");
    assert_eq!(a.count(), 4);
}

#[tokio::test]
async fn agents_that_a_key_does_not_reach_count_together() {
    let a = Replica::start(|_| json("{}")).await;
    let letta = format!("    servers: [ {{ url: http://{} }} ]", a.address);
    let yaml = yaml(&letta, &plan("scope: agent, rate: { requests: 1, per: 1h, burst: 1 }"));
    let reach = format!("scopes: [read], agents: [\"{AGENT}\"] }}");
    let proxy = start(&yaml.replace("scopes: [read] }", &reach)).await;
    for (agent, status) in [("agent-1", 403), ("agent-2", 429), ("agent-3", 429)] {
        let request = http::Request::builder().uri(format!("http://{}/v1/agents/{agent}", proxy.address()));
        let answer = proxy.send(request.header("x-api-key", READER).body(Bytes::new()).unwrap()).await;
        assert_eq!(answer.status, status, "{agent}");
    }
    assert_eq!(reader(&proxy).await.status, 200);
    assert_eq!(a.count(), 1);
}

#[tokio::test]
async fn a_plan_in_shadow_tells_and_refuses_nothing() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], &plan("mode: shadow, rate: { requests: 1, per: 1h, burst: 2 }")).await;
    for _ in 0..5 {
        assert_eq!(proxy.get(&agent()).await.status, 200);
    }
    assert_eq!(a.count(), 5);
    assert_eq!(proxy.metric(&decisions("team-a", "rate_1h", "shadowed")).await, 3.0);
    assert_eq!(proxy.metric(&decisions("team-a", "rate_1h", "refused")).await, 0.0);
}
