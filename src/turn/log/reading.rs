//! The followers' side of a log: each reads it at its own place.

use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::StatusCode;

use super::kept::KeptHead;
use super::{Ended, Head, Log, Phase, Reader, State};
use crate::error::Error;
use crate::turn::past::Number;

/// What the last word of a reader says.
pub(in crate::turn) struct Left {
    /// Nobody follows a turn any more that is in Letta's hands.
    pub is_detached: bool,
    /// Where the turn is packed, if it is, and whether somebody has all of it.
    pub packed: Option<(Number, bool)>,
}

impl Log {
    /// A reader from the first piece on; `None` if that is not there any more.
    pub(in crate::turn) fn enter(&self) -> Option<usize> {
        self.enter_as(false)
    }

    /// The reader whose task works on the turn.
    pub(in crate::turn) fn enter_driving(&self) -> Option<usize> {
        self.enter_as(true)
    }

    /// The turn has a task of its own now.
    pub(in crate::turn) fn is_driven_no_more(&self) {
        self.lock().readers.iter_mut().flatten().for_each(|reader| reader.drives = false);
    }

    fn enter_as(&self, drives: bool) -> Option<usize> {
        let mut state = self.lock();
        if !state.is_whole || state.is_given_up {
            return None;
        }
        let reader = Some(Reader { next: 0, read: 0, drives, waker: None });
        if let Some(place) = state.readers.iter().position(Option::is_none) {
            if let Some(free) = state.readers.get_mut(place) {
                *free = reader;
            }
            return Some(place);
        }
        state.readers.push(reader);
        Some(state.readers.len() - 1)
    }

    pub(in crate::turn) fn leave(&self, place: usize) -> Left {
        let mut state = self.lock();
        let left = state.readers.get_mut(place).and_then(Option::take);
        let is_over = state.ended.is_some();
        if left.is_some_and(|reader| state.is_told(&reader) || is_over && reader.read == state.bytes) {
            state.is_delivered = true;
        }
        state.trim();
        state.let_head_go();
        state.wake_engine();
        Left {
            is_detached: state.phase == Phase::Sent && state.is_abandoned(),
            packed: state.number.map(|number| (number, state.is_delivered)),
        }
    }

    /// Nobody follows it, and nobody has got all of it.
    pub(in crate::turn) fn is_abandoned(&self) -> bool {
        self.lock().is_abandoned()
    }

    /// It ends without having been sent.
    pub(in crate::turn) fn is_given_up(&self) -> bool {
        self.lock().is_given_up
    }

    pub(in crate::turn) fn has_head(&self) -> bool {
        self.has_head.load(Ordering::Acquire)
    }

    /// Whoever has read so far has lost nothing by leaving.
    pub(in crate::turn) fn is_told(&self, place: usize) -> bool {
        let state = self.lock();
        let reader = state.readers.get(place).and_then(Option::as_ref);
        reader.is_some_and(|reader| state.is_told(reader))
    }

    /// The status of the head, if there is one.
    pub(in crate::turn) fn status(&self) -> Option<StatusCode> {
        let state = self.lock();
        state.fresh.as_ref().map(|head| head.status).or(state.head.as_ref().map(|head| head.status))
    }

    /// To be asked once by each reader: who is the last takes the head as it came.
    pub(in crate::turn) fn poll_head(&self, place: usize, cx: &Context<'_>) -> Poll<Result<Head, Error>> {
        let mut state = self.lock();
        if let Some(fresh) = state.fresh.take() {
            let is_last = state.number.is_some() && state.followers() <= 1;
            if state.head.is_none() && !is_last {
                state.head = Some(KeptHead::of(&fresh));
            }
            return Poll::Ready(Ok(*fresh));
        }
        match state.head() {
            Some(head) => Poll::Ready(head),
            None => {
                register(&mut state, place, cx);
                Poll::Pending
            }
        }
    }

    pub(in crate::turn) fn poll_piece(&self, place: usize, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(reader) = state.readers.get_mut(place).and_then(Option::as_mut) else { return Poll::Ready(None) };
        let piece = reader.next.checked_sub(state.first).and_then(|at| state.pieces.get(at)).cloned();
        if let Some(piece) = piece {
            reader.next += 1;
            reader.read += piece.len() as u64;
            if !state.is_whole {
                state.trim();
                state.wake_engine();
            }
            return Poll::Ready(Some(Ok(piece)));
        }
        match &state.ended {
            Some(Ended::Whole) => Poll::Ready(None),
            Some(Ended::Failed(error)) => Poll::Ready(Some(Err(error.again()))),
            Some(Ended::Told(error)) => Poll::Ready(Some(Err(Error::StreamBroken(Box::new(error.again()))))),
            None => {
                register(state, place, cx);
                Poll::Pending
            }
        }
    }

    /// The whole answer in one piece, if it is over and there is no more than that.
    pub(in crate::turn) fn whole(&self, place: usize) -> Option<Bytes> {
        let mut state = self.lock();
        let state = &mut *state;
        let reader = state.readers.get_mut(place).and_then(Option::as_mut)?;
        if !matches!(state.ended, Some(Ended::Whole)) || state.first != 0 || state.pieces.get(1).is_some() {
            return None;
        }
        let whole = state.pieces.get(0).cloned();
        (reader.next, reader.read) = (usize::from(whole.is_some()), state.bytes);
        Some(whole.unwrap_or_default())
    }
}

fn register(state: &mut State, place: usize, cx: &Context<'_>) {
    if let Some(Some(reader)) = state.readers.get_mut(place) {
        match &mut reader.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }
}
