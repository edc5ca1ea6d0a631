//! Finds the turn that a send repeats: those that run, and those that are over for no longer than the window, about.
//!
//! Bounded in bytes. Where room is short the oldest answers are given up first, before their window is over: that there
//! was such a turn is known still. Only when answers take no more than a quarter of the room are the oldest turns
//! forgotten, and a repeat of theirs is a new turn.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::log::{Ending, Phase, Whole};
use super::past::{self, MOST_ALIKE, Past};
use super::shared::Turn;
use super::{Dedupe, Index, Settings, beginning, marks};
use crate::error::Error;
use crate::telemetry::metrics::TurnMetrics;

/// Turns with one index; there is seldom more than one.
type Alike = SmallVec<[Arc<Turn>; 1]>;

/// An index in a table: looked for by its beginning, compared as a whole.
#[derive(PartialEq, Eq)]
struct Entered(Index);

impl Hash for Entered {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(beginning(&self.0));
    }
}

#[derive(Default)]
pub(super) struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Those that run.
    by: HashMap<Entered, Alike, RandomState>,
    /// So many of them are streams.
    streams: usize,
    /// Those that are over.
    past: Past,
}

/// A turn that a send or a client repeats, and the place at its log of one more who follows it.
pub(super) struct Repeated {
    pub turn: Arc<Turn>,
    /// None: its answer is not there any more.
    pub place: Option<usize>,
}

/// The turn is no stream.
pub(super) struct NoStream;

/// A turn that is known.
enum Known {
    Live(Arc<Turn>),
    /// It is over.
    Past(past::Number),
}

impl Inner {
    /// Of more than [`MOST_ALIKE`] with one index the oldest is forgotten under that index.
    fn add(&mut self, index: Index, turn: &Arc<Turn>) {
        let alike = self.by.entry(Entered(index)).or_default();
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
            let Entry::Occupied(mut alike) = self.by.entry(Entered(index)) else { continue };
            alike.get_mut().retain(|other| !Arc::ptr_eq(other, turn));
            if alike.get().is_empty() {
                alike.remove();
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
        if let Entry::Occupied(mut streams) = self.by.entry(Entered(turn.newest())) {
            let is_before = |other: &Arc<Turn>| other.began <= turn.began;
            streams.get().iter().filter(|other| is_before(other)).for_each(|other| other.supersede());
            streams.get_mut().retain(|other| !is_before(other));
            if streams.get().is_empty() {
                streams.remove();
            }
        }
        self.past.supersede(&turn.newest(), turn.began);
    }

    /// Those with this index that run, the latest last.
    fn running(&self, index: &Index) -> impl DoubleEndedIterator<Item = &Arc<Turn>> {
        self.by.get(&Entered(*index)).into_iter().flatten().filter(|turn| !turn.log.is_given_up())
    }

    /// The turn with this index that began last.
    fn newest(&self, index: &Index) -> Option<Known> {
        let live = self.running(index).map(|turn| (turn.began, Known::Live(Arc::clone(turn))));
        let past = self.past.find(index).map(|(number, began)| (began, Known::Past(number)));
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
            let running = self.running(&marks.message).rev().find(|turn| turn.log.phase() != Phase::Over);
            return Ok(running.map(|turn| Known::Live(Arc::clone(turn))));
        }
        Ok(None)
    }

    /// The turn that an attempt after the first wants. Somebody who said the same twice has two turns, and each retry
    /// gets one that its client has left, if there is one; of several the one that began last.
    fn retried(&self, message: &Index) -> Option<Known> {
        let live = self.running(message).rev();
        let live = live.map(|turn| (turn.log.is_abandoned(), turn.began, Known::Live(Arc::clone(turn))));
        let past = self.past.alike(message);
        let past = past.map(|(number, is_abandoned, began)| (is_abandoned, began, Known::Past(number)));
        let alike = live.chain(past).take(MOST_ALIKE);
        alike.max_by_key(|(is_abandoned, began, _)| (*is_abandoned, *began)).map(|(_, _, known)| known)
    }

    /// One more follows it. `None`: it is about to end without having been sent, and does not count.
    fn follow(&mut self, known: Known) -> Option<Repeated> {
        match known {
            Known::Live(turn) => {
                let place = turn.log.enter();
                (place.is_some() || !turn.log.is_given_up()).then_some(Repeated { turn, place })
            }
            Known::Past(number) => self.past.follow(number).map(|(turn, place)| Repeated { turn, place }),
        }
    }

    /// Gives up answers or forgets turns. False: there is nothing more to be given up.
    fn make_room(&mut self, max_total: u64) -> bool {
        let past = &mut self.past;
        let may_forget = past.answers() <= max_total / 4;
        // that of late turns is known is worth more than the bound: one that was forgotten is sent again
        may_forget && past.forget_but_last() || past.give_up_answers() || past.forget_but_last()
    }

    fn expire(&mut self, now: Instant, settings: &Settings, metrics: &TurnMetrics) {
        while self.past.has_expired(now, settings.window) {
            self.past.forget_oldest();
        }
        self.bound(settings.max_total, metrics);
    }

    fn bound(&mut self, max_total: u64, metrics: &TurnMetrics) {
        while self.past.bytes() > max_total && self.make_room(max_total) {}
        metrics.kept.set(i64::try_from(self.past.len()).unwrap_or(i64::MAX));
        self.tell_bytes(metrics);
    }

    fn tell_bytes(&self, metrics: &TurnMetrics) {
        let bytes = self.past.bytes() + self.past.followed();
        metrics.log_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `new` known, unless it repeats a turn that is. Whoever gets that one follows it.
    pub(super) fn claim(&self, new: &Arc<Turn>, dedupe: Dedupe) -> Result<Option<Repeated>, Error> {
        let mut inner = self.lock();
        if dedupe != Dedupe::Off
            && let Some(known) = inner.repeated(new, dedupe)?
            && let Some(repeated) = inner.follow(known)
        {
            return Ok(Some(repeated));
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

    /// The turns that are over by now, the oldest first.
    pub(super) fn all_over(&self) -> Vec<past::Number> {
        self.lock().past.numbers()
    }

    /// The turn of this number, if all gateways have been told of it, to be told again.
    pub(super) fn to_tell(&self, number: past::Number) -> Option<Arc<Turn>> {
        self.lock().past.to_tell(number)
    }

    /// All gateways have been told of the turn of this number.
    pub(super) fn told(&self, number: past::Number) {
        self.lock().past.told(number);
    }

    /// One who followed the turn of this number has left it. `has_all`: somebody has got all of its answer.
    pub(super) fn left(&self, number: past::Number, has_all: bool, metrics: &TurnMetrics) {
        let mut inner = self.lock();
        inner.past.left(number, has_all);
        inner.tell_bytes(metrics);
    }

    /// Follows the turn with this index that began last. An error: it is no stream.
    pub(super) fn follow_stream(&self, index: &Index) -> Result<Option<Repeated>, NoStream> {
        let mut inner = self.lock();
        let Some(known) = inner.newest(index) else { return Ok(None) };
        let is_stream = match &known {
            Known::Live(turn) => turn.streams,
            Known::Past(number) => inner.past.is_stream(*number),
        };
        if is_stream { Ok(inner.follow(known)) } else { Err(NoStream) }
    }

    /// `turn` never was: what repeats it starts anew.
    pub(super) fn forget(&self, turn: &Arc<Turn>) {
        turn.make_void();
        self.lock().remove(turn);
    }

    /// `turn` ends `now`, and can be repeated for a window from then. The answer is given back where whoever drives the
    /// turn can be given it by hand.
    pub(super) fn over(
        &self,
        turn: &Arc<Turn>,
        ending: Ending,
        now: Instant,
        settings: &Settings,
        metrics: &TurnMetrics,
    ) -> Option<Box<Whole>> {
        let mut inner = self.lock();
        if !turn.streams {
            inner.supersede(turn);
        }
        inner.remove(turn);
        let given = inner.past.push(turn, ending, now, settings);
        inner.bound(settings.max_total, metrics);
        given
    }

    /// Forgets what is over for longer than the window, and a sixteenth of it.
    pub(super) fn expire(&self, now: Instant, settings: &Settings, metrics: &TurnMetrics) {
        self.lock().expire(now, settings, metrics);
    }
}
