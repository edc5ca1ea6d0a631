//! The whole gateway in front of scripted replicas: what clients see, and what the replicas see of it.
//!
//! Each file is one promise of the README; each test also asserts what must *not* have happened.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may fail loudly"
)]

mod authority;
mod process;
mod support;

#[allow(dead_code, unreachable_pub, reason = "the tests of the store use all of it")]
#[path = "../support/redis.rs"]
mod redis_server;

mod auth;
mod balance;
mod bodies;
mod budgets;
mod cache;
mod cors;
mod failover;
mod faults;
mod fleet;
mod headers;
mod lifecycle;
mod limits;
mod reach;
mod redis;
mod revoked;
mod shared_limits;
mod streams;
mod targets;
mod telling;
mod tls_h2;
mod turns;
mod usage;
mod users;
