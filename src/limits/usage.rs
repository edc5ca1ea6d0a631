//! What is used of limits at all gateways together, for whoever looks on.

use std::sync::Arc;
use std::time::Duration;

use super::Plan;
use super::budget::until_next;
use super::rate::{Left, RateLimit};
use super::table::spender;
use super::terms::Terms;
use crate::store::{Account, Used};

/// Who counts as one; see [`Scope`](super::Scope).
#[derive(Debug, Clone, Copy)]
pub enum Who<'a> {
    /// The key with this id. Where each agent counts apart: its requests that name none.
    Key(&'a str),
    Agent {
        key: &'a str,
        agent: &'a str,
    },
    Plan(&'a str),
}

/// The windows of one plan, to be looked at.
pub struct Windows {
    terms: Terms,
    budgets: Box<[(Box<str>, Duration)]>,
}

/// How one window stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    pub window: Arc<str>,
    pub used: u64,
    pub limit: u64,
    pub remaining: u64,
    /// How long until nothing of it is used any more; None: nobody knows when a request ends.
    pub reset: Option<Duration>,
}

impl Windows {
    pub fn of(plan: &Plan) -> Self {
        let terms = Terms::new(plan, |rate| Arc::new(RateLimit::new(rate)));
        let budgets = terms.budgets.iter().map(|budget| ((&*budget.name).into(), budget.per)).collect();
        Self { terms, budgets }
    }

    /// What the store is to be asked.
    pub fn account<'w>(&'w self, who: Who<'_>) -> Account<'w> {
        let spender = match who {
            Who::Key(key) => spender(&["key", key]),
            Who::Agent { key, agent } => spender(&["agent", key, agent]),
            Who::Plan(plan) => spender(&["plan", plan]),
        };
        Account { spender, paces: &self.terms.paces, budgets: &self.budgets }
    }

    /// What it has said: of each rate, the requests in flight, each budget.
    pub fn read(&self, used: &Used) -> Vec<Usage> {
        let Used { now, in_flight, charged, ahead } = used;
        let rates = self.terms.rates.iter().zip(ahead).map(|(window, ahead)| {
            let Left { limit, remaining, reset } = window.limit.left(*ahead);
            let (window, limit, remaining) = (Arc::clone(&window.name), limit.into(), remaining.into());
            Usage { window, used: limit - remaining, limit, remaining, reset: Some(reset) }
        });
        let places = self.terms.in_flight.map(|limit| {
            let (window, limit) = (self.terms.in_flight_name().into(), u64::from(limit));
            Usage { window, used: *in_flight, limit, remaining: limit.saturating_sub(*in_flight), reset: None }
        });
        let budgets = self.terms.budgets.iter().zip(charged).map(|(budget, used)| {
            let (limit, reset) = (budget.most, Some(until_next(budget.per, *now)));
            Usage {
                window: Arc::clone(&budget.name),
                used: *used,
                limit,
                remaining: limit.saturating_sub(*used),
                reset,
            }
        });
        rates.chain(places).chain(budgets).collect()
    }
}
