//! A kept answer, and its form in Redis.
//!
//! The form carries its version in front, so that gateways of different versions can share a Redis: what one does not
//! know it treats as not there.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes};
use http::HeaderValue;

const VERSION: u8 = 1;
/// Bytes in front of a body: version, time, length and text of the content type.
const LONGEST_HEAD: usize = 1 + 8 + 2 + u16::MAX as usize;

/// An answer with status 200.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub content_type: HeaderValue,
    pub body: Bytes,
    /// When Letta gave it: milliseconds of Unix time, because another gateway may read it.
    pub stored_at: u64,
}

impl Entry {
    /// An answer given now. The bytes are copied, so that no larger buffer is kept for their sake.
    pub fn new(content_type: HeaderValue, body: &[u8]) -> Self {
        Self { content_type, body: Bytes::copy_from_slice(body), stored_at: unix_milliseconds(SystemTime::now()) }
    }

    /// How old it is at `now`; zero if the clocks of two gateways disagree.
    pub fn age(&self, now: SystemTime) -> Duration {
        Duration::from_millis(unix_milliseconds(now).saturating_sub(self.stored_at))
    }

    /// Bytes it takes in memory, about.
    pub(super) fn size(&self) -> usize {
        self.body.len() + self.content_type.len()
    }

    /// None: it cannot be told in this form.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        let content_type = self.content_type.as_bytes();
        let mut bytes = Vec::with_capacity(1 + 8 + 2 + self.size());
        bytes.put_u8(VERSION);
        bytes.put_u64(self.stored_at);
        bytes.put_u16(u16::try_from(content_type.len()).ok()?);
        bytes.put_slice(content_type);
        bytes.put_slice(&self.body);
        Some(bytes)
    }

    /// None: it is not of this form.
    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.try_get_u8().ok()? != VERSION {
            return None;
        }
        let stored_at = bytes.try_get_u64().ok()?;
        let length = usize::from(bytes.try_get_u16().ok()?);
        if bytes.len() < length {
            return None;
        }
        let content_type = HeaderValue::from_maybe_shared(bytes.split_to(length)).ok()?;
        Some(Self { content_type, body: bytes, stored_at })
    }

    /// Bytes of the form at most, for a body of at most `max_entry` bytes.
    pub(super) fn most_bytes(max_entry: u64) -> u64 {
        max_entry.saturating_add(LONGEST_HEAD as u64)
    }
}

fn unix_milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
