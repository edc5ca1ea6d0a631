//! What a request's body may not ask of Letta: to act as another user, to call an address of the sender's.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{AGENT, Answer, COLLEAGUE, KEY, PATIENCE, Raw, Replica, gateway, json, letta_answer};

const CHAT: [&str; 6] = [
    "/v1/chat/completions",
    "/v1/chat/completions/",
    "/latest/chat/completions",
    "/latest/chat/completions/",
    "/chat/completions",
    "/chat/completions/",
];

/// A POST of `body` with a key that may read and send messages.
fn colleagues(target: &str, body: impl Into<Bytes>) -> http::Request<Bytes> {
    request("POST", COLLEAGUE, target, body)
}

fn request(method: &str, key: &str, target: &str, body: impl Into<Bytes>) -> http::Request<Bytes> {
    let request = http::Request::builder().method(method).uri(target).header("authorization", format!("Bearer {key}"));
    request.header("content-type", "application/json").body(body.into()).unwrap()
}

#[tokio::test]
async fn a_body_chooses_no_other_user_on_any_form_of_chat_completions() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    let user = "user-11111111-1111-4111-8111-111111111111";
    for target in CHAT {
        for name in ["user", "\\u0075ser", "us\\u0065r"] {
            let body = format!("{{\"model\":\"{AGENT}\", \"{name}\" : \"{user}\",\"messages\":[{{\"user\": 1.50}}]}}");
            let url = format!("http://{}{target}", proxy.address());
            assert_eq!(proxy.send(colleagues(&url, body)).await.status, 200, "{target} {name}");
            let seen = a.seen().pop().unwrap();
            assert_eq!(seen.target, "/v1/chat/completions");
            let kept = format!("{{\"model\":\"{AGENT}\",\"messages\":[{{\"user\": 1.50}}]}}");
            assert_eq!(seen.body, kept, "{target} {name}");
            assert_eq!(seen.header("content-length"), Some(kept.len().to_string().as_str()));
        }
    }
}

#[tokio::test]
async fn a_chat_body_without_a_user_passes_byte_for_byte_however_it_is_framed() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    let body = "{ \"m\\u006fdel\" : 1.50e3,\r\n\t\"messages\":[ {\"user\":\"x\"} ] }";
    let head = format!("POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX-API-Key: {KEY}\r\nConnection: close\r\n");
    let whole = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    let (one, two) = body.split_at(9);
    let chunked = format!(
        "{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{one}\r\n{:x}\r\n{two}\r\n0\r\n\r\n",
        one.len(),
        two.len()
    );
    for request in [whole, chunked] {
        assert_eq!(Raw::of(&proxy.raw(&request).await).status, 200);
        assert_eq!(a.seen().pop().unwrap().body, body);
    }
}

#[tokio::test]
async fn a_chat_body_that_could_be_read_in_two_ways_is_refused() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    let url = format!("http://{}/v1/chat/completions", proxy.address());
    let bodies: [&[u8]; 14] = [
        b" ",
        b"null",
        b"[]",
        b"[{\"user\":\"a\"}]",
        b"\"user\"",
        b"{\"user\":\"a\",\"user\":\"b\"}",
        b"{\"user\":null,\"\\u0075ser\":\"b\"}",
        b"{\"user\":\"a\"",
        b"{\"user\":\"a\"} {}",
        b"{\"user\":\"a\",}",
        b"{user:\"a\"}",
        b"{\"model\":\"\xff\"}",
        b"\xef\xbb\xbf{\"user\":\"a\"}",
        // UTF-16, as Python's json reads it
        b"{\0\"\0u\0s\0e\0r\0\"\0:\0\"\0a\0\"\0}\0",
    ];
    for body in bodies {
        let answer = proxy.send(colleagues(&url, body)).await;
        assert_eq!(answer.status, 400, "{}", String::from_utf8_lossy(body));
        assert_eq!(answer.json()["error"]["type"], "client_bad_body");
    }
    let mut zipped = colleagues(&url, &b"\x1f\x8b\x08\x00"[..]);
    zipped.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    assert_eq!(proxy.send(zipped).await.status, 400);
    assert_eq!(a.count(), 0, "{:?}", a.seen());
}

#[tokio::test]
async fn a_body_too_long_to_be_looked_at_is_refused() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    let url = format!("http://{}/v1/chat/completions", proxy.address());
    let body = format!("{{\"x\":\"{}\"}}", "x".repeat(16 * 1024 * 1024));
    assert_eq!(proxy.send(colleagues(&url, body.clone())).await.status, 413);
    let head = format!("POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX-API-Key: {KEY}\r\nConnection: close\r\n");
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let answer = Raw::of(&proxy.raw(&chunked).await);
    assert_eq!((answer.status, &answer.json()["error"]["type"]), (413, &"client_body_too_large".into()));
    assert_eq!(a.count(), 0);
}

#[tokio::test]
async fn only_an_admins_key_gives_letta_an_address_to_call() {
    let a = Replica::start(|_| json("{}")).await;
    let modifier = "a-key-that-modifies";
    let more = format!(
        "  - {{ id: modifier, hash: \"sha256:{}\", plan: standard, scopes: [read, message, modify] }}\n",
        crate::support::hash(modifier)
    );
    let letta = format!("    servers: [ {{ url: http://{} }} ]", a.address);
    let yaml = crate::support::yaml(&letta, "").replace("plans:", &format!("{more}plans:"));
    let proxy = crate::support::start(&yaml).await;
    let agent = format!("/v1/agents/{AGENT}");
    let asynchronous = format!("/v1/agents/{AGENT}/messages/async");
    let inner = "http://169.254.169.254/latest/meta-data";
    let callback = format!("{{\"callback_url\":\"{inner}\"}}");
    let escaped = format!("{{\"callback\\u005furl\":\"{inner}\",\"messages\":[]}}");
    let twice = format!("{{\"callback_url\":\"{inner}\",\"callback_url\":null}}");
    let model = format!("{{\"llm_config\":{{\"model\":\"m\",\"model_endpoint\":\"{inner}\"}}}}");
    let embedding = format!("{{\"embedding_config\":{{\"embedding_endpoint\" : \"{inner}\"}}}}");
    let azure = format!("{{\"embedding_config\":{{\"azure_endpoint\":\"{inner}\"}}}}");
    let cases = [
        ("POST", asynchronous.as_str(), callback.as_str(), "callback_url"),
        ("POST", &asynchronous, &escaped, "callback_url"),
        ("POST", &asynchronous, &twice, "callback_url"),
        ("POST", "/v1/messages/batches", &callback, "callback_url"),
        ("POST", "/latest/messages/batches/", &callback, "callback_url"),
        ("POST", "/messages/batches", &callback, "callback_url"),
        ("POST", "/v1/agents/", &model, "llm_config.model_endpoint"),
        ("PATCH", &agent, &model, "llm_config.model_endpoint"),
        ("POST", "/v1/agents", &embedding, "embedding_config.embedding_endpoint"),
        ("PATCH", &agent, &azure, "embedding_config.azure_endpoint"),
        ("POST", "/v1/archives/", &embedding, "embedding_config.embedding_endpoint"),
        ("POST", "/v1/folders/", &embedding, "embedding_config.embedding_endpoint"),
        ("PATCH", "/v1/folders/folder-1", &embedding, "embedding_config.embedding_endpoint"),
        ("POST", "/v1/sources/", &embedding, "embedding_config.embedding_endpoint"),
        ("PATCH", "/v1/sources/source-1", &azure, "embedding_config.azure_endpoint"),
    ];
    for (method, target, body, field) in cases {
        let url = format!("http://{}{target}", proxy.address());
        let answer = proxy.send(request(method, modifier, &url, body.to_owned())).await;
        assert_eq!(answer.status, 403, "{method} {target} {body} {}", answer.text());
        let told = answer.json();
        assert_eq!(told["error"]["type"], "policy_address");
        assert!(told["detail"].as_str().unwrap().contains(&format!("`{field}`")), "{told}");
        let unclear = proxy.send(request(method, modifier, &url, body.replace("169", "\u{0}"))).await;
        assert_eq!(unclear.status, 400, "{method} {target}");
    }
    assert_eq!(a.count(), 0, "{:?}", a.seen());
    for (method, target, body, _) in cases {
        let url = format!("http://{}{target}", proxy.address());
        assert_eq!(proxy.send(request(method, KEY, &url, body.to_owned())).await.status, 200, "an admin may");
        assert_eq!(a.seen().pop().unwrap().body, body);
        let harmless = "{\"callback_url\": null, \"metadata\":{\"callback_url\":\"x\"},\"llm_config\":{\"model\":\"m\",\"model_endpoint\":null}}";
        assert_eq!(proxy.send(request(method, modifier, &url, harmless)).await.status, 200, "{method} {target}");
        assert_eq!(a.seen().pop().unwrap().body, harmless);
    }
}

#[tokio::test]
async fn a_body_that_trickles_is_not_waited_for_longer_than_a_request() {
    let a = Replica::start(|_| json(letta_answer("hi"))).await;
    let letta = format!("    servers: [ {{ url: http://{} }} ]\n    timeouts: {{ request: 300ms }}", a.address);
    let proxy = crate::support::start(&crate::support::yaml(&letta, "cache: { agents: [\"*\"] }")).await;
    // the last one is not looked at here: its body is sent on as it comes
    let targets =
        ["/v1/chat/completions".to_owned(), format!("/v1/agents/{AGENT}/messages"), "/v1/messages/search".to_owned()];
    for target in targets {
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        let head = format!(
            "POST {target} HTTP/1.1\r\nHost: a\r\nX-API-Key: {KEY}\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n{{"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let (mut reads, mut writes) = stream.into_split();
        // never silent for long
        let trickle = tokio::spawn(async move {
            while writes.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let mut answer = [0; 12];
        let told = tokio::time::timeout(PATIENCE, reads.read_exact(&mut answer)).await;
        trickle.abort();
        told.expect("an answer while the body trickles").unwrap();
        assert_eq!(&answer, b"HTTP/1.1 408", "{target}");
    }
    assert_eq!(a.count(), 0);
    for line in proxy.log(3).await {
        assert_eq!(
            (line["reason"].as_str(), line["ended_by"].as_str()),
            (Some("client_body_timeout"), Some("gateway"))
        );
    }
}

/// HTTP/2 frames a body by itself, and hands on whatever a client calls its length.
#[tokio::test]
async fn a_length_that_is_none_does_not_reach_letta_over_http2_either() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    for lengths in [&[""][..], &["", "0"], &["0", "0"]] {
        let stream = TcpStream::connect(proxy.address()).await.unwrap();
        let (mut client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut asked = request("POST", KEY, &format!("http://{}/v1/agents/{AGENT}/messages", proxy.address()), "");
        for length in lengths {
            asked.headers_mut().append("content-length", length.parse().unwrap());
        }
        let answer = Answer::of(client.send_request(asked.map(Full::new)).await.unwrap()).await;
        assert_eq!(answer.status, 400, "{lengths:?}");
        assert_eq!(answer.json()["error"]["type"], "client_bad_framing");
        connection.abort();
    }
    assert_eq!(a.count(), 0, "{:?}", a.seen());
}
