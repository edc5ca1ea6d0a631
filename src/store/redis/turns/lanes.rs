//! Lanes: a lease each, and a row of those who wait for it, first come first served over all gateways.
//!
//! Who came first is what Redis saw first. After Redis lost its data it is who asks first again.

use std::time::Duration;

use bytes::Bytes;

use super::script::{ENTER, LEAVE, RENEW, Reply, split_turn};
use super::{SharedTurns, epoch_key, milliseconds, short};
use crate::store::{Abandoned, Index, LanePlace, StoreError, TurnId};

/// How long it is remembered who abandoned a lane: longer than Letta may hold a run that nobody sees to.
const REMEMBERED: Duration = Duration::from_mins(10);
/// How long the last token of an idle lane is remembered. Tokens grow over that, too, as long as Redis' clock does.
const IDLE: Duration = Duration::from_secs(30);
/// Characters of a token, behind the turn of who abandoned a lane.
const TOKEN: usize = 16;

impl SharedTurns {
    /// Takes the lane if it is free and nobody came earlier, or a place in its row if no more than `max_waiting` wait.
    ///
    /// Who waits asks again and again, which keeps its place; who has not asked for
    /// [`Timing::presence`](crate::store::Timing::presence) has none any more. Who holds the lane renews its lease. After
    /// an error the turn may have a place: it asks again, or leaves.
    pub async fn lane_enter(&self, lane: &Index, turn: TurnId, max_waiting: u32) -> Result<LanePlace, StoreError> {
        let key = self.lane_key(lane);
        let mut call = ENTER.key(epoch_key(&self.prefix));
        call.key(&key).key(format!("{key}:queue")).key(format!("{key}:seen")).key(format!("{key}:abandoned"));
        let timing = &self.timing;
        call.arg(&turn[..]).arg(max_waiting);
        for time in [timing.lease, timing.presence, timing.grace, REMEMBERED] {
            call.arg(milliseconds(time));
        }
        let reply = self.call(&call).await?;
        self.understood(Reply::of(reply).and_then(place))
    }

    /// Renews the lease of the holder, with what is to be known of it if it abandons the lane (64 bytes at most). False:
    /// the lane is another's, or was left. If Redis has forgotten who holds it, it is this turn's again.
    pub async fn lane_renew(&self, lane: &Index, turn: TurnId, token: u64, note: &[u8]) -> Result<bool, StoreError> {
        let mut call = RENEW.key(self.lane_key(lane));
        call.arg(&turn[..]).arg(token).arg(short(note));
        call.arg(milliseconds(self.timing.lease)).arg(milliseconds(REMEMBERED));
        self.yes(&call).await
    }

    /// Gives up the lane, or the place in its row. The lane is not abandoned: its turn is over. Those who abandoned it
    /// before are forgotten if they `are_settled`, and told to the next holder if not.
    pub async fn lane_leave(&self, lane: &Index, turn: TurnId, are_settled: bool) -> Result<(), StoreError> {
        let key = self.lane_key(lane);
        let mut call = LEAVE.key(&key);
        call.key(format!("{key}:queue")).key(format!("{key}:seen")).key(format!("{key}:abandoned"));
        call.arg(&turn[..]).arg(milliseconds(IDLE)).arg(u8::from(are_settled));
        self.call(&call).await.map(drop)
    }
}

fn place(mut reply: Reply) -> Option<LanePlace> {
    match reply.bytes()?.as_ref() {
        b"held" => {
            let token = number(&reply.bytes()?)?;
            let mut abandoned = Vec::new();
            while !reply.is_over() {
                abandoned.push(left(reply.bytes()?)?);
            }
            Some(LanePlace::Held { token, abandoned })
        }
        b"waiting" => Some(LanePlace::Waiting { ahead: u32::try_from(reply.number()?).ok()? }),
        b"full" => Some(LanePlace::Full { waiting: u32::try_from(reply.number()?).ok()? }),
        _ => None,
    }
}

/// A turn, the token it had, its note. The token is the time it got the lane, in microseconds.
fn left(bytes: Bytes) -> Option<Abandoned> {
    let (turn, mut token) = split_turn(bytes)?;
    if token.len() < TOKEN {
        return None;
    }
    let note = token.split_off(TOKEN);
    Some(Abandoned { turn, since_ms: number(&token)? / 1000, note })
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.trim_start().parse().ok()
}
