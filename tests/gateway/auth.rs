//! Keys: who may do what, and what Letta and the log never see of it.

use std::fmt::Write as _;

use bytes::Bytes;
use letta_gateway::letta::routes::{ROUTES, Route, Scope};

use crate::support::{AGENT, Answer, KEY, Proxy, READER, Replica, gateway, hash, json, start, yaml};

/// A request that brings `headers` and nothing else.
async fn bring(proxy: &Proxy, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = http::Request::builder().method(method).uri(format!("http://{}{target}", proxy.address()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    proxy.send(request.body(Bytes::new()).unwrap()).await
}

#[tokio::test]
async fn a_key_is_taken_wherever_clients_bring_it() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    let (bearer, small, bare) = (format!("Bearer {KEY}"), format!("bearer  {KEY} "), format!("password {KEY}"));
    let ways: [&[(&str, &str)]; 8] = [
        &[("authorization", &bearer)],
        &[("authorization", &small)],
        &[("x-api-key", KEY)],
        &[("x-bare-password", &bare)],
        &[("authorization", &bearer), ("x-api-key", KEY), ("x-bare-password", &bare)],
        // some clients send an empty one beside it, or another scheme
        &[("authorization", "Bearer "), ("x-api-key", KEY)],
        &[("authorization", "Basic eDp5"), ("x-api-key", KEY)],
        &[("x-api-key", KEY), ("x-bare-password", "nothing")],
    ];
    for headers in ways {
        let answer = bring(&proxy, "GET", "/v1/agents/", headers).await;
        assert_eq!(answer.status, 200, "{headers:?}: {}", answer.text());
    }
    let seen = a.seen();
    assert_eq!(seen.len(), ways.len());
    for one in seen {
        for name in ["authorization", "x-api-key", "x-bare-password"] {
            assert_eq!(one.header(name), None, "{:?}", one.headers);
        }
    }
    let log = proxy.log(ways.len()).await;
    assert!(log.iter().all(|line| line["key"] == "team-a"), "{log:?}");
}

/// git knows no bearer keys: it sends its key as the password of the user `letta`, and to git's routes alone.
#[tokio::test]
async fn git_brings_its_key_as_a_password() {
    let a = Replica::start(|_| json("{}")).await;
    let letta = format!("    servers: [ {{ url: http://{} }} ]\n    password: sesame", a.address);
    let proxy = start(&yaml(&letta, "")).await;
    // letta:the-key-of-team-a, somebody:the-key-of-team-a
    let (user, other) = ("Basic bGV0dGE6dGhlLWtleS1vZi10ZWFtLWE=", "Basic c29tZWJvZHk6dGhlLWtleS1vZi10ZWFtLWE=");
    let repository = "/v1/git/agent-1/state.git/info/refs?service=git-upload-pack";
    assert_eq!(bring(&proxy, "GET", repository, &[("authorization", user)]).await.status, 200);
    assert_eq!(a.seen()[0].header("authorization"), Some("Bearer sesame"));
    assert_eq!(bring(&proxy, "GET", repository, &[("authorization", other)]).await.status, 401);
    assert_eq!(bring(&proxy, "GET", "/v1/agents/", &[("authorization", user)]).await.status, 401);
    assert_eq!(a.seen().len(), 1);
}

#[tokio::test]
async fn without_a_key_there_is_only_a_challenge() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    let none: [&[(&str, &str)]; 7] = [
        &[],
        &[("authorization", "")],
        &[("authorization", "Bearer")],
        &[("authorization", "Bearer   ")],
        &[("authorization", KEY)],
        &[("x-bare-password", KEY)],
        &[("cookie", "authorization=the-key-of-team-a")],
    ];
    for headers in none {
        let answer = bring(&proxy, "GET", &format!("/v1/agents/?api_key={KEY}&token={KEY}"), headers).await;
        assert_eq!(answer.status, 401, "{headers:?}");
        assert_eq!(answer.json()["error"]["type"], "policy_key_missing", "{headers:?}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"letta-gateway\""));
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }
    assert!(a.seen().is_empty());
}

#[tokio::test]
async fn a_key_that_is_not_the_whole_key_opens_nothing() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    let digest = hash(KEY);
    let wrong = [
        "the-key-of-team".to_owned(),
        format!("{KEY}x"),
        format!("{KEY} x"),
        KEY.to_uppercase(),
        format!("sha256:{digest}"),
        digest,
        "team-a".to_owned(),
        "x".repeat(4000),
        "\u{e9}".to_owned(),
    ];
    for key in &wrong {
        for (name, value) in [
            ("authorization", format!("Bearer {key}")),
            ("x-api-key", key.clone()),
            ("x-bare-password", format!("password {key}")),
        ] {
            let answer = bring(&proxy, "GET", "/v1/agents/", &[(name, &value)]).await;
            assert_eq!(answer.status, 401, "{name}: {value}");
            assert_eq!(answer.json()["error"]["type"], "policy_key_unknown", "{name}: {value}");
            let challenge = "Bearer realm=\"letta-gateway\", error=\"invalid_token\"";
            assert_eq!(answer.header("www-authenticate"), Some(challenge));
            assert!(!answer.text().contains(key.as_str()), "a refusal repeats no credentials");
        }
    }
    assert!(a.seen().is_empty());
    let log = proxy.log(3 * wrong.len()).await;
    assert!(log.iter().all(|line| line.get("key").is_none() && line["reason"] == "policy_key_unknown"), "{log:?}");
}

#[tokio::test]
async fn two_different_keys_are_refused_whichever_is_good() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = gateway(&[&a], "").await;
    let (good, reader) = (format!("Bearer {KEY}"), format!("password {READER}"));
    let pairs: [&[(&str, &str)]; 4] = [
        &[("authorization", &good), ("x-api-key", READER)],
        &[("authorization", &good), ("x-bare-password", &reader)],
        &[("x-api-key", KEY), ("x-api-key", READER)],
        &[("authorization", &good), ("x-api-key", "unknown")],
    ];
    for headers in pairs {
        let answer = bring(&proxy, "GET", "/v1/agents/", headers).await;
        assert_eq!((answer.status, &answer.json()["error"]["type"]), (400, &"policy_key_conflict".into()));
    }
    assert!(a.seen().is_empty());
}

/// A path that has this template.
fn path(route: &Route) -> String {
    let filled = route.template.replace("{*path}", "x/y").replace("{*endpoint}", "x/y").replace("{agent_id}", AGENT);
    // the newest stream of a conversation is resumed here: another one than that a message goes to is Letta's
    let filled = filled.replace("{conversation_id}/stream", "another-1/stream");
    let parts = filled.split('/').map(|part| if part.starts_with('{') { "some-1" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

/// YAML keys: one for each scope alone, one with all but `admin`.
const SCOPED: [(&str, &[Scope]); 5] = [
    ("read", &[Scope::Read]),
    ("message", &[Scope::Message]),
    ("modify", &[Scope::Modify]),
    ("admin", &[Scope::Admin]),
    ("read, message, modify", &[Scope::Read, Scope::Message, Scope::Modify]),
];

fn scoped_keys() -> String {
    let mut keys = "keys:\n".to_owned();
    for (place, (scopes, _)) in SCOPED.iter().enumerate() {
        let digest = hash(&format!("scoped-{place}"));
        writeln!(keys, "  - {{ id: scoped-{place}, hash: \"sha256:{digest}\", scopes: [{scopes}] }}").unwrap();
    }
    keys + "plans: { standard: {} }\n"
}

#[tokio::test]
async fn every_route_of_letta_takes_its_scope_and_no_other() {
    let a = Replica::start(|_| json("{}")).await;
    let proxy = start(&format!(
        "listeners: [ {{ address: 127.0.0.1:0 }} ]\nadmin: {{ address: 127.0.0.1:0 }}\nupstreams: {{ letta: {{ servers: [ {{ url: http://{} }} ] }} }}\n{}",
        a.address,
        scoped_keys()
    ))
    .await;
    assert!(ROUTES.len() > 250, "all of Letta's routes");
    let mut passed = 0;
    for route in ROUTES.iter().filter(|route| route.scope != Scope::Open) {
        let (method, target) = (route.method.as_str(), path(route));
        for (place, (_, scopes)) in SCOPED.iter().enumerate() {
            let answer = bring(&proxy, method, &target, &[("x-api-key", &format!("scoped-{place}"))]).await;
            let may = scopes.contains(&route.scope) || scopes.contains(&Scope::Admin);
            assert_eq!(answer.status, if may { 200 } else { 403 }, "{method} {target} with {scopes:?}");
            if may {
                passed += 1;
            } else if method != "HEAD" {
                let told = answer.json();
                assert_eq!(told["error"]["type"], "policy_scope_missing", "{method} {target}");
                let needed = format!("`{}`", route.scope.as_str());
                assert!(told["detail"].as_str().unwrap().ends_with(&needed), "{told}");
            }
            assert_eq!(a.count(), passed, "a refusal reaches Letta: {method} {target}");
        }
        // and none of them without a key
        assert_eq!(bring(&proxy, method, &target, &[]).await.status, 401, "{method} {target}");
        assert_eq!(a.count(), passed);
    }
}

/// What runs a caller's code, calls a caller's address or touches the whole server: by name, whatever the table says.
#[tokio::test]
async fn code_running_and_server_wide_routes_need_admin() {
    let a = Replica::start(|_| json("{}")).await;
    let admin = [
        "POST /v1/tools/run",
        "POST /v1/tools/",
        "PUT /v1/tools/",
        "PATCH /v1/tools/tool-1",
        "DELETE /v1/tools/tool-1",
        "POST /v1/tools/mcp/servers/test",
        "POST /v1/tools/mcp/servers/connect",
        "POST /v1/tools/mcp/servers/name/tools/tool/execute",
        "POST /v1/agents/agent-1/tools/name/run",
        "POST /v1/agents/import",
        "POST /v1/mcp-servers/",
        "POST /v1/mcp-servers/mcp-1/tools/tool-1/run",
        "POST /v1/sandbox-config/",
        "POST /v1/sandbox-config/local/recreate-venv",
        "GET /v1/providers/",
        "POST /v1/providers/",
        "POST /v1/anthropic/v1/messages",
        "POST /v1/zai/v1/messages",
        "GET /v1/git/x/y",
        "GET /v1/_internal_runs/",
        "POST /v1/_internal_templates/agents",
        "GET /v1/admin/users/",
        "POST /v1/admin/users/",
        "DELETE /v1/admin/orgs/",
        "GET /openapi.json",
        "GET /docs",
        "GET /",
    ];
    let key = hash("all-but-admin");
    let more =
        format!("  - {{ id: all-but-admin, hash: \"sha256:{key}\", plan: standard, scopes: [read, message, modify] }}");
    let letta = format!("    servers: [ {{ url: http://{} }} ]", a.address);
    let proxy = start(&yaml(&letta, "").replace("plans:", &format!("{more}\nplans:"))).await;
    for route in admin {
        let (method, target) = route.split_once(' ').unwrap();
        let bare = target.strip_prefix("/v1").filter(|_| target.starts_with("/v1/")).map(str::to_owned);
        let others = bare.map(|bare| [format!("/latest{bare}"), bare.clone(), format!("/api{bare}")]);
        for target in std::iter::once(target.to_owned()).chain(others.into_iter().flatten()) {
            let answer = bring(&proxy, method, &target, &[("x-api-key", "all-but-admin")]).await;
            assert_eq!(answer.status, 403, "{method} {target}");
        }
    }
    assert!(a.seen().is_empty(), "{:?}", a.seen());
}

#[tokio::test]
async fn health_and_the_oauth_callback_are_open_to_all() {
    let a = Replica::start(|_| json("{\"open\":true}")).await;
    let letta = format!("    servers: [ {{ url: http://{} }} ]\n    password: sesame", a.address);
    let proxy = start(&yaml(&letta, "")).await;
    let forms = [
        ("/v1/health/", "/v1/health/"),
        ("/v1/health", "/v1/health/"),
        ("/latest/health", "/v1/health/"),
        ("/health", "/v1/health/"),
        ("/api/health/", "/v1/health/"),
        ("/v1/tools/mcp/oauth/callback?code=x&state=y", "/v1/tools/mcp/oauth/callback?code=x&state=y"),
        ("/latest/tools/mcp/oauth/callback/?code=x", "/v1/tools/mcp/oauth/callback?code=x"),
    ];
    let bearer = format!("Bearer {KEY}");
    let credentials: [&[(&str, &str)]; 4] = [
        &[],
        &[("authorization", "Bearer unknown"), ("user_id", "user-1")],
        &[("x-api-key", "unknown"), ("x-bare-password", "password other")],
        &[("authorization", &bearer)],
    ];
    for (target, canonical) in forms {
        for headers in credentials {
            let before = a.seen().len();
            let answer = bring(&proxy, "GET", target, headers).await;
            assert_eq!((answer.status, answer.text().as_str()), (200, "{\"open\":true}"), "{target} {headers:?}");
            let seen = &a.seen()[before];
            assert_eq!(seen.target, canonical);
            assert_eq!(seen.header("authorization"), Some("Bearer sesame"), "the gateway's own word only");
            for name in ["user_id", "x-api-key", "x-bare-password"] {
                assert_eq!(seen.header(name), None, "{name}");
            }
        }
    }
    // only so far
    for (method, target) in [("POST", "/v1/health/"), ("GET", "/v1/health/x"), ("GET", "/v1/tools/mcp/oauth")] {
        let status = bring(&proxy, method, target, &[]).await.status;
        assert!(status == 401 || status == 404 || status == 405, "{method} {target}: {status}");
    }
}

#[tokio::test]
async fn no_credentials_are_ever_told() {
    let a = Replica::start(|_| json("{}")).await;
    let letta = format!("    servers: [ {{ url: http://{} }} ]\n    password: sesame", a.address);
    let proxy = start(&yaml(&letta, "")).await;
    proxy.get("/v1/agents/").await;
    bring(&proxy, "GET", "/v1/agents/", &[("authorization", "Bearer a-wrong-key")]).await;
    bring(&proxy, "POST", "/v1/agents/", &[("x-api-key", READER)]).await;
    let log = format!("{:?}", proxy.log(3).await);
    let metrics = proxy.admin("/metrics").await.text();
    let ready = proxy.admin("/readyz").await.text();
    for secret in [KEY, READER, "a-wrong-key", "sesame", &hash(KEY)[..16]] {
        assert!(!log.contains(secret) && !metrics.contains(secret) && !ready.contains(secret), "{secret}");
    }
    assert_eq!(proxy.metric("letta_gateway_key_requests_total{key=\"team-a\",status=\"2xx\"}").await, 1.0);
    assert_eq!(proxy.metric("letta_gateway_key_requests_total{key=\"reader\",status=\"4xx\"}").await, 1.0);
}

/// The checksum is all the gateway looks at: the key below is configured, but not as it is sent.
#[tokio::test]
async fn a_key_that_was_not_copied_whole_is_told_so_and_nothing_of_it_is_repeated() {
    let a = Replica::start(|_| json("{}")).await;
    let key = letta_gateway::auth::text::written("team_c", &[0x3c; 32]);
    let wrong = key.replacen("3c3c", "3cc3", 1);
    let more = [("good", &key), ("never", &wrong)]
        .map(|(id, key)| format!("  - {{ id: {id}, hash: \"sha256:{}\", scopes: [read] }}\n", hash(key)));
    let letta = format!("    servers: [ {{ url: http://{} }} ]", a.address);
    let proxy = start(&yaml(&letta, "").replace("plans:", &format!("{}plans:", more.concat()))).await;
    assert_eq!(bring(&proxy, "GET", "/v1/agents/", &[("x-api-key", &key)]).await.status, 200);
    let refused = bring(&proxy, "GET", "/v1/agents/", &[("x-api-key", &wrong)]).await;
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (401, &"policy_key_mistyped".into()));
    assert!(refused.header("www-authenticate").is_some() && !refused.text().contains("3c3c"), "{}", refused.text());
    assert_eq!(a.count(), 1);
    assert!(!format!("{:?}", proxy.log(2).await).contains("3c3c"));
}

/// The YAML of a gateway in front of `replica` with these keys more.
fn with_keys(replica: &Replica, keys: &[String]) -> String {
    let letta = format!("    servers: [ {{ url: http://{} }} ]", replica.address);
    let lines: String = keys.iter().map(|key| format!("  - {{ {key}, scopes: [read] }}\n")).collect();
    yaml(&letta, "").replace("plans:", &format!("{lines}plans:"))
}

async fn reason(proxy: &Proxy, key: &str) -> (u16, String) {
    let answer = bring(proxy, "GET", "/v1/agents/", &[("x-api-key", key)]).await;
    (answer.status, answer.json()["error"]["type"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn both_texts_of_a_key_that_is_being_changed_open_the_same_door() {
    let a = Replica::start(|_| json("{}")).await;
    let (old, new) = (hash("old-text"), hash("new-text"));
    let proxy = start(&with_keys(&a, &[format!("id: changing, hashes: [\"sha256:{old}\", \"sha256:{new}\"]")])).await;
    for text in ["old-text", "new-text"] {
        assert_eq!(reason(&proxy, text).await.0, 200);
    }
    assert!(proxy.log(2).await.iter().all(|line| line["key"] == "changing"));
}

#[tokio::test]
async fn a_key_that_is_over_switched_off_or_elsewhere_reaches_nothing() {
    let a = Replica::start(|_| json("{}")).await;
    let key = |id: &str, more: &str| format!("id: {id}, hash: \"sha256:{}\", {more}", hash(id));
    let proxy = start(&with_keys(
        &a,
        &[
            key("over", "expires_at: 2020-01-01T00:00:00Z"),
            key("off", "disabled: true"),
            key("elsewhere", "allowed_ips: [192.0.2.0/24, \"2001:db8::/32\"]"),
            key("here", "allowed_ips: [192.0.2.0/24, 127.0.0.1], expires_at: 2126-01-01T00:00:00Z"),
        ],
    ))
    .await;
    assert_eq!(reason(&proxy, "over").await, (401, "policy_key_expired".into()));
    assert_eq!(reason(&proxy, "off").await, (401, "policy_key_disabled".into()));
    assert_eq!(reason(&proxy, "elsewhere").await, (403, "policy_client_address".into()));
    assert!(a.seen().is_empty());
    assert_eq!(reason(&proxy, "here").await.0, 200);
    // whoever sends a header is nobody else by it
    let forwarded = [("x-api-key", "elsewhere"), ("x-forwarded-for", "192.0.2.7"), ("x-real-ip", "192.0.2.7")];
    assert_eq!(bring(&proxy, "GET", "/v1/agents/", &forwarded).await.status, 403);
    assert_eq!(a.count(), 1);
    let log = proxy.log(5).await;
    assert_eq!(log[0]["key"], "over", "the log tells whose it was: {}", log[0]);
}
