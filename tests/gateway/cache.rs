//! Answers repeated without asking Letta: which are, for whom, for how long, and how a client is told.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::support::{
    AGENT, Answer, COLLEAGUE, KEY, PATIENCE, Proxy, READER, Replica, Reply, gateway, json, letta_answer,
};

const HELLO: &str = "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]}";
const ALL: &str = "cache: { agents: [\"*\"] }";
const MISS: &str = "letta-gateway; fwd=miss";

/// A replica whose every answer is another.
async fn counting() -> Replica {
    let count = AtomicUsize::new(0);
    Replica::start(move |_| json(letta_answer(&format!("answer {}", count.fetch_add(1, Ordering::Relaxed))))).await
}

fn messages() -> String {
    format!("/v1/agents/{AGENT}/messages")
}

/// Sends `body` with these headers more.
async fn ask(proxy: &Proxy, key: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut request = http::Request::builder().method("POST").uri(format!("http://{}{}", proxy.address(), messages()));
    request = request.header("x-api-key", key).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    proxy.send(request.body(Bytes::from(body.to_owned())).unwrap()).await
}

async fn say(proxy: &Proxy, body: &str) -> Answer {
    proxy.post(&messages(), body).await
}

fn is_hit(answer: &Answer) -> bool {
    answer.header("cache-status").is_some_and(|status| status.starts_with("letta-gateway; hit; ttl="))
}

fn status(answer: &Answer) -> &str {
    answer.header("cache-status").unwrap_or("no Cache-Status")
}

#[tokio::test]
async fn a_hit_does_not_reach_letta() {
    let a = counting().await;
    let proxy = gateway(&[&a], ALL).await;
    let miss = say(&proxy, HELLO).await;
    assert_eq!((miss.status, status(&miss), miss.header("age")), (200, MISS, Some("0")));
    for _ in 0..3 {
        let hit = say(&proxy, HELLO).await;
        assert!(is_hit(&hit), "{hit:?}");
        assert_eq!((hit.status, &hit.body), (200, &miss.body));
        assert_eq!(hit.header("content-type"), Some("application/json"));
        assert!(hit.header("age").unwrap().parse::<u64>().unwrap() < 60);
        assert_ne!(hit.header("x-request-id"), miss.header("x-request-id"), "each request has its own");
        assert_eq!(hit.header("server"), None, "Letta did not answer this");
    }
    assert_eq!(a.count(), 1);
    let log = proxy.log(4).await;
    assert_eq!(log[0]["cache"], "miss");
    for line in &log[1..] {
        assert_eq!((&line["cache"], line.get("upstream"), &line["attempts"]), (&"hit".into(), None, &0.into()));
        assert_eq!((&line["agent"], &line["ended_by"]), (&AGENT.into(), &"complete".into()));
        assert_eq!(line["bytes_in"], HELLO.len());
    }
    assert_eq!(proxy.metric("letta_gateway_cache_requests_total{result=\"hit\"}").await, 3.0);
    assert_eq!(proxy.metric("letta_gateway_cache_requests_total{result=\"miss\"}").await, 1.0);
    assert_eq!(proxy.metric("letta_gateway_cache_entries").await, 1.0);
}

#[tokio::test]
async fn every_way_to_say_the_same_is_one_question() {
    let a = counting().await;
    let proxy = gateway(&[&a], ALL).await;
    assert_eq!(status(&say(&proxy, HELLO).await), MISS);
    for same in [
        "{\"input\":\"hello\"}",
        "{\"input\":[{\"type\":\"text\",\"text\":\"hello\"}]}",
        " { \"messages\" : [ { \"content\":\"hel\\u006co\", \"role\":\"user\" } ] } ",
        "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"hello\"}]}]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\",\"otid\":\"9b2f\"}]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\",\"otid\":\"another\"}],\"streaming\":false}",
        "{\"input\":\"hello\",\"max_steps\":50}",
    ] {
        assert!(is_hit(&say(&proxy, same).await), "{same}");
    }
    // and by every name of the route
    for path in [format!("/agents/{AGENT}/messages"), format!("/latest/agents/{AGENT}/messages/")] {
        assert!(is_hit(&proxy.post(&path, HELLO).await), "{path}");
    }
    assert_eq!(a.count(), 1);
}

#[tokio::test]
async fn whatever_may_change_the_answer_is_another_question() {
    let a = counting().await;
    let proxy = gateway(&[&a], ALL).await;
    let bodies = [
        HELLO,
        "{\"input\":\"Hello\"}",
        "{\"input\":\"hello \"}",
        "{\"messages\":[{\"role\":\"system\",\"content\":\"hello\"}]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\",\"name\":\"x\"}]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"},{\"role\":\"user\",\"content\":\"hello\"}]}",
        "{\"input\":\"hello\",\"max_steps\":1}",
        "{\"input\":\"hello\",\"use_assistant_message\":false}",
        "{\"input\":\"hello\",\"include_return_message_types\":[\"assistant_message\"]}",
        "{\"input\":\"hello\",\"override_model\":\"x\"}",
        "{\"input\":\"hello\",\"a_field_of_tomorrow\":1}",
    ];
    for body in bodies {
        assert_eq!(status(&say(&proxy, body).await), MISS, "{body}");
    }
    assert_eq!(status(&ask(&proxy, KEY, &[("x-project-id", "p")], HELLO).await), MISS);
    let other_query = proxy.post(&format!("{}?x=1", messages()), HELLO).await;
    assert_eq!(status(&other_query), MISS);
    let other_agent = proxy.post("/v1/agents/agent-11111111-1111-4111-8111-111111111111/messages", HELLO).await;
    assert_eq!(status(&other_agent), MISS);
    assert_eq!(a.count(), bodies.len() + 3);
    for body in bodies {
        assert!(is_hit(&say(&proxy, body).await), "{body}");
    }
}

#[tokio::test]
async fn an_answer_is_found_by_what_letta_saw_of_the_request() {
    let a = counting().await;
    let proxy = gateway(&[&a], ALL).await;
    // taken off on the way: Letta answers without a project
    let taken_off = [("x-project-id", "p"), ("connection", "X-Project-Id, keep-alive")];
    assert_eq!(status(&ask(&proxy, KEY, &taken_off, HELLO).await), MISS);
    assert_eq!(a.seen()[0].header("x-project-id"), None);
    let of_project = ask(&proxy, KEY, &[("x-project-id", "p")], HELLO).await;
    assert_eq!(status(&of_project), MISS, "another project's answer");
    assert_eq!(a.seen()[1].header("x-project-id"), Some("p"));
    assert!(is_hit(&ask(&proxy, KEY, &[], HELLO).await), "the one without a project");
    assert!(is_hit(&ask(&proxy, KEY, &taken_off, HELLO).await));
    assert_eq!(a.count(), 2);
}

#[tokio::test]
async fn each_key_has_its_own_answers() {
    let a = counting().await;
    let proxy = gateway(&[&a], ALL).await;
    let mine = say(&proxy, HELLO).await;
    let theirs = ask(&proxy, COLLEAGUE, &[], HELLO).await;
    assert_eq!((status(&mine), status(&theirs)), (MISS, MISS));
    assert_ne!(mine.body, theirs.body);
    assert_eq!(say(&proxy, HELLO).await.body, mine.body);
    assert_eq!(ask(&proxy, COLLEAGUE, &[], HELLO).await.body, theirs.body);
    assert_eq!(ask(&proxy, READER, &[], HELLO).await.status, 403, "a kept answer opens no route");
    assert_eq!(a.count(), 2);
}

#[tokio::test]
async fn keys_share_answers_where_the_configuration_says_so() {
    let a = counting().await;
    let proxy = gateway(&[&a], "cache: { agents: [\"*\"], scope: shared }").await;
    say(&proxy, HELLO).await;
    assert!(is_hit(&ask(&proxy, COLLEAGUE, &[], HELLO).await));
    assert_eq!(ask(&proxy, READER, &[], HELLO).await.status, 403);
    assert_eq!(a.count(), 1);
}

#[tokio::test]
async fn only_named_agents_are_cached() {
    let named = "agent-11111111-1111-4111-8111-111111111111";
    for (cache, cached) in [
        (String::new(), false),
        ("cache: { ttl: 1h }".to_owned(), false),
        (format!("cache: {{ agents: [\"{named}\"] }}"), false),
        (format!("cache: {{ agents: [\"{named}\", \"{AGENT}\"] }}"), true),
    ] {
        let a = counting().await;
        let proxy = gateway(&[&a], &cache).await;
        for _ in 0..2 {
            let answer = say(&proxy, HELLO).await;
            assert_eq!(answer.header("cache-status").is_some(), cached, "{cache}");
        }
        assert_eq!(a.count(), if cached { 1 } else { 2 }, "{cache}");
        assert_eq!(proxy.log(2).await[1].get("cache").is_some(), cached);
    }
}

#[tokio::test]
async fn other_routes_of_a_named_agent_are_not_cached() {
    let a = counting().await;
    let proxy = gateway(&[&a], ALL).await;
    for _ in 0..2 {
        for answer in [
            proxy.get(&messages()).await,
            proxy.get(&format!("/v1/agents/{AGENT}")).await,
            proxy.post(&format!("{}/async", messages()), HELLO).await,
            proxy.post("/v1/conversations/default/messages", HELLO).await,
            proxy.post(&format!("/v1/agents/{AGENT}/generate"), "{\"prompt\":\"hello\"}").await,
        ] {
            assert_eq!((answer.status, answer.header("cache-status")), (200, None));
        }
    }
    assert_eq!(a.count(), 10);
}

#[tokio::test]
async fn only_the_whole_answer_of_a_finished_turn_is_kept() {
    let finished = letta_answer("x");
    let stopped = |reason: &str| finished.replace("end_turn", reason);
    let plain = vec![("content-type", "application/json")];
    let with = |name, value| vec![("content-type", "application/json"), (name, value)];
    let answers = [
        (200, plain.clone(), stopped("max_steps")),
        (200, plain.clone(), stopped("requires_approval")),
        (200, plain.clone(), stopped("error")),
        (200, plain.clone(), stopped("llm_api_error")),
        (200, plain.clone(), stopped("cancelled")),
        (200, plain.clone(), stopped("a_reason_of_tomorrow")),
        (200, plain.clone(), "{\"messages\":[]}".to_owned()),
        (200, plain.clone(), "not JSON".to_owned()),
        (200, plain.clone(), String::new()),
        (200, plain.clone(), finished.replace("assistant_message", "approval_request_message")),
        (201, plain.clone(), finished.clone()),
        (202, plain.clone(), finished.clone()),
        (409, plain.clone(), finished.clone()),
        (429, plain.clone(), finished.clone()),
        (500, plain.clone(), finished.clone()),
        (503, plain.clone(), finished.clone()),
        (200, vec![("content-type", "text/plain")], finished.clone()),
        (200, vec![], finished.clone()),
        (200, with("content-encoding", "gzip"), finished.clone()),
        (200, with("cache-control", "no-store"), finished.clone()),
    ];
    for (code, headers, body) in answers {
        let (sent, told) = (headers.clone(), body.clone());
        let a = Replica::start(move |_| Reply::Full(code, sent.clone(), Bytes::from(told.clone()))).await;
        let proxy = gateway(&[&a], ALL).await;
        for _ in 0..2 {
            let answer = say(&proxy, HELLO).await;
            assert_eq!((answer.status, answer.text()), (code, body.clone()), "{headers:?}");
            assert_eq!(status(&answer), MISS, "{code} {headers:?} {body}");
        }
        assert_eq!(a.count(), 2, "{code} {headers:?} {body}");
    }
}

#[tokio::test]
async fn half_an_answer_is_not_kept() {
    let (feed, pieces) = mpsc::channel(4);
    let pieces = std::sync::Mutex::new(Some(pieces));
    let a = Replica::start(move |_| match pieces.lock().unwrap().take() {
        Some(pieces) => Reply::Pieces("application/json", pieces),
        None => json(letta_answer("whole")),
    })
    .await;
    let proxy = gateway(&[&a], ALL).await;
    // what came is a whole answer already, but for the end that tells so
    feed.send(Some(Bytes::from(letta_answer("half")))).await.unwrap();
    let request = proxy.request("POST", &messages()).header("content-type", "application/json");
    let response = proxy.open(request.body(Bytes::from(HELLO)).unwrap()).await;
    feed.send(None).await.unwrap();
    assert!(
        http_body_util::BodyExt::collect(response.into_body()).await.is_err(),
        "the client is not told it is whole"
    );
    assert_eq!(say(&proxy, HELLO).await.text(), letta_answer("whole"));
    let sends = a.seen().iter().filter(|seen| seen.method == "POST").count();
    assert_eq!(sends, 2);
}

#[tokio::test]
async fn streams_pass_and_are_not_kept() {
    let a = Replica::start(|_| {
        let (feed, events) = mpsc::channel(4);
        feed.try_send(Some(Bytes::from("data: {\"message_type\":\"stop_reason\",\"stop_reason\":\"end_turn\"}\n\n")))
            .unwrap();
        feed.try_send(Some(Bytes::from("data: [DONE]\n\n"))).unwrap();
        Reply::Stream(events)
    })
    .await;
    let proxy = gateway(&[&a], ALL).await;
    let body = "{\"input\":\"hello\",\"streaming\":true}";
    for _ in 0..2 {
        let answer = say(&proxy, body).await;
        assert!(answer.text().ends_with("data: [DONE]\n\n"));
        assert_eq!(status(&answer), "letta-gateway; fwd=bypass; detail=stream");
    }
    assert_eq!(a.count(), 2);
    assert!(a.seen().iter().all(|seen| seen.body == body), "the body passes as it came");
    assert_eq!(proxy.log(1).await[0]["cache"], "bypass");
}

#[tokio::test]
async fn what_a_client_asks_of_caches_is_done() {
    let a = counting().await;
    let proxy = gateway(&[&a], ALL).await;
    let asks = async |value: &'static str| ask(&proxy, KEY, &[("cache-control", value)], HELLO).await;
    // no-store: neither a kept answer nor one to keep
    let unkept = asks("no-store").await;
    assert_eq!(status(&unkept), "letta-gateway; fwd=request");
    // only-if-cached: a kept answer or none
    let none = asks("only-if-cached").await;
    assert_eq!((none.status, &none.json()["error"]["type"]), (504, &"client_only_if_cached".into()));
    assert_eq!(a.count(), 1);
    let first = say(&proxy, HELLO).await;
    assert_eq!(status(&first), MISS);
    assert_eq!(asks("only-if-cached").await.body, first.body);
    // no-cache: a fresh answer, which is kept
    let fresh = asks("No-Cache, no-transform").await;
    assert_eq!(status(&fresh), "letta-gateway; fwd=request");
    assert_ne!(fresh.body, first.body);
    assert_eq!(say(&proxy, HELLO).await.body, fresh.body);
    assert_ne!(asks("no-store").await.body, fresh.body);
    assert_eq!(say(&proxy, HELLO).await.body, fresh.body, "what is not to be kept is not");
    assert!(is_hit(&asks("max-age=600").await));
    let pragma = ask(&proxy, KEY, &[("pragma", "no-cache")], HELLO).await;
    assert_eq!(status(&pragma), "letta-gateway; fwd=request");
    assert_eq!(a.count(), 5);
}

#[tokio::test]
async fn a_kept_answer_ages_and_ends() {
    let a = counting().await;
    let proxy = gateway(&[&a], "cache: { agents: [\"*\"], ttl: 1s }").await;
    let first = say(&proxy, HELLO).await;
    let started = tokio::time::Instant::now();
    let next = loop {
        let answer = say(&proxy, HELLO).await;
        if answer.body != first.body {
            break answer;
        }
        assert!(is_hit(&answer));
        assert!(started.elapsed() < PATIENCE, "it never ends");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert!(started.elapsed() > std::time::Duration::from_millis(900), "it ends too early");
    assert_ne!(status(&next), "letta-gateway; hit; ttl=0");
    assert_eq!(a.count(), 2);
}

#[tokio::test]
async fn answers_over_their_bound_pass_and_are_not_kept() {
    let large = letta_answer(&"x".repeat(2000));
    let told = large.clone();
    let a =
        Replica::start(move |seen| json(if seen.body == HELLO { told.clone() } else { letta_answer("short") })).await;
    let proxy = gateway(&[&a], "cache: { agents: [\"*\"], max_entry: 1KiB }").await;
    for _ in 0..2 {
        let answer = say(&proxy, HELLO).await;
        assert_eq!((answer.text(), status(&answer)), (large.clone(), MISS));
    }
    assert_eq!(status(&say(&proxy, "{\"input\":\"short\"}").await), MISS);
    assert!(is_hit(&say(&proxy, "{\"input\":\"short\"}").await));
    assert_eq!(a.count(), 3);
}

#[tokio::test]
async fn all_answers_together_stay_within_their_bound() {
    let a = Replica::start(|_| json(letta_answer(&"x".repeat(1000)))).await;
    let proxy = gateway(&[&a], "cache: { agents: [\"*\"], max_entry: 2KiB, max_total: 32KiB }").await;
    for question in 0..100 {
        say(&proxy, &format!("{{\"input\":\"{question}\"}}")).await;
        let bytes = proxy.metric("letta_gateway_cache_bytes").await;
        assert!(bytes <= 32.0 * 1024.0, "{bytes}");
    }
    assert!(proxy.metric("letta_gateway_cache_entries").await >= 5.0, "and is used");
}

#[tokio::test]
async fn a_message_too_long_to_be_read_passes_whole() {
    let a = counting().await;
    let proxy = gateway(&[&a], ALL).await;
    for length in [256 * 1024 - 20, 256 * 1024, 300_000, 3_000_000] {
        let before = a.count();
        let body = format!("{{\"input\":\"{}\"}}", "x".repeat(length));
        let answer = say(&proxy, &body).await;
        assert_eq!(answer.status, 200);
        let seen = &a.seen()[before];
        assert!(seen.body == body, "{length}: {} of {} bytes", seen.body.len(), body.len());
        assert_eq!(seen.header("content-length"), Some(body.len().to_string().as_str()));
        let too_long = body.len() > 256 * 1024;
        assert_eq!(status(&answer) == "letta-gateway; fwd=bypass; detail=request-too-long", too_long, "{length}");
    }
    assert_eq!(a.count(), 4);
}

/// What is no message as Letta takes it is Letta's to refuse, in its own words.
#[tokio::test]
async fn what_is_not_understood_is_lettas_to_answer() {
    let a = Replica::start(|_| Reply::Json(422, "{\"detail\":\"Letta's own words\"}".into())).await;
    let proxy = gateway(&[&a], ALL).await;
    for (body, detail) in [
        ("{\"message\":\"the tutorial's form\"}", "unclear-message"),
        ("not JSON at all", "unclear-message"),
        ("", "unclear-message"),
        ("{\"input\":\"a\",\"input\":\"b\"}", "unclear-message"),
        ("{\"input\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"b\"}]}", "unclear-message"),
        ("{\"input\":\"a\",\"background\":true}", "stream"),
        ("{\"input\":\"a\",\"callback_url\":\"http://x\"}", "involves-others"),
        ("{\"messages\":[{\"type\":\"approval\",\"approve\":true,\"approval_request_id\":\"x\"}]}", "resumes-a-turn"),
    ] {
        let before = a.count();
        let answer = say(&proxy, body).await;
        assert_eq!((answer.status, answer.text().as_str()), (422, "{\"detail\":\"Letta's own words\"}"));
        assert_eq!(status(&answer), format!("letta-gateway; fwd=bypass; detail={detail}"), "{body}");
        assert_eq!(a.seen()[before].body, body);
    }
    let form = ask(&proxy, KEY, &[("content-encoding", "gzip")], "\u{1f}\u{8b}").await;
    assert_eq!(status(&form), "letta-gateway; fwd=bypass; detail=not-json");
}

#[tokio::test]
async fn a_kept_answer_counts_for_the_limits() {
    let a = counting().await;
    let limited = format!("{ALL}\nplans:\n  standard: {{ rate: {{ requests: 1, per: 1h, burst: 2 }} }}");
    let proxy = gateway(&[&a], &limited).await;
    assert_eq!(say(&proxy, HELLO).await.header("x-ratelimit-remaining"), Some("1"));
    let hit = say(&proxy, HELLO).await;
    assert!(is_hit(&hit));
    assert_eq!(hit.header("x-ratelimit-remaining"), Some("0"));
    assert_eq!(say(&proxy, HELLO).await.status, 429);
    assert_eq!(a.count(), 1);
}
