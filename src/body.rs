//! Bodies whole or streaming, counted permits, and what is told when a *body* ends.
//!
//! A streaming response is not over when its head is: what lasts as long as the response (a permit, the access-log
//! record) lives in its [`Body`] and is let go when the last byte has left or the client has.

pub mod request;
pub mod room;

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::error::Error;

pub use request::RequestBody;

/// A request on its way through the pipeline: in one place, for it is handed from step to step.
pub type Request = Box<http::Request<RequestBody>>;

/// A response on its way to the client.
pub type Response = http::Response<Body>;

/// The body of a response.
#[derive(Default)]
pub struct Body {
    content: Content,
    ended: bool,
    watch: Option<Box<dyn Watch>>,
    permit: Option<Permit>,
}

#[derive(Default)]
enum Content {
    #[default]
    Empty,
    Whole(Bytes),
    Stream(Pin<Box<dyn Stream>>),
}

/// A body that comes in pieces.
pub trait Stream: HttpBody<Data = Bytes, Error = Error> + Send {
    /// All that matters has gone out, so that a client which hangs up now has lost nothing.
    fn is_told(&self) -> bool {
        self.is_end_stream()
    }

    /// The first bytes, if they have come already and not gone out.
    fn opening(&self) -> Option<&[u8]> {
        None
    }
}

/// Is told what of a body went out and how it ended. Dropped untold = the client left first.
pub trait Watch: Send {
    /// `bytes` more were handed to the connection.
    fn data(&mut self, bytes: usize);
    /// The body is over: whole, or broken off by an error.
    fn end(&mut self, result: Result<(), &Error>);
}

impl Body {
    pub fn empty() -> Self {
        Self::default()
    }

    pub fn whole(bytes: Bytes) -> Self {
        Self::of(if bytes.is_empty() { Content::Empty } else { Content::Whole(bytes) })
    }

    pub fn stream(body: impl Stream + 'static) -> Self {
        Self::of(if body.is_end_stream() { Content::Empty } else { Content::Stream(Box::pin(body)) })
    }

    fn of(content: Content) -> Self {
        Self { content, ended: false, watch: None, permit: None }
    }

    /// The bytes, if this body is whole already.
    pub fn as_whole(&self) -> Option<&Bytes> {
        match &self.content {
            Content::Whole(bytes) => Some(bytes),
            Content::Empty | Content::Stream(_) => None,
        }
    }

    /// The bytes, if this body is whole already. They are not in it any more: for one that nobody watches yet.
    pub fn take_whole(&mut self) -> Option<Bytes> {
        let Content::Whole(bytes) = &mut self.content else { return None };
        let bytes = std::mem::take(bytes);
        self.content = Content::Empty;
        Some(bytes)
    }

    /// The first bytes, as far as they have come; None if nothing is known of them.
    pub fn opening(&self) -> Option<&[u8]> {
        match &self.content {
            Content::Empty => Some(&[]),
            Content::Whole(bytes) => Some(bytes),
            Content::Stream(stream) => stream.opening(),
        }
    }

    /// All that matters has gone out.
    pub fn is_told(&self) -> bool {
        // hyper does not poll a body it knows to be empty (HEAD, 204); anything else left over is the client's leaving
        match &self.content {
            Content::Empty => true,
            Content::Whole(_) => false,
            Content::Stream(stream) => stream.is_told(),
        }
    }

    /// Tells `watch` of this body from now on.
    pub fn watched(mut self, watch: Box<dyn Watch>) -> Self {
        self.watch = Some(watch);
        self
    }

    /// Holds `permit` until this body ends.
    pub fn holding(mut self, permit: Permit) -> Self {
        self.permit = Some(permit);
        self
    }

    /// The body is over: tell and let go.
    fn end(&mut self, result: Result<(), &Error>) {
        if !self.ended {
            self.ended = true;
            self.permit = None;
            if let Some(mut watch) = self.watch.take() {
                watch.end(result);
            }
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let frame = match &mut this.content {
            Content::Empty => None,
            Content::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                this.content = Content::Empty;
                Some(Ok(Frame::data(bytes)))
            }
            Content::Stream(stream) => match stream.as_mut().poll_frame(cx) {
                Poll::Ready(frame) => {
                    if stream.is_end_stream() || !matches!(frame, Some(Ok(_))) {
                        this.content = Content::Empty;
                    }
                    frame
                }
                Poll::Pending => return Poll::Pending,
            },
        };
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(watch), Some(data)) = (&mut this.watch, frame.data_ref()) {
                    watch.data(data.len());
                }
                if matches!(this.content, Content::Empty) {
                    this.end(Ok(()));
                }
            }
            Some(Err(error)) => {
                this.end(Err(error));
                // the client was told in the stream
                if matches!(error, Error::StreamBroken(_) | Error::Draining) {
                    return Poll::Ready(None);
                }
            }
            None => this.end(Ok(())),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Empty)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Empty => SizeHint::with_exact(0),
            Content::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Stream(stream) => stream.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if self.is_told() {
            self.end(Ok(()));
        }
    }
}

/// How many of something are going on, with the most there may be.
pub struct Counter {
    now: AtomicU32,
    tell: Option<Box<dyn Fn(i64) + Send + Sync>>,
}

impl Counter {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { now: AtomicU32::new(0), tell: None })
    }

    /// One that tells each change as it happens: +1 or -1.
    pub fn telling(tell: impl Fn(i64) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { now: AtomicU32::new(0), tell: Some(Box::new(tell)) })
    }

    /// How many there are now.
    pub fn now(&self) -> u32 {
        self.now.load(Ordering::Relaxed)
    }

    /// One more, unless there are `most` already.
    pub fn take(self: &Arc<Self>, most: u32) -> Option<Permit> {
        self.now
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |now| (now < most).then_some(now + 1))
            .ok()
            .map(|_| self.permit())
    }

    /// One more, whatever there is.
    pub fn add(self: &Arc<Self>) -> Permit {
        self.now.fetch_add(1, Ordering::AcqRel);
        self.permit()
    }

    fn permit(self: &Arc<Self>) -> Permit {
        self.changed(1);
        Permit { counter: Arc::clone(self), rider: None }
    }

    fn changed(&self, by: i64) {
        if let Some(tell) = &self.tell {
            tell(by);
        }
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Counter").field(&self.now()).finish()
    }
}

/// One of those a [`Counter`] counts; counted off when dropped.
pub struct Permit {
    counter: Arc<Counter>,
    rider: Option<Box<dyn Any + Send + Sync>>,
}

impl Permit {
    /// Lets go of `rider`, too, when it is dropped: what counts the same thing elsewhere.
    pub fn carrying(mut self, rider: impl Any + Send + Sync) -> Self {
        self.rider = Some(match self.rider.take() {
            None => Box::new(rider),
            Some(other) => Box::new((other, rider)),
        });
        self
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Permit").field(&self.counter).finish()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.counter.now.fetch_sub(1, Ordering::AcqRel);
        self.counter.changed(-1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_taken_are_in_the_body_no_more() {
        let mut body = Body::whole(Bytes::from_static(b"all"));
        assert_eq!(body.take_whole().as_deref(), Some(&b"all"[..]));
        assert!(body.is_end_stream() && body.take_whole().is_none());
        assert!(Body::empty().take_whole().is_none());
    }
}
