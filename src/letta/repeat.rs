//! Whether a send says that it repeats an earlier one.
//!
//! Both official clients send a message again after a timeout, a lost connection, 408, 409, 429 and any 5xx, and then
//! count their attempts in a header (Stainless). Others name each message with an `Idempotency-Key`
//! (draft-ietf-httpapi-idempotency-key-header).

use http::{HeaderMap, HeaderName};

const RETRY_COUNT: HeaderName = HeaderName::from_static("x-stainless-retry-count");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Bytes of an `Idempotency-Key` at most.
pub const LONGEST_KEY: usize = 256;

/// What a request's head says of its being a repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeat<'a> {
    /// Names the message; the first one with this key is the message, all others repeat it.
    pub key: Option<&'a [u8]>,
    /// It is an attempt after the first.
    pub is_retry: bool,
}

impl<'a> Repeat<'a> {
    pub fn of(headers: &'a HeaderMap) -> Self {
        let key = headers.get(IDEMPOTENCY_KEY).map(|key| key.as_bytes().trim_ascii()).filter(|key| !key.is_empty());
        let count = headers.get(RETRY_COUNT).and_then(|count| count.to_str().ok()?.trim().parse::<u32>().ok());
        Self { key, is_retry: count.is_some_and(|count| count > 0) }
    }

    /// It may be a repeat.
    pub fn is_said(self) -> bool {
        self.is_retry || self.key.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_attempt_is_no_repeat_and_any_later_one_is() {
        for (count, is_retry) in [("0", false), ("1", true), ("2", true), ("", false), ("-1", false), ("x", false)] {
            let headers = HeaderMap::from_iter([(RETRY_COUNT, count.parse().unwrap())]);
            assert_eq!(Repeat::of(&headers), Repeat { key: None, is_retry }, "{count}");
        }
        let headers = HeaderMap::from_iter([(IDEMPOTENCY_KEY, " \"one\" ".parse().unwrap())]);
        assert_eq!(Repeat::of(&headers), Repeat { key: Some(b"\"one\""), is_retry: false });
        assert!(!Repeat::of(&HeaderMap::new()).is_said());
    }
}
