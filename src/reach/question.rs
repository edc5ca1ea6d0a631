//! What the gateway itself asks of Letta about the things a request names: whose they are.
//!
//! Asked in the name of the request's key, so that Letta's own users hold here too.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, TRANSFER_ENCODING};
use http::{HeaderMap, Method, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};
use tokio::time::timeout;

use super::Confined;
use super::owners::{Owner, Owners, question};
use crate::auth::Parts;
use crate::auth::key::Key;
use crate::body::{Request, RequestBody, Response};
use crate::error::Error;
use crate::letta::routes;
use crate::letta::routes::reach::Thing;
use crate::step::Handle;
use crate::telemetry::Record;

/// How long Letta may take to say whose something is.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an answer that says it.
const LONGEST_ANSWER: usize = 4 << 20;

impl Owners {
    /// Whose `id` is; or Letta's answer, if it says that there is no such thing.
    pub(super) async fn of<Next: Handle<Confined>>(
        &self,
        mut thing: Thing,
        id: &str,
        key: &Arc<Key>,
        record: &Record,
        next: &Next,
    ) -> Result<Found, Error> {
        let (asked, mut id) = ((thing, id), Cow::Borrowed(id));
        // a message is asked for, then its run or step
        for _ in 0..2 {
            if let Some(agent) = self.find(thing, &id) {
                self.remember(asked.0, asked.1, &agent);
                return Ok(Found::Agent(agent));
            }
            let path = question(thing, &id).ok_or(Error::AgentRefused)?;
            let answer = timeout(PATIENCE, ask(&path, key, record, next)).await;
            let answer = match answer.map_err(|_| Error::OwnerUnknown)?? {
                Ok(answer) => answer,
                Err(refusal) => return Ok(Found::Letta(refusal)),
            };
            match Owner::read(thing, &answer) {
                Owner::Agent(agent) => {
                    self.remember(thing, &id, &agent);
                    self.remember(asked.0, asked.1, &agent);
                    return Ok(Found::Agent(agent));
                }
                Owner::Of(other, of) => (thing, id) = (other, Cow::Owned(of.into())),
                Owner::Nobody => break,
            }
        }
        Err(Error::AgentRefused)
    }
}

/// What Letta says.
pub(super) enum Found {
    Agent(Box<str>),
    Letta(Response),
}

/// The body of Letta's answer if it is a good one; else the answer.
async fn ask<Next: Handle<Confined>>(
    path: &str,
    key: &Arc<Key>,
    record: &Record,
    next: &Next,
) -> Result<Result<Bytes, Response>, Error> {
    let uri = Uri::try_from(path).map_err(|_| Error::AgentRefused)?;
    let found = routes::find(&Method::GET, path).map_err(|_| Error::AgentRefused)?;
    let (route, subject) = (found.route, found.subject.map(Arc::from));
    let request = get(uri, &HeaderMap::new());
    let parts = Box::new(Parts { request, route, subject, key: Some(Arc::clone(key)) });
    let response = next.handle(Confined { parts, seat: None }, &mut record.apart()).await?;
    if response.status() != StatusCode::OK {
        return Ok(Err(response));
    }
    let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await.map_err(|_| Error::OwnerUnknown)?;
    Ok(Ok(body.to_bytes()))
}

/// A GET of the gateway's own, without the body that `headers` may tell of.
pub(super) fn get(uri: Uri, headers: &HeaderMap) -> Request {
    let mut request = Box::new(http::Request::new(RequestBody::empty()));
    *request.uri_mut() = uri;
    request.headers_mut().clone_from(headers);
    for name in [CONTENT_LENGTH, TRANSFER_ENCODING, CONTENT_TYPE, CONTENT_ENCODING, EXPECT] {
        request.headers_mut().remove(name);
    }
    request
}
