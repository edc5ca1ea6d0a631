//! A replica's answer on its way to the client: as it comes, with back-pressure, its connection given back at the end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CACHE_CONTROL, CONTENT_LENGTH};
use http::{HeaderName, HeaderValue};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};

use super::pool::Lease;
use crate::body::{Body, Permit, Response, Stream};
use crate::cutoff::{Cutoff, Ear};
use crate::error::Error;
use crate::letta::fault::{is_json, is_to_be_judged};
use crate::letta::sse::{self, Cutter};
use crate::telemetry::Metrics;

const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// Bytes of a failure that are read before it is judged, and how long that may take.
const MOST_JUDGED: usize = 8 * 1024;
const JUDGED_WITHIN: Duration = Duration::from_secs(1);

/// How an answer is passed on.
pub(super) struct Manner<'a> {
    /// How long an event stream that has begun may be silent.
    pub(super) stream_idle: Duration,
    /// How long any other answer may.
    pub(super) other_idle: Duration,
    /// A turn reads it, not a client.
    pub(super) is_turn: bool,
    pub(super) cutoff: &'a Cutoff,
    pub(super) metrics: &'a Arc<Metrics>,
    /// When its head came.
    pub(super) now: Instant,
}

/// What became of a replica's answer.
pub(super) enum Passed {
    /// The client's response.
    On(Response),
    /// It has to be judged first, by as much of its body as [`judged`] reads.
    Unjudged(Box<http::Response<Reply>>),
}

/// Makes `answer` the client's response.
pub(super) fn pass_on(answer: http::Response<Incoming>, lease: Lease, load: Permit, manner: &Manner<'_>) -> Passed {
    let Manner { stream_idle, other_idle, is_turn, cutoff, metrics, now } = *manner;
    let (mut head, incoming) = answer.into_parts();
    let is_stream = sse::is_event_stream(&head.headers);
    let idle = if is_stream { stream_idle } else { other_idle };
    let reply = Reply { incoming, first: None, broken: None, held: Some((lease, load)), idle };
    let body = if is_stream {
        head.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
        head.headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
        head.headers.remove(CONTENT_LENGTH);
        if is_turn {
            // the turn cuts its events itself, and knows more to say when it breaks off
            Body::stream(reply)
        } else {
            Body::stream(Events::new(reply, cutoff.ear(), Arc::clone(metrics)))
        }
    } else if is_to_be_judged(head.status) && is_json(&head.headers) {
        return Passed::Unjudged(Box::new(http::Response::from_parts(head, reply)));
    } else {
        reply.whole_if_here(now)
    };
    Passed::On(http::Response::from_parts(head, body))
}

/// The response with as much of its beginning read as says whose failure it is.
pub(super) async fn judged(answer: Box<http::Response<Reply>>) -> Response {
    let (head, reply) = answer.into_parts();
    http::Response::from_parts(head, reply.with_its_opening().await)
}

/// An answer's body together with the connection it comes from.
pub(super) struct Reply {
    incoming: Incoming,
    /// What was read before it was known to be more.
    first: Option<Bytes>,
    /// How it broke off, to be told after `first`.
    broken: Option<Error>,
    held: Option<(Lease, Permit)>,
    idle: Duration,
}

impl Reply {
    /// Whole at once if all of it has come with the head: then the connection is free again before the client has a
    /// byte, and head and body leave in one write.
    fn whole_if_here(mut self, now: Instant) -> Body {
        // nobody is to be woken: what is not here yet is asked for again by whoever takes the body
        match self.poll_data(&mut Context::from_waker(Waker::noop()), || now) {
            Poll::Ready(None) => Body::empty(),
            Poll::Ready(Some(Ok(data))) if self.held.is_none() => Body::whole(data),
            Poll::Ready(Some(Ok(data))) => {
                self.first = Some(data);
                Body::stream(self)
            }
            Poll::Ready(Some(Err(error))) => {
                self.broken = Some(error);
                Body::stream(self)
            }
            Poll::Pending => Body::stream(self),
        }
    }

    /// With as much of the beginning as says whose failure this is, if it comes in time. All of it goes out after.
    async fn with_its_opening(mut self) -> Body {
        let mut opening = BytesMut::new();
        let _ = timeout(JUDGED_WITHIN, async {
            while opening.len() < MOST_JUDGED {
                match std::future::poll_fn(|cx| self.poll_data(cx, Instant::now)).await {
                    Some(Ok(data)) => opening.extend_from_slice(&data),
                    Some(Err(error)) => {
                        self.broken = Some(error);
                        break;
                    }
                    None => break,
                }
            }
        })
        .await;
        if self.held.is_none() && self.broken.is_none() {
            return Body::whole(opening.freeze());
        }
        self.first = (!opening.is_empty()).then(|| opening.freeze());
        Body::stream(self)
    }

    /// `now`: the clock, which is read only if it is needed.
    fn poll_data(&mut self, cx: &mut Context<'_>, now: impl Fn() -> Instant) -> Poll<Option<Result<Bytes, Error>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let mut driven = false;
        loop {
            match Pin::new(&mut self.incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    // trailers end here: nothing of Letta's sends any
                    let Ok(data) = frame.into_data() else { continue };
                    if self.incoming.is_end_stream() {
                        self.finish(cx, now());
                    } else if let Some((lease, _)) = &mut self.held {
                        lease.connection().expect_by(now() + self.idle);
                    }
                    return Poll::Ready(Some(Ok(data)));
                }
                Poll::Ready(Some(Err(error))) => {
                    let upstream = self.end();
                    return Poll::Ready(Some(Err(Error::UpstreamClosed { upstream, sent: true, cause: error.into() })));
                }
                Poll::Ready(None) => {
                    self.finish(cx, now());
                    return Poll::Ready(None);
                }
                Poll::Pending => {}
            }
            let Some((lease, _)) = &mut self.held else { return Poll::Ready(None) };
            if driven {
                ready!(lease.connection().poll_late(cx));
                let upstream = self.end();
                return Poll::Ready(Some(Err(Error::UpstreamTimeout { upstream, after: self.idle })));
            }
            // the body's next bytes come by driving its connection; closed or not, the body is asked once more
            lease.connection().poll(cx);
            driven = true;
        }
    }

    /// The answer is whole: the connection may serve another request.
    fn finish(&mut self, cx: &mut Context<'_>, now: Instant) {
        if let Some((mut lease, _load)) = self.held.take() {
            // lets it see that its message is over
            lease.connection().poll(cx);
            lease.give_back(now);
        }
    }

    /// The answer broke off: the connection is closed. The replica's name, for the error.
    fn end(&mut self) -> String {
        self.held.take().map_or_else(String::new, |(lease, _)| lease.authority().to_owned())
    }
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.poll_data(cx, Instant::now).map_ok(Frame::data)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.broken.is_none() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.incoming.size_hint();
        let first = self.first.as_ref().map_or(0, |first| first.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(first));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(first));
        }
        hint
    }
}

impl Stream for Reply {
    fn opening(&self) -> Option<&[u8]> {
        self.first.as_deref()
    }
}

/// An event stream: goes out event by event, and ends with Letta's own error event if the replica or the
/// end of the drain time breaks it off.
struct Events {
    reply: Reply,
    cutter: Cutter,
    /// Set once the client was told that the stream broke off.
    broken: Option<Error>,
    cutoff: Ear,
    metrics: Arc<Metrics>,
}

impl Events {
    fn new(reply: Reply, cutoff: Ear, metrics: Arc<Metrics>) -> Self {
        Self { reply, cutter: Cutter::new(), broken: None, cutoff, metrics }
    }

    /// The last words of a stream that breaks off.
    fn farewell(&mut self, error: Error) -> Option<Bytes> {
        // what was said after [DONE] or an error of Letta's own is lost to nobody
        let scanner = self.cutter.scanner();
        if scanner.is_done() || scanner.has_error() {
            return None;
        }
        if !matches!(error, Error::Draining) {
            self.metrics.streams_broken.inc();
        }
        let farewell = sse::error_event(scanner.run_id(), "stream_incomplete", &error.to_string());
        self.cutter.forget_rest();
        self.broken = Some(error);
        Some(farewell)
    }
}

impl HttpBody for Events {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if let Some(error) = this.broken.take() {
            return Poll::Ready(Some(Err(match error {
                Error::Draining => Error::Draining,
                error => Error::StreamBroken(Box::new(error)),
            })));
        }
        if this.cutoff.poll(cx).is_ready() {
            return Poll::Ready(this.farewell(Error::Draining).map(|farewell| Ok(Frame::data(farewell))));
        }
        loop {
            let events = match ready!(this.reply.poll_data(cx, Instant::now)) {
                Some(Ok(data)) => this.cutter.whole_events(data),
                Some(Err(error)) => match this.farewell(error) {
                    Some(farewell) => Some(farewell),
                    None => return Poll::Ready(None),
                },
                None => match this.cutter.rest() {
                    Some(rest) => Some(rest),
                    None => return Poll::Ready(None),
                },
            };
            if let Some(events) = events {
                return Poll::Ready(Some(Ok(Frame::data(events))));
            }
        }
    }
}

impl Stream for Events {
    fn is_told(&self) -> bool {
        // both official clients hang up at [DONE], before the replica has ended the stream
        self.cutter.scanner().is_done()
    }
}
