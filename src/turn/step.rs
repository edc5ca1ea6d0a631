//! The turn step: takes a send's body, finds the turn that it is or starts one, and makes its client a follower.

use std::io::Write as _;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use super::engine::Engine;
use super::fleet::{Fleet, Mirrored};
use super::follow::{Driven, Follower, Following, Given, Keepalive};
use super::lane::Lanes;
use super::log::{Ended, Head, Phase, Whole};
use super::marks::{Marks, Target};
use super::message::Message;
use super::registry::{NoStream, Registry, Repeated};
use super::resume::{self, Asked};
use super::shared::{Beginning, Turn};
use super::unfinished::Unfinished;
use super::{Dispatch, Index, Settings};
use crate::auth::Parts;
use crate::body::request::{Read, within};
use crate::body::room::{Held, Room};
use crate::body::{Body, RequestBody, Response};
use crate::boxed;
use crate::cache::Forward;
use crate::cutoff::Cutoff;
use crate::error::Error;
use crate::letta::message::Sending;
use crate::letta::repeat::Repeat;
use crate::letta::routes::Sends;
use crate::letta::sse;
use crate::limits::Seat;
use crate::step::{Handle, Step};
use crate::store::Store;
use crate::telemetry::millis::Millis;
use crate::telemetry::record::{Exchange, Sink};
use crate::telemetry::turn::{Part, SharedFacts};
use crate::telemetry::{Metrics, Record};

const X_TURN: HeaderName = HeaderName::from_static("x-turn");
const X_QUEUE_POSITION: HeaderName = HeaderName::from_static("x-queue-position");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Bytes of `Server-Timing`: two names, and two times of 24 at most.
const LONGEST_TIMING: usize = 72;

const UNREAD: &str = "the agent that the message is for cannot be read: the body must be one JSON object in UTF-8, \
                      each name once, of 100,000 values at most";
const OTID: &str = "a background message to a conversation may be answered with the run of another that has its `otid`: \
                    use random UUIDs (version 4), or leave `otid` out";

/// Sends messages as turns.
pub struct Turns {
    pub(super) desk: Arc<Desk>,
}

/// What became of a send.
enum Sent<'a> {
    /// It can be no turn.
    NoTurn(Box<Parts>, Option<Box<Seat>>),
    /// It is a repeat of this one.
    Known(Repeated),
    /// Its turn has a task of its own.
    Stream(Follower),
    /// Its turn is for the task of its client to drive, until the answer is there.
    Begun(Driven<'a>, Follower),
}

/// What all turns of one gateway share.
pub(super) struct Desk {
    pub settings: Settings,
    pub registry: Arc<Registry>,
    pub lanes: Lanes,
    /// None: the turns of this gateway are its own.
    pub fleet: Option<Arc<Fleet>>,
    pub tasks: TaskTracker,
    pub metrics: Arc<Metrics>,
    pub cutoff: Cutoff,
    /// Where messages are held until their answers begin.
    room: Room,
    /// How long a body may take to come.
    patience: Duration,
}

impl Desk {
    fn turn(&self, from: Beginning<'_>) -> Result<Arc<Turn>, Error> {
        Turn::new(from, self.settings.max_log, self.settings.window, self.fleet.is_some())
    }

    async fn read(&self, parts: &mut Parts, most: usize) -> Result<Read, Error> {
        within(self.patience, pin!(std::mem::take(parts.request.body_mut()).read(most))).await
    }
}

impl Turns {
    /// Turns and lanes of `previous` go on. `max_body`: bytes of a request body; `patience`: how long it may take to come.
    ///
    /// Must be called within a tokio runtime if the store is shared.
    pub fn new(
        settings: &Settings,
        max_body: u64,
        patience: Duration,
        store: &Store,
        sink: &Sink,
        previous: Option<&Self>,
    ) -> Self {
        let (registry, lanes, tasks) = match previous {
            Some(Self { desk }) => (Arc::clone(&desk.registry), desk.lanes.clone(), desk.tasks.clone()),
            None => {
                let tasks = TaskTracker::new();
                (Arc::default(), Lanes::new(&tasks), tasks)
            }
        };
        let fleet = Fleet::of(store, &registry, &tasks, previous.and_then(|previous| previous.desk.fleet.as_ref()));
        let desk = Desk {
            settings: settings.clone(),
            registry,
            lanes,
            fleet,
            tasks,
            metrics: Arc::clone(&sink.metrics),
            cutoff: sink.cutoff.clone(),
            room: Room::new(max_body, patience),
            patience,
        };
        Self { desk: Arc::new(desk) }
    }

    /// Forgets turns whose window is over.
    pub fn upkeep(&self, now: Instant) {
        let Desk { settings, registry, metrics, .. } = &*self.desk;
        registry.expire(now, settings, &metrics.turns);
    }

    /// Ready when no turn is at work any more. New ones may still begin.
    pub async fn idle(&self) {
        self.desk.tasks.close();
        self.desk.tasks.wait().await;
    }

    async fn send<B: Handle<Dispatch> + 'static>(
        &self,
        sends: Sends,
        mut parts: Box<Parts>,
        seat: Option<Box<Seat>>,
        record: &mut Record,
        below: &Arc<B>,
    ) -> Result<Response, Error> {
        let desk = &self.desk;
        let body = std::mem::take(parts.request.body_mut());
        let read = desk.room.read(parts.key.as_ref().map(|key| &key.id), parts.request.version(), body).await?;
        match self.begin(sends, parts, read, seat, record, below)? {
            // boxed: what is rare must not be the larger future
            Sent::NoTurn(parts, seat) => Box::pin(pass(parts, seat, record, below)).await,
            Sent::Known(repeated) => Box::pin(self.repeat(repeated, record)).await,
            Sent::Stream(follower) => self.stream(follower, record).await,
            Sent::Begun(driven, mut follower) => match driven.answer(&mut follower).await {
                Some(Given { answer, queued }) => {
                    let Whole { head, body } = *answer;
                    record.queued = queued;
                    let (response, exchange) = with_head(head, Body::whole(body), Part::Started, queued);
                    record.adopt(exchange);
                    Ok(response)
                }
                None => {
                    let head = follower.head().await;
                    let turn = follower.turn();
                    record.queued = turn.facts.now().queued;
                    let head = head?;
                    let part = turn.part();
                    record.turn = Some((part, SharedFacts::of(turn)));
                    record.adopt(head.exchange.clone());
                    Ok(self.response(head, follower, part, 0))
                }
            },
        }
    }

    /// Finds or begins the turn of a send whose body has been read.
    fn begin<B: Handle<Dispatch> + 'static>(
        &self,
        sends: Sends,
        mut parts: Box<Parts>,
        (body, held): (Bytes, Held),
        mut seat: Option<Box<Seat>>,
        record: &mut Record,
        below: &Arc<B>,
    ) -> Result<Sent<'_>, Error> {
        let desk = &self.desk;
        record.request_bytes = body.len() as u64;
        // whatever Content-Encoding says: Letta does not look at it
        let sending = Sending::read(sends, &body);
        let repeat = Repeat::of(parts.request.headers());
        let target = Target::of(sends, parts.subject.as_ref(), &sending);
        if target.is_none() && sending.is_unclear {
            // Letta may read in it what the gateway cannot, and then the agent's turns would overlap
            return Err(Error::BadBody(UNREAD));
        }
        let (Some(target), Some(key)) = (target, &parts.key) else {
            *parts.request.body_mut() = RequestBody::whole(body);
            return Ok(Sent::NoTurn(parts, seat));
        };
        if sends == Sends::Conversation && key.is_tenant() {
            own_run(&sending)?;
        }
        let marks = Marks::of(&key.id, sends, &target, &sending, repeat)?;
        let Repeat { is_retry, .. } = repeat;
        let (streams, began) = (sending.streams, record.started);
        let beginning = Beginning { marks, target, sends, key: &key.id, streams, is_retry, began };
        let turn = desk.turn(beginning)?;
        // a follower before it is known: nobody else can be its last
        let follower = Follower::first(&turn, desk)?;
        if let Some(known) = desk.registry.claim(&turn, desk.settings.dedupe)? {
            return Ok(Sent::Known(known));
        }
        record.turn = Some((Part::Started, SharedFacts::of(&turn)));
        let mut engine = boxed::make(|| Engine {
            unfinished: Unfinished::new(desk, &turn),
            below: Arc::clone(below),
            message: Message::new(parts, body, held),
            bill: seat.as_mut().and_then(|seat| seat.bill()),
            seat,
            permit: None,
            record: record.apart(),
        });
        engine.record.turn.clone_from(&record.turn);
        if streams {
            desk.tasks.spawn(engine.run());
            return Ok(Sent::Stream(follower));
        }
        Ok(Sent::Begun(Driven::new(boxed::pin(|| engine.run()), turn, &desk.tasks), follower))
    }

    /// Answers a send whose turn is known.
    async fn repeat(&self, repeated: Repeated, record: &mut Record) -> Result<Response, Error> {
        let turn = Arc::clone(&repeated.turn);
        let part = if turn.log.phase() == Phase::Over { Part::Replayed } else { Part::Joined };
        self.desk.metrics.turns.repeat(part.as_str());
        record.turn = Some((part, SharedFacts::of(&turn)));
        let follower = Follower::of(repeated, &self.desk)?;
        if turn.streams && part == Part::Joined {
            return self.stream(follower, record).await;
        }
        let head = follower.head().await?;
        record.upstream.clone_from(&head.exchange.upstream);
        Ok(self.response(head, follower, part, 0))
    }

    /// Answers a client that comes back to a stream, from its turn's log if that is here.
    async fn resume<B: Handle<Dispatch>>(
        &self,
        mut parts: Box<Parts>,
        record: &mut Record,
        below: &Arc<B>,
    ) -> Result<Response, Error> {
        let body = match self.desk.read(&mut parts, resume::LONGEST_REQUEST).await? {
            Read::Whole(body) => body,
            Read::Longer(body) => {
                *parts.request.body_mut() = body;
                return below.handle(Dispatch { parts }, record).await;
            }
        };
        record.request_bytes = body.len() as u64;
        let asked = Asked::read(&body).and_then(|asked| {
            let index = asked.index(parts.route, parts.subject.as_deref()?, &parts.key.as_ref()?.id)?;
            Some((index, asked.starting_after.unwrap_or(0)))
        });
        let found = match (&asked, &parts.key) {
            (Some((index, _)), Some(key)) => self.known(index, &key.id, record).await?,
            _ => None,
        };
        let (Some(follower), Some((_, after))) = (found, asked) else {
            *parts.request.body_mut() = RequestBody::whole(body);
            return below.handle(Dispatch { parts }, record).await;
        };
        let part = Part::Resumed;
        self.desk.metrics.turns.repeat(part.as_str());
        record.turn = Some((part, SharedFacts::of(follower.turn())));
        let head = follower.head().await?;
        record.upstream.clone_from(&head.exchange.upstream);
        Ok(self.response(head, follower, part, after))
    }

    /// A follower of the stream that `key` finds by `index`, on this gateway or another.
    async fn known(&self, index: &Index, key: &Arc<str>, record: &Record) -> Result<Option<Follower>, Error> {
        let desk = &self.desk;
        match desk.registry.follow_stream(index) {
            Ok(Some(repeated)) => return Follower::of(repeated, desk).map(Some),
            Ok(None) => {}
            Err(NoStream) => return Ok(None),
        }
        let Some(fleet) = &desk.fleet else { return Ok(None) };
        let Some((theirs, note)) = fleet.find(key, index).await.filter(|(_, note)| note.streams) else {
            return Ok(None);
        };
        let marks = Marks { message: note.message, otid: None, idempotency: None };
        let (target, sends) = (Target::Conversation(Arc::default()), note.sends);
        let beginning = Beginning { marks, target, sends, key, streams: true, is_retry: false, began: record.started };
        let turn = desk.turn(beginning)?;
        let follower = Follower::first(&turn, desk)?;
        let mirroring = (Arc::clone(fleet), Arc::clone(&turn));
        desk.tasks.spawn(async move {
            let (fleet, turn) = mirroring;
            let ended = match fleet.mirror(theirs, &turn).await {
                Mirrored::Ended(ended) => ended,
                _ => Ended::Failed(Error::AnswerNotKept { run: turn.run().map(Box::from) }),
            };
            turn.log.end(ended);
        });
        // what has no head is not known here
        Ok(follower.head().await.is_ok().then_some(follower))
    }

    /// The response to a client that wants a stream: with Letta's head, or without it after the first silence.
    async fn stream(&self, follower: Follower, record: &mut Record) -> Result<Response, Error> {
        let turn = Arc::clone(follower.turn());
        let part = record.turn.as_ref().map_or(Part::Started, |(part, _)| *part);
        let silence = self.desk.settings.keepalive;
        let head = if silence.is_zero() { Ok(follower.head().await) } else { timeout(silence, follower.head()).await };
        record.queued = turn.facts.now().queued;
        match head {
            Ok(head) => {
                let head = head?;
                let part = if part == Part::Started { turn.part() } else { part };
                record.turn = Some((part, SharedFacts::of(&turn)));
                if part == Part::Started {
                    record.adopt(head.exchange.clone());
                } else {
                    record.upstream.clone_from(&head.exchange.upstream);
                }
                Ok(self.response(head, follower, part, 0))
            }
            Err(_) => {
                let mut response = Response::new(Body::empty());
                let headers = response.headers_mut();
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
                headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
                headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
                tell_part(part, headers);
                if let Phase::Waiting { ahead: ahead @ 1.. } = turn.log.phase() {
                    headers.insert(X_QUEUE_POSITION, HeaderValue::from(ahead));
                }
                let keepalive = Keepalive::due(silence);
                let body = Following::ahead_of_head(follower, keepalive, self.desk.cutoff.ear());
                Ok(response.map(|_| Body::stream(body)))
            }
        }
    }

    /// The response with the turn's own head, without the stream's first `after` events.
    fn response(&self, head: Head, follower: Follower, part: Part, after: u64) -> Response {
        let queued = follower.turn().facts.now().queued;
        let is_stream = sse::is_event_stream(&head.headers);
        let whole = if is_stream { None } else { follower.whole() };
        let body = match whole {
            Some(whole) => Body::whole(whole),
            None => {
                let keepalive = is_stream.then(|| Keepalive::new(self.desk.settings.keepalive));
                Body::stream(Following::after_head(follower, keepalive, self.desk.cutoff.ear()).skipping(after))
            }
        };
        with_head(head, body, part, queued).0
    }
}

/// The response with the turn's own head, and the exchange that this was of.
fn with_head(head: Head, body: Body, part: Part, queued: Duration) -> (Response, Exchange) {
    let Head { status, headers, exchange } = head;
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    let headers = response.headers_mut();
    tell_part(part, headers);
    let at_letta = match (exchange.sent, exchange.answered) {
        (Some(sent), Some(answered)) => answered.saturating_duration_since(sent),
        _ => Duration::ZERO,
    };
    headers.insert(SERVER_TIMING, timing(queued, at_letta));
    (response, exchange)
}

/// `Server-Timing` (W3C): how long the send waited for its lane and for the head of Letta's answer, in milliseconds.
fn timing(queued: Duration, letta: Duration) -> HeaderValue {
    let mut text = [0; LONGEST_TIMING];
    let mut rest = &mut text[..];
    let mut write = || {
        rest.write_all(b"queue;dur=")?;
        rest.write_all(Millis::of(queued).as_bytes())?;
        rest.write_all(b", letta;dur=")?;
        rest.write_all(Millis::of(letta).as_bytes())
    };
    let written = write().map_or(0, |()| LONGEST_TIMING - rest.len());
    HeaderValue::from_bytes(text.get(..written).unwrap_or_default()).unwrap_or(HeaderValue::from_static(""))
}

fn tell_part(part: Part, headers: &mut HeaderMap) {
    if part != Part::Started {
        headers.insert(X_TURN, HeaderValue::from_static(part.as_str()));
    }
}

/// Refuses what could be answered with somebody else's run: Letta finds the run of a background message by its `otid`s
/// alone (`services/streaming_service.py`, `try_recover_duplicate_request`), whoever asks.
fn own_run(sending: &Sending<'_>) -> Result<(), Error> {
    if sending.is_unclear {
        return Err(Error::BadBody(UNREAD));
    }
    match sending.background && sending.has_plain_otid {
        true => Err(Error::ReachRefused { why: OTID }),
        false => Ok(()),
    }
}

/// A send that can be no turn goes on as it is; its place in flight is its own.
async fn pass<B: Handle<Dispatch>>(
    parts: Box<Parts>,
    mut seat: Option<Box<Seat>>,
    record: &mut Record,
    below: &Arc<B>,
) -> Result<Response, Error> {
    let bill = seat.as_mut().and_then(|seat| seat.bill());
    let permit = seat.map(|seat| seat.take()).transpose()?;
    let response = below.handle(Dispatch { parts }, record).await?;
    if let Some(bill) = bill.filter(|_| response.status().is_success()) {
        bill.charge(None);
    }
    Ok(match permit {
        Some(permit) => response.map(|body| body.holding(permit)),
        None => response,
    })
}

impl<B: Handle<Dispatch> + 'static> Step<Forward, Arc<B>> for Turns {
    async fn call(&self, forward: Forward, record: &mut Record, below: &Arc<B>) -> Result<Response, Error> {
        let (parts, seat) = forward.into_parts();
        match parts.route.sends {
            Some(sends) => self.send(sends, parts, seat, record, below).await,
            None if resume::is_resume(parts.route) => Box::pin(self.resume(parts, record, below)).await,
            None => below.handle(Dispatch { parts }, record).await,
        }
    }
}
