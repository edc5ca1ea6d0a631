//! The side of those who tell other gateways of a turn.

use std::task::Poll;

use bytes::Bytes;

use super::kept::KeptHead;
use super::{Ended, Head, Log};

/// Bytes that are told to other gateways at once, about.
const TOLD_AT_ONCE: usize = 256 * 1024;

/// What has come to a log since it was last asked.
pub(in crate::turn) enum News {
    /// The next pieces, the head in front of the first one.
    Pieces(Option<Head>, Vec<Bytes>),
    /// The next piece is not kept any more.
    Trimmed,
    /// There are no more, and there will not be.
    Over,
}

impl Log {
    /// What comes after the first `told` pieces, the head counted as one.
    pub(in crate::turn) async fn news(&self, told: u64) -> News {
        std::future::poll_fn(|cx| {
            let mut state = self.lock();
            let told = usize::try_from(told).unwrap_or(usize::MAX);
            let head = state.head.as_ref().filter(|_| told == 0).map(KeptHead::head);
            let at = told.saturating_sub(1);
            if let Some(at) = at.checked_sub(state.first) {
                let mut bytes = 0;
                let is_within = |piece: &&Bytes| {
                    let is_first = bytes == 0;
                    bytes += piece.len();
                    is_first || bytes <= TOLD_AT_ONCE
                };
                let has_head = told > 0 || head.is_some();
                let pieces: Vec<Bytes> =
                    state.pieces.iter().skip(at).take_while(is_within).filter(|_| has_head).cloned().collect();
                if head.is_some() || !pieces.is_empty() {
                    return Poll::Ready(News::Pieces(head, pieces));
                }
            } else {
                return Poll::Ready(News::Trimmed);
            }
            if state.ended.is_some() {
                return Poll::Ready(News::Over);
            }
            state.teller = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Ready when there will be no more.
    pub(in crate::turn) async fn over(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.lock();
            if state.ended.is_some() {
                return Poll::Ready(());
            }
            state.teller = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// What `tell` makes of its end; `None` before that.
    pub(in crate::turn) fn ended<T>(&self, tell: impl FnOnce(&Ended) -> Option<T>) -> Option<T> {
        self.lock().ended.as_ref().and_then(tell)
    }
}
