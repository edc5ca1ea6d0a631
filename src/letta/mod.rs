//! What is known of Letta and nobody else needs to know: its routes, its messages, its replies, its event streams.
//! The facts are those of the V1 server 0.16.8.

pub mod agents;
pub mod fault;
pub mod fields;
pub mod headers;
pub mod message;
pub mod repeat;
pub mod reply;
pub mod routes;
pub mod sse;

/// Bytes of an id at most: Letta's are a word and a UUID; a conversation's may be `default`.
pub const LONGEST_ID: usize = 128;
