//! Turns that are over, packed, in the order in which that was done: what a repeat of theirs is told.
//!
//! Their answers lie one behind the other, in pieces of memory that are given back whole. Tens of thousands of turns
//! later a single one of them is in no cache any more: letting go of its parts one by one would then cost as much as all
//! else that a gateway does for a turn.

mod tape;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::RandomState;
use http::StatusCode;
use smallvec::smallvec;
use tokio::time::Instant;

use super::Index;
use super::log::{KeptAnswer, KeptLog};
use super::shared::Turn;
use crate::error::Error;
use crate::letta::routes::Sends;
use crate::store::TurnId;
use crate::telemetry::record::Exchange;
use crate::telemetry::turn::{Facts, Part};
use tape::Tape;

/// Turns with one message that are looked at.
pub(super) const MOST_ALIKE: usize = 16;
/// Bytes of how a turn failed, about.
const FAILURE: usize = 2 * size_of::<Error>() + 128;
/// Bytes of what stays of a turn that was given again: what is weakly held keeps its place.
const AGAIN: usize = size_of::<Again>() + size_of::<Turn>() + 64;

/// Counts turns in the order in which they were packed, from 0 again after the last.
pub(super) type Number = u32;

/// What is kept of a turn that is over.
#[derive(Clone)]
pub(super) struct Kept {
    pub message: Index,
    pub key: Arc<str>,
    pub sends: Sends,
    pub streams: bool,
    pub began: Instant,
    pub over: Instant,
    pub facts: Facts,
    pub exchange: Exchange,
    pub log: KeptLog,
    /// Boxed: a message that names neither itself nor its run, on a gateway of its own, has nothing of it.
    pub more: Option<Box<More>>,
}

/// What not every turn has.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct More {
    pub id: TurnId,
    pub otid: Option<Index>,
    pub idempotency: Option<Index>,
    /// What the newest turn of its target is found by, and whether this may be it.
    pub newest: Option<Index>,
    pub is_newest: bool,
    /// What its run is found by, and its run.
    pub by_run: Option<Index>,
    pub run: Option<Box<str>>,
    pub followed: Option<Part>,
    /// How it is kept for all gateways, if it is: bytes at most, and for how long.
    pub among_all: Option<(usize, Duration)>,
}

/// A turn in its place.
pub(super) struct Placed {
    /// All of it but its answer, which is on the tape.
    turn: Kept,
    answer: Option<Answer>,
    /// The one with the same message that was packed before it.
    older: Number,
    /// Boxed: few are repeated.
    again: Option<Box<Again>>,
}

/// A turn that was given again.
struct Again {
    /// As long as somebody follows it.
    turn: Weak<Turn>,
    delivered: Arc<AtomicBool>,
}

/// Where an answer is: the fields of its head, and behind them its body.
#[derive(Clone, Copy)]
struct Answer {
    status: Option<StatusCode>,
    at: u64,
    fields: u32,
    body: u32,
}

impl Answer {
    fn bytes(self) -> u64 {
        u64::from(self.fields) + u64::from(self.body)
    }
}

impl Placed {
    pub(super) fn message(&self) -> &Index {
        &self.turn.message
    }

    pub(super) fn began(&self) -> Instant {
        self.turn.began
    }

    /// Nobody follows it, and nobody has got all of its answer.
    pub(super) fn is_abandoned(&self) -> bool {
        let Some(again) = &self.again else { return !self.turn.log.is_delivered };
        match again.turn.upgrade() {
            Some(turn) => turn.log.is_abandoned(),
            None => !self.turn.log.is_delivered && !again.delivered.load(Ordering::Relaxed),
        }
    }

    /// What it is found by beside its message.
    fn others(&self) -> impl Iterator<Item = Index> + '_ {
        let more = self.turn.more.as_deref();
        let newest = more.filter(|more| more.is_newest).and_then(|more| more.newest);
        let named = more.into_iter().flat_map(|more| [more.otid, more.idempotency, more.by_run]);
        named.chain([newest]).flatten()
    }

    fn has(&self, index: &Index) -> bool {
        self.turn.message == *index || self.others().any(|other| other == *index)
    }

    /// Bytes that it takes beside its answer.
    fn bytes(&self) -> u64 {
        let more = self.turn.more.as_ref();
        let run = more.and_then(|more| more.run.as_ref()).map_or(0, |run| run.len());
        let indexes = if more.is_some() { 5 } else { 1 };
        // a map and a queue have room for as many again
        let all = 2 * (size_of::<Self>() + indexes * size_of::<(u64, Number)>());
        let more = more.map_or(0, |_| size_of::<More>() + run);
        let ended = self.turn.log.ended.as_ref().map_or(0, |_| FAILURE);
        (all + more + ended + self.again.as_ref().map_or(0, |_| AGAIN)) as u64
    }
}

/// The turns that are over, the oldest first.
#[derive(Default)]
pub(super) struct Past {
    turns: VecDeque<Placed>,
    /// The number of the first.
    first: Number,
    /// The latest by the beginning of each index. That is random: two alike are as rare as two equal indexes.
    latest: HashMap<u64, Number, RandomState>,
    /// So many, the oldest, have given up their answers or had none.
    stripped: usize,
    /// Bytes of the answers that can be given again.
    answers: u64,
    /// Bytes of all else.
    rest: u64,
    /// So many are streams.
    streams: usize,
    tape: Tape,
}

fn beginning(index: &Index) -> u64 {
    index.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

impl Past {
    pub(super) fn len(&self) -> usize {
        self.turns.len()
    }

    pub(super) fn streams(&self) -> usize {
        self.streams
    }

    /// Bytes of the answers that can be given again.
    pub(super) fn answers(&self) -> u64 {
        self.answers
    }

    /// Bytes of all of it.
    pub(super) fn bytes(&self) -> u64 {
        self.answers + self.rest
    }

    pub(super) fn push(&mut self, mut turn: Kept) {
        let number = self.first.wrapping_add(Number::try_from(self.turns.len()).unwrap_or(0));
        if let Some(more) = turn.more.as_mut().filter(|more| more.is_newest) {
            // one that ended before it may have begun after it
            let newer =
                more.newest.and_then(|newest| self.find(&newest)).filter(|(_, other)| other.began() > turn.began);
            more.is_newest = newer.is_none();
        }
        // one before the first is none
        let older = self.latest.insert(beginning(&turn.message), number).unwrap_or(self.first.wrapping_sub(1));
        let answer = turn.log.answer.take().and_then(|answer| self.write(&answer));
        let placed = Placed { turn, answer, older, again: None };
        for other in placed.others() {
            self.latest.insert(beginning(&other), number);
        }
        self.answers += answer.map_or(0, Answer::bytes);
        self.rest += placed.bytes();
        self.streams += usize::from(placed.turn.streams);
        self.turns.push_back(placed);
    }

    fn write(&mut self, answer: &KeptAnswer) -> Option<Answer> {
        let KeptAnswer { head, body } = answer;
        let (status, fields) = head.as_ref().map_or((None, &[][..]), |(status, fields)| (Some(*status), fields));
        let bytes: usize = body.iter().map(Bytes::len).sum();
        // what a log holds is shorter
        let (fields_length, body_length) = (fields.len().try_into().ok()?, bytes.try_into().ok()?);
        let answer = Answer { status, at: self.tape.end, fields: fields_length, body: body_length };
        self.tape.write(fields);
        body.iter().for_each(|piece| self.tape.write(piece));
        Some(answer)
    }

    fn read(&self, answer: Answer) -> Option<KeptAnswer> {
        let mut fields = Bytes::from(self.tape.read(answer.at, answer.bytes()));
        let body = fields.split_off(usize::try_from(answer.fields).ok()?);
        let body = if body.is_empty() { smallvec![] } else { smallvec![body] };
        Some(KeptAnswer { head: answer.status.map(|status| (status, fields)), body })
    }

    fn placed(&self, number: Number) -> Option<&Placed> {
        self.turns.get(usize::try_from(number.wrapping_sub(self.first)).ok()?)
    }

    fn placed_mut(&mut self, number: Number) -> Option<&mut Placed> {
        self.turns.get_mut(usize::try_from(number.wrapping_sub(self.first)).ok()?)
    }

    /// The turn of this number, to be followed. All who do at one time follow the same one.
    pub(super) fn turn(&mut self, number: Number) -> Option<Arc<Turn>> {
        let again = self.placed(number)?.again.as_ref();
        if let Some(turn) = again.and_then(|again| again.turn.upgrade()) {
            return Some(turn);
        }
        let delivered = again.map_or_else(Arc::default, |again| Arc::clone(&again.delivered));
        let turn = self.copy(number, &delivered)?;
        let placed = self.placed_mut(number)?;
        let before = placed.bytes();
        placed.again = Some(Box::new(Again { turn: Arc::downgrade(&turn), delivered }));
        let more = placed.bytes() - before;
        self.rest += more;
        Some(turn)
    }

    /// A copy of the turn of this number that nobody else has. `delivered` is set once somebody has got all of it.
    pub(super) fn copy(&self, number: Number, delivered: &Arc<AtomicBool>) -> Option<Arc<Turn>> {
        let Placed { turn, answer, .. } = self.placed(number)?;
        let mut kept = turn.clone();
        kept.log.answer = answer.and_then(|answer| self.read(answer));
        kept.log.is_delivered |= delivered.load(Ordering::Relaxed);
        Some(Turn::again(kept, Arc::clone(delivered)))
    }

    pub(super) fn message(&self, number: Number) -> Option<&Index> {
        self.placed(number).map(Placed::message)
    }

    /// All numbers there are, the oldest first.
    pub(super) fn numbers(&self) -> impl Iterator<Item = Number> + use<> {
        let first = self.first;
        (0..Number::try_from(self.turns.len()).unwrap_or(Number::MAX)).map(move |place| first.wrapping_add(place))
    }

    /// The latest turn with this index.
    pub(super) fn find(&self, index: &Index) -> Option<(Number, &Placed)> {
        let number = *self.latest.get(&beginning(index))?;
        self.placed(number).filter(|placed| placed.has(index)).map(|placed| (number, placed))
    }

    /// The turns with this message, the latest first, [`MOST_ALIKE`] of them at most.
    pub(super) fn alike<'a>(&'a self, message: &'a Index) -> impl Iterator<Item = (Number, &'a Placed)> {
        let mut next = self.latest.get(&beginning(message)).copied();
        std::iter::from_fn(move || {
            let number = next?;
            let placed = self.placed(number)?;
            next = Some(placed.older);
            Some((number, placed))
        })
        .take(MOST_ALIKE)
        .filter(move |(_, placed)| placed.message() == message)
    }

    /// The latest stream of a conversation is not the newest turn there any more, if it began before.
    pub(super) fn supersede(&mut self, newest: &Index, began: Instant) {
        let Some((number, _)) = self.find(newest).filter(|(_, placed)| placed.began() <= began) else { return };
        self.latest.remove(&beginning(newest));
        if let Some(more) = self.placed_mut(number).and_then(|placed| placed.turn.more.as_mut()) {
            more.is_newest = false;
        }
    }

    /// The oldest turn that has its answer gives it up. False: none has one.
    pub(super) fn give_up_an_answer(&mut self) -> bool {
        while let Some(placed) = self.turns.get_mut(self.stripped) {
            self.stripped += 1;
            if let Some(answer) = placed.answer.take_if(|answer| answer.bytes() > 0) {
                self.answers -= answer.bytes();
                self.tape.free_before(answer.at + answer.bytes());
                return true;
            }
        }
        false
    }

    /// The oldest turn is not known any more. False: there is none.
    pub(super) fn forget_oldest(&mut self) -> bool {
        let Some(placed) = self.turns.pop_front() else { return false };
        for index in std::iter::once(*placed.message()).chain(placed.others()) {
            let beginning = beginning(&index);
            if self.latest.get(&beginning) == Some(&self.first) {
                self.latest.remove(&beginning);
            }
        }
        self.first = self.first.wrapping_add(1);
        self.stripped = self.stripped.saturating_sub(1);
        self.streams -= usize::from(placed.turn.streams);
        self.rest -= placed.bytes();
        if let Some(answer) = placed.answer {
            self.answers -= answer.bytes();
            self.tape.free_before(answer.at + answer.bytes());
        }
        true
    }

    /// The oldest ended so long before `now`.
    pub(super) fn has_expired(&self, now: Instant, window: Duration) -> bool {
        self.turns.front().is_some_and(|placed| now.saturating_duration_since(placed.turn.over) >= window)
    }
}
