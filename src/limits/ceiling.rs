//! The ceiling in front of the windows: `tower_governor`'s limiter, one for each rate that is the fastest of a plan.
//!
//! It counts what is asked for, under no lock of an account's, and takes nothing back. So it never has counted less than
//! the window of the same rate, and may have counted more: what another window refused. Whom it has no room for asks too
//! fast, and is turned away if a window has nothing left, which is looked at without counting; else the windows decide.

use governor::middleware::NoOpMiddleware;
use http::Request;
use tower_governor::GovernorError;
use tower_governor::governor::{GovernorConfigBuilder, SharedRateLimiter};
use tower_governor::key_extractor::KeyExtractor;

use super::rate::Quota;
use crate::store::Spender;

/// What everyone has asked for of one rate.
#[derive(Debug)]
pub(super) struct Ceiling(SharedRateLimiter<Spender, NoOpMiddleware>);

impl Ceiling {
    pub(super) fn new(quota: Quota) -> Self {
        let config = GovernorConfigBuilder::default()
            .key_extractor(BySpender)
            .period(quota.period)
            .burst_size(quota.burst.get())
            .finish();
        #[expect(clippy::expect_used, reason = "only a zero period or burst is refused, and a Quota has neither")]
        let limiter = config.expect("a quota").limiter().clone();
        Self(limiter)
    }

    /// Counts one more that `spender` asks for. False: the rate gives it less than that.
    pub(super) fn has_room(&self, spender: &Spender) -> bool {
        self.0.check_key(spender).is_ok()
    }

    /// Forgets whoever has as much as a new one.
    pub(super) fn forget_idle(&self) {
        self.0.retain_recent();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// `tower_governor` wants to know how a request names its spender; ours is known before the limiter is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BySpender;

impl KeyExtractor for BySpender {
    type Key = Spender;

    fn extract<T>(&self, request: &Request<T>) -> Result<Spender, GovernorError> {
        request.extensions().get().copied().ok_or(GovernorError::UnableToExtractKey)
    }
}
