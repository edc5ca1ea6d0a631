//! Turns and lanes in Redis, shared by all gateways that use the same Redis and prefix.
//!
//! Every call is one script, run as one step by Redis' own clock. It can be made again after its reply was lost: the
//! same call for the same turn changes nothing the second time. No call waits longer than its budget, and none for a
//! connection. Every key has a time to live, so that nothing is left of gateways that are gone. Redis must not evict
//! keys that have not expired (`maxmemory-policy noeviction`): a lane that is evicted is a lane that is free.
//!
//! # Where keys lie
//!
//! All keys of one call are in one hash slot, so that the scripts run on a Redis Cluster as well. What belongs to a turn lies under the first two bytes of its id, which come from the tag that the id
//! was made with: `{ab12}`. Turns that are found by the same indexes are made with the same tag, and an index is looked
//! for under its tag: e.g. the digest of the client's key for all that it sends, or an index itself as its own tag, if
//! it stands alone. All lanes lie in one slot, `{all}`, beside the epoch that guards them; they are small. In a cluster the
//! epoch is of the primary that has them; whatever another one has lost is told to it again, because a connection to it
//! that breaks breaks the whole.
//!
//! # When Redis comes back empty
//!
//! The epoch is a key that every gateway sees to before it uses a connection, and every second. If it is missing, or of
//! another server, Redis has started again or lost its data: it is set anew, and lanes are given out only after
//! [`Timing::grace`]. Until then holders take back what is theirs with [`SharedTurns::lane_renew`], which every gateway
//! does as soon as [`SharedTurns::reconnected`] tells. A Redis that has been up for longer than the grace, without an
//! epoch, is taken for a new one by a gateway that reaches it with its very first attempt.

mod lanes;
mod logs;
mod script;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, Value, cmd};
use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::LONGEST_BUDGET;
use super::client::Client;
use super::link::{Link, Probe, keep};
use super::script::Call;
use crate::store::{Claim, Found, Index, LONGEST_NOTE, MOST_FOUND, RedisSettings, StoreError, Timing, TurnId};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::RedisLink;
use script::{ALSO, CLAIM, EPOCH, RELEASE, Reply};

/// Calls that may wait for replies at once.
const CALLS: usize = 4096;
/// Appends that may wait for replies at once; each holds pieces.
const APPENDS: usize = 256;
/// Time budget of a call at least: what is given up here is not a value that Letta can be asked for instead.
const LEAST_BUDGET: Duration = Duration::from_millis(250);

/// What gateways share of turns.
pub struct SharedTurns {
    link: Arc<Link>,
    keeper: JoinHandle<()>,
    prefix: Box<str>,
    budget: Duration,
    timing: Timing,
    calls: Semaphore,
    appends: Semaphore,
    metrics: Arc<Metrics>,
}

impl SharedTurns {
    pub(super) fn open(client: Client, settings: &RedisSettings, timing: Timing, metrics: Arc<Metrics>) -> Self {
        let link = Arc::new(Link::new(RedisLink::Turns, &metrics));
        let budget = settings.timeout.max(LEAST_BUDGET);
        let epoch = epoch_key(&settings.prefix);
        let epoch = |is_again: u8| -> Cmd {
            let mut command = cmd("EVAL");
            command.arg(EPOCH).arg(1).arg(&epoch).arg(milliseconds(timing.grace)).arg(is_again);
            command
        };
        let probe = Probe { first: epoch(0), again: epoch(1) };
        let keeper = tokio::spawn(keep(Arc::clone(&link), client, probe, budget, CALLS + APPENDS));
        Self {
            link,
            keeper,
            prefix: settings.prefix.as_str().into(),
            budget,
            timing,
            calls: Semaphore::new(CALLS),
            appends: Semaphore::new(APPENDS),
            metrics,
        }
    }

    pub fn is_up(&self) -> bool {
        self.link.is_up()
    }

    /// Waits until there is a connection; false if there is none `patience` after the last one was lost.
    pub async fn is_back(&self, patience: Duration) -> bool {
        let Some(lost) = self.link.down_since() else { return true };
        timeout_at(lost + patience, self.link.connected_after(Some(lost))).await.is_ok() || self.is_up()
    }

    /// When the connection that is up now was made.
    pub fn connected_since(&self) -> Option<Instant> {
        self.link.connected_since()
    }

    /// Waits until a connection has been made later than `seen`, and tells when: what gateways know and Redis may have
    /// lost must be told to it now. `None`: the first one, too. None is missed if `seen` is what the last call gave.
    pub async fn reconnected(&self, seen: Option<Instant>) -> Instant {
        self.link.connected_after(seen).await
    }

    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// A new turn's name; `tag` says beside what it lies in Redis (see the module).
    pub fn turn_id(tag: &Index) -> Result<TurnId, StoreError> {
        let mut turn = TurnId::default();
        // two turns of one name would be one
        getrandom::fill(&mut turn).map_err(|_| StoreError::Down)?;
        let [first, second, ..] = *tag;
        let [home, beside, ..] = &mut turn;
        (*home, *beside) = (first, second);
        Ok(turn)
    }

    /// Makes all indexes this turn's if none of `exclusive` is another's, each with what stands beside it and for
    /// `window`; its owner is alive from now on. Of those who claim the same exclusive index, one gets it. A `latest`
    /// index is the newest turn's; the three before are still found by it ([`MOST_FOUND`]).
    ///
    /// The indexes lie under the tag the turn's id was made with. After an error the turn may or may not have them: the
    /// same claim made again tells, and [`forget`](Self::forget) takes it back.
    pub async fn claim(
        &self,
        turn: TurnId,
        exclusive: &[(Index, Bytes)],
        latest: &[(Index, Bytes)],
        window: Duration,
    ) -> Result<Claim, StoreError> {
        let mut call = CLAIM.key(self.state_key(&turn));
        call.arg(&turn[..]).arg(milliseconds(window)).arg(milliseconds(self.timing.owner)).arg(exclusive.len());
        for (index, note) in exclusive.iter().chain(latest) {
            call.key(self.index_key(&turn, index)).arg(short(note));
        }
        match self.call(&call).await? {
            Value::Nil => Ok(Claim::New),
            taken => self.understood(script::bytes(taken).and_then(script::found).map(Claim::Taken)),
        }
    }

    /// The turns that are found by `index` under `tag`: the newest first, [`MOST_FOUND`] at most.
    pub async fn find(&self, tag: &Index, index: &Index) -> Result<Vec<Found>, StoreError> {
        let mut command = cmd("LRANGE");
        command.arg(self.index_key(tag, index)).arg(0).arg(MOST_FOUND - 1);
        let permit = self.permit(&self.calls)?;
        let reply = self.link.run(&command, self.budget).await;
        drop(permit);
        let found = Reply::of(reply?).and_then(|mut reply| {
            let mut found = Vec::new();
            while !reply.is_over() {
                found.push(script::found(reply.bytes()?)?);
            }
            Some(found)
        });
        self.understood(found)
    }

    /// Puts more indexes to a turn, as the latest, under `tag`.
    pub async fn also(
        &self,
        tag: &Index,
        turn: TurnId,
        indexes: &[(Index, Bytes)],
        window: Duration,
    ) -> Result<(), StoreError> {
        let mut call = ALSO.arg(&turn[..]);
        call.arg(milliseconds(window));
        for (index, note) in indexes {
            call.key(self.index_key(tag, index)).arg(short(note));
        }
        self.call(&call).await.map(drop)
    }

    /// Takes indexes of a claim from their turn; it stays known by the others.
    pub async fn release(&self, turn: TurnId, indexes: &[Index]) -> Result<(), StoreError> {
        self.take_back(turn, indexes, "release").await
    }

    /// Takes back the claim of a turn that never reached Letta: its indexes where they are still its own, its log, and
    /// that there was one.
    pub async fn forget(&self, turn: TurnId, indexes: &[Index]) -> Result<(), StoreError> {
        self.take_back(turn, indexes, "forget").await
    }

    async fn take_back(&self, turn: TurnId, indexes: &[Index], how: &str) -> Result<(), StoreError> {
        let mut call = RELEASE.key(self.state_key(&turn));
        call.key(self.log_key(&turn)).arg(&turn[..]).arg(how);
        for index in indexes {
            call.key(self.index_key(&turn, index));
        }
        self.call(&call).await.map(drop)
    }

    async fn call(&self, script: &Call<'_>) -> Result<Value, StoreError> {
        let _permit = self.permit(&self.calls)?;
        self.link.invoke(script, self.budget).await
    }

    /// A call that is replied to with yes or no.
    async fn yes(&self, script: &Call<'_>) -> Result<bool, StoreError> {
        match self.call(script).await? {
            Value::Int(yes) => Ok(yes == 1),
            _ => self.understood(None),
        }
    }

    fn permit<'s>(&self, of: &'s Semaphore) -> Result<SemaphorePermit<'s>, StoreError> {
        of.try_acquire().map_err(|_| {
            self.metrics.redis_error("refused");
            StoreError::Busy
        })
    }

    /// What was read in a reply; if nothing, it is none of the gateway's.
    fn understood<T>(&self, read: Option<T>) -> Result<T, StoreError> {
        read.ok_or_else(|| {
            self.metrics.redis_error("reply");
            StoreError::Reply
        })
    }

    /// `home`: a tag, or the id of a turn that was made with it.
    fn index_key(&self, home: &[u8], index: &Index) -> String {
        format!("{}by:{}", self.home(home), hex::encode(index))
    }

    fn state_key(&self, turn: &TurnId) -> String {
        format!("{}{}", self.home(turn), hex::encode(turn))
    }

    fn log_key(&self, turn: &TurnId) -> String {
        format!("{}{}:log", self.home(turn), hex::encode(turn))
    }

    fn lane_key(&self, lane: &Index) -> String {
        format!("{}lane:{{all}}:{}", self.prefix, hex::encode(lane))
    }

    fn home(&self, of: &[u8]) -> String {
        format!("{}turn:{{{}}}:", self.prefix, hex::encode(of.get(..2).unwrap_or_default()))
    }
}

impl Drop for SharedTurns {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

fn epoch_key(prefix: &str) -> String {
    format!("{prefix}lane:{{all}}:epoch")
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).clamp(1, i64::MAX as u64 / 4)
}

/// A note is never longer than it may be.
fn short(note: &[u8]) -> &[u8] {
    note.get(..LONGEST_NOTE).unwrap_or(note)
}
