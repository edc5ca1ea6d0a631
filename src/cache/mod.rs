//! Answers a repeated `agent:message` without asking Letta.

use std::time::Duration;

/// What the configuration says of the cache.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Agent ids or `*`; empty: the cache is off.
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
