//! Cross-origin requests: the gateway answers for itself, names the origins of its configuration and no other, and
//! lets them read its refusals too.

use bytes::Bytes;

use crate::support::{AGENT, Answer, KEY, Proxy, Raw, Replica, Reply, gateway, json, nobody, start, yaml};

const APP: &str = "https://app.example.com";
const CORS: &str = "cors: { origins: [\"https://app.example.com\", \"http://localhost:3000\"] }";

fn agent() -> String {
    format!("/v1/agents/{AGENT}")
}

/// What a browser asks before it sends a request with a key.
async fn preflight(proxy: &Proxy, target: &str, origin: &str) -> Answer {
    let request = http::Request::builder()
        .method("OPTIONS")
        .uri(format!("http://{}{target}", proxy.address()))
        .header("origin", origin)
        .header("access-control-request-method", "PATCH")
        .header("access-control-request-headers", "authorization,content-type,x-stainless-lang");
    proxy.send(request.body(Bytes::new()).unwrap()).await
}

/// A request with the usual key from a page of `origin`.
async fn from_page(proxy: &Proxy, origin: &str) -> Answer {
    let request = proxy.request("GET", &agent()).header("origin", origin);
    proxy.send(request.body(Bytes::new()).unwrap()).await
}

/// The values of a list header that may come in several lines.
fn words(answer: &Answer, name: &str) -> Vec<String> {
    let lines = answer.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let mut words: Vec<_> = lines.flat_map(|line| line.split(',')).map(|word| word.trim().to_lowercase()).collect();
    words.sort();
    words
}

fn grants(answer: &Answer) -> Vec<&str> {
    answer.headers.keys().map(|name| name.as_str()).filter(|name| name.starts_with("access-control-")).collect()
}

#[tokio::test]
async fn a_preflight_is_answered_without_key_or_letta() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], CORS).await;
    for target in [agent(), format!("/v1/agents/{AGENT}/messages/stream"), "/agents/".into(), "/v1/tools/".into()] {
        let answer = preflight(&proxy, &target, APP).await;
        assert_eq!((answer.status, answer.text().as_str()), (204, ""), "{target}");
        assert_eq!(answer.header("access-control-allow-origin"), Some(APP));
        assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
        assert_eq!(
            words(&answer, "access-control-allow-methods"),
            ["delete", "get", "head", "patch", "post", "put"],
            "{target}"
        );
        assert_eq!(
            words(&answer, "access-control-allow-headers"),
            ["authorization", "content-type", "x-stainless-lang"]
        );
        assert_eq!(answer.header("access-control-max-age"), Some("600"));
        assert_eq!(
            words(&answer, "vary"),
            ["access-control-request-headers", "access-control-request-method", "origin"]
        );
        assert!(answer.header("x-request-id").is_some());
        assert_eq!(answer.header("www-authenticate"), None);
    }
    assert_eq!(a.count(), 0);
    let log = proxy.log(4).await;
    assert_eq!((&log[0]["status"], log[0].get("upstream"), log[0].get("key")), (&204.into(), None, None));
}

#[tokio::test]
async fn another_origin_is_granted_nothing() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], CORS).await;
    let others = [
        "https://app.example.com.evil.test",
        "https://evil.test",
        "http://app.example.com",
        "https://app.example.com:8443",
        "null",
        "*",
    ];
    for origin in others {
        let refused = preflight(&proxy, &agent(), origin).await;
        assert_eq!((refused.status, refused.json()["error"]["type"].as_str()), (403, Some("policy_origin")));
        assert_eq!(grants(&refused), [""; 0], "{origin}");
        // the browser keeps the answer from the page; without one the same request is anybody's
        let answer = from_page(&proxy, origin).await;
        assert_eq!((answer.status, grants(&answer)), (200, vec![]), "{origin}");
    }
    assert_eq!(a.count(), others.len());
}

#[tokio::test]
async fn an_answer_names_the_origin_that_asked_and_what_it_may_read() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], CORS).await;
    for origin in [APP, "http://localhost:3000"] {
        let answer = from_page(&proxy, origin).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers.get_all("access-control-allow-origin").iter().collect::<Vec<_>>(), [origin]);
        assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
        let exposed = words(&answer, "access-control-expose-headers");
        for name in
            ["x-request-id", "retry-after", "retry-after-ms", "x-ratelimit-remaining", "cache-status", "x-should-retry"]
        {
            assert!(exposed.iter().any(|exposed| exposed == name), "{name} is not in {exposed:?}");
        }
        assert_eq!(words(&answer, "vary"), ["origin"]);
    }
}

/// A cache in between must not hand the answer of one origin, or of none, to another.
#[tokio::test]
async fn every_answer_varies_by_origin_where_origins_are_listed() {
    let a = Replica::start(|_| Reply::Full(200, vec![("vary", "Accept-Encoding")], "{}".into())).await;
    let proxy = gateway(&[&a], CORS).await;
    let without = proxy.get(&agent()).await;
    assert_eq!((words(&without, "vary"), grants(&without)), (vec!["accept-encoding".into(), "origin".into()], vec![]));
    let other = from_page(&proxy, "https://evil.test").await;
    assert_eq!(words(&other, "vary"), ["accept-encoding", "origin"]);
    assert_eq!(words(&from_page(&proxy, APP).await, "vary"), ["accept-encoding", "origin"]);
}

#[tokio::test]
async fn the_origin_may_read_refusals_and_failures() {
    let a = Replica::start(|_| Reply::Json(404, "{\"detail\":\"Agent not found\"}".into())).await;
    let plan = "plans:\n  standard: { rate: { requests: 1, per: 1h, burst: 1 } }";
    let proxy = gateway(&[&a], &format!("{plan}\n{CORS}")).await;
    let readable = |answer: &Answer, status: u16| {
        assert_eq!(answer.status, status, "{}", answer.text());
        assert_eq!(answer.header("access-control-allow-origin"), Some(APP), "{status}");
        assert!(words(answer, "vary").contains(&"origin".into()), "{status}");
    };
    // Letta's own refusal, then the gateway's
    readable(&from_page(&proxy, APP).await, 404);
    let limited = from_page(&proxy, APP).await;
    readable(&limited, 429);
    assert!(words(&limited, "access-control-expose-headers").contains(&"retry-after".into()));
    for (target, key, status) in [
        (agent(), None, 401),
        (agent(), Some("nobody's"), 401),
        (format!("{}/../x", agent()), Some(KEY), 400),
        ("/v1/nothing".into(), Some(KEY), 404),
    ] {
        let mut request =
            http::Request::builder().uri(format!("http://{}{target}", proxy.address())).header("origin", APP);
        if let Some(key) = key {
            request = request.header("x-api-key", key);
        }
        readable(&proxy.send(request.body(Bytes::new()).unwrap()).await, status);
    }
    assert_eq!(a.count(), 1);

    let letta = format!("    servers: [ {{ url: http://{} }} ]", nobody().await);
    readable(&from_page(&start(&yaml(&letta, CORS)).await, APP).await, 503);
}

#[tokio::test]
async fn lettas_own_grants_are_not_handed_on() {
    let a = Replica::start(|_| {
        let letta = vec![
            ("access-control-allow-origin", "*"),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", "TRACE"),
            ("access-control-expose-headers", "x-inner"),
            ("access-control-max-age", "86400"),
            ("content-type", "application/json"),
        ];
        Reply::Full(200, letta, "{}".into())
    })
    .await;
    let proxy = gateway(&[&a], CORS).await;
    let answer = from_page(&proxy, APP).await;
    assert_eq!(answer.headers.get_all("access-control-allow-origin").iter().collect::<Vec<_>>(), [APP]);
    assert_eq!(answer.headers.get_all("access-control-allow-credentials").iter().count(), 1);
    assert!(!words(&answer, "access-control-expose-headers").contains(&"x-inner".into()));
    assert_eq!(answer.header("access-control-allow-methods"), None);
    assert_eq!(answer.header("access-control-max-age"), None);
    assert_eq!(grants(&from_page(&proxy, "https://evil.test").await), [""; 0]);
    // nor where nothing is configured
    assert_eq!(grants(&from_page(&gateway(&[&a], "").await, APP).await), [""; 0]);
}

#[tokio::test]
async fn any_origin_is_a_star_and_takes_no_credentials() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "cors: { origins: [\"*\"] }").await;
    for answer in [from_page(&proxy, "https://anyone.test").await, preflight(&proxy, &agent(), "null").await] {
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
        assert_eq!(answer.header("access-control-allow-credentials"), None);
    }
    assert_eq!(grants(&proxy.get(&agent()).await), [""; 0], "who names no origin needs no grant");
}

#[tokio::test]
async fn without_origins_nobody_is_granted_anything_and_options_is_no_method_of_lettas() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    let refused = preflight(&proxy, &agent(), APP).await;
    assert_eq!((refused.status, grants(&refused)), (403, vec![]));
    // asks what there is, as a browser never does
    let proxy = gateway(&[&a], CORS).await;
    let bare = format!("OPTIONS {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", agent());
    let answer = Raw::of(&proxy.raw(&bare).await);
    assert_eq!(answer.status, 405, "{answer:?}");
    assert_eq!(a.count(), 0);
}

#[tokio::test]
async fn a_cached_answer_is_granted_to_who_asks_now() {
    let a = Replica::start(|_| json(crate::support::letta_answer("hi"))).await;
    let proxy = gateway(&[&a], &format!("cache: {{ agents: [\"*\"] }}\n{CORS}")).await;
    let ask = async |origin: Option<&str>| {
        let mut request =
            proxy.request("POST", &format!("{}/messages", agent())).header("content-type", "application/json");
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        proxy.send(request.body(Bytes::from("{\"input\":\"x\"}")).unwrap()).await
    };
    assert_eq!(ask(Some(APP)).await.header("access-control-allow-origin"), Some(APP));
    for (origin, granted) in [
        (Some("http://localhost:3000"), Some("http://localhost:3000")),
        (Some("https://evil.test"), None),
        (None, None),
        (Some(APP), Some(APP)),
    ] {
        let answer = ask(origin).await;
        assert!(answer.header("cache-status").unwrap().contains("hit"), "{answer:?}");
        assert_eq!(answer.header("access-control-allow-origin"), granted, "{origin:?}");
    }
    assert_eq!(a.count(), 1);
}
