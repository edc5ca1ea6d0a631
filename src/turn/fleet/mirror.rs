//! Follows a turn of another gateway's: brings its answer into a log of this one's, where its clients here follow it.

use std::time::Duration;

use http::header::CONTENT_LENGTH;
use tokio::time::{Instant, sleep};

use super::{Fleet, OUTAGE, form};
use crate::letta::sse::Scanner;
use crate::store::{Cursor, Piece, TurnId};
use crate::telemetry::turn::Part;
use crate::turn::log::Ended;
use crate::turn::shared::Turn;

/// Between two looks at an answer that does not grow.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// What came of following.
pub(in crate::turn) enum Mirrored {
    /// The answer has its end, as its own gateway told it.
    Ended(Ended),
    /// There is no such turn: it was taken back before it began.
    Gone,
    /// Its gateway has gone before the turn began: it never reached Letta.
    NeverBegan,
    /// Its gateway has gone, or Redis has, and the turn may have begun.
    Lost,
    /// More was answered than is kept.
    Cut,
    /// Nobody here follows it any more.
    Left,
}

impl Fleet {
    /// Follows the turn `theirs` into the log of `turn`.
    pub(in crate::turn) async fn mirror(&self, theirs: TurnId, turn: &Turn) -> Mirrored {
        tokio::select! {
            biased;
            mirrored = self.follow(theirs, turn) => mirrored,
            () = turn.log.given_up() => Mirrored::Left,
        }
    }

    async fn follow(&self, theirs: TurnId, turn: &Turn) -> Mirrored {
        let mut cursor = Cursor::default();
        let mut scanner = Scanner::new();
        let mut part = None;
        let mut pause = SHORTEST_PAUSE;
        // when it was last seen to be somebody's
        let mut seen = Instant::now();
        let owner = self.store.timing().owner;
        loop {
            let read = self.store.read(theirs, &cursor).await.ok();
            let Some(read) = read else {
                if seen.elapsed() > OUTAGE + owner {
                    return Mirrored::Lost;
                }
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            };
            // taken back; or lost by Redis, and then whoever claims it now hears of that before it begins
            if !read.exists && cursor == Cursor::default() {
                return Mirrored::Gone;
            }
            let is_over = matches!(read.pieces.last(), Some(Piece::End(_)));
            let part = *part.get_or_insert(if is_over { Part::Replayed } else { Part::Joined });
            if !read.pieces.is_empty() {
                turn.follows(part);
                pause = SHORTEST_PAUSE;
            }
            cursor = read.cursor;
            for piece in read.pieces {
                match piece {
                    Piece::Head(bytes) => match form::read_head(bytes) {
                        Some(head) => {
                            let length = head.headers.get(CONTENT_LENGTH);
                            let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
                            turn.log.begin(head, length);
                        }
                        None => return Mirrored::Cut,
                    },
                    Piece::Data(bytes) => {
                        if turn.streams {
                            scanner.feed(&bytes);
                            if let Some(run) = scanner.run_id() {
                                turn.learn_run(run);
                            }
                        }
                        turn.log.append(&bytes);
                        if scanner.is_done() {
                            turn.log.tell_end();
                        }
                    }
                    Piece::End(bytes) if read.cut || bytes == form::CUT => return Mirrored::Cut,
                    Piece::End(bytes) => {
                        return form::read_end(&bytes).map_or(Mirrored::Lost, Mirrored::Ended);
                    }
                }
            }
            turn.log.has_room().await;
            if read.exists && read.owned {
                seen = Instant::now();
            } else if read.exists && !read.begun {
                return Mirrored::NeverBegan;
            } else if read.exists || seen.elapsed() > owner {
                // a Redis that has lost it is told again by its owner, if there is one
                return Mirrored::Lost;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
