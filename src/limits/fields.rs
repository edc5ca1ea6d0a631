//! What an admitted response tells of the limits: `RateLimit` and `RateLimit-Policy` of the IETF draft, and the
//! `x-ratelimit-*` fields that came before them.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

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
const SOON: Bytes = Bytes::from_static(b"1");

/// What is left of a plan, told in a response. Its fields are made when the response is there: until then it is small.
pub(super) struct Told {
    terms: Arc<Terms>,
    /// The `RateLimit` field.
    left: Bytes,
    least: Option<Least>,
}

/// The rate of which the least is left, and where its numbers stand in the field.
struct Least {
    window: usize,
    remaining: Range<usize>,
    /// None: it is whole already.
    reset: Option<Range<usize>>,
}

/// A `RateLimit` field as it is written, and where its numbers stand: they are told a second time.
struct Text(SmallVec<[u8; 112]>);

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
    pub(super) fn new(terms: &Arc<Terms>, counted: &Counted) -> Option<Self> {
        let Counted { left, places, budgets, .. } = counted;
        if left.is_empty() && places.is_none() && budgets.is_empty() {
            return None;
        }
        let mut text = Text(SmallVec::new());
        let mut least: Option<(&Left, Least)> = None;
        for (window, (of, rate)) in terms.rates.iter().zip(left).enumerate() {
            let remaining = text.remaining(&of.name, rate.remaining.into());
            let reset = text.reset(rate.reset);
            if least.as_ref().is_none_or(|(least, _)| (rate.remaining, least.reset) < (least.remaining, rate.reset)) {
                let reset = (!rate.reset.is_zero()).then_some(reset);
                least = Some((rate, Least { window, remaining, reset }));
            }
        }
        if let Some(places) = places {
            text.remaining(terms.in_flight_name(), (*places).into());
        }
        for (budget, Remaining { left, reset }) in terms.budgets.iter().zip(budgets) {
            text.remaining(&budget.name, u64::try_from(*left).unwrap_or(0));
            text.reset(*reset);
        }
        let least = least.map(|(_, least)| least);
        Some(Self { terms: Arc::clone(terms), left: Bytes::from_owner(text.0), least })
    }

    /// A limit of Letta's own, should there be one, is not the client's to know.
    pub(super) fn tell(self, headers: &mut HeaderMap) {
        let Self { terms, left, least } = self;
        headers.insert(POLICY, terms.policy.clone());
        // names and numbers only
        let mut tell = |name, text| drop(HeaderValue::from_maybe_shared(text).map(|value| headers.insert(name, value)));
        tell(RATELIMIT, left.clone());
        let Some(Least { window, remaining, reset }) = least else { return };
        tell(REMAINING, left.slice(remaining));
        tell(RESET, reset.map_or(SOON, |reset| left.slice(reset)));
        if let Some(window) = terms.rates.get(window) {
            headers.insert(LIMIT, window.holds.clone());
        }
    }
}
