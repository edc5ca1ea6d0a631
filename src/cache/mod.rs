//! Answers a repeated `agent:message` without asking Letta.
//!
//! Only for agents that the configuration names; requests to all others pass untouched. An answer is kept if it is the
//! JSON of a finished turn (status 200, `end_turn`, nothing left to approve), whole and within its bound, and it is
//! given again only to the key it was given to, unless the configuration lets all keys share. Whatever is wrong with
//! the store, the request goes on to Letta.

mod directives;
mod key;
mod status;
mod step;
mod tee;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use step::{Cache, Forward};

/// What the configuration says of the cache.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Agent ids, `*`, or ids that end in `*`; empty: the cache is off.
    pub agents: Vec<String>,
    pub ttl: Duration,
    /// Bytes of one answer at most.
    pub max_entry: u64,
    /// Bytes of all answers at most (in this process only).
    pub max_total: u64,
    /// Who shares answers.
    pub scope: Scope,
}

/// Who shares answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Each key has its own.
    Key,
    /// All keys of the gateway share them.
    Shared,
}
