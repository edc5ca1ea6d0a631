//! The socket under hyper: it tells the connection's [`Progress`] what it reads and writes, puts bytes back that were
//! read to choose the protocol or to see the client leave, and closes so that the client can still read the last answer.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use super::frames::Frames;
use super::progress::Progress;

/// The first bytes of every HTTP/2 connection (RFC 9113 §3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the transport takes and gives, under TLS.
pub(super) struct Socket<T> {
    inner: T,
    /// Read before it was known what it is the beginning of; to be read again.
    first: Option<u8>,
    progress: Arc<Progress>,
}

impl<T> Socket<T> {
    pub(super) fn new(inner: T, progress: Arc<Progress>) -> Self {
        Self { inner, first: None, progress }
    }

    /// The first byte, which is read again afterwards; `None` at an end.
    pub(super) async fn first(&mut self) -> io::Result<Option<u8>>
    where
        T: AsyncRead + Unpin,
    {
        let mut byte = [0; 1];
        let read = std::future::poll_fn(|cx| {
            let mut buf = ReadBuf::new(&mut byte);
            ready!(Pin::new(&mut *self).poll_read(cx, &mut buf))?;
            Poll::Ready(io::Result::Ok(buf.filled().first().copied()))
        });
        self.first = read.await?;
        Ok(self.first)
    }

    fn wrote(&self, result: &Poll<io::Result<usize>>) {
        match result {
            Poll::Ready(Ok(_)) => self.progress.wrote(),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.progress.owes(),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Socket<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(first) = self.first.take_if(|_| buf.remaining() > 0) {
            buf.put_slice(&[first]);
            // and what has come with it; an error, or an end, is seen at the next read
            let _ = Pin::new(&mut self.inner).poll_read(cx, buf);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.progress.hear();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Socket<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.wrote(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.wrote(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// With or without TLS.
pub(super) enum Transport<T> {
    Plain(Socket<T>),
    /// Boxed: the state of a TLS session is kilobytes that a plain connection need not carry.
    Tls(Box<TlsStream<Socket<T>>>),
}

macro_rules! transport {
    ($self:ident . $method:ident ( $($argument:expr),* )) => {
        match $self {
            Transport::Plain(socket) => Pin::new(socket).$method($($argument),*),
            Transport::Tls(stream) => Pin::new(&mut **stream).$method($($argument),*),
        }
    };
}

/// The client has closed its side while its request was under way: it does not wait for the answer.
#[derive(Debug)]
pub(super) struct ClientLeft;

impl fmt::Display for ClientLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client left before it had its answer")
    }
}

impl std::error::Error for ClientLeft {}

/// What hyper reads and writes.
pub(super) struct Wire<T> {
    transport: Transport<T>,
    /// Bytes read to choose the protocol, or ahead, that hyper has not seen, from `at` to `len`.
    prefix: [u8; PREFACE.len()],
    at: usize,
    len: usize,
    /// HTTP/2 only.
    frames: Option<Frames>,
    progress: Arc<Progress>,
    /// `progress` as a waker.
    bell: Waker,
    wakes: Wakes,
    ended: bool,
    shut: bool,
}

/// Whom the socket wakes when there is something to be read: who asked last, and was told that there was nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wakes {
    Nobody,
    /// It sees for itself that the client leaves, unless it wants nothing more of it.
    Hyper,
    Bell,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Wire<T> {
    pub(super) fn new(transport: Transport<T>, progress: Arc<Progress>) -> Self {
        let (prefix, bell) = ([0; PREFACE.len()], Waker::from(Arc::clone(&progress)));
        let (wakes, ended, shut) = (Wakes::Nobody, false, false);
        Self { transport, prefix, at: 0, len: 0, frames: None, progress, bell, wakes, ended, shut }
    }

    /// Reads until it is certain whether the client speaks HTTP/2 without being asked (RFC 9113 §3.3). What was read
    /// is read again by hyper. An end before that is an error.
    pub(super) async fn speaks_http2(&mut self) -> io::Result<bool> {
        loop {
            let (Some(read), Some(expected)) = (self.prefix.get(..self.len), PREFACE.get(..self.len)) else {
                return Ok(false);
            };
            if read != expected {
                return Ok(false);
            }
            if self.len == PREFACE.len() {
                return Ok(true);
            }
            let Self { transport, prefix, len, .. } = self;
            let read = std::future::poll_fn(|cx| {
                let mut buf = ReadBuf::new(prefix.get_mut(*len..).unwrap_or_default());
                ready!(transport!(transport.poll_read(cx, &mut buf)))?;
                Poll::Ready(io::Result::Ok(buf.filled().len()))
            })
            .await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            *len += read;
        }
    }

    pub(super) fn is_encrypted(&self) -> bool {
        matches!(self.transport, Transport::Tls(_))
    }

    /// Follows the client's HTTP/2 frames from now on.
    pub(super) fn following_frames(mut self) -> Self {
        self.frames = Some(Frames::new());
        self
    }

    /// Reads ahead while a request is under way, to see its client leave: a little, which is kept for hyper. Most polls
    /// have to do with the request, and not with the socket: only the bell tells that there may be something.
    fn look_ahead(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let has_none = self.at == self.len && self.frames.is_none() && !self.ended && !self.shut;
        if !has_none || !self.progress.has_requests() {
            return Ok(());
        }
        match self.wakes {
            Wakes::Bell if !self.progress.has_rung() => return Ok(()),
            Wakes::Hyper => return Ok(()),
            Wakes::Bell | Wakes::Nobody => {}
        }
        let Self { transport, prefix, bell, wakes, .. } = self;
        let mut buf = ReadBuf::new(prefix);
        let read = transport!(transport.poll_read(&mut Context::from_waker(bell), &mut buf));
        *wakes = if read.is_pending() { Wakes::Bell } else { Wakes::Nobody };
        let Poll::Ready(read) = read else { return Ok(()) };
        (self.at, self.len) = (0, buf.filled().len());
        read?;
        if self.len == 0 {
            self.ended = true;
            return Err(io::Error::other(ClientLeft));
        }
        // of what came since hyper has read, it has heard nothing
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// hyper does not flush what is not written.
    fn wrote(&mut self, written: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if written.is_pending() {
            self.look_ahead(cx)?;
        }
        written
    }

    /// Tells of `bytes` just read.
    fn read(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            self.ended = true;
            return;
        }
        if let Some(frames) = &mut self.frames {
            frames.feed(bytes);
            self.progress.frames(frames.preface(), frames.head_open(), frames.mark());
        }
        self.progress.read();
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        this.wakes = Wakes::Nobody;
        let transport = &mut this.transport;
        if this.at < this.len {
            let prefix = this.prefix.get(this.at..this.len).unwrap_or_default();
            let taken = prefix.get(..buf.remaining()).unwrap_or(prefix);
            buf.put_slice(taken);
            this.at += taken.len();
            // And what has come since: after so small a read hyper would double its buffer for the next one. An error
            // comes again then.
            if buf.remaining() > 0 {
                let _ = transport!(transport.poll_read(cx, buf));
            }
        } else {
            let read = transport!(transport.poll_read(cx, buf));
            match &read {
                Poll::Pending => this.wakes = Wakes::Hyper,
                Poll::Ready(Err(_)) => this.ended = true,
                Poll::Ready(Ok(())) => {}
            }
            ready!(read)?;
        }
        this.read(buf.filled().get(before..).unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let transport = &mut self.transport;
        let written = transport!(transport.poll_write(cx, buf));
        self.wrote(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let transport = &mut self.transport;
        let written = transport!(transport.poll_write_vectored(cx, bufs));
        self.wrote(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Plain(socket) => socket.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }

    /// hyper flushes whenever it is polled, whether there is something to flush or not, unless it has to write still.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.look_ahead(cx)?;
        let transport = &mut self.transport;
        transport!(transport.poll_flush(cx))
    }

    /// Says goodbye, then (HTTP/1) reads on until the client has too: closing a socket with unread bytes resets it, and
    /// a client that is still uploading would lose the answer that refused its upload. The watchdog bounds the wait.
    /// HTTP/2 has said all it had to say when it comes here.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let transport = &mut this.transport;
        if !this.shut {
            ready!(transport!(transport.poll_shutdown(cx)))?;
            this.shut = true;
            this.progress.close();
        }
        if this.ended || this.frames.is_some() || this.progress.closed_idle() {
            return Poll::Ready(Ok(()));
        }
        let mut discarded = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut discarded);
            match ready!(transport!(transport.poll_read(cx, &mut buf))) {
                Ok(()) if !buf.filled().is_empty() => {}
                // an error ends the waiting as well as the client's own goodbye does
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}
