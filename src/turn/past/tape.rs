//! Where answers lie: one behind the other, in pieces of memory that are given back whole.

use std::collections::VecDeque;

/// Bytes of one piece.
pub(super) const PIECE: usize = 16 * 1024;

/// Bytes one behind the other, written at the end and given back at the beginning.
#[derive(Default)]
pub(super) struct Tape {
    /// All but the last are full.
    pub(super) pieces: VecDeque<Vec<u8>>,
    /// Where the first of them begins.
    start: u64,
    /// Where the next byte is written.
    pub(super) end: u64,
}

impl Tape {
    pub(super) fn write(&mut self, mut bytes: &[u8]) {
        self.end += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = self.pieces.back().map_or(0, |piece| PIECE - piece.len());
            if room == 0 {
                self.pieces.push_back(Vec::with_capacity(PIECE));
            }
            let (now, then) = bytes.split_at(bytes.len().min(if room == 0 { PIECE } else { room }));
            if let Some(piece) = self.pieces.back_mut() {
                piece.extend_from_slice(now);
            }
            bytes = then;
        }
    }

    pub(super) fn read(&self, at: u64, length: u64) -> Vec<u8> {
        let length = usize::try_from(length).unwrap_or(0);
        let from = usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let mut read = Vec::with_capacity(length);
        let mut skip = from % PIECE;
        for piece in self.pieces.iter().skip(from / PIECE) {
            let part = piece.get(skip..).unwrap_or_default();
            read.extend_from_slice(part.get(..length - read.len()).unwrap_or(part));
            if read.len() == length {
                break;
            }
            skip = 0;
        }
        read
    }

    /// Gives back what was written before `at`.
    pub(super) fn free_before(&mut self, at: u64) {
        while self.start + PIECE as u64 <= at && self.pieces.pop_front().is_some() {
            self.start += PIECE as u64;
        }
    }
}
