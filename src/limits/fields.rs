//! What an admitted response tells of the limits: `RateLimit` and `RateLimit-Policy` of the IETF draft, and the
//! `x-ratelimit-*` fields that came before them.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::account::Counted;
use super::budget::Remaining;
use super::rate::Left;
use super::terms::Terms;
use crate::error::whole_seconds;

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
/// The reset of what is whole already.
const SOON: HeaderValue = HeaderValue::from_static("1");

/// What is left of a plan, told in a response.
#[derive(Debug)]
pub(super) struct Told {
    policy: HeaderValue,
    left: HeaderValue,
    least: Option<Least>,
}

/// The rate of which the least is left.
#[derive(Debug)]
struct Least {
    limit: HeaderValue,
    remaining: HeaderValue,
    reset: HeaderValue,
}

/// A `RateLimit` field as it is written, and where its numbers stand: they are told a second time.
struct Text(Vec<u8>);

impl Text {
    /// The next item and its `r`.
    fn remaining(&mut self, name: &str, remaining: u64) -> Range<usize> {
        self.0.extend_from_slice(if self.0.is_empty() { b"\"" } else { b", \"" });
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\";r=");
        self.number(remaining)
    }

    /// The item's `t`, in whole seconds rounded up; 0 if nothing is to come back.
    fn reset(&mut self, reset: Duration) -> Range<usize> {
        self.0.extend_from_slice(b";t=");
        self.number(if reset.is_zero() { 0 } else { whole_seconds(reset) })
    }

    fn number(&mut self, number: u64) -> Range<usize> {
        let start = self.0.len();
        self.0.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        start..self.0.len()
    }
}

impl Told {
    /// `None`: there is nothing to tell, for the plan has no limits or only looks on.
    pub(super) fn new(terms: &Terms, counted: &Counted) -> Option<Self> {
        let Counted { left, places, budgets, .. } = counted;
        if left.is_empty() && places.is_none() && budgets.is_empty() {
            return None;
        }
        let mut text = Text(Vec::with_capacity(96));
        // where of the rate of which the least is left
        let mut least: Option<(&Left, &HeaderValue, Range<usize>, Range<usize>)> = None;
        for (window, rate) in terms.rates.iter().zip(left) {
            let remaining = text.remaining(&window.name, rate.remaining.into());
            let reset = text.reset(rate.reset);
            if least.as_ref().is_none_or(|(least, ..)| (rate.remaining, least.reset) < (least.remaining, rate.reset)) {
                least = Some((rate, &window.holds, remaining, reset));
            }
        }
        if let Some(places) = places {
            text.remaining(terms.in_flight_name(), (*places).into());
        }
        for (budget, Remaining { left, reset }) in terms.budgets.iter().zip(budgets) {
            text.remaining(&budget.name, u64::try_from(*left).unwrap_or(0));
            text.reset(*reset);
        }
        let text = Bytes::from(text.0);
        let part = |range| HeaderValue::from_maybe_shared(text.slice(range)).ok();
        let least = least.and_then(|(rate, holds, remaining, reset)| {
            let reset = if rate.reset.is_zero() { SOON } else { part(reset)? };
            Some(Least { limit: holds.clone(), remaining: part(remaining)?, reset })
        });
        // names and numbers only
        Some(Self { policy: terms.policy.clone(), left: part(0..text.len())?, least })
    }

    /// A limit of Letta's own, should there be one, is not the client's to know.
    pub(super) fn tell(self, headers: &mut HeaderMap) {
        headers.insert(POLICY, self.policy);
        headers.insert(RATELIMIT, self.left);
        if let Some(Least { limit, remaining, reset }) = self.least {
            headers.insert(LIMIT, limit);
            headers.insert(REMAINING, remaining);
            headers.insert(RESET, reset);
        }
    }
}
