//! Bodies of the watched routes: read whole, looked through, and only then Letta's.
//!
//! One place decides what of them may pass, for keys of any scope. A body costs memory and time within bounds: its own,
//! and one for all bodies that are held at once.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http_body::Body as _;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::auth::key::Key;
use crate::body::{Request, RequestBody};
use crate::error::Error;
use crate::letta::fields::{self, Unclear};
use crate::letta::routes::{Scope, Watched};

/// Bytes of one body at most.
const LONGEST: u64 = 16 * 1024 * 1024;
/// Bytes of all bodies held at once.
const ROOM: usize = 256 * 1024 * 1024;

const OBJECT: &str = "the body must be one JSON object in UTF-8";
const ONE_USER: &str = "the body must be one JSON object in UTF-8, with no `user` twice";

pub(super) struct Watch {
    longest: u64,
    /// How long a client may take over its body.
    patience: Duration,
    room: Semaphore,
}

impl Watch {
    pub(super) fn new(max_body: u64, patience: Duration) -> Self {
        Self { longest: max_body.min(LONGEST), patience, room: Semaphore::new(ROOM) }
    }

    /// Leaves in the body of `request` what `key` may ask for, or refuses it. What comes back counts the body's bytes
    /// until it is dropped.
    pub(super) async fn look(
        &self,
        request: &mut Request,
        watched: Watched,
        key: Option<&Key>,
    ) -> Result<Option<SemaphorePermit<'_>>, Error> {
        // an admin's body is not held up
        if watched == Watched::Addresses && key.is_some_and(|key| key.scopes.allow(Scope::Admin)) {
            return Ok(None);
        }
        let reading = self.read(std::mem::take(request.body_mut()));
        let (mut body, held) = tokio::time::timeout(self.patience, reading).await.map_err(|_| Error::BodyTimeout)??;
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

    async fn read(&self, mut body: RequestBody) -> Result<(Bytes, SemaphorePermit<'_>), Error> {
        let too_large = Error::BodyTooLarge { limit: self.longest };
        if body.size_hint().lower() > self.longest {
            return Err(too_large);
        }
        let mut held = self.hold(0)?;
        let mut read = BytesMut::new();
        while let Some(data) = body.data().await? {
            if (read.len() + data.len()) as u64 > self.longest {
                return Err(too_large);
            }
            held.merge(self.hold(data.len())?);
            read.extend_from_slice(&data);
        }
        Ok((read.freeze(), held))
    }

    /// Room for `bytes` more. Nobody waits for it: whoever waits holds some.
    fn hold(&self, bytes: usize) -> Result<SemaphorePermit<'_>, Error> {
        let full = Error::Overloaded { what: "memory for request bodies" };
        let Ok(bytes) = u32::try_from(bytes) else { return Err(full) };
        self.room.try_acquire_many(bytes).map_err(|_| full)
    }
}
