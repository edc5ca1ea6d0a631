//! A tree into the raw structs, telling everything that does not fit instead of the first thing only.
//!
//! Unknown keys are told and passed over. A value of the wrong kind is told, taken out of the tree, and the tree read
//! again until it fits.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, Unexpected, Visitor};

use super::document::{Document, Entry, Node, Trail, Value};
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

/// Reads `document` as a `T`; what is told to be wrong is broken in it.
pub(super) fn read<T: DeserializeOwned>(document: &mut Document, file: &str) -> Read<T> {
    let mut reading = Reading::of(file);
    let value = reading.node(&mut document.root, &Trail::Root(document.path));
    reading.done(value)
}

/// The same for a list, each item by itself: a mistake in every one of many thousands is told in one go.
pub(super) fn read_list<T: DeserializeOwned>(document: &mut Document, file: &str) -> Read<Vec<T>> {
    let Value::List(nodes) = &mut document.root.value else { return read(document, file) };
    let mut reading = Reading::of(file);
    let trail = Trail::Root(document.path);
    let nodes = nodes.iter_mut().enumerate().filter(|(_, node)| !node.is_broken());
    let items = nodes.filter_map(|(index, node)| reading.node(node, &Trail::Item(&trail, index))).collect();
    reading.done(Some(items))
}

struct Reading<'f> {
    file: &'f str,
    unknown_keys: Vec<Problem>,
    meant: Vec<String>,
    misfits: Vec<Problem>,
}

impl<'f> Reading<'f> {
    fn of(file: &'f str) -> Self {
        Self { file, unknown_keys: Vec::new(), meant: Vec::new(), misfits: Vec::new() }
    }

    fn node<T: DeserializeOwned>(&mut self, root: &mut Node, trail: &Trail<'_>) -> Option<T> {
        let unknown = RefCell::new(Vec::new());
        let value = loop {
            match T::deserialize(Reader { node: root, trail, unknown: &unknown }) {
                Ok(value) => break Some(value),
                Err(fault) => {
                    let fault = fault.on(root, trail);
                    let Some((place, path)) = fault.at else { break None };
                    self.misfits.push(self.problem(place, under(&path, &fault.text)));
                    // each round breaks one more node, so this ends
                    root.break_at(path.strip_prefix(&trail.to_string()).unwrap_or_default());
                    if root.is_broken() {
                        break None;
                    }
                }
            }
        };
        let mut told = BTreeSet::new();
        for (place, text, path) in unknown.into_inner() {
            // every round tells them anew
            if told.insert(place) {
                self.unknown_keys.push(self.problem(place, text));
                self.meant.extend(path);
            }
        }
        value
    }

    fn problem(&self, place: Place, text: String) -> Problem {
        Problem { file: self.file.to_owned(), place: Some(place), text }
    }

    fn done<T>(self, value: Option<T>) -> Read<T> {
        let Self { file: _, unknown_keys, meant, misfits } = self;
        Read { value, unknown_keys, meant, misfits }
    }
}

fn under(path: &str, text: &str) -> String {
    if path.is_empty() { text.to_owned() } else { format!("{path}: {text}") }
}

/// Where each stands, what to tell, and the path it was probably meant for.
type UnknownKeys = RefCell<Vec<(Place, String, Option<String>)>>;

#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
    trail: &'a Trail<'a>,
    unknown: &'a UnknownKeys,
}

impl<'a> Reader<'a> {
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
            let below = if self.trail.is_empty() { String::new() } else { format!(" under {}", self.trail) };
            let text = format!("unknown key \"{}\"{below}{}", entry.key, hint(&entry.key, known));
            let meant = nearest(&entry.key, known).map(|name| Trail::Entry(self.trail, name).to_string());
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
                let rest = nodes.iter().enumerate().filter(|(_, node)| !node.is_broken());
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

impl<'de, 'a, I: Iterator<Item = (usize, &'a Node)>> de::SeqAccess<'de> for Items<'a, I> {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        let Some((index, node)) = self.rest.next() else { return Ok(None) };
        let trail = Trail::Item(self.reader.trail, index);
        let reader = Reader { node, trail: &trail, unknown: self.reader.unknown };
        seed.deserialize(reader).map(Some).map_err(|fault| fault.on(node, &trail))
    }
}

struct Entries<'a, I> {
    reader: Reader<'a>,
    rest: I,
    next: Option<&'a Entry>,
}

impl<'de, 'a, I: Iterator<Item = &'a Entry>> de::MapAccess<'de> for Entries<'a, I> {
    type Error = Fault;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        let Some(entry) = self.rest.next() else { return Ok(None) };
        self.next = Some(entry);
        seed.deserialize(word(&entry.key)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        let Some(Entry { key, node, .. }) = self.next.take() else {
            return Err(de::Error::custom("a value without its key"));
        };
        let trail = Trail::Entry(self.reader.trail, key);
        let reader = Reader { node, trail: &trail, unknown: self.reader.unknown };
        seed.deserialize(reader).map_err(|fault| fault.on(node, &trail))
    }
}
