//! Bodies of the watched routes: read whole, looked through, and only then Letta's.
//!
//! One place decides what of them may pass, for keys of any scope. A body costs memory and time within bounds: its own,
//! one for those of a key, and one for all bodies that are held at once.

use std::time::Duration;

use http::header::CONTENT_LENGTH;

use crate::auth::key::Key;
use crate::body::room::{Held, Room};
use crate::body::{Request, RequestBody};
use crate::error::Error;
use crate::letta::fields::{self, Unclear};
use crate::letta::routes::{Scope, Watched};

const OBJECT: &str = "the body must be one JSON object in UTF-8";
const ONE_USER: &str = "the body must be one JSON object in UTF-8, with no `user` twice";

pub(super) struct Watch {
    room: Room,
}

impl Watch {
    pub(super) fn new(max_body: u64, patience: Duration) -> Self {
        Self { room: Room::new(max_body, patience) }
    }

    /// Leaves in the body of `request` what `key` may ask for, or refuses it. What comes back counts the body's bytes
    /// until it is dropped.
    pub(super) async fn look(
        &self,
        request: &mut Request,
        watched: Watched,
        key: Option<&Key>,
    ) -> Result<Option<Held>, Error> {
        // an admin's body is not held up
        if watched == Watched::Addresses && key.is_some_and(|key| key.scopes.allow(Scope::Admin)) {
            return Ok(None);
        }
        let (version, body) = (request.version(), std::mem::take(request.body_mut()));
        let (mut body, held) = self.room.read(key.map(|key| &key.id), version, body).await?;
        match watched {
            // asks for nothing; what is missing is Letta's to say
            _ if body.is_empty() => {}
            Watched::User => {
                if let Some(userless) = fields::without_user(&body).map_err(|Unclear| Error::BadBody(ONE_USER))? {
                    // hyper counts anew
                    request.headers_mut().remove(CONTENT_LENGTH);
                    body = userless.into();
                }
            }
            Watched::Addresses => {
                if let Some(field) = fields::address(&body).map_err(|Unclear| Error::BadBody(OBJECT))? {
                    return Err(Error::AddressRefused { field });
                }
            }
        }
        *request.body_mut() = RequestBody::whole(body);
        Ok(Some(held))
    }
}
