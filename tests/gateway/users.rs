//! The Letta user a key acts as: always sent, never a client's choice, and never one that Letta does not know, for Letta
//! would take its default user instead and say nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use crate::process::{Process, command};
use crate::support::{AGENT, Answer, Door, Proxy, Replica, Reply, Seen, hash, json, start, yaml};

const ALICE: &str = "user-11111111-1111-4111-8111-111111111111";
const BOB: &str = "user-22222222-2222-4222-8222-222222222222";
const USERS: &str = "/v1/admin/users/";

/// Letta's list of `users`, page by page as it gives it.
fn list(users: &[String], seen: &Seen) -> Reply {
    let query = seen.target.split_once('?').map_or("", |(_, query)| query);
    let of = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let start = of("after").map_or(0, |after| 1 + users.iter().position(|id| id == after).unwrap());
    let limit: usize = of("limit").unwrap().parse().unwrap();
    let page: Vec<_> =
        users[start..].iter().take(limit).map(|id| serde_json::json!({ "id": id, "name": "n" })).collect();
    json(serde_json::to_string(&page).unwrap())
}

/// A replica that knows these users.
async fn knowing(users: &[&str]) -> Replica {
    let users: Vec<String> = users.iter().map(ToString::to_string).collect();
    Replica::start(move |seen| if seen.target.starts_with(USERS) { list(&users, seen) } else { json("{}") }).await
}

/// A gateway's YAML with a key for each user, which is its text too.
fn acting_as(replica: &Replica, users: &[&str]) -> String {
    let letta = format!("    servers: [ {{ url: http://{} }} ]\n    password: sesame", replica.address);
    let keys: String = users
        .iter()
        .map(|user| {
            let hash = hash(user);
            format!("  - {{ id: as-{user}, hash: \"sha256:{hash}\", scopes: [read, message], letta_user: {user} }}\n")
        })
        .collect();
    yaml(&letta, "").replace("plans:", &format!("{keys}plans:"))
}

async fn ask(door: &Door, key: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = http::Request::builder().uri(format!("http://{}/v1/agents/", door.address()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    door.send(request.header("x-api-key", key).body(Bytes::new()).unwrap()).await
}

/// What the replica saw but for look-ups of users.
fn requests(replica: &Replica) -> Vec<Seen> {
    replica.seen().into_iter().filter(|seen| !seen.target.starts_with(USERS)).collect()
}

fn user(seen: &Seen) -> Vec<&str> {
    seen.headers.get_all("user_id").iter().map(|value| value.to_str().unwrap()).collect()
}

async fn gateway(replica: &Replica, users: &[&str]) -> Proxy {
    start(&acting_as(replica, users)).await
}

#[tokio::test]
async fn each_key_acts_as_its_own_user_whatever_its_client_sends() {
    let a = knowing(&[ALICE, BOB]).await;
    let proxy = gateway(&a, &[ALICE, BOB]).await;
    for (key, other) in [(ALICE, BOB), (BOB, ALICE)] {
        for headers in [
            vec![],
            vec![("user_id", other)],
            vec![("user-id", other), ("USER_ID", other), ("x-user-id", other), ("x_user_id", other)],
            vec![("user_id", other), ("user_id", key)],
            vec![("connection", "user_id"), ("user_id", other)],
        ] {
            assert_eq!(ask(&proxy, key, &headers).await.status, 200);
            let seen = requests(&a).pop().unwrap();
            assert_eq!(user(&seen), [key], "{headers:?}");
            assert!(!format!("{:?}", seen.headers).contains(other), "{:?}", seen.headers);
        }
    }
    // a key without one is the default user's
    assert_eq!(proxy.get("/v1/agents/").await.status, 200);
    assert_eq!(user(&requests(&a).pop().unwrap()), [""; 0]);
}

#[tokio::test]
async fn the_body_of_a_chat_completion_chooses_no_other_user() {
    let a = knowing(&[ALICE]).await;
    let proxy = gateway(&a, &[ALICE]).await;
    let body = format!("{{\"model\":\"{AGENT}\",\"user\":\"{BOB}\",\"messages\":[]}}");
    let request = http::Request::post(format!("http://{}/v1/chat/completions", proxy.address()));
    let request = request.header("x-api-key", ALICE).header("content-type", "application/json");
    assert_eq!(proxy.send(request.body(Bytes::from(body)).unwrap()).await.status, 200);
    let seen = requests(&a).pop().unwrap();
    assert_eq!(
        (user(&seen), &seen.body),
        (vec![ALICE], &Bytes::from(format!("{{\"model\":\"{AGENT}\",\"messages\":[]}}")))
    );
}

#[tokio::test]
async fn a_user_on_a_later_page_is_found_with_the_gateways_own_password() {
    let mut users: Vec<String> = (0..1200).map(|user| format!("user-{user:08}-0000-4000-8000-000000000000")).collect();
    users.push(ALICE.to_owned());
    let a = knowing(&users.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let proxy = gateway(&a, &[ALICE]).await;
    assert_eq!(ask(&proxy, ALICE, &[]).await.status, 200);
    let asked: Vec<_> = a.seen().into_iter().filter(|seen| seen.target.starts_with(USERS)).collect();
    assert!(asked.len() >= 3 && asked.iter().all(|seen| seen.header("authorization") == Some("Bearer sesame")));
}

#[tokio::test]
async fn a_gateway_does_not_start_with_a_user_that_letta_does_not_know() {
    let a = knowing(&[ALICE]).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.yaml");
    std::fs::write(&path, acting_as(&a, &[ALICE, BOB])).unwrap();
    let run = move || command(&["run", "--config", path.to_str().unwrap()]).output().unwrap();
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains(&format!("the key as-{BOB} acts as {BOB}, whom Letta does not know")), "{told}");
    assert!(requests(&a).is_empty());
}

#[tokio::test]
async fn a_reload_with_an_unknown_user_changes_nothing_and_one_with_a_known_user_is_taken_over() {
    let a = knowing(&[ALICE, BOB]).await;
    let process = Process::start(&acting_as(&a, &[ALICE])).await;
    let nobody = "user-33333333-3333-4333-8333-333333333333";
    process.write(&acting_as(&a, &[nobody]));
    process.metric_is("letta_gateway_config_reloads_total{result=\"error\"}", 1.0).await;
    assert_eq!((ask(&process, ALICE, &[]).await.status, ask(&process, nobody, &[]).await.status), (200, 401));
    assert!(process.admin("/readyz").await.text().contains("whom Letta does not know"));
    process.write(&acting_as(&a, &[BOB]));
    process.metric_is("letta_gateway_config_reloads_total{result=\"ok\"}", 1.0).await;
    assert_eq!((ask(&process, ALICE, &[]).await.status, ask(&process, BOB, &[]).await.status), (401, 200));
    assert_eq!(user(&requests(&a).pop().unwrap()), [BOB]);
}

#[tokio::test]
async fn while_no_replica_can_be_asked_the_key_waits_and_all_others_work() {
    let well = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&well);
    let a = Replica::start(move |seen| match seen.target.starts_with(USERS) {
        true if told.load(Ordering::Relaxed) => list(&[ALICE.to_owned()], seen),
        true => Reply::Json(503, "{}".into()),
        false => json("{}"),
    })
    .await;
    let proxy = gateway(&a, &[ALICE]).await;
    let refused = ask(&proxy, ALICE, &[]).await;
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (503, &"gateway_user_unverified".into()));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(requests(&a).is_empty(), "nothing is sent in the default user's name");
    assert_eq!(proxy.get("/v1/agents/").await.status, 200);
    let ready = proxy.admin("/readyz").await;
    assert_eq!((ready.status, &ready.json()["status"]), (200, &"degraded".into()));
    assert_eq!(ready.json()["letta_users"]["unverified"], serde_json::json!([ALICE]));

    well.store(true, Ordering::Relaxed);
    let asking = async {
        while ask(&proxy, ALICE, &[]).await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, asking).await.expect("it asks again by itself");
    assert_eq!(user(&requests(&a).pop().unwrap()), [ALICE]);
    assert_eq!(proxy.admin("/readyz").await.json()["status"], "ready");
}
