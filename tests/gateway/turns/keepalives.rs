//! A silent stream says that it lives, in comments that no client reads, and what fails after its head is an event.

use super::{
    Client, DONE, HELLO, KEPT, Letta, Opening, PING, RETRY, STOP, WAITING, ended, last_words, post, repeats, say,
    streams, turning, without_comments, word, write,
};
use crate::support::{AGENT, Reply, gateway, json, letta_answer, nobody, start, yaml};

const COMMENT: &str = ": keepalive\n\n";

#[tokio::test]
async fn silence_is_filled_with_comments_and_no_event_is_cut_by_one() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "keepalive: 20ms").await;
    let client = Opening::says(&proxy, HELLO);
    let feed = letta.next().await.stream();
    write(&feed, PING).await;
    let mut client = client.head().await;
    client.hears(&[PING, COMMENT, COMMENT].concat()).await;
    let long = word("a word that comes in halves");
    let (half, other) = long.split_at(30);
    write(&feed, half).await;
    client.hears(&[PING, COMMENT, COMMENT, COMMENT, COMMENT].concat()).await;
    write(&feed, other).await;
    client.hears(&[&*long, COMMENT].concat()).await;
    write(&feed, STOP).await;
    write(&feed, DONE).await;
    drop(feed);
    let whole = client.rest().await;
    let events = [PING, &long, STOP, DONE].concat();
    assert_eq!(without_comments(&whole), events);
    for line in whole.lines() {
        assert!(line.is_empty() || line == ": keepalive" || line.starts_with("data: "), "{line:?} in {whole:?}");
    }
    // the silence is this client's, not the turn's
    proxy.metric_is(KEPT, 1.0).await;
    assert_eq!(proxy.send(post(&proxy, &streams(), HELLO, RETRY)).await.text(), events);
}

#[tokio::test]
async fn the_head_goes_out_after_the_first_silence_and_the_answer_follows() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "keepalive: 20ms").await;
    let agents = post(&proxy, &format!("/v1/agents/{AGENT}/messages"), "{\"input\":\"x\",\"streaming\":true}", &[]);
    let chat =
        format!("{{\"model\":\"{AGENT}\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"x\"}}]}}");
    for request in [
        post(&proxy, &streams(), HELLO, &[]),
        agents,
        post(&proxy, "/v1/conversations/conv-1/messages", HELLO, &[]),
        post(&proxy, "/v1/chat/completions", &chat, &[]),
    ] {
        let target = request.uri().to_string();
        let client = Opening::sends(&proxy, request);
        let sent = letta.next().await;
        let mut client = client.head().await;
        assert_eq!(client.head.status, 200, "{target}");
        assert_eq!(client.header("content-type"), Some("text/event-stream; charset=utf-8"));
        assert_eq!(client.header("cache-control"), Some("no-cache, no-transform"));
        assert_eq!((client.header("x-accel-buffering"), client.header("x-queue-position")), (Some("no"), None));
        client.hears(&[COMMENT, COMMENT].concat()).await;
        sent.streams(&[PING, STOP, DONE]).await;
        assert_eq!(without_comments(&client.rest().await), [PING, STOP, DONE].concat(), "{target}");
    }
}

#[tokio::test]
async fn a_retry_of_a_silent_stream_gets_comments_of_its_own() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "keepalive: 20ms").await;
    let first = Opening::says(&proxy, HELLO);
    let sent = letta.next().await;
    let mut retry = Opening::sends(&proxy, post(&proxy, &streams(), HELLO, RETRY)).head().await;
    assert_eq!(
        (retry.header("x-turn"), retry.header("content-type")),
        (Some("joined"), Some("text/event-stream; charset=utf-8"))
    );
    retry.hears(COMMENT).await;
    sent.streams(&[PING, STOP, DONE]).await;
    for client in [first.head().await, retry] {
        assert_eq!(without_comments(&client.rest().await), [PING, STOP, DONE].concat());
    }
    assert_eq!((letta.sends(), proxy.metric(&repeats("joined")).await), (1, 1.0));
}

#[tokio::test]
async fn an_early_refusal_keeps_its_status() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "keepalive: 10s").await;
    let client = Client::sends(&proxy, post(&proxy, &streams(), HELLO, &[]));
    letta.next().await.answer(Reply::Json(422, "{\"detail\":\"Letta's own words\"}".into()));
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.text().as_str()), (422, "{\"detail\":\"Letta's own words\"}"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn a_refusal_after_the_head_is_an_event_with_lettas_words() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "keepalive: 20ms").await;
    for (status, body) in [
        (404, "{\"detail\":\"Agent with ID agent-1 not found\"}"),
        (429, "{\"error\":{\"type\":\"llm_rate_limit\",\"message\":\"slow down\"}}"),
        (500, "{\"detail\":\"An unknown error occurred\"}"),
    ] {
        let client = Opening::says(&proxy, &say(&status.to_string()));
        let sent = letta.next().await;
        let client = client.head().await;
        sent.answer(Reply::Json(status, body.into()));
        let text = client.rest().await;
        let event = last_words(&without_comments(&text));
        assert_eq!((&event["error_type"], &event["run_id"]), (&"upstream_refused".into(), &serde_json::Value::Null));
        assert_eq!(event["message"], format!("Letta answered {status}: {body}"));
    }
    assert_eq!(proxy.metric(&ended("refused")).await, 3.0);
    for line in proxy.log(3).await {
        assert_eq!((&line["status"], &line["outcome"]), (&200.into(), &"refused".into()), "{line}");
    }
}

#[tokio::test]
async fn what_fails_after_the_head_is_an_event_of_its_reason() {
    // nobody to send it to, once it has waited for its agent
    let mut letta = Letta::start().await;
    let letta_at = letta.replica.address;
    let proxy = turning(&[&letta], "keepalive: 20ms").await;
    let first = Client::says(&proxy, &say("first"));
    let sent = letta.next().await;
    let second = Opening::says(&proxy, &say("second"));
    proxy.metric_is(WAITING, 1.0).await;
    let second = second.head().await;
    sent.answer(json(letta_answer("x")));
    let lost = letta.next().await;
    assert_eq!(first.answer().await.status, 200);
    // read, and never answered
    lost.answer(Reply::Close);
    let event = last_words(&without_comments(&second.rest().await));
    assert_eq!(event["error_type"], "upstream_closed", "{event}");
    let log = proxy.log(2).await;
    assert_eq!((&log[1]["reason"], &log[1]["outcome"]), (&"upstream_stream_broken".into(), &"broken".into()));
    assert_eq!(log[1]["upstream"], letta_at.to_string());
    assert_eq!(letta.sends(), 2);

    // a chat's stream tells it as that dialect does
    let chat =
        format!("{{\"model\":\"{AGENT}\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"x\"}}]}}");
    let client = Opening::sends(&proxy, post(&proxy, "/v1/chat/completions", &chat, &[]));
    let sent = letta.next().await;
    let client = client.head().await;
    sent.answer(Reply::Json(422, "{\"detail\":\"no\"}".into()));
    let text = without_comments(&client.rest().await);
    let (error, done) = text.strip_prefix("data: ").unwrap().split_once("\n\n").unwrap();
    let error: serde_json::Value = serde_json::from_str(error).unwrap();
    assert_eq!((&error["error"]["type"], done), (&"upstream_refused".into(), DONE), "{text}");
}

#[tokio::test]
async fn nobody_to_send_it_to_is_told_as_that_before_the_head_and_after() {
    let letta = format!("    servers: [ {{ url: http://{} }} ]", nobody().await);
    let proxy = start(&yaml(&letta, "")).await;
    for path in [streams(), format!("/v1/agents/{AGENT}/messages")] {
        let answer = proxy.post(&path, HELLO).await;
        assert_eq!((answer.status, answer.header("x-should-retry")), (503, None), "{path}");
        assert_eq!(answer.json()["error"]["type"], "upstream_connect");
    }
    assert_eq!(proxy.metric(&ended("never_sent")).await, 2.0);
}

#[tokio::test]
async fn an_answer_that_is_no_stream_has_no_comments() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "keepalive: 1ms").await;
    let slow = Client::says(&proxy, HELLO);
    let sent = letta.next().await;
    // many silences long
    let stream = Opening::sends(&proxy, post(&proxy, "/v1/conversations/conv-1/messages", HELLO, &[]));
    let sent_stream = letta.next().await;
    let mut stream = stream.head().await;
    stream.hears(&COMMENT.repeat(5)).await;
    let (feed, pieces) = tokio::sync::mpsc::channel(4);
    sent.answer(Reply::Pieces("application/json", pieces));
    let answer = letta_answer("x");
    let (half, other) = answer.split_at(20);
    write(&feed, half).await;
    stream.hears(&COMMENT.repeat(10)).await;
    write(&feed, other).await;
    drop(feed);
    assert_eq!(slow.answer().await.text(), answer);
    sent_stream.streams(&[STOP, DONE]).await;
    stream.rest().await;
}

#[tokio::test]
async fn a_stream_of_no_message_is_left_alone() {
    let letta = Letta::with(|seen| {
        assert!(seen.target.ends_with("/stream"));
        let (feed, events) = tokio::sync::mpsc::channel(4);
        feed.try_send(Some(PING.into())).unwrap();
        feed.try_send(Some(DONE.into())).unwrap();
        Reply::Stream(events)
    })
    .await;
    let proxy = gateway(&[&letta.replica], "turns: { keepalive: 1ms }").await;
    let answer = proxy.post("/v1/runs/run-of-somebody/stream", "{}").await;
    assert_eq!((answer.text(), answer.header("x-turn")), ([PING, DONE].concat(), None));
    assert_eq!(answer.header("server-timing"), None);
}
