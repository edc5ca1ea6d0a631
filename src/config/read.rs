//! A tree into the raw structs, telling everything that does not fit instead of the first thing only.
//!
//! Unknown keys are told and passed over. A value of the wrong kind is told, taken out of the tree, and the tree read
//! again until it fits.

use std::cell::RefCell;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, Unexpected, Visitor};

use super::document::{Entry, Node, Value};
use super::fault::Fault;
use super::problem::{Place, Problem, hint, nearest};

/// What was read of a tree.
pub(super) struct Read<T> {
    /// None: hardly anything fits.
    pub(super) value: Option<T>,
    pub(super) unknown_keys: Vec<Problem>,
    /// The paths that unknown keys were probably meant for.
    pub(super) meant: Vec<String>,
    /// Not empty: `value` misses what they are about.
    pub(super) misfits: Vec<Problem>,
}

/// Reads `root` as a `T`; what is told to be wrong is broken in `root`.
pub(super) fn read<T: DeserializeOwned>(root: &mut Node, file: &str) -> Read<T> {
    let unknown = RefCell::new(Vec::new());
    let mut misfits = Vec::new();
    let value = loop {
        match T::deserialize(Reader { node: root, unknown: &unknown }) {
            Ok(value) => break Some(value),
            Err(fault) => {
                let fault = fault.on(root);
                let Some((place, path)) = fault.at else { break None };
                misfits.push(Problem { file: file.to_owned(), place: Some(place), text: under(&path, &fault.text) });
                // each round breaks one more node, so this ends
                root.break_at(&path);
                if root.is_broken() {
                    break None;
                }
            }
        }
    };
    let mut unknown_keys: Vec<Problem> = Vec::new();
    let mut meant = Vec::new();
    for (place, text, path) in unknown.into_inner() {
        // every round tells them anew
        if !unknown_keys.iter().any(|told| told.place == Some(place)) {
            unknown_keys.push(Problem { file: file.to_owned(), place: Some(place), text });
            meant.extend(path);
        }
    }
    Read { value, unknown_keys, meant, misfits }
}

fn under(path: &str, text: &str) -> String {
    if path.is_empty() { text.to_owned() } else { format!("{path}: {text}") }
}

/// Where each stands, what to tell, and the path it was probably meant for.
type UnknownKeys = RefCell<Vec<(Place, String, Option<String>)>>;

#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
    unknown: &'a UnknownKeys,
}

impl<'a> Reader<'a> {
    fn child(self, node: &'a Node) -> Self {
        Self { node, ..self }
    }

    /// What an expanded `${…}` may stand for beside text.
    fn expanded<T: std::str::FromStr>(self) -> Option<T> {
        match &self.node.value {
            Value::Text { text, expanded: true } => text.trim().parse().ok(),
            _ => None,
        }
    }

    fn number<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.expanded() {
            Some(number) => visitor.visit_u64(number),
            None => self.deserialize_any(visitor),
        }
    }

    fn fields<'de, V: Visitor<'de>>(self, entries: &'a [Entry], known: &[&str], visitor: V) -> Result<V::Value, Fault> {
        for entry in entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
            let below = if self.node.path.is_empty() { String::new() } else { format!(" under {}", self.node.path) };
            let text = format!("unknown key \"{}\"{below}{}", entry.key, hint(&entry.key, known));
            let meant = nearest(&entry.key, known).map(|name| match self.node.path.as_str() {
                "" => name.to_owned(),
                path => format!("{path}.{name}"),
            });
            self.unknown.borrow_mut().push((entry.place, text, meant));
        }
        let entries = entries
            .iter()
            // an option without a value is left out
            .filter(|entry| {
                known.contains(&entry.key.as_str()) && !matches!(entry.node.value, Value::Null | Value::Broken)
            });
        visitor.visit_map(Entries { reader: self, rest: entries, next: None })
    }
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Null | Value::Broken => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Unsigned(value) => visitor.visit_u64(*value),
            Value::Signed(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text { text, .. } => visitor.visit_str(text),
            Value::List(nodes) => {
                let rest = nodes.iter().filter(|node| !node.is_broken());
                visitor.visit_seq(Items { reader: self, rest })
            }
            Value::Map(entries) => {
                let rest = entries.iter().filter(|entry| !entry.node.is_broken());
                visitor.visit_map(Entries { reader: self, rest, next: None })
            }
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.expanded() {
            Some(value) => visitor.visit_bool(value),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.number(visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.number(visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.number(visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.number(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Null => visitor.visit_map(Entries { reader: self, rest: std::iter::empty(), next: None }),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Null => self.fields(&[], known, visitor),
            Value::Map(entries) => self.fields(entries, known, visitor),
            // a derived struct would take a list for its fields in order
            Value::List(_) => Err(de::Error::invalid_type(Unexpected::Seq, &visitor)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Text { text, .. } => visitor.visit_enum(word(text)),
            // `min_version: 1.2` is a number to YAML
            Value::Float(number) => visitor.visit_enum(word(&number.to_string())),
            _ => self.deserialize_any(visitor),
        }
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct
        identifier ignored_any
    }
}

fn word(text: &str) -> StrDeserializer<'_, Fault> {
    text.into_deserializer()
}

struct Items<'a, I> {
    reader: Reader<'a>,
    rest: I,
}

impl<'de, 'a, I: Iterator<Item = &'a Node>> de::SeqAccess<'de> for Items<'a, I> {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        let Some(node) = self.rest.next() else { return Ok(None) };
        seed.deserialize(self.reader.child(node)).map(Some).map_err(|fault| fault.on(node))
    }
}

struct Entries<'a, I> {
    reader: Reader<'a>,
    rest: I,
    next: Option<&'a Node>,
}

impl<'de, 'a, I: Iterator<Item = &'a Entry>> de::MapAccess<'de> for Entries<'a, I> {
    type Error = Fault;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        let Some(entry) = self.rest.next() else { return Ok(None) };
        self.next = Some(&entry.node);
        seed.deserialize(word(&entry.key)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        let Some(node) = self.next.take() else { return Err(de::Error::custom("a value without its key")) };
        seed.deserialize(self.reader.child(node)).map_err(|fault| fault.on(node))
    }
}
