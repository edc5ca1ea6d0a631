//! A socket that is written to in one piece where the pieces are short.
//!
//! hyper hands over a head and its body as two buffers. The kernel takes one (`send`) for less than it takes two
//! (`writev`), and copying a short one costs next to nothing.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are copied at most; more leave as they are.
const SHORT: usize = 4096;

thread_local! {
    /// Empty between two writes, and never larger than what is short.
    static PIECE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Writes what is short in one piece.
pub struct OnePiece<T>(pub T);

impl<T: AsyncRead + Unpin> AsyncRead for OnePiece<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for OnePiece<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let inner = Pin::new(&mut self.0);
        if let [only] = bufs {
            return inner.poll_write(cx, only);
        }
        if bufs.iter().map(|buf| buf.len()).sum::<usize>() > SHORT {
            return inner.poll_write_vectored(cx, bufs);
        }
        PIECE.with_borrow_mut(|piece| {
            piece.clear();
            bufs.iter().for_each(|buf| piece.extend_from_slice(buf));
            inner.poll_write(cx, piece)
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    /// Notes each write, and takes at most so many bytes of it.
    struct Noted {
        writes: Vec<Vec<u8>>,
        most: usize,
    }

    impl AsyncWrite for Noted {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let taken = buf.len().min(self.most);
            self.writes.push(buf[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let first = bufs.first().map_or(&[][..], |buf| buf);
            self.poll_write(cx, first)
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    async fn written(bufs: &[&[u8]], most: usize) -> (usize, Vec<Vec<u8>>) {
        let mut socket = OnePiece(Noted { writes: Vec::new(), most });
        let slices: Vec<IoSlice<'_>> = bufs.iter().map(|buf| IoSlice::new(buf)).collect();
        let taken = socket.write_vectored(&slices).await.unwrap();
        (taken, socket.0.writes)
    }

    #[tokio::test]
    async fn what_is_short_leaves_in_one_piece_and_what_is_not_as_it_came() {
        assert_eq!(written(&[b"head", b"", b"body"], 100).await, (8, vec![b"headbody".to_vec()]));
        let long = vec![b'x'; SHORT];
        let (taken, writes) = written(&[b"head", &long], 10_000).await;
        assert_eq!((taken, writes), (4, vec![b"head".to_vec()]), "the buffers themselves");
        let (taken, writes) = written(&[&long], 10_000).await;
        assert_eq!((taken, writes.len()), (SHORT, 1));
    }

    #[tokio::test]
    async fn a_socket_that_takes_a_part_is_told_to_have_taken_no_more() {
        assert_eq!(written(&[b"head", b"body"], 6).await, (6, vec![b"headbo".to_vec()]));
        // what was left of the last write is not in the next
        assert_eq!(written(&[b"a", b"b"], 6).await, (2, vec![b"ab".to_vec()]));
    }
}
