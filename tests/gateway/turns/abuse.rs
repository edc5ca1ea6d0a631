//! Clients that mean harm: nobody makes a turn of another's overlap, hang, or be sent twice.

use std::sync::Arc;

use super::{Client, DONE, HELLO, KEPT, Letta, Opening, RETRY, STOP, ended, messages, post, post_as, say, turning};
use crate::support::{AGENT, COLLEAGUE, Reply, gateway, hash, json, letta_answer};

#[tokio::test]
async fn whatever_is_said_of_a_bodys_coding_and_however_it_is_spelled_the_agents_turns_do_not_overlap() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "").await;
    let first = Client::says(&proxy, HELLO);
    let sent = letta.next().await;
    let (default, chat) = ("/v1/conversations/default/messages", "/v1/chat/completions");
    let to_default = format!("{{\"agent_id\":\"{AGENT}\",\"input\":\"x\",\"streaming\":false}}");
    let to_chat = format!("{{\"model\":\"{AGENT}\",\"messages\":[{{\"role\":\"user\",\"content\":\"x\"}}]}}");
    let identity = [("content-encoding", "identity")];
    let waits = [(default, to_default), (chat, to_chat)]
        .map(|(path, body)| Client::sends(&proxy, post(&proxy, path, &body, &identity)));
    proxy.metric_is(super::WAITING, 2.0).await;
    for (path, body) in [
        (default, format!("{{\"agent_id\":\"{AGENT}\",\"input\":\"x\",\"a\":1,\"a\":1}}")),
        (default, format!("{{\"agent_id\":\"{AGENT}\",\"input\":\"x\",\"a\":NaN}}")),
        (chat, format!("{{\"model\":\"x\",\"model\":\"{AGENT}\",\"messages\":[]}}")),
        (chat, format!("\u{feff}{{\"model\":\"{AGENT}\",\"messages\":[]}}")),
    ] {
        let refused = proxy.send(post(&proxy, path, &body, &[])).await;
        assert_eq!(
            (refused.status, refused.json()["error"]["type"].as_str()),
            (400, Some("client_bad_body")),
            "{body}"
        );
    }
    assert_eq!(letta.sends(), 1, "one at a time, and nothing of what cannot be read");
    sent.answer(json(letta_answer("1")));
    assert_eq!(first.answer().await.status, 200);
    for client in waits {
        letta.next().await.answer(json(letta_answer("2")));
        assert_eq!(client.answer().await.status, 200);
    }
}

#[tokio::test]
async fn whoever_joins_a_turn_that_finds_no_place_is_answered() {
    let mut letta = Letta::start().await;
    let more = "plans:\n  standard: { in_flight: 1 }\n";
    let proxy = Arc::new(gateway(&[&letta.replica], more).await);
    let running = Client::says(&proxy, &say("running"));
    let sent = letta.next().await;
    for round in 0..60 {
        let name = format!("round-{round}");
        let headers = [("idempotency-key", name.as_str())];
        let at_once: Vec<_> =
            (0..8).map(|_| Client::sends(&proxy, post(&proxy, &messages(), &say(&name), &headers))).collect();
        for client in at_once {
            assert_eq!(client.answer().await.status, 429);
        }
    }
    sent.answer(json(letta_answer("done")));
    assert_eq!(running.answer().await.status, 200);
    assert_eq!(letta.sends(), 1);
}

#[tokio::test]
async fn anothers_long_answers_push_out_what_was_answered_but_not_that_it_was() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "max_log: 32KiB, max_total: 64KiB").await;
    let pay = [("idempotency-key", "pay-1")];
    let paying = Client::sends(&proxy, post(&proxy, &messages(), HELLO, &pay));
    letta.next().await.answer(json(letta_answer("paid")));
    assert_eq!(paying.answer().await.status, 200);
    for number in 0..8 {
        let other = Client::sends(&proxy, post_as(&proxy, COLLEAGUE, &messages(), &say(&number.to_string()), &[]));
        letta.next().await.answer(json(letta_answer(&"long ".repeat(5000))));
        assert_eq!(other.answer().await.status, 200);
    }
    proxy.metric_is(&ended("end_turn"), 9.0).await;
    let again = proxy.send(post(&proxy, &messages(), HELLO, &pay)).await;
    assert_eq!((again.status, again.json()["error"]["type"].as_str()), (410, Some("gateway_answer_not_kept")));
    assert_eq!(letta.sends(), 9, "it was not paid twice");
    assert_eq!(proxy.metric(KEPT).await, 9.0);
    let bytes = proxy.metric("letta_gateway_turn_log_bytes").await;
    assert!(bytes <= 65536.0, "{bytes}");
}

#[tokio::test]
async fn a_tenants_background_message_is_not_answered_with_the_run_of_somebody_who_has_its_otid() {
    let mut letta = Letta::start().await;
    let key = "the-key-of-a-tenant";
    let tenant = format!(
        "  - {{ id: tenant, hash: \"sha256:{}\", scopes: [read, message], agents: [\"{AGENT}\"] }}\nplans:",
        hash(key)
    );
    let letta_yaml = format!("    servers: [ {{ url: http://{} }} ]", letta.replica.address);
    let yaml = crate::support::yaml(&letta_yaml, "").replace("plans:", &tenant);
    let proxy = Arc::new(crate::support::start(&yaml).await);
    let path = format!("/v1/conversations/{AGENT}/messages");
    let message = |otid: &str, more: &str| {
        format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"x\",\"otid\":\"{otid}\"}}],\"streaming\":true{more}}}"
        )
    };
    let random = "7d9f2c1a-3b4e-4f5a-8b6c-0d1e2f3a4b5c";
    let background = ",\"background\":true";
    for otid in ["1", "chat-42", "7d9f2c1a-3b4e-1f5a-8b6c-0d1e2f3a4b5c"] {
        let refused = proxy.send(post_as(&proxy, key, &path, &message(otid, background), &[])).await;
        assert_eq!((refused.status, refused.json()["error"]["type"].as_str()), (403, Some("policy_reach")), "{otid}");
    }
    let twice = message("1", ",\"background\":false,\"background\":true");
    assert_eq!(proxy.send(post_as(&proxy, key, &path, &twice, &[])).await.status, 400);
    assert_eq!(letta.sends(), 0);
    for (key, body) in
        [(key, message(random, background)), (key, message("1", "")), (crate::support::KEY, message("1", background))]
    {
        let client = Client::sends(&proxy, post_as(&proxy, key, &path, &body, &[]));
        letta.next().await.answer(Reply::Json(404, "{\"detail\":\"no\"}".into()));
        assert_eq!(client.answer().await.status, 404, "{body}");
    }
}

#[tokio::test]
async fn messages_that_wait_take_one_keys_share_of_the_memory_and_those_whose_answers_have_begun_take_none() {
    let mut letta = Letta::start().await;
    let proxy = turning(&[&letta], "").await;
    // the gateway reads 16 MiB of a message
    let long = say(&"x".repeat(15 * 1024 * 1024));
    let mut named = 0;
    let mut to_another = |key: &str| {
        named += 1;
        let path = format!("/v1/agents/agent-00000000-0000-4000-8000-{named:012}/messages/stream");
        // no repeat needs a place in flight to be read
        post_as(&proxy, key, &path, &long, RETRY)
    };
    let key = crate::support::KEY;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        waiting.push((Opening::sends(&proxy, to_another(key)), letta.next().await));
    }
    let refused = proxy.send(to_another(key)).await;
    assert_eq!((refused.status, refused.json()["error"]["type"].as_str()), (503, Some("gateway_overloaded")));
    assert_eq!(refused.header("retry-after"), Some("1"));
    let other = Opening::sends(&proxy, to_another(COLLEAGUE));
    letta.next().await.streams(&[STOP, DONE]).await;
    assert_eq!(other.head().await.head.status, 200, "another key has its own");
    let mut begun = Vec::new();
    for (opening, sent) in waiting {
        begun.push((sent.stream(), opening.head().await));
    }
    let third = Opening::sends(&proxy, to_another(key));
    letta.next().await.streams(&[STOP, DONE]).await;
    assert_eq!(third.head().await.head.status, 200, "while two streams go on");
    drop(begun);
}
