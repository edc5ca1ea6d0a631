//! What each admin path answers.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;

use super::readiness::Readiness;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::TEXT_FORMAT;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

const INDEX: &str = "\
letta-gateway admin listener

/livez    200 as long as the process answers
/readyz   200 while requests can be answered, 503 while draining or without a healthy replica; JSON tells the state
/metrics  metrics in the Prometheus text format
";

/// Never fails: a path that is not known is an answer as well.
pub(super) async fn answer(
    request: Request<Incoming>,
    metrics: &Arc<Metrics>,
    readiness: &impl Fn() -> Readiness,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "this listener takes GET and HEAD\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(refused);
    }
    Ok(match request.uri().path() {
        "/" => response(StatusCode::OK, TEXT, INDEX),
        "/livez" => response(StatusCode::OK, TEXT, "ok\n"),
        "/readyz" => {
            let (status, body) = readiness().answer();
            response(status, JSON, format!("{body}\n"))
        }
        "/metrics" => scrape(Arc::clone(metrics)).await,
        _ => response(StatusCode::NOT_FOUND, TEXT, "not found; `/` lists what is here\n"),
    })
}

/// Thousands of series take milliseconds to gather: not on a thread that serves requests.
async fn scrape(metrics: Arc<Metrics>) -> Response<Full<Bytes>> {
    match tokio::task::spawn_blocking(move || metrics.encode()).await {
        Ok(Ok(text)) => response(StatusCode::OK, TEXT_FORMAT, text),
        failed => {
            let error = failed.map_or_else(|panic| panic.to_string(), |encoded| format!("{:?}", encoded.err()));
            tracing::error!(error, "metrics cannot be gathered");
            response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "the metrics cannot be gathered\n")
        }
    }
}

fn response(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
