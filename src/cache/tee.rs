//! Watches an answer go out to its client, and keeps it if it was a whole one worth keeping.
//!
//! The client waits for nothing but the last piece's reading. A copy is held within the bound of one entry and dropped
//! as soon as the answer breaks off or grows over it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::body::{Body, Response, Stream};
use crate::error::Error;
use crate::letta::reply;
use crate::store::{Entry, Key, Store};

/// Room made at first for an answer whose length is not told.
const USUAL: usize = 4 * 1024;

/// Where an answer goes if it is worth keeping.
pub(super) struct Keeping {
    pub store: Store,
    pub key: Key,
    pub ttl: Duration,
    pub max_entry: usize,
}

impl Keeping {
    /// The same response, kept when it has gone out.
    pub(super) fn watch(self, response: Response) -> Response {
        let Some(content_type) = keepable(&response) else { return response };
        let content_type = content_type.clone();
        let (head, body) = response.into_parts();
        let hint = HttpBody::size_hint(&body);
        if hint.lower() > self.max_entry as u64 {
            return Response::from_parts(head, body);
        }
        if let Some(whole) = body.as_whole() {
            self.keep(content_type, whole);
            return Response::from_parts(head, body);
        }
        let room = hint.exact().and_then(|exact| usize::try_from(exact).ok()).unwrap_or(USUAL).min(self.max_entry);
        let tee = Tee { body, copy: Some((self, content_type, Vec::with_capacity(room))) };
        Response::from_parts(head, Body::stream(tee))
    }

    fn keep(&self, content_type: HeaderValue, body: &[u8]) {
        if body.len() <= self.max_entry && reply::is_final(body) && !waits_for_approval(body) {
            self.store.put(self.key, Entry::new(content_type, body), self.ttl);
        }
    }
}

/// Somebody's answer would change what this one means. A text that only names such a message is not kept either, which
/// costs nothing but a call.
fn waits_for_approval(reply: &[u8]) -> bool {
    memchr::memmem::find(reply, b"approval_request_message").is_some()
}

/// The content type of a response whose body may be worth keeping.
fn keepable(response: &Response) -> Option<&HeaderValue> {
    let headers = response.headers();
    let content_type = headers.get(CONTENT_TYPE)?;
    let keepable = response.status() == StatusCode::OK
        && is_json(content_type)
        && !headers.contains_key(CONTENT_ENCODING)
        && !forbids(headers);
    keepable.then_some(content_type)
}

pub(super) fn is_json(content_type: &HeaderValue) -> bool {
    let essence = content_type.as_bytes().split(|&byte| byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

/// Letta does not say so today; should it, or something between, it knows why.
fn forbids(headers: &HeaderMap) -> bool {
    headers.get_all(CACHE_CONTROL).iter().any(|value| {
        let directives = value.to_str().unwrap_or("no-store");
        directives.split(',').any(|directive| directive.trim().eq_ignore_ascii_case("no-store"))
    })
}

/// A body that is copied as it goes.
struct Tee {
    body: Body,
    /// None: not worth keeping after all.
    copy: Option<(Keeping, HeaderValue, Vec<u8>)>,
}

impl Tee {
    fn saw(&mut self, data: &[u8]) {
        if let Some((keeping, _, copy)) = &mut self.copy {
            if copy.len() + data.len() > keeping.max_entry {
                self.copy = None;
            } else {
                copy.extend_from_slice(data);
            }
        }
    }

    fn ended(&mut self) {
        if let Some((keeping, content_type, copy)) = self.copy.take() {
            keeping.keep(content_type, &copy);
        }
    }
}

impl HttpBody for Tee {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.saw(data);
                }
                // nobody asks again after the last piece
                if self.body.is_end_stream() {
                    self.ended();
                }
            }
            Some(Err(_)) => self.copy = None,
            None => self.ended(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        HttpBody::size_hint(&self.body)
    }
}

impl Stream for Tee {}
