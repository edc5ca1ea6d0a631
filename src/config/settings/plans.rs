//! Plans: each window has a name of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Check, DAY};
use crate::config::raw;
use crate::limits::{self, Mode, Scope};

/// Rates of one plan at most: each is asked at every request.
const MOST_RATES: usize = 8;

impl Check {
    pub(super) fn plans(&mut self, plans: BTreeMap<String, raw::Plan>) -> Vec<limits::Plan> {
        plans.into_iter().map(|(name, plan)| self.plan(name, plan)).collect()
    }

    fn plan(&mut self, name: String, plan: raw::Plan) -> limits::Plan {
        let path = format!("plans.{name}");
        let raw::Plan { scope, mode, rate, in_flight } = plan;
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
        limits::Plan { name, scope, mode, rates, in_flight }
    }

    fn rates(&mut self, path: &str, raw::Rates(rates): raw::Rates) -> Vec<limits::Rate> {
        let is_list = self.known.places.contains_key(&format!("{path}[0]"));
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
