//! The target, read once and strictly: which Letta endpoint, which agent, which scope.
//!
//! Promises that nothing below reads a target again: the request it hands on has exactly the path that met the route, in
//! origin form, one Host header, and no framing but one Content-Length or `chunked`. What it refuses is refused before any
//! rule about keys, so that no rule can be walked around.

mod host;
mod target;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::header::{CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use http::uri::{PathAndQuery, Uri};
use http::{HeaderMap, Method, Request};

use crate::body::{self, Response};
use crate::error::Error;
use crate::letta::routes::Route;
use crate::record::Received;
use crate::step::{Handle, Step};
use crate::telemetry::Record;

/// The methods of Letta's routes.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// A request whose target is known and canonical.
pub struct Routed {
    request: body::Request,
    route: &'static Route,
    subject: Option<Arc<str>>,
}

impl Routed {
    pub fn request(&self) -> &body::Request {
        &self.request
    }

    pub fn route(&self) -> &'static Route {
        self.route
    }

    /// The request, its route, and the id its path names.
    pub fn into_parts(self) -> (body::Request, &'static Route, Option<Arc<str>>) {
        (self.request, self.route, self.subject)
    }
}

/// Finds the route of each request, or refuses it.
#[derive(Debug, Default)]
pub struct Router;

impl<Next: Handle<Routed>> Step<Received, Next> for Router {
    async fn call(&self, received: Received, record: &mut Record, next: &Next) -> Result<Response, Error> {
        let Received { mut request } = received;
        let place = read(&mut request).inspect_err(|_| record.path = Some(request.uri().path().into()));
        let Place { route, subject } = place?;
        record.route = Some(route);
        record.subject.clone_from(&subject);
        next.handle(Routed { request, route, subject }, record).await
    }
}

/// Where a request goes.
#[derive(Debug)]
struct Place {
    route: &'static Route,
    subject: Option<Arc<str>>,
}

/// Checks the head of `request` and brings its target to Letta's own form.
fn read<B>(request: &mut Request<B>) -> Result<Place, Error> {
    check_method(request.method())?;
    let uri = request.uri();
    if uri.path() == "*" {
        return Err(Error::BadTarget("`*` is not a target here: ask for a path"));
    }
    let host = host::check(request.version(), uri, request.headers())?;
    check_framing(request.headers())?;
    let target = target::read(request.method(), uri.path())?;
    if uri.query().is_some_and(|query| !query.bytes().all(|byte| byte.is_ascii_graphic())) {
        return Err(Error::BadTarget("the query holds a character that must be percent-encoded"));
    }
    let (route, subject) = (target.route, target.subject);
    let canonical = match uri.path_and_query() {
        Some(given) if given.as_str().starts_with('/') && given.path() == target.path => {
            // an absolute or HTTP/2 target has more than a path
            uri.authority().map(|_| Uri::from(given.clone()))
        }
        _ => Some(origin_form(&target.path, uri.query())?),
    };
    if let Some(canonical) = canonical {
        *request.uri_mut() = canonical;
    }
    if let Some(host) = host {
        request.headers_mut().insert(HOST, host);
    }
    Ok(Place { route, subject })
}

/// CONNECT and TRACE are no matter of routes, and methods are case-sensitive: `get` is none.
fn check_method(method: &Method) -> Result<(), Error> {
    match *method {
        Method::GET | Method::HEAD | Method::POST | Method::PUT | Method::PATCH | Method::DELETE | Method::OPTIONS => {
            Ok(())
        }
        _ => Err(Error::MethodNotAllowed { allow: METHODS.to_owned() }),
    }
}

/// hyper decodes `chunked` as the last of several codings and drops the others silently.
fn check_framing(headers: &HeaderMap) -> Result<(), Error> {
    let (mut codings, mut lengths) = (0, 0);
    for (name, value) in headers {
        let value = value.as_bytes();
        if *name == TRANSFER_ENCODING {
            codings += 1;
            if codings > 1 || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Error::BadFraming("Transfer-Encoding may be `chunked` and nothing else"));
            }
        } else if *name == CONTENT_LENGTH {
            // over HTTP/2 it frames nothing and is whatever the client wrote; over HTTP/1 to Letta it would
            lengths += 1;
            if lengths > 1 || value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
                return Err(Error::BadFraming("Content-Length may be one number and nothing else"));
            }
        } else if *name == EXPECT && !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(Error::BadHeader("Expect may be `100-continue` and nothing else"));
        }
    }
    Ok(())
}

fn origin_form(path: &str, query: Option<&str>) -> Result<Uri, Error> {
    let mut target = String::with_capacity(path.len() + query.map_or(0, |query| query.len() + 1));
    target.push_str(path);
    if let Some(query) = query {
        target.push('?');
        target.push_str(query);
    }
    let target = PathAndQuery::from_maybe_shared(bytes::Bytes::from(target));
    target.map(Uri::from).map_err(|_| Error::BadTarget("the target is too long"))
}
