//! Whether another attempt is safe and affordable.
//!
//! Safe: the request never left (any method, on another replica), or it is idempotent (RFC 9110 §9.2.2: GET, HEAD,
//! OPTIONS here) and nothing of an answer came. A message to an agent that may have reached Letta is never sent twice.
//! Affordable: within a budget of a fifth of the recent requests, so that a failing fleet is not hit harder.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::Method;
use tower::retry::budget::{Budget as _, TpsBudget};

use crate::body::{Request, RequestBody, Response};
use crate::error::Error;
use crate::hygiene::Outbound;
use crate::letta::routes::Route;
use crate::packed::PackedRequest;
use crate::step::{Handle, Step};
use crate::telemetry::{Metrics, Record};

/// One attempt at a request. `request` is taken when it is sent, and put back if it was not after all.
pub struct Attempt<'a> {
    pub request: &'a mut Option<Request>,
    pub route: &'static Route,
    /// What the path names: same agent, same replica.
    pub subject: Option<&'a str>,
    /// Replicas that failed this request already, one bit each.
    pub failed: &'a mut Failed,
    /// Use no connection that was used before.
    pub fresh: bool,
}

/// Replicas that failed one request, by their place in the configuration.
#[derive(Debug, Default, Clone, Copy)]
pub struct Failed(u64);

impl Failed {
    pub fn add(&mut self, place: usize) {
        self.0 |= 1_u64.checked_shl(u32::try_from(place).unwrap_or(64)).unwrap_or(0);
    }

    pub fn contains(self, place: usize) -> bool {
        self.0 & 1_u64.checked_shl(u32::try_from(place).unwrap_or(64)).unwrap_or(0) != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Attempts at one request at most.
const MOST_ATTEMPTS: u8 = 3;

/// So many requests are told to the budget at once: it reads a clock and takes a lock.
const DEPOSIT: u32 = 8;

/// The step that tries again.
pub struct Retry {
    budget: TpsBudget,
    requests: AtomicU32,
    metrics: Arc<Metrics>,
}

impl Retry {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        // over ten seconds: one retry for each five requests, and ten a second for quiet gateways
        let budget = TpsBudget::new(Duration::from_secs(10), 10, 0.2 * DEPOSIT as f32);
        Self { budget, requests: AtomicU32::new(0), metrics }
    }

    /// Why `error` leaves room for another attempt, as the metric calls it; `None` if it does not.
    fn outcome(error: &Error, spare: bool) -> Option<&'static str> {
        match error {
            // another replica may have an open connection left, and ports are counted by replica
            Error::UpstreamConnect { .. } | Error::UpstreamBusy { .. } | Error::Exhausted { .. } => {
                Some("another_replica")
            }
            Error::UpstreamClosed { sent: false, .. } => Some("fresh_connection"),
            Error::UpstreamClosed { sent: true, .. } if spare => Some("fresh_connection"),
            _ => None,
        }
    }
}

impl<Next> Step<Outbound, Next> for Retry
where
    Next: for<'a> Handle<Attempt<'a>>,
{
    async fn call(&self, outbound: Outbound, record: &mut Record, next: &Next) -> Result<Response, Error> {
        let (request, route, subject) = outbound.into_parts();
        let mut spare = Spare::of(&request);
        let mut request = Some(request);
        let mut failed = Failed::default();
        if self.requests.fetch_add(1, Ordering::Relaxed).is_multiple_of(DEPOSIT) {
            self.budget.deposit();
        }
        // why there is another attempt, and what the client is told if nobody is left to make it
        let mut before: Option<(&'static str, Error)> = None;
        loop {
            let attempt = Attempt {
                request: &mut request,
                route,
                subject: subject.as_deref(),
                failed: &mut failed,
                fresh: before.is_some(),
            };
            let answer = next.handle(attempt, record).await;
            let error = match (answer, before.take()) {
                (Err(Error::NoUpstream), Some((_, error))) => return Err(error),
                (answer, cause) => {
                    record.attempts = record.attempts.saturating_add(1);
                    if let Some((outcome, _)) = cause {
                        self.metrics.retry(outcome);
                    }
                    match answer {
                        Ok(response) => return Ok(response),
                        Err(error) => error,
                    }
                }
            };
            let Some(outcome) = Self::outcome(&error, spare.is_some()) else { return Err(error) };
            if request.is_none() {
                request = spare.take().map(Spare::request);
            }
            if request.is_none() || record.attempts >= MOST_ATTEMPTS {
                return Err(error);
            }
            if !self.budget.withdraw() {
                self.metrics.retry("budget_spent");
                return Err(error);
            }
            tracing::debug!(%error, attempt = record.attempts, outcome, "trying again");
            before = Some((outcome, error));
        }
    }
}

/// A request to send again once the first may have been read: an idempotent one without a body alone.
struct Spare {
    method: Method,
    /// Packed: it is seldom needed, and a map of its fields costs several times as much.
    head: PackedRequest,
    body: RequestBody,
}

impl Spare {
    fn of(request: &Request) -> Option<Self> {
        if !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
            return None;
        }
        let body = request.body().again()?;
        Some(Self { method: request.method().clone(), head: PackedRequest::of(request, b""), body })
    }

    fn request(self) -> Request {
        let Self { method, head, body } = self;
        Box::new(head.unpack(method, body))
    }
}
