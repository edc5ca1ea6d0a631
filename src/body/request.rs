//! The body of a request on its way to a replica: streaming as it comes, or whole after a step had to read it.
//!
//! Nothing that was read is lost: what a step took from the stream goes out in front of the rest, unchanged. A body is
//! never longer than its limit and never waits for ever for its client. Trailers are left out (nothing of Letta's reads
//! them, and RFC 9110 §6.5.1 lets an intermediary drop them).

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Sleep, timeout};

use crate::error::Error;

/// How long a client may send nothing of a body that is waited for.
const STALL: Duration = Duration::from_secs(60);

/// What `reading` reads within `patience`. No timer is set for what is there already, as most bodies are with their
/// heads.
pub async fn within<T>(
    patience: Duration,
    mut reading: Pin<&mut impl Future<Output = Result<T, Error>>>,
) -> Result<T, Error> {
    if let Poll::Ready(read) = poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx))).await {
        return read;
    }
    timeout(patience, reading).await.map_err(|_| Error::BodyTimeout)?
}

/// The body of a request on its way to a replica. Small: a request is moved a dozen times on that way.
#[derive(Default)]
pub struct RequestBody(Content);

enum Content {
    /// All that is to come is here; empty if that is nothing.
    Whole(Bytes),
    Coming(Box<Coming>),
}

impl Default for Content {
    fn default() -> Self {
        Self::Whole(Bytes::new())
    }
}

/// A body that its client may still be sending.
#[derive(Default)]
struct Coming {
    /// What was read and put back: it goes out first.
    read: Bytes,
    /// None: it is over.
    rest: Option<Incoming>,
    /// Bytes at most, counted from the body's first.
    limit: Option<u64>,
    /// Bytes handed on so far.
    taken: u64,
    meter: Option<Arc<Meter>>,
    /// Runs while the client is waited for.
    stall: Option<Pin<Box<Sleep>>>,
}

/// What became of a body that is in other hands (a connection's).
#[derive(Debug, Default)]
pub struct Meter {
    bytes: AtomicU64,
    /// Its client has sent all of it.
    over: AtomicBool,
    failure: Mutex<Option<Error>>,
}

impl Meter {
    /// Bytes that were handed on.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Its client has sent all of it: what is late now is not its doing.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Why the body ended early, if it did by its client's doing; told once.
    pub fn failure(&self) -> Option<Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// How a bounded reading of a body ended.
#[derive(Debug)]
pub enum Read {
    /// This is all of it.
    Whole(Bytes),
    /// It is longer than the bound; nothing of it is lost.
    Longer(RequestBody),
}

impl RequestBody {
    pub fn empty() -> Self {
        Self::default()
    }

    pub fn whole(bytes: Bytes) -> Self {
        Self(Content::Whole(bytes))
    }

    /// The body as hyper received it.
    pub fn incoming(body: Incoming) -> Self {
        if body.is_end_stream() {
            return Self::empty();
        }
        Self(Content::Coming(Box::new(Coming { rest: Some(body), ..Coming::default() })))
    }

    /// Refuses more than `limit` bytes: at once if the client has announced them, else when they come.
    pub fn within(mut self, limit: u64) -> Result<Self, Error> {
        let taken = match &mut self.0 {
            Content::Whole(_) => 0,
            Content::Coming(coming) => {
                coming.limit = Some(limit);
                coming.taken
            }
        };
        if taken.saturating_add(self.size_hint().lower()) > limit {
            return Err(Error::BodyTooLarge { limit });
        }
        Ok(self)
    }

    /// Tells of the bytes and the failure of this body when it is in other hands. `None`: all of it is here, and can
    /// neither fail nor be told in parts.
    pub fn meter(&mut self) -> Option<Arc<Meter>> {
        match &mut self.0 {
            Content::Whole(_) => None,
            Content::Coming(coming) => Some(Arc::clone(coming.meter.get_or_insert_default())),
        }
    }

    /// The same body once more, if it is whole: what a second attempt sends.
    pub fn again(&self) -> Option<Self> {
        match &self.0 {
            Content::Whole(bytes) => Some(Self::whole(bytes.clone())),
            Content::Coming(_) => None,
        }
    }

    /// Reads the whole body if it has at most `most` bytes.
    pub async fn read(mut self, most: usize) -> Result<Read, Error> {
        if let Content::Whole(bytes) = &mut self.0
            && bytes.len() <= most
        {
            return Ok(Read::Whole(std::mem::take(bytes)));
        }
        if self.size_hint().lower() > most as u64 {
            return Ok(Read::Longer(self));
        }
        let Some(first) = self.data().await? else { return Ok(Read::Whole(Bytes::new())) };
        if self.is_end_stream() && first.len() <= most {
            return Ok(Read::Whole(first));
        }
        let mut read = BytesMut::from(first);
        while read.len() <= most {
            match self.data().await? {
                Some(data) => read.extend_from_slice(&data),
                None => return Ok(Read::Whole(read.freeze())),
            }
        }
        Ok(Read::Longer(self.behind(read.freeze())))
    }

    /// The next bytes; `None` at the end.
    pub async fn data(&mut self) -> Result<Option<Bytes>, Error> {
        std::future::poll_fn(|cx| self.poll_data(cx)).await.transpose()
    }

    /// This body with `prefix`, which was taken from it, put back in front.
    fn behind(self, prefix: Bytes) -> Self {
        match self.0 {
            // `read` takes this one whole before it asks for more
            Content::Whole(rest) => Self::whole([prefix, rest].concat().into()),
            Content::Coming(coming) if coming.is_over() => Self::whole(prefix),
            Content::Coming(mut coming) => {
                coming.taken = coming.taken.saturating_sub(prefix.len() as u64);
                coming.read = match coming.read.is_empty() {
                    true => prefix,
                    false => [prefix, coming.read].concat().into(),
                };
                Self(Content::Coming(coming))
            }
        }
    }

    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        match &mut self.0 {
            Content::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Content::Whole(bytes) => Poll::Ready(Some(Ok(std::mem::take(bytes)))),
            Content::Coming(coming) => coming.poll_data(cx),
        }
    }
}

impl Coming {
    fn is_over(&self) -> bool {
        self.read.is_empty() && self.rest.is_none()
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        let data = match ready!(self.poll_content(cx)) {
            Some(Ok(data)) => data,
            Some(Err(error)) => return Poll::Ready(Some(Err(self.fail(error)))),
            None => {
                if let Some(meter) = &self.meter {
                    meter.over.store(true, Ordering::Relaxed);
                }
                return Poll::Ready(None);
            }
        };
        self.taken = self.taken.saturating_add(data.len() as u64);
        if let Some(limit) = self.limit.filter(|limit| self.taken > *limit) {
            return Poll::Ready(Some(Err(self.fail(Error::BodyTooLarge { limit }))));
        }
        if let Some(meter) = &self.meter {
            meter.bytes.store(self.taken, Ordering::Relaxed);
            meter.over.store(self.is_over(), Ordering::Relaxed);
        }
        Poll::Ready(Some(Ok(data)))
    }

    fn poll_content(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        if !self.read.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.read))));
        }
        let Some(incoming) = &mut self.rest else { return Poll::Ready(None) };
        let frame = match Pin::new(&mut *incoming).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                // the client is asked before its time is looked at: only one that still sends nothing is late
                let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL)));
                ready!(stall.as_mut().poll(cx));
                return Poll::Ready(Some(Err(Error::BodyTimeout)));
            }
        };
        self.stall = None;
        let over = incoming.is_end_stream();
        match frame {
            Some(Ok(frame)) => {
                // trailers are the last frame there is
                let data = frame.into_data().ok();
                if over || data.is_none() {
                    self.rest = None;
                }
                Poll::Ready(data.map(Ok))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(Error::BodyBroken(error.into())))),
            None => {
                self.rest = None;
                Poll::Ready(None)
            }
        }
    }

    /// The body ends here; the meter keeps the cause, whoever holds the body gets an error of the same kind.
    fn fail(&mut self, error: Error) -> Error {
        (self.read, self.rest) = (Bytes::new(), None);
        let Some(meter) = &self.meter else { return error };
        let told = match &error {
            Error::BodyTooLarge { limit } => Error::BodyTooLarge { limit: *limit },
            Error::BodyTimeout => Error::BodyTimeout,
            _ => Error::BodyBroken("the client's body broke off".into()),
        };
        *meter.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        told
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.poll_data(cx).map_ok(Frame::data)
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Content::Whole(bytes) => bytes.is_empty(),
            Content::Coming(coming) => coming.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let coming = match &self.0 {
            Content::Whole(bytes) => return SizeHint::with_exact(bytes.len() as u64),
            Content::Coming(coming) => coming,
        };
        let read = coming.read.len() as u64;
        let Some(rest) = &coming.rest else { return SizeHint::with_exact(read) };
        let rest = rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(read));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(read));
        }
        hint
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told = f.debug_struct("RequestBody");
        match &self.0 {
            Content::Whole(bytes) => told.field("whole", &bytes.len()),
            Content::Coming(coming) => told.field("read", &coming.read.len()).field("taken", &coming.taken),
        };
        told.finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests;
