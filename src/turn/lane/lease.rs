//! The lanes of all gateways: a lease each, which its holder renews, and a row of those who wait for it.
//!
//! Who waits asks again and again, more often the nearer it comes, and at once when the holder in front of it was of
//! this gateway. A gateway that is gone renews nothing: its lanes are the next one's when their leases have run out, and
//! that one is told whose turns may still be at work.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::TaskTracker;

use crate::error::Error;
use crate::store::{Abandoned, LONGEST_NOTE, LanePlace, SharedTurns};
use crate::turn::fleet::Fleet;
use crate::turn::log::Phase;
use crate::turn::shared::Turn;
use crate::turn::{Index, LaneSettings};

/// How often the next one in the row asks; one with more in front of it asks less often.
const ASK_EVERY: Duration = Duration::from_millis(25);
const MOST_AHEAD: u32 = 20;
/// Attempts to give a lane up; after them its lease runs out.
const TRIES: u32 = 5;
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(100);

/// The bells of this gateway's waiters, by lane.
#[derive(Default)]
pub(super) struct Bells(Mutex<HashMap<Index, Arc<Notify>>>);

impl Bells {
    fn of(&self, lane: &Index) -> Arc<Notify> {
        let mut bells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(bells.entry(*lane).or_default())
    }

    fn ring(&self, lane: &Index) {
        let bells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bell) = bells.get(lane) {
            bell.notify_waiters();
        }
    }

    /// Forgets a bell that nobody listens to.
    fn tidy(&self, lane: &Index) {
        let mut bells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if bells.get(lane).is_some_and(|bell| Arc::strong_count(bell) == 1) {
            bells.remove(lane);
        }
    }
}

/// A place at a lane: in its row, or in it. Given up when it is dropped.
pub(in crate::turn) struct Lease {
    fleet: Arc<Fleet>,
    bells: Arc<Bells>,
    tasks: TaskTracker,
    turn: Arc<Turn>,
    lane: Index,
    renewing: Option<AbortHandle>,
    /// Whoever let the lane's lease run out before: their turns may still be at work.
    abandoned: Vec<Abandoned>,
    are_settled: bool,
}

impl Lease {
    /// Waits for the lane of `turn` until `deadline`. `Ok(None)`: there is no Redis to ask.
    pub(super) async fn take(
        fleet: &Arc<Fleet>,
        bells: &Arc<Bells>,
        tasks: &TaskTracker,
        turn: &Arc<Turn>,
        settings: LaneSettings,
        deadline: Instant,
    ) -> Result<Option<Self>, Error> {
        let lane = turn.target.lane();
        let mut lease = Self {
            fleet: Arc::clone(fleet),
            bells: Arc::clone(bells),
            tasks: tasks.clone(),
            turn: Arc::clone(turn),
            lane,
            renewing: None,
            abandoned: Vec::new(),
            are_settled: true,
        };
        let bell = bells.of(&lane);
        loop {
            // before the question: a bell that rings after it is heard
            let mut rung = std::pin::pin!(bell.notified());
            rung.as_mut().enable();
            let place = fleet.ask(|| fleet.store.lane_enter(&lane, turn.id, settings.max_waiting)).await;
            let ahead = match place {
                None => return Ok(None),
                Some(LanePlace::Held { token, abandoned }) => {
                    lease.hold(token, abandoned);
                    return Ok(Some(lease));
                }
                Some(LanePlace::Full { waiting }) => return Err(Error::LaneFull { waiting }),
                Some(LanePlace::Waiting { ahead }) => ahead,
            };
            turn.log.set_phase(Phase::Waiting { ahead });
            tokio::select! {
                () = rung => {}
                () = sleep(ASK_EVERY * ahead.clamp(1, MOST_AHEAD)) => {}
                () = sleep_until(deadline) => return Err(Error::LaneTimeout { waited: settings.max_wait }),
            }
        }
    }

    fn hold(&mut self, token: u64, abandoned: Vec<Abandoned>) {
        self.are_settled = abandoned.is_empty();
        self.abandoned = abandoned;
        let renewal = renew(Arc::clone(&self.fleet.store), Arc::clone(&self.turn), self.lane, token);
        // no task of a turn's: it ends with the lease
        self.renewing = Some(tokio::spawn(renewal).abort_handle());
    }

    /// Whose turns may still be at work in this lane.
    pub(in crate::turn) fn abandoned(&self) -> &[Abandoned] {
        if self.are_settled { &[] } else { &self.abandoned }
    }

    /// None of them is any more.
    pub(in crate::turn) fn settled(&mut self) {
        self.are_settled = true;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(renewing) = self.renewing.take() {
            renewing.abort();
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (fleet, bells) = (Arc::clone(&self.fleet), Arc::clone(&self.bells));
        let (lane, turn, are_settled) = (self.lane, self.turn.id, self.are_settled);
        let leaving = async move {
            for _ in 0..TRIES {
                if fleet.store.lane_leave(&lane, turn, are_settled).await.is_ok() {
                    break;
                }
                sleep(PAUSE).await;
            }
            bells.ring(&lane);
            bells.tidy(&lane);
        };
        self.tasks.spawn_on(leaving, &runtime);
    }
}

/// Renews the lease until it is aborted or lost.
async fn renew(store: Arc<SharedTurns>, turn: Arc<Turn>, lane: Index, token: u64) {
    let every = store.timing().lease / 3;
    let mut seen = store.connected_since();
    let mut pause = every;
    loop {
        tokio::select! {
            back = store.reconnected(seen) => seen = Some(back),
            () = sleep(pause) => {}
        }
        pause = match store.lane_renew(&lane, turn.id, token, &note(&turn)).await {
            Ok(true) => every,
            Ok(false) => {
                tracing::warn!(agent = turn.target.id(), "the lane of a turn at work went to another gateway");
                return;
            }
            Err(_) => PAUSE,
        };
    }
}

/// What the next holder is to know if this one is gone: `run|replica`, each as far as it is known.
fn note(turn: &Turn) -> Vec<u8> {
    let upstream = turn.facts.upstream();
    let upstream = upstream.as_ref().map_or("", |upstream| &*upstream.id);
    let note = format!("{}|{upstream}", turn.run().unwrap_or_default()).into_bytes();
    // half a name names another replica
    if note.len() > LONGEST_NOTE { turn.run().unwrap_or_default().into() } else { note }
}

/// Run and replica of a note.
pub(in crate::turn) fn read_note(note: &[u8]) -> (Option<&str>, Option<&str>) {
    let Ok(text) = std::str::from_utf8(note) else { return (None, None) };
    let (run, upstream) = text.split_once('|').unwrap_or((text, ""));
    (Some(run).filter(|run| !run.is_empty()), Some(upstream).filter(|upstream| !upstream.is_empty()))
}
