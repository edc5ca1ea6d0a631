//! Limits that hold over all gateways: counted in the shared store, behind what this gateway knows.
//!
//! An account here is the ceiling: it never refuses what the store would let pass, because it learns from each of the
//! store's replies, and it turns a flood away without asking. When the store does not answer within its budget, the
//! account decides as `store.on_error` says, and what it let pass is told when the store is back, together with what was
//! known before: the store may have lost it.

use std::num::NonZeroU32;
use std::sync::Arc;

use super::account::{ALONE, Account, Asking, Counted};
use super::budget::unix_time;
use super::terms::Terms;
use crate::error::Refusal;
use crate::store::{Ask, OnError, SharedLimits, Tally, Verdict};
use crate::telemetry::Metrics;

/// Why a request was not counted.
pub(super) enum NotCounted {
    /// It is too many.
    Refused(Box<Refusal>),
    /// Nobody knows, and then it is not to pass.
    Unknown,
}

pub(super) struct Shared {
    pub store: Arc<SharedLimits>,
    pub on_error: OnError,
    pub metrics: Arc<Metrics>,
}

impl Shared {
    /// Counts one request in every window of all gateways, or in none.
    pub(super) async fn count(&self, account: &Account, terms: &Terms, asking: Asking) -> Result<Counted, NotCounted> {
        let budgets = asking.starts_turn && !terms.budgets.is_empty();
        if terms.rates.is_empty() && terms.in_flight.is_none() && !budgets {
            return account.count(terms, asking, ALONE).map_err(NotCounted::Refused);
        }
        if !self.store.is_up() {
            return self.without_store(account, terms, asking);
        }
        account.rejoin(terms);
        let here = account.count(terms, asking, ALONE).map_err(NotCounted::Refused)?;
        let then = account.now(terms);
        let told = if budgets { account.ledgers(terms, unix_time()) } else { Vec::new() };
        let known = account.tell(terms, &then);
        let ask = Ask {
            spender: account.id,
            paces: &terms.paces,
            known: &known,
            most: terms.in_flight,
            budgets: &told,
            may_stand: asking.may_repeat,
        };
        match self.store.count(ask).await {
            Ok(tally) => {
                account.learn(terms, &then, &tally.ahead);
                account.learn_charged(&told, &tally.charged);
                let budgets = if budgets { account.remaining(terms, unix_time(), ALONE) } else { Vec::new() };
                counted(Counted { budgets, ..here }, tally, terms).map_err(NotCounted::Refused)
            }
            Err(_) => {
                account.not_told(terms, &known);
                account.give_back(terms);
                drop(here);
                self.without_store(account, terms, asking)
            }
        }
    }

    /// Tells what this gateway has charged, and learns what all have.
    pub(super) async fn charge(&self, account: &Account, terms: &Terms) {
        let told = account.ledgers(terms, unix_time());
        if let Ok(charged) = self.store.charge(account.id, &told).await {
            account.learn_charged(&told, &charged);
        }
    }

    fn without_store(&self, account: &Account, terms: &Terms, asking: Asking) -> Result<Counted, NotCounted> {
        let (how, sharers) = match self.on_error {
            OnError::Local => ("local", NonZeroU32::new(self.store.gateways()).unwrap_or(ALONE)),
            OnError::Allow => ("allow", ALONE),
            OnError::Deny => {
                self.metrics.limit_without_store("deny");
                return Err(NotCounted::Unknown);
            }
        };
        self.metrics.limit_without_store(how);
        account.part(terms, sharers);
        let counted = account.count(terms, asking, sharers).map_err(NotCounted::Refused)?;
        account.owe_one(terms);
        Ok(counted)
    }
}

/// What the store's reply makes of a request that was counted here.
fn counted(here: Counted, tally: Tally, terms: &Terms) -> Result<Counted, Box<Refusal>> {
    let Tally { verdict, ahead, charged: _, in_flight } = tally;
    let Counted { place, budgets, .. } = here;
    let spent = terms.first_spent(&budgets);
    let left = || terms.rates.iter().zip(&ahead).map(|(window, ahead)| window.limit.left(*ahead)).collect();
    let places = terms.in_flight.map(|most| most.saturating_sub(in_flight));
    match verdict {
        Verdict::Counted(lease) => {
            let place = match (place, lease) {
                (Some(place), Some(lease)) => Some(place.carrying(lease)),
                // a place here alone is none
                (place, _) => place.filter(|_| terms.in_flight.is_none()),
            };
            Ok(Counted { place, left: left(), places, spent, budgets })
        }
        Verdict::Standing => Ok(Counted { place: None, left: left(), places, spent, budgets }),
        Verdict::Full => Err(terms.too_many_in_flight()),
        // its period may just have ended by the clock here
        Verdict::Spent => Err(spent.unwrap_or_else(|| terms.too_many_in_flight())),
        Verdict::TooFast => {
            let spent = terms.rates.iter().zip(&ahead).map(|(window, ahead)| (window, window.limit.spent(*ahead)));
            match spent.max_by_key(|(_, spent)| spent.retry_after) {
                Some((window, spent)) => Err(terms.too_fast(window, spent)),
                // without rates nothing is too fast
                None => Err(terms.too_many_in_flight()),
            }
        }
    }
}
