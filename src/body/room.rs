//! Room for request bodies that have to be read whole before anything is decided: bounded for each of them, for all of
//! them together, and in time.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::RequestBody;
use crate::error::Error;

/// Bytes of one body at most.
const LONGEST: u64 = 16 * 1024 * 1024;
/// Bytes of all bodies held at once.
const ROOM: usize = 256 * 1024 * 1024;

pub struct Room {
    longest: u64,
    /// How long a client may take over its body.
    patience: Duration,
    room: Arc<Semaphore>,
}

impl Room {
    /// `most`: bytes of a request's body, by the configuration.
    pub fn new(most: u64, patience: Duration) -> Self {
        Self { longest: most.min(LONGEST), patience, room: Arc::new(Semaphore::new(ROOM)) }
    }

    /// The whole of `body`. What comes with it counts its bytes until it is dropped.
    pub async fn read(&self, body: RequestBody) -> Result<(Bytes, OwnedSemaphorePermit), Error> {
        timeout(self.patience, self.read_on(body)).await.map_err(|_| Error::BodyTimeout)?
    }

    async fn read_on(&self, mut body: RequestBody) -> Result<(Bytes, OwnedSemaphorePermit), Error> {
        let too_large = Error::BodyTooLarge { limit: self.longest };
        if body.size_hint().lower() > self.longest {
            return Err(too_large);
        }
        let first = body.data().await?.unwrap_or_default();
        if first.len() as u64 > self.longest {
            return Err(too_large);
        }
        let mut held = self.hold(first.len())?;
        if body.is_end_stream() {
            return Ok((first, held));
        }
        let mut read = BytesMut::from(first);
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
    fn hold(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        let full = Error::Overloaded { what: "memory for request bodies" };
        let Ok(bytes) = u32::try_from(bytes) else { return Err(full) };
        Arc::clone(&self.room).try_acquire_many_owned(bytes).map_err(|_| full)
    }
}
