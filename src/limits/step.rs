//! The limits step: admits, tells how much is left, and holds the place in flight until the response has ended.

use super::Limits;
use super::account::Asking;
use super::bill::Bill;
use super::seat::Seat;
use crate::auth::{Admitted, Parts};
use crate::body::{Permit, Request, Response};
use crate::error::Error;
use crate::letta::repeat::Repeat;
use crate::letta::routes::Subject;
use crate::step::{Handle, Step};
use crate::telemetry::Record;

/// A request within the limits of its key, or one that needs no key.
pub struct Within {
    parts: Box<Parts>,
    /// Boxed: most requests have none.
    seat: Option<Box<Seat>>,
}

impl Within {
    pub fn request(&self) -> &Request {
        &self.parts.request
    }

    /// The place in flight comes with a send: it is its turn that is in flight, with or without its client.
    pub fn into_parts(self) -> (Box<Parts>, Option<Box<Seat>>) {
        (self.parts, self.seat)
    }
}

/// Takes the place of a request that is no send, and what it is charged to.
fn sit(mut seat: Seat) -> Result<(Permit, Option<Bill>), Error> {
    let bill = seat.bill();
    Ok((seat.take()?, bill))
}

impl<Next: Handle<Within>> Step<Admitted, Next> for Limits {
    async fn call(&self, admitted: Admitted, record: &mut Record, next: &Next) -> Result<Response, Error> {
        let parts = admitted.into_parts();
        let Some(key) = &parts.key else {
            let permit = self.admit_keyless()?;
            let response = next.handle(Within { parts, seat: None }, record).await?;
            return Ok(response.map(|body| body.holding(permit)));
        };
        let is_send = parts.route.sends.is_some();
        let asking = Asking {
            // a repeat needs no place of its own: its turn has one
            may_repeat: is_send && Repeat::of(parts.request.headers()).is_said(),
            starts_turn: parts.route.starts_turns(),
        };
        // no account for an agent that the key does not reach: below, the request is refused
        let agent = parts.subject.as_deref().filter(|_| parts.route.subject == Subject::Agent);
        let agent = agent.filter(|agent| key.agents.has(agent));
        let (seat, told) = self.admit(&key.id, agent, asking).await?;
        let (seat, (permit, bill)) = match is_send {
            true => (Some(Box::new(seat)), (None, None)),
            // what a turn costs that such a request starts is not told to whoever starts it
            false => (None, sit(seat).map(|(permit, bill)| (Some(permit), bill))?),
        };
        let mut response = next.handle(Within { parts, seat }, record).await?;
        if let Some(bill) = bill.filter(|_| response.status().is_success()) {
            bill.charge(None);
        }
        if let Some(told) = told {
            told.tell(response.headers_mut());
        }
        Ok(match permit {
            Some(permit) => response.map(|body| body.holding(permit)),
            None => response,
        })
    }
}
