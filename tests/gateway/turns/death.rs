//! A replica that dies: what never left goes to another; what may have started is told, with what became of it, and is
//! never sent twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{
    Client, DONE, HELLO, Letta, Opening, PING, RETRY, RUN, STOP, Sent, WAITING, ended, last_words, messages, post, say,
    streams, turning, word, write,
};
use crate::support::{AGENT, Reply, Seen, json, letta_answer, nobody, start, until, yaml};

/// What both replicas know of the one run, for they share a database.
#[derive(Clone)]
struct Book(Arc<AtomicUsize>);

const STATUSES: [&str; 5] = ["running", "completed", "failed", "cancelled", "none"];

impl Book {
    fn new(status: &str) -> Self {
        let book = Self(Arc::default());
        book.set(status);
        book
    }

    fn set(&self, status: &str) {
        self.0.store(STATUSES.iter().position(|one| *one == status).unwrap(), Ordering::SeqCst);
    }

    fn answer(&self, seen: &Seen) -> Reply {
        let status = STATUSES[self.0.load(Ordering::SeqCst)];
        let run = format!(
            "{{\"id\":\"{RUN}\",\"agent_id\":\"{AGENT}\",\"status\":\"{status}\",\"created_at\":\"2999-01-01T00:00:00Z\"}}"
        );
        match &*seen.target {
            _ if status == "none" => Reply::Json(404, "{\"detail\":\"Run not found\"}".into()),
            target if target == format!("/v1/runs/{RUN}") => json(run),
            target if target.starts_with("/v1/runs/?") => {
                json(if status == "running" { format!("[{run}]") } else { "[]".into() })
            }
            target if target.ends_with("/messages/cancel") => {
                self.set("cancelled");
                json(format!("{{\"{RUN}\":\"cancelled\"}}"))
            }
            _ => json("{}"),
        }
    }

    async fn letta(&self) -> Letta {
        let book = self.clone();
        Letta::with(move |seen| book.answer(seen)).await
    }

    /// Two replicas, each of which has this book.
    async fn pair(&self) -> Pair {
        Pair(self.letta().await, self.letta().await)
    }
}

struct Pair(Letta, Letta);

impl Pair {
    /// The next send; the replica that has it is the first from then on.
    async fn next(&mut self) -> Sent {
        let (sent, is_second) = tokio::select! {
            sent = self.0.next() => (sent, false),
            sent = self.1.next() => (sent, true),
        };
        if is_second {
            std::mem::swap(&mut self.0, &mut self.1);
        }
        sent
    }

    fn sends(&self) -> usize {
        self.0.sends() + self.1.sends()
    }
}

fn cancels(letta: &Letta) -> usize {
    letta.others().iter().filter(|seen| seen.target.ends_with("/messages/cancel")).count()
}

#[tokio::test]
async fn what_never_left_goes_to_another_replica() {
    let mut letta = Letta::start().await;
    let servers = format!(
        "    balance: round_robin\n    servers: [ {{ url: http://{} }}, {{ url: http://{} }} ]\n    ejection: {{ after: 100 }}",
        nobody().await,
        letta.replica.address
    );
    let proxy = Arc::new(start(&yaml(&servers, "")).await);
    for number in 0..4 {
        let client = Client::says(&proxy, &say(&number.to_string()));
        letta.next().await.answer(json(letta_answer("x")));
        assert_eq!(client.answer().await.status, 200);
    }
    let client = Opening::says(&proxy, HELLO);
    letta.next().await.streams(&[PING, STOP, DONE]).await;
    assert_eq!(client.head().await.rest().await, [PING, STOP, DONE].concat());
    proxy.metric_is(&ended("end_turn"), 5.0).await;
    assert_eq!(letta.sends(), 5);
    for outcome in ["broken", "never_sent"] {
        assert_eq!(proxy.metric(&ended(outcome)).await, 0.0);
    }
}

#[tokio::test]
async fn an_answer_that_never_came_is_told_with_what_became_of_its_run_and_is_not_sent_again() {
    let book = Book::new("running");
    let mut pair = book.pair().await;
    let proxy = turning(&[&pair.0, &pair.1], "").await;
    let client = Client::says(&proxy, HELLO);
    let sent = pair.next().await;
    // the connection is gone, the replica is not
    sent.answer(Reply::Close);
    let lost = client.answer().await;
    assert_eq!((lost.status, lost.header("x-should-retry")), (502, Some("false")));
    let told = lost.json();
    assert_eq!(told["error"]["type"], "upstream_closed");
    let message = told["message"].as_str().unwrap();
    assert!(
        message.contains(RUN) && message.ends_with("was not sent again: it was still running at Letta"),
        "{message}"
    );
    // whoever sends it again all the same is told the same
    let retry = proxy.send(post(&proxy, &messages(), HELLO, RETRY)).await;
    assert_eq!((retry.status, retry.header("x-should-retry"), retry.json()), (502, Some("false"), told));
    assert_eq!(pair.sends(), 1);
    assert_eq!(proxy.metric(&ended("broken")).await, 1.0);
    // the run goes on without the gateway, and its agent is not given another meanwhile
    let next = Client::says(&proxy, &say("next"));
    proxy.metric_is(WAITING, 1.0).await;
    let asked = |letta: &Letta| letta.others().iter().filter(|seen| seen.target == format!("/v1/runs/{RUN}")).count();
    until("the run is waited for", || asked(&pair.0) + asked(&pair.1) >= 2).await;
    assert_eq!((pair.sends(), cancels(&pair.0) + cancels(&pair.1)), (1, 0));
    book.set("completed");
    pair.next().await.answer(json(letta_answer("next")));
    assert_eq!(next.answer().await.text(), letta_answer("next"));
    assert_eq!((pair.sends(), cancels(&pair.0) + cancels(&pair.1)), (2, 0));
}

#[tokio::test]
async fn a_dead_replicas_run_is_cancelled_through_a_living_one_and_the_agent_is_free() {
    let mut pair = Book::new("running").pair().await;
    let proxy = turning(&[&pair.0, &pair.1], "").await;
    let client = Client::says(&proxy, HELLO);
    let _sent = pair.next().await;
    let Pair(dead, mut living) = pair;
    dead.replica.kill();
    let lost = client.answer().await;
    assert_eq!((lost.status, lost.header("x-should-retry")), (502, Some("false")));
    let message = lost.json()["message"].as_str().unwrap().to_owned();
    assert!(message.ends_with("it ended with its replica and was cancelled"), "{message}");
    assert_eq!(cancels(&living), 1);
    let cancel = living.others().into_iter().find(|seen| seen.target.ends_with("/messages/cancel")).unwrap();
    assert_eq!(cancel.body, format!("{{\"run_ids\":[\"{RUN}\"]}}"));
    assert_eq!(proxy.metric("letta_gateway_conflicts_total{kind=\"freed\"}").await, 1.0);
    let retry = proxy.send(post(&proxy, &messages(), HELLO, RETRY)).await;
    assert_eq!((retry.status, living.sends()), (502, 0), "it is not sent again, on no replica");
    let next = Client::says(&proxy, &say("next"));
    let sent = living.next().await;
    assert_eq!(sent.text(), say("next"));
    sent.answer(json(letta_answer("next")));
    assert_eq!(next.answer().await.status, 200);
}

#[tokio::test]
async fn a_stream_that_breaks_off_ends_with_what_became_of_its_run() {
    for (status, told) in [
        ("completed", "it completed at Letta: the answer is in the agent's history"),
        ("failed", "it failed at Letta"),
        ("cancelled", "it was cancelled at Letta"),
        ("running", "it ended with its replica and was cancelled"),
        ("none", "what became of it could not be learned"),
    ] {
        let mut pair = Book::new(status).pair().await;
        let proxy = turning(&[&pair.0, &pair.1], "").await;
        let client = Opening::says(&proxy, HELLO);
        let feed = pair.next().await.stream();
        write(&feed, PING).await;
        write(&feed, &word("half an answer")).await;
        let mut client = client.head().await;
        client.hears("half an answer").await;
        let Pair(dead, living) = pair;
        dead.replica.kill();
        let stream = client.rest().await;
        assert!(stream.starts_with(&[PING, &word("half an answer"), "event: error\n"].concat()), "{stream}");
        let event = last_words(&stream);
        assert_eq!((&event["error_type"], &event["run_id"]), (&"upstream_closed".into(), &RUN.into()));
        let message = event["message"].as_str().unwrap();
        assert!(message.contains(RUN) && message.ends_with(told), "{status}: {message}");
        assert_eq!(cancels(&living), usize::from(status == "running"), "{status}");
        // the retry gets the same, event for event
        let retry = proxy.send(post(&proxy, &streams(), HELLO, RETRY)).await;
        assert_eq!((retry.header("x-turn"), retry.text()), (Some("replayed"), stream));
        assert_eq!(living.sends(), 0, "{status}");
        assert_eq!(proxy.metric(&ended("broken")).await, 1.0);
        assert_eq!(proxy.log(1).await[0]["reason"], "upstream_stream_broken");
    }
}

#[tokio::test]
async fn whoever_has_left_a_lost_turn_learns_of_it_by_the_retry() {
    let mut pair = Book::new("completed").pair().await;
    let proxy = turning(&[&pair.0, &pair.1], "").await;
    let client = Opening::says(&proxy, HELLO);
    let feed = pair.next().await.stream();
    write(&feed, PING).await;
    client.head().await.hears(PING).await;
    proxy.metric_is(super::DETACHED, 1.0).await;
    feed.send(None).await.unwrap();
    proxy.metric_is(&ended("broken"), 1.0).await;
    proxy.metric_is(super::KEPT, 1.0).await;
    let retry = proxy.send(post(&proxy, &streams(), HELLO, RETRY)).await;
    assert_eq!((retry.status, retry.header("x-turn")), (200, Some("replayed")));
    let event = last_words(&retry.text());
    assert!(event["message"].as_str().unwrap().ends_with("in the agent's history"), "{event}");
    assert_eq!(pair.sends(), 1);
}

#[tokio::test]
async fn a_replica_that_says_nothing_for_too_long_is_told_so_and_its_run_is_let_go_on() {
    let book = Book::new("running");
    let mut letta = book.letta().await;
    let servers =
        format!("    servers: [ {{ url: http://{} }} ]\n    timeouts: {{ message: 200ms }}", letta.replica.address);
    let proxy = Arc::new(start(&yaml(&servers, "")).await);
    let client = Client::says(&proxy, HELLO);
    let _sent = letta.next().await;
    let lost = client.answer().await;
    assert_eq!((lost.status, lost.header("x-should-retry")), (504, Some("false")));
    let told = lost.json();
    assert_eq!(told["error"]["type"], "upstream_timeout");
    assert!(told["message"].as_str().unwrap().ends_with("it was still running at Letta"), "{told}");
    let next = Client::says(&proxy, &say("next"));
    proxy.metric_is(WAITING, 1.0).await;
    assert_eq!((letta.sends(), cancels(&letta)), (1, 0));
    book.set("completed");
    letta.next().await.answer(json(letta_answer("next")));
    assert_eq!(next.answer().await.status, 200);
}
