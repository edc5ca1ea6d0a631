//! The canonical form of a message to an agent: two bodies have the same one exactly if Letta must answer them alike.
//!
//! `input` and `messages`, a text and its one part, a default and its absence are the same; `otid` and `batch_item_id`
//! name the sending, not the message. Every other field counts, those that Letta does not know included. What cannot be
//! told from the body for certain has no canonical form. Facts: `letta/schemas/letta_request.py`, `message.py`.

mod json;
mod sending;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use json::Json;
use sha2::{Digest, Sha256};

pub use sending::Sending;

/// A message in canonical form.
#[derive(Debug, PartialEq, Eq)]
pub struct Canonical {
    encoded: Vec<u8>,
}

/// Why a message's answer is none for the next asker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotCacheable {
    /// Not one JSON object without duplicate keys, fractions and numbers beyond 64 bits, or not a message; or one of more
    /// values than are read.
    Unclear,
    /// The answer is asked for as a stream or in the background.
    Streams,
    /// Others than the asker have a part in it: a callback, tools that the client runs.
    Involves,
    /// It goes on with a turn that waits: an approval, a tool's return.
    Resumes,
    /// Content that may change under its address, or that only a turn under way has.
    Content,
}

impl Canonical {
    /// Adds the message to `hash`, its length in front, so that nothing that follows can be taken for a part of it.
    pub fn feed(&self, hash: &mut Sha256) {
        hash.update((self.encoded.len() as u64).to_be_bytes());
        hash.update(&self.encoded);
    }
}

/// The canonical form of `body`, the body of a `POST /v1/agents/{agent_id}/messages`.
pub fn canonical(body: &[u8]) -> Result<Canonical, NotCacheable> {
    let Ok(given) = json::parse(body) else { return Err(NotCacheable::Unclear) };
    // digits may be lost of a fraction that Letta keeps
    if !given.is_exact() {
        return Err(NotCacheable::Unclear);
    }
    let Json::Map(given) = given else { return Err(NotCacheable::Unclear) };
    let mut fields = Vec::with_capacity(given.len());
    let mut messages = None;
    let mut more_messages = |found| if messages.replace(found).is_none() { Ok(()) } else { Err(NotCacheable::Unclear) };
    for (name, mut value) in given {
        match (&*name, &mut value) {
            // each of them, were it another, would make Letta answer in another way, or refuse
            ("streaming" | "stream_tokens" | "background", Json::Bool(false)) | ("include_pings", Json::Bool(true)) => {
            }
            ("streaming" | "stream_tokens" | "background" | "include_pings", _) => return Err(NotCacheable::Streams),
            ("callback_url" | "client_tools", Json::Null) => {}
            ("callback_url" | "client_tools", _) => return Err(NotCacheable::Involves),
            ("messages" | "input", Json::Null) => {}
            ("messages", Json::List(list)) if !list.is_empty() => {
                more_messages(std::mem::take(list).into_iter().map(message).collect::<Result<_, _>>()?)?;
            }
            ("input", content) => more_messages(vec![user_message(std::mem::take(content))?])?,
            ("messages", _) => return Err(NotCacheable::Unclear),
            (name, value) if is_default(name, value) => {}
            // an older name of the same field
            ("system", _) => fields.push((Cow::Borrowed("override_system"), value)),
            ("include_return_message_types", Json::List(types)) => {
                types.sort();
                types.dedup();
                fields.push((name, value));
            }
            _ => fields.push((name, value)),
        }
    }
    fields.push((Cow::Borrowed("messages"), Json::List(messages.ok_or(NotCacheable::Unclear)?)));
    encoded(fields, body.len() + 512)
}

/// `about`: bytes that it will take, about.
fn encoded(fields: Vec<(Cow<'_, str>, Json<'_>)>, about: usize) -> Result<Canonical, NotCacheable> {
    let mut encoded = Vec::with_capacity(about);
    // refused: `system` beside `override_system`
    json::map(fields).ok_or(NotCacheable::Unclear)?.encode(&mut encoded);
    Ok(Canonical { encoded })
}

/// What Letta fills in where the field is left out.
fn is_default(name: &str, value: &Json<'_>) -> bool {
    match (name, value) {
        ("max_steps", Json::Number(steps)) => *steps == 50,
        ("use_assistant_message", Json::Bool(used)) => *used,
        ("assistant_message_tool_name", Json::Text(name)) => name == "send_message",
        ("assistant_message_tool_kwarg", Json::Text(name)) => name == "message",
        ("include_compaction_messages" | "return_logprobs" | "return_token_ids", Json::Bool(wanted)) => !wanted,
        (
            "include_return_message_types"
            | "client_skills"
            | "override_model"
            | "override_system"
            | "system"
            | "top_logprobs",
            Json::Null,
        ) => true,
        _ => false,
    }
}

/// `input` is what a user's message holds.
fn user_message(content: Json<'_>) -> Result<Json<'_>, NotCacheable> {
    let role = (Cow::Borrowed("role"), Json::Text(Cow::Borrowed("user")));
    json::map(vec![(Cow::Borrowed("content"), parts(content)?), role]).ok_or(NotCacheable::Unclear)
}

fn message(message: Json<'_>) -> Result<Json<'_>, NotCacheable> {
    let Json::Map(given) = message else { return Err(NotCacheable::Unclear) };
    let mut fields = Vec::with_capacity(given.len());
    for (name, value) in given {
        match (&*name, &value) {
            ("type", Json::Text(of)) if of == "message" => {}
            // Letta takes a message that has one of these for an approval
            ("type" | "approve" | "approval_request_id" | "approvals" | "tool_returns", _) => {
                return Err(NotCacheable::Resumes);
            }
            ("otid" | "batch_item_id", _) | ("name" | "sender_id" | "group_id", Json::Null) => {}
            ("content", _) => fields.push((name, parts(value)?)),
            _ => fields.push((name, value)),
        }
    }
    json::map(fields).ok_or(NotCacheable::Unclear)
}

/// Content as a list of parts: a text is a list of one.
fn parts(content: Json<'_>) -> Result<Json<'_>, NotCacheable> {
    match content {
        Json::Text(text) => Ok(Json::OnePart(text)),
        Json::List(parts) => parts.into_iter().map(part).collect::<Result<_, _>>().map(Json::List),
        _ => Err(NotCacheable::Unclear),
    }
}

fn part(mut part: Json<'_>) -> Result<Json<'_>, NotCacheable> {
    match part.text("type") {
        Some("text") => {}
        // what is behind an address may be another picture tomorrow
        Some("image") if part.field("source").and_then(|source| source.text("type")) == Some("base64") => {}
        _ => return Err(NotCacheable::Content),
    }
    if let Json::Map(fields) = &mut part {
        fields.retain(|(name, value)| !(name == "signature" && *value == Json::Null));
    }
    Ok(part)
}
