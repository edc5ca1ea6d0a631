//! What became of a run whose answer was lost, and how long its lane is held for it.
//!
//! Letta goes on with a run whose client has left, and a run whose replica has died stays `running` in its book for ever.
//! A run is known to be dead once its replica has refused connections after it began; it is then cancelled, which frees
//! what it blocks (`letta/server/rest_api/routers/v1/agents.py`, `cancel_message`).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::Dispatch;
use super::conflict;
use super::inquiry::{Inquiry, Run, Status};
use super::lane::read_note;
use super::shared::Turn;
use super::step::Desk;
use crate::error::{Error, Fate};
use crate::step::Handle;
use crate::store::Abandoned;
use crate::telemetry::Record;
use crate::telemetry::metrics::UpstreamMetrics;

/// How long a replica may take to accept a connection that only asks whether it is there.
const PROBE: Duration = Duration::from_secs(1);
/// How long the lane of a run that nobody sees the end of is held at most, when no patience is configured.
const LONGEST_AFTERMATH: Duration = Duration::from_secs(120);
/// How long the end of a run is waited for before its client is told that it still runs.
const FATE_PATIENCE: Duration = Duration::from_secs(5);
/// How often a replica is probed while its run is waited for.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Looks after the runs of one turn's lane.
pub(super) struct Aftermath<'a, B> {
    pub desk: &'a Desk,
    pub turn: &'a Arc<Turn>,
    pub inquiry: Inquiry<B>,
    pub record: &'a Record,
}

/// The replica of a run, and since when it had it.
#[derive(Clone, Copy)]
struct Home<'a> {
    /// `host:port`.
    replica: &'a str,
    since: SystemTime,
}

impl<B: Handle<Dispatch>> Aftermath<'_, B> {
    /// What became of a turn whose answer was lost, and its run if that goes on. `has_lane`: the newest active run of its
    /// agent is its own.
    pub(super) async fn what_became(&self, error: Error, has_lane: bool) -> (Error, Option<Box<str>>) {
        let is_closed = matches!(error, Error::UpstreamClosed { .. });
        let run = match self.turn.run() {
            Some(run) => Some(run.into()),
            None if has_lane => {
                let active = self.inquiry.active(&self.turn.target, self.turn.began_at(), self.record).await;
                active.and_then(|runs| runs.into_iter().next()).map(|run| run.id)
            }
            None => None,
        };
        let Some(run) = run else {
            return (Error::TurnLost { run: None, fate: Fate::Unknown, error: Box::new(error) }, None);
        };
        self.desk.registry.learn_run(self.turn, &run);
        let home = if is_closed && has_lane { self.home() } else { None };
        // one that is nearly done is worth waiting for: its client is told how it ended
        let fate = self.fate(&run, home, Instant::now() + FATE_PATIENCE).await;
        let lost =
            Error::TurnLost { run: Some(run.clone()), fate: fate.unwrap_or(Fate::Running), error: Box::new(error) };
        (lost, fate.is_none().then_some(run))
    }

    /// Holds the lane until `run`, which goes on without the gateway, is over.
    pub(super) async fn outlast(&self, run: Option<Box<str>>) {
        let Some(run) = run else { return };
        let most = self.desk.settings.lane.map_or(LONGEST_AFTERMATH, |lane| lane.max_wait);
        self.fate(&run, self.home(), Instant::now() + most).await;
    }

    /// Waits until the turns of those who abandoned the lane are at work no more. False: not until `until`.
    pub(super) async fn settle(&self, abandoned: &[Abandoned], until: Instant) -> bool {
        for left in abandoned {
            let (run, replica) = read_note(&left.note);
            let since = SystemTime::UNIX_EPOCH + Duration::from_millis(left.since_ms);
            let home = replica.map(|replica| Home { replica, since });
            let runs: Vec<Box<str>> = match run {
                Some(run) => vec![run.into()],
                None => loop {
                    match self.inquiry.active(&self.turn.target, since, self.record).await {
                        Some(active) => break active.into_iter().map(|run| run.id).collect(),
                        None if Instant::now() >= until => return false,
                        None => sleep(conflict::LONGEST_PAUSE).await,
                    }
                },
            };
            for run in runs {
                if self.fate(&run, home, until).await.is_none() {
                    return false;
                }
            }
        }
        true
    }

    /// Until `run` is over, at most `until`.
    pub(super) async fn wait_for(&self, run: &str, until: Instant) {
        self.fate(run, None, until).await;
    }

    /// How `run` ended, or that it was known to be dead and freed. `None`: neither until `until`.
    async fn fate(&self, run: &str, home: Option<Home<'_>>, until: Instant) -> Option<Fate> {
        let mut pause = conflict::FIRST_PAUSE;
        let mut probed: Option<Instant> = None;
        while Instant::now() < until {
            match self.inquiry.run(run, self.record).await {
                Ok(Some(found)) => {
                    match found.status {
                        Status::Completed => return Some(Fate::Completed),
                        Status::Failed => return Some(Fate::Failed),
                        Status::Cancelled => return Some(Fate::Cancelled),
                        Status::Created | Status::Running | Status::Unknown => {}
                    }
                    if probed.is_none_or(|at| at.elapsed() >= PROBE_EVERY) {
                        probed = Some(Instant::now());
                        if self.is_dead(home).await && self.free(&found).await {
                            return Some(Fate::Freed);
                        }
                    }
                }
                // Letta knows no such run
                Ok(None) => return Some(Fate::Unknown),
                // nobody could be asked
                Err(()) => {}
            }
            sleep(pause).await;
            pause = (pause * 2).min(conflict::LONGEST_PAUSE);
        }
        None
    }

    async fn free(&self, run: &Run) -> bool {
        let is_freed = self.inquiry.cancel(run, self.record).await;
        if is_freed {
            self.desk.metrics.turns.conflict("freed");
        }
        is_freed
    }

    /// Where this turn's own run is.
    fn home(&self) -> Option<Home<'_>> {
        let upstream = self.record.upstream.as_ref()?;
        let since = SystemTime::now().checked_sub(self.record.sent?.elapsed())?;
        Some(Home { replica: &upstream.id, since })
    }

    /// The replica has refused connections since it had the run: its process is gone, and the run with it.
    async fn is_dead(&self, home: Option<Home<'_>>) -> bool {
        let Some(Home { replica, since }) = home else { return false };
        let known = self.desk.metrics.known_upstream(replica);
        if known.is_some_and(|upstream: Arc<UpstreamMetrics>| upstream.has_refused_since(since)) {
            return true;
        }
        let connecting = TcpStream::connect(replica);
        timeout(PROBE, connecting).await.is_ok_and(|connected| connected.is_err())
    }
}
