//! Letta's conflicts (409): what passes by itself is waited out, and all others are the client's, byte for byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Client, HELLO, Letta, Opening, RETRY, RUN, WAITING, ended, messages, post, say, turning};
use crate::support::{AGENT, Reply, json, letta_answer, until};

fn busy() -> String {
    format!(
        "{{\"detail\":\"CONFLICT: Cannot send a new message: Another request (run_id={RUN}) is currently being processed for this conversation. Please wait for it to complete.\",\"run_id\":\"{RUN}\"}}"
    )
}

/// A replica where a run goes on until the flag is set.
async fn busy_letta() -> (Letta, Arc<AtomicBool>) {
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let letta = Letta::with(move |_| {
        let status = if over.load(Ordering::Relaxed) { "completed" } else { "running" };
        json(format!("{{\"id\":\"{RUN}\",\"agent_id\":\"{AGENT}\",\"status\":\"{status}\"}}"))
    });
    (letta.await, is_over)
}

/// How often Letta was asked about the run.
fn asked(letta: &Letta) -> usize {
    let run = format!("/v1/runs/{RUN}");
    letta.others().iter().filter(|seen| seen.method == "GET" && seen.target == run).count()
}

fn waited_out(kind: &str) -> String {
    format!("letta_gateway_conflicts_total{{kind=\"{kind}\"}}")
}

#[tokio::test]
async fn a_busy_conversation_is_waited_for_and_the_message_sent_again_when_its_run_is_over() {
    // the second is too long to be kept with its head
    for body in [HELLO.to_owned(), super::say(&"x".repeat(5000))] {
        let (mut letta, is_over) = busy_letta().await;
        let proxy = turning(&[&letta], "").await;
        let path = "/v1/conversations/conv-1/messages?x=1";
        let client = Client::sends(&proxy, post(&proxy, path, &body, &[("x-two", "first"), ("x-two", "second")]));
        let first = letta.next().await;
        let headers = first.seen.headers.clone();
        first.answer(Reply::Json(409, busy()));
        until("the run is asked about", || asked(&letta) >= 2).await;
        assert_eq!((letta.sends(), proxy.metric(WAITING).await), (1, 1.0), "not while the run goes on");
        is_over.store(true, Ordering::Relaxed);
        let again = letta.next().await;
        assert_eq!((again.text(), &*again.seen.target), (body, path));
        assert_eq!(again.seen.headers, headers, "it is the same message");
        assert_eq!(headers.get_all("x-two").iter().collect::<Vec<_>>(), ["first", "second"]);
        again.streams(&[super::STOP, super::DONE]).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.text()), (200, [super::STOP, super::DONE].concat()));
        assert_eq!(proxy.metric(&waited_out("busy")).await, 1.0);
        proxy.metric_is(&ended("end_turn"), 1.0).await;
        assert_eq!(proxy.metric(&ended("refused")).await, 0.0, "nobody was refused");
        assert!(letta.others().iter().all(|seen| seen.method == "GET"), "a run that goes on is not cancelled");
    }
}

#[tokio::test]
async fn a_conversation_that_stays_busy_is_told_in_lettas_own_words() {
    let (mut letta, _) = busy_letta().await;
    let proxy = turning(&[&letta], "lane: { max_wait: 300ms }").await;
    let client = Client::says(&proxy, HELLO);
    letta.next().await.answer(Reply::Json(409, busy()));
    // when patience is over it is tried once more
    letta.next().await.answer(Reply::Json(409, busy()));
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.text()), (409, busy()));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(proxy.metric(&ended("refused")).await, 1.0);
    // it was not executed: its retry is sent
    let retry = Client::sends(&proxy, post(&proxy, &messages(), HELLO, RETRY));
    letta.next().await.answer(json(letta_answer("x")));
    assert_eq!(retry.answer().await.text(), letta_answer("x"));
    assert_eq!(letta.sends(), 3);
}

#[tokio::test]
async fn who_leaves_while_its_conversation_is_busy_is_not_sent_again() {
    let (mut letta, is_over) = busy_letta().await;
    let proxy = turning(&[&letta], "").await;
    for stream in [false, true] {
        let before = asked(&letta);
        if stream {
            let client = Opening::says(&proxy, HELLO);
            letta.next().await.answer(Reply::Json(409, busy()));
            until("the run is asked about", || asked(&letta) > before).await;
            client.leaves().await;
        } else {
            let client = Client::says(&proxy, HELLO);
            letta.next().await.answer(Reply::Json(409, busy()));
            until("the run is asked about", || asked(&letta) > before).await;
            client.leaves().await;
        }
        proxy.metric_is(&ended("never_sent"), if stream { 2.0 } else { 1.0 }).await;
    }
    is_over.store(true, Ordering::Relaxed);
    // its lane is free
    let other = Client::says(&proxy, &say("other"));
    let sent = letta.next().await;
    assert_eq!(sent.text(), say("other"));
    sent.answer(json(letta_answer("x")));
    assert_eq!((other.answer().await.status, letta.sends()), (200, 3));
    assert_eq!(proxy.metric(WAITING).await, 0.0);
}

#[tokio::test]
async fn a_busy_database_is_given_the_time_it_asks_for() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "").await;
    let client = Client::says(&proxy, HELLO);
    let detail = "{\"detail\":\"CONFLICT: block with id block-1 was updated by another transaction\"}";
    let headers = vec![("content-type", "application/json"), ("retry-after", "1")];
    letta.next().await.answer(Reply::Full(409, headers, detail.into()));
    letta.next().await.answer(json(letta_answer("x")));
    assert_eq!(client.answer().await.text(), letta_answer("x"));
    assert_eq!(proxy.metric(&waited_out("database")).await, 1.0);
    assert_eq!(letta.sends(), 2);
}

#[tokio::test]
async fn all_other_conflicts_pass_at_once_and_byte_for_byte() {
    let pending = "{\"detail\":{\"code\":\"PENDING_APPROVAL\",\"message\":\"CONFLICT: Cannot send a new message: The agent is waiting for approval on a tool call.\",\"pending_request_id\":\"message-1\"}}";
    let json_type = vec![("content-type", "application/json")];
    let with = |retry_after| vec![("content-type", "application/json"), ("retry-after", retry_after)];
    for (headers, body) in [
        (json_type.clone(), pending),
        (with("1"), pending),
        (json_type.clone(), "{\"detail\": \"CONFLICT: something else\"}"),
        (with("3600"), "{\"detail\":\"CONFLICT: come back in an hour\"}"),
        (json_type.clone(), "no JSON"),
        (json_type, ""),
    ] {
        let mut letta = Letta::start().await;
        let proxy = turning(&[&letta], "").await;
        let client = Client::says(&proxy, HELLO);
        letta.next().await.answer(Reply::Full(409, headers.clone(), body.into()));
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (409, body));
        for (name, value) in headers {
            assert_eq!(answer.header(name), Some(value), "{body}");
        }
        assert_eq!((letta.sends(), letta.others().len()), (1, 0), "{body}");
        for kind in ["busy", "database"] {
            assert_eq!(proxy.metric(&waited_out(kind)).await, 0.0);
        }
    }
}

#[tokio::test]
async fn without_lanes_nobody_has_the_patience() {
    let (mut letta, _) = busy_letta().await;
    let proxy = turning(&[&letta], "lane: off").await;
    let client = Client::says(&proxy, HELLO);
    letta.next().await.answer(Reply::Json(409, busy()));
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.text()), (409, busy()));
    assert_eq!((letta.sends(), letta.others().len()), (1, 0));
}
