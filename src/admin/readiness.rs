//! Whether this gateway should be sent requests, and what is wrong with it.

use http::StatusCode;
use serde_json::{Value, json};

/// The state of the gateway, taken when somebody asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// SIGTERM came; no new requests are taken.
    pub draining: bool,
    pub upstreams: usize,
    /// Replicas that are out of rotation, by `host:port`.
    pub unhealthy: Vec<String>,
    /// Replicas that refuse the gateway's password.
    pub wrong_password: Vec<String>,
    pub store: StoreState,
    /// Letta users that keys act as, and that no replica has vouched for: those keys are refused.
    pub unverified_users: Vec<String>,
    /// Why the last configuration was refused and the one before it is still in use.
    pub config_problem: Option<String>,
    /// Options whose configured value is not the one in use: they take a restart.
    pub pending_restart: Vec<&'static str>,
}

/// How the shared store does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreState {
    Ok,
    /// No Redis is configured.
    InProcess,
    /// Requests go on without it; the text says why.
    Degraded(&'static str),
}

impl Readiness {
    /// The answer to `/readyz`: 200 as long as requests can be answered, be it with less than everything.
    pub(super) fn answer(&self) -> (StatusCode, Value) {
        let (status, word) = if self.draining {
            (StatusCode::SERVICE_UNAVAILABLE, "draining")
        } else if self.unhealthy.len() == self.upstreams {
            (StatusCode::SERVICE_UNAVAILABLE, "no_upstream")
        } else if self.is_degraded() {
            (StatusCode::OK, "degraded")
        } else {
            (StatusCode::OK, "ready")
        };
        let (store, problem) = match self.store {
            StoreState::Ok => ("ok", None),
            StoreState::InProcess => ("in_process", None),
            StoreState::Degraded(why) => ("degraded", Some(why)),
        };
        let body = json!({
            "status": word,
            "upstreams": {
                "configured": self.upstreams,
                "healthy": self.upstreams.saturating_sub(self.unhealthy.len()),
                "unhealthy": self.unhealthy,
                "wrong_password": self.wrong_password,
            },
            "store": { "state": store, "problem": problem },
            "letta_users": { "unverified": self.unverified_users },
            "config": { "problem": self.config_problem, "pending_restart": self.pending_restart },
        });
        (status, body)
    }

    fn is_degraded(&self) -> bool {
        !self.unhealthy.is_empty()
            || !self.wrong_password.is_empty()
            || matches!(self.store, StoreState::Degraded(_))
            || self.config_problem.is_some()
            || !self.unverified_users.is_empty()
    }
}
