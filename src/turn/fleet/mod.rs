//! The turns of all gateways that share one Redis: of one message, whichever of them it comes to, one turn is made.
//!
//! A turn is claimed before it waits for its lane; of those that claim the same message one has it, and the others
//! follow that one's answer ([`mirror`]), which its own gateway tells piece by piece ([`publish`]). A turn that has begun
//! is never begun again by another, not even if its gateway is gone: then its clients are told what became of it.
//!
//! A Redis that is away for a moment is waited for. One that is away for longer than [`OUTAGE`] is gone: then each gateway
//! has turns of its own only, or none ([`OnStoreError`]).

mod form;
mod mirror;
mod publish;

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

use super::registry::Registry;
use super::shared::Turn;
use super::{Dedupe, Index, OnStoreError, marks};
use crate::error::Error;
use crate::store::{Claim, SharedTurns, Store, StoreError, TurnId};
use crate::telemetry::metrics::TurnMetrics;
use form::Note;
pub(super) use mirror::Mirrored;

/// How long a Redis that was lost is waited for.
const OUTAGE: Duration = Duration::from_secs(5);
/// Between two questions, where the first one was not answered well.
const PAUSE: Duration = Duration::from_millis(50);
/// Questions to a Redis that is there and answers none of them well.
const TRIES: u32 = 20;

pub(super) struct Fleet {
    pub store: Arc<SharedTurns>,
    registry: Arc<Registry>,
    tasks: TaskTracker,
}

/// Whose turn a message is.
pub(super) enum Claimed {
    /// This gateway's.
    Ours(Standing),
    /// Another's, or one of this gateway's that it does not know any more.
    Theirs(TurnId),
}

enum Whose {
    Ours,
    Theirs(TurnId),
    /// There is no Redis to ask.
    Unknown,
}

/// A claim of this gateway's; taken back when it is dropped before the turn has begun.
pub(super) struct Standing {
    fleet: Arc<Fleet>,
    turn: Arc<Turn>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Known to all gateways, since then.
    Claimed(Instant),
    /// Known to this gateway only: there is no Redis.
    Alone,
    Begun,
}

impl Fleet {
    /// What all gateways share, if they do. The one of `previous` goes on if its Redis is the same.
    pub(super) fn of(
        store: &Store,
        registry: &Arc<Registry>,
        tasks: &TaskTracker,
        previous: Option<&Arc<Self>>,
    ) -> Option<Arc<Self>> {
        let shared = store.shared_turns()?;
        if let Some(previous) = previous.filter(|previous| Arc::ptr_eq(&previous.store, &shared)) {
            return Some(Arc::clone(previous));
        }
        let fleet = Arc::new(Self { store: shared, registry: Arc::clone(registry), tasks: tasks.clone() });
        tokio::spawn(remind(Arc::downgrade(&fleet)));
        Some(fleet)
    }

    /// Asks until there is an answer; `None`: Redis is gone.
    pub(super) async fn ask<T, Asked>(&self, question: impl Fn() -> Asked) -> Option<T>
    where
        Asked: Future<Output = Result<T, StoreError>> + Send,
    {
        for _ in 0..TRIES {
            if let Ok(answer) = question().await {
                return Some(answer);
            }
            if !self.store.is_back(OUTAGE).await {
                return None;
            }
            sleep(PAUSE).await;
        }
        None
    }

    /// Claims `turn`.
    pub(super) async fn claim(
        self: &Arc<Self>,
        turn: &Arc<Turn>,
        dedupe: Dedupe,
        on_error: OnStoreError,
        metrics: &TurnMetrics,
    ) -> Result<Claimed, Error> {
        let state = match self.whose(turn, dedupe).await? {
            Whose::Ours => State::Claimed(Instant::now()),
            Whose::Theirs(theirs) => return Ok(Claimed::Theirs(theirs)),
            Whose::Unknown if on_error == OnStoreError::Deny => return Err(Error::StoreDown),
            Whose::Unknown => {
                metrics.alone.inc();
                State::Alone
            }
        };
        Ok(Claimed::Ours(Standing { fleet: Arc::clone(self), turn: Arc::clone(turn), state }))
    }

    /// Makes `turn` this gateway's, unless it is another's.
    async fn whose(&self, turn: &Turn, dedupe: Dedupe) -> Result<Whose, Error> {
        let note = Note::of(turn);
        let text = note.encode();
        let noted = |indexes: Vec<Index>| indexes.into_iter().map(|index| (index, text.clone())).collect::<Vec<_>>();
        let (exclusive, mut latest) = turn.marks.claims(dedupe, turn.is_retry);
        latest.push(turn.newest());
        let (exclusive, latest) = (noted(exclusive), noted(latest));
        Ok(match self.ask(|| self.store.claim(turn.id, &exclusive, &latest, turn.window)).await {
            Some(Claim::New) => Whose::Ours,
            Some(Claim::Taken(found)) => match Note::decode(&found.note) {
                Some(theirs) if theirs.message != note.message => return Err(Error::KeyReused),
                // the same message, or one that a gateway of another version has noted: it is that one's to say
                _ => Whose::Theirs(found.turn),
            },
            None => Whose::Unknown,
        })
    }

    /// Takes from `dead`, which never began, what `turn` is to be found by.
    pub(super) async fn take_over(&self, dead: TurnId, turn: &Turn) {
        let indexes: Vec<Index> = turn.indexes().collect();
        let _ = self.store.forget(dead, &indexes).await;
    }

    /// The newest turn of any gateway's that `key` finds by `index`: its id, and whether its client wanted a stream.
    pub(super) async fn find(&self, key: &str, index: &Index) -> Option<(TurnId, Note)> {
        let found = self.store.find(&marks::tag(key), index).await.ok()?;
        let newest = found.into_iter().next()?;
        Some((newest.turn, Note::decode(&newest.note)?))
    }

    /// `turn` can be found by `run`, too, on every gateway.
    pub(super) async fn learn_run(&self, turn: &Turn, run: &str) {
        let index = marks::run(&turn.key, run);
        let also = [(index, Note::of(turn).encode())];
        // lost: then only its replay on another gateway is
        let _ = self.store.also(&marks::tag(&turn.key), turn.id, &also, turn.window).await;
    }

    /// Sees to it that Redis knows `turn`; it may have lost it.
    async fn assure(&self, turn: &Turn) {
        let indexes: Vec<Index> = turn.indexes().collect();
        if self.store.heartbeat(turn.id, &indexes).await == Ok(false) {
            let note = Note::of(turn).encode();
            let all: Vec<_> = indexes.into_iter().map(|index| (index, note.clone())).collect();
            if self.store.claim(turn.id, &[], &all, turn.window).await.is_ok() {
                let _ = self.store.begin(turn.id).await;
            }
        }
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        // a runtime that ends takes its turns with it: their leases run out
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.tasks.spawn_on(work, &runtime);
        }
    }
}

impl Standing {
    /// Says that the turn is about to reach Letta. False: it is another's meanwhile.
    pub(super) async fn begin(
        &mut self,
        dedupe: Dedupe,
        on_error: OnStoreError,
        metrics: &TurnMetrics,
    ) -> Result<bool, Error> {
        let (fleet, turn) = (Arc::clone(&self.fleet), Arc::clone(&self.turn));
        if let State::Claimed(since) = self.state {
            let grace = fleet.store.timing().grace;
            // whoever had this message before Redis lost it has said so by now
            if fleet.store.connected_since().is_none_or(|connected| since < connected + grace)
                && matches!(fleet.whose(&turn, dedupe).await?, Whose::Theirs(_))
            {
                return Ok(false);
            }
            match fleet.ask(|| fleet.store.begin(turn.id)).await {
                Some(true) => {}
                Some(false) => return Ok(false),
                None if on_error == OnStoreError::Deny => return Err(Error::StoreDown),
                None => metrics.alone.inc(),
            }
        }
        self.state = State::Begun;
        fleet.spawn(publish::publish(Arc::clone(&fleet), turn));
        Ok(true)
    }

    /// Does `work`, and says meanwhile that the turn's owner is alive.
    pub(super) async fn alive<T>(&self, work: impl Future<Output = T>) -> T {
        let Self { fleet, turn, state } = self;
        if *state == State::Alone {
            return work.await;
        }
        let beats = async {
            let indexes: Vec<Index> = turn.indexes().collect();
            loop {
                sleep(fleet.beat(turn)).await;
                let _ = fleet.store.heartbeat(turn.id, &indexes).await;
            }
        };
        tokio::select! {
            biased;
            done = work => done,
            never = beats => never,
        }
    }
}

impl Fleet {
    /// How often a turn's owner says that it is alive.
    fn beat(&self, turn: &Turn) -> Duration {
        (self.store.timing().owner.min(turn.window) / 3).max(PAUSE)
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        if let State::Claimed(_) = self.state {
            let (fleet, turn) = (Arc::clone(&self.fleet), Arc::clone(&self.turn));
            self.fleet.spawn(async move { publish::forget(&fleet, &turn).await });
        }
    }
}

/// Tells a Redis that has come back what this gateway knows of turns that are over. Those that run tell it themselves.
async fn remind(fleet: Weak<Fleet>) {
    let mut seen = None;
    loop {
        let Some(store) = fleet.upgrade().map(|fleet| Arc::clone(&fleet.store)) else { return };
        // a store that nobody else has is not waited for: it ends with its fleet
        let back = tokio::time::timeout(Duration::from_secs(60), store.reconnected(seen)).await;
        drop(store);
        let Ok(since) = back else { continue };
        seen = Some(since);
        let Some(fleet) = fleet.upgrade() else { return };
        let registry = &fleet.registry;
        for turn in registry.all_over().into_iter().filter_map(|number| registry.to_tell(number)) {
            publish::again(&fleet, &turn).await;
        }
    }
}
