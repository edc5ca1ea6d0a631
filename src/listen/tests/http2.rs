//! HTTP/2 by prior knowledge: its own silences, its own slow readers.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::super::io::PREFACE;
use super::{HEADER, IDLE, Rig, TICK, WRITE, read_to_close};

const PING_TIMEOUT: Duration = Duration::from_secs(40);
const WINDOW: u32 = 40 * 1024;

async fn client(rig: &Rig) -> (SendRequest<Empty<Bytes>>, JoinHandle<hyper::Result<()>>) {
    let io = TokioIo::new(rig.connect());
    let (sender, connection) =
        Builder::new(TokioExecutor::new()).initial_stream_window_size(WINDOW).handshake(io).await.unwrap();
    (sender, tokio::spawn(connection))
}

fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://a{path}")).body(Empty::new()).unwrap()
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream];
    bytes.extend_from_slice(payload);
    bytes
}

fn settings() -> Vec<u8> {
    frame(4, 0, 0, &[])
}

/// `GET /wait` in HPACK, without Huffman or indexing.
const WAIT: &[u8] = b"\x82\x86\x04\x05/wait\x01\x01a";

#[tokio::test(start_paused = true)]
async fn http2_needs_no_asking() {
    let rig = Rig::plain();
    let (mut sender, _connection) = client(&rig).await;
    for path in ["/", "/megabyte", "/peer"] {
        let response = sender.send_request(get(path)).await.unwrap();
        assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_2));
        let body = response.into_body().collect().await.unwrap().to_bytes();
        match path {
            "/megabyte" => assert_eq!(body.len(), 1 << 20),
            "/peer" => assert_eq!(body, "192.0.2.1:4711 false"),
            _ => assert_eq!(body, "hello"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn silence_in_the_middle_of_something_closes_the_connection() {
    let open = frame(1, 1, 1, WAIT);
    let in_flight = [&frame(1, 5, 1, WAIT)[..], &frame(1, 1, 3, WAIT)].concat();
    let table: &[(&str, &[u8], Duration, &str)] = &[
        ("half a frame head", &[0, 0, 4], HEADER, "header_timeout=1"),
        ("half a header block", &open[..12], HEADER, "header_timeout=1"),
        ("headers that go on", &open, HEADER, "header_timeout=1"),
        ("headers that go on beside a request in flight", &in_flight, HEADER, "header_timeout=1"),
        ("a dead peer", b"", PING_TIMEOUT, "ping_timeout=1"),
        ("a dead peer with a request in flight", &frame(1, 5, 1, WAIT), PING_TIMEOUT, "ping_timeout=1"),
    ];
    for (name, bytes, expected, error) in table {
        let rig = Rig::plain();
        let mut client = rig.connect();
        let begun = Instant::now();
        client.write_all(&[&PREFACE[..], &settings(), bytes].concat()).await.unwrap();
        read_to_close(&mut client).await;
        let took = begun.elapsed();
        assert!(took >= *expected && took <= *expected + TICK, "{name}: closed after {took:?}");
        rig.all_let_go(TICK).await;
        rig.all_over(TICK).await;
        assert_eq!(rig.errors(), [*error], "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn trickled_continuations_get_no_more_time() {
    let rig = Rig::plain();
    let mut client = rig.connect();
    let begun = Instant::now();
    // one empty frame, then one of 200 bytes that come one by one
    let trickled = frame(9, 4, 1, &[0; 200]);
    client.write_all(&[&PREFACE[..], &settings(), &frame(1, 1, 1, WAIT), &frame(9, 0, 1, b"")].concat()).await.unwrap();
    for byte in trickled {
        if client.write_all(&[byte]).await.is_err() {
            break;
        }
        sleep(Duration::from_millis(700)).await;
    }
    let took = begun.elapsed();
    assert!(took >= HEADER && took <= HEADER + 2 * TICK, "closed after {took:?}");
    assert_eq!(rig.errors(), ["header_timeout=1"]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_streams_is_told_to_go() {
    let rig = Rig::plain();
    let (mut sender, connection) = client(&rig).await;
    sender.send_request(get("/")).await.unwrap().into_body().collect().await.unwrap();
    let begun = Instant::now();
    connection.await.unwrap().expect("the goodbye is GOAWAY with NO_ERROR");
    let took = begun.elapsed();
    assert!(took >= IDLE && took <= IDLE + 2 * TICK, "closed after {took:?}");
    rig.all_over(TICK).await;
    assert_eq!(rig.errors(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_in_flight_is_never_idle() {
    let rig = Rig::plain();
    let (mut sender, _connection) = client(&rig).await;
    let response = tokio::spawn(sender.send_request(get("/wait")));
    sleep(10 * IDLE).await;
    rig.world.go.notify_one();
    assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_client_takes_nothing_is_reset_and_the_others_live() {
    for path in ["/endless", "/megabyte"] {
        let rig = Rig::plain();
        let (mut sender, _connection) = client(&rig).await;
        let begun = Instant::now();
        let stalled = sender.send_request(get(path)).await.unwrap();
        while rig.world.alive.load(Ordering::SeqCst) > 0 || begun.elapsed() < 2 * WRITE {
            let beside = sender.send_request(get("/")).await.unwrap();
            assert_eq!(beside.into_body().collect().await.unwrap().to_bytes(), "hello", "{path}");
            assert!(begun.elapsed() <= 3 * WRITE, "{path}: the stalled stream is held on to");
            sleep(Duration::from_secs(5)).await;
        }
        assert_eq!(rig.errors(), ["write_timeout=1"], "{path}");
        let handed = rig.world.handed.load(Ordering::SeqCst);
        assert!(handed <= WINDOW as usize + 64 * 1024, "{path}: {handed} bytes were held");
        stalled.into_body().collect().await.expect_err("the stream ends in a reset");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_stream_that_takes_something_is_not_reset() {
    let rig = Rig::plain();
    let (mut sender, _connection) = client(&rig).await;
    let mut body = sender.send_request(get("/megabyte")).await.unwrap().into_body();
    let mut all = 0;
    while let Some(frame) = body.frame().await {
        all += frame.unwrap().into_data().unwrap().len();
        sleep(WRITE / 4).await;
    }
    assert_eq!(all, 1 << 20);
    assert_eq!(rig.errors(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_takes_nothing_is_cut_off_whatever_is_pinged() {
    let rig = Rig::plain();
    let mut client = rig.connect_with(256);
    let begun = Instant::now();
    let endless = b"\x82\x86\x04\x08/endless\x01\x01a";
    client.write_all(&[&PREFACE[..], &settings(), &frame(1, 5, 1, endless)].concat()).await.unwrap();
    rig.all_over(PING_TIMEOUT + 2 * TICK).await;
    rig.all_let_go(TICK).await;
    assert!(begun.elapsed() >= WRITE.min(PING_TIMEOUT), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_reset_by_the_client_cancels_the_request() {
    let rig = Rig::plain();
    let (mut sender, _connection) = client(&rig).await;
    let mut waiting = Box::pin(sender.send_request(get("/wait")));
    while rig.served() == 0 {
        assert!(futures_util::poll!(&mut waiting).is_pending());
        tokio::task::yield_now().await;
    }
    drop(waiting);
    rig.all_let_go(TICK).await;
}

#[tokio::test(start_paused = true)]
async fn no_tunnel_opens_behind_connect() {
    let rig = Rig::plain();
    let (mut sender, _connection) = client(&rig).await;
    let connect = Request::connect("example.com:443").body(Empty::new()).unwrap();
    // the service says 200
    let response = sender.send_request(connect).await.unwrap();
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(sender.send_request(get("/")).await.unwrap().status(), StatusCode::OK);
    rig.all_let_go(TICK).await;
}

#[tokio::test(start_paused = true)]
async fn an_oversized_head_is_refused_and_never_served() {
    let rig = Rig::plain();
    let (mut sender, _connection) = client(&rig).await;
    let mut request = get("/");
    request.headers_mut().insert("x", "y".repeat(17 * 1024).parse().unwrap());
    match sender.send_request(request).await {
        Ok(response) => assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        Err(error) => panic!("{error:?}"),
    }
    assert_eq!(rig.served(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_http2_is_counted() {
    let rig = Rig::plain();
    let mut client = rig.connect();
    // DATA on stream 0
    client.write_all(&[&PREFACE[..], &settings(), &frame(0, 0, 0, b"x")].concat()).await.unwrap();
    read_to_close(&mut client).await;
    drop(client);
    rig.all_over(4 * TICK).await;
    assert_eq!(rig.errors(), ["protocol=1"]);
}

#[tokio::test(start_paused = true)]
async fn drain_lets_streams_end_and_takes_no_more() {
    let rig = Rig::plain();
    let (mut sender, connection) = client(&rig).await;
    let waiting = tokio::spawn(sender.send_request(get("/wait")));
    while rig.served() == 0 {
        tokio::task::yield_now().await;
    }
    rig.stop.drain.cancel();
    sleep(10 * TICK).await;
    sender.send_request(get("/")).await.expect_err("a new request is taken during drain");
    rig.world.go.notify_one();
    let response = waiting.await.unwrap().unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "waited");
    connection.await.unwrap().unwrap();
    rig.all_over(TICK).await;
    assert_eq!(rig.errors(), [""; 0]);
}

/// `GET /` in HPACK.
const ROOT: &[u8] = b"\x82\x86\x84\x01\x01a";

#[tokio::test(start_paused = true)]
async fn a_client_deaf_to_goaway_is_refused_and_does_not_hold_up_the_drain() {
    let rig = Rig::plain();
    let (mut reads, mut writes) = tokio::io::split(rig.connect());
    // it takes what comes and answers nothing of it
    let closed = tokio::spawn(async move { read_to_close(&mut reads).await });
    writes.write_all(&[&PREFACE[..], &settings(), &frame(1, 5, 1, WAIT)].concat()).await.unwrap();
    while rig.served() == 0 {
        tokio::task::yield_now().await;
    }
    rig.stop.drain.cancel();
    let begun = Instant::now();
    let (mut stream, mut released) = (1, false);
    // half of the next head is always on its way
    while !closed.is_finished() && begun.elapsed() < 20 * TICK {
        stream += 2;
        let (whole, next) = (frame(1, 5, stream, ROOT), frame(1, 5, stream + 2, ROOT));
        let sent = if stream == 3 { 0 } else { 4 };
        if writes.write_all(&[&whole[sent..], &next[..4]].concat()).await.is_err() {
            break;
        }
        sleep(TICK / 5).await;
        if begun.elapsed() >= 10 * TICK && !released {
            released = true;
            rig.world.go.notify_one();
        }
    }
    let took = begun.elapsed();
    // the stream that was in flight is served to its end, then it is over soon
    assert!(released && took <= 14 * TICK, "over after {took:?}");
    rig.all_let_go(TICK).await;
    rig.all_over(TICK).await;
    let refused = rig.world.late.load(Ordering::SeqCst);
    // a second for those that crossed the GOAWAY
    assert!(refused >= 40 && rig.served() <= 8, "{} served, {refused} refused", rig.served());
}
