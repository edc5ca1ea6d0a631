//! Budgets: a turn may start while anything is left, and what Letta reports is charged however the turn ends.

use bytes::Bytes;

use crate::redis_server::RedisServer;
use crate::support::{AGENT, Answer, Feed, Proxy, Replica, Reply, gateway, json, letta_answer, streaming};

const RUN: &str = "run-1b4e28ba-2fa1-41d2-883f-0016d3cca427";
const HELLO: &str = "{\"input\":\"hello\"}";
/// So long that no test sees its end.
const PER: &str = "per: 31d";

fn plan(budgets: &str) -> String {
    format!("plans:\n  standard: {{ budgets: [{budgets}] }}\nturns: {{ lane: off }}\n")
}

fn messages() -> String {
    format!("/v1/agents/{AGENT}/messages")
}

fn left(window: &str) -> String {
    format!("letta_gateway_budget_remaining{{budget=\"{window}\",key=\"team-a\"}}")
}

fn ping() -> String {
    format!("data: {{\"message_type\":\"ping\",\"run_id\":\"{RUN}\"}}\n\n")
}

fn end(tokens: u64, steps: u64) -> String {
    format!(
        "data: {{\"message_type\":\"stop_reason\",\"stop_reason\":\"end_turn\"}}\n\ndata: {{\"message_type\":\"usage_statistics\",\"prompt_tokens\":{tokens},\"completion_tokens\":0,\"total_tokens\":{tokens},\"step_count\":{steps}}}\n\ndata: [DONE]\n\n"
    )
}

async fn say(proxy: &Proxy) -> Answer {
    proxy.post(&messages(), HELLO).await
}

/// A stream whose first event has come.
async fn begun(
    proxy: &Proxy,
    feeds: &mut tokio::sync::mpsc::UnboundedReceiver<Feed>,
) -> (http::Response<hyper::body::Incoming>, Feed) {
    let request = proxy.request("POST", &format!("{}/stream", messages())).body(Bytes::from(HELLO)).unwrap();
    let answer = proxy.open(request);
    let fed = async {
        let feed = feeds.recv().await.unwrap();
        feed.send(Some(ping().into())).await.unwrap();
        feed
    };
    tokio::join!(answer, fed)
}

#[track_caller]
fn is_spent(answer: &Answer, window: &str) {
    let told = answer.json();
    assert_eq!((answer.status, &told["error"]["type"]), (429, &"policy_budget_spent".into()), "{told}");
    assert_eq!(told["error"]["window"], window);
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    assert_eq!(answer.header("x-ratelimit-remaining"), Some("0"));
}

#[tokio::test]
async fn a_turn_may_start_while_anything_is_left_and_costs_what_letta_reports() {
    let a = Replica::start(|_| json(letta_answer("hello"))).await;
    let proxy = gateway(&[&a], &plan(&format!("{{ tokens: 1000, {PER} }}, {{ steps: 3, {PER} }}"))).await;
    let first = say(&proxy).await;
    assert_eq!(first.status, 200);
    let policy = "\"tokens_31d\";q=1000;qu=\"tokens\";w=2678400, \"steps_31d\";q=3;qu=\"steps\";w=2678400";
    assert_eq!(first.header("ratelimit-policy"), Some(policy));
    assert!(first.header("ratelimit").unwrap().starts_with("\"tokens_31d\";r=1000;t="), "{first:?}");
    proxy.metric_is(&left("tokens_31d"), 327.0).await;
    assert_eq!(say(&proxy).await.status, 200, "327 tokens are left");
    proxy.metric_is(&left("tokens_31d"), -346.0).await;
    for _ in 0..3 {
        is_spent(&say(&proxy).await, "tokens_31d");
    }
    assert_eq!(a.count(), 2, "a refusal never reaches Letta");
    assert_eq!(proxy.metric(&left("steps_31d")).await, 1.0);
    // what starts no turn goes on
    assert_eq!(proxy.get(&format!("/v1/agents/{AGENT}")).await.status, 200);
}

#[tokio::test]
async fn a_stream_is_charged_at_its_end_also_when_its_client_has_left() {
    let (a, mut feeds) = streaming().await;
    let proxy = gateway(&[&a], &plan(&format!("{{ tokens: 1000, {PER} }}, {{ steps: 10, {PER} }}"))).await;
    let (stream, feed) = begun(&proxy, &mut feeds).await;
    feed.send(Some(end(400, 2).into())).await.unwrap();
    drop(feed);
    Answer::of(stream).await;
    proxy.metric_is(&left("tokens_31d"), 600.0).await;

    let (stream, feed) = begun(&proxy, &mut feeds).await;
    drop(stream);
    proxy.metric_is("letta_gateway_turns_detached_total", 1.0).await;
    assert_eq!(proxy.metric(&left("tokens_31d")).await, 600.0, "nothing is reserved");
    feed.send(Some(end(700, 5).into())).await.unwrap();
    drop(feed);
    proxy.metric_is(&left("tokens_31d"), -100.0).await;
    assert_eq!(proxy.metric(&left("steps_31d")).await, 3.0);
    is_spent(&say(&proxy).await, "tokens_31d");
    assert_eq!(a.count(), 2);
}

#[tokio::test]
async fn what_a_stream_that_was_cut_has_cost_is_asked_of_letta() {
    let (begun_at, mut feeds) = tokio::sync::mpsc::unbounded_channel();
    let a = Replica::start(move |seen| {
        let answers = [
            ("/usage", "{\"prompt_tokens\":500,\"completion_tokens\":40,\"total_tokens\":540}".to_owned()),
            ("/metrics", "{\"num_steps\":4}".to_owned()),
            (RUN, format!("{{\"id\":\"{RUN}\",\"agent_id\":\"{AGENT}\",\"status\":\"completed\"}}")),
        ];
        if let Some((_, answer)) = answers.iter().find(|(end, _)| seen.target.ends_with(end)) {
            return json(answer.clone());
        }
        let (feed, events) = tokio::sync::mpsc::channel(16);
        begun_at.send(feed).expect("the test takes the feed");
        Reply::Stream(events)
    })
    .await;
    let proxy = gateway(&[&a], &plan(&format!("{{ tokens: 500, {PER} }}, {{ steps: 10, {PER} }}"))).await;
    let (stream, feed) = begun(&proxy, &mut feeds).await;
    feed.send(None).await.unwrap();
    assert!(Answer::of(stream).await.text().contains("event: error"));
    proxy.metric_is(&left("tokens_31d"), -40.0).await;
    assert_eq!(proxy.metric(&left("steps_31d")).await, 6.0);
    is_spent(&say(&proxy).await, "tokens_31d");
    let asked: Vec<String> = a.seen().iter().map(|seen| seen.target.clone()).collect();
    assert!(asked.contains(&format!("/v1/runs/{RUN}/usage")), "{asked:?}");
    assert_eq!(asked.iter().filter(|target| target.contains("/messages")).count(), 1);
}

#[tokio::test]
async fn what_letta_refuses_and_what_repeats_a_turn_costs_nothing() {
    let a = Replica::start(|seen| match seen.header("x-refuse") {
        Some(_) => Reply::Json(422, "{\"detail\":\"no\"}".into()),
        None => json(letta_answer("hello")),
    })
    .await;
    let proxy = gateway(&[&a], &plan(&format!("{{ turns: 1, {PER} }}"))).await;
    let send = async |name: &'static str, value: &'static str| {
        let request = proxy.request("POST", &messages()).header("content-type", "application/json");
        proxy.send(request.header(name, value).body(Bytes::from(HELLO)).unwrap()).await
    };
    for _ in 0..3 {
        assert_eq!(send("x-refuse", "1").await.status, 422);
    }
    assert_eq!(send("idempotency-key", "one").await.status, 200);
    proxy.metric_is(&left("turns_31d"), 0.0).await;
    let replayed = send("idempotency-key", "one").await;
    assert_eq!((replayed.status, replayed.header("x-turn")), (200, Some("replayed")));
    is_spent(&send("idempotency-key", "two").await, "turns_31d");
    is_spent(&say(&proxy).await, "turns_31d");
    assert_eq!(a.count(), 4);
}

#[tokio::test]
async fn turns_that_are_answered_later_are_counted_and_held_to_the_budget() {
    let a = Replica::start(|_| json("{\"id\":\"run-1\"}")).await;
    let proxy = gateway(&[&a], &plan(&format!("{{ turns: 2, {PER} }}"))).await;
    for path in [format!("{}/async", messages()), "/v1/messages/batches".to_owned()] {
        assert_eq!(proxy.post(&path, "{\"requests\":[]}").await.status, 200, "{path}");
    }
    is_spent(&proxy.post(&format!("{}/async", messages()), HELLO).await, "turns_31d");
    is_spent(&say(&proxy).await, "turns_31d");
    assert_eq!(a.count(), 2);
}

#[tokio::test]
async fn gateways_on_one_redis_share_budgets_and_one_that_starts_anew_knows_what_was_spent() {
    let server = RedisServer::start();
    let a = Replica::start(|_| json(letta_answer("hello"))).await;
    let store = format!("store: {{ redis: {{ url: \"{}\", timeout: 10s }} }}", server.url());
    let yaml = format!("{}{store}\n", plan(&format!("{{ tokens: 1300, {PER} }}")));
    let (one, other) = (gateway(&[&a], &yaml).await, gateway(&[&a], &yaml).await);
    for proxy in [&one, &other] {
        proxy.metric_is("letta_gateway_limit_gateways", 2.0).await;
    }
    // two turns are more than the budget
    assert_eq!((say(&one).await.status, say(&other).await.status), (200, 200));
    let spent = async { while say(&one).await.status == 200 {} };
    tokio::time::timeout(crate::support::PATIENCE, spent).await.expect("it is spent");
    assert!((2..=3).contains(&a.count()), "{}", a.count());
    is_spent(&say(&one).await, "tokens_31d");
    let count = a.count();
    let anew = gateway(&[&a], &yaml).await;
    anew.metric_is("letta_gateway_limit_gateways", 3.0).await;
    for proxy in [&other, &anew] {
        is_spent(&say(proxy).await, "tokens_31d");
    }
    assert_eq!(a.count(), count);
}
