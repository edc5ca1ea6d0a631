//! What is wrong with a configuration, said so that it can be mended: the place, the thing, the fix.
//!
//! A problem never holds the text of a secret, and none of a value that came from the environment.

use std::fmt;
use std::path::Path;

/// A place in the file; both count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub line: u64,
    pub column: u64,
}

/// One thing that is wrong, or probably not meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub file: String,
    pub place: Option<Place>,
    /// What is wrong and how to put it right.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, place, text } = self;
        match place {
            Some(Place { line, column }) => write!(f, "{file}:{line}:{column}: {text}"),
            None => write!(f, "{file}: {text}"),
        }
    }
}

/// Everything that is wrong with one configuration, file by file in the order of the lines; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub(super) fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by(|one, other| (&one.file, one.place).cmp(&(&other.file, other.place)));
        Self(problems)
    }

    /// A problem of the file as a whole.
    pub(super) fn of_file(file: &Path, text: String) -> Self {
        Self(vec![Problem { file: file.display().to_string(), place: None, text }])
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// What of `known` was probably meant by `word`.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), *candidate))
        .filter(|(distance, candidate)| *distance * 5 <= candidate.chars().count().max(5) * 2)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `; did you mean "…"?` with the nearest of `known`, or else all of them.
pub(super) fn hint(word: &str, known: &[&str]) -> String {
    match nearest(word, known) {
        Some(candidate) => format!("; did you mean \"{candidate}\"?"),
        None if known.is_empty() => String::new(),
        None => format!("; known are {}", known.join(", ")),
    }
}
