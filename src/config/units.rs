//! Durations and sizes as text with their unit: a bare number is refused, because nobody can see what it counts.

use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

/// `250ms`, `30s`, `5m`, `1h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DurationText(pub(super) Duration);

/// `64MiB`, `1MB`, `512B`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ByteSize(pub(super) u64);

/// From the largest: a text names each at most once and in this order.
const TIME_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

const SIZE_UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("B", 1),
];

const DURATION_FIX: &str = "write it like 250ms, 30s, 5m or 1h30m";
const SIZE_FIX: &str = "write it like 512B, 256KiB, 64MiB or 1MB";

impl DurationText {
    pub(super) const fn millis(count: u64) -> Self {
        Self(Duration::from_millis(count))
    }

    pub(super) const fn secs(count: u64) -> Self {
        Self(Duration::from_secs(count))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut rest = text;
        let mut units = TIME_UNITS.iter();
        let mut millis: u64 = 0;
        while !rest.is_empty() {
            let (count, after) = number(rest)?;
            let name = after.split(|c: char| c.is_ascii_digit()).next()?;
            let (_, unit) = units.find(|(unit, _)| *unit == name)?;
            millis = millis.checked_add(count.checked_mul(*unit)?)?;
            rest = after.get(name.len()..)?;
        }
        (!text.is_empty()).then_some(Self::millis(millis))
    }
}

impl ByteSize {
    pub(super) const fn kib(count: u64) -> Self {
        Self(count << 10)
    }

    pub(super) const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    fn parse(text: &str) -> Option<Self> {
        let (count, name) = number(text)?;
        let (_, unit) = SIZE_UNITS.iter().find(|(unit, _)| *unit == name)?;
        count.checked_mul(*unit).map(Self)
    }
}

/// The digits in front, and what follows them.
fn number(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text.get(..digits)?.parse().ok()?, text.get(digits..)?))
}

impl fmt::Display for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        for (name, unit) in TIME_UNITS {
            if rest >= unit {
                write!(f, "{}{name}", rest / unit)?;
                rest %= unit;
            }
        }
        Ok(())
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = SIZE_UNITS.iter().find(|(_, unit)| self.0 != 0 && self.0.is_multiple_of(*unit));
        let (name, unit) = whole.copied().unwrap_or(("B", 1));
        write!(f, "{}{name}", self.0 / unit)
    }
}

struct UnitVisitor<T> {
    parse: fn(&str) -> Option<T>,
    what: &'static str,
    fix: &'static str,
}

impl<T> Visitor<'_> for UnitVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.what, self.fix)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        let missing = if text.bytes().all(|b| b.is_ascii_digit()) { "has no unit" } else { "is not" };
        (self.parse)(text.trim()).ok_or_else(|| match missing {
            "is not" => E::custom(format_args!("is not {}; {}", self.what, self.fix)),
            _ => E::custom(format_args!("has no unit; {}", self.fix)),
        })
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<T, E> {
        Err(E::custom(format_args!("has no unit; {}", self.fix)))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<T, E> {
        Err(E::custom(format_args!("has no unit; whole numbers only: {}", self.fix)))
    }
}

impl<'de> Deserialize<'de> for DurationText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UnitVisitor { parse: Self::parse, what: "a duration", fix: DURATION_FIX })
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UnitVisitor { parse: Self::parse, what: "a size", fix: SIZE_FIX })
    }
}

impl Serialize for DurationText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for DurationText {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A duration with its unit: 250ms, 30s, 5m, 1h30m.",
            "pattern": r"^(?:(?:\d+d)?(?:\d+h)?(?:\d+m)?(?:\d+s)?(?:\d+ms)?|.*\$\{.+\}.*)$",
        })
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A size with its unit: 512B, 256KiB, 64MiB, 1MB.",
            "pattern": r"^(?:\d+(?:B|KiB|KB|MiB|MB|GiB|GB)|.*\$\{.+\}.*)$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_add_their_units_up() {
        for (text, millis) in [("250ms", 250), ("30s", 30_000), ("1h30m", 5_400_000), ("1m500ms", 60_500), ("0s", 0)] {
            assert_eq!(DurationText::parse(text), Some(DurationText::millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_or_size_is_refused() {
        for text in
            ["", "s", "30", "30 s", "1m1h", "1s1s", "-1s", "1.5s", "99999999999999999999s", "999999999999999999d"]
        {
            assert_eq!(DurationText::parse(text), None, "{text}");
        }
        for text in ["", "MiB", "64", "64 MiB", "64mib", "1M", "1MiB1KiB", "99999999999GiB"] {
            assert_eq!(ByteSize::parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_shown_reads_back_the_same() {
        for millis in [0, 1, 999, 1_000, 61_001, 90_061_001] {
            let value = DurationText::millis(millis);
            assert_eq!(DurationText::parse(&value.to_string()), Some(value));
        }
        for (bytes, text) in
            [(0, "0B"), (1, "1B"), (1_500, "1500B"), (2_000, "2KB"), (1 << 18, "256KiB"), (64 << 20, "64MiB")]
        {
            assert_eq!(ByteSize(bytes).to_string(), text);
            assert_eq!(ByteSize::parse(text), Some(ByteSize(bytes)));
        }
    }
}
