//! In order: one turn at a time for each agent and each conversation, first come first served; the wait is bounded, is
//! told, and ends when its client leaves.

use super::{
    Client, HELLO, Letta, Opening, RETRY, WAITING, ended, last_words, messages, post, repeats, say, streams, turning,
};
use crate::support::{AGENT, Proxy, json, letta_answer};

/// Without its lane a message would be here at once: none is.
async fn has_only(letta: &Letta, proxy: &Proxy, sends: usize, waiting: u32) {
    proxy.metric_is(WAITING, waiting.into()).await;
    // whoever may pass has passed: a read goes the same way
    assert_eq!(proxy.get(&format!("/v1/agents/{AGENT}")).await.status, 200);
    assert_eq!(letta.sends(), sends);
}

fn refusals(reason: &str) -> String {
    format!("letta_gateway_lane_refusals_total{{reason=\"{reason}\"}}")
}

#[tokio::test]
async fn turns_of_one_agent_never_overlap_and_the_first_to_come_is_the_first_served() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "").await;
    let mut clients = vec![Client::says(&proxy, &say("0"))];
    let mut sent = letta.next().await;
    for number in 1..5_u32 {
        clients.push(Client::says(&proxy, &say(&number.to_string())));
        proxy.metric_is(WAITING, number.into()).await;
    }
    for (number, client) in (0..).zip(clients) {
        assert_eq!(sent.text(), say(&number.to_string()));
        has_only(&letta, &proxy, number as usize + 1, 4 - number).await;
        sent.answer(json(letta_answer(&number.to_string())));
        assert_eq!(client.answer().await.text(), letta_answer(&number.to_string()));
        if number == 4 {
            break;
        }
        sent = letta.next().await;
    }
    assert_eq!(proxy.metric(&ended("end_turn")).await, 5.0);
}

#[tokio::test]
async fn every_route_to_an_agent_shares_its_lane() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "").await;
    let default = format!("{{\"input\":\"x\",\"streaming\":false,\"agent_id\":\"{AGENT}\"}}");
    let chat = format!("{{\"model\":\"{AGENT}\",\"messages\":[{{\"role\":\"user\",\"content\":\"x\"}}]}}");
    let ways = [
        (streams(), HELLO.to_owned()),
        (messages(), HELLO.to_owned()),
        ("/v1/conversations/default/messages".to_owned(), default),
        (format!("/v1/conversations/{AGENT}/messages"), "{\"input\":\"x\",\"streaming\":false}".to_owned()),
        ("/v1/chat/completions".to_owned(), chat),
        (format!("/latest/agents/{AGENT}/messages"), "{\"input\":\"x\"}".to_owned()),
    ];
    let mut clients = Vec::new();
    for (number, (path, body)) in (0..).zip(&ways) {
        clients.push(Client::sends(&proxy, post(&proxy, path, body, &[])));
        proxy.metric_is(WAITING, number.into()).await;
    }
    for ((path, body), client) in ways.iter().zip(clients) {
        let sent = letta.next().await;
        assert_eq!(sent.text(), *body, "{path}");
        sent.answer(json(letta_answer("x")));
        assert_eq!(client.answer().await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn other_agents_conversations_and_reads_never_wait() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "").await;
    let quiet = "{\"input\":\"x\",\"streaming\":false}";
    let mut busy = Vec::new();
    for path in [
        messages(),
        "/v1/agents/agent-11111111-1111-4111-8111-111111111111/messages".to_owned(),
        "/v1/conversations/conv-1/messages".to_owned(),
        "/v1/conversations/conv-2/messages".to_owned(),
    ] {
        busy.push((Client::sends(&proxy, post(&proxy, &path, quiet, &[])), letta.next().await));
    }
    // a conversation has a lane, too
    let waiting = Client::sends(&proxy, post(&proxy, "/v1/conversations/conv-1/messages", quiet, &[]));
    has_only(&letta, &proxy, 4, 1).await;
    for read in ["", "/messages", "/context", "/core-memory"] {
        assert_eq!(proxy.get(&format!("/v1/agents/{AGENT}{read}")).await.status, 200, "{read}");
    }
    let cancel = proxy.post(&format!("/v1/agents/{AGENT}/messages/cancel"), "{}").await;
    assert_eq!(cancel.status, 200, "what ends a turn does not wait for its end");
    for (client, sent) in busy {
        sent.answer(json(letta_answer("x")));
        assert_eq!(client.answer().await.status, 200);
    }
    letta.next().await.answer(json(letta_answer("x")));
    assert_eq!(waiting.answer().await.status, 200);
}

#[tokio::test]
async fn a_full_lane_refuses_with_429_and_says_when_to_come_back() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "lane: { max_waiting: 1 }").await;
    let first = Client::says(&proxy, &say("first"));
    let sent = letta.next().await;
    let second = Client::says(&proxy, &say("second"));
    proxy.metric_is(WAITING, 1.0).await;
    for path in [messages(), streams()] {
        let refused = proxy.post(&path, &say("third")).await;
        assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")), "{path}");
        assert_eq!(refused.header("x-should-retry"), None, "it was not sent: both official clients may send it again");
        assert_eq!(refused.json()["error"]["type"], "policy_lane_full");
    }
    assert_eq!(proxy.metric(&refusals("full")).await, 2.0);
    has_only(&letta, &proxy, 1, 1).await;
    sent.answer(json(letta_answer("first")));
    letta.next().await.answer(json(letta_answer("second")));
    assert_eq!((first.answer().await.status, second.answer().await.text()), (200, letta_answer("second")));
    // its retry is a turn of its own: it never was one
    let retry = Client::sends(&proxy, post(&proxy, &messages(), &say("third"), RETRY));
    letta.next().await.answer(json(letta_answer("third")));
    let retry = retry.answer().await;
    assert_eq!((retry.header("x-turn"), retry.text()), (None, letta_answer("third")));
}

#[tokio::test]
async fn who_leaves_the_row_is_never_sent_and_holds_up_nobody() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "").await;
    let first = Client::says(&proxy, &say("first"));
    let sent = letta.next().await;
    let leaving = Client::says(&proxy, &say("leaving"));
    proxy.metric_is(WAITING, 1.0).await;
    let streaming = Opening::says(&proxy, &say("leaving, too"));
    proxy.metric_is(WAITING, 2.0).await;
    let last = Client::says(&proxy, &say("last"));
    proxy.metric_is(WAITING, 3.0).await;
    leaving.leaves().await;
    streaming.leaves().await;
    proxy.metric_is(WAITING, 1.0).await;
    assert_eq!(proxy.metric(&ended("never_sent")).await, 2.0);
    sent.answer(json(letta_answer("first")));
    let next = letta.next().await;
    assert_eq!(next.text(), say("last"));
    next.answer(json(letta_answer("last")));
    assert_eq!((first.answer().await.status, last.answer().await.text()), (200, letta_answer("last")));
    assert_eq!(letta.sends(), 2);
    assert_eq!(proxy.metric(super::DETACHED).await, 0.0, "what was never sent is nothing to detach from");
}

#[tokio::test]
async fn who_waits_with_a_retry_is_sent_once_when_one_of_both_stays() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "").await;
    let first = Client::says(&proxy, &say("first"));
    let sent = letta.next().await;
    let impatient = Client::says(&proxy, HELLO);
    proxy.metric_is(WAITING, 1.0).await;
    let retry = Client::sends(&proxy, post(&proxy, &messages(), HELLO, RETRY));
    proxy.metric_is(&repeats("joined"), 1.0).await;
    impatient.leaves().await;
    sent.answer(json(letta_answer("first")));
    letta.next().await.answer(json(letta_answer("second")));
    let retry = retry.answer().await;
    assert_eq!((retry.header("x-turn"), retry.text()), (Some("joined"), letta_answer("second")));
    assert_eq!((first.answer().await.status, letta.sends()), (200, 2));
}

#[tokio::test]
async fn who_has_waited_long_enough_is_told_so_and_was_never_sent() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "lane: { max_wait: 50ms }").await;
    let first = Client::says(&proxy, &say("first"));
    let sent = letta.next().await;
    for path in [messages(), streams()] {
        let refused = proxy.post(&path, &say("second")).await;
        assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{path}");
        assert_eq!(refused.header("x-should-retry"), None, "it may be sent again");
        assert_eq!(refused.json()["error"]["type"], "policy_lane_timeout");
    }
    assert_eq!(proxy.metric(&refusals("patience")).await, 2.0);
    assert_eq!(proxy.metric(&ended("never_sent")).await, 2.0);
    has_only(&letta, &proxy, 1, 0).await;
    sent.answer(json(letta_answer("first")));
    assert_eq!(first.answer().await.status, 200);
    let retry = Client::sends(&proxy, post(&proxy, &messages(), &say("second"), RETRY));
    letta.next().await.answer(json(letta_answer("second")));
    let retry = retry.answer().await;
    assert_eq!((retry.header("x-turn"), retry.text()), (None, letta_answer("second")));
}

#[tokio::test]
async fn a_stream_is_told_how_many_are_ahead_of_it() {
    let mut letta = Letta::start().await;
    // long enough to be in the row by then
    let proxy = turning(&[&letta], "keepalive: 300ms").await;
    let first = Client::says(&proxy, &say("first"));
    let sent = letta.next().await;
    let second = Opening::says(&proxy, &say("second"));
    proxy.metric_is(WAITING, 1.0).await;
    let third = Opening::says(&proxy, &say("third"));
    proxy.metric_is(WAITING, 2.0).await;
    let (mut second, mut third) = (second.head().await, third.head().await);
    assert_eq!((second.header("x-queue-position"), third.header("x-queue-position")), (Some("1"), Some("2")));
    assert_eq!(second.header("content-type"), Some("text/event-stream; charset=utf-8"));
    second.hears(": waiting, 1 ahead\n\n").await;
    third.hears(": waiting, 2 ahead\n\n").await;
    assert_eq!(letta.sends(), 1);
    sent.answer(json(letta_answer("first")));
    assert_eq!(first.answer().await.header("x-queue-position"), None);
    let sent = letta.next().await;
    assert_eq!(sent.text(), say("second"));
    third.hears(": waiting, 1 ahead\n\n").await;
    second.hears(": keepalive\n\n").await;
    sent.streams(&["data: 2\n\n", super::DONE]).await;
    assert!(second.rest().await.ends_with(&["data: 2\n\n", super::DONE].concat()));
    letta.next().await.streams(&["data: 3\n\n", super::DONE]).await;
    let third = third.rest().await;
    assert_eq!(super::without_comments(&third), ["data: 3\n\n", super::DONE].concat());
}

#[tokio::test]
async fn a_stream_that_began_in_the_row_learns_by_an_event_that_it_waited_in_vain() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "keepalive: 300ms, lane: { max_wait: 1s }").await;
    let first = Client::says(&proxy, &say("first"));
    let sent = letta.next().await;
    let second = proxy.post(&streams(), &say("second")).await;
    assert_eq!((second.status, second.header("x-queue-position")), (200, Some("1")));
    assert!(second.text().starts_with(": waiting, 1 ahead\n\n"), "{}", second.text());
    assert_eq!(last_words(&second.text())["error_type"], "policy_lane_timeout");
    assert_eq!(letta.sends(), 1);
    let line = &proxy.log(1).await[0];
    assert_eq!((&line["reason"], &line["ended_by"]), (&"policy_lane_timeout".into(), &"gateway".into()), "{line}");
    assert_eq!(line["outcome"], "never_sent");
    sent.answer(json(letta_answer("first")));
    assert_eq!(first.answer().await.status, 200);
}

#[tokio::test]
async fn without_lanes_turns_overlap() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "lane: off").await;
    let (first, second) = (Client::says(&proxy, HELLO), Client::says(&proxy, HELLO));
    let both = [letta.next().await, letta.next().await];
    assert_eq!(proxy.metric(WAITING).await, 0.0);
    for sent in both {
        sent.answer(json(letta_answer("x")));
    }
    assert_eq!((first.answer().await.status, second.answer().await.status), (200, 200));
}
