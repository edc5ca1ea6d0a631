//! Cross-origin requests: answers preflights, and names the origins that may read.
//!
//! Promises that a preflight is answered here, without a key and without Letta; that only the configured origins are
//! ever named in an answer; and that no `Access-Control-*` header of Letta's gets out, for Letta would name its own.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, CACHE_CONTROL, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::body::{Body, Response};
use crate::error::Error;
use crate::record::Received;
use crate::step::{Handle, Step};
use crate::telemetry::Record;

const ANY: HeaderValue = HeaderValue::from_static("*");
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE");
const BY_ORIGIN: HeaderValue = HeaderValue::from_static("Origin");
/// How long a browser may go by a preflight's answer, in seconds (as Letta's own).
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");
/// The headers of the gateway's own that a page may read.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "X-Request-Id, Retry-After, Retry-After-Ms, X-Should-Retry, X-RateLimit-Limit, X-RateLimit-Remaining, \
     X-RateLimit-Reset, Cache-Status, Age, WWW-Authenticate, X-Upload-Result",
);

/// What the configuration says of cross-origin requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Origins that may read answers, e.g. `https://app.example.com`; `*` for all. Empty: no CORS headers at all.
    pub origins: Vec<String>,
}

/// Answers preflights and notes which origin may read the answer.
#[derive(Debug)]
pub struct Cors {
    origins: Vec<HeaderValue>,
    any: bool,
}

impl Cors {
    pub fn new(settings: &Settings) -> Self {
        let origins = settings.origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect();
        Self { origins, any: settings.origins.iter().any(|origin| origin == "*") }
    }

    /// What `Access-Control-Allow-Origin` says to `headers`' origin; `None` if nothing.
    fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if self.origins.is_empty() {
            return None;
        }
        let origin = headers.get(ORIGIN)?;
        if self.any {
            return Some(ANY);
        }
        self.origins.iter().find(|allowed| *allowed == origin).cloned()
    }

    /// Whether another origin would have had other headers: a browser that keeps an answer without a grant must not
    /// show it to a page that has one (Fetch, "CORS protocol and HTTP caches").
    fn varies(&self) -> bool {
        !self.any && !self.origins.is_empty()
    }
}

impl<Next: Handle<Received>> Step<Received, Next> for Cors {
    async fn call(&self, received: Received, record: &mut Record, next: &Next) -> Result<Response, Error> {
        record.origin = self.allowed(received.request.headers());
        if !is_preflight(received.request.method(), received.request.headers()) {
            let mut response = next.handle(received, record).await?;
            strip(response.headers_mut());
            if record.origin.is_none() && self.varies() {
                response.headers_mut().append(VARY, BY_ORIGIN);
            }
            return Ok(response);
        }
        if record.origin.is_none() {
            return Err(Error::OriginRefused);
        }
        Ok(preflight(received.request.headers()))
    }
}

fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS && headers.contains_key(ORIGIN) && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Allows every method and header of Letta's; the key and the scopes decide when the request itself comes.
fn preflight(asked: &HeaderMap) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    if let Some(names) = asked.get(ACCESS_CONTROL_REQUEST_HEADERS)
        && names.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_., ".contains(byte))
    {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    headers.insert(VARY, HeaderValue::from_static("Access-Control-Request-Method, Access-Control-Request-Headers"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What Letta says to origins it knows is not the gateway's word.
fn strip(headers: &mut HeaderMap) {
    let is_cors = |name: &HeaderName| name.as_str().starts_with("access-control-");
    if headers.keys().any(is_cors) {
        let names: Vec<_> = headers.keys().filter(|name| is_cors(name)).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }
}

/// Lets `origin` (a record's) read an answer, whoever made it.
pub fn response_headers(origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    let Some(origin) = origin else { return };
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    if *origin != ANY {
        // browsers take no credentials along to `*`
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        headers.append(VARY, BY_ORIGIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(origins: &[&str]) -> Cors {
        Cors::new(&Settings { origins: origins.iter().map(|origin| (*origin).to_owned()).collect() })
    }

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        of.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn allowed(origins: &[&str], origin: &'static str) -> Option<HeaderValue> {
        cors(origins).allowed(&headers(&[("origin", origin)]))
    }

    #[test]
    fn only_a_configured_origin_is_named() {
        let app = ["https://app.example.com", "http://localhost:3000"];
        assert_eq!(allowed(&app, "http://localhost:3000").unwrap(), "http://localhost:3000");
        for other in
            ["https://app.example.com.evil.test", "http://app.example.com", "null", "*", "", "https://APP.example.com"]
        {
            assert_eq!(allowed(&app, other), None, "{other}");
        }
        assert_eq!(allowed(&["*"], "https://anyone.test").unwrap(), "*");
        assert_eq!(allowed(&[], "https://anyone.test"), None);
        assert_eq!(cors(&["*"]).allowed(&HeaderMap::new()), None);
    }

    #[test]
    fn a_preflight_is_an_options_request_that_says_so() {
        let asks = headers(&[("origin", "https://a.test"), ("access-control-request-method", "POST")]);
        assert!(is_preflight(&Method::OPTIONS, &asks));
        assert!(!is_preflight(&Method::POST, &asks));
        assert!(!is_preflight(&Method::OPTIONS, &headers(&[("origin", "https://a.test")])));
        assert!(!is_preflight(&Method::OPTIONS, &headers(&[("access-control-request-method", "POST")])));
    }

    #[test]
    fn a_preflight_is_granted_what_it_asks_for() {
        let asks = headers(&[("access-control-request-headers", "authorization,content-type,user_id")]);
        let granted = preflight(&asks);
        assert_eq!(granted.status(), StatusCode::NO_CONTENT);
        assert_eq!(granted.headers()["access-control-allow-headers"], "authorization,content-type,user_id");
        assert_eq!(granted.headers()["access-control-allow-methods"], "GET, HEAD, POST, PUT, PATCH, DELETE");
        assert_eq!(granted.headers()["access-control-max-age"], "600");
        let asks = headers(&[("access-control-request-headers", "a: b")]);
        assert!(!preflight(&asks).headers().contains_key("access-control-allow-headers"));
    }

    #[test]
    fn lettas_own_grants_do_not_get_out() {
        let mut answer = headers(&[
            ("access-control-allow-origin", "http://localhost:8283"),
            ("access-control-allow-credentials", "true"),
            ("access-control-anything", "x"),
            ("content-type", "application/json"),
        ]);
        strip(&mut answer);
        assert_eq!(answer, headers(&[("content-type", "application/json")]));
    }

    #[test]
    fn an_answer_names_the_origin_that_may_read_it_and_no_other() {
        let mut answer = headers(&[("vary", "Accept-Encoding")]);
        response_headers(None, &mut answer);
        assert_eq!(answer, headers(&[("vary", "Accept-Encoding")]));

        let origin = HeaderValue::from_static("https://a.test");
        response_headers(Some(&origin), &mut answer);
        assert_eq!(answer["access-control-allow-origin"], "https://a.test");
        assert_eq!(answer["access-control-allow-credentials"], "true");
        assert!(answer["access-control-expose-headers"].to_str().unwrap().contains("X-Request-Id"));
        assert_eq!(answer.get_all("vary").iter().collect::<Vec<_>>(), ["Accept-Encoding", "Origin"]);

        let mut answer = HeaderMap::new();
        response_headers(Some(&ANY), &mut answer);
        assert_eq!(answer["access-control-allow-origin"], "*");
        assert!(!answer.contains_key("access-control-allow-credentials") && !answer.contains_key("vary"));
    }
}
