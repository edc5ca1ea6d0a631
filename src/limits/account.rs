//! What one has spent, who may be a key, a key at an agent, or all keys of a plan.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::rate::{Cell, Left, Spent};
use super::terms::{RateWindow, Terms};
use crate::body::{Counter, Permit};
use crate::error::Refusal;
use crate::store::Spender;

/// Nobody shares what an account knows.
pub(super) const ALONE: NonZeroU32 = NonZeroU32::MIN;

pub(super) struct Account {
    /// What it is called in the shared store.
    pub id: Spender,
    /// Of each rate of the plan, in its order.
    cells: Box<[Cell]>,
    pub in_flight: Arc<Counter>,
    /// Held while all windows are asked, so that nobody sees a request that the next window refuses.
    asking: Mutex<()>,
}

/// A request that all windows have counted.
pub(super) struct Counted {
    /// None: it may go on without one, and there is none.
    pub place: Option<Permit>,
    /// Of each rate of the plan, in its order.
    pub left: Vec<Left>,
    /// Places in flight that are left, where they are counted.
    pub places: Option<u32>,
}

impl Account {
    /// `kept`: what was known of a rate until now.
    pub(super) fn new(
        id: Spender,
        terms: &Terms,
        in_flight: Arc<Counter>,
        kept: impl Fn(&RateWindow) -> Option<Cell>,
    ) -> Self {
        let cells = terms.rates.iter().map(|window| kept(window).unwrap_or_default()).collect();
        Self { id, cells, in_flight, asking: Mutex::default() }
    }

    /// Counts one request in every window, or in none. `may_repeat`: it goes on without a place in flight if there is
    /// none. `sharers`: how many there are to each of whom a like part of every window belongs.
    pub(super) fn count(&self, terms: &Terms, may_repeat: bool, sharers: NonZeroU32) -> Result<Counted, Box<Refusal>> {
        let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let most = terms.in_flight.map_or(u32::MAX, |most| (most / sharers).max(1));
        let place = self.in_flight.take(most);
        if place.is_none() && !may_repeat {
            return Err(terms.too_many_in_flight());
        }
        let mut left = Vec::with_capacity(self.cells.len());
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
                Ok(Counted { place, left, places })
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

    fn windows<'a>(&'a self, terms: &'a Terms) -> impl Iterator<Item = (&'a RateWindow, &'a Cell)> {
        terms.rates.iter().zip(&self.cells)
    }

    /// What is known of a rate, for whoever has the same.
    pub(super) fn cell(&self, terms: &Terms, of: &RateWindow) -> Option<Cell> {
        self.windows(terms).find(|(window, _)| window.limit.rate == of.limit.rate).map(|(_, cell)| cell.clone())
    }

    /// Nothing is spent and nobody in flight, as if it were new.
    pub(super) fn is_idle(&self, terms: &Terms) -> bool {
        self.in_flight.now() == 0 && self.windows(terms).all(|(window, cell)| window.limit.is_whole(cell))
    }
}
