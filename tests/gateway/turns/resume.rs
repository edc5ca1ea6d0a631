//! Streams can be resumed: the official clients' own calls are answered from the log of a turn that this key started
//! here; all else is Letta's to answer.

use std::sync::Arc;

use super::{
    Client, DETACHED, DONE, HELLO, KEPT, Letta, Listener, Opening, PING, RUN, STOP, messages, post, post_as, repeats,
    turning, word, write,
};
use crate::support::{AGENT, Answer, COLLEAGUE, Feed, KEY, Proxy, json, letta_answer};

const LETTAS_OWN: &str = "{\"detail\":\"Letta's own words\"}";

async fn letta() -> Letta {
    Letta::with(|seen| if seen.target.ends_with("/stream") { json(LETTAS_OWN) } else { json("{}") }).await
}

fn of_run() -> String {
    format!("/v1/runs/{RUN}/stream")
}

fn of_conversation(id: &str) -> String {
    format!("/v1/conversations/{id}/stream")
}

/// A stream of a message to `path` that has told of its run and said two words.
async fn begun(letta: &mut Letta, proxy: &Arc<Proxy>, path: &str, body: &str) -> (Listener, Feed) {
    let client = Opening::sends(proxy, post(proxy, path, body, &[]));
    let feed = letta.next().await.stream();
    for event in [PING, &word("one"), &word("two")] {
        write(&feed, event).await;
    }
    let mut client = client.head().await;
    client.hears("two").await;
    (client, feed)
}

async fn ends(feed: Feed) {
    for event in [&*word("three"), STOP, DONE] {
        write(&feed, event).await;
    }
}

/// The stream's events from number `after` + 1 on.
fn events(after: usize) -> String {
    let events = [PING, &word("one"), &word("two"), &word("three"), STOP, DONE];
    events.get(after..).unwrap_or(&[DONE]).concat()
}

fn asked_of_letta(letta: &Letta) -> Vec<String> {
    letta.others().into_iter().map(|seen| seen.target).filter(|target| target.ends_with("/stream")).collect()
}

fn is_resumed(answer: &Answer) -> bool {
    answer.header("x-turn") == Some("resumed")
}

#[tokio::test]
async fn a_dropped_stream_goes_on_where_its_client_left_it() {
    let mut letta = letta().await;
    let proxy = turning(&[&letta], "").await;
    let (client, feed) = begun(&mut letta, &proxy, &super::streams(), HELLO).await;
    drop(client);
    proxy.metric_is(DETACHED, 1.0).await;
    let request = post(&proxy, &of_run(), "{\"starting_after\":2}", &[]);
    let mut resumed = Opening::sends(&proxy, request).head().await;
    // while it runs
    assert_eq!(resumed.hears("two").await, word("two"));
    assert_eq!(resumed.header("x-turn"), Some("resumed"));
    assert_eq!(resumed.header("content-type"), Some("text/event-stream; charset=utf-8"));
    ends(feed).await;
    assert_eq!(resumed.rest().await, events(2));
    proxy.metric_is(KEPT, 1.0).await;
    // and when it is over, from any place
    for after in 0..10 {
        let body = format!("{{\"starting_after\":{after},\"include_pings\":true,\"poll_interval\":1.0}}");
        let answer = proxy.post(&of_run(), &body).await;
        assert!(is_resumed(&answer) && answer.status == 200, "{answer:?}");
        assert_eq!(answer.text(), events(after.min(5)), "{after}");
    }
    for body in ["", "{}", "{\"starting_after\":null}"] {
        assert_eq!(proxy.post(&of_run(), body).await.text(), events(0), "{body:?}");
    }
    assert_eq!(proxy.metric(&repeats("resumed")).await, 14.0);
    assert_eq!((letta.sends(), asked_of_letta(&letta)), (1, vec![]));
}

#[tokio::test]
async fn lettas_own_numbers_are_the_places_of_a_background_run() {
    let mut letta = letta().await;
    let proxy = turning(&[&letta], "").await;
    let numbered = |number: u32| format!("data: {{\"run_id\":\"{RUN}\",\"seq_id\":{number}}}\n\n");
    let client = Opening::says(&proxy, "{\"input\":\"hello\",\"background\":true}");
    let pieces = [numbered(1), numbered(2), numbered(5), DONE.to_owned()];
    letta.next().await.streams(&pieces.each_ref().map(String::as_str)).await;
    assert_eq!(client.head().await.rest().await, pieces.concat());
    for (after, from) in [(0, 0), (1, 1), (2, 2), (4, 2), (5, 3), (6, 3)] {
        let answer = proxy.post(&of_run(), &format!("{{\"starting_after\":{after}}}")).await;
        assert_eq!(answer.text(), pieces[from..].concat(), "{after}");
    }
    assert_eq!(asked_of_letta(&letta), Vec::<String>::new());
}

#[tokio::test]
async fn a_conversation_is_resumed_by_its_newest_turn_or_by_a_runs_name() {
    let mut letta = letta().await;
    let proxy = turning(&[&letta], "").await;
    let of_agent = format!("{{\"input\":\"x\",\"agent_id\":\"{AGENT}\"}}");
    for (sent_to, body, resumed_at, how) in [
        ("conv-1", HELLO, "conv-1", "{}".to_owned()),
        ("conv-2", HELLO, "conv-2", format!("{{\"run_id\":\"{RUN}\"}}")),
        ("default", &of_agent, "default", format!("{{\"agent_id\":\"{AGENT}\"}}")),
        ("default", &of_agent, AGENT, "{}".to_owned()),
    ] {
        let (client, feed) = begun(&mut letta, &proxy, &format!("/v1/conversations/{sent_to}/messages"), body).await;
        drop(client);
        let how = how.replacen('{', "{\"starting_after\":1,", 1).replace(",}", "}");
        let resumed = Opening::sends(&proxy, post(&proxy, &of_conversation(resumed_at), &how, &[])).head().await;
        ends(feed).await;
        assert_eq!(resumed.header("x-turn"), Some("resumed"), "{resumed_at} {how}");
        assert_eq!(resumed.rest().await, events(1), "{resumed_at} {how}");
    }
    assert_eq!(asked_of_letta(&letta), Vec::<String>::new());
}

#[tokio::test]
async fn what_this_key_did_not_start_here_is_lettas_to_answer() {
    let mut letta = letta().await;
    let proxy = turning(&[&letta], "").await;
    let (client, feed) = begun(&mut letta, &proxy, &super::streams(), HELLO).await;
    ends(feed).await;
    assert_eq!(client.rest().await, events(0));
    let after = "{\"starting_after\":1}";
    let otid = format!("{{\"otid\":\"9b2f\",\"agent_id\":\"{AGENT}\"}}");
    let asked = [
        (COLLEAGUE, of_run(), after),
        (KEY, "/v1/runs/run-of-somebody/stream".to_owned(), after),
        (COLLEAGUE, of_conversation(AGENT), after),
        (KEY, of_conversation("conv-of-somebody"), after),
        (KEY, of_conversation("default"), after),
        (KEY, of_conversation("default"), &otid),
        (KEY, of_run(), "{\"starting_after\":-1}"),
        (KEY, of_run(), "not JSON"),
    ];
    for (key, path, body) in &asked {
        let answer = proxy.send(post_as(&proxy, key, path, body, &[])).await;
        assert_eq!((answer.status, answer.text().as_str(), is_resumed(&answer)), (200, LETTAS_OWN, false), "{path}");
        let seen = letta.replica.seen().pop().unwrap();
        assert_eq!((&seen.target, &seen.body[..]), (path, body.as_bytes()), "as it came");
    }
    assert_eq!(asked_of_letta(&letta).len(), asked.len());
    assert_eq!(proxy.metric(&repeats("resumed")).await, 0.0);
}

#[tokio::test]
async fn an_answer_that_was_no_stream_is_none_to_resume() {
    let mut letta = letta().await;
    let proxy = turning(&[&letta], "").await;
    let client = Client::sends(&proxy, post(&proxy, &messages(), HELLO, &[]));
    letta.next().await.answer(json(letta_answer("x")));
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(proxy.post(&of_conversation(AGENT), "{}").await.text(), LETTAS_OWN);
}

#[tokio::test]
async fn a_stream_with_a_later_turn_behind_it_is_resumed_by_its_runs_name_alone() {
    let mut letta = letta().await;
    let proxy = turning(&[&letta], "").await;
    let (client, feed) = begun(&mut letta, &proxy, &super::streams(), HELLO).await;
    ends(feed).await;
    assert_eq!(client.rest().await, events(0));
    assert!(is_resumed(&proxy.post(&of_conversation(AGENT), "{}").await));
    let later = Client::sends(&proxy, post(&proxy, &messages(), HELLO, &[]));
    letta.next().await.answer(json(letta_answer("x")));
    assert_eq!(later.answer().await.status, 200);
    assert_eq!(proxy.post(&of_conversation(AGENT), "{}").await.text(), LETTAS_OWN, "the newest turn was no stream");
    assert!(is_resumed(&proxy.post(&of_run(), "{}").await));
}
