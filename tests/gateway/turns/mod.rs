//! Turns: every message reaches its agent exactly once, in order, and its client learns what became of it.
//!
//! Each send is answered when the test says so, so that what happens meanwhile is the test's to choose.

mod abuse;
mod conflicts;
mod death;
mod dedupe;
mod keepalives;
mod leaving;
mod order;
mod past;
mod resume;
mod truth;

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::support::{AGENT, Answer, Feed, KEY, PATIENCE, Proxy, Replica, Reply, Seen, gateway, json};

pub(super) const RUN: &str = "run-1b4e28ba-2fa1-41d2-883f-0016d3cca427";
pub(super) const PING: &str =
    "data: {\"message_type\":\"ping\",\"run_id\":\"run-1b4e28ba-2fa1-41d2-883f-0016d3cca427\"}\n\n";
pub(super) const STOP: &str = "data: {\"message_type\":\"stop_reason\",\"stop_reason\":\"end_turn\"}\n\n";
pub(super) const USAGE: &str = "data: {\"message_type\":\"usage_statistics\",\"completion_tokens\":3,\"prompt_tokens\":670,\"total_tokens\":673,\"step_count\":1}\n\n";
pub(super) const DONE: &str = "data: [DONE]\n\n";
pub(super) const HELLO: &str = "{\"input\":\"hello\"}";
/// Says that a send is an attempt after the first, as both official clients do.
pub(super) const RETRY: &[(&str, &str)] = &[("x-stainless-retry-count", "1")];

/// An event with a word of the agent's.
pub(super) fn word(word: &str) -> String {
    format!("data: {{\"message_type\":\"assistant_message\",\"content\":\"{word}\"}}\n\n")
}

/// What of a turn the answer says that it is.
pub(super) fn part(answer: &Answer) -> Option<&str> {
    answer.header("x-turn")
}

/// What a message looks like that says `word`.
pub(super) fn say(word: &str) -> String {
    format!("{{\"input\":\"{word}\"}}")
}

pub(super) fn messages() -> String {
    format!("/v1/agents/{AGENT}/messages")
}

pub(super) fn streams() -> String {
    format!("/v1/agents/{AGENT}/messages/stream")
}

pub(super) fn ended(outcome: &str) -> String {
    format!("letta_gateway_turns_total{{outcome=\"{outcome}\"}}")
}

pub(super) fn repeats(how: &str) -> String {
    format!("letta_gateway_turn_repeats_total{{how=\"{how}\"}}")
}

pub(super) const WAITING: &str = "letta_gateway_turns_waiting";
pub(super) const KEPT: &str = "letta_gateway_turns_kept";
pub(super) const DETACHED: &str = "letta_gateway_turns_detached_total";

pub(super) fn is_send(seen: &Seen) -> bool {
    let path = seen.target.split('?').next().unwrap_or_default();
    seen.method == "POST"
        && ["/messages", "/messages/stream", "/chat/completions"].iter().any(|end| path.ends_with(end))
}

/// A replica that answers each send when the test says how.
pub(super) struct Letta {
    pub(super) replica: Replica,
    sends: mpsc::UnboundedReceiver<Sent>,
}

/// A send as the replica has it, still to be answered.
pub(super) struct Sent {
    pub(super) seen: Seen,
    answer: oneshot::Sender<Reply>,
}

impl Letta {
    /// All but sends is answered with `{}`.
    pub(super) async fn start() -> Self {
        Self::with(|_| json("{}")).await
    }

    /// All but sends is answered by `others`.
    pub(super) async fn with(others: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let (sent, sends) = mpsc::unbounded_channel();
        let replica = Replica::start(move |seen| {
            if !is_send(seen) {
                return others(seen);
            }
            let (answer, told) = oneshot::channel();
            // the test may be over
            let _ = sent.send(Sent { seen: seen.clone(), answer });
            Reply::Wait(told)
        });
        Self { replica: replica.await, sends }
    }

    /// The next send that comes.
    pub(super) async fn next(&mut self) -> Sent {
        timeout(PATIENCE, self.sends.recv()).await.expect("no send comes").expect("the replica lives")
    }

    /// How many sends have come.
    pub(super) fn sends(&self) -> usize {
        self.replica.seen().iter().filter(|seen| is_send(seen)).count()
    }

    /// What else was asked, as `METHOD target`.
    pub(super) fn others(&self) -> Vec<Seen> {
        self.replica.seen().into_iter().filter(|seen| !is_send(seen)).collect()
    }
}

impl Sent {
    pub(super) fn answer(self, reply: Reply) {
        assert!(self.answer.send(reply).is_ok(), "the replica has given the send up");
    }

    /// Answers with a stream that the returned feed writes.
    pub(super) fn stream(self) -> Feed {
        let (feed, events) = mpsc::channel(16);
        self.answer(Reply::Stream(events));
        feed
    }

    /// Answers with this stream at once.
    pub(super) async fn streams(self, events: &[&str]) {
        let feed = self.stream();
        for event in events {
            write(&feed, event).await;
        }
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen.body).into_owned()
    }
}

pub(super) async fn write(feed: &Feed, text: &str) {
    feed.send(Some(Bytes::from(text.to_owned()))).await.expect("somebody reads the stream");
}

/// A gateway with these settings of turns.
pub(super) async fn turning(lettas: &[&Letta], turns: &str) -> Arc<Proxy> {
    let replicas: Vec<&Replica> = lettas.iter().map(|letta| &letta.replica).collect();
    Arc::new(gateway(&replicas, &format!("turns: {{ {turns} }}")).await)
}

/// A POST of the key's with these headers more.
pub(super) fn post_as(proxy: &Proxy, key: &str, path: &str, body: &str, headers: &[(&str, &str)]) -> Request<Bytes> {
    let mut request = Request::builder().method("POST").uri(format!("http://{}{path}", proxy.address()));
    request = request.header("authorization", format!("Bearer {key}")).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Bytes::from(body.to_owned())).unwrap()
}

pub(super) fn post(proxy: &Proxy, path: &str, body: &str, headers: &[(&str, &str)]) -> Request<Bytes> {
    post_as(proxy, KEY, path, body, headers)
}

/// A client that waits for its whole answer.
pub(super) struct Client(JoinHandle<Answer>);

impl Client {
    pub(super) fn sends(proxy: &Arc<Proxy>, request: Request<Bytes>) -> Self {
        let proxy = Arc::clone(proxy);
        Self(tokio::spawn(async move { proxy.send(request).await }))
    }

    /// One that says `body` to the agent, and takes JSON.
    pub(super) fn says(proxy: &Arc<Proxy>, body: &str) -> Self {
        Self::sends(proxy, post(proxy, &messages(), body, &[]))
    }

    pub(super) async fn answer(self) -> Answer {
        timeout(PATIENCE, self.0).await.expect("no answer comes").expect("the client does not fail")
    }

    /// Gives up, and its connection with it.
    pub(super) async fn leaves(self) {
        self.0.abort();
        let _ = self.0.await;
    }
}

/// A client that reads its stream as it comes.
pub(super) struct Listener {
    pub(super) head: http::response::Parts,
    body: Incoming,
    read: String,
}

/// A client that has asked for a stream and has no head yet.
pub(super) struct Opening(JoinHandle<Response<Incoming>>);

impl Opening {
    pub(super) fn sends(proxy: &Arc<Proxy>, request: Request<Bytes>) -> Self {
        let proxy = Arc::clone(proxy);
        Self(tokio::spawn(async move { proxy.open(request).await }))
    }

    /// One that says `body` to the agent, and takes a stream.
    pub(super) fn says(proxy: &Arc<Proxy>, body: &str) -> Self {
        Self::sends(proxy, post(proxy, &streams(), body, &[]))
    }

    pub(super) async fn head(self) -> Listener {
        let response = timeout(PATIENCE, self.0).await.expect("no head comes").expect("the client does not fail");
        let (head, body) = response.into_parts();
        Listener { head, body, read: String::new() }
    }

    pub(super) async fn leaves(self) {
        self.0.abort();
        let _ = self.0.await;
    }
}

impl Listener {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Reads on until `text` has come, or the end; false if that was first.
    async fn reads(&mut self, text: Option<&str>) -> bool {
        let reading = async {
            while text.is_none_or(|text| !self.read.contains(text)) {
                match self.body.frame().await {
                    Some(frame) => {
                        let data = frame.expect("the stream does not break").into_data().unwrap_or_default();
                        self.read.push_str(&String::from_utf8_lossy(&data));
                    }
                    None => return false,
                }
            }
            true
        };
        timeout(PATIENCE, reading).await.unwrap_or_else(|_| panic!("{text:?} does not come"))
    }

    /// Reads on until `text` has come; all that has come so far.
    pub(super) async fn hears(&mut self, text: &str) -> &str {
        assert!(self.reads(Some(text)).await, "{text:?} is not in {:?}", self.read);
        &self.read
    }

    /// Reads on until the body breaks off, which it does before its end.
    pub(super) async fn breaks(self) {
        let broken = timeout(PATIENCE, self.body.collect()).await.expect("the body neither ends nor breaks");
        assert!(broken.is_err(), "it ends as if it were whole");
    }

    /// All of the stream.
    pub(super) async fn rest(mut self) -> String {
        self.reads(None).await;
        self.read
    }
}

/// `text` without the comments of an event stream.
pub(super) fn without_comments(text: &str) -> String {
    text.split_inclusive("\n\n").filter(|event| !event.starts_with(':')).collect()
}

/// The one `event: error` of a stream, which is Letta's shape and the last but `[DONE]`.
pub(super) fn last_words(stream: &str) -> serde_json::Value {
    let (_, event) = stream.split_once("event: error\ndata: ").unwrap_or_else(|| panic!("no error: {stream:?}"));
    let (event, rest) = event.split_once("\n\n").unwrap_or_else(|| panic!("half an event: {stream:?}"));
    assert_eq!(rest, DONE, "{stream:?}");
    assert!(!stream.lines().any(|line| line.starts_with("id:") || line.starts_with("retry:")), "{stream:?}");
    let event: serde_json::Value = serde_json::from_str(event).expect("JSON");
    assert_eq!(event["message_type"], "error_message", "{stream:?}");
    event
}
