//! Finds the turn that a send repeats: those that run, and those that are over for less than the window.
//!
//! Bounded in bytes: if the answers that are kept grow over that, the oldest are given up before their time; that there
//! was such a turn is remembered as long as there is room for that.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::log::Phase;
use super::shared::Turn;
use super::{Dedupe, Index, marks};
use crate::error::Error;
use crate::telemetry::metrics::TurnMetrics;

/// Turns with one index that are told apart; of more the oldest is forgotten under that index.
const MOST_ALIKE: usize = 16;
/// Bytes that a turn takes beside its answer.
const OVERHEAD: u64 = 2048;

/// Turns with one index, the oldest first; there is seldom more than one.
type Alike = SmallVec<[Arc<Turn>; 1]>;

#[derive(Default)]
pub(super) struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    by: HashMap<Index, Alike, RandomState>,
    /// Turns that are over, since when, and the bytes they are counted with.
    over: VecDeque<(Instant, u64, Arc<Turn>)>,
    /// So many of them, the oldest, have given up their answers: they are known still, that nothing is sent twice.
    stripped: usize,
    bytes: u64,
}

impl Inner {
    fn add(&mut self, index: Index, turn: &Arc<Turn>) {
        let alike = self.by.entry(index).or_default();
        if alike.len() == MOST_ALIKE {
            alike.remove(0);
        }
        alike.push(Arc::clone(turn));
    }

    fn remove(&mut self, turn: &Arc<Turn>) {
        // as it was made known: only a stream is among the newest
        for index in turn.indexes().filter(|index| turn.streams || *index != turn.newest()) {
            if let Some(alike) = self.by.get_mut(&index) {
                alike.retain(|other| !Arc::ptr_eq(other, turn));
                if alike.is_empty() {
                    self.by.remove(&index);
                }
            }
        }
    }

    /// Streams of its conversation that began before `turn` are not the newest turn there any more.
    fn supersede(&mut self, turn: &Turn) {
        if let Some(streams) = self.by.get_mut(&turn.newest()) {
            streams.retain(|other| other.began > turn.began);
            if streams.is_empty() {
                self.by.remove(&turn.newest());
            }
        }
    }

    fn newest(&self, index: &Index) -> Option<&Arc<Turn>> {
        self.by.get(index)?.last()
    }

    /// The turn that `new` repeats.
    fn repeated(&self, new: &Turn, dedupe: Dedupe) -> Result<Option<&Arc<Turn>>, Error> {
        let marks = &new.marks;
        if let Some(known) = marks.idempotency.as_ref().and_then(|index| self.newest(index)) {
            return if known.marks.message == marks.message { Ok(Some(known)) } else { Err(Error::KeyReused) };
        }
        if let Some(known) = marks.otid.as_ref().and_then(|index| self.newest(index)) {
            return Ok(Some(known));
        }
        let Some(alike) = self.by.get(&marks.message) else { return Ok(None) };
        if new.is_retry {
            // somebody who said the same twice has two turns: each retry gets one that its client has left
            let abandoned = alike.iter().rev().find(|turn| turn.log.is_abandoned());
            return Ok(abandoned.or(alike.last()));
        }
        if dedupe == Dedupe::IdenticalInFlight {
            return Ok(alike.iter().rev().find(|turn| turn.log.phase() != Phase::Over));
        }
        Ok(None)
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
        {
            return Ok(Some(Arc::clone(known)));
        }
        for index in new.marks.all() {
            inner.add(index, new);
        }
        // only a stream can be gone on with
        if new.streams {
            inner.add(new.newest(), new);
        }
        Ok(None)
    }

    /// `turn` can be found by its run, too.
    pub(super) fn learn_run(&self, turn: &Arc<Turn>, run: &str) {
        let mut inner = self.lock();
        if turn.learn_run(run) {
            inner.add(marks::run(&turn.key, run), turn);
        }
    }

    /// The turns that are over and can be repeated, the oldest first.
    pub(super) fn kept(&self) -> Vec<Arc<Turn>> {
        self.lock().over.iter().map(|(_, _, turn)| Arc::clone(turn)).collect()
    }

    /// The newest turn with this index.
    pub(super) fn find(&self, index: &Index) -> Option<Arc<Turn>> {
        self.lock().newest(index).map(Arc::clone)
    }

    /// `turn` never was: what repeats it starts anew.
    pub(super) fn forget(&self, turn: &Arc<Turn>) {
        turn.make_void();
        self.lock().remove(turn);
    }

    /// `turn` is over and can be repeated for a window from now.
    pub(super) fn over(&self, turn: &Arc<Turn>, now: Instant, window: Duration, max_total: u64, metrics: &TurnMetrics) {
        let mut inner = self.lock();
        if !turn.streams {
            inner.supersede(turn);
        }
        let bytes = turn.log.held() + OVERHEAD;
        inner.bytes += bytes;
        inner.over.push_back((now, bytes, Arc::clone(turn)));
        expire(&mut inner, now, window, max_total, metrics);
    }

    /// Forgets what is over for longer than the window.
    pub(super) fn expire(&self, now: Instant, window: Duration, max_total: u64, metrics: &TurnMetrics) {
        expire(&mut self.lock(), now, window, max_total, metrics);
    }
}

fn expire(inner: &mut Inner, now: Instant, window: Duration, max_total: u64, metrics: &TurnMetrics) {
    while inner.bytes > max_total
        && let Some((_, bytes, turn)) = inner.over.get_mut(inner.stripped)
    {
        inner.bytes -= bytes.saturating_sub(OVERHEAD);
        *bytes = OVERHEAD;
        turn.log.keep_nothing();
        inner.stripped += 1;
    }
    while let Some((over, bytes, turn)) = inner.over.front()
        && (inner.bytes > max_total || now.saturating_duration_since(*over) >= window)
    {
        let (bytes, turn) = (*bytes, Arc::clone(turn));
        inner.remove(&turn);
        inner.bytes -= bytes;
        inner.over.pop_front();
        inner.stripped = inner.stripped.saturating_sub(1);
    }
    metrics.kept.set(i64::try_from(inner.over.len()).unwrap_or(i64::MAX));
    metrics.log_bytes.set(i64::try_from(inner.bytes).unwrap_or(i64::MAX));
}
