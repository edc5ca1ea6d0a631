//! The reach step: refuses what names another agent's things, brings lists down to the key's agents.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http_body::Body as _;

use super::Confined;
use super::names::{Named, Reading};
use super::owners::Owners;
use super::pages::listed;
use super::question::Found;
use crate::auth::Parts;
use crate::auth::key::Key;
use crate::body::room::{Held, Room};
use crate::body::{RequestBody, Response};
use crate::error::Error;
use crate::letta::routes::Sends;
use crate::letta::routes::reach::{Place, Reach, Thing, reach};
use crate::limits::{Seat, Within};
use crate::step::{Handle, Step};
use crate::telemetry::Record;

const NO_PLACE: &str =
    "the conversation `default` is an agent's: name it with `agent_id`, where the route takes it from";

/// Holds the keys that are limited to some agents to them.
pub struct Reacher {
    owners: Arc<Owners>,
    room: Room,
}

impl Reacher {
    /// Remembered owners of `previous` stay. `max_body`: bytes of a request body; `patience`: how long it may take.
    pub fn new(max_body: u64, patience: Duration, previous: Option<&Self>) -> Self {
        let owners = previous.map_or_else(Arc::default, |previous| Arc::clone(&previous.owners));
        Self { owners, room: Room::new(max_body, patience) }
    }

    /// Refuses a request that names what `key` does not reach. Letta's own answer, if it is that something named is
    /// not there. What comes back counts the body's bytes until it is dropped.
    async fn check<Next: Handle<Confined>>(
        &self,
        parts: &mut Parts,
        key: &Arc<Key>,
        reach: Reach,
        record: &Record,
        next: &Next,
    ) -> Result<Checked, Error> {
        let query = parts.request.uri().query().unwrap_or_default();
        let reading = Reading {
            model: parts.route.sends == Some(Sends::ChatCompletions),
            batch: parts.route.template == "/v1/messages/batches",
            otid: parts.route.template == "/v1/conversations/{conversation_id}/stream",
            filters: matches!(reach, Reach::List(_)),
        };
        let in_query = reading.query(query)?;
        let mut held = None;
        let mut in_body = Vec::new();
        if !parts.request.body().is_end_stream() {
            let (version, body) = (parts.request.version(), std::mem::take(parts.request.body_mut()));
            let (body, permit) = self.room.read(Some(&key.id), version, body).await?;
            in_body = reading.body(&body)?;
            *parts.request.body_mut() = RequestBody::whole(body);
            held = Some(permit);
        }
        let in_path = match (reach, parts.subject.as_deref().unwrap_or_default()) {
            (Reach::Agent, agent) => Some(Named::Agent(agent.to_owned())),
            (Reach::Owned(thing), id) => Some(Named::Owned(thing, id.to_owned())),
            (Reach::Conversation(place), "default") => {
                let there = match place {
                    Place::Nowhere => &[][..],
                    Place::Query => &in_query,
                    Place::Body => &in_body,
                };
                if !there.iter().any(|named| matches!(named, Named::Agent(_))) {
                    return Err(Error::ReachRefused { why: NO_PLACE });
                }
                None
            }
            (Reach::Conversation(_), agent) if agent.starts_with("agent-") => Some(Named::Agent(agent.to_owned())),
            (Reach::Conversation(_), id) => Some(Named::Owned(Thing::Conversation, id.to_owned())),
            (Reach::Nothing | Reach::Named | Reach::List(_) | Reach::Closed(_), _) => None,
        };
        let named = in_path.into_iter().chain(in_query).chain(in_body);
        // what needs no question is looked at first: a refusal costs Letta nothing then
        let (agents, owned): (Vec<_>, Vec<_>) = named.partition(|named| matches!(named, Named::Agent(_)));
        for named in agents.iter().chain(&owned) {
            let agent = match named {
                Named::Agent(agent) => Cow::Borrowed(&**agent),
                Named::Owned(thing, id) => match self.owners.of(*thing, id, key, record, next).await? {
                    Found::Agent(agent) => Cow::Owned(agent.into()),
                    Found::Letta(answer) => return Ok(Checked::Answered(answer)),
                },
            };
            if !key.agents.has(&agent) {
                return Err(Error::AgentRefused);
            }
        }
        Ok(Checked::Fine(held))
    }
}

/// What became of a request that was looked at.
enum Checked {
    Fine(Option<Held>),
    Answered(Response),
}

impl<Next: Handle<Confined>> Step<Within, Next> for Reacher {
    async fn call(&self, within: Within, record: &mut Record, next: &Next) -> Result<Response, Error> {
        let (parts, seat) = within.into_parts();
        match &parts.key {
            // boxed: the requests of keys that reach all agents must not be the larger future
            Some(key) if !key.agents.are_all() => {
                let key = Arc::clone(key);
                Box::pin(self.confine(parts, &key, seat, record, next)).await
            }
            _ => next.handle(Confined { parts, seat }, record).await,
        }
    }
}

impl Reacher {
    async fn confine<Next: Handle<Confined>>(
        &self,
        mut parts: Box<Parts>,
        key: &Arc<Key>,
        seat: Option<Box<Seat>>,
        record: &mut Record,
        next: &Next,
    ) -> Result<Response, Error> {
        let reach = reach(parts.route);
        if let Reach::Closed(why) = reach {
            return Err(Error::ReachRefused { why });
        }
        if reach == Reach::Nothing {
            return next.handle(Confined { parts, seat }, record).await;
        }
        let _held = match self.check(&mut parts, key, reach, record, next).await? {
            Checked::Fine(held) => held,
            Checked::Answered(answer) => return Ok(answer),
        };
        match reach {
            Reach::List(list) => listed(list, parts, key, record, next).await,
            _ => next.handle(Confined { parts, seat }, record).await,
        }
    }
}
