//! Active health checks: one task a replica, each check a connection of its own.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Endpoint, HealthCheck};

/// Checks `endpoint` until this future is dropped.
pub async fn watch(endpoint: Arc<Endpoint>, check: HealthCheck) -> Infallible {
    // the first check decides alone: nothing is known yet that it could contradict
    let (mut well, mut ill) = (check.healthy_after, check.unhealthy_after);
    // the later ones stand apart from the neighbours', so that one gateway's checks do not come in a volley
    let mut next = Instant::now() + check.interval + jitter(&endpoint, check.interval);
    loop {
        let found = timeout(check.timeout, ask(&endpoint.authority, &check.path)).await;
        let problem = match found {
            Ok(Ok(status)) if status.is_success() => None,
            Ok(Ok(status)) => Some(format!("status {}", status.as_u16())),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer in {:?}", check.timeout)),
        };
        match problem {
            None => {
                (well, ill) = (well.saturating_add(1), 0);
                if well >= check.healthy_after && endpoint.checked(true) {
                    tracing::info!(upstream = %endpoint.authority, "replica healthy");
                }
            }
            Some(problem) => {
                (well, ill) = (0, ill.saturating_add(1));
                // no way back on time alone for a replica that is still out
                endpoint.hold_out(Instant::now() + check.interval * 2);
                if ill >= check.unhealthy_after && endpoint.checked(false) {
                    tracing::warn!(upstream = %endpoint.authority, problem, "replica unhealthy");
                }
            }
        }
        endpoint.tell(Instant::now());
        sleep_until(next).await;
        next = Instant::now() + check.interval;
    }
}

/// One GET on a connection of its own; the status of the answer.
async fn ask(authority: &str, path: &str) -> Result<StatusCode, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(authority).await?;
    let (mut sender, connection) = http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await?;
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = path.parse()?;
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_str(authority)?);
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("letta-gateway/", env!("CARGO_PKG_VERSION"))));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let response = pin!(sender.send_request(request));
    let connection = pin!(connection);
    match select(response, connection).await {
        Either::Left((response, _)) => Ok(response?.status()),
        // the last poll of a connection may have delivered the answer
        Either::Right((_, response)) => Ok(response.await?.status()),
    }
}

/// A share of `interval` that differs between replicas.
fn jitter(endpoint: &Endpoint, interval: Duration) -> Duration {
    interval * u32::try_from(endpoint.seed % 100).unwrap_or(0) / 100
}
