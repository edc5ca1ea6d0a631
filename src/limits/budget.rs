//! Budgets: what turns may cost in a period, by Letta's own count.
//!
//! Nothing is reserved: a turn may start while anything is left, and what Letta reports is charged when it is over. So the
//! last turn of a period may take more than was left. Periods are counted from the Unix epoch: a day begins at midnight
//! UTC.

use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Measure;
use super::terms::BudgetWindow;
use crate::letta::reply::Usage;
use crate::store::{Charged, Ledger};

/// What one has used of one budget.
#[derive(Debug, Default)]
pub(super) struct Purse(Mutex<Used>);

#[derive(Debug, Clone, Copy, Default)]
struct Used {
    /// Which period it is.
    period: u64,
    /// What was charged at this gateway.
    own: u64,
    /// Of that, what other gateways know.
    told: u64,
    /// What was charged at other gateways, as far as it is known here.
    others: u64,
}

/// What is left of a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Remaining {
    /// Under 0 if the last turn took more than was left.
    pub left: i64,
    /// How long until all of it is there again.
    pub reset: Duration,
}

impl Purse {
    /// What is left of `budget` at `now`, the time since the Unix epoch. `sharers`: how many gateways charge alike while
    /// nobody tells them of each other.
    pub(super) fn remaining(&self, budget: &BudgetWindow, now: Duration, sharers: NonZeroU32) -> Remaining {
        let Used { own, told, others, .. } = *self.used(budget, now);
        let unknown = own.saturating_sub(told).saturating_mul(u64::from(sharers.get() - 1));
        let used = own.saturating_add(others).saturating_add(unknown);
        let left = i64::try_from(budget.most).unwrap_or(i64::MAX) - i64::try_from(used).unwrap_or(i64::MAX);
        Remaining { left, reset: until_next(budget.per, now) }
    }

    pub(super) fn charge(&self, budget: &BudgetWindow, now: Duration, usage: Option<&Usage>) {
        let amount = match (budget.what, usage) {
            (Measure::Turns, _) => 1,
            (Measure::Tokens, Some(usage)) => usage.total_tokens,
            (Measure::Steps, Some(usage)) => usage.step_count,
            (Measure::Tokens | Measure::Steps, None) => 0,
        };
        let mut used = self.used(budget, now);
        used.own = used.own.saturating_add(amount);
    }

    /// What other gateways are to be told.
    pub(super) fn ledger(&self, budget: &BudgetWindow, now: Duration) -> Ledger {
        let Used { period, own, .. } = *self.used(budget, now);
        Ledger { name: (&*budget.name).into(), per: budget.per, period, own, most: budget.most }
    }

    /// Learns what all gateways have charged, of which it had told `told`.
    pub(super) fn learn(&self, told: &Ledger, charged: Charged) {
        let mut used = self.lock();
        if charged.period > used.period {
            // the store's clock is ahead of this gateway's
            *used = Used { period: charged.period, own: 0, told: 0, others: charged.total };
        } else if charged.period == used.period && told.period == used.period {
            used.told = used.told.max(told.own);
            used.others = charged.total.saturating_sub(told.own);
        }
    }

    /// Nothing of it is used, as if it were new.
    pub(super) fn is_whole(&self, budget: &BudgetWindow, now: Duration) -> bool {
        let Used { own, others, .. } = *self.used(budget, now);
        own == 0 && others == 0
    }

    fn used(&self, budget: &BudgetWindow, now: Duration) -> MutexGuard<'_, Used> {
        let period = period(budget.per, now);
        let mut used = self.lock();
        if period > used.period {
            *used = Used { period, ..Used::default() };
        }
        used
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time since the Unix epoch.
pub(super) fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn period(per: Duration, now: Duration) -> u64 {
    u64::try_from(now.as_millis() / per.as_millis().max(1)).unwrap_or(u64::MAX)
}

pub(super) fn until_next(per: Duration, now: Duration) -> Duration {
    let per = per.as_millis().max(1);
    Duration::from_millis(u64::try_from(per - now.as_millis() % per).unwrap_or(u64::MAX))
}
