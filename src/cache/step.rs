//! The cache step: looks for a kept answer, lets Letta answer otherwise.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};

use super::directives::Directives;
use super::key::key;
use super::status::{Forwarded, tell_hit};
use super::tee::{Keeping, is_json};
use super::{Scope, Settings};
use crate::auth::Parts;
use crate::body::request::{Read, within};
use crate::body::{Body, Request, RequestBody, Response};
use crate::boxed;
use crate::error::Error;
use crate::hop::end_hop;
use crate::letta::agents::Agents;
use crate::letta::message::canonical;
use crate::letta::routes::{Route, Sends};
use crate::limits::Seat;
use crate::reach::Confined;
use crate::step::{Handle, Step};
use crate::store::{self, Entry, Store};
use crate::telemetry::metrics::CacheResult;
use crate::telemetry::{Metrics, Record};

/// Bytes of a request body that are read to find its answer; a longer message is sent on as it comes.
const LONGEST_MESSAGE: usize = 256 * 1024;

/// A request that Letta is to answer.
pub struct Forward {
    parts: Box<Parts>,
    seat: Option<Box<Seat>>,
}

impl Forward {
    pub fn route(&self) -> &'static Route {
        self.parts.route
    }

    pub fn into_parts(self) -> (Box<Parts>, Option<Box<Seat>>) {
        (self.parts, self.seat)
    }
}

/// Answers from the store what it can.
#[derive(Clone)]
pub struct Cache {
    inner: Arc<Inner>,
}

struct Inner {
    agents: Agents,
    ttl: Duration,
    max_entry: usize,
    scope: Scope,
    store: Store,
    metrics: Arc<Metrics>,
    /// How long a client may take over a message.
    patience: Duration,
}

/// What the cache makes of a request.
pub(super) enum Looked {
    /// It has the answer.
    Hit { response: Response, request_bytes: u64 },
    /// Letta is to answer; what to do with its answer.
    Forward(Then),
}

/// What to do with Letta's answer.
pub(super) struct Then {
    why: Forwarded,
    keeping: Option<Keeping>,
}

impl Then {
    pub(super) fn result(&self) -> CacheResult {
        self.why.result()
    }

    pub(super) fn answered(self, mut response: Response) -> Response {
        self.why.tell(response.headers_mut());
        match self.keeping {
            Some(keeping) => keeping.watch(response),
            None => response,
        }
    }
}

impl Cache {
    /// `patience`: how long a client may take over a message that is looked for.
    pub fn new(settings: &Settings, store: Store, metrics: Arc<Metrics>, patience: Duration) -> Self {
        let inner = Inner {
            agents: Agents::new(settings.agents.iter().map(String::as_str)),
            ttl: settings.ttl,
            max_entry: usize::try_from(settings.max_entry).unwrap_or(usize::MAX),
            scope: settings.scope,
            store,
            metrics,
            patience,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The agent that `route` sends a message to, if its answers are kept.
    fn agent<'a>(&self, route: &Route, subject: Option<&'a str>) -> Option<&'a str> {
        match route.sends {
            Some(Sends::Agent) => subject.filter(|agent| self.inner.agents.has(agent)),
            Some(Sends::AgentStream | Sends::Conversation | Sends::ChatCompletions) | None => None,
        }
    }

    /// Looks for the answer to `request`, which sends a message to `agent` with the key `asker.0` as the Letta user
    /// `asker.1`.
    pub(super) async fn look(
        &self,
        request: &mut Request,
        agent: &str,
        asker: (&str, Option<&str>),
    ) -> Result<Looked, Error> {
        // what Letta will not see has no part in its answer
        end_hop(request.headers_mut());
        let asked = Directives::of(request.headers());
        let forward = |why: Forwarded, under: Option<store::Key>| {
            if asked.only_if_cached {
                return Err(Error::NotKept);
            }
            let keeping = under.map(|key| self.keeping(key));
            Ok(Looked::Forward(Then { why, keeping }))
        };
        if asked.no_store {
            return forward(Forwarded::Request, None);
        }
        if !is_plain_json(request.headers()) {
            return forward(Forwarded::NotJson, None);
        }
        let reading = std::mem::take(request.body_mut()).read(LONGEST_MESSAGE);
        let read = within(self.inner.patience, pin!(reading)).await?;
        let bytes = match read {
            Read::Whole(bytes) => bytes,
            Read::Longer(body) => {
                *request.body_mut() = body;
                return forward(Forwarded::TooLong, None);
            }
        };
        let message = match canonical(&bytes) {
            Ok(message) => message,
            Err(why) => {
                *request.body_mut() = RequestBody::whole(bytes);
                return forward(Forwarded::NotCacheable(why), None);
            }
        };
        let key = key(self.inner.scope, asker, agent, request, &message);
        let why = if asked.no_cache {
            Forwarded::Request
        } else {
            match self.inner.store.get(&key).await {
                Ok(Some(entry)) => match self.give(entry, asked, request) {
                    Some(response) => return Ok(Looked::Hit { response, request_bytes: bytes.len() as u64 }),
                    None => Forwarded::Stale,
                },
                Ok(None) => Forwarded::Miss,
                Err(_) => Forwarded::Unavailable,
            }
        };
        *request.body_mut() = RequestBody::whole(bytes);
        forward(why, Some(key))
    }

    /// The kept answer, unless it is too old for the configuration or for what is asked.
    fn give(&self, entry: Entry, asked: Directives, request: &mut Request) -> Option<Response> {
        let age = entry.age(SystemTime::now());
        let left = self.inner.ttl.checked_sub(age)?;
        if !asked.accept(age, left) {
            return None;
        }
        let mut response = Response::new(Body::whole(entry.body));
        let headers = response.headers_mut();
        // nobody needs the request's any more, and its map has room
        std::mem::swap(headers, request.headers_mut());
        headers.clear();
        headers.insert(CONTENT_TYPE, entry.content_type);
        tell_hit(age, left, headers);
        Some(response)
    }

    fn keeping(&self, key: store::Key) -> Keeping {
        let Inner { ttl, max_entry, .. } = *self.inner;
        Keeping { store: self.inner.store.clone(), key, ttl, max_entry }
    }
}

/// A body that is JSON as it stands. Letta takes no other, and none that is compressed.
fn is_plain_json(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(is_json) && !headers.contains_key(CONTENT_ENCODING)
}

impl<Next: Handle<Forward>> Step<Confined, Next> for Cache {
    async fn call(&self, confined: Confined, record: &mut Record, next: &Next) -> Result<Response, Error> {
        let (mut parts, seat) = confined.into_parts();
        // a message without a key does not get here; if it did, it would have no scope to share answers in
        let Parts { request, route, subject, key, .. } = &mut *parts;
        let (Some(agent), Some(asker)) = (self.agent(route, subject.as_deref()), &*key) else {
            return next.handle(Forward { parts, seat }, record).await;
        };
        let asker = (&*asker.id, asker.letta_user.as_ref().map(|user| &*user.id));
        // boxed: most requests are not looked for, and theirs must not be the larger future
        let then = match boxed::pin(|| self.look(request, agent, asker)).await? {
            Looked::Hit { response, request_bytes } => {
                record.request_bytes = request_bytes;
                self.tell(CacheResult::Hit, record);
                return Ok(response);
            }
            Looked::Forward(then) => then,
        };
        self.tell(then.result(), record);
        let response = next.handle(Forward { parts, seat }, record).await?;
        Ok(then.answered(response))
    }
}

impl Cache {
    fn tell(&self, result: CacheResult, record: &mut Record) {
        record.cache = Some(result);
        self.inner.metrics.cache(result);
    }
}
