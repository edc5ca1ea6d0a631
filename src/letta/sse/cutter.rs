//! Cuts an event stream where events end, so that whatever is put between two pieces belongs there.

use bytes::{Bytes, BytesMut};

use super::Scanner;

/// Bytes of an unfinished event that are held back at most; a longer one goes out in parts.
const MOST_HELD: usize = 32 * 1024;

/// Follows one event stream and hands on whole events.
#[derive(Debug, Default)]
pub struct Cutter {
    scanner: Scanner,
    /// The beginning of an event whose end has not come.
    held: BytesMut,
}

impl Cutter {
    pub fn new() -> Self {
        Self::default()
    }

    /// What was seen of the stream.
    pub fn scanner(&self) -> &Scanner {
        &self.scanner
    }

    /// What of `data`, behind what is held, makes whole events.
    pub fn whole_events(&mut self, data: Bytes) -> Option<Bytes> {
        let border = self.scanner.feed(&data);
        if border == data.len() && self.held.is_empty() {
            return Some(data);
        }
        if border == 0 && self.held.len() + data.len() <= MOST_HELD {
            self.held.extend_from_slice(&data);
            return None;
        }
        // an event too long to hold goes out as it comes
        let border = if border == 0 { data.len() } else { border };
        self.held.extend_from_slice(data.get(..border).unwrap_or_default());
        let events = self.held.split().freeze();
        self.held.extend_from_slice(data.get(border..).unwrap_or_default());
        Some(events)
    }

    /// What is held of an event that has not ended; `None` if nothing is.
    pub fn rest(&mut self) -> Option<Bytes> {
        (!self.held.is_empty()).then(|| self.held.split().freeze())
    }

    /// Gives up the event that has not ended.
    pub fn forget_rest(&mut self) {
        self.held.clear();
    }
}
