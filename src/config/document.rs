//! The YAML text as a tree in which every node knows its place and its path.
//!
//! Syntax, anchors, merge keys and repeated keys are `serde-saphyr`'s business. The environment is put in here, in
//! quoted scalars as in plain ones, and what it expands to is always one scalar, never YAML.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::expand::{Environment, expand};
use super::problem::{Place, Problem};

#[derive(Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
    /// For messages, e.g. `upstreams.letta.servers[0].url`; the root's is empty.
    pub(super) path: String,
}

#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    /// `expanded`: holds something from the environment, so it is not to be shown and may stand for a number.
    Text {
        text: String,
        expanded: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
    /// Was told to be wrong; counts as left out, so that the rest can be looked at.
    Broken,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) node: Node,
}

/// Reads `text` into a tree; an error of syntax is the only problem then.
pub(super) fn parse(text: &str, file: &str, env: Environment<'_>) -> Result<(Node, Vec<Problem>), Problem> {
    parse_below("", text, file, env)
}

/// The same for a text that is what stands at `path`.
pub(super) fn parse_below(
    path: &str,
    text: &str,
    file: &str,
    env: Environment<'_>,
) -> Result<(Node, Vec<Problem>), Problem> {
    // a text that repeats nothing has no more nodes than characters, however many keys it holds; what aliases make of a
    // short one stays bounded
    let budget = serde_saphyr::budget! {
        max_nodes: text.len().max(250_000),
        max_events: text.len().saturating_mul(2).max(1_000_000),
        max_total_scalar_bytes: text.len().max(64 << 20),
    };
    // snippets would print neighbouring lines, secrets among them
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false, budget: budget };
    let bare: Spanned<Bare> =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| syntax(&error, file))?;
    let mut problems = Vec::new();
    let mut build = Build { file, env, problems: &mut problems };
    let root = build.node(bare, path.to_owned());
    Ok((root, problems))
}

fn syntax(error: &serde_saphyr::Error, file: &str) -> Problem {
    let error = error.without_snippet();
    let place = error.location().map(place);
    let text = match error {
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("\"{key}\" stands here twice; keep one")
        }
        _ => {
            let text = error.to_string();
            // the place is in front already
            let end = text.rfind(" at line ").or_else(|| text.rfind(" (line ")).filter(|_| place.is_some());
            format!("not valid YAML: {}", end.and_then(|end| text.get(..end)).unwrap_or(&text))
        }
    };
    Problem { file: file.to_owned(), place, text }
}

fn place(location: serde_saphyr::Location) -> Place {
    Place { line: location.line(), column: location.column() }
}

impl Node {
    /// Where each path stands; a key's own place, not its value's.
    pub(super) fn places(&self) -> HashMap<String, Place> {
        let mut places = HashMap::from([(self.path.clone(), self.place)]);
        self.collect(&mut places);
        places
    }

    fn collect(&self, places: &mut HashMap<String, Place>) {
        match &self.value {
            Value::List(nodes) => {
                for node in nodes {
                    places.insert(node.path.clone(), node.place);
                    node.collect(places);
                }
            }
            Value::Map(entries) => {
                for entry in entries {
                    places.insert(entry.node.path.clone(), entry.place);
                    entry.node.collect(places);
                }
            }
            _ => {}
        }
    }

    /// Takes the node at `path` out of consideration.
    pub(super) fn break_at(&mut self, path: &str) {
        if self.path == path {
            self.value = Value::Broken;
            return;
        }
        match &mut self.value {
            Value::List(nodes) => nodes.iter_mut().for_each(|node| node.break_at(path)),
            Value::Map(entries) => entries.iter_mut().for_each(|entry| entry.node.break_at(path)),
            _ => {}
        }
    }

    /// The paths of what was told to be wrong.
    pub(super) fn broken(&self) -> Vec<String> {
        match &self.value {
            Value::Broken => vec![self.path.clone()],
            Value::List(nodes) => nodes.iter().flat_map(Self::broken).collect(),
            Value::Map(entries) => entries.iter().flat_map(|entry| entry.node.broken()).collect(),
            _ => Vec::new(),
        }
    }

    pub(super) fn is_broken(&self) -> bool {
        matches!(self.value, Value::Broken)
    }
}

struct Build<'a> {
    file: &'a str,
    env: Environment<'a>,
    problems: &'a mut Vec<Problem>,
}

impl Build<'_> {
    fn node(&mut self, bare: Spanned<Bare>, path: String) -> Node {
        let place = place(bare.defined);
        let value = match bare.value {
            Bare::Null => Value::Null,
            Bare::Bool(value) => Value::Bool(value),
            Bare::Unsigned(value) => Value::Unsigned(value),
            Bare::Signed(value) => Value::Signed(value),
            Bare::Float(value) => Value::Float(value),
            Bare::Text(text) => match expand(&text, self.env) {
                Ok(None) => Value::Text { text, expanded: false },
                Ok(Some(text)) => Value::Text { text, expanded: true },
                Err(text) => {
                    let text = format!("{path}: {text}");
                    self.problems.push(Problem { file: self.file.to_owned(), place: Some(place), text });
                    Value::Broken
                }
            },
            Bare::List(items) => Value::List(
                items
                    .into_iter()
                    .enumerate()
                    .map(|(index, item)| self.node(item, format!("{path}[{index}]")))
                    .collect(),
            ),
            Bare::Map(entries) => {
                Value::Map(entries.into_iter().map(|(key, value)| self.entry(&path, key, value)).collect())
            }
        };
        Node { value, place, path }
    }

    fn entry(&mut self, path: &str, key: Spanned<String>, value: Spanned<Bare>) -> Entry {
        let below = if path.is_empty() { key.value.clone() } else { format!("{path}.{}", key.value) };
        Entry { node: self.node(value, below), place: place(key.defined), key: key.value }
    }
}

/// A YAML value as it stands.
enum Bare {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    List(Vec<Spanned<Bare>>),
    Map(Vec<(Spanned<String>, Spanned<Bare>)>),
}

impl<'de> Deserialize<'de> for Bare {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BareVisitor)
    }
}

struct BareVisitor;

impl<'de> Visitor<'de> for BareVisitor {
    type Value = Bare;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Bare, E> {
        Ok(Bare::Null)
    }

    fn visit_none<E>(self) -> Result<Bare, E> {
        Ok(Bare::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Bare, E> {
        Ok(Bare::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Bare, E> {
        Ok(Bare::Unsigned(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Bare, E> {
        Ok(u64::try_from(value).map_or(Bare::Signed(value), Bare::Unsigned))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Bare, E> {
        Ok(Bare::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Bare, E> {
        Ok(Bare::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Bare, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Bare::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Bare, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Bare::Map(map))
    }
}
