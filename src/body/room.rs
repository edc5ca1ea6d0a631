//! Room for request bodies that have to be read whole before anything is decided: bounded for each of them, for those
//! of one key, for all of them together, and in time.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Version;
use http_body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::RequestBody;
use super::request::within;
use crate::error::Error;

/// Bytes of one body at most.
const LONGEST: u64 = 16 * 1024 * 1024;
/// Bytes of all bodies held at once, tiny ones apart.
const ROOM: usize = 256 * 1024 * 1024;
/// Bytes of one key's bodies held at once, so that no key takes the room from the others.
const SHARE: usize = ROOM / 8;
/// A body of no more bytes is not counted by its key.
const SMALL: usize = 64 * 1024;
/// One of no more bytes that came over HTTP/1 is not counted at all: it is smaller than the buffer it came in, of which
/// each connection has one. The usual message takes no lock.
const TINY: usize = 4 * 1024;

pub struct Room {
    longest: u64,
    /// How long a client may take over its body.
    patience: Duration,
    room: Arc<Semaphore>,
    shares: Arc<Shares>,
}

/// Bytes held by key; those of requests without a key together. Whoever holds nothing is not in it.
type Shares = Mutex<HashMap<Option<Arc<str>>, usize>>;

impl Room {
    /// `most`: bytes of a request's body, by the configuration.
    pub fn new(most: u64, patience: Duration) -> Self {
        let longest = most.min(LONGEST);
        Self { longest, patience, room: Arc::new(Semaphore::new(ROOM)), shares: Arc::default() }
    }

    /// The whole of `body`, which is of `key`, if of any. What comes with it counts its bytes until it is dropped.
    pub async fn read(
        &self,
        key: Option<&Arc<str>>,
        version: Version,
        mut body: RequestBody,
    ) -> Result<(Bytes, Held), Error> {
        let free = if version < Version::HTTP_2 { TINY } else { 0 };
        if body.size_hint().lower() > self.longest {
            return Err(Error::BodyTooLarge { limit: self.longest });
        }
        match poll_fn(|cx| Poll::Ready(body.poll_data(cx))).await {
            Poll::Ready(Some(Ok(first))) if body.is_end_stream() && first.len() as u64 <= self.longest => {
                let held = self.hold(key, first.len(), free)?;
                Ok((first, held))
            }
            // boxed: most bodies have come with their heads, and theirs must not be the larger future
            first => Box::pin(within(self.patience, pin!(self.read_on(key, free, first, body)))).await,
        }
    }

    /// `first`: what was there at once.
    async fn read_on(
        &self,
        key: Option<&Arc<str>>,
        free: usize,
        first: Poll<Option<Result<Bytes, Error>>>,
        mut body: RequestBody,
    ) -> Result<(Bytes, Held), Error> {
        let too_large = Error::BodyTooLarge { limit: self.longest };
        let first = match first {
            Poll::Ready(first) => first.transpose(),
            Poll::Pending => body.data().await,
        };
        let first = first?.unwrap_or_default();
        if first.len() as u64 > self.longest {
            return Err(too_large);
        }
        let mut held = self.hold(key, first.len(), free)?;
        if body.is_end_stream() {
            return Ok((first, held));
        }
        let mut read = BytesMut::from(first);
        while let Some(data) = body.data().await? {
            if (read.len() + data.len()) as u64 > self.longest {
                return Err(too_large);
            }
            self.hold_more(&mut held, key, data.len())?;
            read.extend_from_slice(&data);
        }
        Ok((read.freeze(), held))
    }

    /// Room for the first `bytes` of a body; if it has no more than are `free`, it needs none.
    fn hold(&self, key: Option<&Arc<str>>, bytes: usize, free: usize) -> Result<Held, Error> {
        let mut held = Held { bytes: 0, free, room: None, share: None };
        self.hold_more(&mut held, key, bytes)?;
        Ok(held)
    }

    /// Room for `bytes` more of the body that has `held`.
    fn hold_more(&self, held: &mut Held, key: Option<&Arc<str>>, bytes: usize) -> Result<(), Error> {
        held.bytes += bytes;
        if held.bytes <= held.free {
            return Ok(());
        }
        match &mut held.room {
            Some(room) => room.merge(self.take(bytes)?),
            none => *none = Some(self.take(held.bytes)?),
        }
        self.count(held, key)
    }

    /// Nobody waits for room: whoever waits holds some.
    fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        let full = Error::Overloaded { what: "memory for request bodies" };
        let Ok(bytes) = u32::try_from(bytes) else { return Err(full) };
        Arc::clone(&self.room).try_acquire_many_owned(bytes).map_err(|_| full)
    }

    /// Counts what is held by its key too, once it is no small body's.
    fn count(&self, held: &mut Held, key: Option<&Arc<str>>) -> Result<(), Error> {
        let bytes = held.bytes;
        if bytes <= SMALL {
            return Ok(());
        }
        let new = || Box::new(Share { shares: Arc::clone(&self.shares), key: key.cloned(), bytes: 0 });
        held.share.get_or_insert_with(new).grow(bytes)
    }
}

/// The place of a body: given back when it is dropped.
pub struct Held {
    bytes: usize,
    free: usize,
    /// None: it has no more bytes than are free.
    room: Option<OwnedSemaphorePermit>,
    /// Boxed: most bodies have none.
    share: Option<Box<Share>>,
}

/// What a body takes of its key's share.
struct Share {
    shares: Arc<Shares>,
    key: Option<Arc<str>>,
    bytes: usize,
}

impl Share {
    fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let of_key = shares.get(&self.key).copied().unwrap_or(0).saturating_add(bytes - self.bytes);
        if of_key > SHARE {
            return Err(Error::Overloaded { what: "memory for this key's request bodies" });
        }
        shares.insert(self.key.clone(), of_key);
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(of_key) = shares.get_mut(&self.key) else { return };
        *of_key = of_key.saturating_sub(self.bytes);
        if *of_key == 0 {
            shares.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::body::request::tests::posted;

    const MIB: usize = 1024 * 1024;

    fn room() -> Room {
        Room::new(u64::MAX, Duration::from_secs(1))
    }

    async fn read(room: &Room, key: Option<&Arc<str>>, bytes: usize) -> Result<Held, Error> {
        room.read(key, Version::HTTP_11, RequestBody::whole(vec![b' '; bytes].into())).await.map(|(_, held)| held)
    }

    #[tokio::test]
    async fn one_key_takes_no_more_than_its_share_and_others_have_room() {
        let (room, a, b) = (room(), "a".into(), "b".into());
        let one = read(&room, Some(&a), 16 * MIB).await.unwrap();
        let _two = read(&room, Some(&a), 16 * MIB).await.unwrap();
        assert!(matches!(read(&room, Some(&a), SMALL + 1).await, Err(Error::Overloaded { .. })));
        let _small = read(&room, Some(&a), SMALL).await.unwrap();
        let _of_another = read(&room, Some(&b), 16 * MIB).await.unwrap();
        let _of_none = read(&room, None, 16 * MIB).await.unwrap();
        drop(one);
        assert!(read(&room, Some(&a), 16 * MIB).await.is_ok(), "what is dropped is given back");
    }

    #[tokio::test]
    async fn small_bodies_are_not_counted_by_key() {
        let (room, a) = (room(), "a".into());
        let mut held = Vec::new();
        while held.len() * SMALL <= SHARE {
            held.push(read(&room, Some(&a), SMALL).await.unwrap());
        }
        assert!(room.shares.lock().unwrap().is_empty());
    }

    #[test]
    fn a_body_that_grows_is_counted_whole_once_it_is_not_small_and_all_of_it_is_given_back() {
        let (room, a) = (room(), "a".into());
        let of_a = || room.shares.lock().unwrap().get(&Some(Arc::clone(&a))).copied();
        let mut held = room.hold(Some(&a), SMALL, TINY).unwrap();
        assert_eq!(of_a(), None);
        room.hold_more(&mut held, Some(&a), 1).unwrap();
        room.hold_more(&mut held, Some(&a), MIB).unwrap();
        assert_eq!(of_a(), Some(SMALL + 1 + MIB));
        assert!(room.hold_more(&mut held, Some(&a), SHARE).is_err());
        assert_eq!(of_a(), Some(SMALL + 1 + MIB), "what was refused is not counted");
        drop(held);
        assert_eq!((of_a(), room.room.available_permits()), (None, ROOM));
    }

    #[tokio::test]
    async fn a_body_that_comes_in_pieces_is_read_whole_and_counted_as_it_comes() {
        let (room, a) = (room(), "a".into());
        let (body, mut client) = posted("transfer-encoding: chunked").await;
        let reading = room.read(Some(&a), Version::HTTP_11, body);
        let (pieces, left) = (["a", "b", "c"].map(|letter| letter.repeat(TINY)), || room.room.available_permits());
        let writing = async {
            for (piece, counted) in pieces.iter().zip([0, 0, 2 * TINY]) {
                // the one before has been read
                while left() != ROOM - counted {
                    tokio::task::yield_now().await;
                }
                client.write_all(format!("{TINY:x}\r\n{piece}\r\n").as_bytes()).await.unwrap();
            }
            client.write_all(b"0\r\n\r\n").await.unwrap();
        };
        let (read, ()) = tokio::join!(reading, writing);
        let (bytes, held) = read.unwrap();
        assert!(bytes == pieces.concat());
        assert_eq!(left(), ROOM - 3 * TINY);
        drop(held);
        assert_eq!(left(), ROOM);
    }

    #[tokio::test]
    async fn a_body_that_grows_too_long_is_refused_and_one_that_does_not_come_is_late() {
        let room = Room::new(6, Duration::from_millis(50));
        let (body, mut client) = posted("transfer-encoding: chunked").await;
        client.write_all(b"4\r\nabcd\r\n4\r\nefgh\r\n").await.unwrap();
        assert!(matches!(room.read(None, Version::HTTP_11, body).await, Err(Error::BodyTooLarge { limit: 6 })));
        let (body, _client) = posted("content-length: 7").await;
        assert!(matches!(room.read(None, Version::HTTP_11, body).await, Err(Error::BodyTooLarge { limit: 6 })));
        let (body, mut client) = posted("content-length: 5").await;
        client.write_all(b"abc").await.unwrap();
        assert!(matches!(room.read(None, Version::HTTP_11, body).await, Err(Error::BodyTimeout)));
        assert_eq!(room.room.available_permits(), ROOM);
    }

    #[tokio::test]
    async fn all_keys_together_take_no_more_than_the_room() {
        let room = room();
        let mut held = Vec::new();
        for n in 0..16 {
            held.push(read(&room, Some(&n.to_string().into()), 16 * MIB).await.unwrap());
        }
        assert!(matches!(read(&room, Some(&"16".into()), TINY + 1).await, Err(Error::Overloaded { .. })));
        assert!(read(&room, Some(&"16".into()), TINY).await.is_ok(), "it takes no more than it does already");
        let over_http2 = room.read(None, Version::HTTP_2, RequestBody::whole("x".into())).await;
        assert!(matches!(over_http2, Err(Error::Overloaded { .. })), "a connection may have a hundred of them");
        held.clear();
        assert!(room.shares.lock().unwrap().is_empty());
        assert_eq!(room.room.available_permits(), ROOM);
    }
}
