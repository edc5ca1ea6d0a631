//! Limits in Redis, exact over all gateways that use the same Redis and prefix.
//!
//! A request is one script, run as one step by Redis' own clock: it counts in every window or in none. All keys of one
//! spender are in one hash slot, `{spender}`, and every key has a time to live. No call waits longer than its budget, and
//! none for a connection; a call that was given up may have been counted.
//!
//! A place in flight is a lease that ends by itself unless it is renewed. If Redis has lost its data, places are told
//! anew as soon as there is a connection, and with each request what its gateway knows of rates and has charged to budgets.

mod leases;
mod reply;
#[cfg(test)]
mod tests;
mod upkeep;
mod usage;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ::redis::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::LONGEST_BUDGET;
use super::client::Client;
use super::link::{Link, Probe, keep};
use super::script::Script;
use crate::store::{Ask, Charged, Known, Ledger, LimitTiming, RedisSettings, Spender, StoreError, Tally};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::RedisLink;
pub use leases::Lease;
use leases::Leases;
use reply::{Asked, charged, number, read};
use upkeep::AT_ONCE;

/// Calls that may wait for replies at once.
const CALLS: usize = 4096;
/// Time budget of what no request waits for.
const UPKEEP_BUDGET: Duration = LONGEST_BUDGET;

static COUNT: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("budget.lua"), include_str!("count.lua"))));
static CHARGE: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("budget.lua"), include_str!("charge.lua"))));

/// What gateways share of limits.
pub struct SharedLimits {
    inner: Arc<Inner>,
    tasks: [JoinHandle<()>; 2],
}

struct Inner {
    link: Arc<Link>,
    prefix: Box<str>,
    budget: Duration,
    timing: LimitTiming,
    calls: Semaphore,
    leases: Arc<Leases>,
    /// Gateways alive, as far as it is known; 1 at least.
    gateways: AtomicU32,
    metrics: Arc<Metrics>,
}

impl SharedLimits {
    /// Begins to connect. Must be called within a tokio runtime.
    pub(super) fn open(client: Client, settings: &RedisSettings, timing: LimitTiming, metrics: Arc<Metrics>) -> Self {
        let link = Arc::new(Link::new(RedisLink::Limits, &metrics));
        let probe = Probe::write(&settings.prefix);
        let keeper = tokio::spawn(keep(Arc::clone(&link), client, probe, settings.timeout, CALLS + 2 * AT_ONCE));
        let inner = Arc::new(Inner {
            link,
            prefix: settings.prefix.as_str().into(),
            budget: settings.timeout,
            timing,
            calls: Semaphore::new(CALLS),
            leases: Leases::new(),
            gateways: AtomicU32::new(1),
            metrics,
        });
        let upkeep = tokio::spawn(Arc::clone(&inner).upkeep());
        Self { inner, tasks: [keeper, upkeep] }
    }

    pub fn is_up(&self) -> bool {
        self.inner.link.is_up()
    }

    /// Waits for a connection made later than `seen`; see [`SharedTurns::reconnected`](super::turns::SharedTurns).
    pub async fn reconnected(&self, seen: Option<Instant>) -> Instant {
        self.inner.link.connected_after(seen).await
    }

    /// How many gateways are alive, as far as it is known; 1 until Redis was asked.
    pub fn gateways(&self) -> u32 {
        self.inner.gateways.load(Ordering::Relaxed)
    }

    /// Counts one request. After an error it may have been counted, but it holds no place.
    pub async fn count(&self, ask: Ask<'_>) -> Result<Tally, StoreError> {
        self.inner.count(ask).await
    }

    /// Says what this gateway has charged to budgets, and learns what all have. It can be said any number of times: what
    /// is said are totals, and [`count`](Self::count) says them, too.
    pub async fn charge(&self, spender: Spender, budgets: &[Ledger]) -> Result<Vec<Charged>, StoreError> {
        self.inner.charge(spender, budgets).await
    }
}

impl Drop for SharedLimits {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Inner {
    async fn count(&self, ask: Ask<'_>) -> Result<Tally, StoreError> {
        if !self.link.is_up() {
            self.metrics.redis_error("refused");
            return Err(StoreError::Down);
        }
        let Ok(_permit) = self.calls.try_acquire() else {
            self.metrics.redis_error("refused");
            return Err(StoreError::Busy);
        };
        let Ask { spender, paces, known, most, budgets, may_stand } = ask;
        let lease = self.leases.ask(spender);
        let ended = self.leases.ended_of(&spender);
        let mut call = COUNT.key(self.key(&spender, "rates"));
        call.key(self.key(&spender, "places"));
        for ledger in budgets {
            call.key(self.budget_key(&spender, ledger));
        }
        call.arg(&lease.name()[..])
            .arg(milliseconds(self.timing.lease))
            .arg(most.map_or(-1, i64::from))
            .arg(u8::from(may_stand));
        // what a reply says is older than it seems by as long as it took
        let doubt = u64::try_from(2 * self.budget.as_micros()).unwrap_or(u64::MAX);
        call.arg(&self.leases.gateway()[..]).arg(doubt).arg(ended.len());
        for number in &ended {
            call.arg(&self.leases.name(*number)[..]);
        }
        for Ledger { per, period, own, most, .. } in budgets {
            call.arg(milliseconds(*per)).arg(*period).arg(*own).arg(*most);
        }
        let known = known.iter().copied().chain(std::iter::repeat(Known::default()));
        for (pace, Known { ahead, untold }) in paces.iter().zip(known) {
            let period = pace.period.as_nanos() as f64 / 1000.0;
            let tolerance = period * f64::from(pace.burst.saturating_sub(1));
            call.arg(&*pace.name).arg(format!("{period:.3}")).arg(format!("{tolerance:.3}"));
            call.arg(u64::try_from(ahead.as_micros()).unwrap_or(u64::MAX)).arg(untold);
        }
        let asked = Asked { lease: Some(lease), counts_places: most.is_some(), budgets: budgets.len() };
        let reply = self.link.invoke(&call, self.budget).await?;
        self.leases.told(&spender, &ended);
        read(reply, asked).ok_or_else(|| {
            self.metrics.redis_error("reply");
            StoreError::Reply
        })
    }

    async fn charge(&self, spender: Spender, budgets: &[Ledger]) -> Result<Vec<Charged>, StoreError> {
        let Ok(_permit) = self.calls.try_acquire() else {
            self.metrics.redis_error("refused");
            return Err(StoreError::Busy);
        };
        let mut call = CHARGE.arg(&self.leases.gateway()[..]);
        for ledger in budgets {
            let Ledger { per, period, own, .. } = ledger;
            call.key(self.budget_key(&spender, ledger)).arg(milliseconds(*per)).arg(*period).arg(*own);
        }
        let Value::Array(values) = self.link.invoke(&call, UPKEEP_BUDGET).await? else { return Err(StoreError::Reply) };
        charged(&mut values.into_iter().map(number), budgets.len()).ok_or(StoreError::Reply)
    }

    fn budget_key(&self, spender: &Spender, ledger: &Ledger) -> String {
        budget_key(&self.prefix, spender, &ledger.name)
    }

    fn key(&self, spender: &Spender, what: &str) -> String {
        key(&self.prefix, spender, what)
    }
}

fn budget_key(prefix: &str, spender: &Spender, name: &str) -> String {
    key(prefix, spender, &format!("budget:{name}"))
}

fn key(prefix: &str, spender: &Spender, what: &str) -> String {
    format!("{prefix}limit:{{{}}}:{what}", hex::encode(spender))
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
