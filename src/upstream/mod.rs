//! One attempt to one replica: pool, timeouts, header hygiene.
//!
//! The task that serves the client also drives the connection to the replica: nothing is spawned, no other task is
//! woken. What is dropped early closes its connection, so that a client that leaves is seen by Letta.

mod alarm;
mod connection;
mod pool;
mod reply;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::balance::{Endpoint, Placed};
use crate::body::Response;
use crate::body::request::Meter;
use crate::crowd::gather;
use crate::cutoff::Cutoff;
use crate::error::Error;
use crate::letta::routes::Pace;
use crate::step::Handle;
use crate::telemetry::{Metrics, Record};

use connection::Unanswered;
pub use pool::Pool;
use reply::Passed;

/// What the configuration says of talking to a replica.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// Letta's server password; sent as `Authorization: Bearer`.
    pub password: Option<String>,
    pub timeouts: Timeouts,
    pub pool: PoolSettings,
    /// Bytes of a request body at most.
    pub max_body: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Duration,
    pub request: Duration,
    pub message: Duration,
    pub stream_idle: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSettings {
    /// Connections to one replica at most.
    pub max_connections: u32,
    /// How long a request waits for one.
    pub max_wait: Duration,
    /// How long an unused one is kept; under uvicorn's keep-alive of 5 s.
    pub idle_timeout: Duration,
}

/// The innermost step: sends the request.
pub struct Upstream {
    /// By the endpoint's place.
    pools: Vec<Arc<Pool>>,
    timeouts: Timeouts,
    cutoff: Cutoff,
    metrics: Arc<Metrics>,
}

impl Upstream {
    /// Pools of `previous` to replicas that are still configured are kept with their connections.
    pub fn new(
        settings: &Settings,
        endpoints: &[Arc<Endpoint>],
        cutoff: &Cutoff,
        metrics: Arc<Metrics>,
        previous: Option<&[Arc<Pool>]>,
    ) -> Self {
        let pools = endpoints
            .iter()
            .map(|endpoint| {
                let kept = previous.and_then(|pools| {
                    pools.iter().find(|pool| pool.serves(&endpoint.authority, &settings.pool, &settings.timeouts))
                });
                kept.map_or_else(|| Arc::new(Pool::new(endpoint, settings)), Arc::clone)
            })
            .collect();
        Self { pools, timeouts: settings.timeouts.clone(), cutoff: cutoff.clone(), metrics }
    }

    /// By the endpoint's place; for the next configuration and for the task that closes idle connections.
    pub fn pools(&self) -> &[Arc<Pool>] {
        &self.pools
    }

    /// How long a replica may take to begin its answer.
    fn patience(&self, pace: Pace) -> Duration {
        match pace {
            Pace::Ordinary => self.timeouts.request,
            Pace::Long => self.timeouts.message,
        }
    }
}

impl<'a> Handle<Placed<'a>> for Upstream {
    #[expect(clippy::manual_async_fn, reason = "an `async fn` holds what it is called with twice")]
    fn handle(
        &self,
        mut placed: Placed<'a>,
        record: &mut Record,
    ) -> impl Future<Output = Result<Response, Error>> + Send {
        async move {
            // in a block of its own, so that nothing of it is held while an answer is judged
            let passed = {
                let Some(pool) = self.pools.get(placed.endpoint.place) else { return Err(Error::NoUpstream) };
                gather(placed.endpoint.load.now().into()).await;
                let patience = self.patience(placed.attempt.route.pace);
                let now = Instant::now();
                let (mut lease, mut sent) = match (!placed.attempt.fresh).then(|| pool.parked(now)).flatten() {
                    Some(lease) => (lease, now),
                    // boxed: what is seldom waited for must not make every request's future larger
                    None => match Box::pin(pool.lease(placed.attempt.fresh)).await {
                        Ok(lease) => (lease, Instant::now()),
                        Err(error) => return Err(unreached(error, &mut placed)),
                    },
                };
                let (response, answered) = loop {
                    let Some(mut request) = placed.attempt.request.take() else { return Err(Error::NoUpstream) };
                    let meter = request.body_mut().meter();
                    record.sent = Some(sent);
                    let answer = lease.exchange(request, sent + patience).await;
                    let answered = Instant::now();
                    record.answered = Some(answered);
                    if let Some(meter) = &meter {
                        record.request_bytes = meter.bytes();
                    }
                    match answer {
                        Ok(response) => break (response, answered),
                        // it was closed while it was parked, and this is no attempt: on to the next
                        Err(Unanswered::NotSent(request, _)) if lease.was_parked => {
                            *placed.attempt.request = Some(request);
                            (record.sent, record.answered) = (None, None);
                            (lease, sent) = match Box::pin(lease.another()).await {
                                Ok(lease) => (lease, Instant::now()),
                                Err(error) => return Err(unreached(error, &mut placed)),
                            };
                        }
                        Err(failure) => return Err(unanswered(failure, meter, patience, &mut placed)),
                    }
                };
                let manner = reply::Manner {
                    stream_idle: self.timeouts.stream_idle,
                    other_idle: patience,
                    is_turn: placed.attempt.route.sends.is_some(),
                    cutoff: &self.cutoff,
                    metrics: &self.metrics,
                    now: answered,
                };
                reply::pass_on(response, lease, placed.load, &manner)
            };
            match passed {
                Passed::On(response) => Ok(response),
                Passed::Unjudged(answer) => Ok(Box::pin(reply::judged(answer)).await),
            }
        }
    }
}

/// There is no connection; another replica may be reached: this one is out for this request.
fn unreached(error: Error, placed: &mut Placed<'_>) -> Error {
    placed.attempt.failed.add(placed.endpoint.place);
    error
}

/// What became of a request without an answer; it is put back if it never left.
fn unanswered(failure: Unanswered, meter: Option<Arc<Meter>>, after: Duration, placed: &mut Placed<'_>) -> Error {
    if let Some(error) = meter.as_ref().and_then(|meter| meter.failure()) {
        return error;
    }
    let upstream = placed.endpoint.authority.to_string();
    match failure {
        Unanswered::NotSent(request, cause) => {
            *placed.attempt.request = Some(request);
            Error::UpstreamClosed { upstream, sent: false, cause }
        }
        Unanswered::Closed(cause) => Error::UpstreamClosed { upstream, sent: true, cause },
        Unanswered::Late if meter.is_some_and(|meter| !meter.is_over()) => Error::BodyTimeout,
        Unanswered::Late => Error::UpstreamTimeout { upstream, after },
    }
}
