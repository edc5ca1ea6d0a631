//! Room for request bodies that have to be read whole before anything is decided: bounded for each of them, for all of
//! them together, and in time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use tokio::sync::{Semaphore, SemaphorePermit};
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
    room: Semaphore,
}

impl Room {
    /// `most`: bytes of a request's body, by the configuration.
    pub fn new(most: u64, patience: Duration) -> Self {
        Self { longest: most.min(LONGEST), patience, room: Semaphore::new(ROOM) }
    }

    /// The whole of `body`. What comes with it counts its bytes until it is dropped.
    pub async fn read(&self, body: RequestBody) -> Result<(Bytes, SemaphorePermit<'_>), Error> {
        timeout(self.patience, self.read_on(body)).await.map_err(|_| Error::BodyTimeout)?
    }

    async fn read_on(&self, mut body: RequestBody) -> Result<(Bytes, SemaphorePermit<'_>), Error> {
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
