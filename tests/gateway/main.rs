//! The whole gateway in front of scripted replicas: what clients see, and what the replicas see of it.
//!
//! Each file is one promise of the README; each test also asserts what must *not* have happened.

mod support;

mod balance;
mod headers;
mod streams;
