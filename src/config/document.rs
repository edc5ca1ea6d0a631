//! The YAML text as a tree in which every node knows its place.
//!
//! Syntax, anchors, merge keys and repeated keys are `serde-saphyr`'s business. The environment is put in here, in
//! quoted scalars as in plain ones, and what it expands to is always one scalar, never YAML.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::expand::{Environment, expand};
use super::problem::{Place, Problem};

/// A text that was read.
#[derive(Debug)]
pub(super) struct Document {
    /// Where `root` stands, for messages; empty for a whole configuration.
    pub(super) path: &'static str,
    pub(super) root: Node,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
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

/// The way to a node. It is written out for a message only, e.g. `upstreams.letta.servers[0].url`: a file may have a
/// million nodes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Trail<'a> {
    Root(&'a str),
    Entry(&'a Self, &'a str),
    Item(&'a Self, usize),
}

impl Trail<'_> {
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Root(""))
    }
}

impl fmt::Display for Trail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(path) => f.write_str(path),
            Self::Entry(above, key) if above.is_empty() => f.write_str(key),
            Self::Entry(above, key) => write!(f, "{above}.{key}"),
            Self::Item(above, index) => write!(f, "{above}[{index}]"),
        }
    }
}

/// Reads `text` into a tree; an error of syntax is the only problem then.
pub(super) fn parse(text: &str, file: &str, env: Environment<'_>) -> Result<(Document, Vec<Problem>), Problem> {
    parse_below("", text, file, env)
}

/// The same for a text that is what stands at `path`.
pub(super) fn parse_below(
    path: &'static str,
    text: &str,
    file: &str,
    env: Environment<'_>,
) -> Result<(Document, Vec<Problem>), Problem> {
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
    let root = build.node(bare, &Trail::Root(path));
    Ok((Document { path, root }, problems))
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

impl Document {
    /// Where `path` stands; a key's own place, not its value's.
    pub(super) fn place(&self, path: &str) -> Option<Place> {
        match path.strip_prefix(self.path)? {
            "" => Some(self.root.place),
            rest => self.root.place_below(rest),
        }
    }

    /// The paths of what was told to be wrong.
    pub(super) fn broken(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.root.collect_broken(&Trail::Root(self.path), &mut paths);
        paths
    }

    /// Every path there is.
    #[cfg(test)]
    pub(super) fn paths(&self) -> Vec<String> {
        fn collect(node: &Node, trail: &Trail<'_>, paths: &mut Vec<String>) {
            paths.push(trail.to_string());
            node.each_below(trail, &mut |node, trail| collect(node, trail, paths));
        }
        let mut paths = Vec::new();
        collect(&self.root, &Trail::Root(self.path), &mut paths);
        paths
    }
}

impl Node {
    fn place_below(&self, path: &str) -> Option<Place> {
        match &self.value {
            Value::List(nodes) => {
                let (index, rest) = item(path)?;
                let node = nodes.get(index)?;
                if rest.is_empty() { Some(node.place) } else { node.place_below(rest) }
            }
            Value::Map(entries) => entries.iter().find_map(|entry| match entry.rest_of(path)? {
                "" => Some(entry.place),
                rest => entry.node.place_below(rest),
            }),
            _ => None,
        }
    }

    /// Takes what stands at `path` below it out of consideration; itself, if that is empty.
    pub(super) fn break_at(&mut self, path: &str) {
        let node = if path.is_empty() { Some(self) } else { self.below(path) };
        if let Some(node) = node {
            node.value = Value::Broken;
        }
    }

    fn below(&mut self, path: &str) -> Option<&mut Self> {
        match &mut self.value {
            Value::List(nodes) => {
                let (index, rest) = item(path)?;
                let node = nodes.get_mut(index)?;
                if rest.is_empty() { Some(node) } else { node.below(rest) }
            }
            Value::Map(entries) => entries.iter_mut().find_map(|entry| match entry.rest_of(path)? {
                "" => Some(&mut entry.node),
                rest => entry.node.below(rest),
            }),
            _ => None,
        }
    }

    fn collect_broken(&self, trail: &Trail<'_>, paths: &mut Vec<String>) {
        if self.is_broken() {
            paths.push(trail.to_string());
        }
        self.each_below(trail, &mut |node, trail| node.collect_broken(trail, paths));
    }

    fn each_below(&self, trail: &Trail<'_>, each: &mut impl FnMut(&Self, &Trail<'_>)) {
        match &self.value {
            Value::List(nodes) => {
                nodes.iter().enumerate().for_each(|(index, node)| each(node, &Trail::Item(trail, index)));
            }
            Value::Map(entries) => {
                entries.iter().for_each(|entry| each(&entry.node, &Trail::Entry(trail, &entry.key)));
            }
            _ => {}
        }
    }

    pub(super) fn is_broken(&self) -> bool {
        matches!(self.value, Value::Broken)
    }
}

impl Entry {
    /// What follows this entry's key in `path`, if it begins with that.
    fn rest_of<'p>(&self, path: &'p str) -> Option<&'p str> {
        let rest = path.strip_prefix('.').unwrap_or(path).strip_prefix(&*self.key)?;
        (rest.is_empty() || rest.starts_with(['.', '['])).then_some(rest)
    }
}

/// The number in front of `path`, and what follows it.
fn item(path: &str) -> Option<(usize, &str)> {
    let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
    Some((index.parse().ok()?, rest))
}

struct Build<'a> {
    file: &'a str,
    env: Environment<'a>,
    problems: &'a mut Vec<Problem>,
}

impl Build<'_> {
    fn node(&mut self, bare: Spanned<Bare>, trail: &Trail<'_>) -> Node {
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
                    let text = format!("{trail}: {text}");
                    self.problems.push(Problem { file: self.file.to_owned(), place: Some(place), text });
                    Value::Broken
                }
            },
            Bare::List(items) => Value::List(
                items
                    .into_iter()
                    .enumerate()
                    .map(|(index, item)| self.node(item, &Trail::Item(trail, index)))
                    .collect(),
            ),
            Bare::Map(entries) => {
                Value::Map(entries.into_iter().map(|(key, value)| self.entry(trail, key, value)).collect())
            }
        };
        Node { value, place }
    }

    fn entry(&mut self, trail: &Trail<'_>, key: Spanned<String>, value: Spanned<Bare>) -> Entry {
        let node = self.node(value, &Trail::Entry(trail, &key.value));
        Entry { node, place: place(key.defined), key: key.value }
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
