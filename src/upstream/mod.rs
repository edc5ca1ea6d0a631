//! One attempt to one replica: pool, timeouts, header hygiene.

use std::time::Duration;

/// What the configuration says of talking to a replica.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// Letta's server password; sent as `Authorization: Bearer`.
    pub password: Option<String>,
    pub timeouts: Timeouts,
    pub pool: PoolSettings,
    /// Bytes of a request body at most.
    pub max_body: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Duration,
    pub request: Duration,
    pub message: Duration,
    pub stream_idle: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSettings {
    /// Connections to one replica at most.
    pub max_connections: u32,
    /// How long a request waits for one.
    pub max_wait: Duration,
    /// How long an unused one is kept; under uvicorn's keep-alive of 5 s.
    pub idle_timeout: Duration,
}
