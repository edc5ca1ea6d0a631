//! The YAML of turns.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use crate::config::units::{ByteSize, DurationText};

/// Messages to agents: sent once, in order, whatever their clients do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct Turns {
    /// Which sends are one turn: those that say so (repeats: same Idempotency-Key, same otid, or a retry by
    /// x-stainless-retry-count), also those identical to one that runs (identical_in_flight), or none (off).
    pub dedupe: Dedupe,
    /// How long a turn that is over can be repeated; in one process up to a sixteenth and a second longer.
    pub window: DurationText,
    /// How sends wait for their agent; off: turns of one agent may overlap, and lose messages.
    pub lane: Lane,
    /// When the last client has left: go on and keep the answer for its retry (detach), cancel the run (cancel), or go
    /// on without keeping the answer (drain).
    pub on_disconnect: OnDisconnect,
    /// A stream's silence after which a comment is sent; 0s: none.
    pub keepalive: DurationText,
    /// Size of one answer that can be given again; a longer one reaches its client, but no retry.
    pub max_log: ByteSize,
    /// Size of all that is kept of turns that are over, in this process. Where it is short the oldest answers go first, then
    /// the oldest turns: too little for those of a window, and the earliest are sent again if they are repeated.
    pub max_total: ByteSize,
    /// Messages while the Redis of store.redis is gone: each gateway has turns of its own (local), or they are refused
    /// (deny). One that is away for less than 5 s is waited for.
    pub on_store_error: OnStoreError,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            dedupe: Dedupe::Repeats,
            window: DurationText::secs(15 * 60),
            lane: Lane(Some(LaneBounds::default())),
            on_disconnect: OnDisconnect::Detach,
            keepalive: DurationText::secs(15),
            max_log: ByteSize::mib(1),
            max_total: ByteSize::mib(64),
            on_store_error: OnStoreError::Local,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum Dedupe {
    Repeats,
    IdenticalInFlight,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum OnDisconnect {
    Detach,
    Cancel,
    Drain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum OnStoreError {
    Local,
    Deny,
}

/// None: off.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::config) struct Lane(pub(in crate::config) Option<LaneBounds>);

/// How many wait for one agent, and how long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct LaneBounds {
    /// Sends that may wait for one agent; one more is refused with 429.
    pub max_waiting: u32,
    /// How long each of them waits.
    pub max_wait: DurationText,
}

impl Default for LaneBounds {
    fn default() -> Self {
        Self { max_waiting: 16, max_wait: DurationText::secs(120) }
    }
}

impl<'de> Deserialize<'de> for Lane {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LaneVisitor)
    }
}

struct LaneVisitor;

impl<'de> Visitor<'de> for LaneVisitor {
    type Value = Lane;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("off, or max_waiting and max_wait")
    }

    /// YAML 1.1 reads `off` so.
    fn visit_bool<E: de::Error>(self, is_on: bool) -> Result<Lane, E> {
        Ok(Lane(is_on.then(LaneBounds::default)))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Lane, E> {
        match text {
            "off" => Ok(Lane(None)),
            _ => Err(E::custom("is not off, or max_waiting and max_wait")),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Lane, A::Error> {
        LaneBounds::deserialize(MapAccessDeserializer::new(map)).map(|bounds| Lane(Some(bounds)))
    }
}

impl Serialize for Lane {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(bounds) => bounds.serialize(serializer),
            None => serializer.serialize_str("off"),
        }
    }
}

impl JsonSchema for Lane {
    fn schema_name() -> Cow<'static, str> {
        "Lane".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let bounds = generator.subschema_for::<LaneBounds>();
        json_schema!({
            "description": "off, or the bounds of waiting.",
            "anyOf": [{ "const": "off" }, bounds],
        })
    }
}
