//! What gateways share of limits: what each one has spent, and how many gateways there are.

use std::time::Duration;

/// Whom a request is counted for: the front of a SHA-256, the same in every gateway.
pub type Spender = [u8; 16];

/// One rate: `burst` requests at once, and one back every `period`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    /// Names it among the rates of one spender, e.g. by its numbers: another rate under the same name is the same one.
    pub name: Box<str>,
    pub period: Duration,
    pub burst: u32,
}

/// What one gateway knows of one pace, for a store that knows less.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Known {
    /// How long until nothing of it would be spent any more, by what the store said last.
    pub ahead: Duration,
    /// Requests that passed and that the store was not told of; they count from now on.
    pub untold: u32,
}

/// What one gateway has charged to one budget of a spender's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    /// Names it among the budgets of one spender.
    pub name: Box<str>,
    pub per: Duration,
    /// Which period it is: how many there were since the Unix epoch.
    pub period: u64,
    /// What this gateway has charged in it.
    pub own: u64,
    /// What may be charged in it by all.
    pub most: u64,
}

/// What all gateways have charged to one budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charged {
    /// Which period it is by the store's clock.
    pub period: u64,
    pub total: u64,
}

/// One request that is to be counted in every window, or in none.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    pub spender: Spender,
    pub paces: &'a [Pace],
    /// What is known of each pace, in order; of those left out, nothing.
    pub known: &'a [Known],
    /// Requests in flight at most; `None`: they are not counted.
    pub most: Option<u32>,
    /// The budgets that must have something left.
    pub budgets: &'a [Ledger],
    /// It goes on without a place in flight and without a budget if there is none.
    pub may_stand: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Tally {
    pub verdict: Verdict,
    /// Of each pace, in order: how long until nothing of it is spent any more, this request included if it was counted.
    pub ahead: Vec<Duration>,
    /// Of each budget, in order.
    pub charged: Vec<Charged>,
    /// Requests in flight, this one included if it has a place; 0 where they are not counted.
    pub in_flight: u32,
}

#[derive(Debug)]
pub enum Verdict {
    /// Counted, with its place in flight where those are counted.
    Counted(Option<Lease>),
    /// Counted, but there was no place for it.
    Standing,
    /// Not counted: as many are in flight as may be.
    Full,
    /// Not counted: something is left of the pace that is over `burst - 1` times its period.
    TooFast,
    /// Not counted: of a budget nothing is left.
    Spent,
}

/// Whose use of what is to be read.
#[derive(Debug, Clone, Copy)]
pub struct Account<'a> {
    pub spender: Spender,
    pub paces: &'a [Pace],
    /// Name and period of each budget.
    pub budgets: &'a [(Box<str>, Duration)],
}

/// What a spender has used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// The store's clock: time since the Unix epoch.
    pub now: Duration,
    pub in_flight: u64,
    /// To each budget, in the period that it is.
    pub charged: Vec<u64>,
    /// Of each pace: how long until nothing of it is spent any more.
    pub ahead: Vec<Duration>,
}

pub use super::redis::limits::Lease;

/// How long things last without a sign of life.
#[derive(Debug, Clone, Copy)]
pub struct LimitTiming {
    /// A place in flight; renewed every third of it.
    pub lease: Duration,
    /// A gateway among those that are counted; it says that it is alive every fifth of it.
    pub alive: Duration,
}

impl Default for LimitTiming {
    fn default() -> Self {
        Self { lease: Duration::from_secs(15), alive: Duration::from_secs(5) }
    }
}
