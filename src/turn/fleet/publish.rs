//! Tells the other gateways of a turn of this one's: its answer piece by piece as it comes, and how it ended.
//!
//! Nobody waits for it. What Redis loses is told again as far as it is still here.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{Fleet, PAUSE, TRIES, form};
use crate::store::{Appended, Piece};
use crate::turn::Index;
use crate::turn::log::{News, Phase};
use crate::turn::shared::Turn;

/// Between two attempts to tell a Redis that is away.
const LONG_PAUSE: Duration = Duration::from_millis(500);

/// Tells all of `turn`, until it is over. What Redis loses after that is told again from what is kept.
pub(super) async fn publish(fleet: Arc<Fleet>, turn: Arc<Turn>) {
    let seen = tell(&fleet, &turn).await;
    let Some(number) = turn.log.number() else { return };
    drop(turn);
    fleet.registry.told(number);
    // whoever told again after a loss in the meantime has passed it over
    if fleet.store.connected_since() != seen
        && let Some(kept) = fleet.registry.to_tell(number)
    {
        again(&fleet, &kept).await;
    }
}

/// Tells all of `turn`, until it is over or Redis is gone; since when there had been one.
async fn tell(fleet: &Arc<Fleet>, turn: &Arc<Turn>) -> Option<Instant> {
    let mut teller = Teller { fleet, turn, told: 0, is_cut: false };
    let mut seen = fleet.store.connected_since();
    let mut beats = interval(fleet.beat(turn));
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beats.tick().await;
    loop {
        let news = tokio::select! {
            biased;
            news = turn.log.news(teller.next()) => news,
            back = fleet.store.reconnected(seen) => {
                seen = Some(back);
                fleet.assure(turn).await;
                continue;
            }
            _ = beats.tick() => {
                fleet.assure(turn).await;
                continue;
            }
        };
        match news {
            // a refusal is not for giving again: whoever sends that message again asks Letta anew
            News::Pieces(Some(head), _) if head.status.is_client_error() => {
                turn.log.over().await;
                break;
            }
            News::Pieces(head, pieces) => {
                if !teller.tell(head.and_then(|head| form::head(&head)), &pieces).await {
                    let is_up = fleet.store.is_up();
                    if !is_up && turn.log.phase() == Phase::Over {
                        // told again when Redis is back
                        return seen;
                    }
                    sleep(if is_up { PAUSE } else { LONG_PAUSE }).await;
                }
            }
            News::Trimmed => teller.is_cut = true,
            News::Over => break,
        }
    }
    finish(&mut teller).await;
    seen
}

/// The last words on a turn that is over.
async fn finish(teller: &mut Teller<'_>) {
    let (fleet, turn) = (teller.fleet, teller.turn);
    if turn.is_void() {
        return forget(fleet, turn).await;
    }
    let Some(mut end) = turn.log.ended(form::end) else { return };
    for _ in 0..TRIES {
        if teller.is_cut {
            end = form::CUT;
        }
        match teller.append(&[Piece::End(end.clone())]).await {
            Some(Appended::Kept | Appended::Cut) => {
                let indexes: Vec<Index> = turn.indexes().collect();
                let _ = fleet.store.heartbeat(turn.id, &indexes).await;
                let _ = fleet.store.release(turn.id, &[turn.marks.running()]).await;
                return;
            }
            Some(Appended::Missing { .. }) => {
                fleet.assure(turn).await;
                match turn.log.news(teller.next()).await {
                    News::Pieces(head, pieces) => {
                        teller.tell(head.and_then(|head| form::head(&head)), &pieces).await;
                    }
                    News::Trimmed => teller.is_cut = true,
                    News::Over => {}
                }
            }
            None => sleep(PAUSE).await,
        }
    }
}

/// Tells once more of a turn that is over, if Redis has lost it.
pub(super) async fn again(fleet: &Fleet, turn: &Turn) {
    let indexes: Vec<Index> = turn.indexes().collect();
    if fleet.store.heartbeat(turn.id, &indexes).await != Ok(false) {
        return;
    }
    fleet.assure(turn).await;
    let mut teller = Teller { fleet, turn, told: 0, is_cut: false };
    loop {
        match turn.log.news(teller.next()).await {
            News::Pieces(head, pieces) => {
                if !teller.tell(head.and_then(|head| form::head(&head)), &pieces).await {
                    return;
                }
            }
            News::Trimmed => teller.is_cut = true,
            News::Over => break,
        }
    }
    finish(&mut teller).await;
}

/// Takes back the claim of a turn that never was.
pub(super) async fn forget(fleet: &Fleet, turn: &Turn) {
    let mut indexes: Vec<Index> = turn.indexes().collect();
    indexes.push(turn.marks.running());
    for _ in 0..TRIES {
        if fleet.store.forget(turn.id, &indexes).await.is_ok() {
            return;
        }
        sleep(PAUSE).await;
    }
}

/// How far a turn has been told.
struct Teller<'a> {
    fleet: &'a Fleet,
    turn: &'a Turn,
    /// Pieces that Redis has, the head included.
    told: u64,
    /// Pieces are gone here that were not told: no more are.
    is_cut: bool,
}

impl Teller<'_> {
    /// The number of the next piece to be told; none after those that are gone.
    fn next(&self) -> u64 {
        if self.is_cut { u64::MAX } else { self.told }
    }

    /// True if Redis has them now.
    async fn tell(&mut self, head: Option<bytes::Bytes>, pieces: &[bytes::Bytes]) -> bool {
        let pieces: Vec<Piece> =
            head.map(Piece::Head).into_iter().chain(pieces.iter().cloned().map(Piece::Data)).collect();
        match self.append(&pieces).await {
            Some(Appended::Kept) => {
                self.told += pieces.len() as u64;
                true
            }
            Some(Appended::Cut) => {
                self.is_cut = true;
                true
            }
            Some(Appended::Missing { .. }) => {
                self.fleet.assure(self.turn).await;
                true
            }
            None => false,
        }
    }

    async fn append(&mut self, pieces: &[Piece]) -> Option<Appended> {
        let Fleet { store, .. } = self.fleet;
        let appended =
            store.append(self.turn.id, self.told, pieces, self.turn.log.max(), self.turn.window).await.ok()?;
        if let Appended::Missing { from } = appended {
            self.told = from;
        }
        Some(appended)
    }
}
