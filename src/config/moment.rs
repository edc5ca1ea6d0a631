//! A moment as RFC 3339 writes it: `2027-01-31T00:00:00Z`, `2027-01-31T12:00:00.5+01:00`.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

/// A moment, kept with the text it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) time: SystemTime,
    text: String,
}

const FIX: &str = "write it like 2027-01-31T00:00:00Z";

impl Moment {
    /// `None`: not RFC 3339, no day of the calendar, or before 1970.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(Self { time: UNIX_EPOCH + parse(text)?, text: text.to_owned() })
    }
}

/// Since 1970.
fn parse(text: &str) -> Option<Duration> {
    // all of the form is ASCII, so that bytes are characters
    let mut rest = text.is_ascii().then_some(text)?;
    let mut number = |digits: usize, after: &[&str]| {
        let (number, behind) = rest.split_at_checked(digits)?;
        rest = match after {
            [] => behind,
            marks => marks.iter().find_map(|mark| behind.strip_prefix(mark))?,
        };
        number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse::<u64>().ok()).flatten()
    };
    let (year, month, day) = (number(4, &["-"])?, number(2, &["-"])?, number(2, &["T", "t", " "])?);
    let (hour, minute, second) = (number(2, &[":"])?, number(2, &[":"])?, number(2, &[])?);
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let last = match month {
        2 => 28 + u64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    // a leap second is the last one of its minute
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=last).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits = fraction.find(|c: char| !c.is_ascii_digit()).unwrap_or(fraction.len());
        let (digits, behind) = fraction.split_at_checked(digits).filter(|(digits, _)| !digits.is_empty())?;
        nanos = format!("{digits:0<9}").get(..9)?.parse::<u32>().ok()?;
        rest = behind;
    }
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second.min(59);
    Some(Duration::new(seconds.checked_add_signed(-offset(rest)?)?, nanos))
}

/// Seconds east of Greenwich.
fn offset(text: &str) -> Option<i64> {
    if matches!(text, "Z" | "z") {
        return Some(0);
    }
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = rest.split_once(':')?;
    let two = |text: &str, most: i64| {
        let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<i64>().ok()).flatten().filter(|number| *number <= most)
    };
    Some(sign * (two(hours, 23)? * 3600 + two(minutes, 59)? * 60))
}

/// Days from 1970-01-01 on, in years that begin in March: the leap day is the last of its year.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leaps = year / 4 - year / 100 + year / 400;
    // from 0000-03-01, which is 719468 days before 1970
    365 * year + leaps + (153 * month + 2) / 5 + day - 1 - 719_468
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

struct MomentVisitor;

impl Visitor<'_> for MomentVisitor {
    type Value = Moment;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a moment ({FIX})")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Moment, E> {
        Moment::parse(text.trim()).ok_or_else(|| E::custom(format_args!("is no moment with a time zone; {FIX}")))
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MomentVisitor)
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl JsonSchema for Moment {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Moment".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "A moment of RFC 3339, e.g. 2027-01-31T00:00:00Z." })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_rfc_3339() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01t00:00:01z", 1),
            ("2000-02-29T00:00:00Z", 951_782_400),
            ("2026-11-24T03:05:19Z", 1_795_489_519),
            ("2026-11-24 04:05:19+01:00", 1_795_489_519),
            ("2026-11-23T22:05:19-05:00", 1_795_489_519),
            ("2100-03-01T00:00:00.000-00:00", 4_107_542_400),
            ("2016-12-31T23:59:60Z", 1_483_228_799),
            ("9999-12-31T23:59:59Z", 253_402_300_799),
        ] {
            assert_eq!(parse(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse("1970-01-01T00:00:00.25Z"), Some(Duration::from_millis(250)));
        assert_eq!(parse("1970-01-01T00:00:00.0000000019Z"), Some(Duration::from_nanos(1)));
    }

    #[test]
    fn what_is_no_moment_is_none() {
        for text in [
            "",
            "2027",
            "2027-01-31",
            "2027-01-31T00:00:00",
            "2027-01-31T00:00Z",
            "2027-1-31T00:00:00Z",
            "2027-02-29T00:00:00Z",
            "2027-13-01T00:00:00Z",
            "2027-00-01T00:00:00Z",
            "2027-01-00T00:00:00Z",
            "2027-01-31T24:00:00Z",
            "2027-01-31T00:60:00Z",
            "2027-01-31T00:00:61Z",
            "2027-01-31T00:00:00.Z",
            "2027-01-31T00:00:00+1:00",
            "2027-01-31T00:00:00+0100",
            "2027-01-31T00:00:00 Z",
            "+027-01-31T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+00:01",
            "2027-01-31T00:00:00Zé",
            "é027-01-31T00:00:00Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
