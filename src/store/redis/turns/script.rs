//! The scripts, and what they reply.
//!
//! Each is one step that no other command comes between, by Redis' own clock, so that no two gateways' clocks are ever
//! compared.

use std::sync::LazyLock;

use ::redis::Value;
use bytes::Bytes;

use super::super::script::Script;
use crate::store::{Found, TurnId};

macro_rules! scripts {
    ($($name:ident = $file:literal),* $(,)?) => {
        $(pub(super) static $name: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!($file)));)*
    };
}

scripts! {
    CLAIM = "claim.lua",
    ALSO = "also.lua",
    RELEASE = "release.lua",
    BEGIN = "begin.lua",
    APPEND = "append.lua",
    HEARTBEAT = "heartbeat.lua",
    READ = "read.lua",
    ENTER = "enter.lua",
    RENEW = "renew.lua",
    LEAVE = "leave.lua",
}

/// Sent whole: it is the first thing Redis is asked.
pub(super) const EPOCH: &str = include_str!("epoch.lua");

/// A list that a script replied with, read from its front. `None` everywhere: it is not what the script replies.
pub(super) struct Reply(std::vec::IntoIter<Value>);

impl Reply {
    pub(super) fn of(value: Value) -> Option<Self> {
        match value {
            Value::Array(values) => Some(Self(values.into_iter())),
            _ => None,
        }
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        match self.0.next()? {
            Value::Int(number) => u64::try_from(number).ok(),
            _ => None,
        }
    }

    pub(super) fn flag(&mut self) -> Option<bool> {
        Some(self.number()? != 0)
    }

    pub(super) fn bytes(&mut self) -> Option<Bytes> {
        bytes(self.0.next()?)
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.len() == 0
    }
}

pub(super) fn bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(Bytes::from(bytes)),
        _ => None,
    }
}

/// A turn's id and what stands behind it.
pub(super) fn split_turn(mut bytes: Bytes) -> Option<(TurnId, Bytes)> {
    if bytes.len() < size_of::<TurnId>() {
        return None;
    }
    let rest = bytes.split_off(size_of::<TurnId>());
    Some((bytes.as_ref().try_into().ok()?, rest))
}

pub(super) fn found(bytes: Bytes) -> Option<Found> {
    let (turn, note) = split_turn(bytes)?;
    Some(Found { turn, note })
}
