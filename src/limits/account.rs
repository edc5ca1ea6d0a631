//! What one has spent, who may be a key, a key at an agent, or all keys of a plan.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use smallvec::SmallVec;

use super::budget::{Purse, Remaining, unix_time};
use super::rate::{Cell, Left, Spent};
use super::terms::{BudgetWindow, RateWindow, Terms};
use crate::body::{Counter, Permit};
use crate::error::Refusal;
use crate::letta::reply::Usage;
use crate::store::{Charged, Known, Ledger, Spender};
use crate::telemetry::metrics::KeyMetrics;

/// Nobody shares what an account knows.
pub(super) const ALONE: NonZeroU32 = NonZeroU32::MIN;

pub(super) struct Account {
    /// What it is called in the shared store.
    pub id: Spender,
    /// Of each rate of the plan, in its order.
    cells: Box<[Cell]>,
    /// Of each budget of the plan, in its order.
    purses: Box<[Arc<Purse>]>,
    pub in_flight: Arc<Counter>,
    /// Held while all windows are asked, so that nobody sees a request that the next window refuses.
    asking: Mutex<()>,
}

/// A request that all windows have counted.
pub(super) struct Counted {
    /// None: it may go on without one, and there is none.
    pub place: Option<Permit>,
    /// Of each rate of the plan, in its order.
    pub left: SmallVec<[Left; 2]>,
    /// Places in flight that are left, where they are counted.
    pub places: Option<u32>,
    /// Of each budget that was looked at.
    pub budgets: Vec<Remaining>,
    /// Of a budget nothing is left, but it goes on as long as it starts no turn.
    pub spent: Option<Box<Refusal>>,
}

/// What a request asks for beside being counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asking {
    /// It may turn out to repeat a turn, and then it needs no place in flight and no budget.
    pub may_repeat: bool,
    /// It is a message: budgets must have something left.
    pub starts_turn: bool,
}

impl Account {
    /// `kept`: what was known until now; what is the same is kept.
    pub(super) fn new(id: Spender, terms: &Terms, in_flight: Arc<Counter>, kept: Option<(&Self, &Terms)>) -> Self {
        let cell = |window| kept.and_then(|(kept, its_terms)| kept.cell(its_terms, window)).unwrap_or_default();
        let purse = |budget| kept.and_then(|(kept, its_terms)| kept.purse(its_terms, budget)).unwrap_or_default();
        Self {
            id,
            cells: terms.rates.iter().map(cell).collect(),
            purses: terms.budgets.iter().map(purse).collect(),
            in_flight,
            asking: Mutex::default(),
        }
    }

    /// The refusal of one request too many of a flood: the ceiling has no room for it, and a window nothing left. Takes no
    /// lock and counts nothing in any window.
    pub(super) fn turn_away(&self, terms: &Terms) -> Option<Box<Refusal>> {
        if terms.ceiling()?.has_room(&self.id) {
            return None;
        }
        let spent = self.windows(terms).filter_map(|(window, cell)| Some((window, window.limit.has_spent(cell)?)));
        let (window, spent) = spent.max_by_key(|(_, spent)| spent.retry_after)?;
        Some(terms.too_fast(window, spent))
    }

    /// Counts one request in every window, or in none. `sharers`: how many there are, to each of whom a like part of every
    /// window belongs.
    pub(super) fn count(&self, terms: &Terms, asking: Asking, sharers: NonZeroU32) -> Result<Counted, Box<Refusal>> {
        let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let most = terms.in_flight.map_or(u32::MAX, |most| (most / sharers).max(1));
        let place = self.in_flight.take(most);
        if place.is_none() && !asking.may_repeat {
            return Err(terms.too_many_in_flight());
        }
        let budgets = if asking.starts_turn { self.remaining(terms, unix_time(), sharers) } else { Vec::new() };
        let spent = terms.first_spent(&budgets);
        if let Some(refusal) = spent.as_ref().filter(|_| !asking.may_repeat) {
            return Err(refusal.clone());
        }
        let mut left = SmallVec::new();
        let mut refused: Option<(&RateWindow, Spent)> = None;
        for (window, cell) in self.windows(terms) {
            match window.limit.spend(cell, sharers) {
                Ok(more) if refused.is_none() => left.push(more),
                Ok(_) => window.limit.give_back(cell, sharers),
                Err(spent) => {
                    if refused.is_none() {
                        self.windows(terms)
                            .take(left.len())
                            .for_each(|(window, cell)| window.limit.give_back(cell, sharers));
                    }
                    // of those that refuse, the one that does so the longest: it is no use to come back before
                    if refused.as_ref().is_none_or(|(_, longest)| spent.retry_after > longest.retry_after) {
                        refused = Some((window, spent));
                    }
                }
            }
        }
        match refused {
            None => {
                let places = terms.in_flight.map(|_| most.saturating_sub(self.in_flight.now()));
                Ok(Counted { place, left, places, budgets, spent })
            }
            Some((window, spent)) => Err(terms.too_fast(window, spent)),
        }
    }

    /// Takes back what [`count`](Self::count) counted with no sharers.
    pub(super) fn give_back(&self, terms: &Terms) {
        self.windows(terms).for_each(|(window, cell)| window.limit.give_back(cell, ALONE));
    }

    /// The time of each rate, as [`learn`](Self::learn) wants to know it.
    pub(super) fn now(&self, terms: &Terms) -> Vec<Duration> {
        terms.rates.iter().map(|window| window.limit.now()).collect()
    }

    /// Makes it know what was told of each rate at `then`: in how long nothing of it would be spent any more.
    pub(super) fn learn(&self, terms: &Terms, then: &[Duration], ahead: &[Duration]) {
        for ((window, cell), (then, ahead)) in self.windows(terms).zip(then.iter().zip(ahead)) {
            window.limit.learn(cell, *then, *ahead);
        }
    }

    /// The shared store is to decide.
    pub(super) fn rejoin(&self, terms: &Terms) {
        self.windows(terms).for_each(|(window, cell)| window.limit.rejoin(cell));
    }

    /// Nobody but this gateway is to decide, as one of `sharers`.
    pub(super) fn part(&self, terms: &Terms, sharers: NonZeroU32) {
        self.windows(terms).for_each(|(window, cell)| window.limit.part(cell, sharers));
    }

    /// What the shared store is to be told of each rate at `now`.
    pub(super) fn tell(&self, terms: &Terms, now: &[Duration]) -> Vec<Known> {
        self.windows(terms).zip(now).map(|((window, cell), now)| window.limit.tell(cell, *now)).collect()
    }

    /// That was not told.
    pub(super) fn not_told(&self, terms: &Terms, known: &[Known]) {
        self.windows(terms).zip(known).for_each(|((window, cell), known)| window.limit.owe(cell, known.untold));
    }

    /// One more request was counted here, and the shared store is to be told.
    pub(super) fn owe_one(&self, terms: &Terms) {
        self.windows(terms).for_each(|(window, cell)| window.limit.owe(cell, 1));
    }

    /// What is left of each budget.
    pub(super) fn remaining(&self, terms: &Terms, now: Duration, sharers: NonZeroU32) -> Vec<Remaining> {
        self.budgets(terms).map(|(budget, purse)| purse.remaining(budget, now, sharers)).collect()
    }

    pub(super) fn charge(&self, terms: &Terms, now: Duration, usage: Option<&Usage>) {
        self.budgets(terms).for_each(|(budget, purse)| purse.charge(budget, now, usage));
    }

    /// What other gateways are to be told of budgets.
    pub(super) fn ledgers(&self, terms: &Terms, now: Duration) -> Vec<Ledger> {
        self.budgets(terms).map(|(budget, purse)| purse.ledger(budget, now)).collect()
    }

    /// Learns what all gateways have charged, of which it had told `told`.
    pub(super) fn learn_charged(&self, told: &[Ledger], charged: &[Charged]) {
        for (purse, (told, charged)) in self.purses.iter().zip(told.iter().zip(charged)) {
            purse.learn(told, *charged);
        }
    }

    pub(super) fn tell_remaining(&self, terms: &Terms, now: Duration, metrics: &KeyMetrics) {
        for (budget, purse) in self.budgets(terms) {
            metrics.budget_remaining(&budget.name, purse.remaining(budget, now, ALONE).left);
        }
    }

    fn budgets<'a>(&'a self, terms: &'a Terms) -> impl Iterator<Item = (&'a BudgetWindow, &'a Arc<Purse>)> {
        terms.budgets.iter().zip(&self.purses)
    }

    /// The same for a budget.
    fn purse(&self, terms: &Terms, of: &BudgetWindow) -> Option<Arc<Purse>> {
        self.budgets(terms).find(|(budget, _)| budget.name == of.name).map(|(_, purse)| Arc::clone(purse))
    }

    fn windows<'a>(&'a self, terms: &'a Terms) -> impl Iterator<Item = (&'a RateWindow, &'a Cell)> {
        terms.rates.iter().zip(&self.cells)
    }

    /// What is known of a rate, for whoever has the same.
    fn cell(&self, terms: &Terms, of: &RateWindow) -> Option<Cell> {
        self.windows(terms).find(|(window, _)| window.limit.rate == of.limit.rate).map(|(_, cell)| cell.clone())
    }

    /// Nothing is spent and nobody in flight, as if it were new.
    pub(super) fn is_idle(&self, terms: &Terms) -> bool {
        self.in_flight.now() == 0
            && self.windows(terms).all(|(window, cell)| window.limit.is_whole(cell))
            && self.budgets(terms).all(|(budget, purse)| purse.is_whole(budget, unix_time()))
    }
}
