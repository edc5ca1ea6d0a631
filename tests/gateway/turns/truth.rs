//! The truth about a turn, whatever its HTTP status: how it ended, what it cost, how long it waited.

use super::{
    Client, DONE, HELLO, KEPT, Letta, Opening, PING, RETRY, RUN, STOP, USAGE, WAITING, ended, messages, post, say,
    streams, turning, word, write,
};
use crate::support::{AGENT, Feed, Reply, json, letta_answer, nobody, start, yaml};

/// A stream of these events.
fn events(events: &[&str]) -> Reply {
    let (feed, pieces): (Feed, _) = tokio::sync::mpsc::channel(8);
    for event in events {
        feed.try_send(Some((*event).to_owned().into())).unwrap();
    }
    Reply::Stream(pieces)
}

/// The milliseconds of a `Server-Timing` header: in the lane, at Letta.
fn timing(header: Option<&str>) -> (f64, f64) {
    let header = header.expect("a Server-Timing");
    let (queue, letta) = header.split_once(", ").unwrap_or_else(|| panic!("{header}"));
    let number = |text: &str, name: &str| -> f64 {
        let number = text.strip_prefix(name).and_then(|text| text.strip_prefix(";dur="));
        number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{header}"))
    };
    (number(queue, "queue"), number(letta, "letta"))
}

fn milliseconds(line: &serde_json::Value, name: &str) -> f64 {
    line[name].as_f64().unwrap_or_else(|| panic!("no {name}: {line}"))
}

/// The wait for an agent is no part of what the gateway itself took.
fn waits_are_not_its_own(line: &serde_json::Value) {
    let parts = milliseconds(line, "queue_ms") + milliseconds(line, "overhead_ms");
    assert!(parts <= milliseconds(line, "duration_ms") + 1.0, "{line}");
}

#[tokio::test]
async fn every_turn_is_counted_by_how_it_ended_and_its_line_says_so() {
    let stopped = |reason: &str| letta_answer("x").replace("end_turn", reason);
    let stop = |reason: &str| STOP.replace("end_turn", reason);
    let error = "event: error\ndata: {\"message_type\":\"error_message\",\"error_type\":\"llm_error\"}\n\n";
    let cancelled = "data: {\"message_type\": \"stop_reason\", \"stop_reason\": \"cancelled\"}\n\n";
    let cases = [
        (messages(), json(letta_answer("x")), 200, "end_turn"),
        (messages(), json(stopped("max_steps")), 200, "max_steps"),
        (messages(), json(stopped("requires_approval")), 200, "requires_approval"),
        (messages(), json(stopped("llm_api_error")), 200, "llm_api_error"),
        (messages(), json(stopped("a_reason_of_tomorrow")), 200, "unknown"),
        (messages(), json("{\"something\":\"else\"}"), 200, "answered"),
        (messages(), Reply::Json(422, "{\"detail\":\"no\"}".into()), 422, "refused"),
        (messages(), Reply::Json(503, "{\"detail\":\"The database is gone\"}".into()), 503, "refused"),
        (messages(), Reply::Close, 502, "broken"),
        (streams(), events(&[PING, STOP, USAGE, DONE]), 200, "end_turn"),
        (streams(), events(&[PING, &stop("tool_rule"), USAGE, DONE]), 200, "tool_rule"),
        (streams(), events(&[PING, cancelled]), 200, "cancelled"),
        (streams(), events(&[&stop("error"), error, DONE]), 200, "error_event"),
        (streams(), events(&[&word("x"), &stop("error"), error]), 200, "error_event"),
        (streams(), events(&[&word("x"), DONE]), 200, "answered"),
        (streams(), Reply::Json(404, "{\"detail\":\"no\"}".into()), 404, "refused"),
    ];
    for (path, reply, status, outcome) in cases {
        let mut letta = Letta::start().await;
        let proxy = turning(&[&letta], "").await;
        let client = Client::sends(&proxy, post(&proxy, &path, HELLO, &[]));
        letta.next().await.answer(reply);
        let answer = client.answer().await;
        assert_eq!(answer.status, status, "{outcome}");
        proxy.metric_is(&ended(outcome), 1.0).await;
        let counts = proxy.series().await;
        let counts = counts.iter().filter(|series| series.starts_with("letta_gateway_turns_total{"));
        assert_eq!(counts.filter(|series| series.ends_with(" 1")).count(), 1, "{outcome}");
        let line = &proxy.log(1).await[0];
        assert_eq!((&line["turn"], &line["outcome"]), (&"started".into(), &outcome.into()), "{line}");
        assert_eq!(line["status"], status, "{line}");
        assert_eq!(line["upstream"], letta.replica.address.to_string(), "{line}");
        assert_eq!((&line["attempts"], line["upstream_ms"].is_number()), (&1.into(), true), "{line}");
        assert_eq!(letta.sends(), 1, "{outcome}");
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_is_broken_unless_it_had_said_all() {
    for (said, outcome) in [(vec![PING, STOP, DONE], "end_turn"), (vec![PING, STOP], "broken"), (vec![PING], "broken")]
    {
        let mut letta = Letta::start().await;
        let proxy = turning(&[&letta], "").await;
        let client = Opening::says(&proxy, HELLO);
        let feed = letta.next().await.stream();
        for event in &said {
            write(&feed, event).await;
        }
        let mut client = client.head().await;
        client.hears(&said.concat()).await;
        feed.send(None).await.unwrap();
        let whole = client.rest().await;
        assert_eq!(whole == said.concat(), outcome == "end_turn", "{whole}");
        proxy.metric_is(&ended(outcome), 1.0).await;
        assert_eq!(proxy.log(1).await[0]["outcome"], outcome);
    }
}

#[tokio::test]
async fn a_line_knows_what_came_after_the_head_of_its_response() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "keepalive: 20ms").await;
    let first = Client::says(&proxy, &say("first"));
    let sent = letta.next().await;
    let waiting = Opening::says(&proxy, &say("second"));
    proxy.metric_is(WAITING, 1.0).await;
    let waiting = waiting.head().await;
    sent.answer(json(letta_answer("x")));
    assert_eq!(first.answer().await.status, 200);
    letta.next().await.streams(&[PING, STOP, USAGE, DONE]).await;
    waiting.rest().await;
    let line = &proxy.log(2).await[1];
    assert_eq!((&line["turn"], &line["outcome"]), (&"started".into(), &"end_turn".into()), "{line}");
    assert_eq!(
        (&line["upstream"], &line["attempts"]),
        (&letta.replica.address.to_string().into(), &1.into()),
        "{line}"
    );
    assert!(milliseconds(line, "queue_ms") > 0.0 && milliseconds(line, "upstream_ms") >= 0.0, "{line}");
    waits_are_not_its_own(line);
}

#[tokio::test]
async fn a_wait_in_vain_is_told_as_a_wait() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "lane: { max_wait: 50ms }").await;
    let first = Client::says(&proxy, &say("first"));
    let sent = letta.next().await;
    assert_eq!(proxy.post(&messages(), &say("second")).await.status, 503);
    let line = &proxy.log(1).await[0];
    assert!(milliseconds(line, "queue_ms") >= 50.0, "{line}");
    waits_are_not_its_own(line);
    assert_eq!((&line["outcome"], &line["reason"]), (&"never_sent".into(), &"policy_lane_timeout".into()), "{line}");
    sent.answer(json(letta_answer("x")));
    assert_eq!(first.answer().await.status, 200);
}

#[tokio::test]
async fn what_was_never_sent_is_no_turn_of_lettas() {
    let letta = format!("    servers: [ {{ url: http://{} }} ]", nobody().await);
    let proxy = start(&yaml(&letta, "")).await;
    assert_eq!(proxy.post(&messages(), HELLO).await.status, 503);
    assert_eq!(proxy.metric(&ended("never_sent")).await, 1.0);
    let line = &proxy.log(1).await[0];
    assert_eq!((&line["outcome"], &line["reason"]), (&"never_sent".into(), &"upstream_connect".into()), "{line}");
    assert_eq!(proxy.metric(KEPT).await, 0.0);
}

#[tokio::test]
async fn tokens_and_steps_are_counted_once_a_turn_as_letta_counts_them() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "").await;
    let client = Client::says(&proxy, HELLO);
    letta.next().await.answer(json(letta_answer("x")));
    assert_eq!(client.answer().await.status, 200);
    let client = Opening::says(&proxy, HELLO);
    letta.next().await.streams(&[PING, &word("x"), STOP, USAGE, DONE]).await;
    client.head().await.rest().await;
    proxy.metric_is(&ended("end_turn"), 2.0).await;
    for path in [messages(), streams()] {
        assert_eq!(proxy.send(post(&proxy, &path, HELLO, RETRY)).await.header("x-turn"), Some("replayed"));
    }
    let tokens = |kind: &str| format!("letta_gateway_turn_tokens_total{{kind=\"{kind}\"}}");
    assert_eq!(proxy.metric(&tokens("prompt")).await, 1340.0);
    assert_eq!(proxy.metric(&tokens("completion")).await, 6.0);
    assert_eq!(proxy.metric("letta_gateway_turn_steps_total").await, 2.0);
    for line in proxy.log(4).await {
        let told = ["prompt_tokens", "completion_tokens", "steps"].map(|name| line[name].as_u64());
        assert_eq!(told, [Some(670), Some(3), Some(1)], "{line}");
    }
}

#[tokio::test]
async fn an_answer_says_how_long_it_took_and_where() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "").await;
    let first = Client::says(&proxy, &say("first"));
    let sent = letta.next().await;
    let second = Client::says(&proxy, &say("second"));
    proxy.metric_is(WAITING, 1.0).await;
    let stream = Opening::says(&proxy, &say("third"));
    proxy.metric_is(WAITING, 2.0).await;
    sent.answer(json(letta_answer("x")));
    letta.next().await.answer(json(letta_answer("x")));
    letta.next().await.streams(&[PING, STOP, DONE]).await;
    let (first, second, stream) = (first.answer().await, second.answer().await, stream.head().await);
    let (queue, at_letta) = timing(first.header("server-timing"));
    assert!(queue == 0.0 && at_letta > 0.0, "{first:?}");
    for header in [second.header("server-timing"), stream.header("server-timing")] {
        let (queue, at_letta) = timing(header);
        assert!(queue > 0.0 && at_letta > 0.0, "{header:?}");
    }
    stream.rest().await;
    let log = proxy.log(3).await;
    let queued: Vec<f64> = log.iter().map(|line| line["queue_ms"].as_f64().unwrap()).collect();
    assert_eq!((queued[0], queued[1] > 0.0, queued[2] > 0.0), (0.0, true, true), "{log:?}");
    log.iter().for_each(waits_are_not_its_own);
    assert_eq!(proxy.metric("letta_gateway_turn_queue_seconds_count").await, 3.0);
    // what is no message is timed by nobody
    assert_eq!(proxy.get(&format!("/v1/agents/{AGENT}")).await.header("server-timing"), None);
}

#[tokio::test]
async fn a_line_says_what_of_a_turn_its_request_was() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "").await;
    let first = Opening::says(&proxy, HELLO);
    let feed = letta.next().await.stream();
    write(&feed, PING).await;
    let mut first = first.head().await;
    first.hears(PING).await;
    let joined = Opening::sends(&proxy, post(&proxy, &streams(), HELLO, RETRY)).head().await;
    drop(first);
    let left = &proxy.log(1).await[0];
    assert_eq!((&left["turn"], &left["ended_by"], left.get("outcome")), (&"started".into(), &"client".into(), None));
    for event in [&*word("x"), STOP, USAGE, DONE] {
        write(&feed, event).await;
    }
    drop(feed);
    joined.rest().await;
    proxy.metric_is(KEPT, 1.0).await;
    proxy.send(post(&proxy, &streams(), HELLO, RETRY)).await;
    proxy.post(&format!("/v1/runs/{RUN}/stream"), "{}").await;
    let log = proxy.log(4).await;
    for (line, part) in log[1..].iter().zip(["joined", "replayed", "resumed"]) {
        assert_eq!((&line["turn"], &line["outcome"]), (&part.into(), &"end_turn".into()), "{line}");
        assert!(line["first_event_ms"].as_f64().is_some() && line["longest_gap_ms"].as_f64().is_some(), "{line}");
        assert_eq!(line["upstream"], letta.replica.address.to_string(), "whose answer it is: {line}");
        assert_eq!(line["attempts"], 0, "nobody was asked for it: {line}");
    }
    // what is no message has no turn
    proxy.get(&format!("/v1/agents/{AGENT}")).await;
    assert_eq!(proxy.log(5).await[4].get("turn"), None);
    assert_eq!(proxy.metric("letta_gateway_turn_first_event_seconds_count").await, 1.0);
    assert!(proxy.metric("letta_gateway_turn_event_gap_seconds_count").await >= 1.0);
    assert_eq!(proxy.metric("letta_gateway_turn_duration_seconds_count").await, 1.0);
}
