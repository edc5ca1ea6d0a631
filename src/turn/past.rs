//! Turns that are over, packed: what a repeat of theirs is told, in a third of what a turn at work takes.
//!
//! They lie in the order in which they ended, and so do their answers, in pieces of memory that are given back whole:
//! tens of thousands of turns later a single one of them would be in no cache any more, and letting go of its parts one
//! by one would cost as much as all else that a gateway does for a turn.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::Index;
use super::log::KeptLog;
use crate::letta::routes::Sends;
use crate::store::TurnId;
use crate::telemetry::turn::{Facts, Part};

/// Bytes that a turn takes beside its answer.
pub(super) const SIZE: u64 = (size_of::<Placed>() + size_of::<(u64, Number)>() * 2) as u64;
/// Bytes of one piece of memory for answers; longer ones than a quarter have their own.
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

impl Kept {
    /// Nobody has got all of its answer.
    pub(super) fn is_abandoned(&self) -> bool {
        !self.log.is_delivered
    }

    /// What it is found by beside its message.
    fn others(&self) -> impl Iterator<Item = Index> + '_ {
        let rare = self.rare.as_deref();
        rare.into_iter().flat_map(|rare| [rare.otid, rare.idempotency, rare.newest, rare.by_run]).flatten()
    }

    fn has(&self, index: &Index) -> bool {
        self.message == *index || self.others().any(|other| other == *index)
    }
}

/// A turn in its place.
struct Placed {
    turn: Kept,
    /// The one with the same message that was packed before it.
    older: Number,
    /// It was taken out.
    is_gone: bool,
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
    /// What the next answer is written to.
    piece: BytesMut,
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
        for other in turn.others() {
            self.latest.insert(beginning(&other), number);
        }
        self.answers += turn.log.bytes();
        turn.log.move_to(|bytes| copied(bytes, &mut self.piece));
        self.turns.push_back(Placed { turn, older, is_gone: false });
    }

    fn placed(&self, number: Number) -> Option<&Placed> {
        self.turns.get(usize::try_from(number.wrapping_sub(self.first)).ok()?)
    }

    fn placed_mut(&mut self, number: Number) -> Option<&mut Placed> {
        self.turns.get_mut(usize::try_from(number.wrapping_sub(self.first)).ok()?)
    }

    /// The turn of this number, if it is still here.
    pub(super) fn get(&self, number: Number) -> Option<&Kept> {
        self.placed(number).filter(|placed| !placed.is_gone).map(|placed| &placed.turn)
    }

    /// All numbers there are, the oldest first.
    pub(super) fn numbers(&self) -> impl Iterator<Item = Number> + use<> {
        let first = self.first;
        (0..Number::try_from(self.turns.len()).unwrap_or(Number::MAX)).map(move |place| first.wrapping_add(place))
    }

    /// The latest turn with this index.
    pub(super) fn find(&self, index: &Index) -> Option<(Number, &Kept)> {
        let number = *self.latest.get(&beginning(index))?;
        self.get(number).filter(|turn| turn.has(index)).map(|turn| (number, turn))
    }

    /// The turns with this message, the latest first.
    pub(super) fn alike(&self, message: &Index) -> impl Iterator<Item = (Number, &Kept)> {
        let mut next = self.latest.get(&beginning(message)).copied();
        std::iter::from_fn(move || {
            let number = next?;
            let placed = self.placed(number)?;
            next = Some(placed.older);
            Some((number, placed))
        })
        .filter(|(_, placed)| !placed.is_gone && placed.turn.message == *message)
        .map(|(number, placed)| (number, &placed.turn))
    }

    /// Takes the turn out.
    pub(super) fn take(&mut self, number: Number) -> Option<Kept> {
        let placed = self.placed_mut(number).filter(|placed| !placed.is_gone)?;
        placed.is_gone = true;
        let taken = placed.turn.clone();
        placed.turn.log.strip();
        self.answers -= taken.log.bytes();
        Some(taken)
    }

    /// The latest stream of a conversation is not the newest turn there any more, if it began before.
    pub(super) fn supersede(&mut self, newest: &Index, began: Instant) {
        let Some((number, _)) = self.find(newest).filter(|(_, turn)| turn.began <= began) else { return };
        self.latest.remove(&beginning(newest));
        if let Some(rare) = self.placed_mut(number).and_then(|placed| placed.turn.rare.as_mut()) {
            rare.newest = None;
        }
    }

    /// The oldest turn that has its answer gives it up. False: none has one.
    pub(super) fn give_up_an_answer(&mut self) -> bool {
        while let Some(Placed { turn, .. }) = self.turns.get_mut(self.stripped) {
            self.stripped += 1;
            let bytes = turn.log.bytes();
            if bytes > 0 {
                turn.log.strip();
                self.answers -= bytes;
                return true;
            }
        }
        false
    }

    /// The oldest turn is not known any more.
    pub(super) fn forget_oldest(&mut self) -> Option<Forgotten> {
        let Placed { turn, is_gone, .. } = self.turns.pop_front()?;
        for index in std::iter::once(turn.message).chain(turn.others()) {
            let beginning = beginning(&index);
            if self.latest.get(&beginning) == Some(&self.first) {
                self.latest.remove(&beginning);
            }
        }
        self.first = self.first.wrapping_add(1);
        self.stripped = self.stripped.saturating_sub(1);
        self.answers -= turn.log.bytes();
        Some(Forgotten { is_stream: turn.streams && !is_gone })
    }

    /// The oldest ended so long before `now`, or was taken out.
    pub(super) fn has_expired(&self, now: Instant, window: Duration) -> bool {
        let is_over = |placed: &Placed| placed.is_gone || now.saturating_duration_since(placed.turn.over) >= window;
        self.turns.front().is_some_and(is_over)
    }
}

/// `bytes` in the piece of memory that is written to now; long ones stay where they are.
fn copied(bytes: Bytes, piece: &mut BytesMut) -> Bytes {
    if bytes.len() > PIECE / 4 {
        return bytes;
    }
    if piece.capacity() < bytes.len() {
        *piece = BytesMut::with_capacity(PIECE);
    }
    piece.extend_from_slice(&bytes);
    piece.split().freeze()
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

    fn bodies(past: &Past, message: u8) -> Vec<u64> {
        past.alike(&[message; 32]).map(|(_, turn)| turn.log.bytes()).collect()
    }

    #[test]
    fn those_with_one_message_are_told_from_the_latest_on_and_no_others() {
        let mut past = Past::default();
        for (message, body) in [(1, &b"1"[..]), (2, b"22"), (1, b"333"), (3, b"4444"), (1, b"55555")] {
            past.push(kept(message, body));
        }
        assert_eq!((bodies(&past, 1), bodies(&past, 2), bodies(&past, 4)), (vec![5, 3, 1], vec![2], vec![]));
        let (middle, _) = past.alike(&[1; 32]).nth(1).unwrap();
        assert_eq!(past.take(middle).unwrap().log.bytes(), 3);
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
        assert_eq!(past.find(&[7; 32]).unwrap().1.message, [59; 32]);
        past.supersede(&[7; 32], Instant::now());
        assert!(past.find(&[7; 32]).is_none());
        assert_eq!(past.find(&[159; 32]).unwrap().1.message, [59; 32], "by its run it is found still");
        let (number, _) = past.find(&[158; 32]).unwrap();
        past.take(number).unwrap();
        let mut streams = 0;
        while let Some(Forgotten { is_stream }) = past.forget_oldest() {
            streams += usize::from(is_stream);
        }
        assert_eq!(streams, 9, "one was taken out");
        assert_eq!((past.latest.len(), past.bytes(), past.stripped), (0, 0, 0));
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
    fn short_answers_share_pieces_of_memory_and_long_ones_have_their_own() {
        let mut piece = BytesMut::new();
        let long = Bytes::from(vec![0; PIECE / 4 + 1]);
        assert_eq!(copied(long.clone(), &mut piece).as_ptr(), long.as_ptr());
        assert_eq!(piece.capacity(), 0);
        let shorts: Vec<Bytes> = (0..20).map(|of| copied(vec![of; 1000].into(), &mut piece)).collect();
        assert!(shorts.windows(2).filter(|pair| pair[0].as_ptr().wrapping_add(1000) == pair[1].as_ptr()).count() >= 18);
        assert!(shorts.iter().zip(0..).all(|(short, of)| short == &vec![of; 1000]));
    }
}
