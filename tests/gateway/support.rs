//! A scripted replica, a gateway started from YAML, a client that speaks bytes.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use letta_gateway::app::Gateway;
use letta_gateway::config;
use letta_gateway::telemetry::Metrics;
use letta_gateway::telemetry::access::AccessLog;
use letta_gateway::telemetry::record::Sink;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};

pub(crate) const AGENT: &str = "agent-0f6ed4f5-5d0e-4b4e-9d9f-0a3e1c1c7b11";
pub(crate) const KEY: &str = "the-key-of-team-a";
/// Of another team, with a plan and scopes of its own: read, message.
pub(crate) const COLLEAGUE: &str = "the-key-of-team-b";
pub(crate) const READER: &str = "a-key-that-only-reads";
/// How long a condition may take to come true; reached only by a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A request as a replica saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Counts connections: equal numbers came over one connection.
    pub(crate) connection: usize,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// What a replica does with a request.
pub(crate) enum Reply {
    Json(u16, String),
    /// With headers of its own.
    Full(u16, Vec<(&'static str, &'static str)>, Bytes),
    /// An event stream; each item is one write. Ends when the sender is dropped, is cut when it sends `None`.
    Stream(mpsc::Receiver<Option<Bytes>>),
    /// The same with another content type.
    Pieces(&'static str, mpsc::Receiver<Option<Bytes>>),
    /// JSON that comes after its head, with its length told in that.
    Sized(usize, mpsc::Receiver<Option<Bytes>>),
    /// Answers when the test says what.
    Wait(oneshot::Receiver<Reply>),
    /// The same with a status that is not 200.
    Failing(u16, &'static str, mpsc::Receiver<Option<Bytes>>),
    /// Reads the request and closes the connection.
    Close,
    /// Reads the request and never answers.
    Hang,
}

pub(crate) fn json(body: impl Into<String>) -> Reply {
    Reply::Json(200, body.into())
}

/// Letta's answer to a message.
pub(crate) fn letta_answer(content: &str) -> String {
    format!(
        "{{\"messages\":[{{\"message_type\":\"assistant_message\",\"content\":\"{content}\"}}],\"stop_reason\":{{\"message_type\":\"stop_reason\",\"stop_reason\":\"end_turn\"}},\"usage\":{{\"message_type\":\"usage_statistics\",\"completion_tokens\":3,\"prompt_tokens\":670,\"total_tokens\":673,\"step_count\":1}}}}"
    )
}

/// A replica that does what its script says.
pub(crate) struct Replica {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Replica {
    /// Health checks are answered well and not remembered.
    pub(crate) async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        Self::on(listener, script)
    }

    pub(crate) fn on(listener: TcpListener, script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().expect("bound");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let script: Arc<dyn Fn(&Seen) -> Reply + Send + Sync> = Arc::new(script);
        let log = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            let mut count = 0;
            while let Ok((stream, _)) = listener.accept().await {
                count += 1;
                let (script, log, connection) = (Arc::clone(&script), Arc::clone(&log), count);
                let service = hyper::service::service_fn(move |request| {
                    answer(request, connection, Arc::clone(&script), Arc::clone(&log))
                });
                connections
                    .spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, seen, task }
    }

    /// What it saw, health checks left out.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests it saw.
    pub(crate) fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// Ends it with all its connections, as SIGKILL would.
    pub(crate) fn kill(self) {
        self.task.abort();
    }

    pub(crate) async fn waits_for(&self, requests: usize) {
        until("the replica sees the requests", || self.count() >= requests).await;
    }
}

/// Where a test writes the events of one stream; see [`Reply::Stream`].
pub(crate) type Feed = mpsc::Sender<Option<Bytes>>;

/// A replica that answers messages with a stream each, fed by the test, and all else with `{}`.
pub(crate) async fn streaming() -> (Replica, mpsc::UnboundedReceiver<Feed>) {
    let (begun, feeds) = mpsc::unbounded_channel();
    let replica = Replica::start(move |seen| {
        if !seen.target.contains("/messages") {
            return json("{}");
        }
        let (feed, events) = mpsc::channel(16);
        begun.send(feed).expect("the test takes the feed");
        Reply::Stream(events)
    });
    (replica.await, feeds)
}

async fn answer(
    request: Request<Incoming>,
    connection: usize,
    script: Arc<dyn Fn(&Seen) -> Reply + Send + Sync>,
    log: Arc<Mutex<Vec<Seen>>>,
) -> Result<Response<Script>, std::io::Error> {
    let (head, body) = request.into_parts();
    if head.uri.path() == "/v1/health/" && !head.headers.contains_key("x-request-id") {
        return Ok(Response::new(Script::Whole(Some(Bytes::from_static(b"{\"status\":\"ok\"}")))));
    }
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let seen = Seen { method: head.method, target: head.uri.to_string(), headers: head.headers, body, connection };
    log.lock().unwrap().push(seen.clone());
    let mut reply = script(&seen);
    while let Reply::Wait(told) = reply {
        reply = told.await.unwrap_or(Reply::Close);
    }
    let mut response = match reply {
        Reply::Json(status, body) => {
            let mut response = Response::new(Script::Whole(Some(body.into())));
            *response.status_mut() = status.try_into().unwrap();
            response.headers_mut().insert("content-type", "application/json".parse().unwrap());
            response
        }
        Reply::Full(status, headers, body) => {
            let mut response = Response::new(Script::Whole(Some(body)));
            *response.status_mut() = status.try_into().unwrap();
            for (name, value) in headers {
                response.headers_mut().append(name, value.parse().unwrap());
            }
            response
        }
        Reply::Stream(events) => pieces("text/event-stream; charset=utf-8", events),
        Reply::Pieces(content_type, events) => pieces(content_type, events),
        Reply::Sized(length, events) => {
            let mut response = pieces("application/json", events);
            response.headers_mut().insert("content-length", length.into());
            response
        }
        Reply::Failing(status, content_type, events) => {
            let mut response = pieces(content_type, events);
            *response.status_mut() = status.try_into().unwrap();
            response
        }
        Reply::Close | Reply::Wait(_) => return Err(std::io::Error::other("as the script says")),
        Reply::Hang => std::future::pending().await,
    };
    response.headers_mut().insert("server", "uvicorn".parse().unwrap());
    Ok(response)
}

fn pieces(content_type: &'static str, events: mpsc::Receiver<Option<Bytes>>) -> Response<Script> {
    let mut response = Response::new(Script::Events(events));
    response.headers_mut().insert("content-type", content_type.parse().unwrap());
    response
}

enum Script {
    Whole(Option<Bytes>),
    Events(mpsc::Receiver<Option<Bytes>>),
}

impl Body for Script {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Events(events) => events.poll_recv(cx).map(|event| match event {
                Some(Some(event)) => Some(Ok(Frame::data(event))),
                Some(None) => Some(Err(std::io::Error::other("cut, as the script says"))),
                None => None,
            }),
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Whole(bytes) => http_body::SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Events(_) => http_body::SizeHint::new(),
        }
    }
}

/// A gateway in front of `replicas`, with what `more` adds to its YAML.
pub(crate) async fn gateway(replicas: &[&Replica], more: &str) -> Proxy {
    let servers: Vec<String> =
        replicas.iter().map(|replica| format!("{{ url: http://{} }}", replica.address)).collect();
    let letta = format!("    servers: [ {} ]", servers.join(", "));
    start(&yaml(&letta, more)).await
}

/// The SHA-256 of a key, as the configuration has it.
pub(crate) fn hash(key: &str) -> String {
    hex::encode(Sha256::digest(key))
}

/// The YAML of a usual gateway; `letta` is what stands under `upstreams.letta`.
pub(crate) fn yaml(letta: &str, more: &str) -> String {
    let plans = if more.contains("plans:") {
        ""
    } else {
        "plans:\n  standard: { rate: { requests: 100000, per: 1s, burst: 100000 }, in_flight: 1000 }\n"
    };
    format!(
        "listeners:\n  - address: 127.0.0.1:0\nadmin: {{ address: 127.0.0.1:0 }}\nupstreams:\n  letta:\n{letta}\nkeys:\n  - {{ id: team-a, hash: \"sha256:{}\", plan: standard, scopes: [read, message, modify, admin] }}\n  - {{ id: team-b, hash: \"sha256:{}\", plan: standard, scopes: [read, message] }}\n  - {{ id: reader, hash: \"sha256:{}\", plan: standard, scopes: [read] }}\n{plans}{more}\n",
        hash(KEY),
        hash(COLLEAGUE),
        hash(READER),
    )
}

pub(crate) async fn start(yaml: &str) -> Proxy {
    letta_gateway::listen::install_crypto_provider();
    let settings = config::parse(yaml, Path::new("gateway.yaml"), &|_| None)
        .unwrap_or_else(|problems| panic!("{problems}\n{yaml}"));
    let metrics = Arc::new(Metrics::new());
    let (log, lines) = Lines::new();
    let access = AccessLog::to(log, Arc::clone(&metrics));
    let gateway = Gateway::start_with(&settings, Sink::new(metrics, access)).await.expect("the gateway starts");
    let door = Door::new(gateway.addresses()[0], gateway.admin_address().expect("it has one"));
    Proxy { gateway, lines, door }
}

/// A running gateway.
pub(crate) struct Proxy {
    pub(crate) gateway: Gateway,
    lines: Lines,
    door: Door,
}

impl Deref for Proxy {
    type Target = Door;

    fn deref(&self) -> &Door {
        &self.door
    }
}

impl Proxy {
    /// The access-log lines so far, once there are `count`.
    pub(crate) async fn log(&self, count: usize) -> Vec<serde_json::Value> {
        until("the access log has the lines", || self.lines.read().len() >= count).await;
        self.lines.read()
    }
}

/// How a gateway is reached, wherever it runs.
pub(crate) struct Door {
    address: SocketAddr,
    admin: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Door {
    pub(crate) fn new(address: SocketAddr, admin: SocketAddr) -> Self {
        // asks once: what the gateway does not answer is for the test to see
        let client = Client::builder(TokioExecutor::new()).retry_canceled_requests(false).build_http();
        Self { address, admin, client }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A request with the usual key.
    pub(crate) fn request(&self, method: &str, target: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(format!("http://{}{target}", self.address()))
            .header("authorization", format!("Bearer {KEY}"))
    }

    pub(crate) async fn get(&self, target: &str) -> Answer {
        self.send(self.request("GET", target).body(Bytes::new()).unwrap()).await
    }

    pub(crate) async fn post(&self, target: &str, body: &str) -> Answer {
        let request = self.request("POST", target).header("content-type", "application/json");
        self.send(request.body(Bytes::from(body.to_owned())).unwrap()).await
    }

    pub(crate) async fn send(&self, request: Request<Bytes>) -> Answer {
        Answer::of(self.open(request).await).await
    }

    /// The response with its body still to come.
    pub(crate) async fn open(&self, request: Request<Bytes>) -> Response<Incoming> {
        let answer = tokio::time::timeout(PATIENCE, self.client.request(request.map(Full::new)));
        answer.await.expect("an answer in time").expect("an answer")
    }

    /// Sends bytes as they are; all that comes back until the gateway closes.
    pub(crate) async fn raw(&self, bytes: &str) -> String {
        let stream = TcpStream::connect(self.address()).await.expect("the gateway listens");
        let (mut reads, mut writes) = stream.into_split();
        // a refusal may come, and the connection go, before all is written
        let written = tokio::spawn({
            let bytes = bytes.as_bytes().to_vec();
            async move {
                let _ = writes.write_all(&bytes).await;
                writes
            }
        });
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(PATIENCE, reads.read_to_end(&mut answer)).await.is_ok();
        assert!(closed, "the connection stays open after {bytes:?}");
        drop(written.await);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// GET on the admin listener.
    pub(crate) async fn admin(&self, path: &str) -> Answer {
        let request = Request::builder().uri(format!("http://{}{path}", self.admin)).body(Bytes::new()).unwrap();
        self.send(request).await
    }

    /// The value of one series of /metrics, 0 if it is not there.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let metrics = self.admin("/metrics").await.text();
        let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// All series of /metrics, without comments.
    pub(crate) async fn series(&self) -> Vec<String> {
        let metrics = self.admin("/metrics").await.text();
        metrics.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    /// Waits until a series has this value.
    pub(crate) async fn metric_is(&self, series: &str, value: f64) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while self.metric(series).await != value {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(waited.await.is_ok(), "{series} does not come to {value}");
    }
}

/// A whole response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) async fn of(response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let body = tokio::time::timeout(PATIENCE, body.collect()).await.expect("it ends").expect("a whole body");
        Self { status: head.status.as_u16(), headers: head.headers, body: body.to_bytes() }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A response as bytes: head and body up to the connection's end.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Raw {
    pub(crate) fn of(bytes: &str) -> Self {
        let (head, body) = bytes.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {bytes:?}"));
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(": "));
        Self {
            status: status.unwrap_or_else(|| panic!("no status: {bytes:?}")),
            headers: headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect(),
            body: body.to_owned(),
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(of, _)| of == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Waits for a condition that is to come true by itself.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "in vain: {what}");
}

/// The access log of a test.
#[derive(Clone)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn new() -> (Self, Self) {
        let lines = Self(Arc::default());
        (lines.clone(), lines)
    }

    fn read(&self) -> Vec<serde_json::Value> {
        let text = self.0.lock().unwrap().clone();
        String::from_utf8(text).unwrap().lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect()
    }
}

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An address where nothing listens.
pub(crate) async fn nobody() -> SocketAddr {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    // it stays bound, so that no other test is given its port
    std::mem::forget(socket);
    address
}
