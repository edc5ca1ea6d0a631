//! Turns that are over, packed: what a repeat of theirs is told, in a third of what a turn at work takes.
//!
//! They lie in the order in which they ended, and so do their answers, in pieces of memory that are given back whole.
//! Tens of thousands of turns later a single one of them is in no cache any more: letting go of its parts one by one
//! would then cost as much as all else that a gateway does for a turn.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::Index;
use super::log::KeptLog;
use crate::letta::routes::Sends;
use crate::store::TurnId;
use crate::telemetry::turn::{Facts, Part};

/// Bytes that a turn takes beside its answer.
pub(super) const SIZE: u64 = (size_of::<Placed>() + size_of::<(u64, Number)>() * 2) as u64;
/// Bytes of one piece of memory for answers.
const PIECE: usize = 16 * 1024;

/// Counts turns in the order in which they were packed, from 0 again after the last.
pub(super) type Number = u32;

/// A turn that is over.
#[derive(Clone)]
pub(super) struct Kept {
    pub message: Index,
    pub key: Arc<str>,
    pub sends: Sends,
    pub streams: bool,
    pub began: Instant,
    pub over: Instant,
    pub facts: Facts,
    pub log: KeptLog,
    /// Boxed: most turns have nothing of it.
    pub rare: Option<Box<Rare>>,
}

/// What few turns have.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Rare {
    pub id: TurnId,
    pub otid: Option<Index>,
    pub idempotency: Option<Index>,
    /// What the newest turn of its target is found by, if this may be it.
    pub newest: Option<Index>,
    /// What its run is found by, and its run.
    pub by_run: Option<Index>,
    pub run: Option<Box<str>>,
    pub followed: Option<Part>,
    /// How it is kept for all gateways, if it is: bytes at most, and for how long.
    pub among_all: Option<(usize, Duration)>,
}

/// A turn in its place.
pub(super) struct Placed {
    /// Its answer is not here.
    turn: Kept,
    answer: Option<Answer>,
    /// The one with the same message that was packed before it.
    older: Number,
    /// It was taken out.
    is_gone: bool,
}

/// Where an answer is: the fields of its head, and behind them its body.
#[derive(Clone, Copy)]
struct Answer {
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

    /// Nobody has got all of its answer.
    pub(super) fn is_abandoned(&self) -> bool {
        !self.turn.log.is_delivered
    }

    /// What it is found by beside its message.
    fn others(&self) -> impl Iterator<Item = Index> + '_ {
        let rare = self.turn.rare.as_deref();
        rare.into_iter().flat_map(|rare| [rare.otid, rare.idempotency, rare.newest, rare.by_run]).flatten()
    }

    fn has(&self, index: &Index) -> bool {
        self.turn.message == *index || self.others().any(|other| other == *index)
    }
}

/// One that is not known any more.
pub(super) struct Forgotten {
    /// It was a stream, and had not been taken out before.
    pub is_stream: bool,
}

/// The turns that are over, the oldest first.
#[derive(Default)]
pub(super) struct Past {
    turns: VecDeque<Placed>,
    /// The number of the first.
    first: Number,
    /// The latest by the beginning of each index. That is random: two alike are as rare as two equal indexes.
    latest: HashMap<u64, Number, RandomState>,
    /// So many, the oldest, have given up their answers.
    stripped: usize,
    /// Bytes of the answers that are there.
    answers: u64,
    room: Room,
}

fn beginning(index: &Index) -> u64 {
    index.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

impl Past {
    /// So many of them can be given again.
    pub(super) fn answered(&self) -> usize {
        self.turns.len() - self.stripped
    }

    /// Bytes of their answers.
    pub(super) fn answers(&self) -> u64 {
        self.answers
    }

    /// Bytes of all of it.
    pub(super) fn bytes(&self) -> u64 {
        self.answers + SIZE * self.turns.len() as u64
    }

    pub(super) fn push(&mut self, mut turn: Kept) {
        let number = self.first.wrapping_add(Number::try_from(self.turns.len()).unwrap_or(0));
        // one before the first is none
        let older = self.latest.insert(beginning(&turn.message), number).unwrap_or(self.first.wrapping_sub(1));
        let answer = self.put(&mut turn.log);
        self.answers += answer.map_or(0, Answer::bytes);
        let placed = Placed { turn, answer, older, is_gone: false };
        for other in placed.others() {
            self.latest.insert(beginning(&other), number);
        }
        self.turns.push_back(placed);
    }

    /// Takes the answer out of `log` to where the others are. None: there is none that can be given again.
    fn put(&mut self, log: &mut KeptLog) -> Option<Answer> {
        let body = log.body.take()?;
        let fields = log.head.as_mut().map(|head| std::mem::take(&mut head.fields)).unwrap_or_default();
        // what a log holds is shorter
        let answer =
            Answer { at: self.room.end, fields: fields.len().try_into().ok()?, body: body.len().try_into().ok()? };
        self.room.write(&fields);
        self.room.write(&body);
        Some(answer)
    }

    fn placed(&self, number: Number) -> Option<&Placed> {
        self.turns.get(usize::try_from(number.wrapping_sub(self.first)).ok()?)
    }

    fn placed_mut(&mut self, number: Number) -> Option<&mut Placed> {
        self.turns.get_mut(usize::try_from(number.wrapping_sub(self.first)).ok()?)
    }

    /// The turn of this number with its answer, if it is still here.
    pub(super) fn get(&self, number: Number) -> Option<Kept> {
        let Placed { turn, answer, .. } = self.placed(number).filter(|placed| !placed.is_gone)?;
        let mut turn = turn.clone();
        match answer {
            Some(answer) => {
                let mut bytes = Bytes::from(self.room.read(answer.at, answer.bytes()));
                turn.log.body = Some(bytes.split_off(usize::try_from(answer.fields).ok()?));
                if let Some(head) = &mut turn.log.head {
                    head.fields = bytes;
                }
            }
            None => turn.log.head = None,
        }
        Some(turn)
    }

    pub(super) fn message(&self, number: Number) -> Option<Index> {
        self.placed(number).map(|placed| *placed.message())
    }

    /// All numbers there are, the oldest first.
    pub(super) fn numbers(&self) -> impl Iterator<Item = Number> + use<> {
        let first = self.first;
        (0..Number::try_from(self.turns.len()).unwrap_or(Number::MAX)).map(move |place| first.wrapping_add(place))
    }

    /// The latest turn with this index.
    pub(super) fn find(&self, index: &Index) -> Option<(Number, &Placed)> {
        let number = *self.latest.get(&beginning(index))?;
        let placed = self.placed(number).filter(|placed| !placed.is_gone && placed.has(index))?;
        Some((number, placed))
    }

    /// The turns with this message, the latest first.
    pub(super) fn alike<'a>(&'a self, message: &'a Index) -> impl Iterator<Item = (Number, &'a Placed)> {
        let mut next = self.latest.get(&beginning(message)).copied();
        std::iter::from_fn(move || {
            let number = next?;
            let placed = self.placed(number)?;
            next = Some(placed.older);
            Some((number, placed))
        })
        .filter(move |(_, placed)| !placed.is_gone && placed.message() == message)
    }

    /// Takes the turn out.
    pub(super) fn take(&mut self, number: Number) -> Option<Kept> {
        let taken = self.get(number)?;
        let placed = self.placed_mut(number)?;
        placed.is_gone = true;
        let answer = placed.answer.take();
        self.answers -= answer.map_or(0, Answer::bytes);
        Some(taken)
    }

    /// The latest stream of a conversation is not the newest turn there any more, if it began before.
    pub(super) fn supersede(&mut self, newest: &Index, began: Instant) {
        let Some((number, _)) = self.find(newest).filter(|(_, placed)| placed.began() <= began) else { return };
        self.latest.remove(&beginning(newest));
        if let Some(rare) = self.placed_mut(number).and_then(|placed| placed.turn.rare.as_mut()) {
            rare.newest = None;
        }
    }

    /// The oldest turn that has its answer gives it up. False: none has one.
    pub(super) fn give_up_an_answer(&mut self) -> bool {
        while let Some(placed) = self.turns.get_mut(self.stripped) {
            self.stripped += 1;
            if let Some(answer) = placed.answer.take_if(|answer| answer.bytes() > 0) {
                self.answers -= answer.bytes();
                self.room.is_free_before(answer.at);
                return true;
            }
        }
        false
    }

    /// The oldest turn is not known any more.
    pub(super) fn forget_oldest(&mut self) -> Option<Forgotten> {
        let placed = self.turns.pop_front()?;
        for index in std::iter::once(*placed.message()).chain(placed.others()) {
            let beginning = beginning(&index);
            if self.latest.get(&beginning) == Some(&self.first) {
                self.latest.remove(&beginning);
            }
        }
        self.first = self.first.wrapping_add(1);
        self.stripped = self.stripped.saturating_sub(1);
        if let Some(answer) = placed.answer {
            self.answers -= answer.bytes();
            self.room.is_free_before(answer.at);
        }
        if self.turns.is_empty() {
            self.room = Room::default();
        }
        Some(Forgotten { is_stream: placed.turn.streams && !placed.is_gone })
    }

    /// The oldest ended so long before `now`, or was taken out.
    pub(super) fn has_expired(&self, now: Instant, window: Duration) -> bool {
        let is_over = |placed: &Placed| placed.is_gone || now.saturating_duration_since(placed.turn.over) >= window;
        self.turns.front().is_some_and(is_over)
    }
}

/// Bytes one behind the other, written at the end and given back at the beginning.
#[derive(Default)]
struct Room {
    /// All but the last are full.
    pieces: VecDeque<Vec<u8>>,
    /// Where the first of them begins.
    start: u64,
    end: u64,
}

impl Room {
    fn write(&mut self, mut bytes: &[u8]) {
        self.end += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = self.pieces.back().map_or(0, |piece| PIECE - piece.len());
            if room == 0 {
                self.pieces.push_back(Vec::with_capacity(PIECE));
            }
            let (now, then) = bytes.split_at(bytes.len().min(if room == 0 { PIECE } else { room }));
            if let Some(piece) = self.pieces.back_mut() {
                piece.extend_from_slice(now);
            }
            bytes = then;
        }
    }

    fn read(&self, at: u64, length: u64) -> Vec<u8> {
        let length = usize::try_from(length).unwrap_or(0);
        let from = usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let mut read = Vec::with_capacity(length);
        let mut skip = from % PIECE;
        for piece in self.pieces.iter().skip(from / PIECE) {
            let part = piece.get(skip..).unwrap_or_default();
            read.extend_from_slice(part.get(..length - read.len()).unwrap_or(part));
            if read.len() == length {
                break;
            }
            skip = 0;
        }
        read
    }

    /// Nothing that is written before `at` is read again.
    fn is_free_before(&mut self, at: u64) {
        while self.start + PIECE as u64 <= at && self.pieces.pop_front().is_some() {
            self.start += PIECE as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::log::{Ended, Head, Log};

    fn kept(message: u8, body: &[u8]) -> Kept {
        let log = Log::new(1 << 20);
        let head = Head { status: http::StatusCode::OK, headers: http::HeaderMap::new(), exchange: Default::default() };
        log.fill(head, body);
        log.end(Ended::Whole);
        let now = Instant::now();
        Kept {
            message: [message; 32],
            key: "a".into(),
            sends: Sends::Agent,
            streams: false,
            began: now,
            over: now,
            facts: Facts::default(),
            log: log.keep().unwrap(),
            rare: None,
        }
    }

    fn stream(message: u8, newest: u8) -> Kept {
        let rare = Rare { newest: Some([newest; 32]), by_run: Some([100 + message; 32]), ..Rare::default() };
        Kept { streams: true, rare: Some(Box::new(rare)), ..kept(message, b"data: {}\n\n") }
    }

    fn bodies(past: &Past, message: u8) -> Vec<usize> {
        let body = |number| past.get(number).unwrap().log.body.unwrap_or_default().len();
        past.alike(&[message; 32]).map(|(number, _)| body(number)).collect()
    }

    #[test]
    fn those_with_one_message_are_told_from_the_latest_on_and_no_others() {
        let mut past = Past::default();
        for (message, body) in [(1, &b"1"[..]), (2, b"22"), (1, b"333"), (3, b"4444"), (1, b"55555")] {
            past.push(kept(message, body));
        }
        assert_eq!((bodies(&past, 1), bodies(&past, 2), bodies(&past, 4)), (vec![5, 3, 1], vec![2], vec![]));
        let (middle, _) = past.alike(&[1; 32]).nth(1).unwrap();
        assert_eq!(past.take(middle).unwrap().log.body.unwrap(), "333");
        assert!(past.take(middle).is_none() && past.get(middle).is_none(), "it is there once");
        assert_eq!((bodies(&past, 1), past.answers()), (vec![5, 1], 12));
        past.forget_oldest();
        assert_eq!((bodies(&past, 1), bodies(&past, 2)), (vec![5], vec![2]));
    }

    #[test]
    fn what_is_forgotten_leaves_nothing_behind() {
        let mut past = Past { first: Number::MAX - 3, ..Past::default() };
        for round in 0..10_u8 {
            past.push(kept(round % 3, &[round; 100]));
            past.push(stream(50 + round, 7));
        }
        assert_eq!(past.find(&[7; 32]).unwrap().1.message(), &[59; 32]);
        past.supersede(&[7; 32], Instant::now());
        assert!(past.find(&[7; 32]).is_none());
        assert_eq!(past.find(&[159; 32]).unwrap().1.message(), &[59; 32], "by its run it is found still");
        let (number, _) = past.find(&[158; 32]).unwrap();
        past.take(number).unwrap();
        let mut streams = 0;
        while let Some(Forgotten { is_stream }) = past.forget_oldest() {
            streams += usize::from(is_stream);
        }
        assert_eq!(streams, 9, "one was taken out");
        assert_eq!((past.latest.len(), past.bytes(), past.stripped, past.room.pieces.len()), (0, 0, 0, 0));
    }

    #[test]
    fn the_oldest_answers_are_given_up_first_and_what_had_them_is_known_still() {
        let mut past = Past::default();
        for message in 0..4 {
            past.push(kept(message, &[message; 1000]));
        }
        assert!(past.give_up_an_answer() && past.give_up_an_answer());
        assert_eq!((past.answers(), past.answered()), (2000, 2));
        assert_eq!([0, 1, 2, 3].map(|message| bodies(&past, message)), [[0], [0], [1000], [1000]]);
        past.forget_oldest();
        assert!(past.give_up_an_answer() && past.give_up_an_answer() && !past.give_up_an_answer());
        assert_eq!((past.answers(), past.bytes()), (0, 3 * SIZE));
    }

    #[test]
    fn answers_of_any_length_are_read_as_they_were_written_until_they_are_given_up() {
        let mut past = Past::default();
        let body = |number: usize| -> Vec<u8> { (0..number * 777).map(|at| (at + number) as u8).collect() };
        for number in 0..60 {
            past.push(kept(1, &body(number)));
        }
        let read = |past: &Past, number| past.get(number).unwrap().log.body.map(Vec::from);
        assert!((0..60).all(|number| read(&past, number) == Some(body(number as usize))));
        let before = past.room.pieces.len();
        for given_up in 1..60 {
            assert!(past.give_up_an_answer());
            assert_eq!(read(&past, given_up), None);
            assert!((given_up + 1..60).all(|number| read(&past, number) == Some(body(number as usize))), "{given_up}");
        }
        assert!(!past.give_up_an_answer());
        assert!(past.room.pieces.len() < before / 10, "what is given up is given back");
        assert_eq!(past.room.pieces.iter().map(Vec::capacity).max(), Some(PIECE));
    }
}
