//! A turn that has begun and has no end yet. It gets one, even if whoever works on it is dropped.

use std::sync::Arc;

use http::StatusCode;
use tokio::time::Instant;

use super::log::{Ended, Ending, Phase, Whole};
use super::relay::Answered;
use super::shared::Turn;
use super::step::Desk;
use crate::error::Error;
use crate::telemetry::turn::{Facts, Outcome};

pub(super) struct Unfinished {
    pub desk: Arc<Desk>,
    pub turn: Arc<Turn>,
    has_ended: bool,
}

impl Unfinished {
    pub(super) fn new(desk: &Arc<Desk>, turn: &Arc<Turn>) -> Self {
        Self { desk: Arc::clone(desk), turn: Arc::clone(turn), has_ended: false }
    }

    /// The answer was all there at once. It is given back where `is_for_hands` and whoever drives the turn is there.
    pub(super) fn answered(&mut self, answered: Answered, is_for_hands: bool) -> Option<Whole> {
        let Answered { answer, outcome, usage } = answered;
        let turn = &self.turn;
        let facts = turn.facts.answered(outcome, usage, &answer.head.exchange);
        let now = self.tell(outcome, &facts);
        let is_told = turn.is_known_to_all();
        if may_come_again(outcome, answer.head.status) {
            turn.log.fill(answer, is_told);
            self.forget(Ended::Whole);
            return None;
        }
        self.end(Ending::Whole { answer, is_told, is_for_hands: is_for_hands && !is_told }, now)
    }

    /// The answer is in the log, as far as there is one.
    pub(super) fn over(&mut self, outcome: Outcome, ended: Ended) {
        let facts = self.turn.facts.set(|facts| facts.outcome = Some(outcome));
        let now = self.tell(outcome, &facts);
        if self.turn.log.status().is_some_and(|status| may_come_again(outcome, status)) {
            self.forget(ended);
        } else {
            self.end(Ending::Logged(ended), now);
        }
    }

    /// The turn was another gateway's, and is told of there.
    pub(super) fn followed(&mut self, ended: Ended) {
        self.desk.metrics.turns.repeat(self.turn.part().as_str());
        self.end(Ending::Logged(ended), Instant::now());
    }

    pub(super) fn never_sent(&mut self, error: Error) {
        self.turn.facts.set(|facts| facts.outcome = Some(Outcome::NeverSent));
        self.desk.metrics.turns.ended(Outcome::NeverSent.as_str());
        self.forget(Ended::Failed(error));
    }

    /// Counts a turn that ends now.
    fn tell(&self, outcome: Outcome, facts: &Facts) -> Instant {
        let metrics = &self.desk.metrics.turns;
        metrics.ended(outcome.as_str());
        if let Some(usage) = &facts.usage {
            metrics.used(usage);
        }
        let now = Instant::now();
        let took = now.saturating_duration_since(self.turn.began).saturating_sub(facts.queued);
        metrics.duration.observe(took.as_secs_f64());
        now
    }

    /// The turn ends `now`, and can be repeated from then on.
    fn end(&mut self, ending: Ending, now: Instant) -> Option<Whole> {
        self.has_ended = true;
        let Self { desk, turn, .. } = self;
        desk.registry.over(turn, ending, now, &desk.settings, &desk.metrics.turns)
    }

    /// The turn never was: what repeats it starts anew.
    fn forget(&mut self, ended: Ended) {
        self.has_ended = true;
        self.desk.registry.forget(&self.turn);
        self.turn.log.end(ended);
    }
}

/// Letta has refused it: it was not executed, and what repeats it is Letta's to answer.
fn may_come_again(outcome: Outcome, status: StatusCode) -> bool {
    outcome == Outcome::Refused && status.is_client_error()
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        match self.turn.log.phase() {
            Phase::Waiting { .. } => self.never_sent(Error::ClientLeft),
            Phase::Sent | Phase::Over => {
                self.end(Ending::Logged(Ended::Failed(Error::Draining)), Instant::now());
            }
        }
    }
}
