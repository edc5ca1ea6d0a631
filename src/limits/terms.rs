//! What a plan gives, ready to be asked: its windows by name, each with its limiter.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use super::budget::Remaining;
use super::ceiling::Ceiling;
use super::rate::{RateLimit, Spent};
use super::{Budget, Measure, Mode, Plan, Rate, Scope};
use crate::error::{Refusal, Whose, Window};
use crate::store::Pace;

/// The name of the window of requests in flight.
const IN_FLIGHT: &str = "in_flight";
/// When to ask again after too many at once: nobody knows when one of them ends.
const IN_FLIGHT_WAIT: Duration = Duration::from_secs(1);

pub(super) struct Terms {
    pub scope: Scope,
    pub mode: Mode,
    pub rates: Box<[RateWindow]>,
    /// The one that gives requests back the fastest. None: there are no rates, or none that refuses.
    fastest: Option<Arc<RateLimit>>,
    /// The rates as the shared store takes them.
    pub paces: Box<[Pace]>,
    /// Requests in flight at most.
    pub in_flight: Option<u32>,
    in_flight_name: Arc<str>,
    pub budgets: Box<[BudgetWindow]>,
    /// All windows, as `RateLimit-Policy` tells them.
    pub policy: HeaderValue,
}

/// One budget of a plan.
pub(super) struct BudgetWindow {
    pub name: Arc<str>,
    pub what: Measure,
    pub most: u64,
    pub per: Duration,
}

impl BudgetWindow {
    fn new(budget: &Budget) -> Self {
        let Budget { what, most, per } = *budget;
        Self { name: format!("{}_{}", unit(what), in_units(per)).into(), what, most, per }
    }
}

fn unit(what: Measure) -> &'static str {
    match what {
        Measure::Tokens => "tokens",
        Measure::Steps => "steps",
        Measure::Turns => "turns",
    }
}

/// One rate of a plan.
pub(super) struct RateWindow {
    pub name: Arc<str>,
    pub limit: Arc<RateLimit>,
    /// What it holds, as `x-ratelimit-limit` tells it.
    pub holds: HeaderValue,
}

impl Terms {
    /// `limit`: the limiter of a rate.
    pub(super) fn new(plan: &Plan, mut limit: impl FnMut(Rate) -> Arc<RateLimit>) -> Self {
        let window = |rate: &Rate| {
            let limit = limit(*rate);
            let holds = HeaderValue::from(limit.left(Duration::ZERO).limit);
            RateWindow { name: rate_name(rate.per).into(), limit, holds }
        };
        let rates: Box<[RateWindow]> = plan.rates.iter().map(window).collect();
        let budgets: Box<[BudgetWindow]> = plan.budgets.iter().map(BudgetWindow::new).collect();
        let fastest = rates.iter().map(|window| &window.limit).min_by_key(|limit| limit.period());
        Self {
            fastest: fastest.filter(|_| plan.mode == Mode::Enforce).map(Arc::clone),
            scope: plan.scope,
            mode: plan.mode,
            policy: policy(&rates, plan.in_flight, &budgets),
            paces: rates.iter().map(|window| window.limit.pace()).collect(),
            rates,
            in_flight: plan.in_flight,
            in_flight_name: IN_FLIGHT.into(),
            budgets,
        }
    }

    /// What is asked before the windows are.
    pub(super) fn ceiling(&self) -> Option<&Ceiling> {
        self.fastest.as_ref().map(|fastest| fastest.ceiling())
    }

    pub(super) fn in_flight_name(&self) -> &str {
        &self.in_flight_name
    }

    pub(super) fn too_many_in_flight(&self) -> Box<Refusal> {
        Box::new(Refusal {
            window: Window::InFlight,
            name: Arc::clone(&self.in_flight_name),
            whose: self.whose(),
            retry_after: IN_FLIGHT_WAIT,
            limit: self.in_flight.unwrap_or(u32::MAX).into(),
            remaining: 0,
            reset: IN_FLIGHT_WAIT,
            policy: self.policy.clone(),
        })
    }

    /// The refusal by the budget that is spent for the longest; `remaining`: of each budget, or none of them.
    pub(super) fn first_spent(&self, remaining: &[Remaining]) -> Option<Box<Refusal>> {
        let spent = self.budgets.iter().zip(remaining).rev().filter(|(_, remaining)| remaining.left <= 0);
        let (budget, Remaining { reset, .. }) = spent.max_by_key(|(_, remaining)| remaining.reset)?;
        Some(self.spent(budget, *reset))
    }

    /// Nothing of `budget` is left until `reset`.
    fn spent(&self, budget: &BudgetWindow, reset: Duration) -> Box<Refusal> {
        let (name, policy) = (Arc::clone(&budget.name), self.policy.clone());
        let (window, whose, limit) = (Window::Budget, self.whose(), budget.most);
        Box::new(Refusal { window, name, whose, retry_after: reset, limit, remaining: 0, reset, policy })
    }

    pub(super) fn too_fast(&self, window: &RateWindow, spent: Spent) -> Box<Refusal> {
        let Spent { limit, retry_after, reset } = spent;
        let (name, policy) = (Arc::clone(&window.name), self.policy.clone());
        let (window, whose, limit) = (Window::Rate, self.whose(), limit.into());
        Box::new(Refusal { window, name, whose, retry_after, limit, remaining: 0, reset, policy })
    }

    fn whose(&self) -> Whose {
        match self.scope {
            Scope::Key => Whose::Key,
            Scope::Agent => Whose::Agent,
            Scope::Plan => Whose::Plan,
        }
    }
}

/// `rate_1s`, `rate_1h30m`: the same in every load of the configuration.
fn rate_name(per: Duration) -> String {
    format!("rate_{}", in_units(per))
}

/// As the configuration writes a period.
fn in_units(period: Duration) -> String {
    let mut rest = period.as_millis();
    let mut text = String::new();
    for (name, unit) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if rest >= unit {
            let _ = write!(text, "{}{name}", rest / unit);
            rest %= unit;
        }
    }
    text
}

/// `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10): of each window its quota, and the seconds in which a
/// quota that is spent is whole again.
fn policy(rates: &[RateWindow], in_flight: Option<u32>, budgets: &[BudgetWindow]) -> HeaderValue {
    let mut text = String::new();
    for RateWindow { name, limit, .. } in rates {
        let (burst, seconds) = (limit.burst(), limit.whole_after().as_secs_f64().ceil());
        let _ = write!(text, "{}\"{name}\";q={burst};w={seconds}", separator(&text));
    }
    if let Some(most) = in_flight {
        let _ = write!(text, "{}\"{IN_FLIGHT}\";q={most};qu=\"concurrent-requests\"", separator(&text));
    }
    for BudgetWindow { name, what, most, per } in budgets {
        let (unit, seconds) = (unit(*what), per.as_secs());
        let _ = write!(text, "{}\"{name}\";q={most};qu=\"{unit}\";w={seconds}", separator(&text));
    }
    // names and numbers only
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

fn separator(before: &str) -> &'static str {
    if before.is_empty() { "" } else { ", " }
}
