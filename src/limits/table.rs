//! The limits of every key, and what survives a reload of the configuration.
//!
//! A key keeps what it has spent as long as its rate stays the same, whatever its plan is called, and its requests in
//! flight always.

use std::collections::HashMap;
use std::sync::Arc;

use super::account::{ALONE, Account, Asking, Counted};
use super::agents::Agents;
use super::bill::Bill;
use super::fields::Told;
use super::rate::RateLimit;
use super::seat::{Seat, Whose};
use super::shared::{NotCounted, Shared};
use super::terms::Terms;
use super::{Mode, Plan, Rate, Scope};
use foldhash::fast::RandomState;
use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use crate::auth::key;
use crate::body::{Counter, Permit};
use crate::error::Error;
use crate::store::{OnError, SharedLimits, Spender};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{Decision, KeyMetrics};

/// Requests without a key in flight at most, of all clients together: load balancers ask for health one at a time.
const MOST_KEYLESS: u32 = 16;

/// The limits step: what each key may spend.
#[derive(Clone)]
pub struct Limits {
    table: Arc<Table>,
    /// None: limits hold in this process alone.
    shared: Option<Arc<Shared>>,
}

struct Table {
    allowances: HashMap<Arc<str>, Allowance, RandomState>,
    /// Of the plans whose keys count together, by name.
    shared: HashMap<Box<str>, Arc<Account>>,
    plans: HashMap<Box<str>, Arc<Terms>>,
    agents: Agents,
    rates: Vec<Arc<RateLimit>>,
    /// Requests without a key in flight.
    keyless: Arc<Counter>,
}

/// What one key may spend.
struct Allowance {
    id: Arc<str>,
    terms: Arc<Terms>,
    /// Its own, or its plan's.
    account: Arc<Account>,
    /// The key's requests in flight, whoever counts as one.
    in_flight: Arc<Counter>,
    metrics: Arc<KeyMetrics>,
}

impl Limits {
    /// The limits of `keys`; `previous` are those that were in force until now.
    pub fn new(plans: &[Plan], keys: &[key::Settings], metrics: &Metrics, previous: Option<&Self>) -> Self {
        let previous = previous.map(|previous| &*previous.table);
        let mut rates: Vec<Arc<RateLimit>> = Vec::new();
        let mut limit_of = |rate: Rate| {
            let kept = previous.map_or(&[][..], |previous| &previous.rates);
            if let Some(known) = rates.iter().find(|known| known.rate == rate) {
                return Arc::clone(known);
            }
            let known = kept.iter().find(|known| known.rate == rate);
            let limit = known.map_or_else(|| Arc::new(RateLimit::new(rate)), Arc::clone);
            rates.push(Arc::clone(&limit));
            limit
        };
        let mut terms = HashMap::with_capacity(plans.len());
        let mut shared = HashMap::new();
        for plan in plans {
            let made = Arc::new(Terms::new(plan, &mut limit_of));
            if plan.scope == Scope::Plan {
                let known = previous.and_then(|previous| previous.shared_account(&plan.name));
                let account = account(spender(&["plan", &plan.name]), &made, known, Counter::new);
                shared.insert(Box::from(plan.name.as_str()), Arc::new(account));
            }
            terms.insert(Box::from(plan.name.as_str()), made);
        }
        let mut allowances = HashMap::with_capacity_and_hasher(keys.len(), RandomState::default());
        for key in keys {
            // a plan that does not exist is refused by the configuration; without an allowance nothing passes
            let Some(terms) = terms.get(key.plan.as_str()) else { continue };
            let known = previous.and_then(|previous| previous.allowances.get(key.id.as_str()));
            let allowance = Allowance::new(key, terms, shared.get(key.plan.as_str()), metrics, known);
            allowances.insert(Arc::clone(&allowance.id), allowance);
        }
        let agents = previous.map_or_else(Agents::default, |previous| {
            previous.agents.renewed(|key, known, its_terms| {
                let terms = &allowances.get(key)?.terms;
                let renewed = account(known.id, terms, Some((known, its_terms)), Counter::new);
                (terms.scope == Scope::Agent).then(|| (renewed, Arc::clone(terms)))
            })
        });
        let keyless = previous.map_or_else(Counter::new, |previous| Arc::clone(&previous.keyless));
        Self { table: Arc::new(Table { allowances, shared, plans: terms, agents, rates, keyless }), shared: None }
    }

    /// The same limits over all gateways that have this store. `on_error`: what becomes of requests without it.
    pub fn over(self, store: Option<Arc<SharedLimits>>, on_error: OnError, metrics: &Arc<Metrics>) -> Self {
        let shared = store.map(|store| Arc::new(Shared { store, on_error, metrics: Arc::clone(metrics) }));
        Self { shared, ..self }
    }

    /// Counts one request of the key's, which is for `agent` if it names one: its place in flight, and what is told of
    /// what is left.
    pub(super) async fn admit(
        &self,
        key: &str,
        agent: Option<&str>,
        asking: Asking,
    ) -> Result<(Seat, Option<Told>), Error> {
        let allowance = self.table.allowances.get(key).ok_or_else(|| Error::Internal("a key without a plan".into()))?;
        let of_agent = self.table.account_at(allowance, agent);
        let account = of_agent.as_ref().unwrap_or(&allowance.account);
        let terms = &allowance.terms;
        // without a store that is there, what is known here is no ceiling of what the gateways give together
        let turned_away = match &self.shared {
            Some(shared) if !shared.store.is_up() => None,
            _ => account.turn_away(terms),
        };
        let counted = match &self.shared {
            _ if let Some(refusal) = turned_away => Err(NotCounted::Refused(refusal)),
            None => account.count(terms, asking, ALONE).map_err(NotCounted::Refused),
            Some(shared) => Box::pin(shared.count(account, terms, asking)).await,
        };
        let counted = counted.or_else(|why| allowance.not_counted(account, why))?;
        let told = Told::new(terms, &counted);
        allowance.metrics.admitted().inc();
        let Counted { place, spent, budgets, .. } = counted;
        for (budget, remaining) in terms.budgets.iter().zip(&budgets) {
            allowance.metrics.budget_remaining(&budget.name, remaining.left);
        }
        let place = place.map(|place| allowance.seated(account, place));
        let place = match place {
            // nothing is charged to it, and nothing refuses it later
            Some(place) if spent.is_none() && (!asking.starts_turn || terms.budgets.is_empty()) => {
                return Ok((Seat::plain(place), told));
            }
            place => place,
        };
        let account = Arc::clone(account);
        let of = Whose { terms: Arc::clone(terms), account, metrics: Arc::clone(&allowance.metrics) };
        let bill = if asking.starts_turn { Bill::new(&of, self.shared.as_ref()) } else { None };
        Ok((Seat::new(place, spent, bill, of), told))
    }

    /// Forgets what the ceilings know of those who have asked for nothing lately.
    pub fn upkeep(&self) {
        self.table.rates.iter().for_each(|rate| rate.forget_idle());
    }

    /// Lets one more request without a key be in flight.
    pub(super) fn admit_keyless(&self) -> Result<Permit, Error> {
        self.table.keyless.take(MOST_KEYLESS).ok_or(Error::KeylessFull { most: MOST_KEYLESS })
    }

    /// Agents that have accounts of their own.
    #[cfg(test)]
    pub(super) fn agents(&self) -> usize {
        self.table.agents.len()
    }

    /// Requests of the key's in flight now.
    #[cfg(test)]
    pub(super) fn in_flight(&self, key: &str) -> u32 {
        self.table.allowances.get(key).map_or(0, |allowance| allowance.in_flight.now())
    }
}

impl Table {
    /// The account that a request for `agent` counts in, if that is another than its key's.
    fn account_at(&self, allowance: &Allowance, agent: Option<&str>) -> Option<Arc<Account>> {
        let terms = &allowance.terms;
        agent.filter(|_| terms.scope == Scope::Agent).and_then(|agent| {
            self.agents.account(&allowance.id, agent, terms, || {
                account(spender(&["agent", &allowance.id, agent]), terms, None, Counter::new)
            })
        })
    }

    fn shared_account(&self, plan: &str) -> Option<(&Account, &Terms)> {
        Some((self.shared.get(plan)?, self.plans.get(plan)?))
    }
}

impl Allowance {
    /// `shared`: the account of the plan's keys together; `known`: what the key might spend until now.
    fn new(
        key: &key::Settings,
        terms: &Arc<Terms>,
        shared: Option<&Arc<Account>>,
        metrics: &Metrics,
        known: Option<&Self>,
    ) -> Self {
        let metrics = metrics.key(&key.id);
        let in_flight = known.map_or_else(
            || {
                let metrics = Arc::clone(&metrics);
                Counter::telling(move |change| metrics.in_flight().add(change))
            },
            |known| Arc::clone(&known.in_flight),
        );
        let own = || {
            let kept = known.filter(|known| known.terms.scope != Scope::Plan);
            // where keys are counted apart, the places of the key are the account's
            let counter = || if terms.scope == Scope::Key { Arc::clone(&in_flight) } else { Counter::new() };
            let kept = kept.filter(|known| known.terms.scope == terms.scope);
            Arc::new(account(
                spender(&["key", &key.id]),
                terms,
                kept.map(|known| (&*known.account, &*known.terms)),
                counter,
            ))
        };
        let account = shared.map_or_else(own, Arc::clone);
        Self { id: key.id.as_str().into(), terms: Arc::clone(terms), account, in_flight, metrics }
    }

    /// What becomes of a request that was not counted.
    fn not_counted(&self, account: &Account, why: NotCounted) -> Result<Counted, Error> {
        let (window, error) = match why {
            NotCounted::Refused(refusal) => (Some(Arc::clone(&refusal.name)), Error::Limited(refusal)),
            NotCounted::Unknown => (None, Error::LimitsUnknown),
        };
        let (decision, answer) = match self.terms.mode {
            Mode::Enforce => (Decision::Refused, Err(error)),
            Mode::Shadow => {
                let place = Some(account.in_flight.add());
                (
                    Decision::Shadowed,
                    Ok(Counted { place, left: SmallVec::new(), places: None, budgets: Vec::new(), spent: None }),
                )
            }
        };
        if let Some(window) = window {
            self.metrics.decided(&window, decision).inc();
        }
        answer
    }

    /// A place that the key's requests in flight are counted by, too.
    fn seated(&self, account: &Account, place: Permit) -> Permit {
        if Arc::ptr_eq(&self.in_flight, &account.in_flight) { place } else { place.carrying(self.in_flight.add()) }
    }
}

/// An account for `terms` that knows what `known` did of the same rates. `in_flight`: the counter of a new one.
fn account(
    id: Spender,
    terms: &Terms,
    known: Option<(&Account, &Terms)>,
    in_flight: impl FnOnce() -> Arc<Counter>,
) -> Account {
    let counter = known.map_or_else(in_flight, |(known, _)| Arc::clone(&known.in_flight));
    Account::new(id, terms, counter, known)
}

/// What an account is called in the shared store, by all gateways alike.
pub(super) fn spender(names: &[&str]) -> Spender {
    let mut hash = Sha256::new();
    for name in names {
        hash.update((name.len() as u64).to_be_bytes());
        hash.update(name);
    }
    let digest: [u8; 32] = hash.finalize().into();
    digest.first_chunk().copied().unwrap_or_default()
}
