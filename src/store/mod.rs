//! Shared state behind one door: in this process (the embedded default) or in Redis.

use std::time::Duration;

/// What the configuration says of Redis.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisSettings {
    /// `redis://` or `rediss://`; may hold a password, so it is never logged whole.
    pub url: String,
    /// Time budget of one command; after it the request goes on without the store.
    pub timeout: Duration,
    /// In front of every Redis key of the gateway's.
    pub prefix: String,
}

impl std::fmt::Debug for RedisSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisSettings").field("timeout", &self.timeout).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
