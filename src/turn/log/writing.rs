//! The engine's side of a log: it writes the answer, and waits for those who read it.

use std::task::Poll;

use super::kept::KeptHead;
use super::{Ended, Head, Log, State, Whole};

/// Bytes a reader may be behind once the log is over its bound.
const MOST_BEHIND: u64 = 64 * 1024;

impl Log {
    /// `length`: the answer's, if it is known.
    pub(in crate::turn) fn begin(&self, head: Head, length: Option<u64>) {
        let mut state = self.lock_with_head();
        state.head = Some(KeptHead::of(&head));
        state.fresh = (!state.is_left()).then(|| Box::new(head));
        state.told_at = length;
        state.wake_readers();
    }

    pub(in crate::turn) fn append(&self, data: &[u8]) {
        let mut state = self.lock();
        let piece = state.written(data);
        state.bytes += data.len() as u64;
        state.pieces.push(piece);
        if state.bytes > self.max {
            state.is_whole = false;
            state.trim();
        }
        state.wake_readers();
    }

    /// The whole answer at once. `is_known_to_all`: other gateways are told of it, so its head is asked for again.
    pub(in crate::turn) fn fill(&self, answer: Whole, is_known_to_all: bool) {
        let mut state = self.lock_with_head();
        state.fill(answer, is_known_to_all, self.max);
        state.wake_readers();
    }

    pub(in crate::turn) fn end(&self, ended: Ended) {
        let mut state = self.lock_with_head();
        state.end(ended);
    }

    /// What comes now adds nothing: the stream has said how it ends.
    pub(in crate::turn) fn tell_end(&self) {
        let mut state = self.lock();
        let bytes = state.bytes;
        state.told_at.get_or_insert(bytes);
    }

    /// Nothing of it is for giving again.
    pub(in crate::turn) fn keep_nothing(&self) {
        let mut state = self.lock();
        state.is_whole = false;
        state.trim();
        state.let_head_go();
    }

    /// Ready when more may be appended.
    pub(in crate::turn) async fn has_room(&self) {
        self.until(|state| {
            state.is_whole || state.readers.iter().flatten().all(|reader| state.bytes - reader.read <= MOST_BEHIND)
        })
        .await;
    }

    /// Ready when nobody follows that might want more of it.
    pub(in crate::turn) async fn all_left(&self) {
        self.until(|state| state.is_abandoned()).await;
    }

    /// The same for a turn that ends with its last follower: who would enter from then on begins another.
    pub(in crate::turn) async fn given_up(&self) {
        self.until(|state| {
            state.is_given_up |= state.is_abandoned();
            state.is_given_up
        })
        .await;
    }

    async fn until(&self, is_so: impl Fn(&mut State) -> bool) {
        std::future::poll_fn(|cx| {
            let mut state = self.lock();
            if is_so(&mut state) {
                return Poll::Ready(());
            }
            state.engine = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
