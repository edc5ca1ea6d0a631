//! The clients of a turn: each reads the log from its beginning, at its own pace. Who drives the turn and is alone with it
//! is given a whole answer by hand.
//!
//! On a stream a silence is filled with comments (the WHATWG's HTML §9.2.6, a line that begins with a colon), so that
//! nothing on the way takes a thinking agent for a dead connection. Comments stand between events, never in one.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tokio_util::task::TaskTracker;

use super::log::{Head, Left, Phase, Whole};
use super::registry::Repeated;
use super::resume::Skip;
use super::shared::Turn;
use super::step::Desk;
use crate::body::Stream;
use crate::cutoff::Ear;
use crate::error::Error;
use crate::letta::sse;

/// Bytes of an answer that is told in an event, because the head of the stream is out already.
const LONGEST_REFUSAL: usize = 4 * 1024;

/// A place at the log of a turn.
pub(super) struct Follower {
    turn: Arc<Turn>,
    place: usize,
    desk: Arc<Desk>,
    /// It was given all of the answer by hand.
    has_left: bool,
}

impl Follower {
    /// The first of a turn that nobody else knows yet. Where that is no stream, its task drives it.
    pub(super) fn first(turn: &Arc<Turn>, desk: &Arc<Desk>) -> Result<Self, Error> {
        let place = if turn.streams { turn.log.enter() } else { turn.log.enter_driving() };
        Self::of(Repeated { place, turn: Arc::clone(turn) }, desk)
    }

    pub(super) fn of(repeated: Repeated, desk: &Arc<Desk>) -> Result<Self, Error> {
        let Repeated { turn, place } = repeated;
        let place = place.ok_or_else(|| Error::AnswerNotKept { run: turn.run().map(Box::from) })?;
        Ok(Self { turn, place, desk: Arc::clone(desk), has_left: false })
    }

    pub(super) fn turn(&self) -> &Arc<Turn> {
        &self.turn
    }

    pub(super) async fn head(&self) -> Result<Head, Error> {
        std::future::poll_fn(|cx| self.turn.log.poll_head(self.place, cx)).await
    }

    /// The answer, if it is over and one piece.
    pub(super) fn whole(&self) -> Option<Bytes> {
        self.turn.log.whole(self.place)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if self.has_left {
            return;
        }
        let Left { is_detached, packed } = self.turn.log.leave(self.place);
        if is_detached {
            self.desk.metrics.turns.detached.inc();
        }
        if let Some((number, has_all)) = packed {
            self.desk.registry.left(number, has_all, &self.desk.metrics.turns);
        }
    }
}

/// A whole answer, given by hand to the client that drives its turn.
pub(super) struct Given {
    pub answer: Box<Whole>,
    /// How long the turn waited for its lane.
    pub queued: Duration,
}

/// The work on a turn. It gives the answer back where whoever drives it can be given that by hand.
pub(super) type Work = Pin<Box<dyn Future<Output = Option<Given>> + Send>>;

/// An engine that is driven by the task of the client it works for, until that leaves: then it gets a task of its own.
pub(super) struct Driven<'a> {
    work: Option<Work>,
    turn: Arc<Turn>,
    tasks: &'a TaskTracker,
}

impl<'a> Driven<'a> {
    pub(super) fn new(work: Work, turn: Arc<Turn>, tasks: &'a TaskTracker) -> Self {
        Self { work: Some(work), turn, tasks }
    }

    /// The whole answer, if it is given by hand. `None`: there is a head in the log, or none will come, and the engine goes
    /// on by itself.
    pub(super) async fn answer(mut self, follower: &mut Follower) -> Option<Given> {
        let given = std::future::poll_fn(|cx| {
            let Some(work) = &mut self.work else { return Poll::Ready(None) };
            if let Poll::Ready(given) = work.as_mut().poll(cx) {
                self.work = None;
                return Poll::Ready(given);
            }
            if self.turn.log.has_head() { Poll::Ready(None) } else { Poll::Pending }
        })
        .await;
        follower.has_left = given.is_some();
        given
    }
}

impl Drop for Driven<'_> {
    fn drop(&mut self) {
        // what Letta has not begun with ends with its last follower: the engine sees to that itself
        if let Some(work) = self.work.take() {
            self.turn.log.is_driven_no_more();
            self.tasks.spawn(work);
        }
    }
}

/// What a stream's followers are told while nothing comes.
pub(super) struct Keepalive {
    every: Duration,
    silent_since: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Keepalive {
    pub(super) fn new(every: Duration) -> Self {
        Self { every, silent_since: Instant::now(), timer: None }
    }

    /// One whose first silence is over.
    pub(super) fn due(every: Duration) -> Self {
        let now = Instant::now();
        Self { every, silent_since: now.checked_sub(every).unwrap_or(now), timer: None }
    }

    /// Ready after each such silence.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.every.is_zero() {
            return Poll::Pending;
        }
        loop {
            let due = self.silent_since + self.every;
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            // an event that came meanwhile has only moved the beginning of the silence
            let is_due = now >= due;
            if is_due {
                self.silent_since = now;
            }
            timer.as_mut().reset(self.silent_since + self.every);
            if is_due {
                return Poll::Ready(());
            }
        }
    }
}

/// The body of a follower's response.
pub(super) struct Following {
    follower: Follower,
    stage: Stage,
    /// None: the answer is no event stream.
    keepalive: Option<Keepalive>,
    cutoff: Ear,
    /// Leaves out what the client has seen already.
    skip: Option<Skip>,
    /// Set once the client was told that the stream broke off.
    broken: Option<Error>,
}

enum Stage {
    /// The response has begun without it.
    Head,
    Pieces,
    /// The answer is none that the stream could become: its text is told in an event.
    Refusal(StatusCode, BytesMut),
    Over,
}

impl Following {
    /// The body of a response whose head was the turn's.
    pub(super) fn after_head(follower: Follower, keepalive: Option<Keepalive>, cutoff: Ear) -> Self {
        Self { follower, stage: Stage::Pieces, keepalive, cutoff, skip: None, broken: None }
    }

    /// The body of a stream that has begun without an answer.
    pub(super) fn ahead_of_head(follower: Follower, keepalive: Keepalive, cutoff: Ear) -> Self {
        Self { follower, stage: Stage::Head, keepalive: Some(keepalive), cutoff, skip: None, broken: None }
    }

    /// Leaves out the first `after` events.
    pub(super) fn skipping(mut self, after: u64) -> Self {
        self.skip = (after > 0).then(|| Skip::new(after));
        self
    }

    fn farewell(&mut self, error: Error) -> Bytes {
        let turn = &self.follower.turn;
        let (kind, text) = (error.reason(), error.to_string());
        self.stage = Stage::Over;
        self.broken = Some(error);
        turn.error_event(kind, &text)
    }

    /// The next bytes; `None` is the end.
    fn poll_log(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        loop {
            let Follower { turn, place, .. } = &self.follower;
            match &mut self.stage {
                Stage::Over => return Poll::Ready(None),
                Stage::Head => match std::task::ready!(turn.log.poll_head(*place, cx)) {
                    Ok(head) if head.status == StatusCode::OK && sse::is_event_stream(&head.headers) => {
                        self.stage = Stage::Pieces;
                    }
                    Ok(head) => self.stage = Stage::Refusal(head.status, BytesMut::new()),
                    Err(error) => {
                        let farewell = self.farewell(error);
                        return Poll::Ready(Some(Ok(farewell)));
                    }
                },
                Stage::Pieces => {
                    let mut piece = match std::task::ready!(turn.log.poll_piece(*place, cx)) {
                        Some(Ok(piece)) => piece,
                        other => return Poll::Ready(other),
                    };
                    if let Some(skip) = &mut self.skip {
                        piece = skip.unseen(piece);
                    }
                    if !piece.is_empty() {
                        return Poll::Ready(Some(Ok(piece)));
                    }
                }
                Stage::Refusal(status, text) => match std::task::ready!(turn.log.poll_piece(*place, cx)) {
                    Some(Ok(piece)) => {
                        let room = LONGEST_REFUSAL.saturating_sub(text.len());
                        text.extend_from_slice(piece.get(..room).unwrap_or(&piece));
                    }
                    Some(Err(error)) => {
                        let farewell = self.farewell(error);
                        return Poll::Ready(Some(Ok(farewell)));
                    }
                    None => {
                        let told = format!("Letta answered {}: {}", status.as_u16(), String::from_utf8_lossy(text));
                        let event = turn.error_event("upstream_refused", &told);
                        self.stage = Stage::Over;
                        return Poll::Ready(Some(Ok(event)));
                    }
                },
            }
        }
    }
}

impl HttpBody for Following {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if let Some(error) = this.broken.take() {
            return Poll::Ready(Some(Err(match error {
                Error::Draining => Error::Draining,
                error => Error::StreamBroken(Box::new(error)),
            })));
        }
        if let Poll::Ready(next) = this.poll_log(cx) {
            if let Some(keepalive) = &mut this.keepalive {
                keepalive.silent_since = Instant::now();
            }
            return Poll::Ready(next.map(|data| data.map(Frame::data)));
        }
        let Some(keepalive) = &mut this.keepalive else { return Poll::Pending };
        if this.cutoff.poll(cx).is_ready() {
            let farewell = this.farewell(Error::Draining);
            return Poll::Ready(Some(Ok(Frame::data(farewell))));
        }
        if keepalive.poll(cx).is_ready() {
            let comment = match this.follower.turn.log.phase() {
                Phase::Waiting { ahead } if ahead > 0 => Bytes::from(format!(": waiting, {ahead} ahead\n\n")),
                Phase::Waiting { .. } | Phase::Sent | Phase::Over => Bytes::from_static(b": keepalive\n\n"),
            };
            return Poll::Ready(Some(Ok(Frame::data(comment))));
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        match self.stage {
            Stage::Over => self.broken.is_none(),
            // nobody asks for more than the head has promised, so its last byte is the end
            Stage::Pieces => self.keepalive.is_none() && self.is_told(),
            Stage::Head | Stage::Refusal(..) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Stream for Following {
    fn is_told(&self) -> bool {
        // both official clients hang up at [DONE], before the replica has ended the stream
        self.follower.turn.log.is_told(self.follower.place)
    }
}
