//! Why a value does not fit, in the words of who writes YAML.
//!
//! Kinds are named, values only where they stand in the file itself: what came from the environment may be a secret.

use std::fmt;

use serde::de::{self, Expected, Unexpected};

use super::document::{Node, Trail, Value};
use super::problem::{Place, hint};

/// Why a node is not what it should be.
#[derive(Debug)]
pub(super) struct Fault {
    /// Set on the way up by the first that knows.
    pub(super) at: Option<(Place, String)>,
    pub(super) text: String,
    /// The message speaks of the value, which is to stand in front.
    of_value: bool,
}

impl Fault {
    fn new(text: String) -> Self {
        Self { at: None, text, of_value: false }
    }

    pub(super) fn on(mut self, node: &Node, trail: &Trail<'_>) -> Self {
        if self.at.is_none() {
            self.at = Some((node.place, trail.to_string()));
            if self.of_value {
                self.text = format!("{} {}", shown(&node.value), self.text);
            }
        }
        self
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Text { expanded: true, .. } => "what ${…} stands for".to_owned(),
        Value::Text { text, .. } => format!("\"{text}\""),
        Value::Unsigned(number) => number.to_string(),
        Value::Signed(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Null | Value::List(_) | Value::Map(_) | Value::Broken => "this".to_owned(),
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self { of_value: true, ..Self::new(text.to_string()) }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match found {
            Unexpected::Bool(_) => "true or false",
            Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Float(_) => "a number",
            Unexpected::Str(_) => "text",
            Unexpected::Unit | Unexpected::Option => "nothing",
            Unexpected::Seq => "a list",
            Unexpected::Map => "a map",
            _ => "this",
        };
        let expected = wanted(&expected.to_string());
        let quote = if expected == "text" && found != "a list" && found != "a map" { "; put it in quotes" } else { "" };
        Self::new(format!("must be {expected}, not {found}{quote}"))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!("must be {}", wanted(&expected.to_string())))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let _ = variant;
        Self { of_value: true, ..Self::new(format!("is not known{}", hint(variant, expected))) }
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(format!("\"{field}\" is missing"))
    }
}

/// serde's names of what it wants, in the words of who writes YAML.
fn wanted(expected: &str) -> String {
    match expected {
        "a string" | "string" => "text".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "u16" => format!("a whole number from 0 to {}", u16::MAX),
        // each such option counts something and has a bound of its own
        "u32" => "a whole number of at least 1".to_owned(),
        "u64" => "a whole number".to_owned(),
        "a sequence" => "a list (lines that start with \"- \")".to_owned(),
        other if other == "a map" || other.starts_with("struct ") => "a map (lines of \"key: value\")".to_owned(),
        other => other.to_owned(),
    }
}
