//! What is told of one turn, whatever its HTTP status: how it came to this request, how it ended, what it cost.

use std::ops::Deref;
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

/// The facts of one turn and its exchange with a replica: written by the turn, read by the records of all its requests.
#[derive(Default)]
pub struct TurnFacts {
    facts: Mutex<Facts>,
    exchange: Mutex<Exchange>,
}

impl TurnFacts {
    pub fn of(facts: Facts, exchange: Exchange) -> Self {
        Self { facts: Mutex::new(facts), exchange: Mutex::new(exchange) }
    }

    pub fn now(&self) -> Facts {
        *self.lock()
    }

    /// The facts with `change`.
    pub fn set(&self, change: impl FnOnce(&mut Facts)) -> Facts {
        let mut facts = self.lock();
        change(&mut facts);
        *facts
    }

    /// The replica that has the message, or was the last to be tried.
    pub fn upstream(&self) -> Option<Arc<UpstreamMetrics>> {
        self.lock_exchange().upstream.clone()
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
        self.exchange.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What has the facts of a turn: the turn itself.
pub trait HasFacts: Send + Sync {
    fn facts(&self) -> &TurnFacts;
}

/// The facts of a turn that others have a hand in.
#[derive(Clone)]
pub struct SharedFacts(Arc<dyn HasFacts>);

impl SharedFacts {
    pub fn of(turn: &Arc<impl HasFacts + 'static>) -> Self {
        Self(Arc::clone(turn) as _)
    }
}

impl Deref for SharedFacts {
    type Target = TurnFacts;

    fn deref(&self) -> &TurnFacts {
        self.0.facts()
    }
}
