//! Event streams: event by event, with an end that clients understand whatever becomes of the replica.

use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::sync::mpsc;

use crate::support::{AGENT, Replica, Reply, gateway};

const PING: &str = "data: {\"message_type\":\"ping\",\"run_id\":\"run-1b4e28ba-2fa1-41d2-883f-0016d3cca427\"}\n\n";
const WORD: &str = "data: {\"message_type\":\"assistant_message\",\"content\":\"hi\"}\n\n";
const DONE: &str = "data: [DONE]\n\n";

/// A replica whose one stream is fed by the test.
async fn fed() -> (Replica, mpsc::Sender<Option<Bytes>>) {
    let (feed, events) = mpsc::channel(16);
    let events = std::sync::Mutex::new(Some(events));
    let replica = Replica::start(move |_| match events.lock().unwrap().take() {
        Some(events) => Reply::Stream(events),
        None => Reply::Json(500, "{\"detail\":\"one stream only\"}".into()),
    })
    .await;
    (replica, feed)
}

fn bytes(text: &str) -> Option<Bytes> {
    Some(Bytes::from(text.to_owned()))
}

fn path() -> String {
    format!("/v1/agents/{AGENT}/messages/stream")
}

#[tokio::test]
async fn each_event_arrives_before_the_next_is_written() {
    let (replica, feed) = fed().await;
    let proxy = gateway(&[&replica], "").await;
    let response = {
        feed.send(bytes(PING)).await.unwrap();
        proxy.open(proxy.request("POST", &path()).body(Bytes::from("{\"input\":\"x\"}")).unwrap()).await
    };
    assert_eq!(response.headers()["cache-control"], "no-cache, no-transform");
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    assert!(!response.headers().contains_key("content-encoding"));
    let mut body = response.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), PING);
    for _ in 0..3 {
        feed.send(bytes(WORD)).await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), WORD);
    }
    feed.send(bytes(DONE)).await.unwrap();
    drop(feed);
    assert_eq!(body.collect().await.unwrap().to_bytes(), DONE);
}

#[tokio::test]
async fn half_an_event_waits_for_its_other_half() {
    let (replica, feed) = fed().await;
    let proxy = gateway(&[&replica], "").await;
    feed.send(bytes(PING)).await.unwrap();
    let response = proxy.open(proxy.request("POST", &path()).body(Bytes::from("{\"input\":\"x\"}")).unwrap()).await;
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    let (first, second) = WORD.split_at(20);
    feed.send(bytes(first)).await.unwrap();
    tokio::task::yield_now().await;
    feed.send(bytes(second)).await.unwrap();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), WORD);
}

#[tokio::test]
async fn a_replica_that_dies_mid_stream_ends_it_with_an_error_event() {
    let (replica, feed) = fed().await;
    let proxy = gateway(&[&replica], "").await;
    feed.send(bytes(PING)).await.unwrap();
    feed.send(bytes(WORD)).await.unwrap();
    // half an event is lost with the replica; no client could read it
    feed.send(bytes("data: {\"message_ty")).await.unwrap();
    let response = proxy.open(proxy.request("POST", &path()).body(Bytes::from("{\"input\":\"x\"}")).unwrap()).await;
    feed.send(None).await.unwrap();
    let body = response.into_body().collect().await.expect("the stream ends well for the client").to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert!(text.starts_with(&format!("{PING}{WORD}event: error\ndata: {{")), "{text}");
    assert!(text.ends_with("\n\ndata: [DONE]\n\n"), "{text}");
    assert!(text.contains("run-1b4e28ba-2fa1-41d2-883f-0016d3cca427"), "it names the run: {text}");
    assert!(!text.contains("message_ty\"") || !text.contains("data: {\"message_ty\n"), "{text}");
    assert!(!text.lines().any(|line| line.starts_with("id:") || line.starts_with("retry:")), "{text}");

    let log = proxy.log(1).await;
    assert_eq!(log[0]["reason"], "upstream_stream_broken");
    assert_eq!(log[0]["ended_by"], "upstream");
    assert_eq!(log[0]["status"], 200);
}

#[tokio::test]
async fn an_end_without_done_after_lettas_own_error_stays_as_it_is() {
    let (replica, feed) = fed().await;
    let proxy = gateway(&[&replica], "").await;
    let own = "event: error\ndata: {\"message_type\":\"error_message\",\"error_type\":\"llm_error\"}\n\n";
    feed.send(bytes(own)).await.unwrap();
    let response = proxy.open(proxy.request("POST", &path()).body(Bytes::from("{\"input\":\"x\"}")).unwrap()).await;
    drop(feed);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), own);
}

#[tokio::test]
async fn a_silent_stream_is_ended_and_says_so() {
    let (replica, feed) = fed().await;
    let letta =
        format!("    servers: [ {{ url: http://{} }} ]\n    timeouts: {{ stream_idle: 200ms }}", replica.address);
    let proxy = crate::support::start(&crate::support::yaml(&letta, "")).await;
    feed.send(bytes(PING)).await.unwrap();
    let response = proxy.open(proxy.request("POST", &path()).body(Bytes::from("{\"input\":\"x\"}")).unwrap()).await;
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert!(text.contains("event: error"), "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test]
async fn a_client_that_hangs_up_at_done_has_lost_nothing() {
    let (replica, feed) = fed().await;
    let proxy = gateway(&[&replica], "").await;
    feed.send(bytes(DONE)).await.unwrap();
    let response = proxy.open(proxy.request("POST", &path()).body(Bytes::from("{\"input\":\"x\"}")).unwrap()).await;
    let mut body = response.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), DONE);
    drop(body);
    let log = proxy.log(1).await;
    assert_eq!(log[0]["ended_by"], "complete", "{}", log[0]);
}

/// The replica ends the stream a little after that.
#[tokio::test]
async fn a_client_that_hangs_up_at_done_has_not_left_its_turn() {
    let (replica, feed) = fed().await;
    let proxy = gateway(&[&replica], "turns: { on_disconnect: cancel }").await;
    feed.send(bytes(DONE)).await.unwrap();
    let response = proxy.open(proxy.request("POST", &path()).body(Bytes::from("{\"input\":\"x\"}")).unwrap()).await;
    let mut body = response.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), DONE);
    drop(body);
    proxy.log(1).await;
    // by the time this is answered a question about the run would have been asked
    proxy.get(&format!("/v1/agents/{AGENT}")).await;
    drop(feed);
    proxy.metric_is("letta_gateway_turns_total{outcome=\"answered\"}", 1.0).await;
    assert_eq!(proxy.metric("letta_gateway_turns_detached_total").await, 0.0);
    let seen = replica.seen();
    assert_eq!(seen.len(), 2, "{seen:?}");
}

#[tokio::test]
async fn a_client_that_leaves_mid_stream_leaves_its_turn_running() {
    let (replica, feed) = fed().await;
    let proxy = gateway(&[&replica], "").await;
    feed.send(bytes(WORD)).await.unwrap();
    let response = proxy.open(proxy.request("POST", &path()).body(Bytes::from("{\"input\":\"x\"}")).unwrap()).await;
    drop(response);
    let log = proxy.log(1).await;
    assert_eq!(log[0]["ended_by"], "client", "{}", log[0]);
    assert_eq!(proxy.metric("letta_gateway_turns_detached_total").await, 1.0);
    // Letta can go on: somebody reads
    feed.send(bytes(WORD)).await.unwrap();
    feed.send(bytes("data: [DONE]\n\n")).await.unwrap();
    drop(feed);
    proxy.metric_is("letta_gateway_turns_kept", 1.0).await;
}

#[tokio::test]
async fn a_client_that_reads_slowly_slows_the_replica_down() {
    let (feed, events) = mpsc::channel::<Option<Bytes>>(1);
    let events = std::sync::Mutex::new(Some(events));
    let replica = Replica::start(move |_| Reply::Stream(events.lock().unwrap().take().expect("one stream"))).await;
    let proxy = gateway(&[&replica], "").await;
    let event = Bytes::from(format!("data: {{\"content\":\"{}\"}}\n\n", "x".repeat(16 * 1024)));
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let writer = {
        let (sent, event) = (std::sync::Arc::clone(&sent), event.clone());
        tokio::spawn(async move {
            while feed.send(Some(event.clone())).await.is_ok() {
                sent.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        })
    };
    let response = proxy.open(proxy.request("POST", &path()).body(Bytes::from("{\"input\":\"x\"}")).unwrap()).await;
    // nobody reads: what the kernel's socket buffers and 64 KiB of the gateway hold is bounded, so the writer stops
    let count = || sent.load(std::sync::atomic::Ordering::Relaxed);
    let mut still = 0;
    let mut before = count();
    while still < 20 {
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        still = if count() == before { still + 1 } else { 0 };
        before = count();
    }
    assert!(before * event.len() < 64 * 1024 * 1024, "{before} events of 16 KiB were taken in");
    drop(response);
    writer.abort();
}
