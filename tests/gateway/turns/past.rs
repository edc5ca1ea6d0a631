//! Turns that are over and were followed by many others, chapters of them: nobody can tell.

use std::sync::Arc;

use super::{
    Client, DONE, HELLO, KEPT, Letta, Opening, PING, RETRY, RUN, STOP, ended, messages, part, post, post_as, repeats,
    say, streams, turning, word, write,
};
use crate::support::{COLLEAGUE, KEY, Proxy, Reply, json, letta_answer};

/// Chapters take 32 KiB, some 50 turns.
const SHORT: &str = "max_log: 32KiB, max_total: 512KiB";
/// More than a chapter has.
const MANY: u32 = 80;

/// So many turns of another key's, each with its own words.
async fn others(letta: &mut Letta, proxy: &Arc<Proxy>, count: u32, answer: &str) {
    let before = letta.sends();
    for number in 0..count {
        let words = say(&format!("{before} {number}"));
        let other = Client::sends(proxy, post_as(proxy, COLLEAGUE, &messages(), &words, &[]));
        letta.next().await.answer(json(letta_answer(answer)));
        assert_eq!(other.answer().await.status, 200);
    }
}

#[tokio::test]
async fn a_turn_is_repeated_however_many_came_after_it() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], SHORT).await;
    let paying = [("idempotency-key", "pay-1")];
    let named = "{\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"otid\":\"o-1\"}]}";
    let failing = say("fail");
    let sends =
        [(HELLO, &[][..], 200), ("{\"input\":\"pay\"}", &paying[..], 200), (named, &[], 200), (&failing, &[], 500)];
    for (number, (body, headers, status)) in sends.iter().enumerate() {
        let client = Client::sends(&proxy, post(&proxy, &messages(), body, headers));
        let fields = vec![("content-type", "application/json"), ("x-two", "1"), ("x-two", "2")];
        letta.next().await.answer(Reply::Full(*status, fields, letta_answer(&format!("answer {number}")).into()));
        assert_eq!(client.answer().await.status, *status);
    }
    let stream = Opening::says(&proxy, HELLO);
    let events = [PING, &word("one"), &word("two"), STOP, DONE];
    letta.next().await.streams(&events).await;
    assert_eq!(stream.head().await.rest().await, events.concat());
    let sent = letta.sends();

    for round in 1..=3 {
        others(&mut letta, &proxy, MANY, "another").await;
        let reused = proxy.send(post(&proxy, &messages(), "{\"input\":\"pay more\"}", &paying)).await;
        assert_eq!(reused.status, 409);
        for _ in 0..2 {
            for (number, (body, headers, status)) in sends.iter().enumerate() {
                let headers = if headers.is_empty() { RETRY } else { headers };
                let again = proxy.send(post(&proxy, &messages(), body, headers)).await;
                let told = (again.status, part(&again), again.text());
                assert_eq!(told, (*status, Some("replayed"), letta_answer(&format!("answer {number}"))), "{round}");
                assert_eq!(again.headers.get_all("x-two").iter().collect::<Vec<_>>(), ["1", "2"]);
            }
            let again = proxy.send(post(&proxy, &streams(), HELLO, RETRY)).await;
            assert_eq!((part(&again), again.text()), (Some("replayed"), events.concat()));
            let run = format!("/v1/runs/{RUN}/stream");
            let resumed = proxy.post(&run, "{\"starting_after\":2}").await;
            assert_eq!((part(&resumed), resumed.text()), (Some("resumed"), events[2..].concat()));
        }
        assert_eq!(letta.sends(), sent + round * usize::try_from(MANY).unwrap(), "none of them is sent twice");
    }
    assert_eq!(proxy.metric(&repeats("replayed")).await, 30.0);
    let count = sends.len() + 1 + 3 * (usize::try_from(MANY).unwrap() + 13);
    let replayed = |line: &&serde_json::Value| line["turn"] == "replayed" && line["status"] == 200;
    for line in proxy.log(count).await.iter().filter(replayed) {
        assert_eq!(
            (&line["outcome"], &line["upstream"]),
            (&"end_turn".into(), &letta.replica.address.to_string().into())
        );
    }
}

#[tokio::test]
async fn a_long_stream_that_is_over_goes_on_where_its_client_left_it() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "").await;
    let words: Vec<String> = (0..300).map(|number| word(&format!("{number} {}", "long ".repeat(40)))).collect();
    let events: Vec<&str> = [PING].into_iter().chain(words.iter().map(String::as_str)).chain([STOP, DONE]).collect();
    let stream = Opening::says(&proxy, HELLO);
    letta.next().await.streams(&events).await;
    assert_eq!(stream.head().await.rest().await, events.concat());
    for after in [0, 1, 70, 150, 250, 299] {
        let resumed = proxy.post(&format!("/v1/runs/{RUN}/stream"), &format!("{{\"starting_after\":{after}}}")).await;
        assert_eq!((part(&resumed), resumed.text()), (Some("resumed"), events[after..].concat()), "{after}");
    }
}

#[tokio::test]
async fn each_retry_gets_a_turn_that_its_client_has_left_however_many_came_after_it() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], SHORT).await;
    for answer in ["first", "second", "third"] {
        let client = Client::says(&proxy, HELLO);
        let sent = letta.next().await;
        if answer != "third" {
            client.leaves().await;
            sent.answer(json(letta_answer(answer)));
        } else {
            sent.answer(json(letta_answer(answer)));
            assert_eq!(client.answer().await.text(), letta_answer(answer));
        }
    }
    proxy.metric_is(&ended("end_turn"), 3.0).await;
    others(&mut letta, &proxy, MANY, "another").await;
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(proxy.send(post(&proxy, &messages(), HELLO, RETRY)).await.text());
    }
    assert_eq!(answers, ["second", "first", "third"].map(letta_answer), "the latest of them first");
}

#[tokio::test]
async fn the_newest_stream_of_a_conversation_is_found_however_many_turns_others_had_and_no_older_one() {
    let mut letta = Letta::with(|_| json("{\"detail\":\"Letta's own words\"}")).await;
    let proxy = turning(&[&letta], SHORT).await;
    let at = |what: &str| format!("/v1/conversations/conv-1/{what}");
    let mut stream = None;
    for text in ["old", "new"] {
        let client = Opening::sends(&proxy, post(&proxy, &at("messages"), &say(text), &[]));
        let events = [PING, &word(text), STOP, DONE];
        letta.next().await.streams(&events).await;
        stream = Some(client.head().await.rest().await);
        others(&mut letta, &proxy, MANY, "another").await;
    }
    let resumed = proxy.post(&at("stream"), "{}").await;
    assert_eq!((part(&resumed), Some(resumed.text())), (Some("resumed"), stream));
    others(&mut letta, &proxy, MANY, "another").await;
    // a later turn that was no stream
    let later = Client::sends(&proxy, post(&proxy, &at("messages"), "{\"input\":\"x\",\"streaming\":false}", &[]));
    letta.next().await.answer(json(letta_answer("later")));
    assert_eq!(later.answer().await.status, 200);
    let asked = proxy.post(&at("stream"), "{}").await;
    assert_eq!((part(&asked), asked.text().contains("Letta's own words")), (None, true));
}

#[tokio::test]
async fn a_stream_that_has_a_later_turn_behind_it_is_not_the_newest_again_when_others_come_or_it_is_repeated() {
    let mut letta = Letta::with(|_| json("{\"detail\":\"Letta's own words\"}")).await;
    let proxy = turning(&[&letta], SHORT).await;
    let at = |what: &str| format!("/v1/conversations/conv-1/{what}");
    let named = |name: &'static str| [("idempotency-key", name)];
    for text in ["old", "new"] {
        let client = Opening::sends(&proxy, post(&proxy, &at("messages"), &say(text), &named(text)));
        letta.next().await.streams(&[PING, &word(text), STOP, DONE]).await;
        assert!(client.head().await.rest().await.contains(text));
    }
    others(&mut letta, &proxy, MANY, "another").await;
    let old = proxy.send(post(&proxy, &at("messages"), &say("old"), &named("old"))).await;
    assert_eq!((part(&old), old.text().contains("old")), (Some("replayed"), true));
    for _ in 0..2 {
        let resumed = proxy.post(&at("stream"), "{}").await;
        assert_eq!((part(&resumed), resumed.text().contains("new")), (Some("resumed"), true), "{}", resumed.text());
        others(&mut letta, &proxy, MANY, "another").await;
    }
    let client = Opening::sends(&proxy, post(&proxy, &at("messages"), &say("last"), &[]));
    letta.next().await.streams(&[PING, &word("last"), STOP, DONE]).await;
    client.head().await.rest().await;
    let later = Client::sends(&proxy, post(&proxy, &at("messages"), "{\"input\":\"x\",\"streaming\":false}", &[]));
    letta.next().await.answer(json(letta_answer("later")));
    assert_eq!(later.answer().await.status, 200);
    for count in [0, MANY] {
        others(&mut letta, &proxy, count, "another").await;
        let asked = proxy.post(&at("stream"), "{}").await;
        assert_eq!((part(&asked), asked.text().contains("Letta's own words")), (None, true), "{}", asked.text());
    }
}

#[tokio::test]
async fn an_answer_that_broke_off_breaks_off_again_however_many_turns_came_after_it() {
    let mut letta = Letta::start().await;
    // nobody waits for what became of the runs
    let proxy = turning(&[&letta], &format!("lane: off, {SHORT}")).await;
    let client = Opening::says(&proxy, HELLO);
    let feed = letta.next().await.stream();
    write(&feed, PING).await;
    write(&feed, &word("half")).await;
    let mut client = client.head().await;
    client.hears("half").await;
    feed.send(None).await.unwrap();
    let told = client.rest().await;
    assert!(told.contains("event: error"), "{told}");

    let client = Opening::sends(&proxy, post(&proxy, &messages(), HELLO, &[]));
    let (pieces, answer) = tokio::sync::mpsc::channel(4);
    letta.next().await.answer(Reply::Pieces("application/json", answer));
    pieces.send(Some("{\"messages\":[".into())).await.unwrap();
    let client = client.head().await;
    pieces.send(None).await.unwrap();
    client.breaks().await;
    proxy.metric_is(&ended("broken"), 2.0).await;

    let retry = format!(
        "POST {} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n\
         x-stainless-retry-count: 1\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{HELLO}",
        messages(),
        HELLO.len()
    );
    for _ in 0..2 {
        let again = Opening::sends(&proxy, post(&proxy, &streams(), HELLO, RETRY)).head().await;
        assert_eq!(again.rest().await, told);
        // as it is on the wire: nothing may look like an end
        let again = proxy.raw(&retry).await;
        assert!(!again.ends_with("0\r\n\r\n") && !again.contains("content-length: 0"), "{again}");
        others(&mut letta, &proxy, MANY, "another").await;
    }
}

#[tokio::test]
async fn turns_are_forgotten_when_their_window_is_over() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], &format!("window: 2s, {SHORT}")).await;
    others(&mut letta, &proxy, MANY, "another").await;
    assert_eq!(proxy.metric(KEPT).await, f64::from(MANY));
    proxy.metric_is(KEPT, 0.0).await;
    assert_eq!(proxy.metric("letta_gateway_turn_log_bytes").await, 0.0);
    let late = Client::sends(&proxy, post_as(&proxy, COLLEAGUE, &messages(), &say("0 0"), RETRY));
    letta.next().await.answer(json(letta_answer("anew")));
    assert_eq!(part(&late.answer().await), None);
}

#[tokio::test]
async fn where_room_is_short_the_oldest_answers_go_first_and_then_the_oldest_turns() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "max_log: 32KiB, max_total: 256KiB").await;
    let first = Client::says(&proxy, HELLO);
    letta.next().await.answer(json(letta_answer("first")));
    assert_eq!(first.answer().await.status, 200);
    let retry = || post(&proxy, &messages(), HELLO, RETRY);

    others(&mut letta, &proxy, 250, &"long ".repeat(200)).await;
    let gone = proxy.send(retry()).await;
    assert_eq!((gone.status, gone.json()["error"]["type"].as_str()), (410, Some("gateway_answer_not_kept")));
    // what ended last is there
    for number in [249, 220] {
        let words = say(&format!("1 {number}"));
        let again = proxy.send(post_as(&proxy, COLLEAGUE, &messages(), &words, RETRY)).await;
        assert_eq!(part(&again), Some("replayed"), "{number}");
    }
    assert_eq!(letta.sends(), 251);

    others(&mut letta, &proxy, 1500, "short").await;
    let anew = Client::sends(&proxy, retry());
    letta.next().await.answer(json(letta_answer("anew")));
    assert_eq!(part(&anew.answer().await), None, "that there was such a turn is not known any more");
    let again = proxy.send(post_as(&proxy, COLLEAGUE, &messages(), &say("251 1499"), RETRY)).await;
    assert_eq!(part(&again), Some("replayed"));
    let bytes = proxy.metric("letta_gateway_turn_log_bytes").await;
    assert!(bytes <= 262_144.0, "{bytes}");
    assert_eq!(letta.sends(), 1752);
}
