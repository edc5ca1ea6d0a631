//! What no request waits for: places that have ended are told, the others renewed, and that this gateway is alive.

use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ::redis::{Cmd, Value, cmd};
use futures_util::future::join_all;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{Inner, Script, UPKEEP_BUDGET, milliseconds};
use crate::store::Spender;

/// What is told of at once.
pub(super) const AT_ONCE: usize = 64;

static RENEW: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("renew.lua")));
static HEARTBEAT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("heartbeat.lua")));

impl Inner {
    /// Tells ends, renews, says that this gateway is alive; for ever.
    pub(super) async fn upkeep(self: Arc<Self>) {
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
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
