//! Where answers lie: one behind the other, in pieces of memory that are given back whole.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use prefetch_index::prefetch_index;
use smallvec::SmallVec;

/// Bytes of one piece.
pub(super) const PIECE: usize = 16 * 1024;
/// Bytes that a processor fetches at once.
pub(super) const LINE: usize = 64;
/// So many pieces that were given back are written again: what the system gives anew it has to clear first.
pub(super) const SPARE: usize = 64;

/// Calls for `length` bytes of the memory that `list` has, from `at`.
fn fetch(list: &[u8], at: usize, length: usize) {
    (at..at + length).step_by(LINE).for_each(|at| prefetch_index(list, at));
}

/// Bytes one behind the other, written at the end and given back at the beginning.
#[derive(Default)]
pub(super) struct Tape {
    /// Those that are full.
    pub(super) pieces: VecDeque<Bytes>,
    /// Where the first of them begins.
    start: u64,
    /// The one that is written.
    last: BytesMut,
    /// Those to be written again.
    pub(super) spare: Vec<BytesMut>,
    /// Where the next byte is written.
    pub(super) end: u64,
}

impl Tape {
    pub(super) fn write(&mut self, mut bytes: &[u8]) {
        self.end += bytes.len() as u64;
        while !bytes.is_empty() {
            if self.last.capacity() == 0 {
                self.last = self.spare.pop().unwrap_or_else(|| BytesMut::with_capacity(PIECE));
            }
            let (now, then) = bytes.split_at(bytes.len().min(PIECE - self.last.len()));
            self.last.extend_from_slice(now);
            if self.last.len() == PIECE {
                self.pieces.push_back(std::mem::take(&mut self.last).freeze());
            }
            bytes = then;
        }
    }

    /// Calls for the memory that the next `bytes` are written to: it was given back long ago and is in no cache, and
    /// whoever writes to it would wait.
    pub(super) fn fetch_next(&self, bytes: usize) {
        let rest = if self.last.capacity() == 0 { 0 } else { PIECE - self.last.len() };
        fetch(&self.last, self.last.len(), bytes.min(rest));
        if let Some(next) = self.spare.last().filter(|_| bytes > rest) {
            fetch(next, 0, bytes - rest);
        }
    }

    /// What was written there. Of pieces that are full it is a part, and keeps them: nothing is copied.
    pub(super) fn read(&self, at: u64, length: u64) -> SmallVec<[Bytes; 1]> {
        let mut read = SmallVec::new();
        let mut from = usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let mut left = usize::try_from(length).unwrap_or(0);
        while left > 0 {
            let (piece, skip) = (from / PIECE, from % PIECE);
            let part = skip..PIECE.min(skip + left);
            let (next, length) = (self.pieces.get(piece), part.len());
            read.push(match next {
                Some(piece) => piece.slice(part),
                None => Bytes::copy_from_slice(self.last.get(part).unwrap_or_default()),
            });
            (from, left) = (from + length, left - length);
        }
        read
    }

    /// Gives back what was written before `at`.
    pub(super) fn free_before(&mut self, at: u64) {
        while self.start + PIECE as u64 <= at
            && let Some(piece) = self.pieces.pop_front()
        {
            self.start += PIECE as u64;
            // one that somebody reads goes with its last reader
            if self.spare.len() < SPARE
                && let Ok(mut piece) = piece.try_into_mut()
            {
                piece.clear();
                self.spare.push(piece);
            }
        }
    }
}
