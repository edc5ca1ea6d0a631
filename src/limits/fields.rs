//! What an admitted response tells of the limits: `RateLimit` and `RateLimit-Policy` of the IETF draft, and the
//! `x-ratelimit-*` fields that came before them.

use std::io::Write as _;
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

/// What is left of a plan, told in a response.
#[derive(Debug)]
pub(super) struct Told {
    policy: HeaderValue,
    left: HeaderValue,
    /// The rate of which the least is left.
    least: Option<Left>,
}

impl Told {
    /// `None`: there is nothing to tell, for the plan has no limits or only looks on.
    pub(super) fn new(terms: &Terms, counted: &Counted) -> Option<Self> {
        let Counted { left, places, budgets, .. } = counted;
        if left.is_empty() && places.is_none() && budgets.is_empty() {
            return None;
        }
        let mut text = Vec::with_capacity(96);
        for (window, Left { remaining, reset, .. }) in terms.rates.iter().zip(left) {
            let comma = if text.is_empty() { "" } else { ", " };
            let seconds = seconds(*reset);
            let _ = write!(text, "{comma}\"{}\";r={remaining};t={seconds}", window.name);
        }
        if let Some(places) = places {
            let comma = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{comma}\"{}\";r={places}", terms.in_flight_name());
        }
        for (budget, Remaining { left, reset }) in terms.budgets.iter().zip(budgets) {
            let comma = if text.is_empty() { "" } else { ", " };
            let (left, seconds) = (left.max(&0), seconds(*reset));
            let _ = write!(text, "{comma}\"{}\";r={left};t={seconds}", budget.name);
        }
        let least = left.iter().min_by_key(|left| (left.remaining, std::cmp::Reverse(left.reset))).copied();
        // names and numbers only
        let left = HeaderValue::from_maybe_shared(Bytes::from(text)).ok()?;
        Some(Self { policy: terms.policy.clone(), left, least })
    }

    /// A limit of Letta's own, should there be one, is not the client's to know.
    pub(super) fn tell(self, headers: &mut HeaderMap) {
        headers.insert(POLICY, self.policy);
        headers.insert(RATELIMIT, self.left);
        if let Some(Left { limit, remaining, reset }) = self.least {
            headers.insert(LIMIT, HeaderValue::from(limit));
            headers.insert(REMAINING, HeaderValue::from(remaining));
            headers.insert(RESET, HeaderValue::from(whole_seconds(reset)));
        }
    }
}

/// Rounded up; 0 if nothing is to come back.
fn seconds(time: Duration) -> u64 {
    if time.is_zero() { 0 } else { whole_seconds(time) }
}
