//! Reads what an answer of a replica's says of its turn, and writes one that comes in parts to the turn's log.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use super::log::{Head, Log, Whole};
use super::shared::Turn;
use super::step::Desk;
use crate::body::{Body, Response};
use crate::boxed;
use crate::error::Error;
use crate::letta::reply::{self, Usage};
use crate::letta::sse::{self, Cutter};
use crate::telemetry::Record;
use crate::telemetry::turn::Outcome;

/// Comes as events.
pub(super) fn is_stream(status: StatusCode, headers: &HeaderMap) -> bool {
    status == StatusCode::OK && sse::is_event_stream(headers)
}

/// An answer that was all there at once.
pub(super) struct Answered {
    /// Boxed: it goes through many hands.
    pub answer: Box<Whole>,
    pub outcome: Outcome,
    pub usage: Option<Usage>,
}

/// How an answer ended that was relayed.
pub(super) enum Relayed {
    Whole(Outcome),
    /// The stream broke off between two events, and its end has not been told.
    BrokenStream(Error),
    /// The body broke off.
    BrokenBody(Error),
}

/// What a whole answer says of the turn.
fn read(status: StatusCode, body: &[u8]) -> (Outcome, Option<Usage>) {
    if status != StatusCode::OK {
        return (Outcome::Refused, None);
    }
    match reply::read(body) {
        Some(reply) => (Outcome::Stopped(reply.stop_reason), reply.usage),
        None => (Outcome::Answered, None),
    }
}

/// An answer that is all there, as most are. `None`: it is still to be relayed.
pub(super) fn whole(response: &mut Response, record: &Record) -> Option<Answered> {
    let status = response.status();
    if is_stream(status, response.headers()) {
        return None;
    }
    let body = response.body_mut().take_whole()?;
    let (outcome, usage) = read(status, &body);
    let headers = std::mem::take(response.headers_mut());
    let answer = boxed::make(|| Whole { head: Head { status, headers, exchange: record.exchange() }, body });
    Some(Answered { answer, outcome, usage })
}

pub(super) struct Relay<'a> {
    pub turn: &'a Arc<Turn>,
    pub desk: &'a Desk,
    /// When the message was sent.
    pub sent: Instant,
}

impl Relay<'_> {
    fn log(&self) -> &Log {
        &self.turn.log
    }

    /// Writes an answer that comes in pieces.
    pub(super) async fn pieces(&self, head: Head, mut body: Body) -> Relayed {
        let status = head.status;
        // only an answer that could be given again is read as a whole
        let most = self.desk.settings.max_log;
        let mut copy = Some(BytesMut::new());
        let length = body.size_hint().exact();
        let expects_more = length != Some(0);
        self.log().begin(head, length);
        while let Some(frame) = if expects_more { body.frame().await } else { None } {
            let data = match frame.map(http_body::Frame::into_data) {
                Ok(Ok(data)) => data,
                Ok(Err(_)) => continue,
                Err(error) => return Relayed::BrokenBody(error),
            };
            self.log().append(&data);
            self.log().has_room().await;
            copy = copy.filter(|copy| copy.len() + data.len() <= most);
            if let Some(copy) = &mut copy {
                copy.extend_from_slice(&data);
            }
        }
        Relayed::Whole(match copy {
            Some(copy) => {
                let (outcome, usage) = read(status, &copy);
                self.turn.facts.set(|facts| facts.usage = usage);
                outcome
            }
            None if status == StatusCode::OK => Outcome::Answered,
            None => Outcome::Refused,
        })
    }

    /// Writes the events of a stream whose head is in the log.
    pub(super) async fn stream(&self, mut body: Body) -> Relayed {
        let mut cutter = Cutter::new();
        let mut last: Option<Instant> = None;
        let broken = loop {
            let data = match body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => data,
                    Err(_) => continue,
                },
                Some(Err(error)) => break Some(error),
                None => break None,
            };
            let Some(events) = cutter.whole_events(data) else { continue };
            self.tell_event(&mut last);
            self.events(&events, &cutter).await;
        };
        if broken.is_none()
            && let Some(rest) = cutter.rest()
        {
            self.events(&rest, &cutter).await;
        }
        let scanner = cutter.scanner();
        self.turn.facts.set(|facts| facts.usage = scanner.usage());
        let outcome = match scanner.stop_reason() {
            _ if scanner.has_error() => Some(Outcome::ErrorEvent),
            Some(reason) => Some(Outcome::Stopped(reason)),
            None if scanner.is_done() => Some(Outcome::Answered),
            None => None,
        };
        match (broken, outcome) {
            // what was said after the end is lost to nobody
            (Some(_), Some(outcome)) if scanner.is_done() || scanner.has_error() => Relayed::Whole(outcome),
            (Some(error), _) => Relayed::BrokenStream(error),
            (None, outcome) => Relayed::Whole(outcome.unwrap_or(Outcome::Answered)),
        }
    }

    async fn events(&self, events: &Bytes, cutter: &Cutter) {
        if self.turn.run().is_none()
            && let Some(run) = cutter.scanner().run_id()
        {
            // before the event that names it: whoever has read it may ask for it
            self.desk.registry.learn_run(self.turn, run);
            if let Some(fleet) = &self.desk.fleet {
                Box::pin(fleet.learn_run(self.turn, run)).await;
            }
        }
        self.log().append(events);
        if cutter.scanner().is_done() {
            self.log().tell_end();
        }
        self.log().has_room().await;
    }

    fn tell_event(&self, last: &mut Option<Instant>) {
        let now = Instant::now();
        match last.replace(now) {
            None => {
                let after = now.saturating_duration_since(self.sent);
                self.desk.metrics.turns.first_event.observe(after);
                self.turn.facts.set(|facts| facts.first_event = Some(after));
            }
            Some(before) => {
                let gap = now.saturating_duration_since(before);
                self.desk.metrics.turns.gap.observe(gap);
                self.turn.facts.set(|facts| facts.longest_gap = facts.longest_gap.max(Some(gap)));
            }
        }
    }
}
