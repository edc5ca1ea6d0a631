//! Exactly once: what says that it is a repeat joins the turn of before, and whatever does not is a turn of its own.

use super::{
    Client, DONE, HELLO, KEPT, Letta, Opening, PING, RETRY, STOP, WAITING, ended, messages, part, post, post_as,
    repeats, say, streams, turning, word, write,
};
use crate::support::{AGENT, Answer, COLLEAGUE, KEY, Reply, json, letta_answer};

const OTHER_AGENT: &str = "agent-11111111-1111-4111-8111-111111111111";

/// A body whose one message is named by `otid`.
fn named(content: &str, otid: &str) -> String {
    format!("{{\"messages\":[{{\"role\":\"user\",\"content\":\"{content}\",\"otid\":\"{otid}\"}}]}}")
}

#[tokio::test]
async fn a_retry_joins_the_running_turn_and_is_replayed_when_that_is_over() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "").await;
    let first = Client::says(&proxy, HELLO);
    let sent = letta.next().await;
    let retry = Client::sends(&proxy, post(&proxy, &messages(), HELLO, RETRY));
    proxy.metric_is(&repeats("joined"), 1.0).await;
    sent.answer(json(letta_answer("once")));
    let (first, joined) = (first.answer().await, retry.answer().await);
    assert_eq!((first.status, first.text()), (200, letta_answer("once")));
    assert_eq!((part(&first), part(&joined)), (None, Some("joined")));
    let second_retry = [("x-stainless-retry-count", "2")];
    let replayed = proxy.send(post(&proxy, &messages(), HELLO, &second_retry)).await;
    assert_eq!(part(&replayed), Some("replayed"));
    for repeat in [&joined, &replayed] {
        assert_eq!((repeat.status, &repeat.body), (200, &first.body));
        assert_eq!(repeat.header("content-type"), first.header("content-type"));
        assert_ne!(repeat.header("x-request-id"), first.header("x-request-id"), "each request has its own");
    }
    assert_eq!(letta.sends(), 1);
    assert_eq!(proxy.metric(&ended("end_turn")).await, 1.0, "one turn, however often it is told");
    assert_eq!(proxy.metric(&repeats("replayed")).await, 1.0);
}

#[tokio::test]
async fn what_is_replayed_has_lettas_own_head() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "").await;
    let first = Client::says(&proxy, HELLO);
    let headers =
        vec![("content-type", "application/json"), ("x-two", "1"), ("x-two", "2"), ("x-empty", ""), ("etag", "\"e\"")];
    letta.next().await.answer(Reply::Full(200, headers, letta_answer("once").into()));
    let first = first.answer().await;
    let replayed = proxy.send(post(&proxy, &messages(), HELLO, RETRY)).await;
    assert_eq!((part(&replayed), &replayed.body), (Some("replayed"), &first.body));
    let lettas = |answer: &Answer| {
        let own =
            ["x-request-id", "x-turn", "server-timing", "ratelimit", "x-ratelimit-remaining", "x-ratelimit-reset"];
        let mut headers = answer.headers.clone();
        own.iter().for_each(|name| drop(headers.remove(*name)));
        headers
    };
    assert_eq!(lettas(&replayed), lettas(&first));
    assert_eq!(replayed.headers.get_all("x-two").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!((replayed.header("x-empty"), replayed.header("etag")), (Some(""), Some("\"e\"")));
}

#[tokio::test]
async fn a_retry_of_a_stream_gets_the_same_bytes_from_the_start() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "").await;
    let first = Opening::says(&proxy, HELLO);
    let feed = letta.next().await.stream();
    write(&feed, PING).await;
    write(&feed, &word("one")).await;
    let mut first = first.head().await;
    first.hears("one").await;
    let joined = Opening::sends(&proxy, post(&proxy, &streams(), HELLO, RETRY)).head().await;
    write(&feed, &word("two")).await;
    write(&feed, STOP).await;
    write(&feed, DONE).await;
    drop(feed);
    let whole = [PING, &word("one"), &word("two"), STOP, DONE].concat();
    assert_eq!((first.header("x-turn"), joined.header("x-turn")), (None, Some("joined")));
    assert_eq!(joined.head.status, 200);
    assert_eq!(joined.header("content-type"), first.header("content-type"));
    assert_eq!((first.rest().await, joined.rest().await), (whole.clone(), whole.clone()));
    proxy.metric_is(KEPT, 1.0).await;
    let replayed = proxy.send(post(&proxy, &streams(), HELLO, RETRY)).await;
    assert_eq!((part(&replayed), replayed.text()), (Some("replayed"), whole));
    assert_eq!(letta.sends(), 1);
}

#[tokio::test]
async fn a_message_with_an_idempotency_key_is_sent_once_and_another_with_it_is_refused() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "").await;
    let key = [("idempotency-key", "0b1c")];
    let first = Client::sends(&proxy, post(&proxy, &messages(), HELLO, &key));
    let sent = letta.next().await;
    let joined = Client::sends(&proxy, post(&proxy, &messages(), HELLO, &key));
    proxy.metric_is(&repeats("joined"), 1.0).await;
    let refused = async || proxy.send(post(&proxy, &messages(), &say("bye"), &key)).await;
    let other = refused().await;
    assert_eq!((other.status, &other.json()["error"]["type"]), (409, &"client_idempotency_key_reused".into()));
    assert_eq!(part(&other), None);
    sent.answer(json(letta_answer("once")));
    let (first, joined) = (first.answer().await, joined.answer().await);
    let replayed = proxy.send(post(&proxy, &messages(), HELLO, &key)).await;
    assert_eq!([part(&first), part(&joined), part(&replayed)], [None, Some("joined"), Some("replayed")]);
    assert_eq!((&joined.body, &replayed.body), (&first.body, &first.body));
    assert_eq!(refused().await.status, 409, "when it is over, too");
    assert_eq!(letta.sends(), 1);
}

#[tokio::test]
async fn a_message_with_an_otid_is_sent_once_with_its_otid() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "").await;
    let first = Client::says(&proxy, &named("hello", "9b2f"));
    let sent = letta.next().await;
    assert_eq!(sent.text(), named("hello", "9b2f"), "Letta has its otid");
    let joined = Client::says(&proxy, &named("hello", "9b2f"));
    proxy.metric_is(&repeats("joined"), 1.0).await;
    sent.answer(json(letta_answer("once")));
    let (first, joined) = (first.answer().await, joined.answer().await);
    assert_eq!((part(&joined), &joined.body), (Some("joined"), &first.body));
    // the same words under another name are another message, and so are other words under the same name
    for other in [named("hello", "77aa"), named("bye", "9b2f")] {
        let client = Client::says(&proxy, &other);
        letta.next().await.answer(json(letta_answer("another")));
        assert_eq!(part(&client.answer().await), None, "{other}");
    }
    assert_eq!(letta.sends(), 3);
}

#[tokio::test]
async fn who_says_yes_twice_has_two_turns() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "").await;
    let first = Client::says(&proxy, &say("yes"));
    let sent = letta.next().await;
    // the official clients count from 0
    let count = [("x-stainless-retry-count", "0")];
    let second = Client::sends(&proxy, post(&proxy, &messages(), &say("yes"), &count));
    proxy.metric_is(WAITING, 1.0).await;
    sent.answer(json(letta_answer("to the first")));
    letta.next().await.answer(json(letta_answer("to the second")));
    let (first, second) = (first.answer().await, second.answer().await);
    assert_eq!((first.text(), second.text()), (letta_answer("to the first"), letta_answer("to the second")));
    assert_eq!((part(&first), part(&second)), (None, None));
    assert_eq!(letta.sends(), 2);
}

#[tokio::test]
async fn two_retries_of_the_same_words_get_a_turn_each() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "lane: off").await;
    let (first, second) = (Client::says(&proxy, &say("yes")), Client::says(&proxy, &say("yes")));
    let (to_one, to_other) = (letta.next().await, letta.next().await);
    first.leaves().await;
    second.leaves().await;
    proxy.metric_is(super::DETACHED, 2.0).await;
    let retry = || Client::sends(&proxy, post(&proxy, &messages(), &say("yes"), RETRY));
    let first = retry();
    proxy.metric_is(&repeats("joined"), 1.0).await;
    let second = retry();
    proxy.metric_is(&repeats("joined"), 2.0).await;
    to_one.answer(json(letta_answer("one")));
    to_other.answer(json(letta_answer("other")));
    let mut answers = [first.answer().await.text(), second.answer().await.text()];
    answers.sort();
    assert_eq!(answers, [letta_answer("one"), letta_answer("other")]);
    assert_eq!(letta.sends(), 2);
}

#[tokio::test]
async fn another_keys_or_another_agents_message_is_never_joined() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "lane: off").await;
    let all = [("x-stainless-retry-count", "1"), ("idempotency-key", "0b1c")];
    let body = named("hello", "9b2f");
    let mine = Client::sends(&proxy, post(&proxy, &messages(), &body, &all));
    let mine_sent = letta.next().await;
    let other_path = format!("/v1/agents/{OTHER_AGENT}/messages");
    let others = [
        post_as(&proxy, COLLEAGUE, &messages(), &body, &all),
        post_as(&proxy, KEY, &other_path, &body, &[("x-stainless-retry-count", "1")]),
        // and the same words with other settings
        post_as(&proxy, KEY, &messages(), &body.replace("]}", "],\"max_steps\":1}"), &[]),
    ];
    for other in others {
        let other = Client::sends(&proxy, other);
        letta.next().await.answer(json(letta_answer("theirs")));
        let other = other.answer().await;
        assert_eq!((other.status, part(&other), other.text()), (200, None, letta_answer("theirs")));
    }
    mine_sent.answer(json(letta_answer("mine")));
    assert_eq!(mine.answer().await.text(), letta_answer("mine"));
    assert_eq!(letta.sends(), 4);
    for how in ["joined", "replayed"] {
        assert_eq!(proxy.metric(&repeats(how)).await, 0.0);
    }
}

#[tokio::test]
async fn without_dedupe_every_send_is_a_turn() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "dedupe: off, lane: off").await;
    let all = [("x-stainless-retry-count", "1"), ("idempotency-key", "0b1c")];
    let mut clients = Vec::new();
    let mut sends = Vec::new();
    for _ in 0..3 {
        clients.push(Client::sends(&proxy, post(&proxy, &messages(), &named("hello", "9b2f"), &all)));
        sends.push(letta.next().await);
    }
    for (number, sent) in sends.into_iter().enumerate() {
        sent.answer(json(letta_answer(&number.to_string())));
    }
    for (number, client) in clients.into_iter().enumerate() {
        let answer = client.answer().await;
        assert_eq!((part(&answer), answer.text()), (None, letta_answer(&number.to_string())));
    }
    // not even with another body under the same Idempotency-Key is anything refused
    let other = Client::sends(&proxy, post(&proxy, &messages(), HELLO, &all));
    letta.next().await.answer(json("{}"));
    assert_eq!(other.answer().await.status, 200);
}

#[tokio::test]
async fn identical_in_flight_joins_what_runs_and_nothing_that_is_over() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "dedupe: identical_in_flight").await;
    let first = Client::says(&proxy, HELLO);
    let sent = letta.next().await;
    let joined = Client::says(&proxy, HELLO);
    proxy.metric_is(&repeats("joined"), 1.0).await;
    sent.answer(json(letta_answer("first")));
    let (first, joined) = (first.answer().await, joined.answer().await);
    assert_eq!((part(&joined), &joined.body), (Some("joined"), &first.body));
    let again = Client::says(&proxy, HELLO);
    letta.next().await.answer(json(letta_answer("second")));
    let again = again.answer().await;
    assert_eq!((part(&again), again.text()), (None, letta_answer("second")));
    assert_eq!(letta.sends(), 2);
}

#[tokio::test]
async fn after_the_window_a_retry_is_a_new_turn() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "window: 1s").await;
    let first = Client::says(&proxy, HELLO);
    letta.next().await.answer(json(letta_answer("first")));
    assert_eq!(first.answer().await.status, 200);
    proxy.metric_is(KEPT, 0.0).await;
    let late = Client::sends(&proxy, post(&proxy, &messages(), HELLO, RETRY));
    letta.next().await.answer(json(letta_answer("second")));
    let late = late.answer().await;
    assert_eq!((part(&late), late.text()), (None, letta_answer("second")));
}

#[tokio::test]
async fn every_way_to_write_a_message_is_that_message() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "").await;
    let first = Client::says(&proxy, HELLO);
    letta.next().await.answer(json(letta_answer("once")));
    let first = first.answer().await;
    for same in [
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]}",
        " { \"input\" : \"hel\\u006co\" } ",
        "{\"messages\":[{\"content\":[{\"type\":\"text\",\"text\":\"hello\"}],\"type\":\"message\",\"role\":\"user\"}]}",
    ] {
        for path in [messages(), format!("/latest/agents/{AGENT}/messages/")] {
            let repeat = proxy.send(post(&proxy, &path, same, RETRY)).await;
            assert_eq!((part(&repeat), &repeat.body), (Some("replayed"), &first.body), "{path} {same}");
        }
    }
    for other in ["{\"input\":\"Hello\"}", "{\"messages\":[{\"role\":\"system\",\"content\":\"hello\"}]}"] {
        let client = Client::sends(&proxy, post(&proxy, &messages(), other, RETRY));
        letta.next().await.answer(json(letta_answer("another")));
        assert_eq!(part(&client.answer().await), None, "{other}");
    }
    assert_eq!(letta.sends(), 3);
}

#[tokio::test]
async fn what_letta_has_refused_may_come_again_and_what_has_failed_there_may_not() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "").await;
    for (status, word) in [(422, "unclear"), (429, "too fast")] {
        for attempt in 0..2 {
            let headers = if attempt == 0 { &[] } else { RETRY };
            let client = Client::sends(&proxy, post(&proxy, &messages(), &say(word), headers));
            letta.next().await.answer(Reply::Json(status, "{\"detail\":\"Letta's own words\"}".into()));
            let answer = client.answer().await;
            assert_eq!((answer.status, part(&answer)), (status, None), "it was not executed");
        }
    }
    let failed = Client::says(&proxy, HELLO);
    letta.next().await.answer(Reply::Json(500, "{\"detail\":\"An unknown error occurred\"}".into()));
    let failed = failed.answer().await;
    let retry = proxy.send(post(&proxy, &messages(), HELLO, RETRY)).await;
    assert_eq!((retry.status, part(&retry), &retry.body), (500, Some("replayed"), &failed.body));
    assert_eq!(letta.sends(), 5);
}

#[tokio::test]
async fn an_answer_too_long_to_be_kept_reaches_its_client_and_its_retry_is_told_so() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "max_log: 1KiB").await;
    let long = letta_answer(&"x".repeat(4000));
    let first = Client::says(&proxy, HELLO);
    letta.next().await.answer(json(long.clone()));
    assert_eq!(first.answer().await.text(), long);
    let stream = Opening::says(&proxy, HELLO);
    let events = [PING, &word(&"x".repeat(4000)), STOP, DONE];
    letta.next().await.streams(&events).await;
    assert_eq!(stream.head().await.rest().await, events.concat());
    for path in [messages(), streams()] {
        let retry = proxy.send(post(&proxy, &path, HELLO, RETRY)).await;
        assert_eq!((retry.status, &retry.json()["error"]["type"]), (410, &"gateway_answer_not_kept".into()));
    }
    assert_eq!(letta.sends(), 2, "it is not sent again");
}
