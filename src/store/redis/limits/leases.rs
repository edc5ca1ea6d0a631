//! The places in flight that this gateway holds in Redis.
//!
//! A lease ends when its request does. Redis is told soon after, and at the latest by the next request of the same
//! spender, so that whoever has seen the end of an answer finds its place free (at this gateway). A lease that nobody
//! renews ends by itself: a gateway that dies holds nothing for longer.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::store::Spender;

/// Leases that one call tells the end of, or renews, at most.
pub(super) const MOST_TOLD: usize = 256;

/// What a lease is called in Redis: its gateway, its number there.
pub(super) type Name = [u8; 16];

pub(super) struct Leases {
    gateway: [u8; 8],
    next: AtomicU64,
    held: Mutex<HashMap<Spender, Held>>,
    /// There are ended ones to be told.
    pub ended: Notify,
}

#[derive(Default)]
struct Held {
    live: HashSet<u64>,
    /// Redis may count them still.
    ended: Vec<u64>,
}

/// A place in flight, counted over all gateways; free again when it is dropped.
pub struct Lease {
    of: Arc<Leases>,
    spender: Spender,
    number: u64,
    state: State,
}

#[derive(PartialEq, Eq)]
enum State {
    /// Redis may count it.
    Asked,
    Counted,
    /// Redis does not count it.
    Refused,
}

impl Leases {
    pub(super) fn new() -> Arc<Self> {
        let mut gateway = [0; 8];
        // without randomness two gateways could be one
        let _ = getrandom::fill(&mut gateway);
        Arc::new(Self { gateway, next: AtomicU64::new(0), held: Mutex::default(), ended: Notify::new() })
    }

    /// Names this gateway among all.
    pub(super) fn gateway(&self) -> &[u8; 8] {
        &self.gateway
    }

    /// A lease that is to be asked for.
    pub(super) fn ask(self: &Arc<Self>, spender: Spender) -> Lease {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Lease { of: Arc::clone(self), spender, number, state: State::Asked }
    }

    /// Those of `spender` that have ended; [`told`](Self::told) when Redis knows.
    pub(super) fn ended_of(&self, spender: &Spender) -> Vec<u64> {
        let held = self.held();
        held.get(spender).map_or_else(Vec::new, |held| held.ended.iter().take(MOST_TOLD).copied().collect())
    }

    /// All spenders of whom leases have ended.
    pub(super) fn all_ended(&self) -> Vec<(Spender, Vec<u64>)> {
        let held = self.held();
        let ended = held.iter().filter(|(_, held)| !held.ended.is_empty());
        ended.map(|(spender, held)| (*spender, held.ended.iter().take(MOST_TOLD).copied().collect())).collect()
    }

    /// Redis knows that these have ended.
    pub(super) fn told(&self, spender: &Spender, numbers: &[u64]) {
        if numbers.is_empty() {
            return;
        }
        let mut all = self.held();
        if let Some(held) = all.get_mut(spender) {
            held.ended.retain(|number| !numbers.contains(number));
            if held.ended.is_empty() && held.live.is_empty() {
                all.remove(spender);
            }
        }
    }

    /// All that are to be renewed, [`MOST_TOLD`] of one spender at a time.
    pub(super) fn all_live(&self) -> Vec<(Spender, Vec<u64>)> {
        let held = self.held();
        let mut all = Vec::new();
        for (spender, held) in held.iter() {
            let live: Vec<u64> = held.live.iter().copied().collect();
            all.extend(live.chunks(MOST_TOLD).map(|some| (*spender, some.to_vec())));
        }
        all
    }

    /// These were renewed: those that have ended meanwhile are to be told again.
    pub(super) fn renewed(&self, spender: &Spender, numbers: &[u64]) {
        let mut all = self.held();
        let held = all.entry(*spender).or_default();
        let gone = numbers.iter().filter(|number| !held.live.contains(number) && !held.ended.contains(number));
        let gone: Vec<u64> = gone.copied().collect();
        if !gone.is_empty() {
            held.ended.extend(gone);
            self.ended.notify_one();
        } else if held.live.is_empty() && held.ended.is_empty() {
            all.remove(spender);
        }
    }

    pub(super) fn name(&self, number: u64) -> Name {
        let mut name = Name::default();
        let (gateway, place) = name.split_at_mut(8);
        gateway.copy_from_slice(&self.gateway);
        place.copy_from_slice(&number.to_be_bytes());
        name
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.held().is_empty()
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Spender, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    pub(super) fn name(&self) -> Name {
        self.of.name(self.number)
    }

    /// Redis has counted it: it is renewed until it is dropped.
    pub(super) fn counted(mut self) -> Self {
        self.state = State::Counted;
        self.of.held().entry(self.spender).or_default().live.insert(self.number);
        self
    }

    /// Redis has not counted it, and there is nothing to take back.
    pub(super) fn refused(mut self) {
        self.state = State::Refused;
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&self.number).finish()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.state == State::Refused {
            return;
        }
        let mut all = self.of.held();
        let held = all.entry(self.spender).or_default();
        held.live.remove(&self.number);
        held.ended.push(self.number);
        drop(all);
        self.of.ended.notify_one();
    }
}
