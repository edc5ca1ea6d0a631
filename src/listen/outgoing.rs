//! A response body on its way through one connection: counts its request as in flight until it is over, and on HTTP/2
//! says whether the client takes what it is handed.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::progress::InFlight;
use crate::body::Body;
use crate::error::Error;

/// At most so much is handed to an HTTP/2 stream at once: what it cannot send it keeps in memory.
const PIECE: usize = 16 * 1024;

/// The body hyper sends.
pub(super) struct Outgoing {
    body: Body,
    /// What is left of a frame larger than [`PIECE`].
    rest: Bytes,
    stream: Option<Arc<Stream>>,
    _in_flight: Option<InFlight>,
}

impl Outgoing {
    pub(super) fn new(body: Body, stream: Option<Arc<Stream>>, in_flight: Option<InFlight>) -> Self {
        Self { body, rest: Bytes::new(), stream, _in_flight: in_flight }
    }
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let Some(stream) = &this.stream else {
            return Pin::new(&mut this.body).poll_frame(cx);
        };
        stream.asked();
        if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                end => return Poll::Ready(end),
            }
        }
        stream.handed();
        let piece = if this.rest.len() > PIECE { this.rest.split_to(PIECE) } else { std::mem::take(&mut this.rest) };
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let rest = self.rest.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

/// What one HTTP/2 stream is waiting for.
///
/// hyper takes a piece of a body, and asks for the next one when the client's flow-control window has taken that one.
/// So a body that has handed out a piece and is not asked again waits for the client; one that was asked and has
/// nothing waits for Letta.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pieces: AtomicU32,
    waits_for_client: AtomicBool,
}

impl Stream {
    fn asked(&self) {
        self.waits_for_client.store(false, Ordering::Relaxed);
    }

    fn handed(&self) {
        self.waits_for_client.store(true, Ordering::Relaxed);
        self.pieces.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of the piece that the client has not taken, if it has not.
    pub(super) fn stalled_at(&self) -> Option<u32> {
        self.waits_for_client.load(Ordering::Relaxed).then(|| self.pieces.load(Ordering::Relaxed))
    }
}
