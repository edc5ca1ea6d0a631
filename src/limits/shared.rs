//! Limits that hold over all gateways: counted in the shared store, behind what this gateway knows.
//!
//! An account here is the ceiling: it never refuses what the store would let pass, because it learns from each of the
//! store's replies, and it turns a flood away without asking. When the store does not answer within its budget, the
//! account decides as `store.on_error` says.

use std::num::NonZeroU32;
use std::sync::Arc;

use super::account::{ALONE, Account, Counted};
use super::rate::Left;
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
    pub(super) async fn count(
        &self,
        account: &Account,
        terms: &Terms,
        may_repeat: bool,
    ) -> Result<Counted, NotCounted> {
        if terms.rates.is_empty() && terms.in_flight.is_none() {
            return account.count(terms, may_repeat, ALONE).map_err(NotCounted::Refused);
        }
        if !self.store.is_up() {
            return self.without_store(account, terms, may_repeat);
        }
        let here = account.count(terms, may_repeat, ALONE).map_err(NotCounted::Refused)?;
        let then = account.now(terms);
        let may_stand = may_repeat || here.place.is_none();
        let ask = Ask { spender: account.id, paces: &terms.paces, most: terms.in_flight, may_stand };
        match self.store.count(ask).await {
            Ok(tally) => {
                account.learn(terms, &then, &tally.ahead);
                counted(here, tally, terms).map_err(NotCounted::Refused)
            }
            Err(_) => {
                account.give_back(terms);
                drop(here);
                self.without_store(account, terms, may_repeat)
            }
        }
    }

    fn without_store(&self, account: &Account, terms: &Terms, may_repeat: bool) -> Result<Counted, NotCounted> {
        let (how, sharers) = match self.on_error {
            OnError::Local => ("local", NonZeroU32::new(self.store.gateways()).unwrap_or(ALONE)),
            OnError::Allow => ("allow", ALONE),
            OnError::Deny => {
                self.metrics.limit_without_store("deny");
                return Err(NotCounted::Unknown);
            }
        };
        self.metrics.limit_without_store(how);
        account.count(terms, may_repeat, sharers).map_err(NotCounted::Refused)
    }
}

/// What the store's reply makes of a request that was counted here.
fn counted(here: Counted, tally: Tally, terms: &Terms) -> Result<Counted, Box<Refusal>> {
    let Tally { verdict, ahead, in_flight } = tally;
    let left =
        || -> Vec<Left> { terms.rates.iter().zip(&ahead).map(|(window, ahead)| window.limit.left(*ahead)).collect() };
    let places = terms.in_flight.map(|most| most.saturating_sub(in_flight));
    match verdict {
        Verdict::Counted(lease) => {
            let place = match (here.place, lease) {
                (Some(place), Some(lease)) => Some(place.carrying(lease)),
                // a place here alone is none
                (place, _) => place.filter(|_| terms.in_flight.is_none()),
            };
            Ok(Counted { place, left: left(), places })
        }
        Verdict::Standing => Ok(Counted { place: None, left: left(), places }),
        Verdict::Full => Err(terms.too_many_in_flight()),
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
