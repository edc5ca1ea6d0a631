//! The rules of the house that no compiler holds, as tests on the source itself: modules use only what `lib.rs` declares
//! above them, some crates have a room of their own, files open with what they are, names say something.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may fail loudly")]

use std::fs;
use std::path::{Path, PathBuf};

/// Crates that are named in one place only, so that what they are wrapped in cannot be walked around.
const ROOMS: &[(&str, &[&str])] = &[
    ("redis", &["store"]),
    ("moka", &["store"]),
    ("rustls", &["listen"]),
    ("tokio_rustls", &["listen"]),
    ("prometheus", &["telemetry"]),
    ("governor", &["limits"]),
    ("tower_governor", &["limits"]),
    ("matchit", &["letta"]),
    ("serde_saphyr", &["config"]),
];

/// Words that name nothing.
const EMPTY_NAMES: &[&str] = &["Manager", "Handler", "Helper", "Helpers", "Util", "Utils", "Common", "Misc", "Types"];

/// A source file of the library.
struct Source {
    /// From `src/` on.
    path: PathBuf,
    text: String,
    /// The text with comments and literals blanked out.
    code: String,
}

impl Source {
    /// The module of `lib.rs` it belongs to.
    fn room(&self) -> String {
        let first = self.path.iter().next().unwrap().to_str().unwrap();
        first.trim_end_matches(".rs").to_owned()
    }

    /// How many modules it is below the crate.
    fn depth(&self) -> usize {
        self.path.iter().count() - usize::from(self.path.ends_with("mod.rs"))
    }

    fn is_root(&self) -> bool {
        self.path == Path::new("lib.rs") || self.path == Path::new("main.rs")
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut sources) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(&root).unwrap().to_owned();
                sources.push(Source { code: blanked(&text), path, text });
            }
        }
    }
    assert!(sources.len() > 20, "the source is found");
    sources
}

/// The modules in the order of `lib.rs`.
fn table_of_contents(sources: &[Source]) -> Vec<&str> {
    let lib = sources.iter().find(|source| source.path == Path::new("lib.rs")).unwrap();
    lib.code.lines().filter_map(|line| line.trim().strip_prefix("pub mod ")?.split(';').next()).collect()
}

/// Replaces comments, texts and characters by spaces; line ends stay.
fn blanked(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let length = literal(rest).unwrap_or_else(|| {
            // a whole word at once, so that the r of `for"` is no raw text's
            let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let length = word.max(next.len_utf8());
            code.push_str(&rest[..length]);
            rest = &rest[length..];
            0
        });
        code.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[length..];
    }
    code
}

/// The length of the comment or literal that `text` begins with.
fn literal(text: &str) -> Option<usize> {
    let until = |from: usize, end: &str| Some(text[from..].find(end).map_or(text.len(), |at| from + at + end.len()));
    if text.starts_with("//") {
        return until(2, "\n");
    }
    if text.starts_with("/*") {
        return until(2, "*/");
    }
    let raw = text.strip_prefix('b').unwrap_or(text);
    if let Some(hashes) = raw.strip_prefix('r').map(|raw| raw.len() - raw.trim_start_matches('#').len()) {
        let start = text.len() - raw.len() + 1 + hashes;
        if text[start..].starts_with('"') {
            return until(start + 1, &format!("\"{}", "#".repeat(hashes)));
        }
    }
    let quoted = |start: usize, quote: char| {
        let mut escaped = false;
        let end = text[start..].char_indices().find(|(_, c)| {
            let ends = *c == quote && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        });
        end.map_or(text.len(), |(at, _)| start + at + 1)
    };
    let start = text.len() - raw.len() + 1;
    match raw.chars().next()? {
        '"' => Some(quoted(start, '"')),
        // 'a', '\n'; a lifetime has no second quote there
        '\'' if raw[1..].starts_with('\\') || raw[1..].chars().nth(1) == Some('\'') => Some(quoted(start, '\'')),
        _ => None,
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// What follows each `word` that stands alone in `code`, with whether a path stands before it.
fn after<'c>(code: &'c str, word: &'c str) -> impl Iterator<Item = (bool, &'c str)> {
    code.match_indices(word).filter_map(move |(at, _)| {
        let (before, rest) = (&code[..at], &code[at + word.len()..]);
        let alone = !before.ends_with(is_name) && !rest.starts_with(is_name);
        alone.then_some((before.ends_with("::"), rest))
    })
}

/// The first names of the paths that follow `crate::`; several in braces.
fn first_names(rest: &str) -> Vec<&str> {
    let name = |path: &'_ str| path.trim_start().split(|c| !is_name(c)).next().unwrap_or_default().len();
    let Some(group) = rest.trim_start().strip_prefix('{') else {
        let rest = rest.trim_start();
        return vec![&rest[..name(rest)]];
    };
    let (mut depth, mut names, mut start) = (0_usize, Vec::new(), 0);
    for (at, c) in group.char_indices() {
        let ends = c == '}' && depth == 0;
        if ends || (c == ',' && depth == 0) {
            let path = group[start..at].trim();
            names.push(&path[..name(path)]);
            start = at + 1;
        }
        match c {
            _ if ends => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    names
}

/// The modules of `lib.rs` that `source` names.
fn used<'s>(source: &'s Source, contents: &[&str]) -> Vec<&'s str> {
    let mut used = Vec::new();
    for (_, rest) in after(&source.code, "crate").filter(|(in_path, _)| !in_path) {
        used.extend(rest.strip_prefix("::").map(first_names).unwrap_or_default());
    }
    for (in_path, rest) in after(&source.code, "super") {
        let mut rest = rest;
        let mut up = 1;
        while let Some(more) = rest.strip_prefix("::super") {
            (rest, up) = (more, up + 1);
        }
        if !in_path && up >= source.depth() {
            used.extend(rest.strip_prefix("::").map(first_names).unwrap_or_default());
        }
    }
    used.retain(|name| contents.contains(name));
    used
}

#[test]
fn a_module_uses_only_modules_above_it() {
    let sources = sources();
    let contents = table_of_contents(&sources);
    let place = |name: &str| contents.iter().position(|module| *module == name);
    let mut wrong = Vec::new();
    let mut seen = 0;
    for source in sources.iter().filter(|source| !source.is_root()) {
        let room = source.room();
        let own = place(&room).unwrap_or_else(|| panic!("lib.rs does not declare {room}"));
        for name in used(source, &contents) {
            seen += 1;
            if place(name).unwrap() > own {
                wrong.push(format!("{}: {name} stands below {room}", source.path.display()));
            }
        }
    }
    assert!(seen > 50, "{seen} uses are found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn some_crates_are_named_in_one_room_only() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (name, rooms) in ROOMS {
            let named = after(&source.code, name).any(|(in_path, rest)| {
                !in_path
                    && (rest.starts_with("::")
                        || (rest.starts_with(';') && source.code.contains(&format!("use {name};"))))
            });
            if named && !rooms.contains(&&*source.room()) {
                wrong.push(format!("{} names {name}, whose room is {rooms:?}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_file_opens_with_what_it_is() {
    let opens = |source: &Source| source.text.starts_with("//! ");
    // what a file of tests is, its promises say
    let is_test = |source: &Source| source.path.iter().any(|part| part == "tests" || part == "tests.rs");
    let wrong: Vec<_> = sources().into_iter().filter(|s| !opens(s) && !is_test(s)).map(|s| s.path).collect();
    assert!(wrong.is_empty(), "without a first line `//! …`: {wrong:#?}");
}

#[test]
fn names_say_something() {
    let mut wrong = Vec::new();
    for source in sources() {
        let path = source.path.display();
        for part in source.path.iter() {
            let name = part.to_str().unwrap().trim_end_matches(".rs");
            if EMPTY_NAMES.iter().any(|empty| empty.eq_ignore_ascii_case(name)) {
                wrong.push(format!("{path}: a file called {name}"));
            }
        }
        for kind in ["struct", "enum", "trait", "type", "mod"] {
            for (_, rest) in after(&source.code, kind) {
                let name = first_names(rest)[0];
                let is_empty = |empty: &&&str| name.ends_with(**empty) || name.eq_ignore_ascii_case(empty);
                if let Some(empty) = EMPTY_NAMES.iter().find(is_empty) {
                    wrong.push(format!("{path}: {kind} {name} ({empty})"));
                }
            }
        }
        for (_, rest) in after(&source.code, "fn") {
            let name = first_names(rest)[0];
            if name.starts_with("get_") {
                wrong.push(format!("{path}: fn {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_reader_of_the_source_reads_it_right() {
    let code = blanked(
        "use crate::a; // crate::b\nlet x = \"crate::c\\\"\"; r#\"crate::d\"#; b'\\''; 'a'; &'a str; crate::{e, f::{g, h}, i};",
    );
    let source = Source { path: "m/n.rs".into(), text: String::new(), code };
    assert_eq!(used(&source, &["a", "b", "c", "d", "e", "f", "g", "h", "i"]), ["a", "e", "f", "i"]);
    let code = blanked("use super::super::a; use super::b; use super::super::{c, d};");
    let source = Source { path: "m/n.rs".into(), text: String::new(), code };
    assert_eq!(used(&source, &["a", "b", "c", "d"]), ["a", "c", "d"]);
}
