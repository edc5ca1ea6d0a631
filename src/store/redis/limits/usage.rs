//! What spenders have used, read by whoever is no gateway: nothing is counted, and nobody is said to be alive.

use std::sync::LazyLock;
use std::time::Duration;

use ::redis::Value;
use futures_util::future::try_join_all;

use super::reply::number;
use super::upkeep::AT_ONCE;
use super::{UPKEEP_BUDGET, budget_key, key, milliseconds};
use crate::store::redis::Redis;
use crate::store::redis::script::Script;
use crate::store::{Account, StoreError, Used};

static USAGE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("usage.lua")));

impl Redis {
    /// What each of `accounts` has used, in order.
    pub(in crate::store) async fn usage(&self, accounts: &[Account<'_>]) -> Result<Vec<Used>, StoreError> {
        let mut used = Vec::with_capacity(accounts.len());
        for some in accounts.chunks(AT_ONCE) {
            used.extend(try_join_all(some.iter().map(|account| self.usage_of(account))).await?);
        }
        Ok(used)
    }

    async fn usage_of(&self, account: &Account<'_>) -> Result<Used, StoreError> {
        let Account { spender, paces, budgets } = *account;
        let prefix = &self.settings.prefix;
        let mut call = USAGE.key(key(prefix, &spender, "rates"));
        call.key(key(prefix, &spender, "places"));
        for (name, per) in budgets {
            call.key(budget_key(prefix, &spender, name)).arg(milliseconds(*per));
        }
        for pace in paces {
            call.arg(&*pace.name);
        }
        let reply = self.link.invoke(&call, UPKEEP_BUDGET).await?;
        read(reply, budgets.len()).ok_or_else(|| self.misread())
    }
}

/// `None`: it is not what the script replies.
fn read(reply: Value, budgets: usize) -> Option<Used> {
    let Value::Array(values) = reply else { return None };
    let mut numbers = values.into_iter().map(number);
    let (now, in_flight) = (Duration::from_millis(numbers.next()??), numbers.next()??);
    let charged = numbers.by_ref().take(budgets).collect::<Option<_>>()?;
    let ahead = numbers.map(|number| Some(Duration::from_micros(number?))).collect::<Option<_>>()?;
    Some(Used { now, in_flight, charged, ahead })
}
