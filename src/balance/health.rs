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
use crate::dial::{Failure, dial};
use crate::error::Cause;

/// Checks `endpoint` until this future is dropped.
pub async fn watch(endpoint: Arc<Endpoint>, check: HealthCheck) -> Infallible {
    // the first check decides alone: nothing is known yet that it could contradict
    let (mut well, mut ill) = (check.healthy_after, check.unhealthy_after);
    // the later ones stand apart from the neighbours', so that one gateway's checks do not come in a volley
    // whether the last check could not be made
    let mut wanting = false;
    let mut next = Instant::now() + check.interval + jitter(&endpoint, check.interval);
    loop {
        let found = timeout(check.timeout, ask(&endpoint.authority, &check.path)).await;
        let found = match found {
            Ok(Ok(status)) if status.is_success() => Found::Well,
            Ok(Ok(status)) => Found::Ill(format!("status {}", status.as_u16())),
            Ok(Err(Failure::Replica(cause))) => {
                endpoint.metrics.refused();
                Found::Ill(cause.to_string())
            }
            Ok(Err(own @ Failure::Own { .. })) => Found::Nothing(own),
            Err(_) => Found::Ill(format!("no answer in {:?}", check.timeout)),
        };
        if let (Found::Nothing(why), false) = (&found, wanting) {
            tracing::error!(upstream = %endpoint.authority, %why, "health checks cannot be made");
        }
        wanting = matches!(found, Found::Nothing(_));
        match found {
            Found::Nothing(_) => {}
            Found::Well => {
                (well, ill) = (well.saturating_add(1), 0);
                if well >= check.healthy_after && endpoint.checked(true) {
                    tracing::info!(upstream = %endpoint.authority, "replica healthy");
                }
            }
            Found::Ill(problem) => {
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

/// What one check says of the replica.
enum Found {
    Well,
    Ill(String),
    /// The check could not be made: the gateway's own want.
    Nothing(Failure),
}

/// One GET on a connection of its own; the status of the answer.
async fn ask(authority: &str, path: &str) -> Result<StatusCode, Failure> {
    let stream = dial(authority).await?;
    ask_over(stream, authority, path).await.map_err(Failure::Replica)
}

async fn ask_over(stream: TcpStream, authority: &str, path: &str) -> Result<StatusCode, Cause> {
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
