//! `workers: auto` or a number.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

/// Worker threads; None: one for each CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Workers(pub(super) Option<u16>);

const MOST: u16 = 1024;

impl<'de> Deserialize<'de> for Workers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WorkersVisitor)
    }
}

struct WorkersVisitor;

impl Visitor<'_> for WorkersVisitor {
    type Value = Workers;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "auto or a number from 1 to {MOST}")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Workers, E> {
        match u16::try_from(number) {
            Ok(number @ 1..=MOST) => Ok(Workers(Some(number))),
            _ => Err(E::custom(format_args!("is not auto or a number from 1 to {MOST}"))),
        }
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Workers, E> {
        match text {
            "auto" => Ok(Workers(None)),
            // an expanded ${…} is text
            text => self.visit_u64(text.parse().unwrap_or(0)),
        }
    }
}

impl Serialize for Workers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            None => serializer.serialize_str("auto"),
            Some(number) => serializer.serialize_u16(number),
        }
    }
}

impl JsonSchema for Workers {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Workers".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["integer", "string"],
            "description": "auto (one for each CPU) or a number.",
            "minimum": 1,
            "maximum": MOST,
            "pattern": r"^(?:auto|.*\$\{.+\}.*)$",
        })
    }
}
