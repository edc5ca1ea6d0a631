//! Limits of each key: any number of rates with their bursts, requests in flight, and budgets of what turns cost.
//!
//! A request passes if every window of its plan has room for it, and then all of them count it; if one refuses, none
//! does. A request is in flight until its response's last byte, so a stream counts for as long as it lasts. Requests that
//! need no key (health, the OAuth callback) are counted together, for nobody is known to count them for: a few in
//! flight, so that they leave the connections to the replicas to the keys.

mod account;
mod agents;
mod bill;
mod budget;
mod ceiling;
mod fields;
mod rate;
mod seat;
mod shared;
mod step;
mod table;
mod terms;
#[cfg(test)]
mod tests;
pub mod usage;

use std::time::Duration;

pub use bill::Bill;
pub use seat::Seat;
pub use step::Within;
pub use table::Limits;

/// What the configuration says of one plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub name: String,
    pub scope: Scope,
    pub mode: Mode,
    /// Each with a period of its own.
    pub rates: Vec<Rate>,
    /// Requests in flight at once; a stream counts until its last byte.
    pub in_flight: Option<u32>,
    /// Each measure with each period once.
    pub budgets: Vec<Budget>,
}

/// Who counts as one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scope {
    /// Each key.
    #[default]
    Key,
    /// Each key with each agent that its requests name in their path; those that name none count together.
    Agent,
    /// All keys of the plan together.
    Plan,
}

/// What becomes of a request that is too many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Enforce,
    /// It passes, and is told in the metrics.
    Shadow,
}

/// So many requests per period, at most `burst` of them at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub requests: u32,
    pub per: Duration,
    pub burst: u32,
}

/// What turns may cost in each period; a period of a day begins at midnight UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    pub what: Measure,
    pub most: u64,
    pub per: Duration,
}

/// What of a turn is counted, by Letta's own report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    Tokens,
    Steps,
    /// Messages that Letta has taken.
    Turns,
}
