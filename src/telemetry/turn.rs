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
    state: Mutex<(Facts, Exchange)>,
}

impl TurnFacts {
    pub fn of(facts: Facts, exchange: Exchange) -> Self {
        Self { state: Mutex::new((facts, exchange)) }
    }

    pub fn now(&self) -> Facts {
        self.lock().0
    }

    /// The facts with `change`.
    pub fn set(&self, change: impl FnOnce(&mut Facts)) -> Facts {
        let (facts, _) = &mut *self.lock();
        change(facts);
        *facts
    }

    /// The facts of a turn that ends with a whole answer.
    pub fn answered(&self, outcome: Outcome, usage: Option<Usage>, exchange: &Exchange) -> Facts {
        let (facts, exchanged) = &mut *self.lock();
        (facts.outcome, facts.usage) = (Some(outcome), usage);
        exchanged.clone_from(exchange);
        *facts
    }

    /// The facts and the exchange with the replica, as far as it has come.
    pub fn all(&self) -> (Facts, Exchange) {
        self.lock().clone()
    }

    /// Looks at both while nobody changes them.
    pub fn look<T>(&self, at: impl FnOnce(&Facts, &Exchange) -> T) -> T {
        let (facts, exchange) = &*self.lock();
        at(facts, exchange)
    }

    /// The replica that has the message, or was the last to be tried.
    pub fn upstream(&self) -> Option<Arc<UpstreamMetrics>> {
        self.lock().1.upstream.clone()
    }

    pub fn goes_to(&self, upstream: &Arc<UpstreamMetrics>) {
        self.lock().1.upstream = Some(Arc::clone(upstream));
    }

    pub fn exchanged(&self, exchange: Exchange) {
        self.lock().1 = exchange;
    }

    fn lock(&self) -> MutexGuard<'_, (Facts, Exchange)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
