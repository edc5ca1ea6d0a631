//! Finds the turn that a send repeats: those that run, and those that are over for less than the window.
//!
//! Bounded in bytes. Where room is short the oldest answers are given up first, before their window is over: that there
//! was such a turn is known still. Only when answers take no more than a quarter of the room are the oldest turns
//! forgotten, and a repeat of theirs is a new turn.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::log::Phase;
use super::past::{self, MOST_ALIKE, Past};
use super::shared::Turn;
use super::{Dedupe, Index, Settings, marks};
use crate::error::Error;
use crate::telemetry::metrics::TurnMetrics;

/// About so many turns that are over are not packed yet, and those that somebody still has a part in.
const LATELY: usize = 16;
/// Bytes that one of those takes beside its answer; the maps' share is a guess.
const OVERHEAD: u64 = (size_of::<Turn>() + 256) as u64;

/// Turns with one index; there is seldom more than one.
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
    lately_bytes: u64,
    /// Those that ended before.
    past: Past,
    /// So many of `by` are streams.
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
    /// Of more than [`MOST_ALIKE`] with one index the oldest is forgotten under that index.
    fn add(&mut self, index: Index, turn: &Arc<Turn>) {
        let alike = self.by.entry(index).or_default();
        if alike.len() == MOST_ALIKE {
            let oldest = alike.remove(0);
            if oldest.may_be_newest() && oldest.newest() == index {
                oldest.supersede();
            }
        }
        alike.push(Arc::clone(turn));
    }

    /// Makes `turn` known by all that it is found by.
    fn add_all(&mut self, turn: &Arc<Turn>) {
        self.streams += usize::from(turn.streams);
        for index in Self::known_by(turn) {
            self.add(index, turn);
        }
    }

    fn remove(&mut self, turn: &Arc<Turn>) {
        self.streams -= usize::from(turn.streams);
        for index in Self::known_by(turn) {
            if let Some(alike) = self.by.get_mut(&index) {
                alike.retain(|other| !Arc::ptr_eq(other, turn));
                if alike.is_empty() {
                    self.by.remove(&index);
                }
            }
        }
    }

    /// What `turn` is found by here.
    fn known_by(turn: &Turn) -> impl Iterator<Item = Index> + '_ {
        let newest = turn.may_be_newest().then(|| turn.newest());
        turn.marks.all().chain(turn.by_run()).chain(newest)
    }

    /// Streams of its conversation that began before `turn` are not the newest turn there any more.
    fn supersede(&mut self, turn: &Turn) {
        if self.streams + self.past.streams() == 0 {
            return;
        }
        if let Some(streams) = self.by.get_mut(&turn.newest()) {
            let is_before = |other: &Arc<Turn>| other.began <= turn.began;
            streams.iter().filter(|other| is_before(other)).for_each(|other| other.supersede());
            streams.retain(|other| !is_before(other));
            if streams.is_empty() {
                self.by.remove(&turn.newest());
            }
        }
        self.past.supersede(&turn.newest(), turn.began);
    }

    /// The turn with this index that began last.
    fn newest(&self, index: &Index) -> Option<Known> {
        let live = self.by.get(index).into_iter().flatten().map(|turn| (turn.began, Known::Live(Arc::clone(turn))));
        let past = self.past.find(index).map(|(number, turn)| (turn.began(), Known::Past(number)));
        live.chain(past).max_by_key(|(began, _)| *began).map(|(_, known)| known)
    }

    /// The turn that `new` repeats.
    fn repeated(&self, new: &Turn, dedupe: Dedupe) -> Result<Option<Known>, Error> {
        let marks = &new.marks;
        if let Some(known) = marks.idempotency.as_ref().and_then(|index| self.newest(index)) {
            let is_same = match &known {
                Known::Live(turn) => turn.marks.message == marks.message,
                Known::Past(number) => self.past.message(*number) == Some(&marks.message),
            };
            return if is_same { Ok(Some(known)) } else { Err(Error::KeyReused) };
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

    /// The turn that an attempt after the first wants. Somebody who said the same twice has two turns, and each retry
    /// gets one that its client has left, if there is one; of several the one that began last.
    fn retried(&self, message: &Index) -> Option<Known> {
        let live = self.by.get(message).into_iter().flatten().rev();
        let live = live.map(|turn| (turn.log.is_abandoned(), turn.began, Known::Live(Arc::clone(turn))));
        let past = self.past.alike(message);
        let past = past.map(|(number, turn)| (turn.is_abandoned(), turn.began(), Known::Past(number)));
        let alike = live.chain(past).take(MOST_ALIKE);
        alike.max_by_key(|(is_abandoned, began, _)| (*is_abandoned, *began)).map(|(_, _, known)| known)
    }

    /// The turn itself, to be followed.
    fn turn(&mut self, known: Known) -> Option<Arc<Turn>> {
        match known {
            Known::Live(turn) => Some(turn),
            Known::Past(number) => self.past.turn(number),
        }
    }

    fn push_lately(&mut self, over: Instant, turn: Arc<Turn>) {
        let bytes = turn.log.held() + OVERHEAD;
        self.lately_bytes += bytes;
        self.lately.push_back(Lately { over, bytes, turn });
    }

    fn pop_lately(&mut self) -> Option<(Instant, Arc<Turn>)> {
        let Lately { over, bytes, turn } = self.lately.pop_front()?;
        self.lately_bytes -= bytes;
        Some((over, turn))
    }

    /// Packs the turn that ended first of those that ended lately. One that somebody has a part in goes to their end.
    fn pack(&mut self) {
        let Some((over, turn)) = self.pop_lately() else { return };
        let has_others = Arc::strong_count(&turn) > 1 + Self::known_by(&turn).count();
        match (!has_others).then(|| turn.keep(over)).flatten() {
            Some(kept) => {
                self.remove(&turn);
                self.past.push(kept);
            }
            None => self.push_lately(over, turn),
        }
    }

    /// Bytes of all answers.
    fn answers(&self) -> u64 {
        self.past.answers() + self.lately_bytes - OVERHEAD * self.lately.len() as u64
    }

    /// The oldest answer is given up. False: there is none.
    fn give_up_an_answer(&mut self) -> bool {
        if self.past.give_up_an_answer() {
            return true;
        }
        // more of them than usual are there only as long as they are followed, and then this would not help
        let lately = self.lately.iter_mut().take(2 * LATELY).find(|lately| lately.bytes > OVERHEAD);
        let Some(lately) = lately else { return false };
        lately.turn.log.keep_nothing();
        self.lately_bytes -= lately.bytes - OVERHEAD;
        lately.bytes = OVERHEAD;
        true
    }

    /// Gives up an answer or forgets a turn. False: there is nothing more to be given up.
    fn make_room(&mut self, max_total: u64) -> bool {
        let may_forget = self.answers() <= max_total / 4;
        let is_too_much_without = self.bytes() - self.answers() > max_total;
        may_forget && self.past.forget_oldest()
            || self.give_up_an_answer()
            || is_too_much_without && self.past.forget_oldest()
    }

    fn bytes(&self) -> u64 {
        self.lately_bytes + self.past.bytes()
    }

    fn expire(&mut self, now: Instant, settings: &Settings, metrics: &TurnMetrics) {
        let Settings { window, max_total, .. } = *settings;
        while self.past.has_expired(now, window) {
            self.past.forget_oldest();
        }
        while self.lately.front().is_some_and(|lately| now.saturating_duration_since(lately.over) >= window)
            && let Some((_, turn)) = self.pop_lately()
        {
            self.remove(&turn);
        }
        while self.bytes() > max_total && self.make_room(max_total) {}
        let known = self.lately.len() + self.past.len();
        metrics.kept.set(i64::try_from(known).unwrap_or(i64::MAX));
        metrics.log_bytes.set(i64::try_from(self.bytes()).unwrap_or(i64::MAX));
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

    /// The turns that are over and known by now, the oldest first: numbers to ask [`Registry::packed`] with, and what
    /// ended lately.
    pub(super) fn all_over(&self) -> (impl Iterator<Item = past::Number> + use<>, Vec<Arc<Turn>>) {
        let inner = self.lock();
        (inner.past.numbers(), inner.lately.iter().map(|lately| Arc::clone(&lately.turn)).collect())
    }

    /// A copy of the packed turn of this number, if it is still known.
    pub(super) fn packed(&self, number: past::Number) -> Option<Arc<Turn>> {
        self.lock().past.copy(number, &Arc::default())
    }

    /// The turn with this index that began last.
    pub(super) fn find(&self, index: &Index) -> Option<Arc<Turn>> {
        let mut inner = self.lock();
        let known = inner.newest(index)?;
        inner.turn(known)
    }

    /// `turn` never was: what repeats it starts anew.
    pub(super) fn forget(&self, turn: &Arc<Turn>) {
        turn.make_void();
        self.lock().remove(turn);
    }

    /// `turn` is over and can be repeated for a window from now.
    pub(super) fn over(&self, turn: &Arc<Turn>, now: Instant, settings: &Settings, metrics: &TurnMetrics) {
        let mut inner = self.lock();
        if !turn.streams {
            inner.supersede(turn);
        }
        inner.push_lately(now, Arc::clone(turn));
        // two, so that those that could not be packed do not become more and more
        for _ in 0..2 {
            if inner.lately.len() > LATELY {
                inner.pack();
            }
        }
        inner.expire(now, settings, metrics);
    }

    /// Forgets what is over for longer than the window.
    pub(super) fn expire(&self, now: Instant, settings: &Settings, metrics: &TurnMetrics) {
        self.lock().expire(now, settings, metrics);
    }
}
