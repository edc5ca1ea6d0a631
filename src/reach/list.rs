//! A list of many agents' things, brought down to those of some agents: items stay as they are written.

use std::fmt::Write as _;

use serde_json::value::RawValue;

use super::names::pairs;
use crate::letta::agents::Agents;
use crate::letta::fields::members;
use crate::letta::routes::reach::List;

/// A page as Letta gave it.
pub(super) struct Page<'p> {
    /// What is left of it.
    pub kept: Vec<&'p RawValue>,
    /// How many items it had.
    pub items: usize,
    /// The id of its last item: where the next page begins.
    pub last: Option<String>,
}

impl<'p> Page<'p> {
    /// `None`: this is no list.
    pub(super) fn read(json: &'p [u8], list: List, agents: &Agents) -> Option<Self> {
        let items: Vec<&RawValue> = serde_json::from_slice(json).ok()?;
        let last = items.last().and_then(|item| field(item, "id"));
        let count = items.len();
        let is_ours = |item: &&RawValue| field(item, list.owner).is_some_and(|agent| agents.has(&agent));
        Some(Self { kept: items.into_iter().filter(is_ours).collect(), items: count, last })
    }
}

/// The text of `name` in `item`, if it has exactly one.
fn field(item: &RawValue, name: &str) -> Option<String> {
    let mut found = Vec::new();
    let read = members(item.get().as_bytes(), |of, value| {
        if of == name {
            found.push(serde_json::from_str::<String>(value.get()).ok());
        }
    });
    match (read, found.as_mut_slice()) {
        (Ok(()), [one]) => one.take(),
        _ => None,
    }
}

/// Adds items to a JSON list that is not closed yet.
pub(super) fn append(to: &mut String, items: &[&RawValue]) {
    for item in items {
        to.push(if to.is_empty() { '[' } else { ',' });
        to.push_str(item.get());
    }
}

/// The list with its brackets.
pub(super) fn closed(mut items: String) -> String {
    if items.is_empty() {
        items.push('[');
    }
    items.push(']');
    items
}

/// What a request for a list asks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// Items a page.
    pub limit: usize,
    /// It can be asked for page after page.
    pub goes_on: bool,
}

impl Asked {
    pub(super) fn read(query: &str, page: Option<usize>) -> Self {
        let of = |wanted: &str| pairs(query).filter(|(name, _)| name == wanted).map(|(_, value)| value).last();
        let limit = match of("limit") {
            None => page,
            Some(limit) => limit.parse().ok(),
        };
        // backwards there is no telling where the next page ends
        let goes_on = page.is_some() && of("before").is_none() && limit.is_some_and(|limit| limit > 0);
        Self { limit: limit.unwrap_or(usize::MAX), goes_on }
    }
}

/// `query` with `name` at its end, and nowhere else.
pub(super) fn with(query: &str, name: &str, value: &str) -> String {
    let others = query.split('&').filter(|pair| !pair.is_empty() && pairs(pair).all(|(of, _)| of != name));
    let mut changed = others.fold(String::new(), |mut changed, pair| {
        changed.push_str(pair);
        changed.push('&');
        changed
    });
    // a String takes whatever is written; ids need no encoding, and what does is encoded
    let _ = write!(changed, "{name}=");
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            changed.push(char::from(byte));
        } else {
            let _ = write!(changed, "%{byte:02X}");
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNS: List = List { owner: "agent_id", by_agent: true, page: Some(100) };

    #[test]
    fn items_of_other_agents_and_of_nobody_are_left_out_and_the_others_stay_as_written() {
        let json = r#"[ {"id":"1","agent_id":"a","n":1.50}, {"id":"2","agent_id":"b"}, {"id":"3"}, {"id":"4","agent_id":null},
            {"id":"5","agent_id":"b","agent_id":"a"}, 7, "a", {"id":"6","agent\u005fid":"a"} ]"#;
        let page = Page::read(json.as_bytes(), RUNS, &Agents::new(["a"])).unwrap();
        let mut text = String::new();
        append(&mut text, &page.kept);
        assert_eq!(closed(text), r#"[{"id":"1","agent_id":"a","n":1.50},{"id":"6","agent\u005fid":"a"}]"#);
        assert_eq!((page.items, page.last.as_deref()), (8, Some("6")));
        assert!(Page::read(b"{\"data\":[]}", RUNS, &Agents::new(["a"])).is_none());
        assert_eq!(closed(String::new()), "[]");
    }

    #[test]
    fn a_list_goes_on_where_letta_has_pages() {
        for (query, limit, goes_on) in [
            ("", 100, true),
            ("limit=5&after=x", 5, true),
            ("limit=5&limit=6", 6, true),
            ("limit=0", 0, false),
            ("limit=many", usize::MAX, false),
            ("before=x", 100, false),
        ] {
            assert_eq!(Asked::read(query, Some(100)), Asked { limit, goes_on }, "{query}");
        }
        assert_eq!(Asked::read("", None), Asked { limit: usize::MAX, goes_on: false });
    }

    #[test]
    fn a_name_is_put_into_a_query_in_place_of_all_it_had() {
        assert_eq!(with("", "after", "run-1"), "after=run-1");
        assert_eq!(with("a%66ter=x&limit=5&&after=y", "after", "a&b"), "limit=5&after=a%26b");
    }
}
