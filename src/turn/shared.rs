//! What the engine, the followers and the registry of one turn share: its log, what it is found by, what is told of it.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::time::Instant;

use super::Index;
use super::log::Log;
use super::marks::{Marks, Target};
use crate::letta::routes::Sends;
use crate::letta::sse;
use crate::telemetry::turn::SharedFacts;

/// Names a turn among those of all gateways.
pub(super) type TurnId = [u8; 16];

pub(super) struct Turn {
    #[expect(dead_code, reason = "what gateways share of a turn is found by it")]
    pub id: TurnId,
    pub log: Log,
    pub facts: SharedFacts,
    pub marks: Marks,
    pub target: Target,
    pub sends: Sends,
    /// The id of the key that sent it.
    pub key: Box<str>,
    /// Its client wants an event stream.
    pub streams: bool,
    pub began: Instant,
    /// Its run at Letta, once that is known.
    run: OnceLock<Box<str>>,
}

impl Turn {
    pub(super) fn new(
        marks: Marks,
        target: Target,
        sends: Sends,
        key: &str,
        streams: bool,
        max_log: usize,
        began: Instant,
    ) -> Arc<Self> {
        let mut id = TurnId::default();
        // without randomness the place in memory still tells turns of this process apart
        let _ = getrandom::fill(&mut id);
        Arc::new(Self {
            id,
            log: Log::new(max_log),
            facts: SharedFacts::default(),
            marks,
            target,
            sends,
            key: key.into(),
            streams,
            began,
            run: OnceLock::new(),
        })
    }

    pub(super) fn run(&self) -> Option<&str> {
        self.run.get().map(|run| &**run)
    }

    /// True the first time.
    pub(super) fn learn_run(&self, run: &str) -> bool {
        self.run.set(run.into()).is_ok()
    }

    /// The last words of its stream, in its own dialect.
    pub(super) fn error_event(&self, kind: &str, text: &str) -> Bytes {
        match self.sends {
            Sends::ChatCompletions => sse::openai_error(kind, text),
            Sends::Agent | Sends::AgentStream | Sends::Conversation => sse::error_event(self.run(), kind, text),
        }
    }

    /// All it is found by now.
    pub(super) fn indexes(&self) -> impl Iterator<Item = Index> + '_ {
        let run = self.run().map(|run| super::marks::run(&self.key, run));
        let newest = super::marks::newest(&self.key, self.target.id());
        self.marks.all().chain(run).chain([newest])
    }
}
