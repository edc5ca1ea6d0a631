//! Plans: each window has a name of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Check, DAY};
use crate::config::raw;
use crate::limits::{self, Measure, Mode, Scope};

/// Rates of one plan at most: each is asked at every request.
const MOST_RATES: usize = 8;
/// The same for budgets.
const MOST_BUDGETS: usize = 8;
/// A budget at most: a number that every clock, script and gauge takes as it is.
const MOST_SPENT: u64 = 1_000_000_000_000_000;

impl Check {
    pub(super) fn plans(&mut self, plans: BTreeMap<String, raw::Plan>) -> Vec<limits::Plan> {
        plans.into_iter().map(|(name, plan)| self.plan(name, plan)).collect()
    }

    fn plan(&mut self, name: String, plan: raw::Plan) -> limits::Plan {
        let path = format!("plans.{name}");
        let raw::Plan { scope, mode, rate, in_flight, budgets } = plan;
        let scope = match scope {
            raw::PlanScope::Key => Scope::Key,
            raw::PlanScope::Agent => Scope::Agent,
            raw::PlanScope::Plan => Scope::Plan,
        };
        let mode = match mode {
            raw::Mode::Enforce => Mode::Enforce,
            raw::Mode::Shadow => Mode::Shadow,
        };
        let rates = self.rates(&format!("{path}.rate"), rate);
        let in_flight = in_flight.map(|most| self.count(&format!("{path}.in_flight"), most, 1..=1_000_000));
        let budgets = self.budgets(&format!("{path}.budgets"), budgets);
        limits::Plan { name, scope, mode, rates, in_flight, budgets }
    }

    fn budgets(&mut self, path: &str, budgets: Vec<raw::Budget>) -> Vec<limits::Budget> {
        let mut found: Vec<limits::Budget> = Vec::new();
        for (index, budget) in budgets.into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            let raw::Budget { tokens, steps, turns, per } = budget;
            let per = self.duration(&format!("{path}.per"), per, Duration::from_secs(1)..=31 * DAY);
            let measures = [
                ("tokens", tokens, Measure::Tokens),
                ("steps", steps, Measure::Steps),
                ("turns", turns, Measure::Turns),
            ];
            let mut is_empty = true;
            for (field, most, what) in measures {
                let Some(most) = most else { continue };
                is_empty = false;
                if !(1..=MOST_SPENT).contains(&most) {
                    let text = format_args!("{most} is out of range; write 1 to {MOST_SPENT}");
                    self.problem(&format!("{path}.{field}"), text);
                }
                if found.iter().any(|other| other.what == what && other.per == per) {
                    self.problem(&format!("{path}.{field}"), "has a budget of the same period already; keep one");
                }
                found.push(limits::Budget { what, most, per });
            }
            if is_empty {
                self.problem(&path, "limits nothing; write tokens, steps or turns");
            }
        }
        if found.len() > MOST_BUDGETS {
            self.problem(
                path,
                format_args!("has {} budgets; {MOST_BUDGETS} are the most a plan may have", found.len()),
            );
        }
        found
    }

    fn rates(&mut self, path: &str, raw::Rates(rates): raw::Rates) -> Vec<limits::Rate> {
        let is_list = self.known.place(&format!("{path}[0]")).is_some();
        if rates.len() > MOST_RATES {
            self.problem(path, format_args!("has {} rates; {MOST_RATES} are the most a plan may have", rates.len()));
        }
        let mut found: Vec<limits::Rate> = Vec::new();
        for (index, rate) in rates.into_iter().enumerate() {
            let path = if is_list { format!("{path}[{index}]") } else { path.to_owned() };
            let Some(rate) = self.rate(&path, rate) else { continue };
            if let Some(other) = found.iter().position(|other| other.per == rate.per) {
                let text = format_args!("is the period of rate[{other}] too; each rate has its own");
                self.problem(&format!("{path}.per"), text);
            }
            found.push(rate);
        }
        found
    }

    fn rate(&mut self, path: &str, rate: raw::Rate) -> Option<limits::Rate> {
        let raw::Rate { requests, per, burst } = rate;
        let per = self.duration(&format!("{path}.per"), per, Duration::from_secs(1)..=31 * DAY);
        let burst = burst.map(|burst| self.count(&format!("{path}.burst"), burst, 1..=10_000_000));
        let requests = self.required(path, "requests", requests)?;
        let requests = self.count(&format!("{path}.requests"), requests, 1..=10_000_000);
        Some(limits::Rate { requests, per, burst: burst.unwrap_or(requests) })
    }
}
