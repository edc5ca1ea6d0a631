//! A gateway from its start to its end: a configuration taken over while requests are in flight, or refused; a drain;
//! what is cut off told to the client and in the log as the gateway's doing. Signals and exit codes are the binary's.

use std::net::TcpListener;
use std::process::Output;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::version::TLS13;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::authority::{Authority, connect, over_tls};
use crate::process::{Process, command};
use crate::support::{
    AGENT, Answer, Door, KEY, PATIENCE, READER, Replica, Reply, gateway, hash, json, streaming, yaml,
};

const WORD: &str = "data: {\"message_type\":\"assistant_message\",\"content\":\"hi\"}\n\n";
const DONE: &str = "data: [DONE]\n\n";
const NEW_KEY: &str = "the-new-key-of-team-a";
const RELOADED: &str = "letta_gateway_config_reloads_total{result=\"ok\"}";
const NOT_RELOADED: &str = "letta_gateway_config_reloads_total{result=\"error\"}";

fn agent() -> String {
    format!("/v1/agents/{AGENT}")
}

/// The YAML of a gateway in front of `replica`.
fn before(replica: &Replica, more: &str) -> String {
    yaml(&format!("    servers: [ {{ url: http://{} }} ]", replica.address), more)
}

async fn with_key(door: &Door, key: &str) -> Answer {
    let request = http::Request::builder().uri(format!("http://{}{}", door.address(), agent()));
    door.send(request.header("x-api-key", key).body(Bytes::new()).unwrap()).await
}

async fn open_stream(door: &Door) -> Response<Incoming> {
    let request = door.request("POST", &format!("{}/messages/stream", agent()));
    door.open(request.body(Bytes::from("{\"input\":\"x\"}")).unwrap()).await
}

/// The next event of a stream.
async fn event(response: &mut Response<Incoming>) -> Bytes {
    let frame = tokio::time::timeout(PATIENCE, response.body_mut().frame()).await.expect("in time");
    frame.expect("more").expect("a frame").into_data().expect("data")
}

async fn readiness(door: &Door) -> (u16, Value) {
    let answer = door.admin("/readyz").await;
    (answer.status, answer.json())
}

#[tokio::test]
async fn a_stream_that_outlasts_the_drain_time_ends_with_an_error_event() {
    let (replica, mut feeds) = streaming().await;
    let proxy = gateway(&[&replica], "").await;
    let request = proxy.request("POST", &format!("/v1/agents/{AGENT}/messages/stream"));
    let response = proxy.open(request.body(Bytes::from("{\"input\":\"x\"}")).unwrap());
    let feed = async {
        let feed = feeds.recv().await.unwrap();
        feed.send(Some(Bytes::from(WORD))).await.unwrap();
        feed
    };
    let (response, _feed) = tokio::join!(response, feed);
    let mut body = response.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), WORD);
    let (whole, rest) = tokio::join!(proxy.gateway.drain(Duration::from_millis(20)), body.collect());
    assert!(!whole);
    let text = String::from_utf8(rest.expect("it ends well for the client").to_bytes().to_vec()).unwrap();
    assert!(text.starts_with("event: error\ndata: {") && text.ends_with("\n\ndata: [DONE]\n\n"), "{text}");
    let log = proxy.log(1).await;
    assert_eq!((&log[0]["ended_by"], &log[0]["reason"]), (&"gateway".into(), &"gateway_draining".into()), "{}", log[0]);
}

#[tokio::test]
async fn a_request_that_outlasts_the_drain_time_is_told_as_cut_by_the_gateway() {
    let replica = Replica::start(|_| Reply::Hang).await;
    let proxy = gateway(&[&replica], "").await;
    let drained = async {
        replica.waits_for(1).await;
        proxy.gateway.drain(Duration::from_millis(20)).await
    };
    let request =
        format!("GET /v1/agents/ HTTP/1.1\r\nhost: g\r\nauthorization: Bearer {}\r\n\r\n", crate::support::KEY);
    let (whole, _) = tokio::join!(drained, proxy.raw(&request));
    assert!(!whole);
    let log = proxy.log(1).await;
    assert_eq!((&log[0]["ended_by"], &log[0]["reason"]), (&"gateway".into(), &"gateway_draining".into()), "{}", log[0]);
}

#[tokio::test]
async fn what_outlasts_the_drain_time_is_answered_and_what_may_be_sent_is_not_to_be_sent_again() {
    for http2 in [false, true] {
        let replica = Replica::start(|_| Reply::Hang).await;
        let proxy = gateway(&[&replica], "").await;
        let client = Client::builder(TokioExecutor::new()).http2_only(http2).build_http::<Full<Bytes>>();
        let ask = |method, target: &str| {
            let request = proxy.request(method, target).body(Full::from(&b"{\"input\":\"x\"}"[..])).unwrap();
            let answer = client.request(request);
            tokio::spawn(async move { Answer::of(answer.await.expect("an answer")).await })
        };
        let messages = format!("{}/messages", agent());
        let sent = [ask("GET", "/v1/agents/"), ask("POST", "/v1/tools/"), ask("POST", &messages)];
        replica.waits_for(sent.len()).await;
        let waits = ask("POST", &messages);
        proxy.metric_is("letta_gateway_turns_waiting", 1.0).await;

        assert!(!proxy.gateway.drain(Duration::from_millis(20)).await);
        let mut told = Vec::new();
        for answer in sent.into_iter().chain([waits]) {
            let answer = answer.await.unwrap();
            assert_eq!((answer.status, &answer.json()["error"]["type"]), (503, &"gateway_draining".into()), "{http2}");
            told.push((answer.header("x-should-retry").map(str::to_owned), answer.header("retry-after").is_some()));
        }
        let (never, soon) = ((Some("false".to_owned()), false), (None, true));
        // a GET may be asked again, but nobody says when
        assert_eq!(told, [(None, false), never.clone(), never, soon], "{http2}");
        assert_eq!(replica.count(), 3);
    }
}

#[tokio::test]
async fn a_changed_file_of_keys_is_taken_over_by_itself_and_a_bad_one_changes_nothing() {
    let a = Replica::start(|_| json("{}")).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.yaml");
    let write = |keys: &[&str]| {
        let lines =
            keys.iter().map(|key| format!("- {{ id: {key}, hash: \"sha256:{}\", scopes: [read] }}\n", hash(key)));
        std::fs::write(&file, lines.collect::<String>() + "[]".repeat(usize::from(keys.is_empty())).as_str()).unwrap();
    };
    write(&["first"]);
    let process = Process::start(&before(&a, &format!("keys_file: {}", file.display()))).await;
    assert_eq!((with_key(&process, "first").await.status, with_key(&process, "second").await.status), (200, 401));

    write(&["second"]);
    process.metric_is(RELOADED, 1.0).await;
    assert_eq!((with_key(&process, "first").await.status, with_key(&process, "second").await.status), (401, 200));

    std::fs::write(&file, "- { id: second, hash: oops }\n").unwrap();
    process.metric_is(NOT_RELOADED, 1.0).await;
    assert_eq!(with_key(&process, "second").await.status, 200);
    let (_, ready) = readiness(&process).await;
    assert!(ready.to_string().contains("keys.yaml:1:"), "{ready}");
    assert_eq!(a.count(), 3);
}

#[tokio::test]
async fn of_thousands_of_keys_only_those_that_are_used_are_told_and_a_reload_keeps_what_they_have_spent() {
    let a = Replica::start(|_| json("{}")).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.yaml");
    let write = |count: usize| {
        let line = |key| format!("- {{ id: k{key}, hash: \"sha256:{}\", scopes: [read] }}\n", hash(&format!("k{key}")));
        std::fs::write(&file, (0..count).map(line).collect::<String>()).unwrap();
    };
    write(3000);
    let plan = "plans: { standard: { rate: { requests: 1, per: 1d, burst: 3 } } }";
    let process = Process::start(&before(&a, &format!("keys_file: {}\n{plan}", file.display()))).await;
    let told = async || {
        let series = process.series().await;
        let keys = series.iter().filter_map(|line| line.split_once("key=\"")?.1.split('"').next().map(str::to_owned));
        keys.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    assert_eq!(told().await, [""; 0]);
    for status in [200, 200, 200, 429] {
        assert_eq!(with_key(&process, "k2999").await.status, status);
    }
    assert_eq!(told().await, ["k2999"]);
    write(3001);
    process.metric_is(RELOADED, 1.0).await;
    assert_eq!(with_key(&process, "k2999").await.status, 429);
    assert_eq!(with_key(&process, "k3000").await.status, 200);
    assert_eq!(told().await, ["k2999", "k3000"]);
    assert_eq!(process.metric("letta_gateway_key_requests_total{key=\"k2999\",status=\"4xx\"}").await, 2.0);
    assert_eq!(a.count(), 4);
}

#[tokio::test]
async fn a_reload_takes_keys_and_plans_over_and_leaves_a_stream_alone() {
    let (a, mut feeds) = streaming().await;
    let old = before(&a, "");
    let process = Process::start(&old).await;
    let mut stream = open_stream(&process).await;
    let feed = feeds.recv().await.unwrap();
    feed.send(Some(Bytes::from(WORD))).await.unwrap();
    assert_eq!(event(&mut stream).await, WORD);
    assert_eq!(with_key(&process, READER).await.status, 200);
    let readers = "letta_gateway_key_requests_total{key=\"reader\",status=\"2xx\"}";
    assert_eq!(process.metric(readers).await, 1.0);

    // another key for team-a, one request at once for each key, and no reader any more
    let new: Vec<_> = old.lines().filter(|line| !line.contains("id: reader")).collect();
    let new = new.join("\n").replace(&hash(KEY), &hash(NEW_KEY)).replace("in_flight: 1000", "in_flight: 1");
    process.write(&new);
    process.signal("HUP");
    process.metric_is(RELOADED, 1.0).await;
    assert_eq!(with_key(&process, KEY).await.status, 401);
    assert_eq!(with_key(&process, READER).await.status, 401);
    assert!(
        !process.series().await.iter().any(|line| line.contains("\"reader\"")),
        "a key that is gone is told no more"
    );
    let limited = with_key(&process, NEW_KEY).await;
    assert_eq!(limited.status, 429, "the stream that began before is in flight still");
    assert_eq!(limited.json()["error"]["type"], "policy_in_flight_limited");

    feed.send(Some(Bytes::from(WORD))).await.unwrap();
    assert_eq!(event(&mut stream).await, WORD);
    feed.send(Some(Bytes::from(DONE))).await.unwrap();
    drop(feed);
    assert_eq!(Answer::of(stream).await.text(), DONE);
    process.metric_is("letta_gateway_key_requests_in_flight{key=\"team-a\"}", 0.0).await;
    assert_eq!(with_key(&process, NEW_KEY).await.status, 200);
    let log = process.log(6).await;
    let line = log.iter().find(|line| line["method"] == "POST").unwrap();
    assert_eq!((&line["ended_by"], &line["key"], &line["status"]), (&"complete".into(), &"team-a".into(), &200.into()));
    assert_eq!(process.metric(NOT_RELOADED).await, 0.0);
}

#[tokio::test]
async fn sighup_reads_the_file_again_though_nothing_changed() {
    let a = Replica::start(|_| json("{}")).await;
    let process = Process::start(&before(&a, "")).await;
    for count in [1.0, 2.0] {
        process.signal("HUP");
        process.metric_is(RELOADED, count).await;
    }
    assert_eq!(process.get(&agent()).await.status, 200);
    assert_eq!(process.has_ended(), None);
}

#[tokio::test]
async fn a_changed_file_is_taken_over_without_being_told() {
    let a = Replica::start(|_| json("{}")).await;
    let old = before(&a, "");
    let process = Process::start(&old).await;
    process.write(&old.replace(&hash(KEY), &hash(NEW_KEY)));
    process.metric_is(RELOADED, 1.0).await;
    assert_eq!(with_key(&process, KEY).await.status, 401);
    assert_eq!(with_key(&process, NEW_KEY).await.status, 200);
    // what only a restart can change is told, and harms nothing
    process.write(&old.replace("listeners:", "workers: 7\nlisteners:"));
    process.metric_is(RELOADED, 2.0).await;
    let (status, ready) = readiness(&process).await;
    assert_eq!((status, &ready["config"]["pending_restart"]), (200, &serde_json::json!(["workers"])));
    assert_eq!(with_key(&process, KEY).await.status, 200);
    assert_eq!(process.metric(NOT_RELOADED).await, 0.0);
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_says_why() {
    let (a, mut feeds) = streaming().await;
    let old = before(&a, "");
    let process = Process::start(&old).await;
    let mut stream = open_stream(&process).await;
    let feed = feeds.recv().await.unwrap();
    let file = process.path().display().to_string();
    let table = [
        // a good change beside a bad one is no change
        (
            old.replace(&hash(KEY), &hash(NEW_KEY)).replace("admin:", "admni:"),
            format!("{file}:3:1: unknown key \"admni\"; did you mean \"admin\"?"),
        ),
        (old.replace("plan: standard, scopes: [read]", "plan: gold, scopes: [read]"), "gold".to_owned()),
        (
            old.replace(
                "address: 127.0.0.1:0\nadmin",
                "{ address: 127.0.0.1:0, tls: { cert_file: no.pem, key_file: no.key } }\nadmin",
            ),
            "no.pem".to_owned(),
        ),
        ("]".to_owned(), file.clone()),
        (String::new(), file.clone()),
    ];
    for (count, (bad, why)) in (1..).zip(table) {
        assert_ne!(bad, old);
        let said = process.said().len();
        process.write(&bad);
        process.signal("HUP");
        process.metric_is(NOT_RELOADED, f64::from(count)).await;
        let told = process.says("configuration not reloaded; the old one stays", said).await;
        assert!(told["problem"].as_str().unwrap().contains(&why), "{told} does not say {why:?}");
        assert_eq!(told["level"], "ERROR");
        let (status, ready) = readiness(&process).await;
        assert_eq!((status, &ready["status"]), (200, &"degraded".into()));
        assert_eq!(ready["config"]["problem"], told["problem"]);
        assert_eq!(with_key(&process, KEY).await.status, 200);
        assert_eq!(with_key(&process, NEW_KEY).await.status, 401);
    }
    // gone altogether
    let said = process.said().len();
    std::fs::remove_file(process.path()).unwrap();
    process.signal("HUP");
    process.says("configuration not reloaded; the old one stays", said).await;
    assert_eq!(with_key(&process, KEY).await.status, 200);
    feed.send(Some(Bytes::from(WORD))).await.unwrap();
    assert_eq!(event(&mut stream).await, WORD);
    assert_eq!(process.metric(RELOADED).await, 0.0);

    process.write(&old.replace(&hash(KEY), &hash(NEW_KEY)));
    process.signal("HUP");
    process.metric_is(RELOADED, 1.0).await;
    let (_, ready) = readiness(&process).await;
    assert_eq!((&ready["status"], &ready["config"]["problem"]), (&"ready".into(), &Value::Null));
    assert_eq!(with_key(&process, NEW_KEY).await.status, 200);
}

#[tokio::test]
async fn a_changed_certificate_is_shown_to_new_connections() {
    let a = Replica::start(|_| json("{}")).await;
    let mut authority = Authority::new();
    let old = authority.issue("gateway", &["gateway.test"], 2031);
    let process = Process::start(&over_tls(&before(&a, ""), &old.yaml())).await;
    let client = |authority: &Authority| authority.client(&[&TLS13], &["http/1.1"]);
    let mut living = connect(&process, client(&authority), "gateway.test").await.unwrap();
    assert!(living.get_ref().1.peer_certificates().unwrap()[0].as_ref() == old.der);
    let series =
        "letta_gateway_tls_certificate_expiry_timestamp_seconds{listener=\"127.0.0.1:0\",name=\"gateway.test\"}";
    assert_eq!(process.metric(series).await, 1_956_441_600.0);

    let new = authority.issue("gateway", &["gateway.test"], 2033);
    assert_eq!(new.cert_file, old.cert_file);
    process.metric_is(series, 2_019_600_000.0).await;
    let shown = connect(&process, client(&authority), "gateway.test").await.unwrap();
    assert!(shown.get_ref().1.peer_certificates().unwrap()[0].as_ref() == new.der);

    let head =
        format!("GET {} HTTP/1.1\r\nHost: gateway.test\r\nX-Api-Key: {KEY}\r\nConnection: close\r\n\r\n", agent());
    living.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, living.read_to_end(&mut answer)).await.expect("it ends");
    assert!(answer.starts_with(b"HTTP/1.1 200"), "a connection that lives goes on");

    // a key that is another's is no certificate: the one in use stays
    let said = process.said().len();
    let other = authority.issue("other", &["gateway.test"], 2035);
    std::fs::copy(other.key_file, &new.key_file).unwrap();
    process.says("configuration not reloaded; the old one stays", said).await;
    let shown = connect(&process, client(&authority), "gateway.test").await.unwrap();
    assert!(shown.get_ref().1.peer_certificates().unwrap()[0].as_ref() == new.der);
}

#[tokio::test]
async fn sigterm_takes_no_more_connections_and_lets_a_stream_end() {
    let (a, mut feeds) = streaming().await;
    let process = Process::start(&before(&a, "")).await;
    let mut idle = TcpStream::connect(process.address()).await.unwrap();
    let mut stream = open_stream(&process).await;
    let feed = feeds.recv().await.unwrap();
    process.signal("TERM");
    process.says("draining", 0).await;
    let refused = async {
        while TcpStream::connect(process.address()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("it listens still");
    assert_eq!(tokio::time::timeout(PATIENCE, idle.read(&mut [0])).await.expect("it is closed").unwrap_or(0), 0);
    let (status, ready) = readiness(&process).await;
    assert_eq!((status, &ready["status"]), (503, &"draining".into()));
    assert_eq!(process.admin("/livez").await.status, 200);

    for _ in 0..3 {
        feed.send(Some(Bytes::from(WORD))).await.unwrap();
        assert_eq!(event(&mut stream).await, WORD);
    }
    assert_eq!(process.has_ended(), None, "it waits for the stream");
    feed.send(Some(Bytes::from(DONE))).await.unwrap();
    drop(feed);
    assert_eq!(Answer::of(stream).await.text(), DONE);
    assert_eq!(process.exit_code().await, Some(0));
    process.says("stopped", 0).await;
    let log = process.log(1).await;
    assert_eq!((&log[0]["ended_by"], log[0].get("reason")), (&"complete".into(), None), "{log:?}");
    assert!(
        !process.said().iter().any(|line| line["level"] == "WARN" || line["level"] == "ERROR"),
        "{:?}",
        process.said()
    );
}

#[tokio::test]
async fn a_drain_takes_no_longer_than_it_may() {
    let (a, mut feeds) = streaming().await;
    let process = Process::start(&before(&a, "drain: 50ms")).await;
    let stream = open_stream(&process).await;
    let _feed = feeds.recv().await.unwrap();
    process.signal("TERM");
    let text = Answer::of(stream).await.text();
    assert!(text.starts_with("event: error\ndata: {") && text.ends_with(DONE), "{text}");
    assert_eq!(process.exit_code().await, Some(0));
    process.says("drain time is over; what was left was ended", 0).await;
    let log = process.log(1).await;
    assert_eq!((&log[0]["ended_by"], &log[0]["reason"]), (&"gateway".into(), &"gateway_draining".into()));
}

#[tokio::test]
async fn a_second_interrupt_waits_for_nobody() {
    let (a, mut feeds) = streaming().await;
    let process = Process::start(&before(&a, "drain: 1h")).await;
    let stream = open_stream(&process).await;
    let _feed = feeds.recv().await.unwrap();
    process.signal("INT");
    process.says("draining", 0).await;
    assert_eq!(process.has_ended(), None);
    process.signal("INT");
    assert_eq!(process.exit_code().await, Some(0));
    process.says("interrupted again; not waiting", 0).await;
    let text = Answer::of(stream).await.text();
    assert!(text.starts_with("event: error\ndata: {") && text.ends_with(DONE), "{text}");
    assert_eq!(process.log(1).await[0]["ended_by"], "gateway");
}

#[tokio::test]
async fn a_gateway_without_requests_ends_at_once() {
    let a = Replica::start(|_| json("{}")).await;
    for signal in ["TERM", "INT"] {
        let process = Process::start(&before(&a, "drain: 1h")).await;
        assert_eq!(process.get(&agent()).await.status, 200);
        process.signal(signal);
        assert_eq!(process.exit_code().await, Some(0), "{signal}");
        assert_eq!(process.log(1).await.len(), 1, "no line is lost");
    }
}

#[tokio::test]
async fn a_gateway_whose_log_nobody_reads_goes_on() {
    let a = Replica::start(|_| json("{}")).await;
    let process = Process::start(&before(&a, "")).await;
    process.stop_reading();
    for _ in 0..20 {
        assert_eq!(process.get(&agent()).await.status, 200);
    }
    let waits = async {
        while process.metric("letta_gateway_access_log_dropped_total").await == 0.0 {
            assert_eq!(process.get(&agent()).await.status, 200);
        }
    };
    tokio::time::timeout(PATIENCE, waits).await.expect("lines that cannot be written are counted");
    process.signal("TERM");
    assert_eq!(process.exit_code().await, Some(0));
}

/// Runs the gateway of `yaml`, which does not start: what came of it.
fn run(yaml: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.yaml");
    std::fs::write(&path, yaml).unwrap();
    let path = path.to_str().unwrap();
    let Output { status, stdout, stderr } = command(&["run", "--config", path]).output().unwrap();
    assert!(stdout.is_empty(), "standard output is the access log's");
    (status.code(), String::from_utf8(stderr).unwrap().replace(path, "gateway.yaml"))
}

#[test]
fn a_bad_configuration_is_told_in_full_and_nothing_starts() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let yaml = yaml("    servers: [ { url: http://127.0.0.1:1 } ]", "cahce: {}\ndrain: 30").replace(
        "listeners:\n  - address: 127.0.0.1:0",
        &format!("listeners:\n  - adress: {}", free.local_addr().unwrap()),
    );
    let (code, told) = run(&yaml);
    assert_eq!(code, Some(78), "{told}");
    assert!(
        told.contains(
            "error: gateway.yaml:2:5: unknown key \"adress\" under listeners[0]; did you mean \"address\"?\n"
        ),
        "{told}"
    );
    assert!(told.contains(":1: unknown key \"cahce\"; did you mean \"cache\"?\n"), "{told}");
    assert!(told.contains(": drain: 30 has no unit; write it like"), "{told}");
    assert!(!told.contains("listening") && !told.contains("panicked"), "{told}");
}

#[test]
fn an_address_in_use_is_named_and_nothing_starts() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let good = yaml("    servers: [ { url: http://127.0.0.1:1 } ]", "");
    for (place, what) in [("- address: ", "cannot listen on"), ("admin: { address: ", "admin address")] {
        let (code, told) = run(&good.replacen(&format!("{place}127.0.0.1:0"), &format!("{place}{address}"), 1));
        assert_eq!(code, Some(1), "{told}");
        let last = told.lines().last().unwrap();
        assert!(last.starts_with(&format!("error: {what} {address}: Address already in use")), "{told}");
        assert!(!told.contains("panicked") && !told.contains("backtrace"), "{told}");
    }
}
