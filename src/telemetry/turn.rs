//! What is told of one turn, whatever its HTTP status: how it came to this request, how it ended, what it cost.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::metrics::UpstreamMetrics;
use super::record::Exchange;
use crate::letta::reply::{StopReason, Usage};

/// How a request came to its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It started it.
    Started,
    /// It repeats one that runs.
    Joined,
    /// It repeats one that is over.
    Replayed,
    /// It goes on with one from an offset.
    Resumed,
}

impl Part {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Joined => "joined",
            Self::Replayed => "replayed",
            Self::Resumed => "resumed",
        }
    }
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Letta said why it stopped.
    Stopped(StopReason),
    /// Letta ended the stream with an `event: error`.
    ErrorEvent,
    /// Letta refused the message (a status other than 200).
    Refused,
    /// The answer ended without a word on why the turn stopped (as the OpenAI dialect's does).
    Answered,
    /// The replica broke off or fell silent.
    Broken,
    /// It never reached a replica.
    NeverSent,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped(reason) => reason.as_str(),
            Self::ErrorEvent => "error_event",
            Self::Refused => "refused",
            Self::Answered => "answered",
            Self::Broken => "broken",
            Self::NeverSent => "never_sent",
        }
    }
}

/// The facts of one turn, as far as they are known.
#[derive(Debug, Default, Clone, Copy)]
pub struct Facts {
    /// How long it waited for its lane.
    pub queued: Duration,
    /// From its send to the first event of a stream.
    pub first_event: Option<Duration>,
    /// The longest time between two events.
    pub longest_gap: Option<Duration>,
    pub outcome: Option<Outcome>,
    pub usage: Option<Usage>,
}

/// Written by the turn, read by the records of all its requests.
#[derive(Default, Clone)]
pub struct SharedFacts(Arc<Inner>);

#[derive(Default)]
struct Inner {
    facts: Mutex<Facts>,
    exchange: Mutex<Exchange>,
}

impl SharedFacts {
    pub fn now(&self) -> Facts {
        *self.lock()
    }

    pub fn set(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.lock());
    }

    /// The replica that has the message, or was the last to be tried.
    pub fn upstream(&self) -> Option<Arc<UpstreamMetrics>> {
        self.exchange().upstream
    }

    pub fn goes_to(&self, upstream: &Arc<UpstreamMetrics>) {
        self.lock_exchange().upstream = Some(Arc::clone(upstream));
    }

    /// The exchange with the replica, as far as it has come.
    pub fn exchange(&self) -> Exchange {
        self.lock_exchange().clone()
    }

    pub fn exchanged(&self, exchange: Exchange) {
        *self.lock_exchange() = exchange;
    }

    fn lock_exchange(&self) -> MutexGuard<'_, Exchange> {
        self.0.exchange.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        self.0.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
