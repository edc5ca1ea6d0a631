//! `keys usage`: how every window of a key stands over all gateways, read from the shared store and not changed by it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::super::{ConfigFile, Failure, print};
use super::table::table;
use super::{configured, find, shared, state};
use crate::auth::key;
use crate::config::Settings;
use crate::limits::usage::{Usage as Window, Who, Windows};
use crate::limits::{Mode, Plan, Scope};
use crate::store::Account;

#[derive(Debug, Args)]
pub(in crate::cli) struct Usage {
    /// The keys' ids [default: all]
    id: Vec<String>,
    /// Of keys that count each agent apart: these agents, instead of the requests that name none
    #[arg(long, value_delimiter = ',', value_name = "AGENTS")]
    agent: Vec<String>,
    /// Prints one JSON list
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigFile,
}

/// One whose requests count together, by the key they come with.
struct Row<'s> {
    key: &'s key::Settings,
    plan: &'s Plan,
    windows: &'s Windows,
    agent: Option<&'s str>,
    /// Which of the accounts that are asked for.
    account: usize,
}

/// A plan with its windows.
struct Viewed<'s> {
    plan: &'s Plan,
    windows: Windows,
}

impl<'s> Viewed<'s> {
    fn of(plan: &'s Plan) -> Self {
        Self { plan, windows: Windows::of(plan) }
    }
}

impl Usage {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { id, agent: agents, json, config } = self;
        let (settings, path) = configured(config)?;
        let keys = match id.as_slice() {
            [] => settings.keys.iter().collect(),
            ids => ids.iter().map(|id| find(&settings, id, &path)).collect::<Result<Vec<_>, _>>()?,
        };
        let plans: HashMap<&str, Viewed<'_>> =
            settings.plans.iter().map(|plan| (&*plan.name, Viewed::of(plan))).collect();
        let (accounts, rows) = counted(&keys, &plans, &agents);
        if !agents.is_empty() && !rows.iter().any(|row| row.agent.is_some()) {
            let told = "--agent: no such key counts each agent apart; that is for plans with scope: agent";
            return Err(Failure::Failed(told.to_owned()));
        }
        let read = shared::with(&settings, async |store| Ok((store.usage(&accounts).await?, store.revoked().await?)));
        let read = read.map_err(|why| Failure::Failed(format!("{why}; {}", without_redis(&settings))))?;
        let (used, revoked) = read.ok_or_else(|| {
            let (path, elsewhere) = (path.display(), elsewhere(&settings));
            Failure::Failed(format!(
                "{path}: there is no store.redis, so what keys have used is in each gateway's process; {elsewhere}"
            ))
        })?;
        let revoked: HashSet<[u8; 32]> = revoked.into_iter().collect();
        let stand = |row: &Row<'_>| used.get(row.account).map(|used| row.windows.read(used)).unwrap_or_default();
        let rows = rows.iter().map(|row| (row, state(row.key, &revoked), stand(row)));
        if json {
            let list = rows.map(|(row, state, windows)| described(row, state, &windows)).collect();
            return print(&format!("{:#}\n", Value::Array(list)));
        }
        let (mut lines, mut is_by_agent) = (Vec::new(), false);
        for (row, state, windows) in rows {
            is_by_agent |= row.plan.scope == Scope::Agent && row.agent.is_none();
            lines.extend(written(row, state, &windows));
        }
        let header = ["id", "state", "plan", "counted for", "window", "used", "limit", "remaining", "resets in"];
        let mut text = table(header, lines);
        if is_by_agent {
            text.push_str("\nWhere each agent counts apart, only requests that name none are shown: --agent ID shows an agent's.\n");
        }
        print(&text)
    }
}

/// What the store is to be asked, and a row for each key, or for each of `agents` of one that counts them apart. What a
/// plan's keys use together is asked once.
fn counted<'s>(
    keys: &[&'s key::Settings],
    plans: &'s HashMap<&str, Viewed<'s>>,
    agents: &'s [String],
) -> (Vec<Account<'s>>, Vec<Row<'s>>) {
    let (mut accounts, mut rows, mut of_plans) = (Vec::new(), Vec::new(), HashMap::new());
    for &key in keys {
        // a plan that is not there is no configuration
        let Some(&Viewed { plan, ref windows }) = plans.get(&*key.plan) else { continue };
        let mut ask = |who| {
            accounts.push(windows.account(who));
            accounts.len() - 1
        };
        let counted = match plan.scope {
            Scope::Plan => vec![(None, *of_plans.entry(&*plan.name).or_insert_with(|| ask(Who::Plan(&plan.name))))],
            Scope::Agent if !agents.is_empty() => {
                agents.iter().map(|agent| (Some(&**agent), ask(Who::Agent { key: &key.id, agent }))).collect()
            }
            Scope::Key | Scope::Agent => vec![(None, ask(Who::Key(&key.id)))],
        };
        rows.extend(counted.into_iter().map(|(agent, account)| Row { key, plan, windows, agent, account }));
    }
    (accounts, rows)
}

/// What to do about a store that cannot be asked.
fn without_redis(settings: &Settings) -> String {
    format!(
        "start it, or mend store.redis.url. While it is away each gateway goes by what it knows; {}",
        elsewhere(settings)
    )
}

/// Where else usage can be seen.
fn elsewhere(settings: &Settings) -> String {
    let told = "budget_remaining, limit_decisions_total and key_requests_in_flight";
    match &settings.admin {
        Some(admin) => format!("see {told} at http://{}/metrics of each", admin.address),
        None => format!("give admin an address and see {told} at its /metrics"),
    }
}

fn counted_for(row: &Row<'_>) -> String {
    match (row.plan.scope, row.agent) {
        (Scope::Key, _) => "key".to_owned(),
        (Scope::Agent, None) => "key without agent".to_owned(),
        (Scope::Agent, Some(agent)) => agent.to_owned(),
        (Scope::Plan, _) => "plan".to_owned(),
    }
}

/// A line for each window.
fn written(row: &Row<'_>, state: &str, windows: &[Window]) -> Vec<[String; 9]> {
    let plan = match row.plan.mode {
        Mode::Enforce => row.plan.name.clone(),
        Mode::Shadow => format!("{} (shadow)", row.plan.name),
    };
    let line = |window: [String; 5]| {
        let [window, used, limit, remaining, reset] = window;
        let (id, state, plan) = (row.key.id.clone(), state.to_owned(), plan.clone());
        [id, state, plan, counted_for(row), window, used, limit, remaining, reset]
    };
    if windows.is_empty() {
        return vec![line(["no limits", "-", "-", "-", "-"].map(str::to_owned))];
    }
    let lines = windows.iter().map(|Window { window, used, limit, remaining, reset }| {
        let reset = reset.map_or_else(|| "-".to_owned(), in_words);
        line([window.to_string(), used.to_string(), limit.to_string(), remaining.to_string(), reset])
    });
    lines.collect()
}

fn described(row: &Row<'_>, state: &str, windows: &[Window]) -> Value {
    let window = |Window { window, used, limit, remaining, reset }: &Window| {
        let reset = reset.map(seconds);
        json!({ "window": &**window, "used": used, "limit": limit, "remaining": remaining, "reset_seconds": reset })
    };
    json!({
        "id": row.key.id,
        "state": state,
        "plan": row.plan.name,
        "scope": match row.plan.scope {
            Scope::Key => "key",
            Scope::Agent => "agent",
            Scope::Plan => "plan",
        },
        "mode": match row.plan.mode {
            Mode::Enforce => "enforce",
            Mode::Shadow => "shadow",
        },
        "agent": row.agent,
        "windows": windows.iter().map(window).collect::<Vec<_>>(),
    })
}

/// Rounded up.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// Its two largest units: `3d 4h`, `59m 12s`, `0s`.
fn in_words(time: Duration) -> String {
    let mut rest = seconds(time);
    let mut parts = Vec::new();
    for (unit, length) in [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)] {
        if rest >= length {
            parts.push(format!("{}{unit}", rest / length));
            rest %= length;
        } else if !parts.is_empty() {
            break;
        }
    }
    parts.truncate(2);
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_told_in_its_two_largest_units() {
        for (seconds, told) in [
            (0, "0s"),
            (59, "59s"),
            (3552, "59m 12s"),
            (3600, "1h"),
            (3605, "1h"),
            (90_000, "1d 1h"),
            (93_660, "1d 2h"),
        ] {
            assert_eq!(in_words(Duration::from_secs(seconds)), told);
        }
        assert_eq!(in_words(Duration::from_millis(1)), "1s");
    }
}
