//! Finds the turn that a send repeats: those that run, and those that are over for less than the window.
//!
//! Bounded in bytes: if turns that are over grow over that, the oldest answers are given up before their time; that there
//! was such a turn is remembered as long as there is room for that beside a quarter of answers.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::log::Phase;
use super::past::{self, Kept, Past};
use super::shared::Turn;
use super::{Dedupe, Index, Settings, marks};
use crate::error::Error;
use crate::telemetry::metrics::TurnMetrics;

/// Turns with one index that are told apart; of more the oldest is forgotten under that index.
const MOST_ALIKE: usize = 16;
/// Turns that are over and not packed yet: their clients may still be reading.
const LATELY: usize = 64;
/// Bytes that one of those takes beside its answer.
const OVERHEAD: u64 = (size_of::<Turn>() + 256) as u64;

/// Turns with one index, the oldest first; there is seldom more than one.
type Alike = SmallVec<[Arc<Turn>; 1]>;

#[derive(Default)]
pub(super) struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Those that run and those that ended lately.
    by: HashMap<Index, Alike, RandomState>,
    /// Those that ended lately.
    lately: VecDeque<Lately>,
    /// Bytes of those.
    bytes: u64,
    /// Those that ended before.
    past: Past,
    /// So many of all are streams.
    streams: usize,
}

struct Lately {
    over: Instant,
    /// What it is counted with.
    bytes: u64,
    turn: Arc<Turn>,
}

/// A turn that is known.
enum Known {
    Live(Arc<Turn>),
    /// It is packed.
    Past(past::Number),
}

impl Inner {
    fn add(&mut self, index: Index, turn: &Arc<Turn>) {
        let alike = self.by.entry(index).or_default();
        if alike.len() == MOST_ALIKE {
            alike.remove(0);
        }
        alike.push(Arc::clone(turn));
    }

    /// Makes `turn` known by all that it is found by.
    fn add_all(&mut self, turn: &Arc<Turn>) {
        for index in Self::known_by(turn) {
            self.add(index, turn);
        }
    }

    fn remove(&mut self, turn: &Arc<Turn>) {
        for index in Self::known_by(turn) {
            if let Some(alike) = self.by.get_mut(&index) {
                alike.retain(|other| !Arc::ptr_eq(other, turn));
                if alike.is_empty() {
                    self.by.remove(&index);
                }
            }
        }
    }

    /// What `turn` is found by here. Only a stream can be gone on with, and is the newest of its conversation.
    fn known_by(turn: &Turn) -> impl Iterator<Item = Index> + '_ {
        let newest = turn.streams.then(|| turn.newest());
        turn.marks.all().chain(turn.by_run()).chain(newest)
    }

    /// Streams of its conversation that began before `turn` are not the newest turn there any more.
    fn supersede(&mut self, turn: &Turn) {
        if self.streams == 0 {
            return;
        }
        if let Some(streams) = self.by.get_mut(&turn.newest()) {
            streams.retain(|other| other.began > turn.began);
            if streams.is_empty() {
                self.by.remove(&turn.newest());
            }
        }
        self.past.supersede(&turn.newest(), turn.began);
    }

    fn newest(&self, index: &Index) -> Option<Known> {
        let live = self.by.get(index).and_then(|alike| alike.last()).map(|turn| Known::Live(Arc::clone(turn)));
        live.or_else(|| self.past.find(index).map(|(number, _)| Known::Past(number)))
    }

    /// The turn that `new` repeats.
    fn repeated(&self, new: &Turn, dedupe: Dedupe) -> Result<Option<Known>, Error> {
        let marks = &new.marks;
        if let Some(known) = marks.idempotency.as_ref().and_then(|index| self.newest(index)) {
            return if self.message(&known) == Some(marks.message) { Ok(Some(known)) } else { Err(Error::KeyReused) };
        }
        if let Some(known) = marks.otid.as_ref().and_then(|index| self.newest(index)) {
            return Ok(Some(known));
        }
        if new.is_retry {
            return Ok(self.retried(&marks.message));
        }
        if dedupe == Dedupe::IdenticalInFlight {
            let mut alike = self.by.get(&marks.message).into_iter().flatten().rev();
            let running = alike.find(|turn| turn.log.phase() != Phase::Over);
            return Ok(running.map(|turn| Known::Live(Arc::clone(turn))));
        }
        Ok(None)
    }

    /// The turn that an attempt after the first wants: the latest. Somebody who said the same twice has two turns: each
    /// retry gets one that its client has left.
    fn retried(&self, message: &Index) -> Option<Known> {
        let live = self.by.get(message).into_iter().flatten().rev();
        let live = live.map(|turn| (turn.log.is_abandoned(), turn.began, Known::Live(Arc::clone(turn))));
        let past = self.past.alike(message);
        let past = past.map(|(number, turn)| (turn.is_abandoned(), turn.began(), Known::Past(number)));
        let alike = live.chain(past).take(MOST_ALIKE);
        alike.max_by_key(|(is_abandoned, began, _)| (*is_abandoned, *began)).map(|(_, _, known)| known)
    }

    fn message(&self, known: &Known) -> Option<Index> {
        match known {
            Known::Live(turn) => Some(turn.marks.message),
            Known::Past(number) => self.past.message(*number),
        }
    }

    /// The turn itself, to be followed.
    fn turn(&mut self, known: Known) -> Option<Arc<Turn>> {
        let number = match known {
            Known::Live(turn) => return Some(turn),
            Known::Past(number) => number,
        };
        let kept = self.past.take(number)?;
        let turn = Turn::again(&kept);
        self.add_all(&turn);
        self.ended(kept.over, &turn);
        Some(turn)
    }

    fn ended(&mut self, over: Instant, turn: &Arc<Turn>) {
        let bytes = turn.log.held() + OVERHEAD;
        self.bytes += bytes;
        self.lately.push_back(Lately { over, bytes, turn: Arc::clone(turn) });
    }

    /// Packs the turn that ended first of those that ended lately. One that is still followed goes to their end.
    fn pack(&mut self) {
        let Some(Lately { over, bytes, turn }) = self.lately.pop_front() else { return };
        self.bytes -= bytes;
        match turn.keep(over) {
            Some(kept) => {
                self.remove(&turn);
                self.past.push(kept);
            }
            None => self.ended(over, &turn),
        }
    }

    /// Bytes of all answers.
    fn answers(&self) -> u64 {
        self.past.answers() + self.bytes - OVERHEAD * self.lately.len() as u64
    }

    /// The oldest answer is given up. False: there is none.
    fn give_up_an_answer(&mut self) -> bool {
        if self.past.give_up_an_answer() {
            return true;
        }
        let Some(lately) = self.lately.iter_mut().find(|lately| lately.bytes > OVERHEAD) else { return false };
        lately.turn.log.keep_nothing();
        self.bytes -= lately.bytes - OVERHEAD;
        lately.bytes = OVERHEAD;
        true
    }

    /// The oldest turn is not known any more. False: none is packed.
    fn forget_oldest(&mut self) -> bool {
        let Some(forgotten) = self.past.forget_oldest() else { return false };
        self.streams -= usize::from(forgotten.is_stream);
        true
    }

    /// Gives up an answer or forgets a turn. False: there is nothing more to be given up.
    fn make_room(&mut self, max_total: u64) -> bool {
        let may_forget = self.answers() <= max_total / 4;
        may_forget && self.forget_oldest() || self.give_up_an_answer() || self.forget_oldest()
    }

    fn expire(&mut self, now: Instant, settings: &Settings, metrics: &TurnMetrics) {
        let Settings { window, max_total, .. } = *settings;
        while self.past.has_expired(now, window) && self.forget_oldest() {}
        while let Some(Lately { over, .. }) = self.lately.front()
            && now.saturating_duration_since(*over) >= window
            && let Some(Lately { bytes, turn, .. }) = self.lately.pop_front()
        {
            self.bytes -= bytes;
            self.streams -= usize::from(turn.streams);
            self.remove(&turn);
        }
        while self.bytes + self.past.bytes() > max_total && self.make_room(max_total) {}
        let kept = self.lately.len() + self.past.answered();
        metrics.kept.set(i64::try_from(kept).unwrap_or(i64::MAX));
        metrics.log_bytes.set(i64::try_from(self.bytes + self.past.bytes()).unwrap_or(i64::MAX));
    }
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `new` known, unless it repeats a turn that is.
    pub(super) fn claim(&self, new: &Arc<Turn>, dedupe: Dedupe) -> Result<Option<Arc<Turn>>, Error> {
        let mut inner = self.lock();
        if dedupe != Dedupe::Off
            && let Some(known) = inner.repeated(new, dedupe)?
            && let Some(turn) = inner.turn(known)
        {
            return Ok(Some(turn));
        }
        inner.streams += usize::from(new.streams);
        inner.add_all(new);
        Ok(None)
    }

    /// `turn` can be found by its run, too.
    pub(super) fn learn_run(&self, turn: &Arc<Turn>, run: &str) {
        let mut inner = self.lock();
        if turn.learn_run(run) {
            inner.add(marks::run(&turn.key, run), turn);
        }
    }

    /// The turns that are over and can be repeated: what ended lately, and numbers to ask [`Registry::kept`] with.
    pub(super) fn over_by_now(&self) -> (Vec<Arc<Turn>>, impl Iterator<Item = past::Number> + use<>) {
        let inner = self.lock();
        (inner.lately.iter().map(|lately| Arc::clone(&lately.turn)).collect(), inner.past.numbers())
    }

    /// What was kept of a turn that is over.
    pub(super) fn kept(&self, number: past::Number) -> Option<Kept> {
        self.lock().past.get(number)
    }

    /// The newest turn with this index.
    pub(super) fn find(&self, index: &Index) -> Option<Arc<Turn>> {
        let mut inner = self.lock();
        let known = inner.newest(index)?;
        inner.turn(known)
    }

    /// `turn` never was: what repeats it starts anew.
    pub(super) fn forget(&self, turn: &Arc<Turn>) {
        turn.make_void();
        let mut inner = self.lock();
        inner.streams -= usize::from(turn.streams);
        inner.remove(turn);
    }

    /// `turn` is over and can be repeated for a window from now.
    pub(super) fn over(&self, turn: &Arc<Turn>, now: Instant, settings: &Settings, metrics: &TurnMetrics) {
        let mut inner = self.lock();
        if !turn.streams {
            inner.supersede(turn);
        }
        inner.ended(now, turn);
        if inner.lately.len() > LATELY {
            inner.pack();
        }
        inner.expire(now, settings, metrics);
    }

    /// Forgets what is over for longer than the window.
    pub(super) fn expire(&self, now: Instant, settings: &Settings, metrics: &TurnMetrics) {
        self.lock().expire(now, settings, metrics);
    }
}
