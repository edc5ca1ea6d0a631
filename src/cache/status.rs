//! What a response tells of the cache: `Cache-Status` (RFC 9211) and `Age` (RFC 9111 §5.1).
//!
//! Both are on every answer the cache could have kept; an answer Letta has just given is of age 0.

use std::time::Duration;

use http::header::AGE;
use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use crate::letta::message::NotCacheable;
use crate::telemetry::metrics::CacheResult;

pub(super) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Why a request went on to Letta. Whether its answer will be kept is not known when its head goes out, so `stored`
/// is never told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Forwarded {
    Miss,
    /// The store gave no answer in time.
    Unavailable,
    /// The client asked for a fresh answer.
    Request,
    /// What was kept is older than the client accepts.
    Stale,
    /// The body is too long to be read before it is sent on.
    TooLong,
    /// Not JSON as it stands.
    NotJson,
    /// Not a message whose answer can be given again.
    NotCacheable(NotCacheable),
}

impl Forwarded {
    pub(super) fn result(self) -> CacheResult {
        match self {
            Self::Miss | Self::Stale => CacheResult::Miss,
            Self::Unavailable => CacheResult::Unavailable,
            Self::Request | Self::TooLong | Self::NotJson | Self::NotCacheable(_) => CacheResult::Bypass,
        }
    }

    fn value(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Miss => "letta-gateway; fwd=miss",
            Self::Unavailable => "letta-gateway; fwd=miss; detail=store-unavailable",
            Self::Request => "letta-gateway; fwd=request",
            Self::Stale => "letta-gateway; fwd=request; detail=older-than-asked-for",
            Self::TooLong => "letta-gateway; fwd=bypass; detail=request-too-long",
            Self::NotJson => "letta-gateway; fwd=bypass; detail=not-json",
            Self::NotCacheable(why) => match why {
                NotCacheable::Unclear => "letta-gateway; fwd=bypass; detail=unclear-message",
                NotCacheable::Streams => "letta-gateway; fwd=bypass; detail=stream",
                NotCacheable::Involves => "letta-gateway; fwd=bypass; detail=involves-others",
                NotCacheable::Resumes => "letta-gateway; fwd=bypass; detail=resumes-a-turn",
                NotCacheable::Content => "letta-gateway; fwd=bypass; detail=content",
            },
        })
    }

    pub(super) fn tell(self, headers: &mut HeaderMap) {
        headers.append(CACHE_STATUS, self.value());
        match self {
            Self::Miss | Self::Unavailable | Self::Request | Self::Stale => {
                headers.insert(AGE, HeaderValue::from_static("0"));
            }
            Self::TooLong | Self::NotJson | Self::NotCacheable(_) => {}
        }
    }
}

/// Tells of a kept answer of `age`, good for `left` more.
pub(super) fn tell_hit(age: Duration, left: Duration, headers: &mut HeaderMap) {
    let mut text: SmallVec<[u8; 64]> = SmallVec::from_slice(b"letta-gateway; hit; ttl=");
    text.extend_from_slice(itoa::Buffer::new().format(left.as_secs()).as_bytes());
    // digits and the text above are a header value
    if let Ok(value) = HeaderValue::from_bytes(&text) {
        headers.insert(CACHE_STATUS, value);
    }
    headers.insert(AGE, HeaderValue::from(age.as_secs()));
}
