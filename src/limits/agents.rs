//! The accounts of keys at agents: made when an agent is first named, never more than there may be.
//!
//! A client can make agents' names up. An account that is idle is the same as a new one, so it can be forgotten; when
//! there is no more room for one, with its key or at all, an agent shares the account of its key's requests that name
//! none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::account::Account;
use super::terms::Terms;

/// Accounts of agents at most, of all keys together; each takes some 300 bytes.
const MOST: usize = 65_536;
/// Accounts of one key at most, so that the names it makes up leave room for the agents of the others.
const MOST_OF_KEY: usize = MOST / 16;
/// How often idle accounts are looked for, when there are too many.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The accounts of one key, by the ids of the agents.
type OfKey = HashMap<Box<str>, (Arc<Account>, Arc<Terms>)>;

#[derive(Default)]
pub(super) struct Agents {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// By the keys' ids; none is empty.
    keys: HashMap<Arc<str>, OfKey>,
    /// Accounts of all keys.
    count: usize,
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
        if let Some((account, _)) = known.keys.get(key).and_then(|accounts| accounts.get(agent)) {
            return Some(Arc::clone(account));
        }
        if !known.has_room(key) && !known.make_room(key, Instant::now()) {
            return None;
        }
        let account = Arc::new(new());
        let kept = (Arc::clone(&account), Arc::clone(terms));
        known.keys.entry(Arc::clone(key)).or_default().insert(agent.into(), kept);
        known.count += 1;
        Some(account)
    }

    /// The accounts for new terms: `renew` makes one of the old, or gives it up.
    pub(super) fn renewed(&self, renew: impl Fn(&str, &Account, &Terms) -> Option<(Account, Arc<Terms>)>) -> Self {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = known.keys.iter().filter_map(|(key, accounts)| {
            let accounts = accounts.iter().filter(|(_, (account, terms))| !account.is_idle(terms));
            let renewed = accounts.filter_map(|(agent, (account, terms))| {
                let (account, terms) = renew(key, account, terms)?;
                Some((agent.clone(), (Arc::new(account), terms)))
            });
            let renewed: OfKey = renewed.collect();
            (!renewed.is_empty()).then(|| (Arc::clone(key), renewed))
        });
        let mut renewed = Known { keys: keys.collect(), ..Known::default() };
        renewed.recount();
        Self { known: Mutex::new(renewed) }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let known = self.known.lock().unwrap();
        assert_eq!(known.count, known.keys.values().map(HashMap::len).sum::<usize>());
        known.count
    }
}

impl Known {
    fn has_room(&self, key: &str) -> bool {
        self.count < MOST && self.keys.get(key).is_none_or(|accounts| accounts.len() < MOST_OF_KEY)
    }

    /// Forgets the idle ones. False: there are none that matter to `key`, or it was tried just now.
    fn make_room(&mut self, key: &str, now: Instant) -> bool {
        if self.swept.is_some_and(|swept| now.saturating_duration_since(swept) < SWEEP_EVERY) {
            return false;
        }
        self.swept = Some(now);
        self.keys.retain(|_, accounts| {
            // one that a request holds may be about to count
            accounts.retain(|_, (account, terms)| Arc::strong_count(account) > 1 || !account.is_idle(terms));
            !accounts.is_empty()
        });
        self.recount();
        self.has_room(key)
    }

    fn recount(&mut self) {
        self.count = self.keys.values().map(HashMap::len).sum();
    }
}
