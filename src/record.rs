//! The outermost step: a request's id and clock, one access-log line, one count. The only place that turns an
//! [`Error`] into a response.
//!
//! Nothing that came in as a request goes unrecorded: the [`Record`] is made before anything is checked and goes out
//! with the response's body, or is dropped with the request when the client leaves first.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use hyper::body::Incoming;
use serde::Serialize;
use tokio::time::Instant;

use crate::body::{Body, Request, RequestBody, Response};
use crate::boxed;
use crate::crowd::{gather, gather_woken};
use crate::error::{Error, Refusal, whole_seconds};
use crate::listen::{Peer, Unwanted};
use crate::step::Handle;
use crate::telemetry::Record;
use crate::telemetry::record::Sink;

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Never sent: what an id is made of is a header value.
const UNNAMED: HeaderValue = HeaderValue::from_static("none");
/// A request id longer than this is replaced by one of the gateway's own.
const LONGEST_REQUEST_ID: usize = 128;
/// The official Python client takes no `Retry-After` over 60 s, the TypeScript one sleeps through any.
const LONGEST_WORTH_WAITING: u64 = 60;

/// A request as the listener handed it over; who sent it is in its record.
pub struct Received {
    pub request: Request,
}

/// A request whose record has begun.
pub struct Begun {
    record: Box<Record>,
    received: Received,
}

/// Records every request of the steps below.
pub struct Recorder<Next> {
    sink: Arc<Sink>,
    ids: RequestIds,
    next: Next,
    /// What to do to a response's headers for the origin that may read it.
    grant_origin: fn(Option<&HeaderValue>, &mut HeaderMap),
}

impl<Next: Handle<Received>> Recorder<Next> {
    pub fn new(sink: Sink, grant_origin: fn(Option<&HeaderValue>, &mut HeaderMap), next: Next) -> Self {
        Self { sink: Arc::new(sink), ids: RequestIds::new(), next, grant_origin }
    }

    /// Starts the record of `request`. Apart from [`Recorder::answer`], whose future would hold it as it came, too.
    pub fn begin(&self, request: http::Request<Incoming>, peer: Peer) -> Begun {
        let id = self.ids.of(&request);
        let method = request.method().clone();
        let (sink, version) = (Arc::clone(&self.sink), request.version());
        let mut record = boxed::make(|| Record::new(sink, id, peer.address.ip(), method, version));
        record.is_tls = peer.tls;
        Begun { record, received: Received { request: boxed::make(|| request.map(RequestBody::incoming)) } }
    }

    /// Answers a request, whatever happens.
    pub async fn answer(&self, begun: Begun) -> Response {
        let Begun { mut record, received } = begun;
        let answer = match received.request.extensions().get::<Unwanted>() {
            None => {
                // over HTTP/1 its connection has the task, and is woken at the cutoff
                let has_its_own_task = record.version >= Version::HTTP_2;
                let handled = pin!(self.next.handle(received, &mut record));
                self.sink.cutoff.before(has_its_own_task, handled).await
            }
            Some(Unwanted::Late) => Some(Err(Error::Draining)),
            Some(Unwanted::Plain) => Some(Err(Error::PlainHttp)),
        };
        let answer = answer.unwrap_or_else(|| Err(cut_off(&record)));
        let mut response = answer.unwrap_or_else(|error| {
            record.failed(&error);
            refuse(&error, &record)
        });
        record.status = response.status().as_u16();
        response.headers_mut().insert(X_REQUEST_ID, record.request_id.clone());
        (self.grant_origin)(record.origin.as_ref(), response.headers_mut());
        let under_way = self.sink.metrics.in_flight.get();
        match record.answered {
            // hyper has woken this task already, if a replica's answer came whole
            Some(_) => gather_woken(under_way).await,
            None => gather(under_way).await,
        }
        record.responded = Some(Instant::now());
        response.map(|body| body.watched(record))
    }
}

/// Why a request has no answer when the drain time is over.
fn cut_off(record: &Record) -> Error {
    let may_be_sent = match &record.turn {
        Some((_, facts)) => facts.upstream().is_some(),
        None => record.sent.is_some(),
    };
    if may_be_sent { Error::CutOff } else { Error::Draining }
}

/// The gateway's own answer, in a shape both official clients and Letta's own users read.
fn refuse(error: &Error, record: &Record) -> Response {
    #[derive(Serialize)]
    struct Answer<'a> {
        detail: &'a str,
        error: Inner<'a>,
        message: &'a str,
    }
    #[derive(Serialize)]
    struct Inner<'a> {
        r#type: &'static str,
        message: &'a str,
        /// The limit that refused.
        #[serde(skip_serializing_if = "Option::is_none")]
        window: Option<&'a str>,
        /// Whose limit it is.
        #[serde(skip_serializing_if = "Option::is_none")]
        scope: Option<&'static str>,
    }
    let text = error.to_string();
    let (window, scope) = match error {
        Error::Limited(refusal) => (Some(&*refusal.name), Some(refusal.whose.as_str())),
        _ => (None, None),
    };
    let inner = Inner { r#type: error.reason(), message: &text, window, scope };
    let answer = Answer { detail: &text, error: inner, message: &text };
    let json = serde_json::to_vec(&answer).unwrap_or_default();
    let mut response = http::Response::new(Body::whole(Bytes::from(json)));
    *response.status_mut() = error.status();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    match error {
        Error::KeyMissing => {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"letta-gateway\""));
        }
        Error::KeyUnknown | Error::KeyMistyped | Error::KeyDisabled | Error::KeyExpired | Error::KeyRevoked => {
            let challenge = HeaderValue::from_static("Bearer realm=\"letta-gateway\", error=\"invalid_token\"");
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        Error::MethodNotAllowed { allow } => {
            if let Ok(allow) = HeaderValue::from_str(allow) {
                headers.insert(ALLOW, allow);
            }
        }
        // No second request may follow where one reader and the next disagree, and none is wanted without TLS.
        Error::BadFraming(_) | Error::PlainHttp => {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Error::Limited(refusal) => tell_when(refusal, headers),
        Error::KeylessFull { .. }
        | Error::LaneFull { .. }
        | Error::LaneTimeout { .. }
        | Error::UserUnverified
        | Error::OwnerUnknown
        | Error::StoreDown
        | Error::LimitsUnknown
        | Error::Draining
        | Error::Overloaded { .. }
        | Error::Exhausted { .. }
        | Error::NoUpstream
        | Error::UpstreamBusy { .. } => {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
    // Both official clients send a POST again after any 5xx: once it may have reached Letta they must not.
    if error.status().is_server_error() && !error.never_sent() && !record.method.is_idempotent() {
        headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
    }
    response
}

/// When to come back: in whole seconds rounded up, and in milliseconds for clients that read them.
fn tell_when(refusal: &Refusal, headers: &mut HeaderMap) {
    let seconds = whole_seconds(refusal.retry_after);
    headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    let milliseconds = u64::try_from(refusal.retry_after.as_millis()).unwrap_or(u64::MAX).max(1);
    headers.insert(RETRY_AFTER_MS, HeaderValue::from(milliseconds));
    headers.insert(RATELIMIT_LIMIT, HeaderValue::from(refusal.limit));
    headers.insert(RATELIMIT_REMAINING, HeaderValue::from(refusal.remaining));
    headers.insert(RATELIMIT_RESET, HeaderValue::from(whole_seconds(refusal.reset)));
    headers.insert(RATELIMIT_POLICY, refusal.policy.clone());
    // names of windows are plain words
    if let Ok(left) = HeaderValue::try_from(format!("\"{}\";r={};t={seconds}", refusal.name, refusal.remaining)) {
        headers.insert(RATELIMIT, left);
    }
    if seconds > LONGEST_WORTH_WAITING {
        headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
    }
}

/// Keeps a client's `X-Request-Id` or makes one: 64 random bits of this process, then a count.
struct RequestIds {
    process: u64,
    next: AtomicU64,
}

impl RequestIds {
    fn new() -> Self {
        let mut seed = [0; 8];
        // without randomness ids would still be unique in this process
        let _ = getrandom::fill(&mut seed);
        Self { process: u64::from_le_bytes(seed), next: AtomicU64::new(0) }
    }

    fn of<B>(&self, request: &http::Request<B>) -> HeaderValue {
        if let Some(id) = request.headers().get(X_REQUEST_ID)
            && (1..=LONGEST_REQUEST_ID).contains(&id.len())
            && id.as_bytes().iter().all(u8::is_ascii_graphic)
        {
            // not its clone: that would keep the buffer the head was read into
            return HeaderValue::from_bytes(id.as_bytes()).unwrap_or(UNNAMED);
        }
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        let mut text = [0; 32];
        let id = (u128::from(self.process) << 64) | u128::from(count);
        // 16 bytes are 32 digits
        let _ = hex::encode_to_slice(id.to_be_bytes(), &mut text);
        HeaderValue::from_bytes(&text).unwrap_or(UNNAMED)
    }
}
