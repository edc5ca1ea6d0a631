//! A key that is limited to one agent reads, messages, lists, cancels, searches and fetches nothing of another, through
//! any route of Letta's. The replica here would give everything to everybody, and says whose a thing is when asked.

use bytes::Bytes;
use letta_gateway::letta::routes::reach::{Reach, reach};
use letta_gateway::letta::routes::{ROUTES, Route, Scope};

use crate::support::{
    AGENT as OWN, Answer, KEY, PATIENCE, Proxy, Replica, Reply, Seen, hash, json, letta_answer, start, yaml,
};

const OTHER: &str = "agent-99999999-9999-4999-8999-999999999999";
/// Whatever the replica says of the other agent holds it.
const SECRET: &str = "what-only-the-other-agent-knows";
const LIMITED: &str = "the-key-of-one-agent";
const WIDE: &str = "the-key-of-all-agents-that-begin-like-it";

/// The kinds of things with an owner, as their lists and their ids are called.
const KINDS: [(&str, &str); 4] =
    [("conversations", "conv"), ("runs", "run"), ("steps", "step"), ("messages", "message")];

fn is_look_up(seen: &Seen) -> bool {
    let path = seen.target.strip_prefix("/v1/").unwrap_or_default();
    let is_thing = |(list, kind): &(&str, &str)| {
        path.strip_prefix(list)
            .and_then(|rest| rest.strip_prefix('/'))
            .is_some_and(|id| id.starts_with(kind) && !id.contains(['/', '?']))
    };
    seen.method == "GET" && KINDS.iter().any(is_thing)
}

fn letta(seen: &Seen) -> Reply {
    let path = seen.target.split('?').next().unwrap();
    let id = path.rsplit('/').next().unwrap();
    let agent = if id.ends_with("-own") { OWN } else { OTHER };
    let secret = if id.ends_with("-own") { "" } else { SECRET };
    if path.starts_with("/v1/messages/message-") && is_look_up(seen) {
        let run = id.replace("message", "run");
        return json(format!("[{{\"id\":\"{id}\",\"content\":\"{secret}\",\"run_id\":\"{run}\"}}]"));
    }
    if is_look_up(seen) {
        return json(format!("{{\"id\":\"{id}\",\"agent_id\":\"{agent}\",\"text\":\"{secret}\"}}"));
    }
    if seen.method == "GET"
        && matches!(path, "/v1/agents/" | "/v1/runs/" | "/v1/runs/active" | "/v1/steps/" | "/v1/conversations/")
    {
        return json(format!(
            "[{{\"id\":\"{OTHER}\",\"agent_id\":\"{OTHER}\",\"text\":\"{SECRET}\"}},{{\"id\":\"{OWN}\",\"agent_id\":\"{OWN}\"}},{{\"id\":\"x\",\"text\":\"{SECRET}\"}}]"
        ));
    }
    if seen.method == "POST" && path.ends_with("/messages") && path.contains(OWN) {
        return json(letta_answer("hello"));
    }
    json(format!("{{\"text\":\"{SECRET}\"}}"))
}

async fn limited(a: &Replica) -> Proxy {
    let servers = format!("    servers: [ {{ url: http://{} }} ]", a.address);
    let (front, end) = (OWN.split_at(20).0.replacen("agent-0", "agent-?", 1), OWN.split_at(OWN.len() - 3).1);
    let keys = [(LIMITED, OWN.to_owned()), (WIDE, format!("{front}*{end}"))].map(|(key, agents)| {
        let digest = hash(key);
        format!("  - {{ id: {key}, hash: \"sha256:{digest}\", scopes: [read, message, modify, admin], agents: [\"{agents}\"] }}\n")
    });
    start(&yaml(&servers, "").replace("plans:", &format!("{}plans:", keys.concat()))).await
}

async fn ask(proxy: &Proxy, key: &str, method: &str, target: &str, body: &str) -> Answer {
    let request = http::Request::builder().method(method).uri(format!("http://{}{target}", proxy.address()));
    let request = request.header("x-api-key", key).header("content-type", "application/json");
    proxy.send(request.body(Bytes::from(body.to_owned())).unwrap()).await
}

/// A path of `route` with `agent` in place of agents and the things of `whose`.
fn path(route: &Route, agent: &str, whose: &str) -> String {
    let fill = |part: &str| match part {
        "{agent_id}" => agent.to_owned(),
        "{conversation_id}" => format!("conv-{whose}"),
        "{*path}" | "{*endpoint}" => format!("{agent}/x"),
        _ if part.starts_with('{') => format!("{}-{whose}", part.trim_matches(['{', '}']).trim_end_matches("_id")),
        _ => part.to_owned(),
    };
    route.template.split('/').map(fill).collect::<Vec<_>>().join("/")
}

/// What came back tells nothing of the other agent, and Letta was asked nothing but whose things are.
#[track_caller]
fn held(a: &Replica, before: usize, answer: &Answer, what: &str) {
    assert!(!answer.text().contains(SECRET), "{what}: {}", answer.text());
    let seen = &a.seen()[before..];
    assert!(seen.iter().all(is_look_up), "{what} reaches Letta: {seen:?}");
    assert_eq!(answer.status, 403, "{what}: {}", answer.text());
}

fn with_keys() -> impl Iterator<Item = &'static Route> {
    ROUTES.iter().filter(|route| route.scope != Scope::Open)
}

/// The whole table: each route with the other agent, or a thing of its, in every parameter of its path.
#[tokio::test]
async fn no_route_gives_what_its_path_names_of_another_agents() {
    let a = Replica::start(letta).await;
    let proxy = limited(&a).await;
    let mut names = 0;
    for route in with_keys().filter(|route| route.template.contains('{')) {
        if reach(route) == Reach::Nothing {
            continue;
        }
        let (method, target) = (route.method.as_str(), path(route, OTHER, "other"));
        for key in [LIMITED, WIDE] {
            for target in [target.clone(), target.replacen("/v1/", "/latest/", 1), format!("{target}?agent_id={OWN}")] {
                for body in ["", &format!("{{\"agent_id\":\"{OWN}\"}}")] {
                    let before = a.count();
                    let answer = ask(&proxy, key, method, &target, body).await;
                    if method == "HEAD" {
                        assert_eq!((answer.status, a.count()), (403, before));
                    } else {
                        held(&a, before, &answer, &format!("{method} {target} {body}"));
                    }
                    names += 1;
                }
            }
        }
    }
    assert!(names > 1500, "{names}");
}

/// The whole table again: each route with what is the key's own in its path, and the other's in its query or its body.
#[tokio::test]
async fn no_route_gives_what_its_query_or_body_names_of_another_agents() {
    let a = Replica::start(letta).await;
    let proxy = limited(&a).await;
    let named = [
        ("agent_id", OTHER),
        ("agent_ids", OTHER),
        ("conversation_id", "conv-other"),
        ("conversation_id", OTHER),
        ("run_id", "run-other"),
        ("run_ids", "run-other"),
        ("step_id", "step-other"),
        ("agent_id", ""),
        ("run_id", "../agents"),
    ];
    for route in with_keys().filter(|route| reach(route) != Reach::Nothing && route.method != "HEAD") {
        let (method, target) = (route.method.as_str(), path(route, OWN, "own"));
        for (name, value) in named {
            // the owner of its own thing may be asked for, and Letta sees no more than that
            let before = a.count();
            let answer = ask(&proxy, LIMITED, method, &format!("{target}?{name}={value}&agent_id={OWN}"), "").await;
            held(&a, before, &answer, &format!("{method} {target}?{name}={value}"));
            for body in
                [format!("{{\"{name}\":\"{value}\"}}"), format!("{{\"agent_id\":\"{OWN}\",\"{name}\":[\"{value}\"]}}")]
            {
                let before = a.count();
                let answer = ask(&proxy, LIMITED, method, &target, &body).await;
                held(&a, before, &answer, &format!("{method} {target} {body}"));
            }
        }
    }
}

/// The whole table once more, with nothing named at all: what comes back is the key's own or nobody's.
#[tokio::test]
async fn no_route_gives_what_it_was_not_asked_for() {
    let a = Replica::start(letta).await;
    let proxy = limited(&a).await;
    for route in with_keys().filter(|route| !route.template.contains('{') && route.method != "HEAD") {
        let (method, target) = (route.method.as_str(), route.template);
        for key in [LIMITED, WIDE] {
            let before = a.count();
            let answer = ask(&proxy, key, method, target, "").await;
            match reach(route) {
                Reach::Nothing => assert_eq!(answer.status, 200, "{method} {target}"),
                Reach::List(list) => {
                    let items = answer.json();
                    let items = items.as_array().unwrap();
                    assert_eq!((answer.status, items.len()), (200, 1), "{method} {target}: {}", answer.text());
                    assert_eq!(items[0][list.owner], OWN);
                    assert!(!answer.text().contains(OTHER) && !answer.text().contains(SECRET));
                }
                // without an agent Letta does nothing: 422
                Reach::Named => assert!(a.seen()[before..].iter().all(|seen| !seen.target.contains(OTHER))),
                _ => held(&a, before, &answer, &format!("{method} {target}")),
            }
        }
    }
}

#[tokio::test]
async fn an_agent_that_only_the_body_names_is_looked_for_there() {
    let a = Replica::start(letta).await;
    let proxy = limited(&a).await;
    for (target, body) in [
        ("/v1/chat/completions", format!("{{\"model\":\"{OTHER}\",\"messages\":[]}}")),
        ("/chat/completions/", format!("{{\"model\":\"{OWN}\",\"mod\\u0065l\":\"{OTHER}\"}}")),
        ("/v1/messages/batches", format!("{{\"requests\":[{{\"agent_id\":\"{OWN}\"}},{{\"agent_id\":\"{OTHER}\"}}]}}")),
        ("/v1/conversations/default/messages", format!("{{\"agent_id\":\"{OTHER}\"}}")),
        // it is not read from there, so it would be everybody's `default`
        ("/v1/conversations/default/stream", "{}".to_owned()),
        ("/v1/conversations/default/cancel", format!("{{\"agent_id\":\"{OWN}\"}}")),
        (&format!("/v1/conversations/default/stream?agent_id={OWN}"), "{}".to_owned()),
        (&format!("/v1/conversations/{OTHER}/messages"), "{}".to_owned()),
        ("/v1/conversations/conv-own/stream", "{\"otid\":\"x\"}".to_owned()),
        ("/v1/conversations/conv-own/stream", "{\"run_id\":\"run-other\"}".to_owned()),
        (&format!("/v1/conversations/?agent_id={OTHER}"), "{}".to_owned()),
        (&format!("/v1/agents/{OWN}/messages/cancel"), "{\"run_ids\":[\"run-own\",\"run-other\"]}".to_owned()),
    ] {
        let before = a.count();
        let answer = ask(&proxy, LIMITED, "POST", target, &body).await;
        held(&a, before, &answer, &format!("{target} {body}"));
    }
    for field in ["block_ids", "source_ids", "folder_ids", "tool_ids", "message_ids", "identity_ids"] {
        let before = a.count();
        let body = format!("{{\"name\":\"n\",\"{field}\":[\"x-other\"]}}");
        let answer = ask(&proxy, LIMITED, "PATCH", &format!("/v1/agents/{OWN}"), &body).await;
        held(&a, before, &answer, &body);
    }
}

#[tokio::test]
async fn what_is_the_keys_own_passes_as_it_was_sent_and_its_owner_is_asked_for_once() {
    let a = Replica::start(letta).await;
    let proxy = limited(&a).await;
    let body = format!("{{ \"agent_id\" : \"{OWN}\",\"run_id\":\"run-own\" ,\"input\":\"hi\"}}");
    for (method, target, body) in [
        ("GET", format!("/v1/agents/{OWN}"), ""),
        ("POST", format!("/v1/agents/{OWN}/messages"), "{ \"input\" : \"hi\", \"messages\":null}"),
        ("GET", "/v1/runs/run-own/messages?limit=5&after=message-other".to_owned(), ""),
        ("GET", "/v1/steps/step-own".to_owned(), ""),
        ("GET", "/v1/messages/message-own".to_owned(), ""),
        ("POST", "/v1/conversations/conv-own/messages".to_owned(), "{\"streaming\":false}"),
        ("POST", "/v1/conversations/default/messages".to_owned(), &body),
        ("GET", format!("/v1/conversations/default/messages?agent_id={OWN}"), ""),
        ("GET", format!("/v1/agents/{OWN}/messages?conversation_id=conv-own"), ""),
        ("PATCH", format!("/v1/agents/{OWN}"), "{\"name\":\"n\",\"tool_ids\":null,\"project_id\":\"p\"}"),
    ] {
        for _ in 0..2 {
            let answer = ask(&proxy, LIMITED, method, &target, body).await;
            assert_eq!(answer.status, 200, "{method} {target}: {}", answer.text());
            let seen = a.seen().pop().unwrap();
            assert_eq!(
                (seen.method.as_str(), &seen.target, &seen.body),
                (method, &target, &Bytes::from(body.to_owned()))
            );
        }
    }
    let look_ups = |id: &str| a.seen().iter().filter(|seen| seen.target.ends_with(id)).count();
    assert_eq!((look_ups("/runs/run-own"), look_ups("/conversations/conv-own")), (1, 1));
    // its own GET, twice, is one look-up more than it was asked for
    assert_eq!(look_ups("/steps/step-own"), 3);
}

#[tokio::test]
async fn what_is_not_there_is_lettas_to_say() {
    let missing = "{\"detail\":\"Run not found\"}";
    let a = Replica::start(move |seen| if is_look_up(seen) { Reply::Json(404, missing.into()) } else { json(SECRET) })
        .await;
    let proxy = limited(&a).await;
    let answer = ask(&proxy, LIMITED, "GET", "/v1/runs/run-gone/messages", "").await;
    assert_eq!((answer.status, answer.text().as_str()), (404, missing));
    assert_eq!(a.count(), 1);
    // a thing of nobody's is not taken for the key's
    let b =
        Replica::start(|seen| json(if is_look_up(seen) { "{\"agent_id\":null}".into() } else { SECRET.to_owned() }))
            .await;
    let proxy = limited(&b).await;
    assert_eq!(ask(&proxy, LIMITED, "GET", "/v1/runs/run-nobodys/messages", "").await.status, 403);
    assert_eq!(b.count(), 1);
}

#[tokio::test]
async fn a_list_is_asked_for_by_agent_where_letta_can_and_is_looked_through_page_by_page_where_not() {
    // 120 agents, the key's own is the last
    let a = Replica::start(|seen| {
        let query = seen.target.split_once('?').map_or("", |(_, query)| query);
        let of = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let start = of("after").map_or(0, |after| after.trim_start_matches("agent-").parse::<usize>().unwrap() + 1);
        let limit: usize = of("limit").map_or(50, |limit| limit.parse().unwrap());
        let agents = (start..120).map(|agent| if agent == 119 { OWN.to_owned() } else { format!("agent-{agent}") });
        let page: Vec<_> = agents.take(limit).map(|id| format!("{{\"id\":\"{id}\"}}")).collect();
        json(format!("[{}]", page.join(",")))
    })
    .await;
    let proxy = limited(&a).await;
    let answer = ask(&proxy, LIMITED, "GET", "/v1/agents/?name=x", "").await;
    assert_eq!((answer.status, answer.text()), (200, format!("[{{\"id\":\"{OWN}\"}}]")));
    let asked: Vec<_> = a.seen().iter().map(|seen| seen.target.clone()).collect();
    assert_eq!(asked, ["/v1/agents/?name=x", "/v1/agents/?name=x&after=agent-49", "/v1/agents/?name=x&after=agent-99"]);
    // a list without end is refused, not cut off as if it were whole
    let answer = ask(&proxy, LIMITED, "GET", "/v1/agents/?limit=2", "").await;
    assert_eq!((answer.status, &answer.json()["error"]["type"]), (403, &"policy_reach".into()));

    let b = Replica::start(letta).await;
    let proxy = limited(&b).await;
    for (target, asked) in [
        ("/v1/runs/?limit=5", format!("/v1/runs/?limit=5&agent_id={OWN}")),
        ("/v1/runs/active", format!("/v1/runs/active?agent_id={OWN}")),
        ("/v1/conversations/", format!("/v1/conversations/?agent_id={OWN}")),
    ] {
        assert_eq!(ask(&proxy, LIMITED, "GET", target, "").await.status, 200);
        assert_eq!(b.seen().pop().unwrap().target, asked);
    }
}

/// A request is as long as it says, whatever became of its body: were it shorter, Letta would take the next one on the
/// connection for the rest, and with it whatever that has in its head.
#[tokio::test]
async fn no_request_says_that_it_has_a_body_which_it_has_not() {
    let hidden = "DELETE /v1/agents/agent-hidden HTTP/1.1";
    for route in with_keys() {
        let a = Replica::start(letta).await;
        let proxy = limited(&a).await;
        for key in [LIMITED, KEY] {
            let body = format!("{{\"agent_id\":\"{OWN}\",\"x\":\"{}\"}}", "x".repeat(300));
            let path = path(route, OWN, "own");
            let asked = ask(&proxy, key, route.method.as_str(), &path, &body);
            tokio::time::timeout(PATIENCE, asked).await.expect("it is answered");
            let next = http::Request::builder().method("POST");
            let next = next.uri(format!("http://{}/v1/agents/{OWN}/messages", proxy.address()));
            let next = next.header("x-a", hidden).header("x-api-key", LIMITED);
            let answer = proxy.send(next.body(Bytes::from_static(b"{\"input\":\"hi\"}")).unwrap()).await;
            assert_eq!(
                (answer.status, answer.text()),
                (200, letta_answer("hello")),
                "after {} {}",
                route.method,
                route.template
            );
        }
        for seen in a.seen() {
            let told = seen.header("content-length").map(|told| told.parse::<usize>().unwrap());
            assert!(told.is_none_or(|told| told == seen.body.len()), "{} {}: {seen:?}", route.method, route.template);
            assert!(!seen.target.contains("agent-hidden"), "{} {}", route.method, route.template);
        }
    }
}

/// Ways to write a request so that the gateway might read one agent and Letta another.
#[tokio::test]
async fn no_spelling_of_a_target_or_a_header_walks_around_the_check() {
    let a = Replica::start(letta).await;
    let proxy = limited(&a).await;
    let encoded = OTHER.replace('-', "%2D");
    let targets = [
        format!("/v1/agents/{OWN}/../{OTHER}"),
        format!("/v1/agents/{OWN}%2F..%2F{OTHER}"),
        format!("/v1/agents/{OWN}/%2e%2e/{OTHER}"),
        format!("/v1/agents/{OWN}%00{OTHER}"),
        format!("/v1/agents/{OWN}%252F..%252F{OTHER}"),
        format!("/v1//agents/{OTHER}"),
        format!("//v1/agents/{OTHER}"),
        format!("/v1/agents/{encoded}"),
        format!("/v1/%61gents/{encoded}/messages"),
        format!("/latest/agents/{OTHER}"),
        format!("/agents/{OTHER}/messages"),
        format!("/api/agents/{OTHER}/"),
        format!("/v1/agents/{OTHER};{OWN}"),
        format!("/v1/agents/{OTHER}?agent_id={OWN}"),
        format!("/v1/agents/{OWN}/messages?conversation%5Fid={OTHER}"),
        format!("/v1/agents/{OWN}/messages?conversation_id={OWN}&conversation_id={OTHER}"),
        format!("/v1/runs/?agent_ids={OWN}&agent_ids={OTHER}"),
        format!("/v1/runs/%2E%2E%2Fagents%2F{OTHER}"),
        format!("http://elsewhere/v1/agents/{OTHER}"),
    ];
    for target in targets {
        for header in ["", "X-Agent-Id", "X-Letta-Agent-Id", "agent_id", "X-Original-URL", "X-Rewrite-URL"] {
            let more = if header.is_empty() { String::new() } else { format!("{header}: {OWN}\r\n") };
            let host = if target.starts_with("http:") { "elsewhere" } else { "g" };
            let answer = proxy
                .raw(&format!(
                    "GET {target} HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {LIMITED}\r\n{more}Connection: close\r\n\r\n"
                ))
                .await;
            let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
            assert!(["400", "403", "404"].contains(&&*status), "{target} {header}: {answer}");
            assert!(!answer.contains(SECRET));
        }
    }
    assert!(a.seen().is_empty(), "{:?}", a.seen());
    // a body in another framing is read all the same
    let body = format!("{{\"agent_id\":\"{OTHER}\"}}");
    let chunks = format!("{:x}\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n", 5, &body[..5], body.len() - 5, &body[5..]);
    let head = format!(
        "POST /v1/conversations/default/messages HTTP/1.1\r\nHost: g\r\nX-API-Key: {LIMITED}\r\nConnection: close\r\n"
    );
    let answer = proxy.raw(&format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunks}")).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    // nor does a body that only another reader would understand
    for body in ["\u{feff}{}", "a=b", "{} {}", "[{}]"] {
        let answer = ask(&proxy, LIMITED, "POST", "/v1/conversations/default/messages", body).await;
        assert_eq!(answer.status, 400, "{body}");
    }
    assert!(a.seen().is_empty(), "{:?}", a.seen());
}
