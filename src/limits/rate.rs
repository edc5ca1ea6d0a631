//! The rate of one quota: governor's limiter (GCRA), shared by all whose plans give the same rate.
//!
//! One may spend `burst` requests at once and gets one back every `per / requests`. What a limiter knows of one is a
//! [`Cell`] of the account's own, and not an entry of the limiter's (as it is in the [`Ceiling`]), because a request that
//! another window refuses is given back. `limit` and `remaining` are told in the same unit, the burst; times are never told
//! too short.

use std::hash::{Hash, Hasher};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota as GovernorQuota, RateLimiter};
use tokio::time::Instant;

use super::Rate;
use super::ceiling::Ceiling;
use crate::store::{Known, Pace};

/// Longest time the limiter's arithmetic (nanoseconds in 64 bits) is trusted with: about 146 years.
const LONGEST: u64 = u64::MAX / 4;

/// What one may still spend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Left {
    /// Requests at once (the burst).
    pub limit: u32,
    pub remaining: u32,
    /// How long until `remaining` is `limit` again, at most.
    pub reset: Duration,
}

/// There is nothing left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spent {
    pub limit: u32,
    pub retry_after: Duration,
    pub reset: Duration,
}

/// One quota's limiter.
#[derive(Debug)]
pub(super) struct RateLimit {
    pub rate: Rate,
    quota: Quota,
    limiter: RateLimiter<Cell, InCell, Ticking, StateInformationMiddleware>,
    /// Made when a plan is found of which this is the fastest rate.
    ceiling: OnceLock<Ceiling>,
}

/// A [`Rate`] as the limiter takes it: one request back every `period`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quota {
    pub period: Duration,
    pub burst: NonZeroU32,
}

impl Quota {
    pub(super) fn of(rate: Rate) -> Self {
        let per = nanoseconds(rate.per);
        let period = (per / u64::from(rate.requests.max(1))).max(1);
        let most = u32::try_from(LONGEST / period).unwrap_or(u32::MAX).max(1);
        let burst = NonZeroU32::new(rate.burst.min(most)).unwrap_or(NonZeroU32::MIN);
        Self { period: Duration::from_nanos(period), burst }
    }

    /// How long `requests` take to come back.
    fn time_of(&self, requests: u32) -> Duration {
        self.period.saturating_mul(requests)
    }
}

impl RateLimit {
    pub(super) fn new(rate: Rate) -> Self {
        let quota = Quota::of(rate);
        #[expect(clippy::expect_used, reason = "only a zero period is refused, and a Quota has none")]
        let governed = GovernorQuota::with_period(quota.period).expect("a quota").allow_burst(quota.burst);
        Self {
            rate,
            quota,
            limiter: RateLimiter::new(governed, InCell, Ticking(Instant::now())),
            ceiling: OnceLock::new(),
        }
    }

    /// What turns away whoever asks for more than this rate gives, before its windows are asked.
    pub(super) fn ceiling(&self) -> &Ceiling {
        self.ceiling.get_or_init(|| Ceiling::new(self.quota))
    }

    pub(super) fn forget_idle(&self) {
        if let Some(ceiling) = self.ceiling.get() {
            ceiling.forget_idle();
        }
    }

    /// Spends one request of the cell's, if it has one, as if it were `cost` of them: there are as many that share what
    /// the cell knows. One request passes at once however many they are.
    pub(super) fn spend(&self, cell: &Cell, cost: NonZeroU32) -> Result<Left, Spent> {
        let limit = self.quota.burst.get();
        // a limiter takes no more than its burst at once
        let at_once = cost.min(self.quota.burst);
        let checked = match at_once.get() {
            1 => self.limiter.check_key(cell),
            #[expect(clippy::expect_used, reason = "refused is only what is more than the burst")]
            _ => self.limiter.check_key_n(cell, at_once).expect("within the burst"),
        };
        match checked {
            Ok(state) => {
                cell.add(self.quota.time_of(cost.get() - at_once.get()));
                let remaining = state.remaining_burst_capacity().min(limit);
                let reset = self.quota.time_of(limit - remaining);
                Ok(Left { limit, remaining: remaining / cost, reset })
            }
            Err(until) => {
                let retry_after = until.wait_time_from(self.limiter.clock().now());
                let reset = retry_after.saturating_add(self.quota.time_of(limit - 1));
                Err(Spent { limit, retry_after, reset })
            }
        }
    }

    /// Takes back that a request was spent at `cost`.
    pub(super) fn give_back(&self, cell: &Cell, cost: NonZeroU32) {
        cell.sub(self.quota.time_of(cost.get()));
    }

    /// Now, as [`learn`](Self::learn) wants to know it.
    pub(super) fn now(&self) -> Duration {
        self.limiter.clock().now().into()
    }

    /// Makes the cell know what was told of it at `then`: that in `ahead` nothing of it would be spent any more.
    pub(super) fn learn(&self, cell: &Cell, then: Duration, ahead: Duration) {
        let whole = nanoseconds(then.saturating_add(ahead));
        cell.0.whole.store(whole, Ordering::Relaxed);
        cell.0.shared.store(whole, Ordering::Relaxed);
    }

    /// What is to be told of the cell at `now`: what was last learned, and the requests since that nobody was told of. They
    /// count as told; [`owe`](Self::owe) says that they were not.
    pub(super) fn tell(&self, cell: &Cell, now: Duration) -> Known {
        let shared = Duration::from_nanos(cell.0.shared.load(Ordering::Relaxed));
        Known { ahead: shared.saturating_sub(now), untold: cell.0.untold.swap(0, Ordering::Relaxed) }
    }

    /// The shared store is to decide: if it was not told of all, what is known here is no ceiling.
    pub(super) fn rejoin(&self, cell: &Cell) {
        if cell.0.untold.load(Ordering::Relaxed) != 0 {
            cell.0.whole.store(0, Ordering::Relaxed);
        }
    }

    /// Nobody but this gateway is to decide: of what was last learned, as much is spent as if every one of `sharers` had let
    /// pass what this one did.
    pub(super) fn part(&self, cell: &Cell, sharers: NonZeroU32) {
        let untold = cell.0.untold.load(Ordering::Relaxed).saturating_mul(sharers.get());
        let known = Duration::from_nanos(cell.0.shared.load(Ordering::Relaxed)).max(self.now());
        if untold != 0 {
            cell.0.whole.fetch_max(nanoseconds(known + self.quota.time_of(untold)), Ordering::Relaxed);
        }
    }

    /// So many more requests are to be told.
    pub(super) fn owe(&self, cell: &Cell, requests: u32) {
        // what is more than the burst makes no difference
        let most = self.burst();
        let more = |untold: u32| Some(untold.saturating_add(requests).min(most));
        let _ = cell.0.untold.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// What is left of a quota of which in `ahead` nothing is spent any more.
    pub(super) fn left(&self, ahead: Duration) -> Left {
        let limit = self.burst();
        let period = self.quota.period.as_nanos();
        let spent = u32::try_from(ahead.as_nanos().div_ceil(period)).unwrap_or(u32::MAX).min(limit);
        Left { limit, remaining: limit - spent, reset: ahead }
    }

    /// The same, where there is nothing left.
    pub(super) fn spent(&self, ahead: Duration) -> Spent {
        let limit = self.burst();
        Spent { limit, retry_after: ahead.saturating_sub(self.quota.time_of(limit - 1)), reset: ahead }
    }

    /// That nothing of the cell's is left for one more, if it is so and the shared store was told of all. Counts nothing.
    pub(super) fn has_spent(&self, cell: &Cell) -> Option<Spent> {
        let whole = Duration::from_nanos(cell.0.whole.load(Ordering::Relaxed));
        let spent = self.spent(whole.saturating_sub(self.now()));
        let is_told = cell.0.untold.load(Ordering::Relaxed) == 0;
        (is_told && !spent.retry_after.is_zero()).then_some(spent)
    }

    /// How long one request takes to come back.
    pub(super) fn period(&self) -> Duration {
        self.quota.period
    }

    /// What the shared store is to know of it.
    pub(super) fn pace(&self) -> Pace {
        let Rate { requests, per, .. } = self.rate;
        let name = format!("{requests}/{}/{}", per.as_millis(), self.burst());
        Pace { name: name.into(), period: self.quota.period, burst: self.burst() }
    }

    pub(super) fn burst(&self) -> u32 {
        self.quota.burst.get()
    }

    /// How long a quota that is spent takes to be whole again.
    pub(super) fn whole_after(&self) -> Duration {
        self.quota.time_of(self.burst())
    }

    /// Nothing of it is spent, as if it were new.
    pub(super) fn is_whole(&self, cell: &Cell) -> bool {
        cell.0.whole.load(Ordering::Relaxed) <= self.limiter.clock().now().as_u64()
    }
}

/// What a limiter knows of one.
#[derive(Debug, Clone, Default)]
pub(super) struct Cell(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// When its quota is whole again by the limiter's clock, in nanoseconds; 0: nothing was ever spent.
    whole: AtomicU64,
    /// The same, as it was last learned from the shared store.
    shared: AtomicU64,
    /// Requests that the shared store was not told of.
    untold: AtomicU32,
}

impl Cell {
    fn add(&self, time: Duration) {
        if !time.is_zero() {
            self.0.whole.fetch_add(nanoseconds(time), Ordering::Relaxed);
        }
    }

    fn sub(&self, time: Duration) {
        let less = |whole: u64| Some(whole.saturating_sub(nanoseconds(time)));
        let _ = self.0.whole.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

/// To the limiter a cell is its own key.
impl PartialEq for Cell {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Cell {}

impl Hash for Cell {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

/// Looks nothing up: the key is the state.
#[derive(Debug)]
struct InCell;

impl StateStore for InCell {
    type Key = Cell;

    fn measure_and_replace<T, F, E>(&self, cell: &Cell, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut now = cell.0.whole.load(Ordering::Relaxed);
        loop {
            let (told, next) = decide((now != 0).then(|| Nanos::from(now)))?;
            match cell.0.whole.compare_exchange_weak(now, next.as_u64(), Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(told),
                Err(changed) => now = changed,
            }
        }
    }
}

/// Time since the limiter was made.
#[derive(Debug, Clone, Copy)]
struct Ticking(Instant);

impl Clock for Ticking {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::from(nanoseconds(self.0.elapsed()))
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(LONGEST).min(LONGEST)
}
