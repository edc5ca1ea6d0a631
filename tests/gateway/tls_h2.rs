//! TLS and HTTP/2 through the whole gateway: who is shown which certificate, what h2 adds to a request, and that one
//! stream of a connection never costs another.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::authority::{Authority, connect, over_tls};
use crate::support::{
    AGENT, Answer, Door, KEY, PATIENCE, Proxy, Raw, Replica, Reply, gateway, json, start, streaming, until, yaml,
};

const WORD: &str = "data: {\"message_type\":\"assistant_message\",\"content\":\"hi\"}\n\n";
const DONE: &str = "data: [DONE]\n\n";

fn agent() -> String {
    format!("/v1/agents/{AGENT}")
}

fn stream_path() -> String {
    format!("{}/messages/stream", agent())
}

/// A gateway with a certificate for `gateway.test`, in front of `replica`.
async fn secure(replica: &Replica) -> (Proxy, Authority) {
    let mut authority = Authority::new();
    let certificate = authority.issue("gateway", &["gateway.test"], 2031);
    let letta = format!("    servers: [ {{ url: http://{} }} ]", replica.address);
    (start(&over_tls(&yaml(&letta, "turns: { lane: off }"), &certificate.yaml())).await, authority)
}

type H2 = http2::SendRequest<Full<Bytes>>;

/// Speaks HTTP/2 over `io`; a stream's window is `window` bytes.
async fn h2(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, window: u32) -> H2 {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    // what nobody reads of one stream takes nothing of the others' here
    builder.initial_stream_window_size(window).initial_connection_window_size((1 << 31) - 1);
    let (sender, connection) = builder.handshake(TokioIo::new(io)).await.expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

/// HTTP/2 by prior knowledge.
async fn plain_h2(door: &Door, window: u32) -> H2 {
    h2(TcpStream::connect(door.address()).await.expect("it listens"), window).await
}

/// HTTP/2 as ALPN agrees on it.
async fn tls_h2(proxy: &Proxy, authority: &Authority) -> H2 {
    let client = authority.client(&[&TLS13], &["h2"]);
    h2(connect(proxy, client, "gateway.test").await.expect("TLS"), 1 << 20).await
}

fn request(method: &str, target: &str) -> http::request::Builder {
    Request::builder()
        .method(method)
        .uri(format!("https://gateway.test{target}"))
        .header("authorization", format!("Bearer {KEY}"))
}

fn get(target: &str) -> Request<Full<Bytes>> {
    request("GET", target).body(Full::default()).unwrap()
}

fn stream() -> Request<Full<Bytes>> {
    request("POST", &stream_path()).body(Full::from("{\"input\":\"x\"}")).unwrap()
}

async fn ask(sender: &mut H2, request: Request<Full<Bytes>>) -> Answer {
    let asked = async {
        sender.ready().await.expect("the connection lives");
        sender.send_request(request).await.expect("an answer")
    };
    Answer::of(tokio::time::timeout(PATIENCE, asked).await.expect("in time")).await
}

async fn next(response: &mut Response<Incoming>) -> Bytes {
    let frame = tokio::time::timeout(PATIENCE, response.body_mut().frame()).await.expect("in time");
    frame.expect("more").expect("a frame").into_data().expect("data")
}

#[tokio::test]
async fn both_versions_of_tls_carry_both_protocols() {
    let a = Replica::start(|_| json("{\"ok\":true}")).await;
    let (proxy, authority) = secure(&a).await;
    let versions: [&'static SupportedProtocolVersion; 2] = [&TLS12, &TLS13];
    let mut requests = 0;
    for version in versions {
        for (alpn, expected) in
            [(&["h2", "http/1.1"][..], Version::HTTP_2), (&["http/1.1"], Version::HTTP_11), (&[], Version::HTTP_11)]
        {
            let io = connect(&proxy, authority.client(&[version], alpn), "gateway.test").await.unwrap();
            assert_eq!(io.get_ref().1.protocol_version(), Some(version.version));
            let response = if expected == Version::HTTP_2 {
                h2(io, 1 << 20).await.send_request(get(&agent())).await.unwrap()
            } else {
                let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.unwrap();
                tokio::spawn(connection);
                let request = Request::get(agent()).header("host", "gateway.test").header("x-api-key", KEY);
                sender.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap()
            };
            assert_eq!(response.version(), expected);
            assert_eq!(Answer::of(response).await.text(), "{\"ok\":true}");
            requests += 1;
            let line = &proxy.log(requests).await[requests - 1];
            assert_eq!(line["protocol"], if expected == Version::HTTP_2 { "h2" } else { "h1" });
        }
    }
    for seen in a.seen() {
        assert_eq!((seen.header("x-forwarded-proto"), seen.header("host")), (Some("https"), Some("gateway.test")));
    }
}

#[tokio::test]
async fn neither_an_old_version_nor_a_plain_request_gets_through_a_tls_listener() {
    let a = Replica::start(|_| json("{}")).await;
    let mut authority = Authority::new();
    let certificate = authority.issue("gateway", &["gateway.test"], 2031);
    let letta = format!("    servers: [ {{ url: http://{} }} ]", a.address);
    let tls = format!("{}, min_version: \"1.3\"", certificate.yaml());
    let proxy = start(&over_tls(&yaml(&letta, ""), &tls)).await;
    connect(&proxy, authority.client(&[&TLS12], &[]), "gateway.test").await.expect_err("TLS 1.2 is spoken");
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\nX-Api-Key: {KEY}\r\n\r\n", agent());
    let answer = proxy.raw(&request.repeat(2)).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("\r\nconnection: close\r\n"), "{answer:?}");
    assert!(answer.contains("client_plain_http") && answer.contains("use https://"), "{answer:?}");
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "a second request is answered: {answer:?}");
    let failed = "letta_gateway_connection_errors_total{listener=\"127.0.0.1:0\",reason=\"tls_handshake\"}";
    proxy.metric_is(failed, 1.0).await;
    assert_eq!(ask(&mut tls_h2(&proxy, &authority).await, get(&agent())).await.status, 200);
    assert_eq!(a.count(), 1);
}

#[tokio::test]
async fn a_client_is_shown_the_certificate_of_the_name_it_asks_for() {
    let a = Replica::start(|_| json("{}")).await;
    let mut authority = Authority::new();
    let first = authority.issue("first", &["first.test"], 2031);
    let second = authority.issue("second", &["second.test", "*.second.test"], 2031);
    let letta = format!("    servers: [ {{ url: http://{} }} ]", a.address);
    let tls = format!("{}, certificates: [ {{ {} }} ]", first.yaml(), second.yaml());
    let proxy = start(&over_tls(&yaml(&letta, ""), &tls)).await;
    for (name, expected) in
        [("first.test", &first), ("second.test", &second), ("SECOND.test", &second), ("deep.second.test", &second)]
    {
        for version in [&TLS12, &TLS13] {
            let io = connect(&proxy, authority.client(&[version], &[]), name).await.unwrap();
            assert!(io.get_ref().1.peer_certificates().unwrap()[0].as_ref() == expected.der, "{name}");
        }
    }
    for name in ["unknown.test", "x.first.test", "127.0.0.1"] {
        let refused = connect(&proxy, authority.client(&[&TLS13], &[]), name).await.expect_err("none is for it");
        let text = refused.to_string();
        assert!(text.contains("first.test") && !text.contains("second.test"), "{name} is not shown the first: {text}");
    }
}

/// HTTP/2 lets a client send a cookie in crumbs (RFC 9113 §8.2.3), HTTP/1.1 knows one Cookie line.
#[tokio::test]
async fn a_cookie_in_crumbs_reaches_letta_whole() {
    let a = Replica::start(|_| json("{}")).await;
    let (proxy, authority) = secure(&a).await;
    let mut sender = tls_h2(&proxy, &authority).await;
    let crumbs = request("GET", &agent()).header("cookie", "a=1").header("cookie", "b=2; c=3").header("cookie", "d=4");
    assert_eq!(ask(&mut sender, crumbs.body(Full::default()).unwrap()).await.status, 200);
    let seen = &a.seen()[0];
    assert_eq!(seen.headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2; c=3; d=4"]);
}

#[tokio::test]
async fn an_h2_request_is_an_ordinary_one_for_letta() {
    let a = Replica::start(|seen| json(String::from_utf8_lossy(&seen.body))).await;
    let (proxy, authority) = secure(&a).await;
    let mut sender = tls_h2(&proxy, &authority).await;
    let message = request("POST", &format!("{}/messages?x=1", agent())).body(Full::from("{\"input\":\"x\"}")).unwrap();
    assert_eq!(ask(&mut sender, message).await.text(), "{\"input\":\"x\"}");
    let seen = &a.seen()[0];
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", &*format!("{}/messages?x=1", agent())));
    assert_eq!(seen.headers.get_all("host").iter().collect::<Vec<_>>(), ["gateway.test"]);
    assert!(!seen.headers.keys().any(|name: &http::HeaderName| name.as_str().starts_with(':')));
    assert_eq!(seen.header("authorization"), None);
}

#[tokio::test]
async fn targets_are_judged_as_strictly_over_h2() {
    let a = Replica::start(|_| json("{}")).await;
    let (proxy, authority) = secure(&a).await;
    let mut sender = tls_h2(&proxy, &authority).await;
    for target in ["/v1/agents/../tools/", "/v1//agents/", "/v1/agents/a%2fb", "/v1/agents/%2e%2e/tools/"] {
        let answer = ask(&mut sender, get(target)).await;
        assert_eq!(
            (answer.status, answer.json()["error"]["type"].as_str()),
            (400, Some("client_bad_target")),
            "{target}"
        );
    }
    let elsewhere = request("GET", &agent()).header("host", "other.test").body(Full::default()).unwrap();
    assert_eq!(ask(&mut sender, elsewhere).await.json()["error"]["type"], "client_bad_host");
    let trace = request("TRACE", &agent()).body(Full::default()).unwrap();
    assert!([400, 405, 501].contains(&ask(&mut sender, trace).await.status));
    assert_eq!(ask(&mut sender, get("/v1/nothing")).await.status, 404);
    assert_eq!(a.count(), 0);
    assert_eq!(ask(&mut sender, get(&agent())).await.status, 200, "the connection lives on");
}

#[tokio::test]
async fn connect_opens_no_tunnel() {
    let a = Replica::start(|_| json("{}")).await;
    let (proxy, authority) = secure(&a).await;
    let mut sender = tls_h2(&proxy, &authority).await;
    let target = a.address.to_string();
    let tunnel = Request::builder().method("CONNECT").uri(&target).header("x-api-key", KEY);
    let answer = ask(&mut sender, tunnel.body(Full::default()).unwrap()).await;
    assert!((400..500).contains(&answer.status), "{answer:?}");
    assert_eq!(ask(&mut sender, get(&agent())).await.status, 200, "the connection lives on");

    let plain = gateway(&[&a], "").await;
    let inner = format!("GET /inner HTTP/1.1\r\nHost: {target}\r\nX-Api-Key: {KEY}\r\nConnection: close\r\n\r\n");
    let answer =
        plain.raw(&format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nX-Api-Key: {KEY}\r\n\r\n{inner}")).await;
    let refused = Raw::of(&answer);
    assert!((400..500).contains(&refused.status), "{answer:?}");
    assert_eq!(a.seen().iter().filter(|seen| seen.target != agent()).count(), 0);
}

#[tokio::test]
async fn a_hundred_streams_of_one_connection_are_answered_at_once() {
    let (begun, mut waiting) = mpsc::unbounded_channel();
    let a = Replica::start(move |seen| {
        let (answer, told) = oneshot::channel();
        begun.send((answer, seen.target.clone())).expect("the test takes it");
        Reply::Wait(told)
    })
    .await;
    let (proxy, authority) = secure(&a).await;
    let sender = tls_h2(&proxy, &authority).await;
    let mut asked = JoinSet::new();
    for number in 0..100 {
        let mut sender = sender.clone();
        asked.spawn(async move {
            let answer = ask(&mut sender, get(&format!("{}?number={number}", agent()))).await;
            (number, answer.status, answer.text())
        });
    }
    // none is answered before all are asked
    a.waits_for(100).await;
    assert_eq!(proxy.metric("letta_gateway_connections_total{listener=\"127.0.0.1:0\"}").await, 1.0);
    assert_eq!(proxy.metric("letta_gateway_requests_in_flight").await, 100.0);
    for _ in 0..100 {
        let (answer, target) = waiting.recv().await.unwrap();
        assert!(answer.send(json(target)).is_ok());
    }
    while let Some(answer) = asked.join_next().await {
        let (number, status, text) = answer.unwrap();
        assert_eq!((status, text), (200, format!("{}?number={number}", agent())), "answers are not mixed up");
    }
    proxy.metric_is("letta_gateway_requests_in_flight", 0.0).await;
}

#[tokio::test]
async fn one_connection_has_so_many_streams_and_no_more() {
    let (begun, mut waiting) = mpsc::unbounded_channel();
    let a = Replica::start(move |_| {
        let (answer, told) = oneshot::channel();
        begun.send(answer).expect("the test takes it");
        Reply::Wait(told)
    })
    .await;
    let letta = format!("    servers: [ {{ url: http://{} }} ]", a.address);
    let yaml = yaml(&letta, "").replacen("- address: 127.0.0.1:0", "- { address: 127.0.0.1:0, max_streams: 4 }", 1);
    let proxy = start(&yaml).await;
    let mut sender = plain_h2(&proxy, 1 << 20).await;
    // the bound comes with the first frames of the gateway's
    let (first, ()) = tokio::join!(ask(&mut sender, get(&agent())), async {
        assert!(waiting.recv().await.unwrap().send(json("{}")).is_ok());
    });
    assert_eq!(first.status, 200);
    let mut asked = JoinSet::new();
    for _ in 0..12 {
        let mut sender = sender.clone();
        asked.spawn(async move { ask(&mut sender, get(&agent())).await.status });
    }
    for answered in 0..12 {
        let answer = waiting.recv().await.unwrap();
        assert!(a.count() <= 1 + answered + 4, "{} at once", a.count() - answered - 1);
        assert!(answer.send(json("{}")).is_ok());
    }
    while let Some(status) = asked.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
}

#[tokio::test]
async fn events_pass_one_by_one_over_h2() {
    let (a, mut feeds) = streaming().await;
    let (proxy, authority) = secure(&a).await;
    let mut sender = tls_h2(&proxy, &authority).await;
    let mut response = sender.send_request(stream()).await.unwrap();
    assert_eq!(response.version(), Version::HTTP_2);
    assert_eq!(response.headers()["cache-control"], "no-cache, no-transform");
    for name in ["connection", "transfer-encoding", "keep-alive", "content-length"] {
        assert!(!response.headers().contains_key(name), "{name}");
    }
    let feed = feeds.recv().await.unwrap();
    for _ in 0..5 {
        feed.send(Some(Bytes::from(WORD))).await.unwrap();
        assert_eq!(next(&mut response).await, WORD);
    }
    feed.send(Some(Bytes::from(DONE))).await.unwrap();
    assert_eq!(next(&mut response).await, DONE);
    drop(feed);
    assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
}

#[tokio::test]
async fn a_replica_that_dies_ends_its_stream_alone() {
    let (a, mut feeds) = streaming().await;
    let (proxy, authority) = secure(&a).await;
    let mut sender = tls_h2(&proxy, &authority).await;
    let mut one = sender.send_request(stream()).await.unwrap();
    let first = feeds.recv().await.unwrap();
    let mut other = sender.send_request(stream()).await.unwrap();
    let second = feeds.recv().await.unwrap();
    first.send(Some(Bytes::from(WORD))).await.unwrap();
    assert_eq!(next(&mut one).await, WORD);
    first.send(None).await.unwrap();
    let text = Answer::of(one).await.text();
    assert!(text.starts_with("event: error\ndata: {") && text.ends_with("\n\ndata: [DONE]\n\n"), "{text}");
    second.send(Some(Bytes::from(WORD))).await.unwrap();
    assert_eq!(next(&mut other).await, WORD);
}

#[tokio::test]
async fn a_stream_its_client_resets_is_let_go_and_the_others_live() {
    let (a, mut feeds) = streaming().await;
    let (proxy, authority) = secure(&a).await;
    let mut sender = tls_h2(&proxy, &authority).await;
    let left = sender.send_request(stream()).await.unwrap();
    let feed = feeds.recv().await.unwrap();
    drop(left);
    proxy.metric_is("letta_gateway_turns_detached_total", 1.0).await;
    drop(feed);
    assert_eq!(proxy.log(1).await[0]["ended_by"], "client");
    assert_eq!(ask(&mut sender, get(&agent())).await.status, 200);
    assert_eq!(proxy.metric("letta_gateway_connections_total{listener=\"127.0.0.1:0\"}").await, 1.0);
}

/// Streams without an end, 8 KiB an event; counts those a replica could hand over.
async fn endless() -> (Replica, Arc<AtomicUsize>) {
    let event = Bytes::from(format!("data: {{\"content\":\"{}\"}}\n\n", "x".repeat(8 * 1024)));
    let handed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&handed);
    let replica = Replica::start(move |seen| {
        if !seen.target.ends_with("/stream") {
            return json("z".repeat(1 << 20));
        }
        let (feed, events) = mpsc::channel(1);
        let (event, count) = (event.clone(), Arc::clone(&count));
        tokio::spawn(async move {
            while feed.send(Some(event.clone())).await.is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Reply::Stream(events)
    });
    (replica.await, handed)
}

/// Waits until nothing moves any more: every buffer on the way is full.
async fn at_rest(handed: &AtomicUsize) {
    let waited = tokio::time::timeout(PATIENCE, async {
        let (mut still, mut before) = (0, 0);
        while still < 20 {
            tokio::time::sleep(Duration::from_millis(25)).await;
            let now = handed.load(Ordering::Relaxed);
            still = if now == before && now > 0 { still + 1 } else { 0 };
            before = now;
        }
    });
    assert!(waited.await.is_ok(), "Letta is never slowed down");
}

#[tokio::test]
async fn a_stream_that_is_not_read_holds_up_no_other() {
    let (a, handed) = endless().await;
    let (proxy, authority) = secure(&a).await;
    let mut sender = tls_h2(&proxy, &authority).await;
    let mut unread = sender.send_request(stream()).await.unwrap();
    at_rest(&handed).await;
    for _ in 0..5 {
        let answer = ask(&mut sender, get(&agent())).await;
        assert_eq!((answer.status, answer.body.len()), (200, 1 << 20));
    }
    // and it goes on where it was
    let before = handed.load(Ordering::Relaxed);
    let mut taken = 0;
    while handed.load(Ordering::Relaxed) < before + 100 {
        taken += next(&mut unread).await.len();
    }
    assert!(taken > 100 * 1024, "{taken}");
    let line = proxy.log(5).await;
    assert_eq!(line.len(), 5, "it is still open");
}

#[tokio::test]
async fn http2_needs_no_tls() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    let mut sender = plain_h2(&proxy, 1 << 20).await;
    let answer = ask(&mut sender, get(&agent())).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "{}"));
    assert_eq!(a.seen()[0].header("x-forwarded-proto"), Some("http"));
    // over the same port as HTTP/1.1, without an upgrade
    assert_eq!(proxy.get(&agent()).await.status, 200);
    let upgrade = format!(
        "GET {} HTTP/1.1\r\nHost: x\r\nX-Api-Key: {KEY}\r\nConnection: upgrade, http2-settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        agent()
    );
    assert!(proxy.raw(&upgrade).await.starts_with("HTTP/1.1 200"));
    let seen = &a.seen()[2];
    for name in ["upgrade", "http2-settings", "connection"] {
        assert_eq!(seen.header(name), None, "{name}");
    }
}

#[tokio::test]
async fn an_h2_head_over_its_bound_is_refused_and_costs_no_other_stream() {
    let a = Replica::start(|_| json("{}")).await;
    let (proxy, authority) = secure(&a).await;
    let mut sender = tls_h2(&proxy, &authority).await;
    let mut headers = HeaderMap::new();
    for number in 0..5 {
        let name: http::HeaderName = format!("x-large-{number}").parse().unwrap();
        headers.insert(name, "x".repeat(8 * 1024).parse().unwrap());
    }
    let mut large = get(&agent());
    large.headers_mut().extend(headers);
    sender.ready().await.unwrap();
    match sender.send_request(large).await {
        Ok(response) => assert_eq!(response.status(), 431),
        Err(error) => assert!(!error.is_timeout(), "{error}"),
    }
    assert_eq!(a.count(), 0);
    until("the connection takes another", || sender.is_ready()).await;
    assert_eq!(ask(&mut sender, get(&agent())).await.status, 200);
}
