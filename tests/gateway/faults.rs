//! What is not a replica's fault is not held against it, and what is the gateway's own trouble is told as its own.

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::support::{AGENT, Answer, KEY, PATIENCE, Proxy, Replica, Reply, gateway, json, start, yaml};

/// Two replicas in turn, one ejected by its second failure.
async fn strict(failing: &Replica, well: &Replica) -> Proxy {
    let letta = format!(
        "    balance: round_robin\n    servers: [ {{ url: http://{} }}, {{ url: http://{} }} ]\n    ejection: {{ after: 2, duration: 1h }}",
        failing.address, well.address
    );
    start(&yaml(&letta, "")).await
}

async fn ejections(proxy: &Proxy, replica: &Replica) -> f64 {
    proxy.metric(&format!("letta_gateway_upstream_ejections_total{{upstream=\"{}\"}}", replica.address)).await
}

/// A replica whose answers have the head and each piece of the body in writes of their own.
async fn apart(content_type: &'static str, status: u16, pieces: &'static [&'static str]) -> Replica {
    Replica::start(move |_| {
        let (feed, body) = mpsc::channel(1);
        tokio::spawn(async move {
            for piece in pieces {
                // time for the head, or the piece before, to be written and read
                for _ in 0..200 {
                    tokio::task::yield_now().await;
                }
                let _ = feed.send(Some(Bytes::from_static(piece.as_bytes()))).await;
            }
        });
        Reply::Failing(status, content_type, body)
    })
    .await
}

#[tokio::test]
async fn an_llm_error_whose_body_comes_after_its_head_ejects_nobody_and_passes_byte_for_byte() {
    let pieces = &["{\"error\":{\"type\":\"llm_ti", "meout\",\"message\":\"The LLM request timed out.\"}}"];
    let failing = apart("application/json", 504, pieces).await;
    let well = Replica::start(|_| json("{}")).await;
    let proxy = strict(&failing, &well).await;
    let mut failures = 0;
    for _ in 0..12 {
        let answer = proxy.get(&format!("/v1/agents/{AGENT}")).await;
        if answer.status == 504 {
            failures += 1;
            assert_eq!(answer.text(), pieces.concat());
        }
    }
    assert_eq!((failures, ejections(&proxy, &failing).await), (6, 0.0));
}

#[tokio::test]
async fn an_error_in_lettas_shape_that_nobody_knows_ejects_nobody() {
    let failing = Replica::start(|_| {
        Reply::Json(502, "{\"detail\":\"Failed to process LLM response: Expecting value: line 1\"}".into())
    })
    .await;
    let well = Replica::start(|_| json("{}")).await;
    let proxy = strict(&failing, &well).await;
    for _ in 0..12 {
        proxy.get(&format!("/v1/agents/{AGENT}")).await;
    }
    assert_eq!((failing.count(), ejections(&proxy, &failing).await), (6, 0.0));
}

#[tokio::test]
async fn a_proxys_error_page_ejects_though_it_comes_after_its_head() {
    let failing = apart("text/html", 502, &["<html>502 Bad", " Gateway</html>"]).await;
    let well = Replica::start(|_| json("{}")).await;
    let proxy = strict(&failing, &well).await;
    for _ in 0..12 {
        proxy.get(&format!("/v1/agents/{AGENT}")).await;
    }
    assert_eq!((failing.count(), ejections(&proxy, &failing).await), (2, 1.0));
}

#[tokio::test]
async fn an_error_too_large_or_too_slow_to_be_read_first_passes_byte_for_byte() {
    static LARGE: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| format!("{{\"detail\":\"{}\"}}", "x".repeat(100_000)));
    let large = Replica::start(|_| Reply::Json(503, LARGE.clone())).await;
    // its body comes once the head has been passed on without it
    let (feeds, mut feed) = mpsc::unbounded_channel();
    let slow = Replica::start(move |_| {
        let (feed, body) = mpsc::channel(1);
        feeds.send(feed).expect("the test takes it");
        Reply::Failing(503, "application/json", body)
    })
    .await;
    let proxy = strict(&large, &slow).await;
    let (mut larges, mut slows) = (0, 0);
    for _ in 0..4 {
        let request = proxy.request("GET", &format!("/v1/agents/{AGENT}")).body(Bytes::new()).unwrap();
        let response = proxy.open(request).await;
        assert_eq!(response.status(), 503);
        if let Ok(feed) = feed.try_recv() {
            feed.send(Some(Bytes::from_static(b"{\"detail\":\"slow\"}"))).await.unwrap();
            drop(feed);
            assert_eq!(Answer::of(response).await.text(), "{\"detail\":\"slow\"}");
            slows += 1;
        } else {
            assert_eq!(Answer::of(response).await.text(), *LARGE);
            larges += 1;
        }
    }
    assert_eq!((larges, slows), (2, 2));
    assert_eq!((ejections(&proxy, &large).await, ejections(&proxy, &slow).await), (0.0, 0.0));
}

#[tokio::test]
async fn an_answer_that_breaks_off_at_once_is_not_passed_as_whole() {
    for (status, rest) in
        [(503, "9\r\n{\"detail\""), (503, "no chunk\r\n"), (200, "9\r\n{\"detail\""), (200, "no chunk\r\n")]
    {
        let head = "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
        let answer = format!("HTTP/1.1 {status} As it is\r\n{head}{rest}");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let letta = format!("    servers: [ {{ url: http://{} }} ]", listener.local_addr().unwrap());
        let replica = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let proxy = start(&yaml(&letta, "")).await;
        let request = format!(
            "POST /v1/agents/ HTTP/1.1\r\nhost: g\r\nconnection: close\r\ncontent-length: 2\r\nauthorization: Bearer {KEY}\r\n\r\n{{}}",
        );
        let got = proxy.raw(&request).await;
        assert!(!got.ends_with("0\r\n\r\n"), "{status} {rest:?} came as {got:?}");
        assert_eq!(proxy.log(1).await[0]["reason"], "upstream_closed", "{status} {rest:?}");
        replica.abort();
    }
}

#[tokio::test]
async fn requests_without_a_key_are_few_at_a_time_until_their_last_byte_and_keys_lose_nothing() {
    let (feeds, mut feed) = mpsc::unbounded_channel();
    let replica = Replica::start(move |seen| {
        if seen.target.starts_with("/v1/agents/") {
            return json("{}");
        }
        let (feed, body) = mpsc::channel(1);
        feeds.send(feed).expect("the test takes it");
        Reply::Pieces("application/json", body)
    })
    .await;
    let proxy = gateway(&[&replica], "").await;
    let keyless = |path: &str| {
        let request = http::Request::builder().uri(format!("http://{}{path}", proxy.address()));
        request.body(Bytes::new()).unwrap()
    };
    let paths = ["/v1/health/", "/latest/health", "/v1/ready/", "/v1/tools/mcp/oauth/callback?code=x&state=y"];
    // their heads are here, their bodies are not over
    let mut begun = Vec::new();
    for path in paths.iter().cycle().take(16) {
        begun.push(proxy.open(keyless(path)).await);
    }
    for path in paths {
        let refused = proxy.send(keyless(path)).await;
        assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")), "{path}");
        assert_eq!(refused.json()["error"]["type"], "policy_keyless_limited");
    }
    assert_eq!(proxy.get(&format!("/v1/agents/{AGENT}")).await.status, 200);
    assert_eq!(replica.count(), 17);

    // one comes to its end, one is given up by its client
    drop(feed.recv().await);
    let whole = Answer::of(begun.remove(0)).await;
    assert_eq!((whole.status, whole.text().as_str()), (200, ""));
    begun.push(proxy.open(keyless("/v1/health/")).await);
    assert_eq!(proxy.send(keyless("/v1/health/")).await.status, 429);
    drop(begun.pop());
    let waited =
        tokio::time::timeout(PATIENCE, async { while proxy.open(keyless("/v1/health/")).await.status() != 200 {} });
    assert!(waited.await.is_ok(), "a place is free again when a client has left");
}

#[tokio::test]
async fn a_stream_begun_after_goaway_is_refused_as_draining_and_never_reaches_letta() {
    fn headers(stream: u8, path: &str) -> Vec<u8> {
        let bearer = format!("Bearer {KEY}");
        let mut block = vec![0x82, 0x86, 0x04, path.len() as u8];
        block.extend_from_slice(path.as_bytes());
        block.extend_from_slice(&[0x01, 1, b'g', 0x0f, 0x08, bearer.len() as u8]);
        block.extend_from_slice(bearer.as_bytes());
        [&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, stream][..], &block].concat()
    }
    let replica = Replica::start(|_| Reply::Hang).await;
    let proxy = gateway(&[&replica], "").await;
    let stream = tokio::net::TcpStream::connect(proxy.address()).await.unwrap();
    let (mut reads, mut writes) = stream.into_split();
    // what comes is taken, and nothing of it acknowledged
    let closed = tokio::spawn(async move { reads.read_to_end(&mut Vec::new()).await });
    writes.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    writes.write_all(&headers(1, "/v1/agents/")).await.unwrap();
    replica.waits_for(1).await;
    let late = async {
        let mut ticks = tokio::time::interval(std::time::Duration::from_millis(100));
        for stream in (3..255).step_by(2) {
            ticks.tick().await;
            // a target that is refused before Letta is asked, as long as targets are looked at
            if writes.write_all(&headers(stream, "/no/such/route")).await.is_err() {
                break;
            }
            let log = proxy.log(usize::from(stream / 2)).await;
            if log.iter().any(|line| line["reason"] == "gateway_draining") {
                return log;
            }
        }
        panic!("every stream is served");
    };
    let drained = proxy.gateway.drain(PATIENCE);
    tokio::pin!(drained);
    let log = tokio::select! {
        log = late => log,
        whole = &mut drained => panic!("drained ({whole}) with a request in flight"),
    };
    let refused = log.last().unwrap();
    assert_eq!((&refused["status"], &refused["ended_by"]), (&503.into(), &"gateway".into()), "{refused}");
    drop(writes);
    assert!(drained.await, "the client has left");
    let _ = closed.await;
    assert_eq!(replica.count(), 1);
}
