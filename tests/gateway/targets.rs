//! The target, read once and strictly: what could be read in two ways never gets to Letta, and what has several names
//! goes on under Letta's own.

use bytes::Bytes;

use crate::support::{AGENT, KEY, READER, Raw, Replica, gateway, json, letta_answer};

/// A request of the usual key's as bytes, `more` lines of head included.
fn bytes(line: &str, more: &str) -> String {
    format!("{line}\r\n{more}Authorization: Bearer {KEY}\r\nConnection: close\r\n\r\n")
}

/// Sends each of `requests` and expects a refusal in JSON of this status and reason; the replica is to see nothing.
async fn refused(requests: &[(String, u16, &str)]) {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    for (request, status, reason) in requests {
        let answer = Raw::of(&proxy.raw(request).await);
        assert_eq!(answer.status, *status, "{request}\n{answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/json"), "{request}");
        let told = answer.json();
        assert_eq!(told["error"]["type"], *reason, "{request}\n{told}");
        assert!(told["detail"].as_str().is_some_and(|text| text.len() > 10), "{request}\n{told}");
        assert_eq!(told["detail"], told["message"], "{request}");
        assert_eq!(told["detail"], told["error"]["message"], "{request}");
    }
    assert!(a.seen().is_empty(), "Letta saw {:?}", a.seen());
    let log = proxy.log(requests.len()).await;
    assert!(log.iter().all(|line| line.get("upstream").is_none() && line["attempts"] == 0), "{log:?}");
}

#[tokio::test]
async fn a_request_names_one_host_or_goes_nowhere() {
    let line = "GET /v1/agents/ HTTP/1.1";
    let absolute = "GET http://gateway.example/v1/agents/ HTTP/1.1";
    let bad = [
        (line, ""),
        (line, "Host: a\r\nHost: a\r\n"),
        (line, "Host: a\r\nHost: b\r\n"),
        (line, "Host:\r\n"),
        (line, "Host: a b\r\n"),
        (line, "Host: a,b\r\n"),
        (line, "Host: user@a\r\n"),
        (line, "Host: a/v1\r\n"),
        (line, "Host: a:b\r\n"),
        (line, "Host: a%2fb\r\n"),
        (absolute, ""),
        (absolute, "Host: other.example\r\n"),
        (absolute, "Host: gateway.example:8283\r\n"),
        (absolute, "Host: gateway.example\r\nHost: gateway.example\r\n"),
        ("GET http://user@gateway.example/v1/agents/ HTTP/1.1", "Host: gateway.example\r\n"),
        ("GET /v1/agents/ HTTP/1.0", "Host: a\r\nHost: b\r\n"),
    ];
    refused(&bad.map(|(line, hosts)| (bytes(line, hosts), 400, "client_bad_host"))).await;
}

#[tokio::test]
async fn a_path_that_could_be_read_in_two_ways_is_refused() {
    let paths = [
        "/v1//agents/",
        "//v1/agents/",
        "/v1/agents//",
        "/v1/./agents/",
        "/v1/agents/../admin/users/",
        "/v1/agents/..",
        "/v1/../v1/agents/",
        "/v1/agents/%2e%2e/admin/users/",
        "/v1/agents/.%2E/admin/users/",
        "/v1/%2e/agents/",
        "/v1/agents/agent-1%2fmessages",
        "/v1/agents/agent-1%2Fmessages",
        "/v1%2fagents%2f",
        "/v1/agents/agent-1%5cmessages",
        "/v1/git/a/..%2fb",
        "/v1/git/a/%252e%252e/b",
        "/v1/agents/agent-1%00",
        "/v1/agents/agent-1%0d%0aX:%20y",
        "/v1/agents/agent-1%zz",
        "/v1/agents/agent-1%",
        "/v1/agents/agent-1%c0%ae",
        "/v1/agents/agent-1%ff",
        "/v1/agents/a\"b",
        "/v1/agents\\..\\admin",
        "http://x//v1/agents/",
        "http://x/v1/agents/../admin/users/",
        "ftp://x/v1/agents/",
    ];
    let bad = paths.map(|path| (bytes(&format!("GET {path} HTTP/1.1"), "Host: x\r\n"), 400, "client_bad_target"));
    refused(&bad).await;
    refused(&[(bytes("OPTIONS * HTTP/1.1", "Host: x\r\n"), 400, "client_bad_target")]).await;
}

/// The target is judged before the key, so that no refusal tells a stranger which spelling would have passed.
#[tokio::test]
async fn targets_are_judged_before_keys() {
    let without = |line: &str| format!("{line}\r\nHost: x\r\nConnection: close\r\n\r\n");
    refused(&[
        (without("GET /v1/agents/../admin/users/ HTTP/1.1"), 400, "client_bad_target"),
        (without("GET /v1/agents/agent-1%2fmessages HTTP/1.1"), 400, "client_bad_target"),
        (without("TRACE /v1/agents/ HTTP/1.1"), 405, "client_method_not_allowed"),
        (without("GET /v1/nothing HTTP/1.1"), 404, "client_no_such_route"),
        ("GET /v1/agents/ HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), 400, "client_bad_host"),
    ])
    .await;
}

#[tokio::test]
async fn methods_that_are_none_of_lettas_are_refused() {
    let lines = [
        "CONNECT letta.example:443 HTTP/1.1",
        "CONNECT 127.0.0.1:8283 HTTP/1.1",
        "TRACE /v1/agents/ HTTP/1.1",
        "get /v1/agents/ HTTP/1.1",
        "PROPFIND /v1/agents/ HTTP/1.1",
        "DELETE /v1/agents/ HTTP/1.1",
        "POST /v1/health/ HTTP/1.1",
        "GET /v1/conversations/default/stream HTTP/1.1",
    ];
    let bad = lines.map(|line| (bytes(line, "Host: x\r\n"), 405, "client_method_not_allowed"));
    refused(&bad).await;

    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    let answer = Raw::of(&proxy.raw(&bytes(&format!("PUT /agents/{AGENT} HTTP/1.1"), "Host: x\r\n")).await);
    assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, PATCH, DELETE")));
}

#[tokio::test]
async fn what_letta_does_not_have_is_denied() {
    let paths = [
        "/v2/agents/",
        "/V1/agents/",
        "/v1/",
        "/v1",
        "/latest",
        "/api",
        "/v1/v1/agents/",
        "/latest/v1/agents/",
        "/v1/auth",
        "/metrics",
        "/livez",
        "/v1/templates/",
        "/v1/agents;x/",
        "/favicon.ico",
    ];
    let bad = paths.map(|path| (bytes(&format!("GET {path} HTTP/1.1"), "Host: x\r\n"), 404, "client_no_such_route"));
    refused(&bad).await;
}

#[tokio::test]
async fn a_transfer_coding_other_than_chunked_is_refused() {
    let forms = [
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: identity, chunked\r\nContent-Length: 3\r\n",
    ];
    let bad = forms.map(|form| {
        let head = bytes(&format!("POST /v1/agents/{AGENT}/messages HTTP/1.1"), &format!("Host: x\r\n{form}"));
        (format!("{head}0\r\n\r\n"), 400, "client_bad_framing")
    });
    refused(&bad).await;
    let line = format!("POST /v1/agents/{AGENT}/messages HTTP/1.1");
    let expects = bytes(&line, "Host: x\r\nExpect: 103-hints\r\nContent-Length: 0\r\n");
    refused(&[(expects, 400, "client_bad_header")]).await;
}

/// What is no HTTP is refused by the parser, which knows no JSON: 400 and the connection's end.
#[tokio::test]
async fn what_two_parsers_could_read_differently_is_refused_by_the_first() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    let post = format!("POST /v1/agents/{AGENT}/messages HTTP/1.1");
    // behind each refused head waits a request that nobody may ever see
    let smuggled = format!("GET /v1/admin/users/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n");
    let forms = [
        ("", "Content-Length: 4\r\nContent-Length: 5\r\n"),
        ("", "Content-Length: 2, 2\r\n"),
        ("", "Content-Length: +2\r\n"),
        ("", "Content-Length: 0x2\r\n"),
        ("", "Content-Length: -1\r\n"),
        ("", "Transfer-Encoding: xchunked\r\n"),
        ("", "Transfer-Encoding: chunked, identity\r\n"),
        ("", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
        ("", "Transfer-Encoding: identity\r\n"),
        ("", "Transfer-Encoding:\x0bchunked\r\n"),
        ("", "Transfer-Encoding : chunked\r\n"),
        ("", "X: folded\r\n Transfer-Encoding: chunked\r\n"),
        ("", "X: bare\rreturn\r\n"),
        ("", "X: nul\0\r\n"),
        ("", "X y: space in the name\r\n"),
        ("GET /v1/agents/ x HTTP/1.1", ""),
        ("GET v1/agents/ HTTP/1.1", ""),
        ("GET /v1/agents/ HTTP/3.0", ""),
        ("GET  /v1/agents/ HTTP/1.1", ""),
    ];
    for (line, more) in forms {
        let line = if line.is_empty() { post.as_str() } else { line };
        let request = format!("{line}\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n{more}\r\n{smuggled}");
        let answer = proxy.raw(&request).await;
        assert!(answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4"), "{request}\n{answer}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{request}\n{answer}");
    }
    assert!(a.seen().is_empty(), "Letta saw {:?}", a.seen());
}

/// RFC 9112 §6.3: the transfer coding wins, and nothing that comes after it on the connection is read.
#[tokio::test]
async fn a_length_beside_chunked_smuggles_nothing() {
    let a = Replica::start(|seen| json(format!("{}", seen.body.len()))).await;
    let proxy = gateway(&[&a], "").await;
    let smuggled = format!("GET /v1/admin/users/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n");
    let chunked = "5\r\nhello\r\n0\r\n\r\n";
    for framing in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n".to_owned(),
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n".to_owned(),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {}\r\n", chunked.len() + smuggled.len()),
    ] {
        let request = format!(
            "POST /v1/agents/{AGENT}/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n{framing}\r\n{chunked}{smuggled}"
        );
        let answer = proxy.raw(&request).await;
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }
    for seen in a.seen() {
        assert_eq!(seen.target, format!("/v1/agents/{AGENT}/messages"));
        assert_eq!(seen.body, "hello");
        let framings = ["content-length", "transfer-encoding"].map(|name| seen.headers.get_all(name).iter().count());
        assert_eq!(framings.iter().sum::<usize>(), 1, "{:?}", seen.headers);
    }
}

#[tokio::test]
async fn a_body_that_breaks_its_framing_is_the_clients_fault() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    for body in ["xyz\r\nhello\r\n0\r\n\r\n", "5\r\nhello!!\r\n0\r\n\r\n", "0x5\r\nhello\r\n0\r\n\r\n"] {
        let line = format!("POST /v1/agents/{AGENT}/messages HTTP/1.1");
        let head = bytes(&line, "Host: x\r\nTransfer-Encoding: chunked\r\n");
        let answer = Raw::of(&proxy.raw(&format!("{head}{body}")).await);
        assert_eq!(answer.status, 400, "{body:?} {answer:?}");
        assert_eq!(answer.json()["error"]["type"], "client_body_broken", "{body:?}");
    }
    // the replica may have seen the heads; whole requests it has not
    assert!(a.seen().is_empty(), "{:?}", a.seen());
}

#[tokio::test]
async fn every_name_of_a_route_is_one_target_for_letta() {
    let a = Replica::start(|_| json(letta_answer("hi"))).await;
    let proxy = gateway(&[&a], "").await;
    let folder = |before: &str| format!("{before}/agents");
    let names = ["/v1", "/latest", "", "/api", "/api/v1", "/api/latest"];
    let mut asked = 0;
    let mut asks = async |target: String, canonical: &str| {
        let answer = proxy.get(&target).await;
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
        asked += 1;
        let seen = a.seen();
        assert_eq!(seen.len(), asked);
        assert_eq!((seen[asked - 1].method.as_str(), seen[asked - 1].target.as_str()), ("GET", canonical), "{target}");
    };
    for name in names {
        let agents = folder(name);
        asks(agents.clone(), "/v1/agents/").await;
        asks(format!("{agents}/"), "/v1/agents/").await;
        asks(format!("{agents}?limit=1&after=a%2Fb%20..//"), "/v1/agents/?limit=1&after=a%2Fb%20..//").await;
        asks(format!("{agents}/{AGENT}"), &format!("/v1/agents/{AGENT}")).await;
        asks(format!("{agents}/{AGENT}/"), &format!("/v1/agents/{AGENT}")).await;
        asks(format!("{agents}/{AGENT}/messages/?limit=2"), &format!("/v1/agents/{AGENT}/messages?limit=2")).await;
        asks(format!("{name}/health"), "/v1/health/").await;
        asks(format!("{name}/health/?x"), "/v1/health/?x").await;
    }
    asks("/v1/%61gents/%61gent-1".to_owned(), "/v1/agents/agent-1").await;
    asks("/openapi.json/".to_owned(), "/openapi.json").await;
}

#[tokio::test]
async fn every_spelling_of_a_route_has_its_one_scope() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    for target in [
        "/v1/admin/users/",
        "/v1/admin/users",
        "/latest/admin/users",
        "/admin/users/",
        "/api/admin/users",
        "/%61dmin/users",
        "/v1/%61%64%6d%69%6e/users/",
    ] {
        let request = proxy.request("GET", target).header("x-api-key", "").body(Bytes::new()).unwrap();
        let (mut head, body) = request.into_parts();
        head.headers.insert("authorization", format!("Bearer {READER}").parse().unwrap());
        let answer = proxy.send(http::Request::from_parts(head, body)).await;
        assert_eq!(answer.status, 403, "{target}");
    }
    assert!(a.seen().is_empty());
}

#[tokio::test]
async fn an_absolute_target_is_forwarded_in_origin_form() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    let line = "GET http://Gateway.example:80/latest/agents?limit=1 HTTP/1.1";
    let answer = Raw::of(&proxy.raw(&bytes(line, "Host: gateway.example\r\n")).await);
    assert_eq!(answer.status, 200, "{answer:?}");
    let seen = &a.seen()[0];
    assert_eq!((seen.target.as_str(), seen.header("host")), ("/v1/agents/?limit=1", Some("gateway.example")));
}

#[tokio::test]
async fn http_1_0_is_served_with_and_without_host() {
    let a = Replica::start(|_| json("{\"old\":true}")).await;
    let proxy = gateway(&[&a], "").await;
    for host in ["", "Host: gateway.example\r\n"] {
        let request = format!("GET /v1/agents HTTP/1.0\r\n{host}Authorization: Bearer {KEY}\r\n\r\n");
        let answer = Raw::of(&proxy.raw(&request).await);
        assert_eq!((answer.status, answer.body.as_str()), (200, "{\"old\":true}"));
        assert_eq!(answer.header("transfer-encoding"), None, "HTTP/1.0 knows no chunks");
    }
    let seen = a.seen();
    assert!(seen.iter().all(|one| one.target == "/v1/agents/" && one.header("host").is_some()), "{seen:?}");
    assert_eq!(proxy.log(1).await[0]["protocol"], "h1.0");
}

/// Letta's redirect to the other slash form names its own address; no client ever needs it.
#[tokio::test]
async fn no_redirect_between_slash_forms_gets_out() {
    let a = Replica::start(|seen| {
        let collection = seen.target == "/v1/agents/" || seen.target == "/v1/tools/";
        if collection || seen.target.contains(AGENT) && !seen.target.ends_with('/') {
            json("[]")
        } else {
            crate::support::Reply::Full(307, vec![("location", "http://letta.internal:8283/")], Bytes::new())
        }
    })
    .await;
    let proxy = gateway(&[&a], "").await;
    for target in ["/v1/agents", "/v1/agents/", "/agents", "/tools", "/latest/tools/"] {
        let answer = proxy.get(target).await;
        assert_eq!((answer.status, answer.header("location")), (200, None), "{target}");
    }
    for target in [format!("/v1/agents/{AGENT}/"), format!("/agents/{AGENT}/messages/")] {
        let answer = proxy.get(&target).await;
        assert_eq!((answer.status, answer.header("location")), (200, None), "{target}");
    }
}

#[tokio::test]
async fn a_request_head_over_its_bound_is_refused() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    let large = bytes("GET /v1/agents/ HTTP/1.1", &format!("Host: x\r\nX-Large: {}\r\n", "x".repeat(40 << 10)));
    assert!(proxy.raw(&large).await.starts_with("HTTP/1.1 431"));
    let long = bytes(&format!("GET /v1/agents/?{} HTTP/1.1", "x".repeat(40 << 10)), "Host: x\r\n");
    let answer = proxy.raw(&long).await;
    assert!(answer.starts_with("HTTP/1.1 431") || answer.starts_with("HTTP/1.1 414"), "{answer}");
    assert!(a.seen().is_empty());
}
