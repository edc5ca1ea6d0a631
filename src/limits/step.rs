//! The limits step: admits, tells how much is left, and holds the place in flight until the response has ended.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::allowance::Seat;
use super::{Left, Limits};
use crate::auth::{Admitted, Parts};
use crate::body::{Request, Response};
use crate::error::{Error, whole_seconds};
use crate::letta::repeat::Repeat;
use crate::step::{Handle, Step};
use crate::telemetry::Record;

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// A request within the limits of its key, or one that needs no key.
pub struct Within {
    parts: Parts,
    seat: Option<Seat>,
}

impl Within {
    pub fn request(&self) -> &Request {
        &self.parts.request
    }

    /// The place in flight comes with a send: it is its turn that is in flight, with or without its client.
    pub fn into_parts(self) -> (Parts, Option<Seat>) {
        (self.parts, self.seat)
    }
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
        // a repeat needs no place of its own: its turn has one
        let may_repeat = is_send && Repeat::of(parts.request.headers()).is_said();
        let (seat, left) = self.admit(&key.id, may_repeat)?;
        let (seat, permit) = if is_send { (Some(seat), None) } else { (None, Some(seat.take()?)) };
        let mut response = next.handle(Within { parts, seat }, record).await?;
        if let Some(left) = left {
            tell(left, response.headers_mut());
        }
        Ok(match permit {
            Some(permit) => response.map(|body| body.holding(permit)),
            None => response,
        })
    }
}

/// The burst, what is left of it, and the seconds until it is whole again. A limit of Letta's own, should there be one,
/// is not the client's to know.
fn tell(left: Left, headers: &mut HeaderMap) {
    headers.insert(LIMIT, HeaderValue::from(left.limit));
    headers.insert(REMAINING, HeaderValue::from(left.remaining));
    headers.insert(RESET, HeaderValue::from(whole_seconds(left.reset)));
}
