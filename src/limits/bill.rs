//! Where one turn is charged when it is over.

use std::fmt;
use std::sync::Arc;

use super::Measure;
use super::budget::unix_time;
use super::seat::Whose;
use super::shared::Shared;
use crate::letta::reply::Usage;

/// The budgets that a turn is charged to. Dropped uncharged: it cost nothing, for Letta never had it.
pub struct Bill {
    of: Whose,
    shared: Option<Arc<Shared>>,
}

impl Bill {
    /// `None`: there are no budgets.
    pub(super) fn new(of: &Whose, shared: Option<&Arc<Shared>>) -> Option<Self> {
        (!of.terms.budgets.is_empty()).then(|| Self { of: of.clone(), shared: shared.map(Arc::clone) })
    }

    /// A budget counts what only Letta knows.
    pub fn wants_usage(&self) -> bool {
        self.of.terms.budgets.iter().any(|budget| budget.what != Measure::Turns)
    }

    /// Charges the turn with what Letta has told of it; nobody waits for the other gateways to be told.
    pub fn charge(self, usage: Option<&Usage>) {
        let Whose { terms, account, metrics } = &self.of;
        let now = unix_time();
        account.charge(terms, now, usage);
        account.tell_remaining(terms, now, metrics);
        if let Some(shared) = self.shared {
            let of = self.of;
            // ends by itself within its budget; what Redis is not told now the next request tells
            tokio::spawn(async move { shared.charge(&of.account, &of.terms).await });
        }
    }
}

impl fmt::Debug for Bill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bill")
    }
}
