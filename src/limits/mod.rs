//! Limits of each key: requests per period with a burst, and requests in flight.
//!
//! A refusal by one limit does not spend the other. A request is in flight until its response's last byte, so a stream
//! counts for as long as it lasts. Requests that need no key (health, the OAuth callback) are counted together, for
//! nobody is known to count them for: a few in flight, so that they leave the connections to the replicas to the keys.

mod allowance;
mod rate;
mod step;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use allowance::{Limits, Seat};
pub use rate::Left;
pub use step::Within;

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
