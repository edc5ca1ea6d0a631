//! YAML text -> settings owned by each part, or every problem with its line.

use std::time::Duration;

use crate::{admin, auth, balance, cache, cors, limits, listen, store, telemetry, upstream};

/// A configuration that was checked whole.
#[derive(Clone, PartialEq)]
pub struct Settings {
    pub listeners: Vec<listen::Settings>,
    pub admin: Option<admin::Settings>,
    pub balance: balance::Settings,
    pub upstream: upstream::Settings,
    pub keys: Vec<auth::key::Settings>,
    pub plans: Vec<limits::Plan>,
    /// None: the store is in this process.
    pub redis: Option<store::RedisSettings>,
    pub cache: cache::Settings,
    pub cors: cors::Settings,
    pub log: telemetry::diagnostics::Settings,
    /// How long streams may go on after SIGTERM.
    pub drain: Duration,
    /// Worker threads; None: one per CPU.
    pub workers: Option<u16>,
}
