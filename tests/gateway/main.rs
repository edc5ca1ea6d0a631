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

mod support;

mod auth;
mod balance;
mod headers;
mod limits;
mod streams;
mod targets;
