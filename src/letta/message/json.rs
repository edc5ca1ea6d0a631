//! JSON as a message has it: maps in the order of their keys, and nothing that another reader could take otherwise.
//!
//! A text has `MOST_VALUES` values and keys at most, or it is given up at the next: a tree of them takes many times what
//! the text does.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Values and keys of one text.
pub(super) const MOST_VALUES: u32 = 100_000;

/// A value; its texts are borrowed where nothing in them is escaped. The order is of no meaning but total.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Json<'j> {
    #[default]
    Null,
    Bool(bool),
    Number(i128),
    /// A fraction, or a number beyond 64 bits, by the bits of the nearest double: digits that Letta keeps may be lost.
    Inexact(u64),
    Text(Cow<'j, str>),
    /// Content that is one part: a list of one map of its text and `"type": "text"`. It is written as that.
    OnePart(Cow<'j, str>),
    List(Vec<Self>),
    /// Sorted by key, each key once.
    Map(Vec<(Cow<'j, str>, Self)>),
}

pub(super) fn parse(text: &[u8]) -> Result<Json<'_>, serde_json::Error> {
    // checked at once, not text by text
    let text = std::str::from_utf8(text).map_err(Error::custom)?;
    counted(text, &Cell::new(0))
}

/// Reads `text`, and counts its values and keys in `values`.
fn counted<'j>(text: &'j str, values: &Cell<u32>) -> Result<Json<'j>, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let json = AnyValue { values }.deserialize(&mut reader)?;
    reader.end().map(|()| json)
}

/// A map of `fields`; `None` if a key is there twice: readers differ in which they take.
pub(super) fn map<'j>(mut fields: Vec<(Cow<'j, str>, Json<'j>)>) -> Option<Json<'j>> {
    fields.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    let twice = fields.windows(2).any(|pair| matches!(pair, [(one, _), (other, _)] if one == other));
    (!twice).then_some(Json::Map(fields))
}

impl<'j> Json<'j> {
    pub(super) fn field(&self, name: &str) -> Option<&Self> {
        let Self::Map(fields) = self else { return None };
        fields.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.field(name)? {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// No digit of it was lost.
    pub(super) fn is_exact(&self) -> bool {
        match self {
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::Text(_) | Self::OnePart(_) => true,
            Self::Inexact(_) => false,
            Self::List(list) => list.iter().all(Self::is_exact),
            Self::Map(fields) => fields.iter().all(|(_, value)| value.is_exact()),
        }
    }

    /// Writes the value so that no two values are written alike, and none is the beginning of another.
    pub(super) fn encode(&self, to: &mut Vec<u8>) {
        match self {
            Self::Null => to.push(b'0'),
            Self::Bool(false) => to.push(b'f'),
            Self::Bool(true) => to.push(b't'),
            Self::Number(number) => {
                to.push(b'n');
                to.extend_from_slice(&number.to_be_bytes());
            }
            Self::Inexact(bits) => {
                to.push(b'x');
                to.extend_from_slice(&bits.to_be_bytes());
            }
            Self::Text(text) => encode_text(text, to),
            Self::OnePart(text) => {
                to.push(b'l');
                encode_length(1, to);
                to.push(b'm');
                encode_length(2, to);
                ["text", text, "type", "text"].into_iter().for_each(|text| encode_text(text, to));
            }
            Self::List(list) => {
                to.push(b'l');
                encode_length(list.len(), to);
                list.iter().for_each(|value| value.encode(to));
            }
            Self::Map(fields) => {
                to.push(b'm');
                encode_length(fields.len(), to);
                for (name, value) in fields {
                    encode_text(name, to);
                    value.encode(to);
                }
            }
        }
    }
}

fn encode_text(text: &str, to: &mut Vec<u8>) {
    to.push(b's');
    encode_length(text.len(), to);
    to.extend_from_slice(text.as_bytes());
}

fn encode_length(length: usize, to: &mut Vec<u8>) {
    // bodies that are read are shorter than that
    to.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
}

#[derive(Clone, Copy)]
struct AnyValue<'c> {
    values: &'c Cell<u32>,
}

impl AnyValue<'_> {
    /// Counts one more, before it is kept.
    fn count<E: Error>(self) -> Result<(), E> {
        let values = self.values.get() + 1;
        self.values.set(values);
        if values > MOST_VALUES { Err(E::custom("too many values")) } else { Ok(()) }
    }
}

impl<'de> DeserializeSeed<'de> for AnyValue<'_> {
    type Value = Json<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json<'de>, D::Error> {
        self.count()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnyValue<'_> {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without duplicate keys")
    }

    fn visit_unit<E>(self) -> Result<Json<'de>, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json<'de>, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json<'de>, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json<'de>, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json<'de>, E> {
        Ok(Json::Inexact(value.to_bits()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Borrowed(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json<'de>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json<'de>, A::Error> {
        let mut fields = Vec::new();
        while let Some(entry) = entries.next_entry_seed(Name(self), self)? {
            fields.push(entry);
        }
        map(fields).ok_or_else(|| A::Error::custom("a key is there twice"))
    }
}

/// A key; borrowed like a text.
struct Name<'c>(AnyValue<'c>);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cow<'de, str>, D::Error> {
        self.0.count()?;
        match deserializer.deserialize_str(self.0)? {
            Json::Text(text) => Ok(text),
            _ => Err(D::Error::custom("a key that is no text")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether `text` is read, and how many values were counted until then.
    fn read(text: &str) -> (bool, u32) {
        let values = Cell::new(0);
        let json = counted(text, &values);
        (json.is_ok(), values.get())
    }

    #[test]
    fn every_value_and_every_key_counts_once() {
        for (text, values) in [
            ("null", 1),
            ("[]", 1),
            ("{}", 1),
            ("[true,-1,0.5,\"x\"]", 5),
            (r#"{"a":"b"}"#, 3),
            (r#"{"a":{"\u0062":[[],1]}}"#, 7),
        ] {
            assert_eq!(read(text), (true, values), "{text}");
        }
    }

    #[test]
    fn a_text_of_too_many_values_is_given_up_at_the_first_of_them() {
        let most = usize::try_from(MOST_VALUES).unwrap();
        let list = |item: &str, count| format!("[{}]", vec![item; count].join(","));
        // an item of so many values
        for (item, size) in [("0", 1), ("[0]", 2), (r#"{"":[0]}"#, 4), (r#"{"":0}"#, 3)] {
            let fit = (most - 1) / size;
            let (is_read, values) = read(&list(item, fit));
            assert!(is_read && values <= MOST_VALUES, "{item}: {values}");
            for count in [fit + 1, 8 * fit] {
                assert_eq!(read(&list(item, count)), (false, MOST_VALUES + 1), "{item} {count} times");
            }
        }
        assert_eq!(read(&list("0", most - 1)), (true, MOST_VALUES));
    }
}
