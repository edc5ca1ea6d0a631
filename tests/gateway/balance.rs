//! Replicas: who gets a request, who is left out, what is tried again and what never is.

use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{AGENT, Replica, Reply, gateway, json, nobody, start, yaml};

#[tokio::test]
async fn an_agent_stays_with_its_replica() {
    let (a, b) = (Replica::start(|_| json("{}")).await, Replica::start(|_| json("{}")).await);
    let proxy = gateway(&[&a, &b], "").await;
    for _ in 0..10 {
        assert_eq!(proxy.get(&format!("/v1/agents/{AGENT}")).await.status, 200);
    }
    let counts = [a.seen().len(), b.seen().len()];
    assert!(counts == [10, 0] || counts == [0, 10], "{counts:?}");
}

#[tokio::test]
async fn many_agents_use_all_replicas() {
    let (a, b) = (Replica::start(|_| json("{}")).await, Replica::start(|_| json("{}")).await);
    let proxy = gateway(&[&a, &b], "").await;
    for agent in 0..60 {
        proxy.get(&format!("/v1/agents/agent-0f6ed4f5-5d0e-4b4e-9d9f-0a3e1c1c{agent:04}")).await;
    }
    assert!(a.seen().len() > 10 && b.seen().len() > 10, "{} and {}", a.seen().len(), b.seen().len());
}

#[tokio::test]
async fn a_replica_that_cannot_be_reached_costs_no_request_of_any_method() {
    let a = Replica::start(|_| json("{}")).await;
    let letta = format!(
        "    balance: round_robin\n    servers: [ {{ url: http://{} }}, {{ url: http://{} }} ]",
        nobody().await,
        a.address
    );
    let proxy = start(&yaml(&letta, "")).await;
    for _ in 0..4 {
        let answer = proxy.post(&format!("/v1/agents/{AGENT}/messages"), "{\"input\":\"once\"}").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(a.seen().len(), 4);
    let seen = &a.seen()[0];
    assert_eq!(seen.header("authorization"), None, "a second attempt is as clean as a first");
    assert_eq!(seen.body, "{\"input\":\"once\"}");
}

#[tokio::test]
async fn a_message_that_may_have_reached_letta_is_never_sent_twice() {
    let (a, b) = (Replica::start(|_| Reply::Close).await, Replica::start(|_| Reply::Close).await);
    let proxy = gateway(&[&a, &b], "").await;
    let answer = proxy.post(&format!("/v1/agents/{AGENT}/messages"), "{\"input\":\"once\"}").await;
    assert_eq!(answer.status, 502);
    assert_eq!(answer.header("x-should-retry"), Some("false"), "or both official clients would send it again");
    assert_eq!(answer.json()["error"]["type"], "upstream_closed");
    let sends = a.seen().into_iter().chain(b.seen()).filter(|seen| seen.method == "POST").count();
    assert_eq!(sends, 1);
}

#[tokio::test]
async fn a_message_is_never_sent_twice_over_a_connection_that_was_used_before_either() {
    let a = Replica::start(|seen| if seen.method == "POST" { Reply::Close } else { json("{}") }).await;
    let proxy = gateway(&[&a], "").await;
    assert_eq!(proxy.get(&format!("/v1/agents/{AGENT}")).await.status, 200);
    let answer = proxy.post(&format!("/v1/agents/{AGENT}/messages"), "{\"input\":\"once\"}").await;
    assert_eq!((answer.status, answer.header("x-should-retry")), (502, Some("false")));
    let seen = a.seen();
    let sends: Vec<_> = seen.iter().filter(|seen| seen.method == "POST").collect();
    assert!(sends.len() == 1 && sends[0].connection == seen[0].connection, "{seen:?}");
}

#[tokio::test]
async fn a_read_that_was_not_answered_is_asked_again() {
    let first = std::sync::atomic::AtomicBool::new(true);
    let a = Replica::start(move |_| {
        if first.swap(false, std::sync::atomic::Ordering::Relaxed) { Reply::Close } else { json("{\"ok\":true}") }
    })
    .await;
    let proxy = gateway(&[&a], "").await;
    let target = format!("/v1/agents/{AGENT}?include=a&include=b");
    let request = proxy.request("GET", &target).header("x-two", "first").header("x-two", "second");
    let answer = proxy.send(request.body(Default::default()).unwrap()).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "{\"ok\":true}"));
    let seen = a.seen();
    let [first, second] = &seen[..] else { panic!("two attempts, not {}", seen.len()) };
    assert_eq!((&first.method, &first.target, &first.headers), (&second.method, &second.target, &second.headers));
    assert_eq!((&*second.target, second.headers.get_all("x-two").iter().count()), (&*target, 2));
    assert_eq!(proxy.log(1).await[0]["attempts"], 2);
}

#[tokio::test]
async fn a_fleet_that_fails_is_not_asked_again_for_every_request() {
    let a = Replica::start(|_| Reply::Close).await;
    let proxy = gateway(&[&a], "").await;
    for _ in 0..200 {
        assert_eq!(proxy.get(&format!("/v1/agents/{AGENT}")).await.status, 502);
    }
    // each would be tried twice; a hundred more in ten seconds are free, and one for each five requests
    let more = a.seen().len() - 200;
    assert!((130..=141).contains(&more), "{more}");
    let spent = proxy.metric("letta_gateway_retries_total{outcome=\"budget_spent\"}").await;
    assert_eq!(spent, 200.0 - more as f64);
}

#[tokio::test]
async fn connections_to_a_replica_are_used_again() {
    let a = Replica::start(|_| json("{\"some\":\"json\"}")).await;
    let proxy = gateway(&[&a], "").await;
    for _ in 0..5 {
        proxy.get(&format!("/v1/agents/{AGENT}")).await;
    }
    let seen = a.seen();
    assert!(seen.iter().all(|one| one.connection == seen[0].connection), "{seen:?}");
}

#[tokio::test]
async fn connections_that_a_replica_closed_while_nobody_used_them_cost_no_attempt() {
    // more of them than there are retries in a budget
    const MANY: usize = 150;
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let proxy = start(&yaml(&format!("    servers: [ {{ url: http://{address} }} ]"), "")).await;
    let path = format!("/v1/agents/{AGENT}");
    let reads = futures_util::future::join_all((0..MANY).map(|_| proxy.get(&path)));
    let replica = async {
        let mut used = Vec::new();
        while used.len() < MANY {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                assert!(stream.read_buf(&mut head).await.unwrap() > 0);
            }
            match head.starts_with(b"GET /v1/agents/") {
                true => used.push(stream),
                // a health check
                false => stream.write_all(ANSWER).await.unwrap(),
            }
        }
        for stream in &mut used {
            stream.write_all(ANSWER).await.unwrap();
        }
        used
    };
    let (answers, used) = tokio::join!(reads, replica);
    assert!(answers.iter().all(|answer| answer.status == 200));
    drop(used);
    let b = Replica::on(listener, |_| json("{\"again\":true}"));
    let path = format!("{path}/messages");
    let send = |_| proxy.post(&path, "{\"input\":\"once\"}");
    let answers = futures_util::future::join_all((0..10).map(send)).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(b.count(), 10, "each of them once");
    assert!(proxy.log(MANY + 10).await.iter().all(|line| line["attempts"] == 1));
    for outcome in ["fresh_connection", "another_replica", "budget_spent"] {
        assert_eq!(proxy.metric(&format!("letta_gateway_retries_total{{outcome=\"{outcome}\"}}")).await, 0.0);
    }
}

#[tokio::test]
async fn a_replica_that_fails_its_checks_leaves_rotation_and_comes_back() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (a, b) = (Replica::start(|_| json("\"a\"")).await, Replica::on(listener, |_| json("\"b\"")));
    let letta = format!(
        "    balance: round_robin\n    servers: [ {{ url: http://{} }}, {{ url: http://{} }} ]\n    health_check: {{ interval: 50ms, timeout: 1s, unhealthy_after: 2, healthy_after: 1 }}",
        a.address, b.address
    );
    let proxy = start(&yaml(&letta, "")).await;
    let address = b.address;
    b.kill();
    let series = format!("letta_gateway_upstream_healthy{{upstream=\"{address}\"}}");
    proxy.metric_is(&series, 0.0).await;
    for _ in 0..6 {
        assert_eq!(proxy.get(&format!("/v1/agents/{AGENT}")).await.text(), "\"a\"");
    }
    let ready = proxy.admin("/readyz").await;
    assert_eq!(ready.status, 200, "{}", ready.text());
    let back = Replica::on(tokio::net::TcpListener::bind(address).await.unwrap(), |_| json("\"b\""));
    proxy.metric_is(&series, 1.0).await;
    for _ in 0..4 {
        proxy.get(&format!("/v1/agents/{AGENT}")).await;
    }
    assert!(!back.seen().is_empty());
}

#[tokio::test]
async fn a_wrong_upstream_password_is_told_as_the_gateways_and_not_as_the_keys() {
    let password = std::sync::Arc::new(std::sync::Mutex::new("another"));
    let wanted = std::sync::Arc::clone(&password);
    let a = Replica::start(move |seen| match seen.header("authorization") {
        Some(sent) if sent == format!("Bearer {}", wanted.lock().unwrap()) => json("{\"ok\":true}"),
        _ => Reply::Json(401, "{\"detail\":\"Unauthorized\"}".into()),
    })
    .await;
    let letta = format!("    servers: [ {{ url: http://{} }} ]\n    password: theirs", a.address);
    let proxy = start(&yaml(&letta, "")).await;
    let target = format!("/v1/agents/{AGENT}");
    for answer in [proxy.get(&target).await, proxy.post(&format!("{target}/messages"), "{\"input\":\"hi\"}").await] {
        assert_eq!((answer.status, &answer.json()["error"]["type"]), (502, &"upstream_password".into()));
        assert!(answer.text().contains("LETTA_SERVER_PASSWORD") && !answer.text().contains("theirs"));
        assert_eq!(answer.header("x-should-retry"), None, "it was not executed");
    }
    let ready = proxy.admin("/readyz").await;
    assert_eq!((ready.status, &ready.json()["status"]), (200, &"degraded".into()));
    assert_eq!(ready.json()["upstreams"]["wrong_password"], serde_json::json!([a.address.to_string()]));
    assert_eq!(ready.json()["upstreams"]["unhealthy"], serde_json::json!([]), "it is no less well for that");
    assert_eq!(proxy.log(1).await[0]["reason"], "upstream_password");

    *password.lock().unwrap() = "theirs";
    // who was refused begins anew
    assert_eq!(proxy.post(&format!("{target}/messages"), "{\"input\":\"hi\"}").await.status, 200);
    assert_eq!(proxy.admin("/readyz").await.json()["status"], "ready");
}

#[tokio::test]
async fn a_401_in_other_words_is_lettas_own() {
    let words = "{\"error\":{\"type\":\"llm_authentication\",\"message\":\"Unauthorized\"}}";
    let a = Replica::start(move |_| Reply::Json(401, words.into())).await;
    let proxy = gateway(&[&a], "").await;
    let answer = proxy.get(&format!("/v1/agents/{AGENT}")).await;
    assert_eq!((answer.status, answer.text().as_str()), (401, words));
    assert_eq!(proxy.admin("/readyz").await.json()["status"], "ready");
}

#[tokio::test]
async fn failures_that_are_the_models_eject_nobody() {
    let a = Replica::start(|_| Reply::Json(504, "{\"error\":{\"type\":\"llm_timeout\",\"message\":\"slow\"}}".into()))
        .await;
    let b = Replica::start(|_| Reply::Json(429, "{\"error\":{\"type\":\"llm_rate_limit\"}}".into())).await;
    let proxy = gateway(&[&a, &b], "").await;
    for agent in 0..20 {
        let path = format!("/v1/agents/agent-0f6ed4f5-5d0e-4b4e-9d9f-0a3e1c1c{agent:04}/messages");
        let status = proxy.post(&path, "{\"input\":\"x\"}").await.status;
        assert!(status == 504 || status == 429, "Letta's own answer passes: {status}");
    }
    for replica in [&a, &b] {
        let series = format!("letta_gateway_upstream_ejections_total{{upstream=\"{}\"}}", replica.address);
        assert_eq!(proxy.metric(&series).await, 0.0);
    }
}

#[tokio::test]
async fn a_replica_that_answers_503_is_ejected_but_never_the_last_one() {
    let ill =
        Replica::start(|_| Reply::Json(503, "{\"detail\":\"The database is temporarily unavailable\"}".into())).await;
    let well = Replica::start(|_| json("{}")).await;
    let letta = format!(
        "    balance: round_robin\n    servers: [ {{ url: http://{} }}, {{ url: http://{} }} ]\n    ejection: {{ after: 2, duration: 1h }}",
        ill.address, well.address
    );
    let proxy = start(&yaml(&letta, "")).await;
    let mut statuses = Vec::new();
    for _ in 0..20 {
        statuses.push(proxy.get(&format!("/v1/agents/{AGENT}")).await.status);
    }
    assert_eq!(statuses.iter().filter(|status| **status == 503).count(), 2, "{statuses:?}");
    assert_eq!(ill.seen().len(), 2);

    let alone = gateway(&[&ill], "").await;
    for _ in 0..10 {
        assert_eq!(alone.get(&format!("/v1/agents/{AGENT}")).await.status, 503, "the last replica is never left out");
    }
    assert_eq!(ill.seen().len(), 12);
}

#[tokio::test]
async fn a_replica_that_never_answers_is_given_up_in_time() {
    let a = Replica::start(|_| Reply::Hang).await;
    let letta = format!("    servers: [ {{ url: http://{} }} ]\n    timeouts: {{ request: 200ms }}", a.address);
    let proxy = start(&yaml(&letta, "")).await;
    let answer = proxy.get(&format!("/v1/agents/{AGENT}")).await;
    assert_eq!(answer.status, 504);
    assert_eq!(answer.json()["error"]["type"], "upstream_timeout");
    assert_eq!(a.seen().len(), 1, "it may be at work: nobody else is asked");
}

#[tokio::test]
async fn a_full_pool_makes_requests_wait_and_then_says_so() {
    let a = Replica::start(|_| Reply::Hang).await;
    let letta = format!(
        "    servers: [ {{ url: http://{} }} ]\n    pool: {{ max_connections: 1, max_wait: 100ms }}",
        a.address
    );
    let proxy = start(&yaml(&letta, "")).await;
    let path = format!("/v1/agents/{AGENT}");
    let first = proxy.get(&path);
    let second = async {
        a.waits_for(1).await;
        proxy.get(&path).await
    };
    tokio::select! {
        answer = first => panic!("it hangs: {answer:?}"),
        answer = second => {
            assert_eq!(answer.status, 503);
            assert_eq!(answer.json()["error"]["type"], "upstream_busy");
        }
    }
    assert_eq!(a.seen().len(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_connection_and_is_told_apart() {
    let a = Replica::start(|_| Reply::Hang).await;
    let proxy = gateway(&[&a], "").await;
    let mut stream = tokio::net::TcpStream::connect(proxy.address()).await.unwrap();
    let request =
        format!("GET /v1/agents/{AGENT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n", crate::support::KEY);
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
    a.waits_for(1).await;
    drop(stream);
    let log = proxy.log(1).await;
    assert_eq!((log[0]["status"].as_u64(), log[0]["ended_by"].as_str()), (Some(0), Some("client")));
    let series = format!("letta_gateway_upstream_connections{{upstream=\"{}\"}}", a.address);
    proxy.metric_is(&series, 0.0).await;
}

#[tokio::test]
async fn a_large_answer_passes_whole() {
    let large = "x".repeat(3_000_000);
    let body = format!("{{\"large\":\"{large}\"}}");
    let copy = body.clone();
    let a = Replica::start(move |_| json(copy.clone())).await;
    let proxy = gateway(&[&a], "").await;
    let response =
        proxy.open(proxy.request("GET", &format!("/v1/agents/{AGENT}")).body(Default::default()).unwrap()).await;
    assert_eq!(response.headers()["content-length"], body.len().to_string());
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
}
