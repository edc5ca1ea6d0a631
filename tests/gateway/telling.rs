//! What the gateway tells: metrics with bounded labels, one access-log line a request, its readiness, ids that lead
//! from one to the other.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::authority::{Authority, over_tls};
use crate::redis_server::RedisServer;
use crate::support::{
    AGENT, Answer, KEY, PATIENCE, Proxy, READER, Raw, Replica, Reply, gateway, json, letta_answer, start, streaming,
    until, yaml,
};

const PREFIX: &str = "letta_gateway_";
const WORD: &str = "data: {\"message_type\":\"assistant_message\",\"content\":\"hi\"}\n\n";

fn agent() -> String {
    format!("/v1/agents/{AGENT}")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The names of families in /metrics, the gateway's own.
async fn families(proxy: &Proxy) -> BTreeSet<String> {
    let metrics = proxy.admin("/metrics").await.text();
    let types = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    types.filter_map(|name| name.strip_prefix(PREFIX)).map(str::to_owned).collect()
}

/// The names in the first cells of the README's table of metrics.
fn documented() -> BTreeSet<String> {
    let readme = read("README.md");
    let (_, table) = readme.split_once("| metric (`letta_gateway_…`)").expect("the table of metrics");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let cells = rows.map(|row| row.split('|').nth(1).unwrap());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// The families that the dashboard and the alerts ask for.
fn drawn() -> BTreeSet<String> {
    let text = read("dashboards/letta-gateway.json") + &read("config/prometheus-rules.yml");
    let names = text.split(PREFIX).skip(1).map(|rest| rest.split(|c: char| !c.is_ascii_lowercase() && c != '_').next());
    let family = |name: &str| {
        let part = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        part.unwrap_or(name).to_owned()
    };
    names.flatten().map(family).collect()
}

async fn say(proxy: &Proxy) -> Answer {
    proxy.post(&format!("{}/messages", agent()), "{\"input\":\"hello\"}").await
}

#[tokio::test]
async fn every_metric_that_is_documented_or_drawn_is_told_and_none_besides() {
    let mut redis = RedisServer::start();
    let (feed, events) = mpsc::channel(4);
    let events = std::sync::Mutex::new(Some(events));
    let first = AtomicBool::new(true);
    let a = Replica::start(move |seen| match seen.target.as_str() {
        target if target.ends_with("/stream") => Reply::Stream(events.lock().unwrap().take().expect("one stream")),
        target if target.ends_with("/messages") => json(letta_answer("hi")),
        _ if first.swap(false, Ordering::Relaxed) => Reply::Close,
        _ => json("{}"),
    })
    .await;
    let mut authority = Authority::new();
    let certificate = authority.issue("a", &["a.test"], 2031);
    let letta = format!("    servers: [ {{ url: http://{} }} ]", a.address);
    let more = format!("cache: {{ agents: [\"*\"] }}\nstore: {{ redis: {{ url: \"{}\", timeout: 5s }} }}", redis.url());
    let more =
        format!("{more}\nplans: {{ standard: {{ rate: {{ requests: 1000, per: 1s }}, budgets: [{{ turns: 9 }}] }} }}");
    let plain = "  - address: 127.0.0.1:0\n";
    let both = format!("{plain}  - {{ address: 127.0.0.1:0, tls: {{ {} }} }}\n", certificate.yaml());
    let proxy = start(&yaml(&letta, &more).replacen(plain, &both, 1)).await;

    proxy.metric_is("letta_gateway_redis_up{link=\"values\"}", 1.0).await;
    assert_eq!(say(&proxy).await.status, 200);
    assert_eq!(proxy.get(&agent()).await.status, 200);
    assert_eq!(a.count(), 3, "it was tried again");
    assert_eq!(proxy.get("/v1/nothing").await.status, 404);
    feed.send(Some(Bytes::from(WORD))).await.unwrap();
    let request = proxy.request("POST", &format!("{}/messages/stream", agent()));
    let broken = proxy.open(request.body(Bytes::from("{\"input\":\"x\"}")).unwrap()).await;
    feed.send(None).await.unwrap();
    assert_eq!(Answer::of(broken).await.status, 200);
    proxy.raw("no HTTP\r\n\r\n").await;
    redis.kill();
    assert_eq!(say(&proxy).await.status, 200);
    for link in ["values", "turns", "limits"] {
        proxy.metric_is(&format!("letta_gateway_redis_up{{link=\"{link}\"}}"), 0.0).await;
    }

    let told = families(&proxy).await;
    let documented = documented();
    assert!(documented.len() > 30, "{documented:?}");
    assert_eq!(documented.difference(&told).collect::<Vec<_>>(), [""; 0], "documented, but not told");
    assert_eq!(told.difference(&documented).collect::<Vec<_>>(), [""; 0], "told, but not documented");
    let drawn = drawn();
    assert!(drawn.len() > 20, "{drawn:?}");
    assert_eq!(drawn.difference(&told).collect::<Vec<_>>(), [""; 0], "drawn, but not told");
    assert!(proxy.metric("process_resident_memory_bytes").await > 0.0);
    assert!(proxy.metric("process_open_fds").await > 0.0);
    let series = proxy.series().await;
    let links = series.iter().filter(|line| line.starts_with("letta_gateway_redis_up{"));
    assert_eq!(links.count(), 3, "a closed set");
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    assert!(series.iter().any(|line| line.starts_with("letta_gateway_build_info{") && line.contains(&version)));
    for bucket in [
        "request_duration_seconds_bucket{method=\"GET\",route=\"/v1/agents/{agent_id}\",le=\"600\"}",
        "overhead_seconds_bucket{le=\"0.00005\"}",
        "overhead_seconds_bucket{le=\"0.1\"}",
    ] {
        assert!(series.iter().any(|line| line.starts_with(&format!("{PREFIX}{bucket} "))), "{bucket}");
    }
}

#[tokio::test]
async fn nothing_a_client_makes_up_becomes_a_label() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    let ask = async |count: usize| {
        for number in 0..count {
            let target = format!("/v1/agents/agent-0f6ed4f5-5d0e-4b4e-9d9f-0a3e1c1c{number:04}?secret={number}");
            assert_eq!(proxy.get(&target).await.status, 200);
            assert_eq!(proxy.get(&format!("/made-up-{number}")).await.status, 404);
            let request =
                proxy.request(&format!("BREW{number}"), &agent()).header("x-request-id", format!("id-{number}"));
            assert!([400, 405, 501].contains(&proxy.send(request.body(Bytes::new()).unwrap()).await.status));
            let request = http::Request::builder().uri(format!("http://{}{}", proxy.address(), agent()));
            let request = request.header("x-api-key", format!("made-up-{number}"));
            assert_eq!(proxy.send(request.body(Bytes::new()).unwrap()).await.status, 401);
        }
        proxy.metric_is("letta_gateway_requests_in_flight", 0.0).await;
        let series = proxy.series().await;
        // without their values
        series.into_iter().map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect::<BTreeSet<_>>()
    };
    let few = ask(1).await;
    let many = ask(60).await;
    assert_eq!(many.difference(&few).collect::<Vec<_>>(), [""; 0]);
    for label in ["agent-", "made-up", "secret", "BREW", "id-0", KEY] {
        assert!(!many.iter().any(|series| series.contains(label)), "{label}");
    }
    let unknown = "letta_gateway_requests_total{method=\"none\",route=\"none\",status=\"4xx\"}";
    assert!(proxy.metric(unknown).await >= 61.0, "{many:?}");
    let known = "letta_gateway_requests_total{method=\"GET\",route=\"/v1/agents/{agent_id}\",status=\"2xx\"}";
    assert_eq!(proxy.metric(known).await, 61.0);
    assert_eq!(proxy.metric("letta_gateway_key_requests_total{key=\"team-a\",status=\"2xx\"}").await, 61.0);
}

fn fields(line: &Value) -> BTreeSet<&str> {
    line.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test]
async fn a_request_is_one_line_with_all_that_is_known_of_it() {
    let a = Replica::start(|_| json(letta_answer("hi"))).await;
    let proxy = gateway(&[&a], "cache: { agents: [\"*\"] }").await;
    let path = format!("{}/messages", agent());
    let body = "{\"input\":\"hello\"}";
    let mut answers = Vec::new();
    for id in ["asked", "kept"] {
        let request =
            proxy.request("POST", &path).header("content-type", "application/json").header("x-request-id", id);
        answers.push(proxy.send(request.body(Bytes::from(body)).unwrap()).await);
    }
    let request = http::Request::builder().method("POST").uri(format!("http://{}{path}?token=x", proxy.address()));
    proxy.send(request.header("x-api-key", READER).header("x-request-id", "refused").body(Bytes::new()).unwrap()).await;
    proxy.get("/made-up?token=x").await;

    let log = proxy.log(4).await;
    assert_eq!(log.len(), 4);
    let always = ["ts", "request_id", "client", "protocol", "method", "attempts", "status"];
    let always =
        always.into_iter().chain(["duration_ms", "ttfb_ms", "overhead_ms", "bytes_in", "bytes_out", "ended_by"]);
    let always: BTreeSet<_> = always.collect();
    let with = |more: &[&'static str]| always.iter().copied().chain(more.iter().copied()).collect::<BTreeSet<_>>();

    let asked = &log[0];
    assert_eq!(fields(asked), {
        let turn = ["turn", "queue_ms", "outcome", "prompt_tokens", "completion_tokens", "steps"];
        let mut all = with(&["route", "agent", "key", "upstream", "cache", "upstream_ms"]);
        all.extend(turn);
        all
    });
    let expected = serde_json::json!({
        "request_id": "asked", "client": "127.0.0.1", "protocol": "h1", "method": "POST",
        "route": "/v1/agents/{agent_id}/messages", "agent": AGENT, "key": "team-a", "upstream": a.address.to_string(),
        "attempts": 1, "status": 200, "cache": "miss", "turn": "started", "outcome": "end_turn", "bytes_in": body.len(), "bytes_out": answers[0].body.len(),
        "ended_by": "complete",
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&asked[name], value, "{name}");
    }
    let ts = asked["ts"].as_str().unwrap();
    assert!(ts.len() == 24 && ts.ends_with('Z') && ts.as_bytes()[10] == b'T', "{ts}");

    let kept = &log[1];
    assert_eq!(fields(kept), with(&["route", "agent", "key", "cache"]), "no replica had to do with it");
    assert_eq!((&kept["request_id"], &kept["cache"], &kept["attempts"]), (&"kept".into(), &"hit".into(), &0.into()));
    assert_eq!(kept["bytes_out"], answers[1].body.len());

    let refused = &log[2];
    assert_eq!(fields(refused), with(&["route", "agent", "key", "reason"]));
    assert_eq!((&refused["key"], &refused["reason"]), (&"reader".into(), &"policy_scope_missing".into()));
    assert_eq!((&refused["status"], &refused["ended_by"]), (&403.into(), &"gateway".into()));

    let unknown = &log[3];
    assert_eq!(fields(unknown), with(&["path", "reason"]));
    assert_eq!((&unknown["path"], &unknown["status"]), (&"/made-up".into(), &404.into()));
    // neither keys nor what stands in a query, which may be one
    let text = serde_json::to_string(&log).unwrap();
    assert!(!text.contains("token=x") && !text.contains(KEY) && !text.contains(READER) && !text.contains("hello"));
    assert_eq!(a.count(), 1);
}

#[tokio::test]
async fn whoever_ended_a_request_is_named() {
    let (a, mut feeds) = streaming().await;
    let plan = "plans:\n  standard: { rate: { requests: 1, per: 1h, burst: 3 } }";
    let proxy = gateway(&[&a], plan).await;
    let path = format!("{}/messages/stream", agent());
    let stream = async |feeds: &mut mpsc::UnboundedReceiver<crate::support::Feed>| {
        let response = proxy.open(proxy.request("POST", &path).body(Bytes::from("{\"input\":\"x\"}")).unwrap()).await;
        (response.into_body(), feeds.recv().await.unwrap())
    };
    let line = async |count: usize| proxy.log(count).await[count - 1].clone();

    let (body, feed) = stream(&mut feeds).await;
    feed.send(Some(Bytes::from("data: [DONE]\n\n"))).await.unwrap();
    drop(feed);
    body.collect().await.unwrap();
    assert_eq!(line(1).await["ended_by"], "complete");

    let (body, feed) = stream(&mut feeds).await;
    drop(body);
    let left = line(2).await;
    // its turn goes on; the next one waits for that
    feed.send(Some(Bytes::from("data: [DONE]\n\n"))).await.unwrap();
    drop(feed);
    assert_eq!((&left["ended_by"], &left["status"]), (&"client".into(), &200.into()), "{left}");

    let (body, feed) = stream(&mut feeds).await;
    feed.send(Some(Bytes::from(WORD))).await.unwrap();
    feed.send(None).await.unwrap();
    body.collect().await.unwrap();
    let broken = line(3).await;
    assert_eq!((&broken["ended_by"], &broken["reason"]), (&"upstream".into(), &"upstream_stream_broken".into()));

    assert_eq!(proxy.get(&agent()).await.status, 429);
    let refused = line(4).await;
    assert_eq!((&refused["ended_by"], &refused["reason"]), (&"gateway".into(), &"policy_rate_limited".into()));
    assert_eq!(proxy.metric("letta_gateway_streams_broken_total").await, 1.0, "a client that leaves breaks nothing");
    assert_eq!(proxy.log(4).await.len(), 4);
}

/// Letta writes head and body apart. Whoever has as many bytes as were promised asks for no more.
#[tokio::test]
async fn an_answer_that_was_handed_over_whole_is_complete_however_it_came() {
    let body = letta_answer("hi");
    let (half, rest) = body.split_at(40);
    let (half, rest, length) = (Bytes::from(half.to_owned()), Bytes::from(rest.to_owned()), body.len());
    let (begun, mut feeds) = mpsc::unbounded_channel();
    let a = Replica::start(move |seen| {
        if seen.target.starts_with("/v1/runs/") {
            return json("[]");
        }
        let (feed, pieces) = mpsc::channel(4);
        begun.send(feed).unwrap();
        Reply::Sized(length, pieces)
    })
    .await;
    let proxy = gateway(&[&a], "cache: { agents: [\"*\"] }").await;
    let path = format!("{}/messages", agent());
    let ask = |method: &str, path: &str| {
        let request = proxy.request(method, path).header("content-type", "application/json");
        proxy.open(request.body(Bytes::from("{\"input\":\"hello\"}")).unwrap())
    };
    for (count, (method, path)) in [("POST", &path), ("GET", &agent())].into_iter().enumerate() {
        let begins = async {
            let feed = feeds.recv().await.unwrap();
            feed.send(Some(half.clone())).await.unwrap();
            feed
        };
        let (response, feed) = tokio::join!(ask(method, path), begins);
        feed.send(Some(rest.clone())).await.unwrap();
        assert_eq!(Answer::of(response).await.text(), body);
        let line = &proxy.log(count + 1).await[count];
        assert_eq!((&line["ended_by"], &line["bytes_out"]), (&"complete".into(), &length.into()), "{line}");
    }
    assert_eq!(proxy.log(2).await[0]["outcome"], "end_turn");
    assert_eq!(proxy.metric("letta_gateway_turns_detached_total").await, 0.0, "nobody left it");
    // and so it is worth keeping
    let kept = Answer::of(ask("POST", &path).await).await;
    assert_eq!((kept.text(), a.count()), (body, 2));
    assert!(kept.header("cache-status").unwrap().contains("; hit;"), "{kept:?}");

    // what breaks off is neither
    let other = format!("{path}?order=asc");
    let breaks = async {
        let feed = feeds.recv().await.unwrap();
        feed.send(Some(half.clone())).await.unwrap();
        feed.send(None).await.unwrap();
    };
    let (response, ()) = tokio::join!(ask("POST", &other), breaks);
    assert!(response.into_body().collect().await.is_err());
    let line = &proxy.log(4).await[3];
    assert_eq!((&line["ended_by"], &line["outcome"]), (&"upstream".into(), &"broken".into()), "{line}");
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_is_told_without_a_status() {
    let a = Replica::start(|_| Reply::Hang).await;
    let proxy = gateway(&[&a], "").await;
    let path = agent();
    tokio::select! {
        answer = proxy.get(&path) => panic!("it hangs: {answer:?}"),
        () = a.waits_for(1) => {}
    }
    let line = &proxy.log(1).await[0];
    assert_eq!(
        (&line["ended_by"], &line["status"], line.get("ttfb_ms")),
        (&"client".into(), &0.into(), None),
        "{line}"
    );
    let none = "letta_gateway_requests_total{method=\"GET\",route=\"/v1/agents/{agent_id}\",status=\"none\"}";
    assert_eq!(proxy.metric(none).await, 1.0);
    assert_eq!(proxy.metric("letta_gateway_errors_total{reason=\"upstream_closed\"}").await, 0.0);
}

#[tokio::test]
async fn many_requests_at_once_are_as_many_lines_each_with_an_id_of_its_own() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    let path = agent();
    let answers = futures_util::future::join_all((0..50).map(|_| proxy.get(&path))).await;
    let log = proxy.log(50).await;
    let told: BTreeSet<_> = answers.iter().map(|answer| answer.header("x-request-id").unwrap()).collect();
    let logged: BTreeSet<_> = log.iter().map(|line| line["request_id"].as_str().unwrap()).collect();
    let seen = a.seen();
    let sent: BTreeSet<_> = seen.iter().map(|seen| seen.header("x-request-id").unwrap()).collect();
    assert_eq!((told.len(), log.len()), (50, 50));
    assert!(told == logged && told == sent);
    assert_eq!(proxy.metric("letta_gateway_access_log_dropped_total").await, 0.0);
}

#[tokio::test]
async fn an_id_that_could_do_harm_is_replaced_everywhere() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    let long = "x".repeat(129);
    let ask = async |id: &str| {
        let head = format!("GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Api-Key: {KEY}", agent());
        Raw::of(&proxy.raw(&format!("{head}\r\nX-Request-Id: {id}\r\n\r\n")).await)
    };
    for (number, id) in ["", " ", "two words", "tab\tbed", "\u{e9}", long.as_str()].into_iter().enumerate() {
        let answer = ask(id).await;
        assert_eq!(answer.status, 200, "{id:?}");
        let made = answer.header("x-request-id").unwrap();
        assert!(made.len() == 32 && made.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id:?} became {made:?}");
        assert_eq!(proxy.log(number + 1).await[number]["request_id"], made);
        assert_eq!(a.seen()[number].header("x-request-id"), Some(made), "{id:?}");
    }
    // what no header may hold goes no further than the parser
    assert_eq!(ask("esc\u{1b}[31m").await.status, 400);
    // as long as one may be
    let request = proxy.request("GET", &agent()).header("x-request-id", &long[1..]);
    let answer = proxy.send(request.body(Bytes::new()).unwrap()).await;
    assert_eq!(answer.header("x-request-id"), Some(&long[1..]));
    assert_eq!(a.count(), 7);
}

#[tokio::test]
async fn a_refusal_has_its_id_too() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    for (key, target, status) in [("nobody's", agent(), 401), (KEY, "/v1/../x".into(), 400), (KEY, "/none".into(), 404)]
    {
        let request = http::Request::builder().uri(format!("http://{}{target}", proxy.address()));
        let request = request.header("x-api-key", key).header("x-request-id", "mine");
        let answer = proxy.send(request.body(Bytes::new()).unwrap()).await;
        assert_eq!((answer.status, answer.header("x-request-id")), (status, Some("mine")));
    }
    assert!(proxy.log(3).await.iter().all(|line| line["request_id"] == "mine"));
}

#[tokio::test]
async fn a_trace_goes_on_through_the_gateway() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    let trace = [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("tracestate", "a=1,b=2")];
    let mut request = proxy.request("GET", &agent());
    for (name, value) in trace {
        request = request.header(name, value);
    }
    proxy.send(request.body(Bytes::new()).unwrap()).await;
    proxy.get(&agent()).await;
    let seen = a.seen();
    for (name, value) in trace {
        assert_eq!((seen[0].header(name), seen[1].header(name)), (Some(value), None), "{name}");
    }
}

#[tokio::test]
async fn durations_tell_lettas_time_from_the_gateways() {
    let (answer, told) = oneshot::channel();
    let told = std::sync::Mutex::new(Some(told));
    let a = Replica::start(move |_| Reply::Wait(told.lock().unwrap().take().expect("one request"))).await;
    let proxy = gateway(&[&a], "").await;
    let begun = Instant::now();
    let response = async {
        let request = proxy.request("POST", &format!("{}/messages/stream", agent()));
        proxy.open(request.body(Bytes::from("{\"input\":\"x\"}")).unwrap()).await
    };
    let (feed, events) = mpsc::channel(1);
    // how long Letta thinks and speaks: the times that are measured, nothing waits for them
    let (thinks, speaks) = (Duration::from_millis(80), Duration::from_millis(40));
    let letta = async {
        a.waits_for(1).await;
        tokio::time::sleep(thinks).await;
        assert!(answer.send(Reply::Stream(events)).is_ok());
    };
    let (response, ()) = tokio::join!(response, letta);
    let mut body = response.into_body();
    feed.send(Some(Bytes::from(WORD))).await.unwrap();
    body.frame().await.unwrap().unwrap();
    tokio::time::sleep(speaks).await;
    drop(feed);
    body.collect().await.unwrap();
    let line = &proxy.log(1).await[0];
    let took = begun.elapsed().as_secs_f64() * 1000.0;
    let [total, first, upstream, overhead] =
        ["duration_ms", "ttfb_ms", "upstream_ms", "overhead_ms"].map(|name| line[name].as_f64().unwrap());
    assert!(upstream >= 80.0 && total >= first + 40.0 && total <= took, "{line}");
    // what is not the one is the other, but for the microsecond each is cut to
    assert!((upstream + overhead - first).abs() <= 0.01, "{line}");
    assert!(overhead > 0.0, "{line}");

    let route = "{method=\"POST\",route=\"/v1/agents/{agent_id}/messages/stream\"}";
    for (name, least, most) in [("request_duration_seconds", 0.12, took), ("time_to_first_byte_seconds", 0.08, took)] {
        let sum = proxy.metric(&format!("{PREFIX}{name}_sum{route}")).await;
        assert!((least..=most / 1000.0).contains(&sum), "{name}: {sum}");
        assert_eq!(proxy.metric(&format!("{PREFIX}{name}_count{route}")).await, 1.0);
    }
    let sum = proxy.metric("letta_gateway_overhead_seconds_sum").await;
    assert!((sum * 1000.0 - overhead).abs() <= 0.01, "{sum} s for {overhead} ms");
    let sum = proxy.metric(&format!("letta_gateway_upstream_response_seconds_sum{{upstream=\"{}\"}}", a.address)).await;
    assert!((sum * 1000.0 - upstream).abs() <= 0.01, "{sum} s for {upstream} ms");
}

async fn readiness(proxy: &Proxy) -> (u16, Value) {
    let answer = proxy.admin("/readyz").await;
    (answer.status, answer.json())
}

/// Waits until /readyz says `word`.
async fn ready(proxy: &Proxy, word: &str) -> (u16, Value) {
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            let (status, body) = readiness(proxy).await;
            if body["status"] == word {
                return (status, body);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("/readyz never says {word}"))
}

const CHECKS: &str = "    health_check: { interval: 50ms, timeout: 1s, unhealthy_after: 1, healthy_after: 1 }";

#[tokio::test]
async fn a_gateway_is_ready_while_a_replica_is_there() {
    let (a, b) = (Replica::start(|_| json("{}")).await, Replica::start(|_| json("{}")).await);
    let servers = format!("    servers: [ {{ url: http://{} }}, {{ url: http://{} }} ]", a.address, b.address);
    let proxy = start(&yaml(&format!("{servers}\n{CHECKS}"), "")).await;
    let (status, body) = ready(&proxy, "ready").await;
    assert_eq!((status, &body["upstreams"]["healthy"], &body["upstreams"]["configured"]), (200, &2.into(), &2.into()));
    assert_eq!((&body["store"]["state"], &body["config"]["problem"]), (&"in_process".into(), &Value::Null));

    let address = b.address;
    b.kill();
    let (status, body) = ready(&proxy, "degraded").await;
    assert_eq!((status, &body["upstreams"]["healthy"]), (200, &1.into()), "one is enough to be sent requests");
    assert_eq!(body["upstreams"]["unhealthy"], serde_json::json!([address.to_string()]));
    a.kill();
    let (status, body) = ready(&proxy, "no_upstream").await;
    assert_eq!((status, &body["upstreams"]["healthy"]), (503, &0.into()));
    let alive = proxy.admin("/livez").await;
    assert_eq!((alive.status, alive.text().as_str()), (200, "ok\n"), "no reason to start the gateway again");

    let _again = Replica::on(tokio::net::TcpListener::bind(address).await.unwrap(), |_| json("{}"));
    assert_eq!(ready(&proxy, "degraded").await.0, 200);
}

#[tokio::test]
async fn a_draining_gateway_is_alive_but_not_ready() {
    let (a, mut feeds) = streaming().await;
    let proxy = gateway(&[&a], "").await;
    let request = proxy.request("POST", &format!("{}/messages/stream", agent()));
    let response = proxy.open(request.body(Bytes::from("{\"input\":\"x\"}")).unwrap()).await;
    let feed = feeds.recv().await.unwrap();
    let looks = async {
        let (status, body) = ready(&proxy, "draining").await;
        assert_eq!((status, body["upstreams"]["healthy"].as_u64()), (503, Some(1)));
        assert_eq!(proxy.admin("/livez").await.status, 200);
        assert_eq!(proxy.metric("letta_gateway_requests_in_flight").await, 1.0);
        feed.send(Some(Bytes::from("data: [DONE]\n\n"))).await.unwrap();
        drop(feed);
        assert_eq!(Answer::of(response).await.text(), "data: [DONE]\n\n");
    };
    let (whole, ()) = tokio::join!(proxy.gateway.drain(PATIENCE), looks);
    assert!(whole);
    let line = &proxy.log(1).await[0];
    assert_eq!(line["ended_by"], "complete", "{line}");
    let admin = proxy.gateway.admin_address().unwrap();
    assert!(tokio::net::TcpStream::connect(admin).await.is_err(), "the admin listener outlives the drain, no more");
}

#[tokio::test]
async fn the_end_of_every_certificate_is_told() {
    let a = Replica::start(|_| json("{}")).await;
    let mut authority = Authority::new();
    let (first, second) = (authority.issue("a", &["a.test"], 2031), authority.issue("b", &["b.test"], 2033));
    let tls = format!("{}, certificates: [ {{ {} }} ]", first.yaml(), second.yaml());
    let letta = format!("    servers: [ {{ url: http://{} }} ]", a.address);
    let proxy = start(&over_tls(&yaml(&letta, ""), &tls)).await;
    for (name, ends) in [("a.test", 1_956_441_600.0), ("b.test", 2_019_600_000.0)] {
        let series = format!(
            "letta_gateway_tls_certificate_expiry_timestamp_seconds{{listener=\"127.0.0.1:0\",name=\"{name}\"}}"
        );
        assert_eq!(proxy.metric(&series).await, ends, "{name}");
    }
}

#[tokio::test]
async fn bytes_and_connections_are_counted() {
    let a = Replica::start(|seen| json("y".repeat(seen.body.len() * 2))).await;
    let proxy = gateway(&[&a], "").await;
    assert_eq!(proxy.post(&format!("{}/messages", agent()), &"x".repeat(1000)).await.body.len(), 2000);
    proxy.metric_is("letta_gateway_request_bytes_total", 1000.0).await;
    proxy.metric_is("letta_gateway_response_bytes_total", 2000.0).await;
    let open = "letta_gateway_connections_open{listener=\"127.0.0.1:0\"}";
    assert_eq!(proxy.metric(open).await, 1.0);
    proxy.raw("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert_eq!(proxy.metric("letta_gateway_connections_total{listener=\"127.0.0.1:0\"}").await, 2.0);
    proxy.metric_is(open, 1.0).await;
    until("the line is written", || a.count() == 1).await;
    proxy.metric_is("letta_gateway_requests_in_flight", 0.0).await;
}
