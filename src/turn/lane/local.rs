//! The lanes of this process. A lane is there as long as somebody is in it; an idle one costs nothing.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use tokio::sync::oneshot;

use crate::turn::marks::Target;

#[derive(Default)]
pub(super) struct Lanes {
    /// Who waits for each lane that is held, in the order of coming.
    held: Mutex<HashMap<Target, VecDeque<Waiter>, RandomState>>,
}

struct Waiter {
    ticket: u64,
    bell: oneshot::Sender<()>,
    /// Is told how many are served first, the holder included, whenever that changes.
    ahead: Box<dyn Fn(u32) + Send>,
}

/// Tells all of a row from `place` on where they are now.
fn tell(row: &VecDeque<Waiter>, place: usize) {
    for (ahead, waiter) in (1..).zip(row).skip(place) {
        (waiter.ahead)(ahead);
    }
}

/// What came of entering a lane.
pub(super) enum Entered {
    Held(Held),
    Waits(Ticket),
    Full { waiting: u32 },
}

/// The lane is its holder's until this is dropped.
pub(super) struct Held {
    lanes: Arc<Lanes>,
    /// None: it is handed on.
    lane: Option<Target>,
}

/// A place in the row.
pub(super) struct Ticket {
    lanes: Arc<Lanes>,
    lane: Target,
    ticket: u64,
    bell: oneshot::Receiver<()>,
}

impl Lanes {
    fn lock(&self) -> MutexGuard<'_, HashMap<Target, VecDeque<Waiter>, RandomState>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lane, if it is free.
    pub(super) fn enter_free(self: &Arc<Self>, lane: &Target) -> Option<Held> {
        match self.lock().entry(lane.clone()) {
            Entry::Vacant(vacant) => vacant.insert(VecDeque::new()),
            Entry::Occupied(_) => return None,
        };
        Some(Held { lanes: Arc::clone(self), lane: Some(lane.clone()) })
    }

    /// `ahead` is told how many are served first, the holder included, for as long as the lane is waited for.
    pub(super) fn enter(
        self: &Arc<Self>,
        lane: &Target,
        max_waiting: u32,
        ahead: impl Fn(u32) + Send + 'static,
    ) -> Entered {
        let mut held = self.lock();
        let row = match held.entry(lane.clone()) {
            Entry::Vacant(vacant) => {
                vacant.insert(VecDeque::new());
                return Entered::Held(Held { lanes: Arc::clone(self), lane: Some(lane.clone()) });
            }
            Entry::Occupied(row) => row.into_mut(),
        };
        let waiting = u32::try_from(row.len()).unwrap_or(u32::MAX);
        if waiting >= max_waiting {
            return Entered::Full { waiting };
        }
        let ticket = row.back().map_or(0, |last| last.ticket + 1);
        let (sender, bell) = oneshot::channel();
        row.push_back(Waiter { ticket, bell: sender, ahead: Box::new(ahead) });
        tell(row, row.len() - 1);
        Entered::Waits(Ticket { lanes: Arc::clone(self), lane: lane.clone(), ticket, bell })
    }

    /// The lane is the next one's.
    fn hand_on(&self, lane: Target) {
        let mut held = self.lock();
        let Entry::Occupied(mut row) = held.entry(lane) else { return };
        while let Some(next) = row.get_mut().pop_front() {
            if next.bell.send(()).is_ok() {
                tell(row.get(), 0);
                return;
            }
        }
        row.remove();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(lane) = self.lane.take() {
            self.lanes.hand_on(lane);
        }
    }
}

impl Ticket {
    /// Ready when the lane is this one's.
    pub(super) async fn wait(mut self) -> Held {
        // an error cannot be: whoever takes the bell out of the row rings it
        let _ = (&mut self.bell).await;
        Held { lanes: Arc::clone(&self.lanes), lane: Some(self.lane.clone()) }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.bell.close();
        // rung, and nobody heard it
        if self.bell.try_recv().is_ok() {
            self.lanes.hand_on(self.lane.clone());
            return;
        }
        let mut held = self.lanes.lock();
        let Some(row) = held.get_mut(&self.lane) else { return };
        if let Some(place) = row.iter().position(|waiter| waiter.ticket == self.ticket) {
            row.remove(place);
            tell(row, place);
        }
    }
}

#[cfg(test)]
impl Lanes {
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::FutureExt as _;

    use super::*;

    fn lane() -> Target {
        Target::Agent("agent-1".into())
    }

    fn enter(lanes: &Arc<Lanes>, lane: &Target, max_waiting: u32) -> (Entered, Arc<AtomicU32>) {
        let ahead = Arc::new(AtomicU32::new(0));
        let told = Arc::clone(&ahead);
        (lanes.enter(lane, max_waiting, move |ahead| told.store(ahead, Ordering::Relaxed)), ahead)
    }

    fn held(lanes: &Arc<Lanes>) -> Held {
        match enter(lanes, &lane(), 16).0 {
            Entered::Held(held) => held,
            _ => panic!("the lane is not free"),
        }
    }

    fn waits(lanes: &Arc<Lanes>) -> (Ticket, Arc<AtomicU32>) {
        match enter(lanes, &lane(), 16) {
            (Entered::Waits(ticket), ahead) => (ticket, ahead),
            _ => panic!("nothing to wait for"),
        }
    }

    fn told(ahead: &[&AtomicU32]) -> Vec<u32> {
        ahead.iter().map(|ahead| ahead.load(Ordering::Relaxed)).collect()
    }

    #[tokio::test]
    async fn who_comes_first_is_served_first() {
        let lanes = Arc::new(Lanes::default());
        let first = held(&lanes);
        let ((second, to_second), (third, to_third)) = (waits(&lanes), waits(&lanes));
        assert_eq!(told(&[&to_second, &to_third]), [1, 2]);
        let (mut second, mut third) = (Box::pin(second.wait()), Box::pin(third.wait()));
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        assert!((&mut third).now_or_never().is_none());
        assert_eq!(told(&[&to_third]), [1], "it is told that the row has moved on");
        drop((&mut second).now_or_never().unwrap());
        drop(third.now_or_never().unwrap());
        assert_eq!(lanes.count(), 0, "an idle lane is kept");
    }

    #[tokio::test]
    async fn who_leaves_the_row_holds_up_nobody() {
        let lanes = Arc::new(Lanes::default());
        let first = held(&lanes);
        let ((second, _), (third, to_third), (fourth, to_fourth)) = (waits(&lanes), waits(&lanes), waits(&lanes));
        drop(second);
        assert_eq!(told(&[&to_third, &to_fourth]), [1, 2]);
        drop(first);
        // the lane is the third's already, and it leaves without having heard of it
        drop(third);
        assert!(fourth.wait().now_or_never().is_some());
        assert_eq!(lanes.count(), 0);
    }

    #[tokio::test]
    async fn a_full_row_takes_nobody_and_others_lanes_are_free() {
        let lanes = Arc::new(Lanes::default());
        let _first = held(&lanes);
        let _second = waits(&lanes);
        assert!(matches!(enter(&lanes, &lane(), 1).0, Entered::Full { waiting: 1 }));
        assert!(matches!(enter(&lanes, &lane(), 2).0, Entered::Waits(_)));
        assert!(matches!(enter(&lanes, &Target::Agent("agent-2".into()), 0).0, Entered::Held(_)));
    }
}
