//! Fields of a request's body that choose what is not every key's to choose: who asks, and which addresses Letta calls.
//!
//! A body is read as Letta's JSON reader takes it, or refused: UTF-8, one object, nothing behind it. No member is kept in
//! memory, and what is not taken off stays as it was written.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// The body is no JSON object, or one that readers take in different ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unclear;

/// `body` without its member `user`, by which `/v1/chat/completions` takes the sender for any user of Letta's
/// (`v1/chat_completions.py`), an unknown one for the default user. `None`: there is none in it.
pub fn without_user(body: &[u8]) -> Result<Option<Vec<u8>>, Unclear> {
    let mut users = 0_usize;
    members(body, |name, _| users += usize::from(name == "user"))?;
    match users {
        0 => return Ok(None),
        1 => {}
        // readers differ in which they take
        _ => return Err(Unclear),
    }
    let mut kept = Vec::with_capacity(body.len());
    kept.push(b'{');
    let mut written = Ok(());
    members(body, |name, value| {
        if name != "user" {
            if kept.len() > 1 {
                kept.push(b',');
            }
            if serde_json::to_writer(&mut kept, name).is_err() {
                written = Err(Unclear);
            }
            kept.push(b':');
            kept.extend_from_slice(value.get().as_bytes());
        }
    })?;
    kept.push(b'}');
    written.map(|()| Some(kept))
}

/// The name of an address that `body` gives Letta to call, if it gives one: where to report (`callback_url`,
/// `services/run_manager.py`), or where the model and the embeddings are, with the server's own key for them
/// (`llm_api/openai_client.py`).
pub fn address(body: &[u8]) -> Result<Option<&'static str>, Unclear> {
    let mut found = None;
    let mut nested = Ok(());
    members(body, |name, value| {
        let within = match name {
            "callback_url" if is_set(value) => {
                found = Some("callback_url");
                return;
            }
            "llm_config" => address_in(value, &[("model_endpoint", "llm_config.model_endpoint")]),
            "embedding_config" => address_in(
                value,
                &[
                    ("embedding_endpoint", "embedding_config.embedding_endpoint"),
                    ("azure_endpoint", "embedding_config.azure_endpoint"),
                ],
            ),
            _ => return,
        };
        match within {
            Ok(address) => found = found.or(address),
            Err(unclear) => nested = Err(unclear),
        }
    })?;
    nested.map(|()| found)
}

/// The full name of the first of `addresses` (its name in `value`, its full one) that is set there.
fn address_in(value: &RawValue, addresses: &[(&str, &'static str)]) -> Result<Option<&'static str>, Unclear> {
    // Letta refuses what is no object here
    if !value.get().starts_with('{') {
        return Ok(None);
    }
    let mut found = None;
    members(value.get().as_bytes(), |name, value| {
        let address = addresses.iter().find(|(of, _)| *of == name && is_set(value));
        found = found.or(address.map(|(_, full)| *full));
    })?;
    Ok(found)
}

fn is_set(value: &RawValue) -> bool {
    value.get() != "null"
}

/// Tells `tell` the name of each member of the object `json`, its escapes undone, and its value as it is written.
pub fn members(json: &[u8], tell: impl FnMut(&str, &RawValue)) -> Result<(), Unclear> {
    let text = str::from_utf8(json).map_err(|_| Unclear)?;
    let mut reader = serde_json::Deserializer::from_str(text);
    reader.deserialize_map(Members(tell)).and_then(|()| reader.end()).map_err(|_| Unclear)
}

/// Tells `tell` each element of the list `json` as it is written.
pub fn elements(json: &str, tell: impl FnMut(&RawValue)) -> Result<(), Unclear> {
    let mut reader = serde_json::Deserializer::from_str(json);
    reader.deserialize_seq(Elements(tell)).and_then(|()| reader.end()).map_err(|_| Unclear)
}

struct Members<Tell>(Tell);

impl<'de, Tell: FnMut(&str, &RawValue)> Visitor<'de> for Members<Tell> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        while let Some((Name(name), value)) = members.next_entry::<Name<'de>, &RawValue>()? {
            (self.0)(&name, value);
        }
        Ok(())
    }
}

struct Elements<Tell>(Tell);

impl<'de, Tell: FnMut(&RawValue)> Visitor<'de> for Elements<Tell> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<(), A::Error> {
        while let Some(element) = elements.next_element::<&RawValue>()? {
            (self.0)(element);
        }
        Ok(())
    }
}

/// A key, borrowed where nothing in it is escaped.
#[derive(serde::Deserialize)]
struct Name<'n>(#[serde(borrow)] Cow<'n, str>);

#[cfg(test)]
mod tests {
    use super::*;

    fn userless(body: &str) -> Result<Option<String>, Unclear> {
        without_user(body.as_bytes()).map(|body| body.map(|body| String::from_utf8(body).unwrap()))
    }

    #[test]
    fn the_user_is_taken_off_and_nothing_else_is_changed() {
        for (body, kept) in [
            (r#"{"user":"a"}"#, "{}"),
            (r#" { "user" : {"user":1} , "x" : 1.50e3 } "#, r#"{"x":1.50e3}"#),
            (r#"{"x":"\u00e9 \/","user":null,"y":[ 1, 2 ]}"#, r#"{"x":"\u00e9 \/","y":[ 1, 2 ]}"#),
            (r#"{"\u0075\u0073er":"a","a\"b\n":9007199254740993.0}"#, r#"{"a\"b\n":9007199254740993.0}"#),
            (r#"{"x":1,"x":2,"user":""}"#, r#"{"x":1,"x":2}"#),
        ] {
            assert_eq!(userless(body), Ok(Some(kept.to_owned())), "{body}");
        }
        for body in ["{}", r#"{"User":"a","users":"b","x":{"user":"c"},"y":["user"]}"#, r#"{"user ":1,"\\u0075ser":2}"#]
        {
            assert_eq!(userless(body), Ok(None), "{body}");
        }
    }

    #[test]
    fn what_readers_may_take_in_different_ways_is_unclear() {
        for body in [
            "",
            " ",
            "null",
            "[]",
            "1",
            "\"user\"",
            "{",
            "{}{}",
            "{} x",
            r#"{"user":1,"user":2}"#,
            r#"{"user":1,"us\u0065r":2}"#,
            r#"{"\ud800":1}"#,
            r#"{"x":NaN}"#,
            "{\"x\":\"\n\"}",
            "\u{feff}{}",
            "{\"x\":1,}",
            "{'user':1}",
            "{\"x\":1 /* user */}",
        ] {
            assert_eq!(userless(body), Err(Unclear), "{body}");
        }
        assert_eq!(without_user(b"{\"\xff\":1}"), Err(Unclear));
        assert_eq!(without_user(b"{\0\"\0x\0\"\0:\x001\0}\0"), Err(Unclear));
    }

    #[test]
    fn an_address_is_found_where_letta_looks_for_it_and_nowhere_else() {
        for (body, found) in [
            (r#"{"callback_url":"http://a"}"#, Some("callback_url")),
            (r#"{"callback\u005furl":""}"#, Some("callback_url")),
            (r#"{"callback_url":null,"callback_url":"http://a"}"#, Some("callback_url")),
            (r#"{"callback_url":"http://a","callback_url":null}"#, Some("callback_url")),
            (r#"{"llm_config":{"model_endpoint":"http://a"}}"#, Some("llm_config.model_endpoint")),
            (r#"{"llm_config":null,"llm_config": {"model_endpoint":[]}}"#, Some("llm_config.model_endpoint")),
            (r#"{"embedding_config":{"embedding_endpoint":"a"}}"#, Some("embedding_config.embedding_endpoint")),
            (r#"{"embedding_config":{"azure_endpoint":"a"}}"#, Some("embedding_config.azure_endpoint")),
            (r#"{"callback_url": null ,"llm_config":{"model_endpoint":null}}"#, None),
            (r#"{"metadata":{"callback_url":"a","llm_config":{"model_endpoint":"a"}}}"#, None),
            (r#"{"llm_config":"model_endpoint","embedding_config":[{"azure_endpoint":"a"}],"x":1}"#, None),
            (r#"{"requests":[{"callback_url":"a"}],"model_endpoint":"a"}"#, None),
        ] {
            assert_eq!(address(body.as_bytes()), Ok(found), "{body}");
        }
        assert_eq!(address(br#"{"llm_config":{"\udc00":1}}"#), Err(Unclear));
        assert_eq!(address(b"[]"), Err(Unclear));
    }
}
