//! Limits in Redis, exact over all gateways that use the same Redis and prefix.
//!
//! A request is one script, run as one step by Redis' own clock: it counts in every window or in none. All keys of one
//! spender are in one hash slot, `{spender}`, and every key has a time to live. No call waits longer than its budget, and
//! none for a connection; a call that was given up may have been counted.
//!
//! A place in flight is a lease that ends by itself unless it is renewed. If Redis has lost its data, places are told
//! anew as soon as there is a connection, and with each request what its gateway knows of rates and has charged to budgets.

mod leases;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ::redis::{Client, Cmd, Script, Value, cmd};
use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::link::{Link, Probe, keep};
use crate::store::{Ask, Charged, Known, Ledger, LimitTiming, RedisSettings, Spender, StoreError, Tally, Verdict};
use crate::telemetry::Metrics;
pub use leases::Lease;
use leases::Leases;

/// Calls that may wait for replies at once.
const CALLS: usize = 4096;
/// What is told of at once.
const AT_ONCE: usize = 64;
/// Time budget of what no request waits for.
const UPKEEP_BUDGET: Duration = Duration::from_secs(1);

static COUNT: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("budget.lua"), include_str!("count.lua"))));
static CHARGE: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("budget.lua"), include_str!("charge.lua"))));
static RENEW: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("renew.lua")));
static HEARTBEAT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("heartbeat.lua")));

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
        let link = Arc::new(Link::new("limits", Arc::clone(&metrics)));
        let keeper =
            tokio::spawn(keep(Arc::clone(&link), client, Probe::ping(), settings.timeout, CALLS + 2 * AT_ONCE));
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

    /// Tells ends, renews, says that this gateway is alive; for ever.
    async fn upkeep(self: Arc<Self>) {
        let mut beats = every(self.timing.alive / 5);
        let mut renewals = every(self.timing.lease / 3);
        let mut seen = None;
        loop {
            tokio::select! {
                since = self.link.connected_after(seen) => {
                    seen = Some(since);
                    self.renew().await;
                    self.heartbeat().await;
                    self.tell_ended().await;
                }
                () = self.leases.ended.notified() => self.tell_ended().await,
                _ = renewals.tick() => self.renew().await,
                _ = beats.tick() => {
                    self.heartbeat().await;
                    self.tell_ended().await;
                }
            }
        }
    }

    async fn tell_ended(&self) {
        if !self.link.is_up() {
            return;
        }
        for some in self.leases.all_ended().chunks(AT_ONCE) {
            join_all(some.iter().map(|(spender, numbers)| self.tell_ended_of(spender, numbers))).await;
        }
    }

    async fn tell_ended_of(&self, spender: &Spender, numbers: &[u64]) {
        let mut command: Cmd = cmd("ZREM");
        command.arg(self.key(spender, "places"));
        for number in numbers {
            command.arg(&self.leases.name(*number)[..]);
        }
        if self.link.run(&command, UPKEEP_BUDGET).await.is_ok() {
            self.leases.told(spender, numbers);
        }
    }

    async fn renew(&self) {
        if !self.link.is_up() {
            return;
        }
        for some in self.leases.all_live().chunks(AT_ONCE) {
            join_all(some.iter().map(|(spender, numbers)| async move {
                let mut call = RENEW.key(self.key(spender, "places"));
                call.arg(milliseconds(self.timing.lease));
                for number in numbers {
                    call.arg(&self.leases.name(*number)[..]);
                }
                // what cannot be told now is told when there is a connection again
                let _ = self.link.invoke(&call, UPKEEP_BUDGET).await;
                self.leases.renewed(spender, numbers);
            }))
            .await;
        }
    }

    async fn heartbeat(&self) {
        if !self.link.is_up() {
            return;
        }
        let mut call = HEARTBEAT.key(format!("{}limit:gateways", self.prefix));
        call.arg(&self.leases.gateway()[..]).arg(milliseconds(self.timing.alive));
        if let Ok(Value::Int(alive)) = self.link.invoke(&call, UPKEEP_BUDGET).await {
            let alive = u32::try_from(alive).unwrap_or(u32::MAX).max(1);
            self.gateways.store(alive, Ordering::Relaxed);
            self.metrics.limit_gateways.set(alive.into());
        }
    }

    fn budget_key(&self, spender: &Spender, ledger: &Ledger) -> String {
        self.key(spender, &format!("budget:{}", ledger.name))
    }

    fn key(&self, spender: &Spender, what: &str) -> String {
        format!("{}limit:{{{}}}:{what}", self.prefix, hex::encode(spender))
    }
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// What was asked for.
struct Asked {
    lease: Option<Lease>,
    counts_places: bool,
    budgets: usize,
}

fn read(reply: Value, mut asked: Asked) -> Option<Tally> {
    let Value::Array(values) = reply else { return None };
    let mut numbers = values.into_iter().map(number);
    let (verdict, in_flight) = (numbers.next()??, numbers.next()??);
    let charged = charged(&mut numbers, asked.budgets)?;
    let ahead = numbers.map(|number| Some(Duration::from_micros(number?))).collect::<Option<_>>()?;
    let lease = asked.lease.take()?;
    let verdict = match verdict {
        0 if asked.counts_places => Verdict::Counted(Some(lease.counted())),
        other => {
            lease.refused();
            match other {
                0 => Verdict::Counted(None),
                1 => Verdict::Standing,
                2 => Verdict::Full,
                3 => Verdict::TooFast,
                4 => Verdict::Spent,
                _ => return None,
            }
        }
    };
    Some(Tally { verdict, ahead, charged, in_flight: u32::try_from(in_flight).ok()? })
}

fn number(value: Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(number).ok(),
        _ => None,
    }
}

fn charged(numbers: &mut impl Iterator<Item = Option<u64>>, count: usize) -> Option<Vec<Charged>> {
    let mut charged = Vec::with_capacity(count);
    for _ in 0..count {
        charged.push(Charged { period: numbers.next()??, total: numbers.next()?? });
    }
    Some(charged)
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
