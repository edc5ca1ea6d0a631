//! Learns from the shared store which keys were revoked: by any gateway, before this one started or while it runs.
//!
//! Asked several times a second, so that a key is refused everywhere within one. What this gateway knows to be revoked
//! and the store does not, for it has lost its data, is told to it again.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::auth::revocations::Revocations;
use crate::store::{Store, StoreError};

/// How often is asked whether there are more.
pub const EVERY: Duration = Duration::from_millis(250);
/// How often all are read, whether there are more or not.
const ALL_EVERY: Duration = Duration::from_secs(30);
/// How long a start may wait for the store.
const LONGEST_START: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

/// What was read last.
#[derive(Debug, Default)]
pub struct Reading {
    count: Option<u64>,
    read: Option<Instant>,
}

impl Reading {
    /// Learns what is new.
    pub async fn learn(&mut self, store: &Store, revocations: &Revocations) -> Result<(), StoreError> {
        let count = store.revocations().await?;
        let is_old = self.read.is_none_or(|read| read.elapsed() >= ALL_EVERY);
        if self.count == Some(count) && !is_old {
            return Ok(());
        }
        let revoked = store.revoked().await?;
        let new = revocations.revoke(&revoked);
        if new > 0 {
            tracing::warn!(keys = new, "keys were revoked: they are refused and their streams ended");
        }
        // a text of somebody else's is not this gateway's to remember
        let revoked: HashSet<_> = revoked.into_iter().collect();
        let lost: Vec<_> = revocations.known().filter(|digest| !revoked.contains(*digest)).copied().collect();
        if !lost.is_empty() {
            store.revoke(&lost).await?;
        }
        (self.count, self.read) = (Some(count), Some(Instant::now()));
        Ok(())
    }
}

/// Reads all of them before a configuration is taken over; if the store cannot be read in time, says so and goes on.
pub async fn learn_all(store: &Store, revocations: &Revocations) {
    let started = Instant::now();
    while let Err(why) = Reading::default().learn(store, revocations).await {
        if started.elapsed() >= LONGEST_START {
            tracing::warn!(%why, "which keys were revoked is not known until the store can be read");
            return;
        }
        // the connection is being made
        sleep(PAUSE).await;
    }
}
