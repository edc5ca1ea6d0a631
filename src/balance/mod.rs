//! Picks a replica for one attempt.

use std::time::Duration;

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
