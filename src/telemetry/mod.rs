//! What is told of the gateway's work: metrics with closed labels, one access-log line a request, diagnostics.

pub mod access;
pub mod diagnostics;
mod lines;
pub mod metrics;
pub mod millis;
pub mod record;
mod timestamp;
pub mod turn;

pub use metrics::Metrics;
pub use record::Record;
pub use timestamp::Timestamp;
