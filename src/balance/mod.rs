//! Picks a replica for one attempt: by the agent, by load or in turn, among those that are well.

pub mod endpoint;
pub mod health;
mod pick;

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::body::{Permit, Response};
use crate::error::Error;
use crate::letta::fault::{is_replica_fault, is_wrong_password};
use crate::letta::routes::Scope;
use crate::retry::Attempt;
use crate::step::{Handle, Step};
use crate::telemetry::{Metrics, Record};

pub use endpoint::Endpoint;

/// What the configuration says of the replicas.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub servers: Vec<Server>,
    pub policy: Policy,
    pub health_check: HealthCheck,
    pub ejection: Ejection,
}

/// One replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `host:port`, its id in metrics and logs.
    pub authority: String,
    pub weight: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Rendezvous hash on the agent with bounded load; least request where no agent is named.
    AgentAffinity,
    /// The less loaded of two random ones.
    LeastRequest,
    RoundRobin,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    pub path: String,
    pub interval: Duration,
    pub timeout: Duration,
    pub unhealthy_after: u32,
    pub healthy_after: u32,
}

/// Leaves a replica out after failures seen on requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ejection {
    /// So many connect failures or 502/503/504 in a row.
    pub after: u32,
    /// For so long; doubles with each ejection in a row, up to ten times.
    pub duration: Duration,
}

/// An attempt with the replica it goes to.
pub struct Placed<'a> {
    pub attempt: Attempt<'a>,
    pub endpoint: Arc<Endpoint>,
    /// Counts as load of the replica until the response's last byte.
    pub load: Permit,
}

/// The step that picks.
pub struct Balance {
    endpoints: Vec<Arc<Endpoint>>,
    policy: Policy,
    ejection: Ejection,
    turn: AtomicU32,
}

impl Balance {
    /// Replicas of `previous` that are still configured keep their health and load.
    pub fn new(settings: &Settings, metrics: &Metrics, previous: Option<&[Arc<Endpoint>]>) -> Self {
        let known = |server: &Server| {
            previous?.iter().find(|endpoint| *endpoint.authority == *server.authority).map(|endpoint| endpoint.health())
        };
        let endpoints = settings
            .servers
            .iter()
            .enumerate()
            .map(|(place, server)| {
                Arc::new(Endpoint::new(place, server, metrics.upstream(&server.authority), known(server)))
            })
            .collect();
        Self { endpoints, policy: settings.policy, ejection: settings.ejection.clone(), turn: AtomicU32::new(0) }
    }

    /// In the order of the configuration.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    fn pick(&self, attempt: &Attempt<'_>, now: Instant) -> Option<&Arc<Endpoint>> {
        let failed = *attempt.failed;
        let well = |endpoint: &Endpoint| endpoint.is_available(now) && !failed.contains(endpoint.place);
        // A fleet that is all ill is still tried: one bad check must not make an outage.
        let untried = |endpoint: &Endpoint| !failed.contains(endpoint.place);
        let turn = || self.turn.fetch_add(1, Ordering::Relaxed);
        pick::pick(&self.endpoints, self.policy, attempt.subject, turn, well)
            .or_else(|| pick::pick(&self.endpoints, self.policy, attempt.subject, turn, untried))
    }

    /// Learns from `answer` how well `endpoint` is.
    fn judged(
        &self,
        answer: Result<Response, Error>,
        endpoint: &Endpoint,
        needs_password: bool,
    ) -> Result<Response, Error> {
        let status = answer.as_ref().map_or(0, |response| response.status().as_u16());
        if let Some(requests) = endpoint.metrics.requests(status) {
            requests.inc();
        }
        match &answer {
            Ok(response) => {
                let (status, opening) = (response.status(), response.body().opening());
                if is_wrong_password(status, opening) {
                    endpoint.refuses_password();
                    return Err(Error::UpstreamPassword { upstream: endpoint.authority.to_string() });
                }
                if is_replica_fault(status, response.headers(), opening) {
                    self.eject_after_failure(endpoint, &status);
                } else {
                    endpoint.succeeded();
                    if needs_password && status.is_success() {
                        endpoint.takes_password();
                    }
                }
            }
            Err(Error::UpstreamConnect { cause, .. }) => {
                endpoint.metrics.connect_failed();
                self.eject_after_failure(endpoint, cause);
            }
            Err(_) => {}
        }
        answer
    }

    /// Leaves `endpoint` out for a while, unless it is the last one in rotation.
    fn eject_after_failure(&self, endpoint: &Endpoint, why: &dyn Display) {
        let now = Instant::now();
        let others = self.endpoints.iter().any(|other| other.place != endpoint.place && other.is_available(now));
        if let Some(pause) = endpoint.failed(&self.ejection, others, now) {
            tracing::warn!(upstream = %endpoint.authority, seconds = pause.as_secs(), last = %why, "replica ejected");
        }
    }
}

impl<'a, Next> Step<Attempt<'a>, Next> for Balance
where
    Next: Handle<Placed<'a>>,
{
    #[expect(clippy::manual_async_fn, reason = "an `async fn` holds what it is called with twice")]
    fn call(
        &self,
        attempt: Attempt<'a>,
        record: &mut Record,
        next: &Next,
    ) -> impl Future<Output = Result<Response, Error>> + Send {
        async move {
            // to the second is near enough for an ejection: the request's own clock will do
            let endpoint = self.pick(&attempt, record.started).ok_or(Error::NoUpstream)?;
            record.goes_to(&endpoint.metrics);
            let needs_password = attempt.route.scope != Scope::Open;
            let placed = Placed { attempt, endpoint: Arc::clone(endpoint), load: endpoint.load.add() };
            let answer = next.handle(placed, record).await;
            self.judged(answer, endpoint, needs_password)
        }
    }
}
