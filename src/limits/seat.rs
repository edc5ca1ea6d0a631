//! What a request that was counted holds: its place in flight, and the bill of the turn that it may start.

use std::fmt;
use std::sync::Arc;

use super::Mode;
use super::account::Account;
use super::bill::Bill;
use super::terms::Terms;
use crate::body::Permit;
use crate::error::{Error, Refusal};
use crate::telemetry::metrics::{Decision, KeyMetrics};

/// A place among the requests in flight of one key.
pub struct Seat(Kind);

enum Kind {
    /// A place and nothing else: of a request that starts no turn, or of a key without budgets.
    Plain(Permit),
    /// There may be none, or a budget may have nothing left; what that means is seen when it is taken.
    Conditional {
        place: Option<Permit>,
        /// Why the request must start no turn.
        refusal: Option<Box<Refusal>>,
        /// Where the turn that it starts is charged.
        bill: Option<Bill>,
        /// Whose it is.
        of: Whose,
    },
}

#[derive(Clone)]
pub(super) struct Whose {
    pub terms: Arc<Terms>,
    pub account: Arc<Account>,
    pub metrics: Arc<KeyMetrics>,
}

impl Seat {
    pub(super) fn new(place: Option<Permit>, refusal: Option<Box<Refusal>>, bill: Option<Bill>, of: Whose) -> Self {
        Self(Kind::Conditional { place, refusal, bill, of })
    }

    pub(super) fn plain(place: Permit) -> Self {
        Self(Kind::Plain(place))
    }

    /// Where the turn that this request starts is charged, if its key has budgets. To be asked for once.
    pub fn bill(&mut self) -> Option<Bill> {
        match &mut self.0 {
            Kind::Plain(_) => None,
            Kind::Conditional { bill, .. } => bill.take(),
        }
    }

    /// The place. An error: there is none, or nothing is left of a budget, and only a request that starts no turn goes on.
    pub fn take(self) -> Result<Permit, Error> {
        let (place, refusal, Whose { terms, account, metrics }) = match self.0 {
            Kind::Plain(place) => return Ok(place),
            Kind::Conditional { place, refusal, of, .. } => (place, refusal, of),
        };
        let refusal = match (&place, refusal) {
            (Some(_), None) => None,
            (_, Some(refusal)) => Some(refusal),
            (None, None) => Some(terms.too_many_in_flight()),
        };
        if let Some(refusal) = refusal {
            match terms.mode {
                Mode::Enforce => {
                    metrics.decided(&refusal.name, Decision::Refused).inc();
                    return Err(Error::Limited(refusal));
                }
                Mode::Shadow => metrics.decided(&refusal.name, Decision::Shadowed).inc(),
            }
        }
        Ok(place.unwrap_or_else(|| account.in_flight.add()))
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seat")
    }
}
