//! The lane of an agent or a conversation: one turn at a time, first come first served.

mod local;

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use super::LaneSettings;
use super::log::Phase;
use super::shared::Turn;
use crate::error::Error;
use crate::telemetry::metrics::{Gauged, TurnMetrics};
use local::Entered;

/// All lanes; clones are the same ones.
#[derive(Clone, Default)]
pub(super) struct Lanes(Arc<local::Lanes>);

/// The lane is the turn's until this is dropped.
pub(super) struct Held {
    _local: local::Held,
}

impl Lanes {
    /// Waits for the lane of `turn`.
    pub(super) async fn enter(
        &self,
        turn: &Turn,
        settings: LaneSettings,
        metrics: &TurnMetrics,
    ) -> Result<Held, Error> {
        let ticket = match self.0.enter(turn.target.lane(), settings.max_waiting) {
            Entered::Held(local) => return Ok(Held { _local: local }),
            Entered::Waits(ticket) => ticket,
            Entered::Full { waiting } => {
                metrics.lane_refusal("full");
                return Err(Error::LaneFull { waiting });
            }
        };
        let _waiting = Gauged::new(&metrics.waiting);
        turn.log.set_phase(Phase::Waiting { ahead: ticket.ahead() });
        match timeout_at(Instant::now() + settings.max_wait, ticket.wait()).await {
            Ok(local) => Ok(Held { _local: local }),
            Err(_) => {
                metrics.lane_refusal("patience");
                Err(Error::LaneTimeout { waited: settings.max_wait })
            }
        }
    }
}
