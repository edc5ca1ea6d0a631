//! The engine of one turn: waits for the lane, sends the message, writes the answer to the log, and sees to it that the
//! turn has an end that is told.
//!
//! Until Letta has begun with the message the turn ends with its last follower. From then on it goes on without any.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::conflict::{self, Conflict};
use super::inquiry::{Inquiry, Run, Status};
use super::lane;
use super::log::{Ended, Phase};
use super::relay::{Relay, Relayed};
use super::shared::Turn;
use super::step::Desk;
use super::{Dispatch, OnDisconnect};
use crate::auth::Parts;
use crate::auth::key::Key;
use crate::body::{Body, Permit, RequestBody, Response};
use crate::error::{Error, Fate};
use crate::letta::routes::Route;
use crate::limits::Bill;
use crate::listen::Peer;
use crate::step::Handle;
use crate::telemetry::Record;
use crate::telemetry::metrics::Gauged;
use crate::telemetry::turn::Outcome;

/// Bytes of a conflict's body at most; a longer one is none.
const LONGEST_CONFLICT: usize = 16 * 1024;
/// How long a replica may take to accept a connection that only asks whether it is there.
const PROBE: Duration = Duration::from_secs(1);
/// How long the lane of a run that nobody sees the end of is held at most, when no patience is configured.
const LONGEST_AFTERMATH: Duration = Duration::from_secs(120);

/// The message, to be sent as often as it takes until Letta has it.
pub(super) struct Message {
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub route: &'static Route,
    pub subject: Option<Box<str>>,
    pub peer: Peer,
    pub key: Option<Arc<Key>>,
}

impl Message {
    fn dispatch(&self) -> Dispatch {
        let mut request = Box::new(http::Request::new(RequestBody::whole(self.body.clone())));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        let Self { route, subject, peer, key, .. } = self;
        Dispatch { parts: Parts { request, peer: *peer, route, subject: subject.clone(), key: key.clone() } }
    }
}

pub(super) struct Engine<B> {
    pub desk: Arc<Desk>,
    pub turn: Arc<Turn>,
    pub below: Arc<B>,
    pub message: Message,
    /// The key's place in flight, until the turn is over.
    pub permit: Option<Permit>,
    /// The key's budgets, until the turn is charged to them.
    pub bill: Option<Bill>,
    pub record: Record,
}

/// How the work on a turn ended.
enum Worked {
    Over(Outcome),
    /// The answer broke off, or never came, after the message may have been read.
    Lost {
        error: Error,
        as_event: bool,
    },
}

impl<B: Handle<Dispatch> + 'static> Engine<B> {
    /// Works until the turn is over.
    pub(super) async fn run(mut self) {
        let unfinished = Unfinished { desk: Arc::clone(&self.desk), turn: Some(Arc::clone(&self.turn)) };
        let lane = match self.enter_lane().await {
            Ok(lane) => lane,
            Err(error) => return unfinished.never_sent(error),
        };
        match self.work().await {
            Ok(Worked::Over(outcome)) => {
                if outcome == Outcome::Refused {
                    self.bill = None;
                }
                self.charge();
                unfinished.over(outcome, Ended::Whole);
            }
            Ok(Worked::Lost { error, as_event }) => {
                let (lost, run) = self.what_became(error).await;
                let ended = if as_event {
                    let farewell = self.turn.error_event(lost.reason(), &lost.to_string());
                    self.turn.log.append(&farewell);
                    Ended::Told(lost)
                } else {
                    Ended::Failed(lost)
                };
                unfinished.over(Outcome::Broken, ended);
                self.permit = None;
                self.outlast(run).await;
            }
            Err(error) => {
                self.bill = None;
                unfinished.never_sent(error);
            }
        }
        drop((lane, self.permit.take()));
        self.settle().await;
    }

    /// Charges the turn if it is known what it cost.
    fn charge(&mut self) {
        let usage = self.turn.facts.now().usage;
        if let Some(bill) = self.bill.take_if(|bill| usage.is_some() || !bill.wants_usage()) {
            bill.charge(usage.as_ref());
        }
    }

    /// Charges a turn whose answer did not tell what it cost with what Letta says when it is asked.
    async fn settle(&mut self) {
        self.charge();
        let Some(bill) = self.bill.take() else { return };
        let usage = match self.turn.run() {
            Some(run) => self.inquiry().usage(run, &self.record).await,
            None => None,
        };
        bill.charge(usage.as_ref());
    }

    async fn enter_lane(&mut self) -> Result<Option<lane::Held>, Error> {
        let Some(settings) = self.desk.settings.lane else { return Ok(None) };
        let metrics = &self.desk.metrics.turns;
        let log = &self.turn.log;
        let entered = Instant::now();
        let lane = tokio::select! {
            biased;
            lane = self.desk.lanes.enter(&self.turn, settings, metrics) => lane?,
            () = log.all_left() => return Err(Error::ClientLeft),
        };
        // a lane that was free took no time that is worth telling
        let queued = match log.phase() {
            Phase::Waiting { ahead: 0 } => Duration::ZERO,
            _ => entered.elapsed(),
        };
        metrics.queue.observe(queued.as_secs_f64());
        if !queued.is_zero() {
            self.turn.facts.set(|facts| facts.queued = queued);
        }
        Ok(Some(lane))
    }

    /// Sends the message and relays its answer. An error: it never reached Letta.
    async fn work(&mut self) -> Result<Worked, Error> {
        let desk = Arc::clone(&self.desk);
        let turn = Arc::clone(&self.turn);
        let running = Gauged::new(&desk.metrics.turns.running);
        let mut pause = conflict::FIRST_PAUSE;
        let mut patience: Option<Instant> = None;
        loop {
            turn.log.set_phase(Phase::Sent);
            let dispatch = self.message.dispatch();
            let sent = Instant::now();
            let below = Arc::clone(&self.below);
            let left = self.when_left();
            let answer = beside(left, below.handle(dispatch, &mut self.record)).await;
            let response = match answer {
                Ok(response) => response,
                Err(error) if error.never_sent() => return Err(error),
                Err(error) => return Ok(Worked::Lost { error, as_event: false }),
            };
            let response = match self.conflict(response).await {
                Err(response) => response,
                Ok(found) => {
                    let most = desk.settings.lane.map_or(Duration::ZERO, |lane| lane.max_wait);
                    let until = *patience.get_or_insert_with(|| Instant::now() + most);
                    if Instant::now() >= until {
                        found.response
                    } else {
                        self.wait_out(found.conflict, pause, until).await?;
                        pause = (pause * 2).min(conflict::LONGEST_PAUSE);
                        continue;
                    }
                }
            };
            let relay = Relay { turn: &turn, registry: &desk.registry, metrics: &desk.metrics.turns, sent };
            let relayed = beside(self.when_left(), relay.relay(response, self.record.exchange())).await;
            drop(running);
            return Ok(match relayed {
                Relayed::Whole(outcome) => Worked::Over(outcome),
                Relayed::BrokenStream(error) => {
                    desk.metrics.streams_broken.inc();
                    Worked::Lost { error, as_event: true }
                }
                Relayed::BrokenBody(error) => Worked::Lost { error, as_event: false },
            });
        }
    }

    /// The conflict that `response` is, if waiting helps.
    async fn conflict(&self, response: Response) -> Result<Found, Response> {
        if response.status() != StatusCode::CONFLICT {
            return Err(response);
        }
        let (head, body) = response.into_parts();
        let Ok(body) = Limited::new(body, LONGEST_CONFLICT).collect().await else {
            return Err(Response::from_parts(head, Body::empty()));
        };
        let body = body.to_bytes();
        let conflict = conflict::read(head.status, &head.headers, &body);
        let response = Response::from_parts(head, Body::whole(body));
        match conflict {
            Some(conflict) => Ok(Found { conflict, response }),
            None => Err(response),
        }
    }

    /// Waits until it is worth sending the message again, which was not executed. An error: nobody follows any more.
    async fn wait_out(&self, conflict: Conflict, pause: Duration, until: Instant) -> Result<(), Error> {
        let metrics = &self.desk.metrics.turns;
        let _waiting = Gauged::new(&metrics.waiting);
        self.turn.log.set_phase(Phase::Waiting { ahead: 1 });
        let waited = async {
            match conflict {
                Conflict::Database { pause } => {
                    metrics.conflict("database");
                    sleep(pause).await;
                }
                Conflict::Busy { run } => {
                    metrics.conflict("busy");
                    sleep(pause).await;
                    if let Some(run) = run {
                        self.wait_for(&run, until).await;
                    }
                }
            }
        };
        tokio::select! {
            biased;
            () = waited => Ok(()),
            () = self.turn.log.all_left() => Err(Error::ClientLeft),
        }
    }

    /// Until `run` is over, or known to be dead and freed, at most `until`.
    async fn wait_for(&self, run: &str, until: Instant) {
        let inquiry = self.inquiry();
        let mut pause = conflict::FIRST_PAUSE;
        while Instant::now() < until {
            let Some(found) = inquiry.run(run, &self.record).await else { return };
            if found.status.is_over() {
                return;
            }
            sleep(pause).await;
            pause = (pause * 2).min(conflict::LONGEST_PAUSE);
        }
    }

    /// What became of a turn whose answer was lost.
    async fn what_became(&self, error: Error) -> (Error, Option<Run>) {
        let lost = |run: Option<&Run>, fate| Error::TurnLost {
            run: run.map(|run| run.id.clone()).or_else(|| self.turn.run().map(Box::from)),
            fate,
            error: Box::new(error.again()),
        };
        let inquiry = self.inquiry();
        let run = match self.turn.run() {
            Some(run) => inquiry.run(run, &self.record).await,
            // it has the lane, so the newest active run of its agent is its own
            None => match inquiry.active(&self.turn.target, &self.record).await {
                Some(active) => active.into_iter().next(),
                None => return (lost(None, Fate::Unknown), None),
            },
        };
        let Some(mut run) = run else { return (lost(None, Fate::Unknown), None) };
        self.desk.registry.learn_run(&self.turn, &run.id);
        let fate = match run.status {
            Status::Completed => Fate::Completed,
            Status::Failed => Fate::Failed,
            Status::Cancelled => Fate::Cancelled,
            Status::Created | Status::Running | Status::Unknown => {
                let is_gone = matches!(error, Error::UpstreamClosed { .. }) && self.replica_is_gone().await;
                if is_gone && inquiry.cancel(&run, &self.record).await {
                    self.desk.metrics.turns.conflict("freed");
                    run.status = Status::Cancelled;
                    Fate::Freed
                } else {
                    Fate::Running
                }
            }
        };
        (lost(Some(&run), fate), Some(run))
    }

    /// Holds the lane until `run`, which goes on without the gateway, is over.
    async fn outlast(&self, run: Option<Run>) {
        let Some(run) = run.filter(|run| !run.status.is_over()) else { return };
        let most = self.desk.settings.lane.map_or(LONGEST_AFTERMATH, |lane| lane.max_wait);
        self.wait_for(&run.id, Instant::now() + most).await;
    }

    /// The replica that had the message does not take connections any more.
    async fn replica_is_gone(&self) -> bool {
        let Some(upstream) = &self.record.upstream else { return false };
        let connecting = TcpStream::connect(&*upstream.id);
        timeout(PROBE, connecting).await.is_ok_and(|connected| connected.is_err())
    }

    fn inquiry(&self) -> Inquiry<B> {
        let Message { peer, key, .. } = &self.message;
        Inquiry { below: Arc::clone(&self.below), peer: *peer, key: key.clone() }
    }

    /// What is done when the last follower has left; `None`: nothing.
    fn when_left(&self) -> Option<impl Future<Output = ()> + Send + 'static> {
        let policy = self.desk.settings.on_disconnect;
        if policy == OnDisconnect::Detach {
            return None;
        }
        let (turn, inquiry, record) = (Arc::clone(&self.turn), self.inquiry(), self.record.apart());
        Some(async move {
            turn.log.all_left().await;
            if policy == OnDisconnect::Drain {
                turn.log.keep_nothing();
                return;
            }
            let run = match turn.run() {
                Some(run) => inquiry.run(run, &record).await,
                None => inquiry.active(&turn.target, &record).await.and_then(|runs| runs.into_iter().next()),
            };
            if let Some(run) = run.filter(|run| !run.status.is_over()) {
                inquiry.cancel(&run, &record).await;
            }
        })
    }
}

/// A conflict and the answer that tells it.
struct Found {
    conflict: Conflict,
    response: Response,
}

/// Drives `other`, if there is one, for as long as `work` takes.
async fn beside<T>(other: Option<impl Future<Output = ()>>, work: impl Future<Output = T>) -> T {
    let Some(other) = other else { return work.await };
    let (mut work, mut other) = (std::pin::pin!(work), std::pin::pin!(other));
    tokio::select! {
        biased;
        done = &mut work => done,
        () = &mut other => work.await,
    }
}

/// Sees to it that a turn has an end, even if its engine is dropped.
struct Unfinished {
    desk: Arc<Desk>,
    turn: Option<Arc<Turn>>,
}

impl Unfinished {
    fn over(mut self, outcome: Outcome, ended: Ended) {
        let Some(turn) = self.turn.take() else { return };
        let Desk { metrics, registry, settings, .. } = &*self.desk;
        turn.facts.set(|facts| facts.outcome = Some(outcome));
        metrics.turns.ended(outcome.as_str());
        let facts = turn.facts.now();
        if let Some(usage) = &facts.usage {
            metrics.turns.used(usage);
        }
        metrics.turns.duration.observe(turn.began.elapsed().saturating_sub(facts.queued).as_secs_f64());
        // Letta has refused it: it was not executed, and what repeats it is Letta's to answer
        let may_come_again =
            outcome == Outcome::Refused && matches!(turn.log.head(), Some(Ok(head)) if head.status.is_client_error());
        turn.log.end(ended);
        if may_come_again {
            registry.forget(&turn);
        } else {
            registry.over(&turn, Instant::now(), settings.window, settings.max_total, &metrics.turns);
        }
    }

    fn never_sent(mut self, error: Error) {
        let Some(turn) = self.turn.take() else { return };
        never_sent(&self.desk, &turn, error);
    }
}

fn never_sent(desk: &Desk, turn: &Arc<Turn>, error: Error) {
    desk.registry.forget(turn);
    turn.facts.set(|facts| facts.outcome = Some(Outcome::NeverSent));
    desk.metrics.turns.ended(Outcome::NeverSent.as_str());
    turn.log.end(Ended::Failed(error));
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(turn) = self.turn.take() {
            match turn.log.phase() {
                Phase::Waiting { .. } => never_sent(&self.desk, &turn, Error::ClientLeft),
                Phase::Sent | Phase::Over => turn.log.end(Ended::Failed(Error::Draining)),
            }
        }
    }
}
