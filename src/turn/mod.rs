//! Turns: every message reaches its agent exactly once, in order.
//!
//! A message to an agent starts a **turn**. Letta goes on with it when its client leaves, both official clients send the
//! same message again after a minute, and two turns of one agent that overlap lose messages. So a turn is a thing of the
//! gateway's own: one engine talks to the replica and writes what comes back to the turn's bounded **log**; clients are
//! **followers** of a log: the one that started it, its own retry, one that comes back with an offset. (A whole answer
//! goes past the log to the client that started the turn, if nobody else follows.) The **registry** finds the turn that a
//! send repeats, among those that run and those of the **past**. The **lane** of an agent admits one turn at a time.
//!
//! With a Redis all that is the **fleet**'s: the gateways that share it have one turn for each message and one lane for
//! each agent.
//!
//! Whatever is no message passes untouched.

mod aftermath;
mod conflict;
mod engine;
mod fleet;
mod follow;
mod inquiry;
mod lane;
mod log;
mod marks;
mod message;
mod past;
mod registry;
mod relay;
mod resume;
mod step;
mod shared;
mod unfinished;

use std::time::Duration;

use crate::auth::Parts;

pub use step::Turns;

/// What the configuration says of turns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub dedupe: Dedupe,
    /// How long a turn that is over can be repeated.
    pub window: Duration,
    /// None: turns of one agent may overlap.
    pub lane: Option<LaneSettings>,
    pub on_disconnect: OnDisconnect,
    /// Silence on a stream after which a comment is sent.
    pub keepalive: Duration,
    /// Bytes of one answer that can be given again.
    pub max_log: usize,
    /// Bytes of all that is kept of turns that are over, in this process.
    pub max_total: u64,
    /// What becomes of messages while the store of all gateways is gone.
    pub on_store_error: OnStoreError,
}

/// Which sends are the same turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dedupe {
    /// Those that say so: same `Idempotency-Key`, same `otid`, or a retry by its count.
    Repeats,
    /// Those, and any that is identical to one that runs.
    IdenticalInFlight,
    Off,
}

/// How sends wait for their agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneSettings {
    pub max_waiting: u32,
    pub max_wait: Duration,
}

/// What becomes of a turn when its last client has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDisconnect {
    /// It goes on and its answer is kept for the repeat.
    Detach,
    /// Letta is asked to cancel its run.
    Cancel,
    /// It goes on for its usage alone.
    Drain,
}

/// What becomes of messages while the Redis that gateways share is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStoreError {
    /// Each gateway has turns and lanes of its own.
    Local,
    /// They are refused.
    Deny,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            dedupe: Dedupe::Repeats,
            window: Duration::from_secs(15 * 60),
            lane: Some(LaneSettings { max_waiting: 16, max_wait: Duration::from_secs(120) }),
            on_disconnect: OnDisconnect::Detach,
            keepalive: Duration::from_secs(15),
            max_log: 1 << 20,
            max_total: 64 << 20,
            on_store_error: OnStoreError::Local,
        }
    }
}

/// What a request is found by: a SHA-256 over what makes two of them the same.
pub(crate) type Index = [u8; 32];

/// The first bytes of `index`: as random as all of it, and enough to look for it by.
fn beginning(index: &Index) -> u64 {
    index.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// A request that may go to a replica now: no message, or one whose turn it is.
pub struct Dispatch {
    parts: Box<Parts>,
}

impl Dispatch {
    pub fn route(&self) -> &'static crate::letta::routes::Route {
        self.parts.route
    }

    pub fn into_parts(self) -> Box<Parts> {
        self.parts
    }
}
