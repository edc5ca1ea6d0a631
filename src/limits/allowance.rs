//! What each key may spend, and what survives a reload of the configuration.
//!
//! A key keeps what it has spent as long as its rate stays the same, whatever its plan is called, and its requests in
//! flight always.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::rate::{Left, RateLimit, Spender};
use super::{Plan, Rate};
use crate::auth::key;
use crate::body::{Counter, Permit};
use crate::error::{Error, Refusal, Window};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::KeyMetrics;

/// When to ask again after too many at once: nobody knows when one of them ends.
const IN_FLIGHT_WAIT: Duration = Duration::from_secs(1);
/// Requests without a key in flight at most, of all clients together: load balancers ask for health one at a time.
const MOST_KEYLESS: u32 = 16;

/// The limits step: what each key may spend.
#[derive(Clone)]
pub struct Limits {
    table: Arc<Table>,
}

struct Table {
    allowances: HashMap<Box<str>, Allowance>,
    rates: Vec<Arc<RateLimit>>,
    /// Requests without a key in flight.
    keyless: Arc<Counter>,
}

struct Allowance {
    spender: Spender,
    rate: Option<Arc<RateLimit>>,
    /// Requests in flight at most.
    most: u32,
    in_flight: Arc<Counter>,
    metrics: Arc<KeyMetrics>,
}

/// A place among the requests in flight of one key.
pub struct Seat(Place);

enum Place {
    Taken(Permit),
    Full(Refusal, Arc<KeyMetrics>),
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Place::Taken(_) => "Seat(taken)",
            Place::Full(..) => "Seat(full)",
        })
    }
}

impl Seat {
    /// The place, if there was one.
    pub fn take(self) -> Result<Permit, Error> {
        match self.0 {
            Place::Taken(permit) => Ok(permit),
            Place::Full(refusal, metrics) => {
                metrics.refused(refusal.window).inc();
                Err(Error::Limited(refusal))
            }
        }
    }
}

impl Limits {
    /// The limits of `keys`; `previous` are those that were in force until now.
    pub fn new(plans: &[Plan], keys: &[key::Settings], metrics: &Metrics, previous: Option<&Self>) -> Self {
        let mut rates: Vec<Arc<RateLimit>> = Vec::new();
        let mut rate_of = |rate: Rate| {
            if let Some(known) = rates.iter().find(|known| known.rate == rate) {
                return Arc::clone(known);
            }
            let kept = previous.and_then(|previous| previous.table.rates.iter().find(|kept| kept.rate == rate));
            let limit = kept.map_or_else(|| Arc::new(RateLimit::new(rate)), Arc::clone);
            limit.forget_idle();
            rates.push(Arc::clone(&limit));
            limit
        };
        let mut allowances = HashMap::with_capacity(keys.len());
        for key in keys {
            // a plan that does not exist is refused by the configuration; without an allowance nothing passes
            let Some(plan) = plans.iter().find(|plan| plan.name == key.plan) else { continue };
            let known = previous.and_then(|previous| previous.table.allowances.get(key.id.as_str()));
            let metrics = metrics.key(&key.id);
            let in_flight = known.map_or_else(
                || {
                    let gauge = metrics.in_flight.clone();
                    Counter::telling(move |change| gauge.add(change))
                },
                |known| Arc::clone(&known.in_flight),
            );
            let allowance = Allowance {
                spender: spender(&key.id),
                rate: plan.rate.map(&mut rate_of),
                most: plan.in_flight.unwrap_or(u32::MAX),
                in_flight,
                metrics,
            };
            allowances.insert(key.id.as_str().into(), allowance);
        }
        let keyless = previous.map_or_else(Counter::new, |previous| Arc::clone(&previous.table.keyless));
        Self { table: Arc::new(Table { allowances, rates, keyless }) }
    }

    /// Spends one request of the key's: its place in flight, and what is left of the rate (`None`: the plan has none).
    /// `may_repeat`: it may turn out to need no place, and goes on without one if there is none.
    pub(super) fn admit(&self, key: &str, may_repeat: bool) -> Result<(Seat, Option<Left>), Error> {
        let allowance = self.table.allowances.get(key).ok_or_else(|| Error::Internal("a key without a plan".into()))?;
        let refused = |refusal: Refusal| {
            allowance.metrics.refused(refusal.window).inc();
            Error::Limited(refusal)
        };
        // a permit that the rate then refuses is dropped, a spent request could not be given back
        let seat = match allowance.in_flight.take(allowance.most) {
            Some(permit) => Place::Taken(permit),
            None if may_repeat => Place::Full(too_many_in_flight(allowance.most), Arc::clone(&allowance.metrics)),
            None => return Err(refused(too_many_in_flight(allowance.most))),
        };
        let left = match &allowance.rate {
            Some(rate) => Some(rate.spend(&allowance.spender).map_err(refused)?),
            None => None,
        };
        allowance.metrics.admitted.inc();
        Ok((Seat(seat), left))
    }

    /// Lets one more request without a key be in flight.
    pub(super) fn admit_keyless(&self) -> Result<Permit, Error> {
        self.table.keyless.take(MOST_KEYLESS).ok_or(Error::KeylessFull { most: MOST_KEYLESS })
    }

    /// Requests of the key's in flight now.
    #[cfg(test)]
    pub(super) fn in_flight(&self, key: &str) -> u32 {
        self.table.allowances.get(key).map_or(0, |allowance| allowance.in_flight.now())
    }
}

fn too_many_in_flight(limit: u32) -> Refusal {
    Refusal { window: Window::InFlight, retry_after: IN_FLIGHT_WAIT, limit, remaining: 0, reset: IN_FLIGHT_WAIT }
}

fn spender(id: &str) -> Spender {
    let digest: [u8; 32] = Sha256::digest(id).into();
    digest.first_chunk().copied().unwrap_or_default()
}
