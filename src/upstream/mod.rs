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
    async fn handle(&self, placed: Placed<'a>, record: &mut Record) -> Result<Response, Error> {
        let Placed { attempt, endpoint, load } = placed;
        let Some(pool) = self.pools.get(endpoint.place) else { return Err(Error::NoUpstream) };
        gather(endpoint.load.now().into()).await;
        let now = Instant::now();
        let (mut lease, sent) = match (!attempt.fresh).then(|| pool.parked(now)).flatten() {
            Some(lease) => (lease, now),
            // boxed: what is seldom waited for must not make every request's future larger
            None => match Box::pin(pool.lease(attempt.fresh)).await {
                Ok(lease) => (lease, Instant::now()),
                Err(error) => {
                    // another replica may be reached: this one is out for this request
                    attempt.failed.add(endpoint.place);
                    return Err(error);
                }
            },
        };
        let Some(mut request) = attempt.request.take() else { return Err(Error::NoUpstream) };
        let meter = (!request.body().is_whole()).then(|| request.body_mut().meter());
        let patience = self.patience(attempt.route.pace);
        record.sent = Some(sent);
        let answer = lease.exchange(request, sent + patience).await;
        let answered = Instant::now();
        record.answered = Some(answered);
        if let Some(meter) = &meter {
            record.request_bytes = meter.bytes();
        }
        let upstream = || endpoint.authority.to_string();
        let response = match answer {
            Ok(response) => response,
            Err(failure) => {
                if let Some(error) = meter.as_ref().and_then(|meter| meter.failure()) {
                    return Err(error);
                }
                return Err(match failure {
                    Unanswered::NotSent(request, cause) => {
                        *attempt.request = Some(request);
                        Error::UpstreamClosed { upstream: upstream(), sent: false, cause }
                    }
                    Unanswered::Closed(cause) => Error::UpstreamClosed { upstream: upstream(), sent: true, cause },
                    Unanswered::Late if meter.is_some_and(|meter| !meter.is_over()) => Error::BodyTimeout,
                    Unanswered::Late => Error::UpstreamTimeout { upstream: upstream(), after: patience },
                });
            }
        };
        let manner = reply::Manner {
            stream_idle: self.timeouts.stream_idle,
            other_idle: patience,
            is_turn: attempt.route.sends.is_some(),
            cutoff: &self.cutoff,
            metrics: &self.metrics,
            now: answered,
        };
        match reply::pass_on(response, lease, load, &manner) {
            Passed::On(response) => Ok(response),
            Passed::Unjudged(answer) => Ok(Box::pin(reply::judged(answer)).await),
        }
    }
}
