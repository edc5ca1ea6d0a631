//! The limits step: admits, tells how much is left, and holds the place in flight until the response has ended.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Left, Limits};
use crate::auth::{Admitted, Parts};
use crate::body::{Request, Response};
use crate::error::{Error, whole_seconds};
use crate::step::{Handle, Step};
use crate::telemetry::Record;

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// A request within the limits of its key, or one that needs no key.
pub struct Within {
    parts: Parts,
}

impl Within {
    pub fn request(&self) -> &Request {
        &self.parts.request
    }

    pub fn into_parts(self) -> Parts {
        self.parts
    }
}

impl<Next: Handle<Within>> Step<Admitted, Next> for Limits {
    async fn call(&self, admitted: Admitted, record: &mut Record, next: &Next) -> Result<Response, Error> {
        let parts = admitted.into_parts();
        let Some(key) = &parts.key else { return next.handle(Within { parts }, record).await };
        let admission = self.admit(&key.id)?;
        let mut response = next.handle(Within { parts }, record).await?;
        if let Some(left) = admission.left {
            tell(left, response.headers_mut());
        }
        let permit = admission.permit;
        Ok(response.map(|body| body.holding(permit)))
    }
}

/// The burst, what is left of it, and the seconds until it is whole again. A limit of Letta's own, should there be one,
/// is not the client's to know.
fn tell(left: Left, headers: &mut HeaderMap) {
    headers.insert(LIMIT, HeaderValue::from(left.limit));
    headers.insert(REMAINING, HeaderValue::from(left.remaining));
    headers.insert(RESET, HeaderValue::from(whole_seconds(left.reset)));
}
