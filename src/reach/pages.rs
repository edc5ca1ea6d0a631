//! Lists of many agents' things, asked for page by page until there is as much of the key's own as was asked for.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};

use super::Confined;
use super::list::{Asked, Page, append, closed, with};
use super::question::get;
use crate::auth::Parts;
use crate::auth::key::Key;
use crate::body::{Body, Response};
use crate::error::Error;
use crate::letta::routes::reach::List;
use crate::step::Handle;
use crate::telemetry::Record;

/// Bytes of one page, and of the list.
const LONGEST_PAGE: usize = 16 << 20;
/// Pages that are gone through for one list.
const MOST_PAGES: usize = 40;

const LONG_LIST: &str = "the list is too long to be looked through; ask for one agent, or for a smaller `limit`";
const NO_LIST: &str = "Letta's answer is no list that can be looked through";

/// Asks for a list page by page until there is as much of it as was asked for, or no more.
pub(super) async fn listed<Next: Handle<Confined>>(
    list: List,
    parts: Box<Parts>,
    key: &Arc<Key>,
    record: &mut Record,
    next: &Next,
) -> Result<Response, Error> {
    let Parts { mut request, route, subject, key: _ } = *parts;
    // what is compressed cannot be looked through
    request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let mut query = request.uri().query().unwrap_or_default().to_owned();
    if let Some(agent) = key.agents.only().filter(|_| list.by_agent && !query.contains("agent")) {
        query = with(&query, "agent_id", agent);
    }
    let asked = Asked::read(&query, list.page);
    let (path, headers, method) =
        (request.uri().path().to_owned(), request.headers().clone(), request.method().clone());
    let (mut items, mut kept) = (String::new(), 0);
    let mut apart = None;
    for _ in 0..MOST_PAGES {
        let target = if query.is_empty() { path.clone() } else { format!("{path}?{query}") };
        let uri = Uri::try_from(target).map_err(|_| Error::BadTarget("the target is too long"))?;
        let mut request = get(uri, &headers);
        request.method_mut().clone_from(&method);
        let parts = Box::new(Parts { request, route, subject: subject.clone(), key: Some(Arc::clone(key)) });
        // the first page is the request's own; the others are the gateway's
        let record = apart.as_mut().unwrap_or(&mut *record);
        let response = next.handle(Confined { parts, seat: None }, record).await?;
        apart = Some(record.apart());
        if response.status() != StatusCode::OK || method == Method::HEAD {
            return Ok(response);
        }
        let (mut head, body) = response.into_parts();
        let json = whole(&head.headers, body).await?;
        let page = Page::read(&json, list, &key.agents).ok_or(Error::ReachRefused { why: NO_LIST })?;
        let room = asked.limit.saturating_sub(kept);
        let taken = page.kept.get(..room.min(page.kept.len())).unwrap_or_default();
        append(&mut items, taken);
        kept += taken.len();
        if items.len() > LONGEST_PAGE {
            return Err(Error::ReachRefused { why: LONG_LIST });
        }
        let is_over = !asked.goes_on || page.items < asked.limit || kept >= asked.limit;
        match page.last.filter(|_| !is_over) {
            Some(last) => query = with(&query, "after", &last),
            None => {
                head.headers.remove(CONTENT_LENGTH);
                return Ok(Response::from_parts(head, Body::whole(closed(items).into())));
            }
        }
    }
    Err(Error::ReachRefused { why: LONG_LIST })
}

async fn whole(headers: &HeaderMap, body: Body) -> Result<Bytes, Error> {
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(Error::ReachRefused { why: NO_LIST });
    }
    match Limited::new(body, LONGEST_PAGE).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(match error.downcast::<Error>() {
            Ok(error) => *error,
            Err(_) => Error::ReachRefused { why: LONG_LIST },
        }),
    }
}
