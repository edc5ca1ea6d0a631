//! What a body that sends a message says of the turn it starts: which agent, as a stream or not, and what makes two of
//! them the same message.
//!
//! Unlike the canonical form of the cache this one exists for every body: what is not understood counts byte for byte.
//! Facts: `letta/schemas/letta_request.py`, `server/rest_api/routers/v1/{agents,conversations,chat_completions}.py`.

use std::borrow::Cow;
use std::cell::RefCell;

use sha2::{Digest, Sha256};

use super::json::{self, Json};
use super::parts;
use crate::letta::LONGEST_ID;
use crate::letta::routes::Sends;

/// Bytes of the memory that a thread keeps to encode messages in; what a longer one took is given back at the next.
const MOST_KEPT: usize = 16 * 1024;

/// What is known of a send before Letta has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Sending<'b> {
    /// The agent that the body names, where the path does not.
    pub agent: Option<Box<str>>,
    /// The answer is to be an event stream.
    pub streams: bool,
    /// Letta is to go on without its client.
    pub background: bool,
    /// SHA-256 over the `otid`s of the messages, in their order; `None` if no message has one.
    pub otids: Option<[u8; 32]>,
    /// One of them is no random UUID (version 4, RFC 9562), so that somebody else may come to the same.
    pub has_plain_otid: bool,
    /// Letta may read in the body what the gateway cannot: Python's `json` takes the last of two equal names, `NaN`, a
    /// byte order mark and UTF-16, and as many values as there are.
    pub is_unclear: bool,
    message: Message<'b>,
}

#[derive(Debug, PartialEq, Eq)]
enum Message<'b> {
    /// Without its `otid`s.
    Read(Json<'b>),
    /// The body as it came.
    Unread(&'b [u8]),
}

impl<'b> Sending<'b> {
    /// Reads `body` as the kind of send that its route is.
    pub fn read(sends: Sends, body: &'b [u8]) -> Self {
        let Ok(Json::Map(mut fields)) = json::parse(body) else { return Self::unread(sends, body) };
        let flag = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value);
        let is = |name: &str, value: bool| flag(name) == Some(&Json::Bool(value));
        let streams = match sends {
            Sends::Agent => is("streaming", true),
            Sends::AgentStream => true,
            Sends::Conversation => !is("streaming", false),
            Sends::ChatCompletions => is("stream", true),
        };
        let background = is("background", true);
        let named = match sends {
            Sends::Agent | Sends::AgentStream => None,
            Sends::Conversation => flag("agent_id"),
            Sends::ChatCompletions => flag("model"),
        };
        let agent = match named {
            Some(Json::Text(agent)) if agent.len() <= LONGEST_ID => Some(Box::from(&**agent)),
            _ => None,
        };
        let mut otids = Otids::default();
        if sends != Sends::ChatCompletions {
            for (name, value) in &mut fields {
                match (&**name, &mut *value) {
                    ("messages", Json::List(messages)) => messages.iter_mut().for_each(|message| otids.take(message)),
                    ("input", input @ (Json::Text(_) | Json::List(_))) => {
                        let content = (Cow::Borrowed("content"), std::mem::take(input));
                        let role = (Cow::Borrowed("role"), Json::Text(Cow::Borrowed("user")));
                        let mut message = Json::Map(vec![content, role]);
                        otids.take(&mut message);
                        (*name, *value) = (Cow::Borrowed("messages"), Json::List(vec![message]));
                    }
                    _ => {}
                }
            }
            fields.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        }
        let has_plain_otid = otids.has_plain;
        let message = Message::Read(Json::Map(fields));
        Self { agent, streams, background, otids: otids.digest(), has_plain_otid, is_unclear: false, message }
    }

    /// Of a body that Letta is going to refuse, or that only it can read, or only at too great a cost.
    pub fn unread(sends: Sends, body: &'b [u8]) -> Self {
        let streams = matches!(sends, Sends::AgentStream | Sends::Conversation);
        Self {
            agent: None,
            streams,
            background: false,
            otids: None,
            has_plain_otid: false,
            is_unclear: may_be_object(body),
            message: Message::Unread(body),
        }
    }

    /// SHA-256 over `of`, `beside` and the message without its `otid`s. `of` says what the digest is for, and thereby how
    /// many parts are beside.
    pub fn digest(&self, of: &[u8], beside: &[&[u8]]) -> [u8; 32] {
        ENCODED.with_borrow_mut(|encoded| {
            encoded.clear();
            encoded.shrink_to(MOST_KEPT);
            encoded.extend_from_slice(of);
            for part in beside {
                encoded.extend_from_slice(&(part.len() as u64).to_be_bytes());
                encoded.extend_from_slice(part);
            }
            match &self.message {
                Message::Read(json) => {
                    json.encode(encoded);
                    Sha256::digest(&*encoded).into()
                }
                Message::Unread(body) => {
                    // no value is written with this letter; and a body that is long is not copied
                    encoded.push(b'?');
                    Sha256::new().chain_update(&*encoded).chain_update(body).finalize().into()
                }
            }
        })
    }
}

thread_local! {
    /// Where messages are encoded, one after the other.
    static ENCODED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Whether any reader could take `body` for a JSON object.
fn may_be_object(body: &[u8]) -> bool {
    let start = body.trim_ascii_start();
    match start.first_chunk::<2>() {
        Some(b"\0{" | b"\0\0") => true,
        Some([first, _]) => *first == b'{' || !first.is_ascii(),
        None => false,
    }
}

/// The `otid`s of a request's messages.
#[derive(Default)]
struct Otids {
    hash: Option<Sha256>,
    has_plain: bool,
}

/// True for a UUID of version 4 as it is usually written.
fn is_random_uuid(text: &str) -> bool {
    let is_good = |(place, byte): (usize, u8)| match place {
        8 | 13 | 18 | 23 => byte == b'-',
        14 => byte == b'4',
        19 => matches!(byte, b'8' | b'9' | b'a' | b'b' | b'A' | b'B'),
        _ => byte.is_ascii_hexdigit(),
    };
    text.len() == 36 && text.bytes().enumerate().all(is_good)
}

impl Otids {
    /// Takes from `message` what names the sending, and brings its content to one form.
    fn take(&mut self, message: &mut Json<'_>) {
        let Json::Map(fields) = message else { return };
        fields.retain(|(name, value)| match (&**name, value) {
            ("otid", Json::Text(otid)) => {
                let hash = self.hash.get_or_insert_default();
                self.has_plain |= !is_random_uuid(otid);
                hash.update((otid.len() as u64).to_be_bytes());
                hash.update(otid.as_bytes());
                false
            }
            ("otid" | "batch_item_id", Json::Null) => false,
            ("type", Json::Text(kind)) => kind != "message",
            _ => true,
        });
        for (name, value) in fields {
            if name == "content" && matches!(value, Json::Text(_)) {
                let text = std::mem::take(value);
                *value = parts(text).unwrap_or_default();
            }
        }
    }

    fn digest(self) -> Option<[u8; 32]> {
        self.hash.map(|hash| hash.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(body: &str) -> Sending<'_> {
        Sending::read(Sends::Agent, body.as_bytes())
    }

    #[test]
    fn the_same_message_has_one_digest_however_it_is_written() {
        let one = agent(r#"{"messages":[{"role":"user","content":"hi"}]}"#);
        for same in [
            r#"{"input":"hi"}"#,
            r#"{ "messages" : [ { "content":"hi", "role":"user", "type":"message" } ] }"#,
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"hi"}],"otid":null}]}"#,
            r#"{"messages":[{"role":"user","content":"hi","otid":"a-name-of-the-sending"}]}"#,
        ] {
            assert_eq!(agent(same).digest(b"", &[]), one.digest(b"", &[]), "{same}");
        }
        for other in [
            r#"{"input":"hi "}"#,
            r#"{"messages":[{"role":"system","content":"hi"}]}"#,
            r#"{"input":"hi","max_steps":3}"#,
            r#"{"input":"hi","streaming":true}"#,
            r#"{"messages":[{"role":"user","content":"hi"},{"role":"user","content":"hi"}]}"#,
            r#"{"messages":[{"type":"approval","approve":true,"approval_request_id":"message-1"}]}"#,
            "hi",
        ] {
            assert_ne!(agent(other).digest(b"", &[]), one.digest(b"", &[]), "{other}");
        }
    }

    #[test]
    fn what_is_beside_a_message_is_a_part_of_its_digest() {
        for sending in [agent(r#"{"input":"hi"}"#), agent("hi")] {
            let beside: [&[&[u8]]; 4] = [&[b"", b""], &[b"ab", b"c"], &[b"a", b"bc"], &[b"abc", b""]];
            let digests = beside.map(|beside| sending.digest(b"of", beside));
            assert!((1..digests.len()).all(|from| !digests[from..].contains(&digests[from - 1])));
            assert_ne!(sending.digest(b"of", &[]), sending.digest(b"for", &[]));
        }
    }

    #[test]
    fn no_body_that_is_not_read_is_taken_for_one_that_is() {
        let mut written = Vec::new();
        json::parse(br#"{"a":1}"#).unwrap().encode(&mut written);
        let read = agent(r#"{"a":1}"#);
        for body in [&written[..], &written[1..], br#"{"a":1}"#] {
            assert_ne!(Sending::unread(Sends::Agent, body).digest(b"", &[]), read.digest(b"", &[]));
        }
    }

    #[test]
    fn otids_are_told_apart_by_text_and_order() {
        let with = |otids: [&str; 2]| {
            let [one, two] = otids.map(|otid| format!(r#"{{"role":"user","content":"hi","otid":"{otid}"}}"#));
            agent(&format!(r#"{{"messages":[{one},{two}]}}"#)).otids
        };
        assert_eq!(with(["a", "b"]), with(["a", "b"]));
        assert_ne!(with(["a", "b"]), with(["b", "a"]));
        assert_ne!(with(["ab", "c"]), with(["a", "bc"]));
        assert_eq!(agent(r#"{"input":"hi"}"#).otids, None);
    }

    #[test]
    fn each_kind_of_send_says_in_its_own_way_whether_it_streams() {
        for (sends, body, streams) in [
            (Sends::Agent, "{}", false),
            (Sends::Agent, r#"{"streaming":true}"#, true),
            (Sends::AgentStream, r#"{"streaming":false}"#, true),
            (Sends::Conversation, "{}", true),
            (Sends::Conversation, r#"{"streaming":false}"#, false),
            (Sends::ChatCompletions, "{}", false),
            (Sends::ChatCompletions, r#"{"stream":true,"temperature":0.7}"#, true),
        ] {
            assert_eq!(Sending::read(sends, body.as_bytes()).streams, streams, "{sends:?} {body}");
        }
    }

    #[test]
    fn a_body_names_its_agent_where_the_path_does_not() {
        let named = |sends, body: &str| Sending::read(sends, body.as_bytes()).agent;
        assert_eq!(named(Sends::Conversation, r#"{"agent_id":"agent-1"}"#).as_deref(), Some("agent-1"));
        assert_eq!(named(Sends::ChatCompletions, r#"{"model":"agent-1","top_p":0.5}"#).as_deref(), Some("agent-1"));
        assert_eq!(named(Sends::Agent, r#"{"agent_id":"agent-1"}"#), None);
    }

    #[test]
    fn a_text_longer_than_an_id_is_no_agent() {
        for (sends, name) in [(Sends::Conversation, "agent_id"), (Sends::ChatCompletions, "model")] {
            let named = |length| {
                let id = "a".repeat(length);
                let body = format!(r#"{{"{name}":"{id}"}}"#);
                let sending = Sending::read(sends, body.as_bytes());
                assert!(!sending.is_unclear);
                sending.agent.map(|agent| agent.len())
            };
            assert_eq!([named(LONGEST_ID), named(LONGEST_ID + 1)], [Some(LONGEST_ID), None], "{name}");
        }
    }

    #[test]
    fn a_body_of_too_many_values_counts_byte_for_byte_and_is_unclear() {
        // beside the zeros: the map, its keys, its other value and the list
        let zeros = usize::try_from(json::MOST_VALUES).unwrap() - 5;
        let body = |zeros| format!(r#"{{"model":"agent-1","x":[{}]}}"#, vec!["0"; zeros].join(","));
        fn read(body: &str) -> Sending<'_> {
            Sending::read(Sends::ChatCompletions, body.as_bytes())
        }
        let (within, beyond) = (body(zeros), body(zeros + 1));
        let sending = read(&within);
        assert_eq!((sending.agent.as_deref(), sending.is_unclear), (Some("agent-1"), false));
        assert_eq!(sending.digest(b"", &[]), read(&within.replace(',', ", ")).digest(b"", &[]));
        let sending = read(&beyond);
        assert_eq!((sending.agent.as_deref(), sending.is_unclear), (None, true));
        assert_ne!(sending.digest(b"", &[]), read(&beyond.replace(',', ", ")).digest(b"", &[]));
        assert_eq!(sending, Sending::unread(Sends::ChatCompletions, beyond.as_bytes()));
    }
}
