//! What a request names beside its path: in its query, at the top of its body, in each request of a batch.
//!
//! A name that ends in `_id` or `_ids` names something. What it names must be known here, or the request is refused; and
//! every value counts, for readers differ in which of two they take.

use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::error::Error;
use crate::letta::fields::{Unclear, elements, members};
use crate::letta::routes::reach::Thing;

/// Different things that one request may name: each may be a question to Letta.
const MOST: usize = 32;
/// Requests of one batch.
const MOST_REQUESTS: usize = 10_000;

/// Something that a request names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Named {
    Agent(String),
    Owned(Thing, String),
}

/// How the names of a request are read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reading {
    /// `model` is an agent (`/v1/chat/completions`).
    pub model: bool,
    /// `requests` is a list of messages to agents (`/v1/messages/batches`).
    pub batch: bool,
    /// `otid` finds a run, whosever it is (`/v1/conversations/{conversation_id}/stream`).
    pub otid: bool,
    /// What is answered is looked through, so a filter that is not known here does no harm.
    pub filters: bool,
}

const TOO_MANY: &str = "the request names too many things";
const TOO_MANY_REQUESTS: &str = "the batch has more than 10,000 requests; send several";
const UNKNOWN_NAME: &str =
    "the request names something that may be another agent's; leave out what ends in _id or _ids";
const OTID: &str = "`otid` finds runs of any agent's; name the run with `run_id`";
const BODY: &str = "the body must be one JSON object in UTF-8, and ids in it texts";

/// What was found in a request.
#[derive(Default)]
struct Found {
    named: Vec<Named>,
    /// Requests of a batch so far, of all the lists that its body has.
    requests: usize,
}

impl Reading {
    /// What the query names.
    pub(super) fn query(self, query: &str) -> Result<Vec<Named>, Error> {
        let mut found = Found::default();
        for (name, value) in pairs(query) {
            self.add(&name, value.into_owned(), &mut found)?;
        }
        Ok(found.named)
    }

    /// What the body names.
    pub(super) fn body(self, body: &[u8]) -> Result<Vec<Named>, Error> {
        let mut found = Found::default();
        // asks for nothing
        if !body.is_empty() {
            self.object(body, &mut found)?;
        }
        Ok(found.named)
    }

    fn object(self, json: &[u8], found: &mut Found) -> Result<(), Error> {
        let mut result = Ok(());
        let read = members(json, |name, value| {
            if result.is_ok() {
                result = self.member(name, value, found);
            }
        });
        read.map_err(|Unclear| Error::BadBody(BODY))?;
        result
    }

    fn member(self, name: &str, value: &RawValue, found: &mut Found) -> Result<(), Error> {
        let text = value.get();
        if text == "null" {
            return Ok(());
        }
        if self.batch && name == "requests" {
            let inner = Self { batch: false, ..self };
            return each(text, |request| {
                found.requests += 1;
                if found.requests > MOST_REQUESTS {
                    return Err(Error::ReachRefused { why: TOO_MANY_REQUESTS });
                }
                inner.object(request.get().as_bytes(), found)
            });
        }
        if self.kind(name) == Kind::Nothing {
            return Ok(());
        }
        let mut id = |value: &RawValue| {
            let id = serde_json::from_str(value.get()).map_err(|_| Error::BadBody(BODY))?;
            self.add(name, id, found)
        };
        if text.starts_with('[') { each(text, id) } else { id(value) }
    }

    fn add(self, name: &str, value: String, found: &mut Found) -> Result<(), Error> {
        let one = match self.kind(name) {
            Kind::Nothing => return Ok(()),
            Kind::Agent => Named::Agent(value),
            Kind::Owned(Thing::Conversation) if value.starts_with("agent-") => Named::Agent(value),
            // that of the agent which is named beside it
            Kind::Owned(Thing::Conversation) if value == "default" => return Ok(()),
            Kind::Owned(thing) => Named::Owned(thing, value),
            Kind::Closed(why) => return Err(Error::ReachRefused { why }),
        };
        if found.named.contains(&one) {
            return Ok(());
        }
        if found.named.len() >= MOST {
            return Err(Error::ReachRefused { why: TOO_MANY });
        }
        found.named.push(one);
        Ok(())
    }

    fn kind(self, name: &str) -> Kind {
        match name {
            "agent_id" | "agent_ids" => Kind::Agent,
            "model" if self.model => Kind::Agent,
            "conversation_id" => Kind::Owned(Thing::Conversation),
            "run_id" | "run_ids" => Kind::Owned(Thing::Run),
            "step_id" => Kind::Owned(Thing::Step),
            "otid" if self.otid => Kind::Closed(OTID),
            // they name no thing of an agent's
            "project_id" | "template_id" | "base_template_id" => Kind::Nothing,
            _ if self.filters => Kind::Nothing,
            _ if name.ends_with("_id") || name.ends_with("_ids") => Kind::Closed(UNKNOWN_NAME),
            _ => Kind::Nothing,
        }
    }
}

/// Each element of `list` in its turn, none of them kept; the first that is refused is the last.
fn each(list: &str, mut take: impl FnMut(&RawValue) -> Result<(), Error>) -> Result<(), Error> {
    let mut result = Ok(());
    let read = elements(list, |element| {
        if result.is_ok() {
            result = take(element);
        }
    });
    read.map_err(|Unclear| Error::BadBody(BODY))?;
    result
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nothing,
    Agent,
    Owned(Thing),
    Closed(&'static str),
}

/// The names and values of a query, decoded as Python's `urllib.parse.parse_qsl` does.
pub(super) fn pairs(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name), decoded(value))
    })
}

fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = after.first_chunk::<2>().filter(|_| *first == b'%').and_then(|pair| {
            let mut byte = [0];
            hex::decode_to_slice(pair, &mut byte).ok().map(|()| byte[0])
        });
        match hex {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = after;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Reading = Reading { model: false, batch: false, otid: false, filters: false };

    fn agent(id: &str) -> Named {
        Named::Agent(id.to_owned())
    }

    fn owned(thing: Thing, id: &str) -> Named {
        Named::Owned(thing, id.to_owned())
    }

    fn reason(result: Result<Vec<Named>, Error>) -> &'static str {
        result.unwrap_err().reason()
    }

    #[test]
    fn every_value_of_a_query_counts_however_it_is_written() {
        for (query, named) in [
            ("", vec![]),
            ("limit=5&agent_id=a&after=message-1", vec![agent("a")]),
            ("agent_id=a&agent_id=b", vec![agent("a"), agent("b")]),
            ("agent_id", vec![agent("")]),
            ("agent%5Fid=%61&&agent_ids=b+c%zz", vec![agent("a"), agent("b c%zz")]),
            ("conversation_id=agent-1&conversation_id=default", vec![agent("agent-1")]),
            (
                "conversation_id=conv-1&run_id=run-1",
                vec![owned(Thing::Conversation, "conv-1"), owned(Thing::Run, "run-1")],
            ),
            ("project_id=p&Agent_Id_=x", vec![]),
        ] {
            assert_eq!(PLAIN.query(query).unwrap(), named, "{query}");
        }
        assert_eq!(reason(PLAIN.query("group_id=g")), "policy_reach");
        assert_eq!(reason(PLAIN.query("identity%5fids=g")), "policy_reach");
        assert_eq!(Reading { filters: true, ..PLAIN }.query("identity_id=i&agent_id=a").unwrap(), [agent("a")]);
        let many = |count| (0..count).map(|agent| format!("agent_id={agent}&agent_id={agent}&")).collect::<String>();
        assert_eq!(PLAIN.query(&many(MOST)).unwrap().len(), MOST);
        assert_eq!(reason(PLAIN.query(&many(MOST + 1))), "policy_reach");
    }

    #[test]
    fn every_name_at_the_top_of_a_body_counts_and_none_below() {
        for (body, named) in [
            ("", vec![]),
            ("{}", vec![]),
            (r#"{"input":"hi","messages":[{"group_id":"g","agent_id":"x"}],"agent_id":null}"#, vec![]),
            (r#"{"agent_id":"a","agent\u005fid":"b"}"#, vec![agent("a"), agent("b")]),
            (r#"{"run_ids":["r1","r2"],"agent_ids":[]}"#, vec![owned(Thing::Run, "r1"), owned(Thing::Run, "r2")]),
            (r#"{"model":"agent-1","otid":"x","requests":[{"agent_id":"a"}]}"#, vec![]),
        ] {
            assert_eq!(PLAIN.body(body.as_bytes()).unwrap(), named, "{body}");
        }
        let (chat, batch) = (Reading { model: true, ..PLAIN }, Reading { batch: true, ..PLAIN });
        assert_eq!(chat.body(br#"{"model":"a","model":"b"}"#).unwrap(), [agent("a"), agent("b")]);
        let requests = br#"{"requests":[{"agent_id":"a"},{"agent_id":"b","input":"x"}],"requests":[{"agent_id":"c"}]}"#;
        assert_eq!(batch.body(requests).unwrap(), [agent("a"), agent("b"), agent("c")]);
        assert_eq!(reason(batch.body(br#"{"requests":[{"tool_ids":["t"]}]}"#)), "policy_reach");
        assert_eq!(reason(Reading { otid: true, ..PLAIN }.body(br#"{"otid":"x"}"#)), "policy_reach");
        for body in [r#"{"block_ids":["b"]}"#, r#"{"message_ids":[]  ,"tool_id":"t"}"#, r#"{"x_id":"y"}"#] {
            assert_eq!(reason(PLAIN.body(body.as_bytes())), "policy_reach", "{body}");
        }
        for body in ["[]", "1", "{", r#"{"agent_id":1}"#, r#"{"agent_id":["a",1]}"#, r#"{"agent_id":{"a":"b"}}"#] {
            assert_eq!(reason(PLAIN.body(body.as_bytes())), "client_bad_body", "{body}");
        }
        assert_eq!(reason(batch.body(br#"{"requests":{"agent_id":"a"}}"#)), "client_bad_body");
        assert_eq!(reason(batch.body(br#"{"requests":["agent_id"]}"#)), "client_bad_body");
    }

    #[test]
    fn a_batch_has_so_many_requests_and_no_more_in_however_many_lists() {
        let batch = Reading { batch: true, ..PLAIN };
        let list = |count| format!(r#""requests":[{}]"#, vec![r#"{"agent_id":"a"}"#; count].join(","));
        let named = |lists: &[usize]| {
            let lists: Vec<_> = lists.iter().map(|count| list(*count)).collect();
            batch.body(format!("{{{}}}", lists.join(",")).as_bytes())
        };
        for lists in [&[MOST_REQUESTS][..], &[1, MOST_REQUESTS - 1]] {
            assert_eq!(named(lists).unwrap(), [agent("a")], "{lists:?}");
        }
        for lists in [&[MOST_REQUESTS + 1][..], &[1, MOST_REQUESTS]] {
            let refused = named(lists).unwrap_err();
            assert!(matches!(refused, Error::ReachRefused { why: TOO_MANY_REQUESTS }), "{lists:?}: {refused:?}");
        }
    }

    #[test]
    fn a_list_of_ids_may_be_long_but_not_of_many_things() {
        let named = |ids: Vec<String>| PLAIN.body(format!(r#"{{"agent_ids":["{}"]}}"#, ids.join("\",\"")).as_bytes());
        let ids = |count: usize| (0..count).map(|id| id.to_string());
        assert_eq!(named(vec!["a".to_owned(); 10_000]).unwrap(), [agent("a")]);
        assert_eq!(named(ids(MOST).collect()).unwrap().len(), MOST);
        assert_eq!(reason(named(ids(MOST + 1).collect())), "policy_reach");
    }
}
