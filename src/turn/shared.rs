//! What the engine, the followers and the registry of one turn share: its log, what it is found by, what is told of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

use super::Index;
use super::log::Log;
use super::marks::{self, Marks, Target};
use super::past::{Kept, More};
use crate::error::Error;
use crate::letta::routes::Sends;
use crate::letta::sse;
use crate::store::{SharedTurns, TurnId};
use crate::telemetry::turn::{HasFacts, Part, TurnFacts};

pub(super) struct Turn {
    /// Names it among those of all gateways.
    pub id: TurnId,
    pub log: Log,
    pub facts: TurnFacts,
    pub marks: Marks,
    pub target: Target,
    pub sends: Sends,
    /// The id of the key that sent it.
    pub key: Arc<str>,
    /// Its client wants an event stream.
    pub streams: bool,
    /// Its client says that it is an attempt after the first.
    pub is_retry: bool,
    pub began: Instant,
    /// How long it can be repeated once it is over.
    pub window: Duration,
    /// What the newest turn of its target is found by, once somebody has asked.
    newest: OnceLock<Index>,
    /// Its conversation has a later one.
    is_superseded: AtomicBool,
    /// Its run at Letta, once that is known.
    run: OnceLock<Box<str>>,
    /// How it is a part of another gateway's turn, if it is.
    followed: OnceLock<Part>,
    /// It never was.
    is_void: AtomicBool,
}

impl HasFacts for Turn {
    fn facts(&self) -> &TurnFacts {
        &self.facts
    }
}

/// What a turn is made of.
pub(super) struct Beginning<'a> {
    pub marks: Marks,
    pub target: Target,
    pub sends: Sends,
    pub key: &'a Arc<str>,
    pub streams: bool,
    pub is_retry: bool,
    pub began: Instant,
}

impl Turn {
    /// `max_log`: bytes of its answer that are kept. An error: nothing could be made to name it by among all gateways'.
    pub(super) fn new(
        from: Beginning<'_>,
        max_log: usize,
        window: Duration,
        has_fleet: bool,
    ) -> Result<Arc<Self>, Error> {
        let Beginning { marks, target, sends, key, streams, is_retry, began } = from;
        let id = match has_fleet {
            true => SharedTurns::turn_id(&marks::tag(key)).map_err(|error| Error::Internal(error.into()))?,
            false => TurnId::default(),
        };
        Ok(Arc::new(Self {
            newest: OnceLock::new(),
            is_superseded: AtomicBool::new(false),
            id,
            log: Log::new(max_log),
            facts: TurnFacts::default(),
            marks,
            target,
            sends,
            key: Arc::clone(key),
            streams,
            is_retry,
            began,
            window,
            run: OnceLock::new(),
            followed: OnceLock::new(),
            is_void: AtomicBool::new(false),
        }))
    }

    /// A turn that was kept, to be followed again.
    pub(super) fn again(kept: Kept) -> Arc<Self> {
        let Kept { number, message, key, sends, streams, began, facts, exchange, answer, is_delivered, more } = kept;
        let More { id, otid, idempotency, newest, run, followed, among_all, broken, .. } = more;
        let (max_log, window) = among_all.unwrap_or_default();
        Arc::new(Self {
            id,
            log: Log::again(number, answer, broken.as_deref(), is_delivered, max_log, &exchange),
            facts: TurnFacts::of(facts, exchange),
            marks: Marks { message, otid, idempotency },
            // a turn that is over has no lane, and what it is found by was kept
            target: Target::Agent(Arc::default()),
            sends,
            key,
            streams,
            is_retry: false,
            began,
            window,
            newest: newest.map_or_else(OnceLock::new, OnceLock::from),
            is_superseded: AtomicBool::new(false),
            run: run.map_or_else(OnceLock::new, OnceLock::from),
            followed: followed.map_or_else(OnceLock::new, OnceLock::from),
            is_void: AtomicBool::new(false),
        })
    }

    /// When it began, by the clock on the wall.
    pub(super) fn began_at(&self) -> SystemTime {
        let now = SystemTime::now();
        now.checked_sub(self.began.elapsed()).unwrap_or(now)
    }

    pub(super) fn run(&self) -> Option<&str> {
        self.run.get().map(|run| &**run)
    }

    /// True the first time.
    pub(super) fn learn_run(&self, run: &str) -> bool {
        self.run.get().is_none() && self.run.set(run.into()).is_ok()
    }

    /// Its answer is brought here from another gateway.
    pub(super) fn follows(&self, part: Part) {
        let _ = self.followed.set(part);
    }

    /// What the request that began it here is of the turn.
    pub(super) fn part(&self) -> Part {
        self.followed().unwrap_or(Part::Started)
    }

    /// How it is a part of another gateway's turn, if it is.
    pub(super) fn followed(&self) -> Option<Part> {
        self.followed.get().copied()
    }

    /// This gateway sends it to Letta.
    pub(super) fn is_ours(&self) -> bool {
        self.followed().is_none()
    }

    /// It never reached Letta, or was refused there: who sends it again begins anew.
    pub(super) fn make_void(&self) {
        self.is_void.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_void(&self) -> bool {
        self.is_void.load(Ordering::Relaxed)
    }

    /// The last words of its stream, in its own dialect.
    pub(super) fn error_event(&self, kind: &str, text: &str) -> Bytes {
        match self.sends {
            Sends::ChatCompletions => sse::openai_error(kind, text),
            Sends::Agent | Sends::AgentStream | Sends::Conversation => sse::error_event(self.run(), kind, text),
        }
    }

    /// What the newest turn of its target is found by.
    pub(super) fn newest(&self) -> Index {
        *self.newest.get_or_init(|| marks::newest(&self.key, self.target.id()))
    }

    /// There is a later turn in its conversation.
    pub(super) fn supersede(&self) {
        self.is_superseded.store(true, Ordering::Relaxed);
    }

    /// Only a stream can be gone on with, and be found as the newest of its conversation.
    pub(super) fn may_be_newest(&self) -> bool {
        self.streams && !self.is_superseded.load(Ordering::Relaxed)
    }

    /// It was made while the gateway had others beside it.
    pub(super) fn is_known_to_all(&self) -> bool {
        self.id != TurnId::default()
    }

    /// What its run is found by.
    pub(super) fn by_run(&self) -> Option<Index> {
        self.run().map(|run| marks::run(&self.key, run))
    }

    /// All it is found by now.
    pub(super) fn indexes(&self) -> impl Iterator<Item = Index> + '_ {
        self.marks.all().chain(self.by_run()).chain([self.newest()])
    }
}
