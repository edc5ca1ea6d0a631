//! The cache in its place below the route, the key and the limits, in front of a scripted Letta.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{AGE, AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use http_body::{Body as HttpBody, Frame};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};
use tower::Layer as _;

use super::status::CACHE_STATUS;
use super::*;
use crate::auth::letta_user::LettaUsers;
use crate::auth::revocations::Revocations;
use crate::auth::{Auth, key};
use crate::body::{Body, Response, Stream};
use crate::error::Error;
use crate::letta::routes::Scope as KeyScope;
use crate::limits::{Limits, Plan, Rate};
use crate::listen::Peer;
use crate::reach::Reacher;
use crate::record::Recorder;
use crate::route::Router;
use crate::step::{Handle, Layer};
use crate::store::{Credentials, RedisSettings, Settings as StoreSettings, Store};
use crate::telemetry::access::AccessLog;
use crate::telemetry::metrics::CacheResult;
use crate::telemetry::record::Sink;
use crate::telemetry::{Metrics, Record};

const AGENT: &str = "/v1/agents/agent-11111111-1111-4111-8111-111111111111/messages";
const OTHER_AGENT: &str = "/v1/agents/agent-22222222-2222-4222-8222-222222222222/messages";
const HELLO: &str = r#"{"messages":[{"role":"user","content":"hello"}]}"#;
const REPLY: &str = r#"{"messages":[{"message_type":"assistant_message","content":"hi"}],"stop_reason":{"message_type":"stop_reason","stop_reason":"end_turn"},"usage":null}"#;
const PROJECT: HeaderName = HeaderName::from_static("x-project-id");

type Script = dyn Fn() -> Response + Send + Sync;

/// Answers every request by its script and remembers the bodies.
#[derive(Clone)]
struct Letta {
    script: Arc<Script>,
    seen: Arc<Mutex<Vec<Bytes>>>,
    /// Told of each request before its body is read.
    arrived: mpsc::UnboundedSender<()>,
}

impl Handle<Forward> for Letta {
    async fn handle(&self, forward: Forward, _: &mut Record) -> Result<Response, Error> {
        self.arrived.send(()).unwrap();
        let (parts, seat) = forward.into_parts();
        let body = parts.request.into_body().collect().await?.to_bytes();
        self.seen.lock().unwrap().push(body);
        let permit = seat.expect("a key has one").take()?;
        Ok((self.script)().map(|body| body.holding(permit)))
    }
}

type Answering = Pin<Box<dyn Future<Output = Response> + Send>>;

/// A gateway whose replica is a script.
struct Gateway {
    answer: Answerer,
    seen: Arc<Mutex<Vec<Bytes>>>,
    arrivals: mpsc::UnboundedReceiver<()>,
    metrics: Arc<Metrics>,
}

type Answerer = Arc<dyn Fn(Request<hyper::body::Incoming>) -> Answering + Send + Sync>;

/// Sends `request` over a connection of its own.
async fn open<B>(answer: &Answerer, request: Request<B>) -> hyper::Result<http::Response<hyper::body::Incoming>>
where
    B: HttpBody<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
{
    let (client, server) = tokio::io::duplex(1 << 16);
    let answer = Arc::clone(answer);
    let service = service_fn(move |request| {
        let answering = answer(request);
        async { Ok::<_, std::convert::Infallible>(answering.await) }
    });
    tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service));
    let (mut send, connection) = http1::handshake(TokioIo::new(client)).await.unwrap();
    tokio::spawn(connection);
    send.send_request(request).await
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn cache_status(&self) -> &str {
        self.headers.get(CACHE_STATUS).map_or("", |value| value.to_str().unwrap())
    }

    fn is_hit(&self) -> bool {
        self.cache_status().starts_with("letta-gateway; hit; ttl=")
    }
}

fn settings() -> Settings {
    Settings {
        agents: vec!["*".into()],
        ttl: Duration::from_hours(1),
        max_entry: 4096,
        max_total: 1 << 20,
        scope: Scope::Key,
    }
}

fn gateway(settings: &Settings, script: impl Fn() -> Response + Send + Sync + 'static) -> Gateway {
    gateway_on(settings, None, script)
}

fn gateway_on(
    settings: &Settings,
    redis: Option<RedisSettings>,
    script: impl Fn() -> Response + Send + Sync + 'static,
) -> Gateway {
    let metrics = Arc::new(Metrics::new());
    let store = StoreSettings { redis, max_entry: settings.max_entry, max_total: settings.max_total };
    let store = Store::new(store, &metrics, None).unwrap();
    let digest = |id| Sha256::digest(format!("key {id}")).into();
    let keys = ["one", "two"].map(|id| key::Settings::new(id, digest(id), "plan", &[KeyScope::Message]));
    let rate = Rate { requests: 1, per: Duration::from_hours(1), burst: 30 };
    let plan = Plan { name: "plan".into(), rates: vec![rate], in_flight: Some(3), ..Plan::default() };

    let (arrived, arrivals) = mpsc::unbounded_channel();
    let seen = Arc::default();
    let letta = Letta { script: Arc::new(script), seen: Arc::clone(&seen), arrived };
    let cache = Layer::new(Cache::new(settings, store, Arc::clone(&metrics), Duration::from_mins(1))).layer(letta);
    let reach = Layer::new(Reacher::new(1 << 20, Duration::from_mins(1), None)).layer(cache);
    let limits = Layer::new(Limits::new(&[plan], &keys, &metrics, None)).layer(reach);
    let auth = Layer::new(Auth::new(&keys, &LettaUsers::default(), &Revocations::default(), &metrics)).layer(limits);
    let route = Layer::new(Router).layer(auth);
    let sink = Sink::new(Arc::clone(&metrics), AccessLog::off());
    let recorder = Arc::new(Recorder::new(sink, |_, _| {}, route));
    let answer = move |request: Request<hyper::body::Incoming>| -> Answering {
        let recorder = Arc::clone(&recorder);
        let peer = Peer { address: ([127, 0, 0, 1], 1).into(), tls: false };
        Box::pin(async move { recorder.answer(recorder.begin(request, peer)).await })
    };
    Gateway { answer: Arc::new(answer), seen, arrivals, metrics }
}

impl Gateway {
    /// The response to `request`, its body still on the way.
    async fn open<B>(&self, request: Request<B>) -> http::Response<hyper::body::Incoming>
    where
        B: HttpBody<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
    {
        open(&self.answer, request).await.unwrap()
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let (head, body) = self.open(request).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status, headers: head.headers, body }
    }

    async fn ask(&self, path: &str, body: &str, headers: &[(HeaderName, &str)]) -> Answer {
        self.send(post(path, "one", body, headers)).await
    }

    async fn hello(&self) -> Answer {
        self.ask(AGENT, HELLO, &[]).await
    }

    fn calls(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    fn count(&self, result: CacheResult) -> f64 {
        let families = self.metrics.registry().gather();
        let family = families.iter().find(|family| family.name() == "letta_gateway_cache_requests_total");
        let metrics = family.map(|family| family.get_metric().to_vec()).unwrap_or_default();
        let of_result = metrics.iter().find(|metric| metric.get_label()[0].value() == result.as_str());
        of_result.map_or(0.0, |metric| metric.get_counter().get_value())
    }
}

fn post(path: &str, key: &str, body: &str, headers: &[(HeaderName, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::post(path)
        .header("host", "gateway")
        .header(CONTENT_TYPE, "application/json")
        .header(AUTHORIZATION, format!("Bearer key {key}"))
        .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
        .unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
    }
    request
}

/// A 200 of JSON.
fn json(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// As it comes from a replica: in pieces.
fn pieces(pieces: Vec<Result<&'static str, Error>>) -> Body {
    Body::stream(Pieces(pieces.into_iter().collect()))
}

fn reply() -> Response {
    let (front, back) = REPLY.split_at(40);
    json(pieces(vec![Ok(front), Ok(back)]))
}

struct Pieces(std::collections::VecDeque<Result<&'static str, Error>>);

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Poll::Ready(
            self.0.pop_front().map(|piece| piece.map(|piece| Frame::data(Bytes::from_static(piece.as_bytes())))),
        )
    }
}

impl Stream for Pieces {}

#[tokio::test]
async fn a_hit_does_not_reach_letta() {
    let gateway = gateway(&settings(), reply);
    let first = gateway.hello().await;
    assert_eq!(first.cache_status(), "letta-gateway; fwd=miss");
    assert_eq!(first.headers[AGE], "0");
    let second = gateway.hello().await;
    assert!(second.is_hit(), "{}", second.cache_status());
    assert_eq!(second.headers[AGE], "0");
    assert_eq!(second.headers[CONTENT_TYPE], "application/json");
    assert_eq!((second.status, &second.body, &first.body), (StatusCode::OK, &first.body, &Bytes::from(REPLY)));
    assert_eq!(gateway.calls(), 1);
    assert_eq!((gateway.count(CacheResult::Miss), gateway.count(CacheResult::Hit)), (1.0, 1.0));
}

#[tokio::test]
async fn letta_gets_the_message_as_it_was_sent() {
    let gateway = gateway(&settings(), reply);
    let odd = "{ \"messages\" :\n[{\"otid\":\"1\",\"role\":\"user\",\"content\":\"hello\"}], \"unknown\": [12] }";
    gateway.ask(AGENT, odd, &[]).await;
    assert_eq!(gateway.seen.lock().unwrap()[0], odd);
}

#[tokio::test]
async fn the_same_message_in_another_form_is_the_same() {
    let gateway = gateway(&settings(), reply);
    gateway.hello().await;
    for form in [
        r#"{"input":"hello"}"#,
        r#"{"messages":[{"content":"hello","role":"user","otid":"7"}]}"#,
        r#"{"messages": [{"role": "user", "content": "hello"}]}"#,
    ] {
        assert!(gateway.ask(AGENT, form, &[]).await.is_hit(), "{form}");
    }
    assert_eq!(gateway.calls(), 1);
}

#[tokio::test]
async fn another_message_agent_query_or_project_is_another_entry() {
    let gateway = gateway(&settings(), reply);
    gateway.hello().await;
    let query = format!("{AGENT}?a=1");
    let more = r#"{"messages":[{"role":"user","content":"hello"}],"max_steps":3}"#;
    for (path, body, headers) in [
        (AGENT, r#"{"messages":[{"role":"user","content":"hello!"}]}"#, &[][..]),
        (AGENT, more, &[]),
        (OTHER_AGENT, HELLO, &[]),
        (&query, HELLO, &[]),
        (AGENT, HELLO, &[(PROJECT, "p")]),
        (AGENT, HELLO, &[(PROJECT, "q")]),
    ] {
        assert_eq!(gateway.ask(path, body, headers).await.cache_status(), "letta-gateway; fwd=miss", "{path} {body}");
        assert!(gateway.ask(path, body, headers).await.is_hit(), "{path} {body}");
    }
    assert_eq!(gateway.calls(), 7);
}

#[tokio::test]
async fn an_answer_is_given_to_no_other_key_unless_keys_share() {
    let own = gateway(&settings(), reply);
    own.hello().await;
    assert_eq!(own.send(post(AGENT, "two", HELLO, &[])).await.cache_status(), "letta-gateway; fwd=miss");
    assert_eq!(own.calls(), 2);

    let shared = gateway(&Settings { scope: Scope::Shared, ..settings() }, reply);
    shared.hello().await;
    assert!(shared.send(post(AGENT, "two", HELLO, &[])).await.is_hit());
    // but who has no key has no answer
    assert_eq!(shared.send(post(AGENT, "three", HELLO, &[])).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_client_may_insist_on_a_fresh_answer() {
    let gateway = gateway(&settings(), reply);
    let told = async |asked: &str| gateway.ask(AGENT, HELLO, &[(CACHE_CONTROL, asked)]).await.cache_status().to_owned();
    // neither kept nor given
    assert_eq!(told("no-store").await, "letta-gateway; fwd=request");
    assert_eq!(gateway.hello().await.cache_status(), "letta-gateway; fwd=miss");
    assert_eq!(told("no-store").await, "letta-gateway; fwd=request");
    assert_eq!(told("no-cache").await, "letta-gateway; fwd=request");
    assert_eq!(told("min-fresh=7200").await, "letta-gateway; fwd=request; detail=older-than-asked-for");
    assert_eq!(gateway.calls(), 5);
    assert!(told("max-age=60").await.starts_with("letta-gateway; hit"));
    assert_eq!(gateway.count(CacheResult::Bypass), 3.0);
}

#[tokio::test]
async fn a_fresh_answer_that_was_insisted_on_is_kept() {
    let gateway = gateway(&settings(), reply);
    assert_eq!(gateway.ask(AGENT, HELLO, &[(CACHE_CONTROL, "no-cache")]).await.status, StatusCode::OK);
    assert!(gateway.hello().await.is_hit());
}

#[tokio::test]
async fn who_wants_a_kept_answer_or_none_does_not_reach_letta() {
    let gateway = gateway(&settings(), reply);
    let only = [(CACHE_CONTROL, "only-if-cached")];
    let refused = gateway.ask(AGENT, HELLO, &only).await;
    assert_eq!(refused.status, StatusCode::GATEWAY_TIMEOUT);
    assert!(refused.body.starts_with(b"{\"detail\":"));
    assert_eq!(gateway.calls(), 0);
    gateway.hello().await;
    assert!(gateway.ask(AGENT, HELLO, &only).await.is_hit());
}

#[tokio::test]
async fn only_the_whole_reply_of_a_finished_turn_is_kept() {
    let broken = || Error::UpstreamClosed { upstream: "a".into(), sent: true, cause: "cut".into() };
    let with = |name: HeaderName, value: &'static str| {
        move || {
            let mut response = reply();
            response.headers_mut().insert(name.clone(), HeaderValue::from_static(value));
            response
        }
    };
    let mut scripts: Vec<(&str, Box<Script>)> = vec![
        ("broken off", Box::new(move || json(pieces(vec![Ok(REPLY), Err(broken())])))),
        ("cut short", Box::new(|| json(pieces(vec![Ok(&REPLY[..REPLY.len() - 1])])))),
        ("no json", Box::new(with(CONTENT_TYPE, "text/event-stream"))),
        ("compressed", Box::new(with(CONTENT_ENCODING, "gzip"))),
        ("not to be stored", Box::new(with(CACHE_CONTROL, "private, no-store"))),
        ("empty", Box::new(|| json(Body::empty()))),
    ];
    scripts.push((
        "not a 200",
        Box::new(|| {
            let mut response = reply();
            *response.status_mut() = StatusCode::ACCEPTED;
            response
        }),
    ));
    let asks = &*REPLY.replace("assistant_message", "approval_request_message").leak();
    scripts.push(("waits for approval", Box::new(move || json(pieces(vec![Ok(asks)])))));
    for stop in ["error", "max_steps", "requires_approval", "cancelled", "llm_api_error"] {
        let text = &*REPLY.replace("end_turn", stop).leak();
        scripts.push((stop, Box::new(move || json(pieces(vec![Ok(text)])))));
    }
    for (what, script) in scripts {
        let gateway = gateway(&settings(), script);
        for _ in 0..2 {
            // one that breaks off ends the connection, maybe before its head was seen
            if let Ok(response) = open(&gateway.answer, post(AGENT, "one", HELLO, &[])).await {
                assert_eq!(response.headers()[CACHE_STATUS], "letta-gateway; fwd=miss", "{what}");
                let _ = response.into_body().collect().await;
            }
        }
        assert_eq!(gateway.calls(), 2, "{what}");
    }
}

#[tokio::test]
async fn a_reply_over_the_bound_passes_whole_and_is_not_kept() {
    let long = || {
        let text = REPLY.replace("hi", &"h".repeat(5000));
        let pieces =
            text.as_bytes().chunks(1000).map(|piece| Ok(std::str::from_utf8(piece).unwrap().to_owned().leak() as &str));
        json(super::tests::pieces(pieces.collect()))
    };
    let gateway = gateway(&settings(), long);
    for _ in 0..2 {
        let answer = gateway.hello().await;
        assert_eq!(answer.body.len(), REPLY.len() - 2 + 5000);
        assert!(!answer.is_hit());
    }
    assert_eq!(gateway.calls(), 2);
}

#[tokio::test]
async fn a_reply_that_is_whole_at_once_is_kept_too() {
    let gateway = gateway(&settings(), || json(Body::whole(REPLY.into())));
    gateway.hello().await;
    assert!(gateway.hello().await.is_hit());
}

#[tokio::test]
async fn a_reply_whose_client_left_is_not_kept() {
    let (pieces, rest) = mpsc::unbounded_channel();
    let rest = Mutex::new(Some(rest));
    let gateway = gateway(&settings(), move || match rest.lock().unwrap().take() {
        Some(rest) => json(Body::stream(Fed(rest))),
        None => reply(),
    });
    let mut response = gateway.open(post(AGENT, "one", HELLO, &[])).await;
    pieces.send(&REPLY[..40]).unwrap();
    // the first piece does not wait for the others
    assert_eq!(response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), &REPLY[..40]);
    drop(response);
    pieces.closed().await;
    assert!(!gateway.hello().await.is_hit());
}

struct Fed(mpsc::UnboundedReceiver<&'static str>);

impl HttpBody for Fed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes())))))
    }
}

impl Stream for Fed {}

#[tokio::test]
async fn a_longer_message_than_is_read_passes_whole() {
    let gateway = gateway(&settings(), reply);
    let long = HELLO.replace("hello", &"h".repeat(300 * 1024));
    for _ in 0..2 {
        let answer = gateway.ask(AGENT, &long, &[]).await;
        assert_eq!(answer.cache_status(), "letta-gateway; fwd=bypass; detail=request-too-long");
    }
    // its length not told before: what was read goes out in front of the rest
    let (send, unknown) = mpsc::unbounded_channel();
    send.send(&*long.clone().leak()).unwrap();
    drop(send);
    let (head, _) = post(AGENT, "one", "", &[]).into_parts();
    let response = gateway.open(Request::from_parts(head, Fed(unknown))).await;
    assert_eq!(response.headers()[CACHE_STATUS], "letta-gateway; fwd=bypass; detail=request-too-long");
    assert!(gateway.seen.lock().unwrap().iter().all(|body| body == long.as_bytes()));
    assert_eq!(gateway.calls(), 3);
}

#[tokio::test]
async fn what_is_no_question_passes_untouched_and_is_not_kept() {
    let gateway = gateway(&settings(), reply);
    let message = |more: &str| format!(r#"{{"messages":[{{"role":"user","content":"hello"{more}}}]}}"#);
    for (body, detail) in [
        (message("}],\"streaming\":true,\"x\":[{"), "stream"),
        (message(",\"approve\":true"), "resumes-a-turn"),
        (message("}],\"callback_url\":\"http://a\",\"x\":[{"), "involves-others"),
        ("not json".into(), "unclear-message"),
        (String::new(), "unclear-message"),
    ] {
        for _ in 0..2 {
            let answer = gateway.ask(AGENT, &body, &[]).await;
            assert_eq!(answer.cache_status(), format!("letta-gateway; fwd=bypass; detail={detail}"), "{body}");
            assert_eq!(gateway.seen.lock().unwrap().last().unwrap(), &body);
        }
    }
    let answer = gateway.ask(AGENT, HELLO, &[(CONTENT_TYPE, "text/plain")]).await;
    assert_eq!(answer.cache_status(), "letta-gateway; fwd=bypass; detail=not-json");
    assert_eq!(gateway.calls(), 11);
}

#[tokio::test]
async fn an_agent_that_is_not_named_costs_nothing() {
    let named = Settings { agents: vec!["agent-1*".into()], ..settings() };
    let mut gateway = gateway(&named, reply);
    for path in [OTHER_AGENT, &format!("{AGENT}/stream")] {
        // the request goes on before any of its body has come
        let (send, unsent) = mpsc::unbounded_channel();
        let (head, _) = post(path, "one", "", &[]).into_parts();
        let (done, opened) = oneshot::channel();
        let opening = async {
            let _ = done.send(open(&gateway.answer, Request::from_parts(head, Fed(unsent))).await);
        };
        let arriving = async {
            gateway.arrivals.recv().await.unwrap();
            send.send(HELLO).unwrap();
            drop(send);
        };
        tokio::join!(opening, arriving);
        assert!(!opened.await.unwrap().unwrap().headers().contains_key(CACHE_STATUS), "{path}");
    }
    assert_eq!(gateway.ask(AGENT, HELLO, &[]).await.cache_status(), "letta-gateway; fwd=miss");
}

#[tokio::test]
async fn a_store_that_is_down_is_told_and_letta_answers() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let redis = RedisSettings {
        url: format!("redis://{unused}"),
        sentinel: Credentials::default(),
        timeout: Duration::from_millis(50),
        prefix: "test:".into(),
        ca_file: None,
    };
    let gateway = gateway_on(&settings(), Some(redis), reply);
    for _ in 0..2 {
        let answer = gateway.hello().await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.cache_status(), "letta-gateway; fwd=miss; detail=store-unavailable");
        assert_eq!(answer.body, REPLY);
    }
    assert_eq!(gateway.count(CacheResult::Unavailable), 2.0);
}

#[tokio::test]
async fn hits_count_against_the_rate_and_tell_what_is_left() {
    let gateway = gateway(&settings(), reply);
    for spent in 1..=30_u32 {
        let answer = gateway.hello().await;
        assert_eq!(answer.headers["x-ratelimit-limit"], "30");
        assert_eq!(answer.headers["x-ratelimit-remaining"], (30 - spent).to_string());
        assert_eq!(answer.headers["x-ratelimit-reset"], (3600 * spent).to_string());
    }
    let refused = gateway.hello().await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers["x-ratelimit-remaining"], "0");
    assert_eq!(gateway.calls(), 1);
}

#[tokio::test]
async fn a_stream_is_in_flight_until_its_last_byte_or_until_its_client_leaves() {
    let (told, mut streams) = mpsc::unbounded_channel();
    let gateway = gateway(&settings(), move || {
        let (pieces, rest) = mpsc::unbounded_channel();
        told.send(pieces).unwrap();
        Response::new(Body::stream(Fed(rest)))
    });
    let stream = format!("{AGENT}/stream");
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(gateway.open(post(&stream, "one", HELLO, &[])).await);
    }
    let refused = gateway.ask(&stream, HELLO, &[]).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(
        (&refused.headers["retry-after"], &refused.headers["x-ratelimit-limit"]),
        (&"1".parse().unwrap(), &"3".parse().unwrap())
    );
    assert_eq!(gateway.calls(), 3);

    // one ends, one is left
    drop(streams.recv().await.unwrap());
    open.remove(0).into_body().collect().await.unwrap();
    drop(open.pop());
    for _ in 0..2 {
        let again = eventually_open(&gateway, &stream).await;
        assert_eq!(again.status(), StatusCode::OK);
        open.push(again);
    }
}

/// Asks until the gateway has seen that the client before has left.
async fn eventually_open(gateway: &Gateway, path: &str) -> http::Response<hyper::body::Incoming> {
    for _ in 0..1000 {
        let response = gateway.open(post(path, "one", HELLO, &[])).await;
        if response.status() != StatusCode::TOO_MANY_REQUESTS {
            return response;
        }
        tokio::task::yield_now().await;
    }
    panic!("no place is given back")
}
