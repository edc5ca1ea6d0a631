//! The engine of one turn: waits for the lane, sends the message and writes the answer to the log. A whole answer goes
//! past the log to the client that drives the engine, if that one is alone with the turn.
//!
//! Until Letta has begun with the message the turn ends with its last follower. From then on it goes on without any.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http_body_util::{BodyExt as _, Limited};
use tokio::time::{Instant, sleep};

use super::aftermath::Aftermath;
use super::conflict::{self, Conflict};
use super::fleet::{Claimed, Fleet, Mirrored, Standing};
use super::follow::Given;
use super::inquiry::Inquiry;
use super::lane;
use super::log::{Ended, Head, Phase};
use super::message::Message;
use super::relay::{self, Answered, Relay, Relayed, is_stream};
use super::step::Desk;
use super::unfinished::Unfinished;
use super::{Dispatch, LaneSettings, OnDisconnect, Settings};
use crate::body::{Body, Permit, Response};
use crate::boxed;
use crate::error::Error;
use crate::limits::{Bill, Seat};
use crate::step::Handle;
use crate::store::TurnId;
use crate::telemetry::Record;
use crate::telemetry::metrics::Gauged;
use crate::telemetry::turn::{Outcome, Part};

/// Bytes of a conflict's body at most; a longer one is none.
const LONGEST_CONFLICT: usize = 16 * 1024;
/// Claims of one turn at most: each but the last found that another gateway's was taken back.
const MOST_CLAIMS: u32 = 100;

pub(super) struct Engine<B> {
    pub unfinished: Unfinished,
    pub below: Arc<B>,
    pub message: Message,
    /// Until it is known whose turn it is: one of another gateway's needs no place.
    pub seat: Option<Box<Seat>>,
    /// The key's place in flight, until the turn is over.
    pub permit: Option<Permit>,
    /// The key's budgets, until the turn is charged to them.
    pub bill: Option<Bill>,
    pub record: Record,
}

/// What a turn is ready for.
enum Prepared {
    /// Its message may be sent: the lane is its own, and it is known to all gateways, if there are others. Boxed for that:
    /// most turns are known to one.
    Ready(Option<lane::Held>, Option<Box<Standing>>),
    /// It was another gateway's, whose answer was followed to its end.
    Followed(Ended),
}

/// How long conflicts are waited out.
struct Patience {
    /// Before the next send.
    pause: Duration,
    /// Set by the first of them.
    until: Option<Instant>,
}

/// What came of an exchange with Letta.
enum Exchanged {
    /// The whole answer.
    Answered(Answered),
    /// A conflict, which is to be looked into, or an answer that comes in parts. Boxed: most are whole.
    Begun(Box<Response>),
}

/// How the work on a turn ended.
enum Worked {
    /// The answer was all there at once.
    Answered(Answered),
    /// It came in parts, and is in the log.
    Relayed(Outcome),
    /// The answer broke off, or never came, after the message may have been read.
    Lost { error: Error, as_event: bool },
}

impl<B: Handle<Dispatch> + 'static> Engine<B> {
    /// Works until the turn is over. What comes of it is the answer, where whoever drives the turn can be given it by
    /// hand. Boxed: a future holds what it is called with twice.
    pub(super) async fn run(mut self: Box<Self>) -> Option<Given> {
        let (lane, _standing) = match self.prepare().await {
            Ok(Prepared::Ready(lane, standing)) => (lane, standing),
            Ok(Prepared::Followed(ended)) => {
                self.unfinished.followed(ended);
                return None;
            }
            Err(error) => {
                self.unfinished.never_sent(error);
                return None;
            }
        };
        match self.work().await {
            Ok(Worked::Answered(answered)) => {
                // it names no run that Letta could be asked about
                if let Some(bill) = self.bill.take().filter(|_| answered.outcome != Outcome::Refused) {
                    bill.charge(answered.usage.as_ref());
                }
                return self.unfinished.answered(answered);
            }
            Ok(Worked::Relayed(outcome)) => {
                if outcome == Outcome::Refused {
                    self.bill = None;
                }
                self.charge();
                self.unfinished.over(outcome, Ended::Whole);
            }
            Ok(Worked::Lost { error, as_event }) => {
                self.message.forget();
                // boxed, as all that is rare: what a turn takes in memory is what a plain one takes
                let (lost, run) = Box::pin(self.aftermath().what_became(error, true)).await;
                let ended = self.farewell(lost, as_event);
                self.unfinished.over(Outcome::Broken, ended);
                self.permit = None;
                Box::pin(self.aftermath().outlast(run)).await;
            }
            Err(error) => {
                self.bill = None;
                self.unfinished.never_sent(error);
            }
        }
        drop((lane, self.permit.take()));
        if self.bill.is_some() {
            Box::pin(self.settle()).await;
        }
        None
    }

    /// Charges the turn if it is known what it cost.
    fn charge(&mut self) {
        if self.bill.is_none() {
            return;
        }
        let usage = self.unfinished.turn.facts.now().usage;
        if let Some(bill) = self.bill.take_if(|bill| usage.is_some() || !bill.wants_usage()) {
            bill.charge(usage.as_ref());
        }
    }

    /// Charges a turn whose answer did not tell what it cost with what Letta says when it is asked.
    async fn settle(&mut self) {
        self.charge();
        let Some(bill) = self.bill.take() else { return };
        let usage = match self.unfinished.turn.run() {
            Some(run) => Box::pin(self.inquiry().usage(run, &self.record)).await,
            None => None,
        };
        bill.charge(usage.as_ref());
    }

    /// Waits until the message may be sent to Letta, or follows the turn of another gateway's that it is.
    async fn prepare(&mut self) -> Result<Prepared, Error> {
        match self.unfinished.desk.fleet.clone() {
            None => {
                self.sit()?;
                Ok(Prepared::Ready(self.enter_lane().await?, None))
            }
            Some(fleet) => {
                self.message.pack();
                Box::pin(self.prepare_among(fleet)).await
            }
        }
    }

    async fn prepare_among(&mut self, fleet: Arc<Fleet>) -> Result<Prepared, Error> {
        let desk = Arc::clone(&self.unfinished.desk);
        let Settings { dedupe, on_store_error, .. } = desk.settings;
        let metrics = &desk.metrics.turns;
        for _ in 0..MOST_CLAIMS {
            let claiming = fleet.claim(&self.unfinished.turn, dedupe, on_store_error, metrics);
            let mut standing = match self.unless_left(claiming).await? {
                Claimed::Ours(standing) => standing,
                Claimed::Theirs(theirs) => match self.follow(&fleet, theirs).await? {
                    Some(ended) => return Ok(Prepared::Followed(ended)),
                    None => continue,
                },
            };
            self.sit()?;
            let lane = standing.alive(self.enter_lane()).await?;
            if standing.begin(dedupe, on_store_error, metrics).await? {
                return Ok(Prepared::Ready(lane, Some(Box::new(standing))));
            }
        }
        Err(Error::Overloaded { what: "attempts to begin a turn" })
    }

    /// Takes the key's place in flight. An error: it has none, or has spent its budget.
    fn sit(&mut self) -> Result<(), Error> {
        if let Some(seat) = self.seat.take() {
            self.permit = Some(seat.take()?);
        }
        Ok(())
    }

    /// Follows the turn `theirs` of another gateway's to its end. `None`: it never began, and is this one's to claim.
    async fn follow(&self, fleet: &Arc<Fleet>, theirs: TurnId) -> Result<Option<Ended>, Error> {
        let turn = &self.unfinished.turn;
        let lost = match fleet.mirror(theirs, turn).await {
            Mirrored::Ended(ended) => return Ok(Some(ended)),
            Mirrored::Gone | Mirrored::NeverBegan => {
                fleet.take_over(theirs, turn).await;
                return Ok(None);
            }
            Mirrored::Left => return Err(Error::ClientLeft),
            Mirrored::Cut => Error::AnswerNotKept { run: turn.run().map(Box::from) },
            Mirrored::Lost => {
                let cause = "its gateway is gone".into();
                let error = Error::UpstreamClosed { upstream: "of another gateway".to_owned(), sent: true, cause };
                self.aftermath().what_became(error, false).await.0
            }
        };
        turn.follows(Part::Joined);
        Ok(Some(self.farewell(lost, turn.streams && turn.log.has_head())))
    }

    /// How a turn ends that was lost: with an event, or without an answer.
    fn farewell(&self, lost: Error, as_event: bool) -> Ended {
        if !as_event {
            return Ended::Failed(lost);
        }
        let farewell = self.unfinished.turn.error_event(lost.reason(), &lost.to_string());
        self.unfinished.turn.log.append(&farewell);
        Ended::Told(lost)
    }

    /// Does `work` unless the last follower leaves.
    async fn unless_left<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::select! {
            biased;
            done = work => done,
            () = self.unfinished.turn.log.given_up() => Err(Error::ClientLeft),
        }
    }

    async fn enter_lane(&mut self) -> Result<Option<lane::Held>, Error> {
        let Some(bounds) = self.unfinished.desk.settings.lane else { return Ok(None) };
        let Desk { lanes, fleet, .. } = &*self.unfinished.desk;
        if let Some(lane) = lanes.enter_free(&self.unfinished.turn, bounds, fleet.as_ref()) {
            self.unfinished.desk.metrics.turns.queue.observe(Duration::ZERO);
            return Ok(Some(lane));
        }
        self.message.pack();
        let entered = Instant::now();
        let lane = Box::pin(self.wait_for_lane(bounds)).await;
        // a lane that was free took no time that is worth telling
        let queued = match self.unfinished.turn.log.phase() {
            Phase::Waiting { ahead: 0 } => Duration::ZERO,
            _ => entered.elapsed(),
        };
        if !queued.is_zero() {
            self.unfinished.turn.facts.set(|facts| facts.queued = queued);
        }
        if lane.is_ok() {
            self.unfinished.desk.metrics.turns.queue.observe(queued);
        }
        lane.map(Some)
    }

    async fn wait_for_lane(&self, bounds: LaneSettings) -> Result<lane::Held, Error> {
        let Desk { settings, lanes, fleet, metrics, .. } = &*self.unfinished.desk;
        let entering =
            lanes.enter(&self.unfinished.turn, bounds, fleet.as_ref(), settings.on_store_error, &metrics.turns);
        let mut lane = self.unless_left(entering).await?;
        if let Some(lease) = lane.lease.as_mut().filter(|lease| !lease.abandoned().is_empty()) {
            self.unfinished.turn.log.set_phase(Phase::Waiting { ahead: 1 });
            let aftermath = self.aftermath();
            let settling = async { Ok(aftermath.settle(lease.abandoned(), lane.deadline).await) };
            if !self.unless_left(settling).await? {
                metrics.turns.lane_refusal("patience");
                return Err(Error::LaneTimeout { waited: bounds.max_wait });
            }
            lease.settled();
        }
        Ok(lane)
    }

    /// Sends the message and relays its answer. An error: it never reached Letta.
    async fn work(&mut self) -> Result<Worked, Error> {
        let running = Gauged::new(&self.unfinished.desk.metrics.turns.running);
        let mut patience = Patience { pause: conflict::FIRST_PAUSE, until: None };
        let response = loop {
            self.unfinished.turn.log.set_phase(Phase::Sent);
            match self.exchange().await {
                Ok(Exchanged::Answered(answered)) => return Ok(self.answered(answered)),
                Ok(Exchanged::Begun(response)) if response.status() == StatusCode::CONFLICT => {
                    let Some(mut response) = Box::pin(self.after_conflict(*response, &mut patience)).await? else {
                        continue;
                    };
                    match relay::whole(&mut response, &self.record) {
                        Some(answered) => return Ok(self.answered(answered)),
                        None => break response,
                    }
                }
                Ok(Exchanged::Begun(response)) => break *response,
                Err(error) => {
                    self.unfinished.turn.facts.exchanged(self.record.exchange());
                    let lost = |error| Worked::Lost { error, as_event: false };
                    return if error.never_sent() { Err(error) } else { Ok(lost(error)) };
                }
            }
        };
        self.message.forget();
        let (parts, body) = response.into_parts();
        let head = Head { status: parts.status, headers: parts.headers, exchange: self.record.exchange() };
        self.unfinished.turn.facts.exchanged(head.exchange.clone());
        let relayed = boxed::pin(|| self.relayed(head, body)).await;
        drop(running);
        Ok(match relayed {
            Relayed::Whole(outcome) => Worked::Relayed(outcome),
            Relayed::BrokenStream(error) => {
                self.unfinished.desk.metrics.streams_broken.inc();
                Worked::Lost { error, as_event: true }
            }
            Relayed::BrokenBody(error) => Worked::Lost { error, as_event: false },
        })
    }

    /// Nothing of the message is wanted any more.
    fn answered(&mut self, answered: Answered) -> Worked {
        self.message.forget();
        Worked::Answered(answered)
    }

    /// One exchange with Letta, up to the head of its answer, or to the end of one that is whole.
    fn exchange(&mut self) -> Pin<Box<impl Future<Output = Result<Exchanged, Error>>>> {
        let (dispatch, left) = (self.message.dispatch(), self.when_left());
        let Self { below, record, .. } = self;
        // boxed: it is over when the answer begins, and a stream goes on for long
        boxed::pin(|| async move {
            let mut response = match left {
                None => below.handle(dispatch, record).await?,
                Some(left) => Box::pin(beside(left, pin!(below.handle(dispatch, record)))).await?,
            };
            let is_conflict = response.status() == StatusCode::CONFLICT;
            let answered = if is_conflict { None } else { relay::whole(&mut response, record) };
            Ok(answered.map_or_else(|| Exchanged::Begun(Box::new(response)), Exchanged::Answered))
        })
    }

    fn relay(&self) -> Relay<'_> {
        Relay {
            turn: &self.unfinished.turn,
            desk: &self.unfinished.desk,
            sent: self.record.sent.unwrap_or(self.unfinished.turn.began),
        }
    }

    /// Relays an answer that comes in parts.
    async fn relayed(&self, head: Head, body: Body) -> Relayed {
        let relay = self.relay();
        let left = self.when_left();
        let relayed = async {
            if is_stream(head.status, &head.headers) {
                self.unfinished.turn.log.begin(head, None);
                relay.stream(body).await
            } else {
                relay.pieces(head, body).await
            }
        };
        match left {
            None => relayed.await,
            Some(left) => beside(left, pin!(relayed)).await,
        }
    }

    /// Waits out the conflict that `response` is, if that helps and there is patience left. `None`: the message may be
    /// sent again.
    async fn after_conflict(&mut self, response: Response, patience: &mut Patience) -> Result<Option<Response>, Error> {
        let Found { conflict, response } = match self.conflict(response).await {
            Ok(found) => found,
            Err(response) => return Ok(Some(response)),
        };
        let most = self.unfinished.desk.settings.lane.map_or(Duration::ZERO, |lane| lane.max_wait);
        let until = *patience.until.get_or_insert_with(|| Instant::now() + most);
        if Instant::now() >= until {
            return Ok(Some(response));
        }
        self.wait_out(conflict, patience.pause, until).await?;
        patience.pause = (patience.pause * 2).min(conflict::LONGEST_PAUSE);
        // another send, not another attempt at the one that was answered
        self.record.attempts = 0;
        Ok(None)
    }

    /// The conflict that `response` is, if waiting helps.
    async fn conflict(&self, response: Response) -> Result<Found, Response> {
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
        let metrics = &self.unfinished.desk.metrics.turns;
        let _waiting = Gauged::new(&metrics.waiting);
        self.unfinished.turn.log.set_phase(Phase::Waiting { ahead: 1 });
        let waiting = async {
            match conflict {
                Conflict::Database { pause } => {
                    metrics.conflict("database");
                    sleep(pause).await;
                }
                Conflict::Busy { run } => {
                    metrics.conflict("busy");
                    sleep(pause).await;
                    if let Some(run) = run {
                        self.aftermath().wait_for(&run, until).await;
                    }
                }
            }
            Ok(())
        };
        let began = Instant::now();
        let waited = self.unless_left(waiting).await;
        self.unfinished.turn.facts.set(|facts| facts.queued += began.elapsed());
        waited
    }

    fn aftermath(&self) -> Aftermath<'_, B> {
        Aftermath {
            desk: &self.unfinished.desk,
            turn: &self.unfinished.turn,
            inquiry: self.inquiry(),
            record: &self.record,
        }
    }

    fn inquiry(&self) -> Inquiry<B> {
        Inquiry { below: Arc::clone(&self.below), key: self.message.key.clone() }
    }

    /// What is done when the last follower has left; `None`: nothing.
    fn when_left(&self) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let policy = self.unfinished.desk.settings.on_disconnect;
        if policy == OnDisconnect::Detach {
            return None;
        }
        let (turn, inquiry, record) = (Arc::clone(&self.unfinished.turn), self.inquiry(), self.record.apart());
        Some(Box::pin(async move {
            turn.log.all_left().await;
            if policy == OnDisconnect::Drain {
                turn.log.keep_nothing();
                return;
            }
            let run = match turn.run() {
                Some(run) => inquiry.run(run, &record).await.ok().flatten(),
                None => inquiry
                    .active(&turn.target, turn.began_at(), &record)
                    .await
                    .and_then(|runs| runs.into_iter().next()),
            };
            if let Some(run) = run.filter(|run| !run.status.is_over()) {
                inquiry.cancel(&run, &record).await;
            }
        }))
    }
}

/// A conflict and the answer that tells it.
struct Found {
    conflict: Conflict,
    response: Response,
}

/// Drives `other` for as long as `work` takes.
async fn beside<T>(
    mut other: Pin<Box<dyn Future<Output = ()> + Send>>,
    mut work: Pin<&mut impl Future<Output = T>>,
) -> T {
    tokio::select! {
        biased;
        done = &mut work => done,
        () = &mut other => work.await,
    }
}
