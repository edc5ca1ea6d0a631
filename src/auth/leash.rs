//! A response on its way to a client whose key may be revoked at any moment: then it ends.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::body::{Body, Response, Stream};
use crate::cutoff::Ear;
use crate::error::Error;
use crate::letta::sse;

/// Ends `response` when `ear` hears that its key is revoked: an event stream with an error event, all else broken off,
/// so that nobody takes it for whole.
pub(super) fn leashed(response: Response, ear: Ear) -> Response {
    // what is whole is as good as sent
    if response.body().is_end_stream() || response.body().as_whole().is_some() {
        return response;
    }
    let is_stream = sse::is_event_stream(response.headers());
    response.map(|body| Body::stream(Leashed { body, ear, is_stream, is_cut: false }))
}

struct Leashed {
    body: Body,
    ear: Ear,
    is_stream: bool,
    /// The client was told.
    is_cut: bool,
}

impl HttpBody for Leashed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if this.is_cut {
            return Poll::Ready(Some(Err(Error::StreamBroken(Box::new(Error::KeyRevoked)))));
        }
        if this.ear.poll(cx).is_pending() {
            return Pin::new(&mut this.body).poll_frame(cx);
        }
        // lets go of what it comes from
        this.body = Body::empty();
        this.is_cut = true;
        let revoked = Error::KeyRevoked;
        if !this.is_stream {
            return Poll::Ready(Some(Err(revoked)));
        }
        let farewell = sse::error_event(None, revoked.reason(), &revoked.to_string());
        Poll::Ready(Some(Ok(Frame::data(farewell))))
    }

    fn is_end_stream(&self) -> bool {
        !self.is_cut && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_cut { SizeHint::new() } else { self.body.size_hint() }
    }
}

impl Stream for Leashed {
    fn is_told(&self) -> bool {
        self.body.is_told()
    }

    fn opening(&self) -> Option<&[u8]> {
        self.body.opening()
    }
}
