//! The rate of one quota: tower_governor's limiter (GCRA), shared by all keys whose plans give the same rate.
//!
//! A key may spend `burst` requests at once and gets one back every `per / requests`. Decisions are exact under
//! concurrency. `limit` and `remaining` are told in the same unit, the burst; times are never told too short.

use std::time::Duration;

use governor::RateLimiter;
use governor::clock::{Clock, Reference};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use http::Request;
use tower_governor::GovernorError;
use tower_governor::governor::{GovernorConfigBuilder, SharedRateLimiter};
use tower_governor::key_extractor::KeyExtractor;

use super::Rate;
use crate::error::{Refusal, Window};

/// What a key is to the limiter: the front of the SHA-256 of its id, the same in every load of the configuration.
pub(super) type Spender = [u8; 16];

/// Longest time the limiter's arithmetic (nanoseconds in 64 bits) is trusted with: about 146 years.
const LONGEST: u64 = u64::MAX / 4;

/// What a key may still spend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Requests at once (the burst).
    pub limit: u32,
    pub remaining: u32,
    /// How long until `remaining` is `limit` again, at most.
    pub reset: Duration,
}

/// One quota's limiter.
pub(super) struct RateLimit {
    pub rate: Rate,
    quota: Quota,
    limiter: SharedRateLimiter<Spender, StateInformationMiddleware>,
}

/// A [`Rate`] as the limiter takes it: one request back every `period`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quota {
    pub period: Duration,
    pub burst: u32,
}

impl Quota {
    pub(super) fn of(rate: Rate) -> Self {
        let per = u64::try_from(rate.per.as_nanos()).unwrap_or(LONGEST).min(LONGEST);
        let period = (per / u64::from(rate.requests.max(1))).max(1);
        let most = u32::try_from(LONGEST / period).unwrap_or(u32::MAX);
        Self { period: Duration::from_nanos(period), burst: rate.burst.clamp(1, most.max(1)) }
    }
}

impl RateLimit {
    pub(super) fn new(rate: Rate) -> Self {
        let quota = Quota::of(rate);
        let config = GovernorConfigBuilder::default()
            .key_extractor(ById)
            .period(quota.period)
            .burst_size(quota.burst)
            .use_headers()
            .finish();
        #[expect(clippy::expect_used, reason = "only a zero period or burst is refused, and a Quota has neither")]
        let limiter = config.expect("a quota").limiter().clone();
        Self { rate, quota, limiter }
    }

    /// Spends one request of `spender`'s, if it has one.
    pub(super) fn spend(&self, spender: &Spender) -> Result<Left, Refusal> {
        spend(&self.limiter, self.quota, spender)
    }

    /// Forgets whoever has spent nothing lately.
    pub(super) fn forget_idle(&self) {
        self.limiter.retain_recent();
    }
}

pub(super) fn spend<C: Clock>(
    limiter: &RateLimiter<Spender, DefaultKeyedStateStore<Spender>, C, StateInformationMiddleware>,
    quota: Quota,
    spender: &Spender,
) -> Result<Left, Refusal>
where
    C::Instant: Reference,
{
    match limiter.check_key(spender) {
        Ok(state) => {
            let remaining = state.remaining_burst_capacity().min(quota.burst);
            let reset = quota.period.saturating_mul(quota.burst - remaining);
            Ok(Left { limit: quota.burst, remaining, reset })
        }
        Err(until) => {
            let retry_after = until.wait_time_from(limiter.clock().now());
            let reset = retry_after.saturating_add(quota.period.saturating_mul(quota.burst.saturating_sub(1)));
            Err(Refusal { window: Window::Rate, retry_after, limit: quota.burst, remaining: 0, reset })
        }
    }
}

/// tower_governor wants to know how a request names its key; ours is known before the limiter is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ById;

impl KeyExtractor for ById {
    type Key = Spender;

    fn extract<T>(&self, request: &Request<T>) -> Result<Spender, GovernorError> {
        request.extensions().get().copied().ok_or(GovernorError::UnableToExtractKey)
    }
}
