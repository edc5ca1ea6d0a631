//! The end of a gateway: what is cut is told to the client and in the log as the gateway's doing.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;

use crate::support::{AGENT, Replica, Reply, gateway, streaming};

const WORD: &str = "data: {\"message_type\":\"assistant_message\",\"content\":\"hi\"}\n\n";

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
