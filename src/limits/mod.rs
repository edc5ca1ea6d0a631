//! Limits of each key: requests per period with a burst, and requests in flight.

use std::time::Duration;

/// What the configuration says of one plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub name: String,
    pub rate: Option<Rate>,
    /// Requests in flight at once; a stream counts until its last byte.
    pub in_flight: Option<u32>,
}

/// So many requests per period, at most `burst` of them at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub requests: u32,
    pub per: Duration,
    pub burst: u32,
}
