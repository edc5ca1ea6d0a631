//! The accounts of keys at agents: made when an agent is first named, never more than there may be.
//!
//! A client can make agents' names up. An account that is idle is the same as a new one, so it can be forgotten; when
//! there is no more room for one, an agent shares the account of its key's requests that name none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::account::Account;
use super::terms::Terms;

/// Accounts of agents at most, of all keys together; each takes some 300 bytes.
const MOST: usize = 65_536;
/// How often idle accounts are looked for, when there are too many.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What an agent's account is found by: its key's id, its own.
type Name = (Arc<str>, Box<str>);

#[derive(Default)]
pub(super) struct Agents {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    accounts: HashMap<Name, (Arc<Account>, Arc<Terms>)>,
    swept: Option<Instant>,
}

impl Agents {
    /// The account of `key` at `agent`, made with `new` if there is none yet; `None`: there is no room.
    pub(super) fn account(
        &self,
        key: &Arc<str>,
        agent: &str,
        terms: &Arc<Terms>,
        new: impl FnOnce() -> Account,
    ) -> Option<Arc<Account>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let name = (Arc::clone(key), Box::from(agent));
        if let Some((account, _)) = known.accounts.get(&name) {
            return Some(Arc::clone(account));
        }
        if known.accounts.len() >= MOST && !known.make_room(Instant::now()) {
            return None;
        }
        let account = Arc::new(new());
        known.accounts.insert(name, (Arc::clone(&account), Arc::clone(terms)));
        Some(account)
    }

    /// The accounts for new terms: `renew` makes one of the old, or gives it up.
    pub(super) fn renewed(&self, renew: impl Fn(&str, &Account, &Terms) -> Option<(Account, Arc<Terms>)>) -> Self {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let accounts = known.accounts.iter().filter(|(_, (account, terms))| !account.is_idle(terms));
        let renewed = accounts.filter_map(|(name, (account, terms))| {
            let (account, terms) = renew(&name.0, account, terms)?;
            Some((name.clone(), (Arc::new(account), terms)))
        });
        Self { known: Mutex::new(Known { accounts: renewed.collect(), swept: None }) }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.lock().unwrap().accounts.len()
    }
}

impl Known {
    /// Forgets the idle ones. False: there are none, or it was tried just now.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.swept.is_some_and(|swept| now.saturating_duration_since(swept) < SWEEP_EVERY) {
            return false;
        }
        self.swept = Some(now);
        // one that a request holds may be about to count
        self.accounts.retain(|_, (account, terms)| Arc::strong_count(account) > 1 || !account.is_idle(terms));
        self.accounts.len() < MOST
    }
}
