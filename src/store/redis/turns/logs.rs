//! Logs of turns: a stream each, whose pieces are numbered, so that none is ever there twice or between two others.

use std::time::Duration;

use bytes::Bytes;

use super::script::{APPEND, BEGIN, HEARTBEAT, READ, Reply};
use super::{LONGEST_BUDGET, SharedTurns, milliseconds};
use crate::store::{Appended, Cursor, Index, Piece, Read, StoreError, TurnId};

/// Time budget of an append: no client waits for it.
const APPEND_BUDGET: Duration = LONGEST_BUDGET;
/// Pieces of a log at most.
const MOST_PIECES: usize = 256 * 1024;
/// Bytes that are read at once, about.
const READ_BYTES: usize = 256 * 1024;

impl SharedTurns {
    /// Appends pieces of which the first is number `at` of the turn's log (the head is number 0), keeps the log for
    /// `window` from now and up to `most` bytes, and says that the owner is alive. What is in the log already is not appended again, so after an
    /// error the same call can be made again. The pieces of a turn must be the same under the same numbers always.
    pub async fn append(
        &self,
        turn: TurnId,
        at: u64,
        pieces: &[Piece],
        most: usize,
        window: Duration,
    ) -> Result<Appended, StoreError> {
        let mut call = APPEND.key(self.state_key(&turn));
        call.key(self.log_key(&turn));
        call.arg(milliseconds(window)).arg(milliseconds(self.timing.owner)).arg(at).arg(MOST_PIECES).arg(most);
        for piece in pieces {
            let (kind, bytes) = match piece {
                Piece::Head(bytes) => ("head", bytes),
                Piece::Data(bytes) => ("data", bytes),
                Piece::End(bytes) => ("end", bytes),
            };
            call.arg(kind).arg(bytes.as_ref());
        }
        let _permit = self.permit(&self.appends)?;
        let reply = self.link.invoke(&call, self.budget.max(APPEND_BUDGET)).await?;
        let appended = Reply::of(reply).and_then(|mut reply| {
            let (what, count) = (reply.bytes()?, reply.number()?);
            match what.as_ref() {
                b"kept" => Some(Appended::Kept),
                b"cut" => Some(Appended::Cut),
                b"missing" => Some(Appended::Missing { from: count }),
                _ => None,
            }
        });
        self.understood(appended)
    }

    /// Says that the turn's owner is alive, and keeps what is known of the turn, its `indexes` included. To be said every
    /// third of [`Timing::owner`](crate::store::Timing::owner). False: Redis has lost the turn.
    pub async fn heartbeat(&self, turn: TurnId, indexes: &[Index]) -> Result<bool, StoreError> {
        let mut call = HEARTBEAT.key(self.state_key(&turn));
        call.key(self.log_key(&turn)).arg(milliseconds(self.timing.owner));
        for index in indexes {
            call.key(self.index_key(&turn, index));
        }
        self.yes(&call).await
    }

    /// Says that the turn is about to reach Letta: from now on nobody else may begin with it. False: it is not known
    /// any more, because another took it back or Redis has lost it, and it must not begin.
    pub async fn begin(&self, turn: TurnId) -> Result<bool, StoreError> {
        let mut call = BEGIN.key(self.state_key(&turn));
        call.arg(milliseconds(self.timing.owner));
        self.yes(&call).await
    }

    /// The pieces after `cursor`.
    pub async fn read(&self, turn: TurnId, cursor: &Cursor) -> Result<Read, StoreError> {
        let mut call = READ.key(self.state_key(&turn));
        call.key(self.log_key(&turn)).arg(cursor.0).arg(READ_BYTES);
        let reply = self.call(&call).await?;
        self.understood(Reply::of(reply).and_then(|reply| read(reply, *cursor)))
    }
}

fn read(mut reply: Reply, from: Cursor) -> Option<Read> {
    let (exists, owned, cut, begun) = (reply.flag()?, reply.flag()?, reply.flag()?, reply.flag()?);
    let mut pieces = Vec::new();
    while !reply.is_over() {
        pieces.push(piece(&reply.bytes()?, reply.bytes()?)?);
    }
    let cursor = Cursor(from.0 + pieces.len() as u64);
    Some(Read { pieces, cursor, exists, owned, cut, begun })
}

fn piece(kind: &[u8], bytes: Bytes) -> Option<Piece> {
    match kind {
        b"head" => Some(Piece::Head(bytes)),
        b"data" => Some(Piece::Data(bytes)),
        b"end" => Some(Piece::End(bytes)),
        _ => None,
    }
}
