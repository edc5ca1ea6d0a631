//! A turn that has begun and has no end yet. It gets one, even if whoever works on it is dropped.

use std::sync::Arc;

use http::StatusCode;
use tokio::time::Instant;

use super::follow::Given;
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

    /// The answer was all there at once. It is given back where the only one who follows drives the turn.
    pub(super) fn answered(&mut self, answered: Answered) -> Option<Given> {
        let Answered { answer, outcome, usage } = answered;
        let turn = &self.turn;
        let exchange = &answer.head.exchange;
        let facts = turn.facts.answered(outcome, usage, exchange);
        // all of it came with its head, unless it was looked into to see what it refuses
        let came = exchange.answered.filter(|_| outcome != Outcome::Refused);
        let now = came.unwrap_or_else(Instant::now);
        self.count(outcome, &facts, now);
        let is_known_to_all = turn.is_known_to_all();
        if may_come_again(outcome, answer.head.status) {
            turn.log.fill(*answer, is_known_to_all);
            self.forget(Ended::Whole);
            return None;
        }
        let answer = self.end(Ending::Whole { answer, is_known_to_all }, now)?;
        Some(Given { answer, queued: facts.queued })
    }

    /// The answer is in the log, as far as there is one.
    pub(super) fn over(&mut self, outcome: Outcome, ended: Ended) {
        let facts = self.turn.facts.set(|facts| facts.outcome = Some(outcome));
        let now = Instant::now();
        self.count(outcome, &facts, now);
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

    /// Counts a turn that ends `now`.
    fn count(&self, outcome: Outcome, facts: &Facts, now: Instant) {
        let metrics = &self.desk.metrics.turns;
        metrics.ended(outcome.as_str());
        if let Some(usage) = &facts.usage {
            metrics.used(usage);
        }
        let took = now.saturating_duration_since(self.turn.began).saturating_sub(facts.queued);
        metrics.duration.observe(took);
    }

    /// The turn ends `now`, and can be repeated from then on.
    fn end(&mut self, ending: Ending, now: Instant) -> Option<Box<Whole>> {
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
                self.end(Ending::Logged(Ended::Failed(Error::CutOff)), Instant::now());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::letta::routes::Sends;
    use crate::store::{self, Store};
    use crate::telemetry::access::AccessLog;
    use crate::telemetry::metrics::Metrics;
    use crate::telemetry::record::Sink;
    use crate::turn::marks::{Marks, Target};
    use crate::turn::shared::Beginning;
    use crate::turn::{Dedupe, Settings, Turns};

    fn desk() -> Arc<Desk> {
        let metrics = Arc::new(Metrics::new());
        let store = store::Settings { redis: None, max_entry: 0, max_total: 0 };
        let store = Store::new(store, &metrics, None).unwrap();
        let sink = Sink::new(metrics, AccessLog::off());
        Arc::clone(&Turns::new(&Settings::default(), 1 << 20, Duration::from_secs(1), &store, &sink, None).desk)
    }

    fn turn(is_retry: bool) -> Arc<Turn> {
        let marks = Marks { message: [1; 32], otid: None, idempotency: None };
        let (target, sends, key, began) = (Target::Agent("agent-1".into()), Sends::Agent, "a".into(), Instant::now());
        let beginning = Beginning { marks, target, sends, key: &key, streams: false, is_retry, began };
        Turn::new(beginning, 1 << 20, Duration::from_secs(60), false).unwrap()
    }

    fn head(turn: &Turn, place: usize) -> Result<super::super::log::Head, Error> {
        match turn.log.poll_head(place, &std::task::Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(head) => head,
            std::task::Poll::Pending => panic!("its followers wait for ever"),
        }
    }

    #[test]
    fn a_turn_that_is_dropped_before_it_was_sent_never_was() {
        let (desk, turn) = (desk(), turn(false));
        let place = turn.log.enter().unwrap();
        assert!(desk.registry.claim(&turn, Dedupe::Repeats).unwrap().is_none());
        drop(Unfinished::new(&desk, &turn));
        assert!(turn.is_void() && matches!(head(&turn, place), Err(Error::ClientLeft)));
        assert!(desk.registry.claim(&self::turn(true), Dedupe::Repeats).unwrap().is_none(), "its retry is sent");
    }

    #[test]
    fn a_turn_that_is_dropped_after_it_was_sent_has_an_end_and_is_not_sent_again() {
        let (desk, turn) = (desk(), turn(false));
        let place = turn.log.enter().unwrap();
        assert!(desk.registry.claim(&turn, Dedupe::Repeats).unwrap().is_none());
        turn.log.set_phase(Phase::Sent);
        drop(Unfinished::new(&desk, &turn));
        assert!(!turn.is_void() && matches!(head(&turn, place), Err(Error::CutOff)));
        let again = desk.registry.claim(&self::turn(true), Dedupe::Repeats).unwrap().unwrap();
        assert!(matches!(head(&again.turn, again.place.unwrap()), Err(Error::CutOff)));
    }

    #[test]
    fn who_repeats_a_turn_as_its_last_client_leaves_begins_it_anew_and_gets_no_word_of_its_end() {
        let (desk, waiting) = (desk(), turn(false));
        let place = waiting.log.enter().unwrap();
        assert!(desk.registry.claim(&waiting, Dedupe::Repeats).unwrap().is_none());
        let joined = desk.registry.claim(&turn(true), Dedupe::Repeats).unwrap().unwrap();
        waiting.log.leave(place);
        assert!(waiting.log.given_up().now_or_never().is_none(), "somebody follows it still");
        joined.turn.log.leave(joined.place.unwrap());
        assert!(waiting.log.given_up().now_or_never().is_some());

        // its engine has seen it, and has not yet said so
        let again = turn(true);
        again.log.enter().unwrap();
        assert!(desk.registry.claim(&again, Dedupe::Repeats).unwrap().is_none());
        let joins_it = || {
            let joined = desk.registry.claim(&turn(true), Dedupe::Repeats).unwrap().unwrap();
            Arc::ptr_eq(&joined.turn, &again)
        };
        assert!(joins_it());
        Unfinished::new(&desk, &waiting).never_sent(Error::ClientLeft);
        assert!(joins_it(), "the end of the one before takes nothing from it");
    }

    #[test]
    fn a_turn_that_has_ended_is_not_ended_twice() {
        let (desk, turn) = (desk(), turn(false));
        let mut unfinished = Unfinished::new(&desk, &turn);
        unfinished.over(Outcome::Answered, Ended::Whole);
        let number = turn.log.number();
        drop(unfinished);
        assert_eq!((turn.log.number(), desk.registry.all_over().len()), (number, 1));
    }
}
