//! Gateways that share a Redis: of one message there is one turn, for one agent one lane, whichever of them is asked.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use tokio::sync::{mpsc, oneshot};

use crate::process::Process;
use crate::redis_server::RedisServer;
use crate::support::{
    AGENT, Answer, Door, Feed, Proxy, Replica, Reply, gateway, json, letta_answer, streaming, until, yaml,
};

const UP: &str = "letta_gateway_redis_up{link=\"turns\"}";
const RUN: &str = "run-0f6ed4f5-5d0e-4b4e-9d9f-0a3e1c1c7b11";

fn store(server: &RedisServer, turns: &str) -> String {
    format!("store: {{ redis: {{ url: \"{}\", timeout: 5s }} }}\nturns: {{ {turns} }}", server.url())
}

/// A replica whose messages the test answers, and what is to be answered, in the order they came.
async fn asked() -> (Replica, mpsc::UnboundedReceiver<oneshot::Sender<Reply>>) {
    let (begun, answers) = mpsc::unbounded_channel();
    let replica = Replica::start(move |seen| {
        if !seen.target.ends_with("/messages") {
            return json("[]");
        }
        let (answer, told) = oneshot::channel();
        begun.send(answer).expect("the test takes it");
        Reply::Wait(told)
    });
    (replica.await, answers)
}

/// Two gateways in front of one replica, both connected to the store.
async fn pair(server: &RedisServer, replica: &Replica, turns: &str) -> [Proxy; 2] {
    let both = [gateway(&[replica], &store(server, turns)).await, gateway(&[replica], &store(server, turns)).await];
    for one in &both {
        one.metric_is(UP, 1.0).await;
    }
    both
}

fn message(door: &Door, text: &str, headers: &[(&str, &str)]) -> Request<Bytes> {
    send_to(door, &format!("/v1/agents/{AGENT}/messages"), &format!("{{\"input\":\"{text}\"}}"), headers)
}

fn send_to(door: &Door, target: &str, body: &str, headers: &[(&str, &str)]) -> Request<Bytes> {
    let mut request = door.request("POST", target).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Bytes::from(body.to_owned())).unwrap()
}

const RETRY: &[(&str, &str)] = &[("x-stainless-retry-count", "1")];

/// Sends in a task of its own.
fn begin(proxy: &Arc<Proxy>, request: Request<Bytes>) -> tokio::task::JoinHandle<Answer> {
    let proxy = Arc::clone(proxy);
    tokio::spawn(async move { proxy.send(request).await })
}

#[tokio::test]
async fn a_retry_on_another_gateway_joins_the_turn_that_runs() {
    let server = RedisServer::start();
    let (replica, mut answers) = asked().await;
    let [one, other] = pair(&server, &replica, "").await.map(Arc::new);
    let first = begin(&one, message(&one, "hello", &[]));
    let answer = answers.recv().await.unwrap();
    let retry = begin(&other, message(&other, "hello", RETRY));
    // the message does not say that it repeats another: it is a turn of its own, and waits for its lane
    let another = begin(&other, message(&other, "hello", &[]));
    other.metric_is("letta_gateway_turns_waiting", 1.0).await;
    answer.send(json(letta_answer("one"))).ok();
    let (first, retry) = (first.await.unwrap(), retry.await.unwrap());
    assert_eq!((first.status, retry.status), (200, 200), "{retry:?}");
    assert_eq!(retry.body, first.body);
    assert_eq!(retry.header("content-type"), first.header("content-type"));
    assert_eq!((first.header("x-turn"), retry.header("x-turn")), (None, Some("joined")));
    answers.recv().await.unwrap().send(json(letta_answer("two"))).ok();
    assert!(another.await.unwrap().text().contains("two"));
    assert_eq!(replica.count(), 2);
}

#[tokio::test]
async fn a_retry_on_another_gateway_needs_no_place_in_flight_of_its_own() {
    let server = RedisServer::start();
    let (replica, mut feeds) = streaming().await;
    let yaml = format!("plans:\n  standard: {{ in_flight: 1 }}\n{}", store(&server, ""));
    let [one, other] = [gateway(&[&replica], &yaml).await, gateway(&[&replica], &yaml).await];
    for proxy in [&one, &other] {
        proxy.metric_is("letta_gateway_limit_gateways", 2.0).await;
    }
    let stream = one.open(stream_request(&one)).await;
    let feed: Feed = feeds.recv().await.unwrap();
    say(&feed, &event(1)).await;
    // one that says that it is a retry, and of which nobody knows the turn
    for headers in [&[], RETRY] {
        let another = other.send(message(&other, "another", headers)).await;
        assert_eq!((another.status, &another.json()["error"]["window"]), (429, &"in_flight".into()));
    }
    let mut request = stream_request(&other);
    request.headers_mut().insert("x-stainless-retry-count", "1".parse().unwrap());
    let retry = other.open(request).await;
    assert_eq!((retry.status().as_u16(), &retry.headers()["x-turn"]), (200, &"joined".parse().unwrap()));
    let end = "data: [DONE]\n\n";
    say(&feed, end).await;
    drop(feed);
    for answer in [retry, stream] {
        assert_eq!(Answer::of(answer).await.text(), event(1) + end);
    }
    assert_eq!(replica.count(), 1);
}

#[tokio::test]
async fn a_retry_on_another_gateway_is_given_the_answer_of_a_turn_that_is_over() {
    let server = RedisServer::start();
    let replica = Replica::start(|_| json(letta_answer("once"))).await;
    let [one, other] = pair(&server, &replica, "").await;
    let first = one.send(message(&one, "hello", &[("idempotency-key", "k-1")])).await;
    for headers in [RETRY, &[("idempotency-key", "k-1")]] {
        let again = other.send(message(&other, "hello", headers)).await;
        assert_eq!((again.status, &again.body), (200, &first.body));
        // its end may be on its way still
        assert!(matches!(again.header("x-turn"), Some("replayed" | "joined")), "{again:?}");
    }
    let clash = other.send(message(&other, "another body", &[("idempotency-key", "k-1")])).await;
    assert_eq!((clash.status, clash.json()["error"]["type"].as_str()), (409, Some("client_idempotency_key_reused")));
    assert_eq!(replica.count(), 1);
    // told when the end has come, a moment after the client has all of it
    while repeats(&other, "replayed").await + repeats(&other, "joined").await < 2.0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(other.metric("letta_gateway_turns_total{outcome=\"end_turn\"}").await, 0.0, "it is told once");
}

async fn repeats(proxy: &Proxy, how: &str) -> f64 {
    proxy.metric(&format!("letta_gateway_turn_repeats_total{{how=\"{how}\"}}")).await
}

#[tokio::test]
async fn of_retries_that_come_to_all_gateways_at_once_one_reaches_the_replica() {
    let server = RedisServer::start();
    let (replica, mut answers) = asked().await;
    let both = pair(&server, &replica, "").await.map(Arc::new);
    let retries: Vec<_> = (0..10).map(|n| begin(&both[n % 2], message(&both[n % 2], "again", RETRY))).collect();
    answers.recv().await.unwrap().send(json(letta_answer("once"))).ok();
    for retry in retries {
        let answer = retry.await.unwrap();
        assert_eq!((answer.status, answer.json()["messages"][0]["content"].as_str()), (200, Some("once")));
    }
    assert_eq!(replica.count(), 1);
}

#[tokio::test]
async fn turns_of_one_agent_do_not_overlap_whichever_gateways_they_come_to() {
    let server = RedisServer::start();
    let running = Arc::new(Mutex::new((0, 0)));
    let (begun, mut answers) = mpsc::unbounded_channel();
    let seen_at_once = Arc::clone(&running);
    let replica = Replica::start(move |_| {
        let mut running = seen_at_once.lock().unwrap();
        running.0 += 1;
        running.1 = running.0.max(running.1);
        let (answer, told) = oneshot::channel();
        begun.send(answer).expect("the test takes it");
        Reply::Wait(told)
    })
    .await;
    let both = pair(&server, &replica, "").await.map(Arc::new);
    let sends: Vec<_> = (0..8).map(|n| begin(&both[n % 2], message(&both[n % 2], &format!("{n}"), &[]))).collect();
    for _ in 0..8 {
        let answer = answers.recv().await.unwrap();
        running.lock().unwrap().0 -= 1;
        answer.send(json(letta_answer("done"))).ok();
    }
    for send in sends {
        assert_eq!(send.await.unwrap().status, 200);
    }
    assert_eq!(*running.lock().unwrap(), (0, 1), "never two at once");
}

#[tokio::test]
async fn a_lane_that_is_full_is_full_for_all_gateways_and_who_leaves_its_row_reaches_nobody() {
    let server = RedisServer::start();
    let (replica, mut answers) = asked().await;
    let [one, other] = pair(&server, &replica, "lane: { max_waiting: 1, max_wait: 120s }").await.map(Arc::new);
    let first = begin(&one, message(&one, "first", &[]));
    let answer = answers.recv().await.unwrap();
    let second = begin(&one, message(&one, "second", &[]));
    one.metric_is("letta_gateway_turns_waiting", 1.0).await;
    let refused = other.send(message(&other, "third", &[])).await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")), "{refused:?}");
    assert_eq!(refused.json()["error"]["type"], "policy_lane_full");
    // its client leaves, and the place is another's
    second.abort();
    one.metric_is("letta_gateway_turns_waiting", 0.0).await;
    let fourth = loop {
        let mut fourth = begin(&other, message(&other, "fourth", RETRY));
        tokio::select! {
            () = other.metric_is("letta_gateway_turns_waiting", 1.0) => break fourth,
            // Redis may hear of who left after its own gateway has
            refused = &mut fourth => assert_eq!(refused.unwrap().status, 429),
        }
    };
    answer.send(json(letta_answer("1"))).ok();
    answers.recv().await.unwrap().send(json(letta_answer("4"))).ok();
    assert!(fourth.await.unwrap().text().contains('4'));
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(replica.count(), 2, "neither the one that was refused nor the one that left");
}

#[tokio::test]
async fn a_stream_is_taken_up_on_another_gateway_where_it_was_left() {
    let server = RedisServer::start();
    let (replica, mut feeds) = streaming().await;
    let [one, other] = pair(&server, &replica, "").await.map(Arc::new);
    let stream = one.open(stream_request(&one)).await;
    assert_eq!(stream.status(), 200);
    let feed = feeds.recv().await.unwrap();
    let events = |from: usize, to: usize| (from..=to).map(event).collect::<String>();
    say(&feed, &events(1, 3)).await;
    let resume = format!("/v1/runs/{RUN}/stream");
    // known on the other gateway as soon as it was told
    let resumed = loop {
        let answer = other.open(send_to(&other, &resume, "{\"starting_after\":2}", &[])).await;
        if answer.headers().contains_key("x-turn") {
            break answer;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(resumed.headers()["x-turn"], "resumed");
    say(&feed, &events(4, 6)).await;
    say(&feed, "data: [DONE]\n\n").await;
    drop(feed);
    assert_eq!(Answer::of(stream).await.text(), events(1, 6) + "data: [DONE]\n\n");
    assert_eq!(Answer::of(resumed).await.text(), events(3, 6) + "data: [DONE]\n\n");
    let whole = other.send(send_to(&other, &resume, "{}", &[])).await;
    assert_eq!(whole.text(), events(1, 6) + "data: [DONE]\n\n");
    let sends = replica.seen().iter().filter(|seen| seen.target.ends_with("/messages/stream")).count();
    assert_eq!(sends, 1);
    // the run is its key's
    let request = send_to(&other, &resume, "{}", &[]);
    let (mut head, body) = request.into_parts();
    head.headers.insert("authorization", format!("Bearer {}", crate::support::COLLEAGUE).parse().unwrap());
    let theirs = other.send(Request::from_parts(head, body)).await;
    assert_eq!((theirs.header("x-turn"), theirs.text().as_str()), (None, "{}"), "Letta's to answer");
}

fn stream_request(door: &Door) -> Request<Bytes> {
    send_to(door, &format!("/v1/agents/{AGENT}/messages/stream"), "{\"input\":\"talk\"}", &[])
}

fn event(number: usize) -> String {
    format!("data: {{\"message_type\":\"assistant_message\",\"run_id\":\"{RUN}\",\"content\":\"{number}\"}}\n\n")
}

async fn say(feed: &Feed, text: &str) {
    feed.send(Some(Bytes::from(text.to_owned()))).await.unwrap();
}

#[tokio::test]
async fn a_message_that_letta_refused_or_never_got_is_sent_when_it_comes_again() {
    let server = RedisServer::start();
    let refusals = Mutex::new(vec![Reply::Json(422, "{\"detail\":\"no\"}".into())]);
    let replica = Replica::start(move |_| match refusals.lock().unwrap().pop() {
        Some(refusal) => refusal,
        None => json(letta_answer("now")),
    })
    .await;
    let [one, other] = pair(&server, &replica, "").await;
    let refused = one.send(message(&one, "hello", &[("idempotency-key", "k")])).await;
    assert_eq!((refused.status, refused.text().as_str()), (422, "{\"detail\":\"no\"}"));
    let again = other.send(message(&other, "hello", &[("idempotency-key", "k")])).await;
    assert_eq!((again.status, again.header("x-turn")), (200, None));
    assert_eq!(replica.count(), 2);
}

#[tokio::test]
async fn gateways_go_on_alone_or_refuse_while_their_redis_is_gone() {
    let mut server = RedisServer::start();
    let replica = Replica::start(|_| json(letta_answer("alone"))).await;
    let [one, _] = pair(&server, &replica, "").await;
    let strict = gateway(&[&replica], &store(&server, "on_store_error: deny")).await;
    strict.metric_is(UP, 1.0).await;
    server.kill();
    let answer = one.send(message(&one, "hello", &[])).await;
    assert_eq!(answer.status, 200);
    assert!(one.metric("letta_gateway_turns_alone_total").await >= 1.0);
    let again = one.send(message(&one, "hello", RETRY)).await;
    assert_eq!((&again.body, again.header("x-turn")), (&answer.body, Some("replayed")), "its own turns it knows");
    let sends = replica.count();
    let refused = strict.send(message(&strict, "hello", &[])).await;
    assert_eq!((refused.status, refused.json()["error"]["type"].as_str()), (503, Some("gateway_store_down")));
    assert_eq!((refused.header("retry-after"), refused.header("x-should-retry")), (Some("1"), None));
    assert_eq!(replica.count(), sends, "nothing was sent");
    assert_eq!(strict.get(&format!("/v1/agents/{AGENT}")).await.status, 200, "reads do not need it");
}

#[tokio::test]
async fn what_a_redis_has_lost_is_told_again_however_many_turns_came_after_it() {
    let mut server = RedisServer::start();
    let (replica, mut answers) = asked().await;
    let [one, other] = pair(&server, &replica, "").await.map(Arc::new);
    let mut first = None;
    for number in 0..40 {
        let told = begin(&one, message(&one, &format!("over {number}"), &[]));
        answers.recv().await.unwrap().send(json(letta_answer(&format!("kept {number}")))).ok();
        let told = told.await.unwrap();
        assert_eq!(told.status, 200);
        first.get_or_insert(told);
    }
    server.kill();
    server.restart();
    let again = begin(&other, message(&other, "over 0", RETRY)).await.unwrap();
    assert_eq!((again.status, &again.body), (200, &first.unwrap().body));
    assert_eq!(replica.count(), 40, "nothing was sent twice");
}

#[tokio::test]
async fn what_a_redis_has_lost_is_told_again_by_who_knows_it() {
    let mut server = RedisServer::start();
    let (replica, mut answers) = asked().await;
    let [one, other] = pair(&server, &replica, "").await.map(Arc::new);
    let over = begin(&one, message(&one, "over", &[]));
    answers.recv().await.unwrap().send(json(letta_answer("kept"))).ok();
    let over = over.await.unwrap();
    let running = begin(&one, message(&one, "running", &[]));
    let answer = answers.recv().await.unwrap();
    server.kill();
    server.restart();
    // both come while the gateways still look for it
    let again = begin(&other, message(&other, "over", RETRY));
    let joined = begin(&other, message(&other, "running", RETRY));
    // one that finds Redis before the gateway does that knows its turn waits for the lane, and is told of it there
    answer.send(json(letta_answer("went on"))).ok();
    assert_eq!(again.await.unwrap().body, over.body);
    let (running, joined) = (running.await.unwrap(), joined.await.unwrap());
    assert_eq!((joined.status, &joined.body), (200, &running.body));
    assert_eq!(replica.count(), 2, "nothing was sent twice");
}

/// The first owner is gone for good; leases are 10 s.
#[tokio::test]
async fn the_turn_of_a_gateway_that_was_killed_is_not_sent_again_and_its_lane_is_free_once_its_run_is_over() {
    let server = RedisServer::start();
    let (begun, mut feeds) = mpsc::unbounded_channel();
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_over = Arc::clone(&over);
    let replica = Replica::start(move |seen| match seen.target.as_str() {
        target if target.ends_with("/messages/stream") => {
            let (feed, events) = mpsc::channel(16);
            begun.send(feed).expect("the test takes it");
            Reply::Stream(events)
        }
        target if target.ends_with("/messages") => json(letta_answer("next")),
        target if target.starts_with("/v1/runs/run-") => {
            let status = if is_over.load(std::sync::atomic::Ordering::Relaxed) { "completed" } else { "running" };
            json(format!("{{\"id\":\"{RUN}\",\"agent_id\":\"{AGENT}\",\"status\":\"{status}\"}}"))
        }
        // what Letta takes for active
        target if target.starts_with("/v1/runs/?") && !is_over.load(std::sync::atomic::Ordering::Relaxed) => {
            json(format!("[{{\"id\":\"{RUN}\",\"agent_id\":\"{AGENT}\",\"status\":\"running\",\"created_at\":\"2999-01-01T00:00:00Z\"}}]"))
        }
        _ => json("[]"),
    })
    .await;
    let letta = format!("    servers: [ {{ url: http://{} }} ]", replica.address);
    let mortal = Process::start(&yaml(&letta, &store(&server, ""))).await;
    mortal.metric_is(UP, 1.0).await;
    // longer than a gateway's death goes unnoticed
    let other = Arc::new(gateway(&[&replica], &store(&server, "keepalive: 60s")).await);
    other.metric_is(UP, 1.0).await;

    let stream = mortal.open(stream_request(&mortal)).await;
    let feed: Feed = feeds.recv().await.unwrap();
    say(&feed, &event(1)).await;
    // until the other gateway knows the run its owner has not told it yet
    let resume = format!("/v1/runs/{RUN}/stream");
    let resumed = loop {
        let answer = other.open(send_to(&other, &resume, "{}", &[])).await;
        if answer.headers().contains_key("x-turn") {
            break answer;
        }
        tokio::task::yield_now().await;
    };
    mortal.signal("KILL");
    mortal.exit_code().await;
    drop((stream, resumed));

    let next = begin(&other, message(&other, "next", &[]));
    let retry = Answer::of(
        other
            .open({
                let mut request = stream_request(&other);
                request.headers_mut().insert("x-stainless-retry-count", "1".parse().unwrap());
                request
            })
            .await,
    )
    .await
    .text();
    assert!(retry.starts_with(&event(1)), "what was told before is told again: {retry}");
    let told = retry.trim_start_matches(&event(1)).to_owned();
    assert!(told.starts_with("event: error\n") && told.contains(RUN) && told.contains("still running"), "{told}");
    assert!(told.ends_with("data: [DONE]\n\n"), "{told}");
    assert!(!next.is_finished(), "the run that was left behind is still at work");
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(next.await.unwrap().status, 200);
    let sends = replica.seen().iter().filter(|seen| seen.target.ends_with("/messages/stream")).count();
    assert_eq!(sends, 1, "the message was not sent again");
    drop(feed);
}

#[tokio::test]
async fn a_turn_that_never_began_at_a_gateway_that_was_killed_is_begun_by_another() {
    let server = RedisServer::start();
    let (replica, mut answers) = asked().await;
    let letta = format!("    servers: [ {{ url: http://{} }} ]", replica.address);
    let mortal = Arc::new(Process::start(&yaml(&letta, &store(&server, ""))).await);
    mortal.metric_is(UP, 1.0).await;
    let other = Arc::new(gateway(&[&replica], &store(&server, "")).await);
    other.metric_is(UP, 1.0).await;
    let first = begin(&other, message(&other, "first", &[]));
    let answer = answers.recv().await.unwrap();
    // waits at the one that dies
    let waiting = tokio::spawn({
        let mortal = Arc::clone(&mortal);
        async move { mortal.open(message(&mortal, "second", &[])).await.status() }
    });
    mortal.metric_is("letta_gateway_turns_waiting", 1.0).await;
    mortal.signal("KILL");
    mortal.exit_code().await;
    waiting.abort();
    let retry = begin(&other, message(&other, "second", RETRY));
    answer.send(json(letta_answer("1"))).ok();
    assert_eq!(first.await.unwrap().status, 200);
    tokio::time::timeout(Duration::from_secs(60), answers.recv())
        .await
        .unwrap()
        .unwrap()
        .send(json(letta_answer("2")))
        .ok();
    assert!(retry.await.unwrap().text().contains('2'));
    assert_eq!(replica.seen().iter().filter(|seen| seen.target.ends_with("/messages")).count(), 2);
    until("all was answered", || answers.is_empty()).await;
}
