//! What passes between client and Letta, and what must not.

use crate::support::{AGENT, KEY, Replica, Reply, gateway, json, start, yaml};

#[tokio::test]
async fn credentials_and_user_choosing_headers_stay_here() {
    let a = Replica::start(|_| json("{}")).await;
    let letta = format!("    servers: [ {{ url: http://{} }} ]\n    password: sesame", a.address);
    let proxy = start(&yaml(&letta, "")).await;
    let forbidden =
        ["user_id", "user-id", "x-organization-id", "x-agent-id", "x-billing-plan", "x-experimental-letta-v1-agent"];
    let mut request =
        proxy.request("GET", &format!("/v1/agents/{AGENT}")).header("x-bare-password", format!("password {KEY}"));
    for name in forbidden {
        request = request.header(name, "user-11111111-1111-4111-8111-111111111111");
    }
    assert_eq!(proxy.send(request.body(Default::default()).unwrap()).await.status, 200);
    let seen = &a.seen()[0];
    for name in forbidden {
        assert_eq!(seen.header(name), None, "{name}");
    }
    assert_eq!(seen.header("x-bare-password"), None);
    assert_eq!(seen.header("authorization"), Some("Bearer sesame"));
    assert!(!format!("{:?}", seen.headers).contains(KEY));
}

#[tokio::test]
async fn hop_by_hop_names_end_here_in_both_directions() {
    let a = Replica::start(|_| {
        Reply::Full(
            200,
            vec![
                ("connection", "x-inner"),
                ("x-inner", "secret"),
                ("keep-alive", "timeout=5"),
                ("x-letta", "kept"),
                ("content-type", "application/json"),
            ],
            "{}".into(),
        )
    })
    .await;
    let proxy = gateway(&[&a], "").await;
    let request = proxy
        .request("GET", &format!("/v1/agents/{AGENT}"))
        .header("connection", "x-mine, keep-alive")
        .header("x-mine", "1")
        .header("keep-alive", "timeout=9")
        .header("te", "trailers")
        .header("proxy-authorization", "Basic eDp5")
        .header("x-project-id", "kept");
    let answer = proxy.send(request.body(Default::default()).unwrap()).await;
    let seen = &a.seen()[0];
    for name in ["x-mine", "keep-alive", "te", "proxy-authorization", "connection"] {
        assert_eq!(seen.header(name), None, "{name}");
    }
    assert_eq!(seen.header("x-project-id"), Some("kept"));
    assert_eq!(answer.header("x-inner"), None);
    assert_eq!(answer.header("keep-alive"), None);
    assert_eq!(answer.header("x-letta"), Some("kept"));
}

#[tokio::test]
async fn the_sdks_own_headers_pass_untouched() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    let kept = [
        ("user-agent", "Letta/Python 1.12.1"),
        ("x-stainless-package-version", "1.12.1"),
        ("x-stainless-retry-count", "0"),
        ("accept", "application/json"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ];
    let mut request = proxy.request("GET", &format!("/v1/agents/{AGENT}"));
    for (name, value) in kept {
        request = request.header(name, value);
    }
    proxy.send(request.body(Default::default()).unwrap()).await;
    for (name, value) in kept {
        assert_eq!(a.seen()[0].header(name), Some(value), "{name}");
    }
}

#[tokio::test]
async fn a_location_with_an_inner_address_never_leaves() {
    let a = Replica::start(|seen| match seen.target.as_str() {
        "/v1/agents/" => {
            Reply::Full(307, vec![("location", "http://letta.internal:8283/v1/agents/?limit=1")], "".into())
        }
        _ => Reply::Full(307, vec![("location", "https://provider.example/oauth?x=1")], "".into()),
    })
    .await;
    let proxy = gateway(&[&a], "").await;
    let request = proxy.request("GET", "/v1/agents/").header("host", "letta.internal:8283");
    let answer = proxy.send(request.body(Default::default()).unwrap()).await;
    assert_eq!(answer.header("location"), Some("/v1/agents/?limit=1"));
    let outside = proxy.get(&format!("/v1/agents/{AGENT}")).await;
    assert_eq!(outside.header("location"), Some("https://provider.example/oauth?x=1"), "others' addresses stay");
}

#[tokio::test]
async fn a_request_id_is_kept_or_made_and_told_everywhere() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    let path = format!("/v1/agents/{AGENT}");
    let request = proxy.request("GET", &path).header("x-request-id", "mine-1");
    assert_eq!(proxy.send(request.body(Default::default()).unwrap()).await.header("x-request-id"), Some("mine-1"));
    let request = proxy.request("GET", &path).header("x-request-id", "not\tgraphic");
    let made = proxy.send(request.body(Default::default()).unwrap()).await.header("x-request-id").unwrap().to_owned();
    assert_eq!(made.len(), 32);
    let seen = a.seen();
    assert_eq!(seen[0].header("x-request-id"), Some("mine-1"));
    assert_eq!(seen[1].header("x-request-id"), Some(made.as_str()));
    let log = proxy.log(2).await;
    assert_eq!((log[0]["request_id"].as_str(), log[1]["request_id"].as_str()), (Some("mine-1"), Some(made.as_str())));
    assert_eq!(seen[0].header("x-api-request-log-id"), None, "a read has no steps to store it with");
}

#[tokio::test]
async fn letta_stores_the_request_id_with_the_steps_of_a_turn() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    for path in ["messages", "messages/stream", "messages/async"] {
        let request = proxy.request("POST", &format!("/v1/agents/{AGENT}/{path}")).header("x-request-id", "mine-1");
        let request = request.header("x-api-request-log-id", "theirs");
        proxy.send(request.body("{\"input\":\"hi\"}".into()).unwrap()).await;
        assert_eq!(a.seen().pop().unwrap().header("x-api-request-log-id"), Some("mine-1"), "{path}");
    }
}

#[tokio::test]
async fn forwarding_headers_name_the_client_and_nobody_it_names_itself() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    let request = proxy
        .request("GET", &format!("/v1/agents/{AGENT}"))
        .header("x-forwarded-for", "10.9.8.7")
        .header("x-forwarded-proto", "https")
        .header("forwarded", "for=10.9.8.7");
    proxy.send(request.body(Default::default()).unwrap()).await;
    let seen = &a.seen()[0];
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.header("forwarded"), None);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_letta_sees_it() {
    let a = Replica::start(|_| json("{}")).await;
    let letta = format!("    servers: [ {{ url: http://{} }} ]\n    max_body: 1KiB", a.address);
    let proxy = start(&yaml(&letta, "")).await;
    let answer = proxy.post(&format!("/v1/agents/{AGENT}/messages"), &"x".repeat(2000)).await;
    assert_eq!(answer.status, 413);
    assert_eq!(answer.json()["error"]["type"], "client_body_too_large");
    assert!(a.seen().is_empty());
}

#[tokio::test]
async fn lettas_answers_pass_byte_for_byte() {
    for (status, body) in [
        (404, "{\"detail\":\"Agent with ID agent-x not found\"}"),
        (409, "{\"detail\":{\"code\":\"PENDING_APPROVAL\"}}"),
        (422, "{\"trace_id\":\"\",\"detail\":\"[{'type': 'missing'}]\"}"),
        (500, "{\"detail\":\"An unknown error occurred\"}"),
    ] {
        let a = Replica::start(move |_| Reply::Json(status, body.into())).await;
        let proxy = gateway(&[&a], "").await;
        let answer = proxy.post(&format!("/v1/agents/{AGENT}/messages"), "{\"message\":\"hi\"}").await;
        assert_eq!((answer.status, answer.text().as_str()), (status, body));
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("server"), Some("uvicorn"));
        assert_eq!(a.seen().len(), 1);
    }
}

#[tokio::test]
async fn uploads_stream_through_in_chunks() {
    let a = Replica::start(|seen| json(format!("{}", seen.body.len()))).await;
    let proxy = gateway(&[&a], "").await;
    let chunk = "x".repeat(1000);
    let mut raw = format!(
        "POST /v1/agents/{AGENT}/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    for _ in 0..50 {
        raw.push_str(&format!("3e8\r\n{chunk}\r\n"));
    }
    raw.push_str("0\r\n\r\n");
    let answer = proxy.raw(&raw).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("50000"), "{answer}");
    assert_eq!(proxy.log(1).await[0]["bytes_in"], 50_000);
}
