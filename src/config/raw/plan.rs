//! The YAML of plans.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use crate::config::units::DurationText;

/// What the keys of a plan may use up; a limit that is left out does not limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct Plan {
    /// Who counts as one: each key (key), each key with each agent that its requests name in their path (agent), or all
    /// keys of the plan together (plan).
    pub scope: PlanScope,
    /// enforce, or shadow: a request that is too many passes, and is told in the metrics.
    pub mode: Mode,
    /// Requests per period; one rate, or a list of them that hold all at once.
    pub rate: Rates,
    /// Requests at once; a stream counts until its last byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u32>,
    /// What turns may cost in a period, by Letta's own count; a turn may start while anything is left.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<Budget>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            scope: PlanScope::Key,
            mode: Mode::Enforce,
            rate: Rates(Vec::new()),
            in_flight: None,
            budgets: Vec::new(),
        }
    }
}

impl Plan {
    pub(super) fn standard() -> Self {
        let rate = Rate { requests: Some(60), per: DurationText::secs(60), burst: Some(20) };
        Self { rate: Rates(vec![rate]), in_flight: Some(8), ..Self::default() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum PlanScope {
    Key,
    Agent,
    Plan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum Mode {
    Enforce,
    Shadow,
}

/// So many requests per period.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct Rate {
    /// How many.
    #[schemars(required)]
    pub requests: Option<u32>,
    /// In how long.
    pub per: DurationText,
    /// How many of them at once; left out: all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

impl Default for Rate {
    fn default() -> Self {
        Self { requests: None, per: DurationText::secs(60), burst: None }
    }
}

/// What turns may cost in a period; what is left out does not limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct Budget {
    /// Prompt and completion tokens together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Steps: calls of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Messages that Letta has taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turns: Option<u64>,
    /// In how long; periods of a day begin at midnight UTC.
    pub per: DurationText,
}

impl Default for Budget {
    fn default() -> Self {
        Self { tokens: None, steps: None, turns: None, per: DurationText::secs(24 * 3600) }
    }
}

/// One rate, written as it is, or a list of them.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::config) struct Rates(pub(in crate::config) Vec<Rate>);

impl<'de> Deserialize<'de> for Rates {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RatesVisitor)
    }
}

struct RatesVisitor;

impl<'de> Visitor<'de> for RatesVisitor {
    type Value = Rates;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("requests, per and burst, or a list of them")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Rates, A::Error> {
        Rate::deserialize(MapAccessDeserializer::new(map)).map(|rate| Rates(vec![rate]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Rates, A::Error> {
        let mut rates = Vec::new();
        while let Some(rate) = items.next_element()? {
            rates.push(rate);
        }
        Ok(Rates(rates))
    }
}

impl Serialize for Rates {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            all => all.serialize(serializer),
        }
    }
}

impl JsonSchema for Rates {
    fn schema_name() -> Cow<'static, str> {
        "Rates".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let rate = generator.subschema_for::<Rate>();
        json_schema!({
            "description": "One rate, or a list of rates that hold all at once.",
            "anyOf": [rate, { "type": "array", "items": rate }],
        })
    }
}
