//! A run outlives its client, or is cancelled with it, as the configuration has it; its place in flight goes with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{
    Client, DETACHED, DONE, HELLO, KEPT, Letta, Opening, PING, RETRY, RUN, STOP, USAGE, ended, messages, post, repeats,
    say, streams, turning, word, write,
};
use crate::support::{AGENT, Proxy, Reply, Seen, gateway, json, letta_answer};

const CANCEL: &str = "/messages/cancel";

/// How Letta answers what is asked about its one run. `status`: what it is in.
fn runs(seen: &Seen, status: &str) -> Reply {
    let run = format!(
        "{{\"id\":\"{RUN}\",\"agent_id\":\"{AGENT}\",\"status\":\"{status}\",\"created_at\":\"2999-01-01T00:00:00Z\"}}"
    );
    match &*seen.target {
        target if target == format!("/v1/runs/{RUN}") => json(run),
        target if target.starts_with("/v1/runs/?") => {
            json(if status == "running" { format!("[{run}]") } else { "[]".into() })
        }
        target if target.ends_with(CANCEL) => json(format!("{{\"{RUN}\":\"cancelled\"}}")),
        _ => json("{}"),
    }
}

/// The bodies of what asked to cancel.
fn cancelled(letta: &Letta) -> Vec<String> {
    let cancels = letta.others().into_iter().filter(|seen| seen.target.ends_with(CANCEL));
    cancels.map(|seen| String::from_utf8_lossy(&seen.body).into_owned()).collect()
}

async fn asked_to_cancel(letta: &Letta) {
    crate::support::until("Letta is asked to cancel", || !cancelled(letta).is_empty()).await;
}

async fn retried(proxy: &Proxy, path: &str) -> crate::support::Answer {
    proxy.send(post(proxy, path, HELLO, RETRY)).await
}

#[tokio::test]
async fn detached_a_run_goes_on_and_its_retry_gets_the_answer() {
    let mut letta = Letta::with(|seen| runs(seen, "running")).await;
    let proxy = turning(&[&letta], "").await;
    let client = Client::says(&proxy, HELLO);
    let sent = letta.next().await;
    client.leaves().await;
    proxy.metric_is(DETACHED, 1.0).await;
    sent.answer(json(letta_answer("for nobody yet")));
    proxy.metric_is(KEPT, 1.0).await;
    assert_eq!(proxy.metric(&ended("end_turn")).await, 1.0);
    let retry = retried(&proxy, &messages()).await;
    assert_eq!((retry.header("x-turn"), retry.text()), (Some("replayed"), letta_answer("for nobody yet")));

    let client = Opening::says(&proxy, HELLO);
    let feed = letta.next().await.stream();
    write(&feed, PING).await;
    let mut client = client.head().await;
    client.hears(PING).await;
    drop(client);
    proxy.metric_is(DETACHED, 2.0).await;
    for event in [&*word("x"), STOP, USAGE, DONE] {
        write(&feed, event).await;
    }
    drop(feed);
    proxy.metric_is(KEPT, 2.0).await;
    let retry = retried(&proxy, &streams()).await;
    assert_eq!(retry.header("x-turn"), Some("replayed"));
    assert_eq!(retry.text(), [PING, &word("x"), STOP, USAGE, DONE].concat());
    assert_eq!(letta.sends(), 2);
    assert_eq!(cancelled(&letta), Vec::<String>::new());
}

#[tokio::test]
async fn cancelled_is_that_very_run_once_its_last_client_has_left() {
    let mut letta = Letta::with(|seen| runs(seen, "running")).await;
    let proxy = turning(&[&letta], "on_disconnect: cancel").await;
    let first = Opening::says(&proxy, HELLO);
    let feed = letta.next().await.stream();
    write(&feed, PING).await;
    let mut first = first.head().await;
    first.hears(PING).await;
    let mut retry = Opening::sends(&proxy, post(&proxy, &streams(), HELLO, RETRY)).head().await;
    retry.hears(PING).await;
    drop(first);
    write(&feed, &word("on")).await;
    retry.hears("on").await;
    // the first one's leaving has been noticed, and nothing has been asked because of it
    proxy.log(1).await;
    assert_eq!(cancelled(&letta), Vec::<String>::new(), "somebody follows it still");
    drop(retry);
    asked_to_cancel(&letta).await;
    write(&feed, "data: {\"message_type\": \"stop_reason\", \"stop_reason\": \"cancelled\"}\n\n").await;
    drop(feed);
    proxy.metric_is(&ended("cancelled"), 1.0).await;
    assert_eq!(cancelled(&letta), [format!("{{\"run_ids\":[\"{RUN}\"]}}")]);
    let cancel = letta.others().into_iter().find(|seen| seen.target.ends_with(CANCEL)).unwrap();
    assert_eq!((cancel.method.as_str(), cancel.target), ("POST", format!("/v1/agents/{AGENT}{CANCEL}")));
    assert_eq!(letta.sends(), 1);
}

#[tokio::test]
async fn a_run_that_has_not_said_its_name_is_found_and_cancelled() {
    let mut letta = Letta::with(|seen| runs(seen, "running")).await;
    let proxy = turning(&[&letta], "on_disconnect: cancel").await;
    let client = Client::says(&proxy, HELLO);
    let sent = letta.next().await;
    client.leaves().await;
    asked_to_cancel(&letta).await;
    sent.answer(json(letta_answer("x").replace("end_turn", "cancelled")));
    proxy.metric_is(&ended("cancelled"), 1.0).await;
    assert_eq!(cancelled(&letta), [format!("{{\"run_ids\":[\"{RUN}\"]}}")]);
    let asked = letta.others();
    let of_agent = format!("/v1/runs/?agent_id={AGENT}&active=true&limit=10");
    assert!(asked.iter().any(|seen| seen.target == of_agent), "{asked:?}");
}

#[tokio::test]
async fn a_run_that_is_over_is_not_cancelled() {
    let mut letta = Letta::with(|seen| runs(seen, "completed")).await;
    let proxy = turning(&[&letta], "on_disconnect: cancel").await;
    let client = Opening::says(&proxy, HELLO);
    let feed = letta.next().await.stream();
    write(&feed, PING).await;
    client.head().await.hears(PING).await;
    // it has left
    crate::support::until("Letta is asked about the run", || {
        letta.others().iter().any(|seen| seen.target.starts_with("/v1/runs/"))
    })
    .await;
    write(&feed, STOP).await;
    drop(feed);
    proxy.metric_is(&ended("end_turn"), 1.0).await;
    // and whoever reads to the end has nothing cancelled
    let client = Client::says(&proxy, HELLO);
    letta.next().await.answer(json(letta_answer("x")));
    assert_eq!(client.answer().await.status, 200);
    proxy.metric_is(&ended("end_turn"), 2.0).await;
    assert_eq!(cancelled(&letta), Vec::<String>::new());
}

#[tokio::test]
async fn drained_a_run_is_counted_and_its_answer_kept_for_nobody() {
    let mut letta = Letta::with(|seen| runs(seen, "running")).await;
    let proxy = turning(&[&letta], "on_disconnect: drain").await;
    let (mut turns, mut tokens) = (0.0, 0.0);
    let mut counted = async |proxy: &Proxy| {
        (turns, tokens) = (turns + 1.0, tokens + 670.0);
        proxy.metric_is(&ended("end_turn"), turns).await;
        proxy.metric_is("letta_gateway_turn_tokens_total{kind=\"prompt\"}", tokens).await;
    };
    // before the head
    let client = Client::says(&proxy, HELLO);
    let sent = letta.next().await;
    client.leaves().await;
    proxy.metric_is(DETACHED, 1.0).await;
    sent.answer(json(letta_answer("x")));
    counted(&proxy).await;
    // in the middle of a stream
    let client = Opening::says(&proxy, HELLO);
    let feed = letta.next().await.stream();
    write(&feed, PING).await;
    client.head().await.hears(PING).await;
    proxy.metric_is(DETACHED, 2.0).await;
    for event in [STOP, USAGE, DONE] {
        write(&feed, event).await;
    }
    drop(feed);
    counted(&proxy).await;
    for path in [messages(), streams()] {
        let retry = retried(&proxy, &path).await;
        assert_eq!((retry.status, &retry.json()["error"]["type"]), (410, &"gateway_answer_not_kept".into()), "{path}");
    }
    assert_eq!(proxy.metric("letta_gateway_turns_kept").await, 2.0, "that they were there is known");
    assert_eq!(letta.sends(), 2, "nothing is sent again");
    assert_eq!(cancelled(&letta), Vec::<String>::new());
}

#[tokio::test]
async fn drained_an_answer_in_pieces_is_counted_too() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "on_disconnect: drain").await;
    let client = Client::says(&proxy, HELLO);
    let sent = letta.next().await;
    client.leaves().await;
    proxy.metric_is(DETACHED, 1.0).await;
    let (feed, pieces) = tokio::sync::mpsc::channel(4);
    sent.answer(Reply::Pieces("application/json", pieces));
    let answer = letta_answer("x");
    let (head, tail) = answer.split_at(answer.len() / 2);
    write(&feed, head).await;
    write(&feed, tail).await;
    drop(feed);
    proxy.metric_is("letta_gateway_turns_running", 0.0).await;
    assert_eq!(proxy.metric(&ended("end_turn")).await, 1.0, "{:?}", proxy.series().await);
    assert_eq!(proxy.metric("letta_gateway_turn_tokens_total{kind=\"prompt\"}").await, 670.0);
    assert_eq!(retried(&proxy, &messages()).await.status, 410);
}

#[tokio::test]
async fn a_turn_has_one_place_in_flight_however_many_follow_it() {
    let mut letta = Letta::start().await;
    let replicas = [&letta.replica];
    let proxy = Arc::new(gateway(&replicas, "plans:\n  standard: { in_flight: 1 }").await);
    let gauge = "letta_gateway_key_requests_in_flight{key=\"team-a\"}";
    let idempotent = [("idempotency-key", "0b1c"), ("x-stainless-retry-count", "1")];
    let first = Client::sends(&proxy, post(&proxy, &messages(), HELLO, &idempotent[..1]));
    let sent = letta.next().await;
    let by_key = Client::sends(&proxy, post(&proxy, &messages(), HELLO, &idempotent[..1]));
    proxy.metric_is(&repeats("joined"), 1.0).await;
    let by_count = Client::sends(&proxy, post(&proxy, &messages(), HELLO, &idempotent[1..]));
    proxy.metric_is(&repeats("joined"), 2.0).await;
    let refusals = AtomicUsize::new(0);
    let refused = async |headers: &[(&str, &str)]| {
        refusals.fetch_add(1, Ordering::Relaxed);
        let refused = proxy.send(post(&proxy, &messages(), &say("another"), headers)).await;
        assert_eq!((refused.status, &refused.json()["error"]["type"]), (429, &"policy_in_flight_limited".into()));
    };
    refused(&[]).await;
    refused(RETRY).await;
    assert_eq!(proxy.metric(gauge).await, 1.0);
    // without any client it has its place still
    for client in [first, by_key, by_count] {
        client.leaves().await;
    }
    proxy.metric_is(DETACHED, 1.0).await;
    refused(&[]).await;
    assert_eq!(proxy.metric(gauge).await, 1.0);
    let late = Client::sends(&proxy, post(&proxy, &messages(), HELLO, RETRY));
    proxy.metric_is(&repeats("joined"), 3.0).await;
    sent.answer(json(letta_answer("x")));
    assert_eq!(late.answer().await.text(), letta_answer("x"));
    proxy.metric_is(gauge, 0.0).await;
    let decisions = "letta_gateway_limit_decisions_total{key=\"team-a\",outcome=\"refused\",window=\"in_flight\"}";
    assert_eq!(proxy.metric(decisions).await, refusals.load(Ordering::Relaxed) as f64);
    assert_eq!(letta.sends(), 1);
}
