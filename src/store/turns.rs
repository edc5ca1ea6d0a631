//! What gateways share of turns: who began one, its log, and whose turn it is in each lane.
//!
//! All of it may be gone at any moment, with Redis. What must not be doubled is therefore told apart from what is only
//! lost: a claim that is not known to be won is not won, a lane that may be somebody's is not given out, and a log that
//! lost a piece says from where on it wants it again.

use std::time::Duration;

use bytes::Bytes;

/// Names a turn in all gateways. Its first two bytes say where in Redis all that belongs to it lies, the others are
/// random; [`SharedTurns::turn_id`](super::SharedTurns::turn_id) makes one.
pub type TurnId = [u8; 16];

/// What a turn or a lane is found by: a SHA-256.
pub type Index = [u8; 32];

/// One piece of a turn's log. What is in it is its owner's business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    Head(Bytes),
    Data(Bytes),
    /// The last one; its turn needs no owner any more.
    End(Bytes),
}

/// A turn that was found by an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub turn: TurnId,
    /// What was put beside the index; at most [`LONGEST_NOTE`] bytes.
    pub note: Bytes,
}

/// Bytes of a note at most.
pub const LONGEST_NOTE: usize = 64;
/// Turns that are found by one index at most.
pub const MOST_FOUND: usize = 4;

/// What came of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// All indexes are this turn's now.
    New,
    /// An exclusive one is another turn's; nothing was changed.
    Taken(Found),
}

/// What came of appending to a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// All pieces are in the log, each once.
    Kept,
    /// Redis has lost pieces: the log has only the first `from` ones, and none of these was appended. The same pieces
    /// are wanted again, from number `from` on.
    Missing { from: u64 },
    /// The log is over its bound, now or before: of what did not fit only the end is in it.
    Cut,
}

/// How far a log was read: the number of pieces before. The default is its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor(pub(super) u64);

/// The next pieces of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// About 256 KiB of them at most; none: there are no more yet.
    pub pieces: Vec<Piece>,
    /// Where to read on.
    pub cursor: Cursor,
    /// The turn is known. If not it is too long ago, or Redis lost it and its owner will publish it again.
    pub exists: bool,
    /// The owner is alive, or the log has its end.
    pub owned: bool,
    /// Pieces are missing before the end, because the log went over its bound.
    pub cut: bool,
    /// The turn may have reached Letta.
    pub begun: bool,
}

/// A turn's place at a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LanePlace {
    /// The lane is this turn's as long as its lease is renewed.
    Held {
        /// Larger than any that was given for this lane before, so that a former holder is told from this one.
        token: u64,
        /// Those who let their lease run out since the lane was last left as it should be, the newest first: their
        /// turns may still be at work in Letta. Four at most. They are told until this turn leaves the lane.
        abandoned: Vec<Abandoned>,
    },
    /// `ahead` turns come first, the holder included; 0 if the lane is free but not given out yet.
    Waiting { ahead: u32 },
    /// As many wait as may; this turn does not.
    Full { waiting: u32 },
}

/// A holder that let its lease run out instead of leaving the lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abandoned {
    pub turn: TurnId,
    /// When it got the lane: milliseconds of Unix time by Redis' clock.
    pub since_ms: u64,
    /// What it noted last when it renewed its lease, e.g. its run; empty if nothing.
    pub note: Bytes,
}

/// How long things last without a sign of life.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// A holder's lane; to be renewed every third of it.
    pub lease: Duration,
    /// A waiter's place, if it does not ask.
    pub presence: Duration,
    /// A turn's owner.
    pub owner: Duration,
    /// From the moment Redis comes back, perhaps without what it knew, to the first lane that is given out: the time
    /// holders have to say what is theirs.
    pub grace: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let [lease, presence, owner, grace] = [10, 5, 10, 3].map(Duration::from_secs);
        Self { lease, presence, owner, grace }
    }
}
