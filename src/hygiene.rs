//! What of a message may pass between client and Letta, in both directions.
//!
//! Towards Letta: hop-by-hop names end here (RFC 9110 §7.6.1), the client's credentials and whatever else would choose
//! another Letta user are taken off, in the head and in the body, the gateway's own are put on, the body is held to its
//! limit. Towards the client:
//! hop-by-hop names end, and no inner address leaves in a `Location`.

mod watch;

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Uri, Version};
use http_body::Body as _;

use crate::auth::Parts;
use crate::body::{Request, Response};
use crate::error::Error;
use crate::hop::{end_hop, remove_all};
use crate::letta::headers::client_may_set;
use crate::letta::routes::Route;
use crate::record::X_REQUEST_ID;
use crate::step::{Handle, Step};
use crate::telemetry::Record;
use crate::turn::Dispatch;
use watch::Watch;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Letta stores it with each step of a run (`services/step_manager.py`).
const X_API_REQUEST_LOG_ID: HeaderName = HeaderName::from_static("x-api-request-log-id");

/// Whom Letta takes the request to come from (`dependencies.py`).
const USER_ID: HeaderName = HeaderName::from_static("user_id");

/// The Host of a request that came without one.
const NO_HOST: HeaderValue = HeaderValue::from_static("letta");

/// A request as Letta may see it.
pub struct Outbound {
    request: Request,
    route: &'static Route,
    subject: Option<Arc<str>>,
}

impl Outbound {
    /// The request, its route, and what its path names.
    pub fn into_parts(self) -> (Request, &'static Route, Option<Arc<str>>) {
        (self.request, self.route, self.subject)
    }
}

/// The step that cleans both ways.
pub struct Hygiene {
    credentials: Option<HeaderValue>,
    /// Bytes of a request body at most.
    max_body: u64,
    watch: Watch,
}

impl Hygiene {
    /// `password`: Letta's own, sent as `Authorization: Bearer`. `patience`: how long a client may take over a body
    /// that has to be looked at.
    pub fn new(password: Option<&str>, max_body: u64, patience: Duration) -> Result<Self, Error> {
        let credentials = password
            .map(|password| {
                let mut value = HeaderValue::from_str(&format!("Bearer {password}"))
                    .map_err(|_| Error::BadHeader("the upstream password has characters no header can carry"))?;
                value.set_sensitive(true);
                Ok(value)
            })
            .transpose()?;
        Ok(Self { credentials, max_body, watch: Watch::new(max_body, patience) })
    }
}

impl<Next: Handle<Outbound>> Step<Dispatch, Next> for Hygiene {
    async fn call(&self, dispatch: Dispatch, record: &mut Record, next: &Next) -> Result<Response, Error> {
        let Parts { mut request, route, subject, key } = *dispatch.into_parts();
        // it may have waited for its turn since
        key.as_ref().map_or(Ok(()), |key| key.check_revoked())?;
        prepare(request.headers_mut(), self.credentials.as_ref(), record);
        if route.starts_turns() {
            // stored with each step, and there are no steps but those of turns
            request.headers_mut().insert(X_API_REQUEST_LOG_ID, record.request_id.clone());
        }
        if let Some(user) = key.as_ref().and_then(|key| key.letta_user.as_ref()) {
            request.headers_mut().insert(USER_ID, user.header.clone());
        }
        // an upgrade would be one to hyper's client too
        request.extensions_mut().clear();
        record.request_bytes = request.body().size_hint().exact().unwrap_or(0);
        *request.body_mut() = std::mem::take(request.body_mut()).within(self.max_body)?;
        // held until Letta has begun its answer, and thus has taken the body
        let _held = match route.watched {
            // boxed: few requests are looked into, and theirs must not be the larger future
            Some(watched) => Box::pin(self.watch.look(&mut request, watched, key.as_deref())).await?,
            None => None,
        };
        *request.version_mut() = Version::HTTP_11;
        let host = request.headers().get(HOST).cloned();
        if host.is_none() {
            // HTTP/1.0 may leave it out, HTTP/1.1 to the replica may not
            request.headers_mut().insert(HOST, NO_HOST);
        }
        tell_length(&mut request);
        let mut response = next.handle(Outbound { request, route, subject }, record).await?;
        let headers = response.headers_mut();
        end_hop(headers);
        let replica = record.upstream.as_ref().map_or("", |upstream| &*upstream.id);
        keep_location_outside(headers, host.as_ref(), replica);
        Ok(response)
    }
}

/// Makes a request's headers ready for a replica.
fn prepare(headers: &mut HeaderMap, credentials: Option<&HeaderValue>, record: &Record) {
    end_hop(headers);
    // the client's key is overwritten below
    let kept = credentials.map(|_| AUTHORIZATION);
    remove_all(headers, |name| *name == EXPECT || !client_may_set(name) && Some(name) != kept.as_ref());
    rejoin_cookies(headers);
    if let Some(credentials) = credentials {
        headers.insert(AUTHORIZATION, credentials.clone());
    }
    headers.insert(X_FORWARDED_FOR, address(record.client));
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(if record.is_tls { "https" } else { "http" }));
    headers.insert(X_REQUEST_ID, record.request_id.clone());
}

/// Makes `Content-Length` say how long the body is, or nothing if that is not known. hyper sends the one that stands
/// there, whatever the body has: the replica would take the next request on the connection for what is missing.
fn tell_length(request: &mut Request) {
    let length = request.body().size_hint().exact();
    let Some(told) = request.headers().get(CONTENT_LENGTH) else { return };
    match length {
        Some(length) if told.as_bytes() == itoa::Buffer::new().format(length).as_bytes() => {}
        Some(length) => drop(request.headers_mut().insert(CONTENT_LENGTH, length.into())),
        None => drop(request.headers_mut().remove(CONTENT_LENGTH)),
    }
}

/// HTTP/2 may send a cookie in crumbs; HTTP/1.1 takes one line (RFC 9113 §8.2.3).
fn rejoin_cookies(headers: &mut HeaderMap) {
    if headers.len() == headers.keys_len() {
        return;
    }
    let mut crumbs = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(cookie) = HeaderValue::from_maybe_shared(Bytes::from(joined)) {
        headers.insert(COOKIE, cookie);
    }
}

/// `X-Forwarded-For`; the last one of each thread is kept, for a client seldom comes alone.
fn address(client: IpAddr) -> HeaderValue {
    thread_local! {
        static LAST: RefCell<Option<(IpAddr, HeaderValue)>> = const { RefCell::new(None) };
    }
    LAST.with_borrow_mut(|last| match last {
        Some((of, value)) if *of == client => value.clone(),
        last => {
            let text = client.to_canonical().to_string();
            let value =
                HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or(HeaderValue::from_static("unknown"));
            *last = Some((client, value.clone()));
            value
        }
    })
}

/// Brings a `Location` that names the replica, or this gateway by whatever scheme Letta believed in, to a path: no
/// inner address ever reaches a client.
fn keep_location_outside(headers: &mut HeaderMap, host: Option<&HeaderValue>, replica: &str) {
    let Some(location) = headers.get(LOCATION) else { return };
    let Ok(uri) = Uri::try_from(location.as_bytes()) else { return };
    let Some(authority) = uri.authority() else { return };
    let is_ours = host.is_some_and(|host| host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()));
    if !is_ours && !authority.as_str().eq_ignore_ascii_case(replica) {
        return;
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    if let Ok(path) = HeaderValue::from_str(path) {
        headers.insert(LOCATION, path);
    }
}
