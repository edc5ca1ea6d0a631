//! Turns that are over, in the order of their ends: what a repeat of theirs is told.
//!
//! They lie in **chapters**, their answers one behind the other on a tape. A chapter is let go of as a whole, and so are
//! the answers of one: of a turn that names nothing, nothing is looked at again for that. Tens of thousands of turns later
//! it is in no cache any more, and to let go of its parts one by one would cost as much as all else that a gateway does
//! for a turn.

mod chapter;
mod tape;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::RandomState;
use smallvec::{SmallVec, smallvec};
use tokio::time::Instant;

use super::log::{Ending, KeptAnswer, Said, Whole};
use super::shared::Turn;
use super::{Index, Settings, beginning};
use crate::letta::routes::Sends;
use crate::telemetry::record::Exchange;
use crate::telemetry::turn::Facts;
pub(super) use chapter::More;
use chapter::{Answer, Chapter, Placed};
use tape::Tape;

/// Turns with one message that are looked at.
pub(super) const MOST_ALIKE: usize = 16;

/// A chapter is full with so many turns, or, if its list was made for more, with as many as that: up to a [`CHAPTERS`]th of
/// all that are known, and [`MOST`] of them.
const FEW: usize = 1024;
const CHAPTERS: usize = 64;
const MOST: usize = 1 << 15;
/// It is full as well once it takes so small a part of the room, its answers apart.
const PARTS: u64 = 16;
/// So small a part of the room is given up of the answers at once. By default that is as much as the tape keeps to be
/// written again: what went back to the system would have to be cleared by it before it comes again.
const ANSWER_PARTS: u64 = 64;
/// And once it has the turns of so small a part of the window: they are known for as much longer than the window.
const AGES: u32 = 16;
/// An answer of no more bytes is copied when it is given again: who reads it slowly must not keep a piece of the tape.
const SHORT: u64 = 4096;

/// Where a turn is that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number {
    /// Chapters are counted, from 0 again after the last.
    chapter: u32,
    place: u16,
}

/// What is kept of a turn, to be followed again.
pub(super) struct Kept {
    pub number: Number,
    pub message: Index,
    pub key: Arc<str>,
    pub sends: Sends,
    pub streams: bool,
    pub began: Instant,
    pub facts: Facts,
    pub exchange: Exchange,
    /// None: it is not all there, and cannot be given again.
    pub answer: Option<KeptAnswer>,
    /// Somebody has got all of it.
    pub is_delivered: bool,
    pub more: More,
}

/// The turns that are over.
#[derive(Default)]
pub(super) struct Past {
    /// The oldest first. The last one is written.
    chapters: VecDeque<Chapter>,
    /// The number of the first.
    first: u32,
    /// The stream of each conversation that is its newest turn, by the beginning of what that is found by.
    newest: HashMap<u64, Number, RandomState>,
    len: usize,
    /// Where on the tape the first answer begins that can be given again.
    kept_from: u64,
    /// Where answers begin, an [`ANSWER_PARTS`]th of the room apart: what can be given up next.
    marks: VecDeque<u64>,
    /// Bytes of all but the answers.
    rest: u64,
    /// Bytes of the answers that somebody follows: their logs are held as long.
    followed: u64,
    /// So many are streams.
    streams: usize,
    tape: Tape,
    /// The memory of a chapter that was forgotten.
    spare: Option<Chapter>,
    /// Where the fields of a head are packed.
    fields: Vec<u8>,
}

impl Past {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn streams(&self) -> usize {
        self.streams
    }

    /// Bytes of the answers that can be given again.
    pub(super) fn answers(&self) -> u64 {
        self.tape.end - self.kept_from
    }

    /// Bytes of all of it but what is kept to be written again: a chapter of turns, and a MiB of the tape at most.
    pub(super) fn bytes(&self) -> u64 {
        self.answers() + self.rest
    }

    /// Bytes of the answers that somebody follows.
    pub(super) fn followed(&self) -> u64 {
        self.followed
    }

    /// Takes up `turn`, which ends `now`. Nobody may enter its log any more. The answer is given back where whoever
    /// drives the turn can be given it by hand.
    pub(super) fn push(
        &mut self,
        turn: &Turn,
        ending: Ending,
        now: Instant,
        settings: &Settings,
    ) -> Option<Box<Whole>> {
        self.open(now, settings);
        let last = u32::try_from(self.chapters.len().saturating_sub(1)).unwrap_or(0);
        let Self { chapters, tape, fields, .. } = self;
        let chapter = chapters.back_mut()?;
        let place = u16::try_from(chapter.turns.len()).unwrap_or(u16::MAX);
        let number = Number { chapter: self.first.wrapping_add(last), place };
        let (packed, given) = turn.log.pack(ending, number, |said| write(tape, fields, &said));
        let (rest, followed) = (chapter.rest(), chapter.followed);
        let bytes = packed.answer.map_or(0, Answer::bytes);
        chapter.push(turn, now, packed);
        chapter.end = tape.end;
        tape.fetch_next(usize::try_from(bytes.min(SHORT)).unwrap_or(0));
        self.rest += chapter.rest() - rest;
        self.followed += chapter.followed - followed;
        self.len += 1;
        let marked = self.marks.back().copied().unwrap_or(self.kept_from);
        if self.tape.end - marked > settings.max_total / ANSWER_PARTS {
            self.marks.push_back(self.tape.end);
        }
        if turn.streams {
            self.streams += 1;
            self.note_newest(turn, number);
        }
        given
    }

    /// A stream is the newest turn of its conversation, unless one that ended before it began after it.
    fn note_newest(&mut self, turn: &Turn, number: Number) {
        if !turn.may_be_newest() {
            return;
        }
        let newest = turn.newest();
        if self.find_newest(&newest).is_none_or(|(_, other)| other.began <= turn.began) {
            self.newest.insert(beginning(&newest), number);
        }
    }

    /// Sees to it that there is a chapter with room for one turn more.
    fn open(&mut self, now: Instant, settings: &Settings) {
        let most = (self.len / CHAPTERS).clamp(FEW, MOST);
        let bytes = settings.max_total / PARTS;
        let age = settings.window / AGES;
        let has_room = |chapter: &Chapter| {
            let turns = &chapter.turns;
            // a long list is not made longer: it would have to be copied
            (turns.len() < FEW || turns.len() < turns.capacity().min(most))
                && chapter.used() < bytes
                && now.saturating_duration_since(chapter.began) < age
        };
        if self.chapters.back().is_some_and(has_room) {
            return;
        }
        if let Some(full) = self.chapters.back_mut() {
            self.rest -= full.rest();
            full.close();
            self.rest += full.rest();
        }
        let spare = self.spare.take().filter(|spare| spare.rest() < 2 * bytes);
        let chapter = spare.unwrap_or_else(|| Chapter::like(self.chapters.back(), now));
        self.rest += chapter.rest();
        self.chapters.push_back(chapter);
    }

    fn read(&self, answer: Answer, streams: bool) -> KeptAnswer {
        let fields = joined(self.tape.read(answer.at, answer.fields.into()));
        let mut body = self.tape.read(answer.at + u64::from(answer.fields), answer.body.into());
        // the pieces of a stream are whole events
        if streams && body.len() > 1 || !body.is_empty() && answer.bytes() <= SHORT {
            body = smallvec![joined(body)];
        }
        KeptAnswer { head: answer.status.map(|status| (status, fields)), body }
    }

    fn chapter_of(&self, number: Number) -> Option<usize> {
        usize::try_from(number.chapter.wrapping_sub(self.first)).ok()
    }

    fn placed(&self, number: Number) -> Option<(&Chapter, &Placed)> {
        let chapter = self.chapters.get(self.chapter_of(number)?)?;
        Some((chapter, chapter.turn(number.place)?))
    }

    fn chapter_mut(&mut self, number: Number) -> Option<&mut Chapter> {
        let chapter = self.chapter_of(number)?;
        self.chapters.get_mut(chapter)
    }

    fn kept(&self, number: Number) -> Option<Kept> {
        let (chapter, placed) = self.placed(number)?;
        let Placed { message, streams, began, is_delivered, .. } = *placed;
        let told = chapter.told(number.place)?;
        let sends = told.sends;
        let (facts, exchange) = chapter.facts(placed, told);
        let key = Arc::clone(chapter.key(told)?);
        let answer = told.answer().filter(|answer| answer.at >= self.kept_from || answer.bytes() == 0);
        let answer = answer.map(|answer| self.read(answer, streams));
        let more = chapter.more(placed).cloned().unwrap_or_default();
        Some(Kept { number, message, key, sends, streams, began, facts, exchange, answer, is_delivered, more })
    }

    /// The turn of this number and the place of one more who follows it. `None` for the place: its answer is not there
    /// any more.
    pub(super) fn follow(&mut self, number: Number) -> Option<(Arc<Turn>, Option<usize>)> {
        let turn = Turn::again(self.kept(number)?);
        let place = turn.log.enter();
        if place.is_some()
            && let Some(chapter) = self.chapter_mut(number)
        {
            let more = chapter.entered(number.place);
            self.followed += more;
        }
        Some((turn, place))
    }

    /// One who followed the turn of this number has left it. `has_all`: somebody has got all of its answer.
    pub(super) fn left(&mut self, number: Number, has_all: bool) {
        if let Some(chapter) = self.chapter_mut(number) {
            let less = chapter.left(number.place, has_all);
            self.followed -= less;
        }
    }

    /// All gateways have been told of the turn of this number.
    pub(super) fn told(&mut self, number: Number) {
        if let Some(more) = self.chapter_mut(number).and_then(|chapter| chapter.more_mut(number.place)) {
            more.is_told = true;
        }
    }

    /// The turn of this number, if all gateways have been told of it, to be told again.
    pub(super) fn to_tell(&self, number: Number) -> Option<Arc<Turn>> {
        let (chapter, placed) = self.placed(number)?;
        let is_told = chapter.more(placed).is_some_and(|more| more.is_told);
        if is_told { self.kept(number).map(Turn::again) } else { None }
    }

    pub(super) fn message(&self, number: Number) -> Option<&Index> {
        self.placed(number).map(|(_, placed)| &placed.message)
    }

    pub(super) fn is_stream(&self, number: Number) -> bool {
        self.placed(number).is_some_and(|(_, placed)| placed.streams)
    }

    /// All numbers there are, the oldest first.
    pub(super) fn numbers(&self) -> Vec<Number> {
        let places = |(chapter, turns): (u32, usize)| {
            (0..u16::try_from(turns).unwrap_or(u16::MAX)).map(move |place| Number { chapter, place })
        };
        self.numbered().map(|(number, chapter)| (number, chapter.turns.len())).flat_map(places).collect()
    }

    fn numbered(&self) -> impl DoubleEndedIterator<Item = (u32, &Chapter)> {
        let number = |(at, chapter)| (self.first.wrapping_add(u32::try_from(at).unwrap_or(0)), chapter);
        self.chapters.iter().enumerate().map(number)
    }

    /// The latest turn with this name, and when it began.
    pub(super) fn find(&self, name: &Index) -> Option<(Number, Instant)> {
        let latest = || {
            let mut chapters = self.numbered().rev();
            chapters.find_map(|(number, chapter)| Some(Number { chapter: number, place: chapter.find(name)? }))
        };
        let number = self.find_newest(name).map(|(number, _)| number).or_else(latest)?;
        self.placed(number).map(|(_, placed)| (number, placed.began))
    }

    fn find_newest(&self, newest: &Index) -> Option<(Number, &Placed)> {
        let number = *self.newest.get(&beginning(newest))?;
        let (chapter, placed) = self.placed(number)?;
        chapter.more(placed).is_some_and(|more| more.newest == Some(*newest)).then_some((number, placed))
    }

    /// The turns with this message, the latest first, [`MOST_ALIKE`] of them at most: where each is, whether it is
    /// abandoned, and when it began.
    pub(super) fn alike<'a>(&'a self, message: &'a Index) -> impl Iterator<Item = (Number, bool, Instant)> {
        let in_chapter = |(number, chapter): (u32, &'a Chapter)| {
            let placed = chapter.alike(message).filter_map(|place| Some((place, chapter.turn(place)?)));
            placed.map(move |(place, turn)| (Number { chapter: number, place }, turn.is_abandoned(), turn.began))
        };
        self.numbered().rev().flat_map(in_chapter).take(MOST_ALIKE)
    }

    /// The latest stream of a conversation is not the newest turn there any more, if it began before.
    pub(super) fn supersede(&mut self, newest: &Index, began: Instant) {
        if self.find_newest(newest).is_some_and(|(_, placed)| placed.began <= began) {
            self.newest.remove(&beginning(newest));
        }
    }

    /// The oldest answers are given up, a part of the room or all there are. False: there are none.
    pub(super) fn give_up_answers(&mut self) -> bool {
        let has_any = self.answers() > 0;
        self.keep_from(self.marks.front().copied().unwrap_or(self.tape.end));
        has_any
    }

    fn keep_from(&mut self, from: u64) {
        self.kept_from = self.kept_from.max(from);
        while self.marks.front().is_some_and(|mark| *mark <= self.kept_from) {
            self.marks.pop_front();
        }
        self.tape.free_before(self.kept_from);
    }

    /// The turns of the oldest chapter are not known any more, unless it is the last. False: it is.
    pub(super) fn forget_but_last(&mut self) -> bool {
        self.chapters.len() > 1 && self.forget_oldest()
    }

    /// The turns of the oldest chapter are not known any more. False: there is none.
    pub(super) fn forget_oldest(&mut self) -> bool {
        let Some(chapter) = self.chapters.pop_front() else { return false };
        for newest in chapter.more.iter().filter_map(|more| more.newest) {
            let newest = beginning(&newest);
            if self.newest.get(&newest).is_some_and(|number| number.chapter == self.first) {
                self.newest.remove(&newest);
            }
        }
        self.first = self.first.wrapping_add(1);
        self.len -= chapter.turns.len();
        self.streams -= chapter.streams;
        self.rest -= chapter.rest();
        self.followed -= chapter.followed;
        self.keep_from(chapter.end);
        if self.chapters.is_empty() {
            (self.spare, self.tape.spare) = (None, Vec::new());
        } else {
            self.spare = Some(chapter.emptied());
        }
        true
    }

    /// All of the oldest chapter ended so long before `now`.
    pub(super) fn has_expired(&self, now: Instant, window: Duration) -> bool {
        self.chapters.front().is_some_and(|chapter| now.saturating_duration_since(chapter.until) >= window)
    }
}

/// In one piece.
fn joined(pieces: SmallVec<[Bytes; 1]>) -> Bytes {
    match &pieces[..] {
        [piece] if piece.len() as u64 > SHORT => piece.clone(),
        pieces => Bytes::from(pieces.concat()),
    }
}

/// Writes what was said to the tape.
fn write(tape: &mut Tape, fields: &mut Vec<u8>, said: &Said<'_>) -> Option<Answer> {
    fields.clear();
    said.pack_head(fields);
    let body: usize = said.body().map(Bytes::len).sum();
    // what a log holds is shorter
    let (fields_length, body) = (fields.len().try_into().ok()?, body.try_into().ok()?);
    let answer = Answer { status: said.status(), at: tape.end, fields: fields_length, body };
    tape.write(fields);
    said.body().for_each(|piece| tape.write(piece));
    Some(answer)
}
