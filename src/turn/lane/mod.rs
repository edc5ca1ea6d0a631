//! The lane of an agent or a conversation: one turn at a time, first come first served.
//!
//! Gateways that share a Redis share the lanes. A turn then holds the lane among all gateways and, inside that one, the
//! lane of its own process, so that turns do not overlap there even while Redis is gone.

mod lease;
mod local;

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use super::fleet::Fleet;
use super::log::Phase;
use super::shared::Turn;
use super::{LaneSettings, OnStoreError};
use crate::error::Error;
use crate::telemetry::metrics::{Gauged, TurnMetrics};
pub(super) use lease::{Lease, read_note};
use local::Entered;

/// All lanes; clones are the same ones.
#[derive(Clone, Default)]
pub(super) struct Lanes {
    local: Arc<local::Lanes>,
    bells: Arc<lease::Bells>,
    tasks: TaskTracker,
}

/// The lane is the turn's until this is dropped.
pub(super) struct Held {
    /// Boxed: the turns of a gateway of its own have none.
    pub lease: Option<Box<Lease>>,
    _local: local::Held,
    pub deadline: Instant,
}

impl Lanes {
    pub(super) fn new(tasks: &TaskTracker) -> Self {
        Self { local: Arc::default(), bells: Arc::default(), tasks: tasks.clone() }
    }

    /// The lane of `turn` if it is free and nobody else needs to be asked.
    pub(super) fn enter_free(&self, turn: &Turn, settings: LaneSettings, fleet: Option<&Arc<Fleet>>) -> Option<Held> {
        let None = fleet else { return None };
        let local = self.local.enter_free(&turn.target)?;
        // nothing was waited for, and without a lease nothing is settled until then
        Some(Held { lease: None, _local: local, deadline: turn.began + settings.max_wait })
    }

    /// Waits for the lane of `turn`, among all gateways if there is a `fleet`.
    pub(super) async fn enter(
        &self,
        turn: &Arc<Turn>,
        settings: LaneSettings,
        fleet: Option<&Arc<Fleet>>,
        on_error: OnStoreError,
        metrics: &TurnMetrics,
    ) -> Result<Held, Error> {
        let deadline = Instant::now() + settings.max_wait;
        let mut lease = None;
        if let Some(fleet) = fleet {
            let _waiting = Gauged::new(&metrics.waiting);
            lease = Lease::take(fleet, &self.bells, &self.tasks, turn, settings, deadline)
                .await
                .inspect_err(|error| refused(error, metrics))?
                .map(Box::new);
            if lease.is_none() && on_error == OnStoreError::Deny {
                return Err(Error::StoreDown);
            }
        }
        let waits = Arc::clone(turn);
        let ahead = move |ahead| waits.log.set_phase(Phase::Waiting { ahead });
        let ticket = match self.local.enter(&turn.target, settings.max_waiting, ahead) {
            Entered::Held(local) => return Ok(Held { lease, _local: local, deadline }),
            Entered::Waits(ticket) => ticket,
            Entered::Full { waiting } => {
                let error = Error::LaneFull { waiting };
                refused(&error, metrics);
                return Err(error);
            }
        };
        let _waiting = Gauged::new(&metrics.waiting);
        match timeout_at(deadline, ticket.wait()).await {
            Ok(local) => Ok(Held { lease, _local: local, deadline }),
            Err(_) => {
                let error = Error::LaneTimeout { waited: settings.max_wait };
                refused(&error, metrics);
                Err(error)
            }
        }
    }
}

fn refused(error: &Error, metrics: &TurnMetrics) {
    match error {
        Error::LaneFull { .. } => metrics.lane_refusal("full"),
        Error::LaneTimeout { .. } => metrics.lane_refusal("patience"),
        _ => {}
    }
}
