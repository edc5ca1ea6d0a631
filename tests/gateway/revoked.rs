//! A key that is revoked through the shared store: refused by every gateway within a second, its streams ended, and for
//! good, whatever becomes of the gateways or of the store's data.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::process::command;
use crate::redis_server::RedisServer;
use crate::support::{AGENT, Answer, COLLEAGUE, KEY, PATIENCE, Proxy, Replica, Reply, json, start, streaming, yaml};

const WORD: &str = "data: {\"message_type\":\"assistant_message\",\"content\":\"hi\"}\n\n";
const UP: &str = "letta_gateway_redis_up{link=\"values\"}";

fn shared(replica: &Replica, server: &RedisServer) -> String {
    let letta = format!("    servers: [ {{ url: http://{} }} ]", replica.address);
    yaml(&letta, &format!("store: {{ redis: {{ url: \"{}\", timeout: 5s }} }}", server.url()))
}

/// `letta-gateway keys …` on this configuration: exit code, standard output, standard error.
async fn keys(yaml: &str, arguments: &[&str]) -> (i32, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.yaml");
    std::fs::write(&path, yaml).unwrap();
    let mut command = command(&["keys"]);
    command.args(arguments).arg("--config").arg(&path);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

async fn ask(proxy: &Proxy, key: &str) -> Answer {
    let request = http::Request::builder().uri(format!("http://{}/v1/agents/", proxy.address()));
    proxy.send(request.header("x-api-key", key).body(Bytes::new()).unwrap()).await
}

async fn open_stream(proxy: &Proxy, key: &str, agent: &str) -> Response<Incoming> {
    let request = http::Request::post(format!("http://{}/v1/agents/{agent}/messages/stream", proxy.address()));
    proxy.open(request.header("x-api-key", key).body(Bytes::from("{\"input\":\"x\"}")).unwrap()).await
}

async fn refused(proxy: &Proxy, key: &str) {
    let asking = async {
        while ask(proxy, key).await.json()["error"]["type"] != "policy_key_revoked" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("the key is refused");
}

#[tokio::test]
async fn every_gateway_refuses_a_revoked_key_within_a_second_and_ends_its_streams() {
    let server = RedisServer::start();
    let (a, mut feeds) = streaming().await;
    let text = shared(&a, &server);
    let (one, other) = (start(&text).await, start(&text).await);
    let mut held = Vec::new();
    let mut streams = Vec::new();
    for (place, (proxy, key)) in [(&one, KEY), (&other, KEY), (&other, COLLEAGUE)].into_iter().enumerate() {
        let agent = format!("{}{place}", &AGENT[..AGENT.len() - 1]);
        let (stream, feed) = tokio::join!(open_stream(proxy, key, &agent), async {
            let feed = feeds.recv().await.unwrap();
            feed.send(Some(Bytes::from(WORD))).await.unwrap();
            feed
        });
        let mut body = stream.into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), WORD);
        streams.push(body);
        held.push(feed);
    }

    let (code, out, told) = keys(&text, &["revoke", "team-a"]).await;
    assert_eq!((code, out.starts_with("revoked team-a")), (0, true), "{told}");
    let since = Instant::now();
    let colleagues = streams.pop().unwrap();
    for stream in streams {
        let rest = tokio::time::timeout(PATIENCE, stream.collect()).await.expect("it ends").expect("and ends well");
        let rest = String::from_utf8(rest.to_bytes().to_vec()).unwrap();
        assert!(rest.starts_with("event: error\n") && rest.contains("policy_key_revoked"), "{rest}");
        assert!(rest.ends_with("data: [DONE]\n\n"), "{rest}");
    }
    refused(&one, KEY).await;
    refused(&other, KEY).await;
    let took = since.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(ask(&one, KEY).await.status, 401);

    // nobody else's ended
    assert_eq!(ask(&other, COLLEAGUE).await.status, 200);
    held.pop().unwrap().send(Some(Bytes::from(WORD))).await.unwrap();
    let mut colleagues = colleagues;
    assert_eq!(colleagues.frame().await.unwrap().unwrap().into_data().unwrap(), WORD);
    let log = one.log(2).await;
    assert!(log.iter().any(|line| line["reason"] == "policy_key_revoked" && line["status"] == 200), "{log:?}");

    // a gateway that starts now knows it before its first request
    let late = start(&text).await;
    assert_eq!(ask(&late, KEY).await.json()["error"]["type"], "policy_key_revoked");
    assert_eq!(ask(&late, COLLEAGUE).await.status, 200);
}

#[tokio::test]
async fn a_request_that_waits_is_refused_and_what_waits_for_its_turn_is_never_sent() {
    let server = RedisServer::start();
    let a = Replica::start(|_| Reply::Hang).await;
    let text = shared(&a, &server);
    let proxy = start(&text).await;
    proxy.metric_is(UP, 1.0).await;
    let send = async || {
        let request = http::Request::post(format!("http://{}/v1/agents/{AGENT}/messages", proxy.address()));
        let request = request.header("x-api-key", KEY).header("content-type", "application/json");
        proxy.send(request.body(Bytes::from("{\"input\":\"x\"}")).unwrap()).await
    };
    let (first, second, ()) = tokio::join!(send(), send(), async {
        a.waits_for(1).await;
        proxy.metric_is("letta_gateway_turns_waiting", 1.0).await;
        assert_eq!(keys(&text, &["revoke", "team-a", "--json"]).await.0, 0);
    });
    for answer in [first, second] {
        assert_eq!((answer.status, &answer.json()["error"]["type"]), (401, &"policy_key_revoked".into()));
    }
    assert_eq!(a.count(), 1, "{:?}", a.seen());
}

#[tokio::test]
async fn a_store_that_lost_its_data_is_told_again() {
    let mut server = RedisServer::start();
    let a = Replica::start(|_| json("{}")).await;
    let text = shared(&a, &server);
    let proxy = start(&text).await;
    assert_eq!(keys(&text, &["revoke", "team-a"]).await.0, 0);
    refused(&proxy, KEY).await;
    let seen = a.count();
    server.kill();
    assert_eq!(ask(&proxy, KEY).await.json()["error"]["type"], "policy_key_revoked");
    server.restart();
    let listed = async { while !keys(&text, &["list"]).await.1.contains("team-a  revoked") {} };
    tokio::time::timeout(PATIENCE, listed).await.expect("the store knows it again");
    assert_eq!(ask(&start(&text).await, KEY).await.json()["error"]["type"], "policy_key_revoked");
    assert_eq!(a.count(), seen);
}

#[tokio::test]
async fn one_text_of_a_key_that_is_being_changed_is_revoked_alone() {
    let server = RedisServer::start();
    let a = Replica::start(|_| json("{}")).await;
    let (old, new) = (crate::support::hash(KEY), crate::support::hash("new-text"));
    let both = format!("hashes: [\"sha256:{new}\", \"sha256:{old}\"]");
    let text = shared(&a, &server).replace(&format!("hash: \"sha256:{old}\""), &both);
    let proxy = start(&text).await;
    let (code, out, told) = keys(&text, &["revoke", "team-a", "--json", "--hash", &format!("sha256:{old}")]).await;
    assert_eq!((code, out), (0, format!("{{\"id\":\"team-a\",\"revoked\":[\"sha256:{old}\"]}}\n")), "{told}");
    refused(&proxy, KEY).await;
    assert_eq!(ask(&proxy, "new-text").await.status, 200);
    let (_, listed, _) = keys(&text, &["list", "--json"]).await;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((&listed[0]["state"], &listed[0]["hashes"][1]["revoked"]), (&"active".into(), &true.into()));
}

#[tokio::test]
async fn without_a_shared_store_the_configuration_is_where_a_key_is_switched_off() {
    let a = Replica::start(|_| json("{}")).await;
    let text = yaml(&format!("    servers: [ {{ url: http://{} }} ]", a.address), "");
    let (code, out, told) = keys(&text, &["revoke", "team-a"]).await;
    assert!(code == 1 && out.is_empty() && told.contains("write disabled: true"), "{told}");
    let mut gone = RedisServer::start();
    gone.kill();
    let (code, out, told) = keys(&shared(&a, &gone), &["revoke", "team-a"]).await;
    assert!(code == 1 && out.is_empty() && told.contains("store.redis"), "{told}");
    let (code, _, told) = keys(&text, &["revoke", "nobody"]).await;
    assert!(code == 1 && told.contains("there is no key \"nobody\""), "{told}");
}
