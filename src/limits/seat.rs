//! The place of one request in flight.

use std::fmt;
use std::sync::Arc;

use super::Mode;
use super::terms::Terms;
use crate::body::{Counter, Permit};
use crate::error::Error;
use crate::telemetry::metrics::{Decision, KeyMetrics};

/// A place among the requests in flight of one key.
pub struct Seat(Place);

enum Place {
    Taken(Permit),
    /// It may turn out to need none.
    Full(Box<Full>),
}

pub(super) struct Full {
    pub terms: Arc<Terms>,
    pub in_flight: Arc<Counter>,
    pub metrics: Arc<KeyMetrics>,
}

impl Seat {
    pub(super) fn taken(permit: Permit) -> Self {
        Self(Place::Taken(permit))
    }

    pub(super) fn full(full: Full) -> Self {
        Self(Place::Full(Box::new(full)))
    }

    /// The place, if there was one.
    pub fn take(self) -> Result<Permit, Error> {
        match self.0 {
            Place::Taken(permit) => Ok(permit),
            Place::Full(full) => {
                let Full { terms, in_flight, metrics } = *full;
                let refusal = terms.too_many_in_flight();
                match terms.mode {
                    Mode::Enforce => {
                        metrics.decided(&refusal.name, Decision::Refused).inc();
                        Err(Error::Limited(refusal))
                    }
                    Mode::Shadow => {
                        metrics.decided(&refusal.name, Decision::Shadowed).inc();
                        Ok(in_flight.add())
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Place::Taken(_) => "Seat(taken)",
            Place::Full(_) => "Seat(full)",
        })
    }
}
