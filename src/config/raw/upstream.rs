//! The part of the YAML file that is about the Letta replicas; what `raw` promises holds here.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::secret::Secret;
use crate::config::units::{ByteSize, DurationText};

/// A group of Letta replicas on one database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct Upstream {
    /// The replicas; at least one.
    #[schemars(required, length(min = 1))]
    pub servers: Vec<Server>,
    /// Letta's server password (LETTA_SERVER_PASSWORD); put in place of the client's key. Empty: none.
    pub password: Secret,
    /// How a replica is picked: agent_affinity, least_request or round_robin.
    pub balance: Balance,
    /// Asks each replica whether it is well.
    pub health_check: HealthCheck,
    /// Leaves a replica out after failures seen on requests.
    pub ejection: Ejection,
    /// How long what may take.
    pub timeouts: Timeouts,
    /// Connections to each replica.
    pub pool: Pool,
    /// Size of a request body at most.
    pub max_body: ByteSize,
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            password: Secret::default(),
            balance: Balance::AgentAffinity,
            health_check: HealthCheck::default(),
            ejection: Ejection::default(),
            timeouts: Timeouts::default(),
            pool: Pool::default(),
            max_body: ByteSize::mib(100),
        }
    }
}

/// One Letta replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct Server {
    /// `http://host:port`
    #[schemars(required)]
    pub url: Option<String>,
    /// Its share beside the others.
    pub weight: u32,
}

impl Default for Server {
    fn default() -> Self {
        Self { url: None, weight: 1 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum Balance {
    /// One agent's requests go to one replica while it is well and not overloaded.
    AgentAffinity,
    /// The less loaded of two random replicas.
    LeastRequest,
    /// One after the other.
    RoundRobin,
}

/// Asks each replica whether it is well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct HealthCheck {
    /// What is asked for; a 2xx answer is well.
    pub path: String,
    /// How often.
    pub interval: DurationText,
    /// How long an answer may take.
    pub timeout: DurationText,
    /// So many failures in a row take a replica out.
    pub unhealthy_after: u32,
    /// So many successes in a row bring it back.
    pub healthy_after: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            path: "/v1/health/".to_owned(),
            interval: DurationText::secs(5),
            timeout: DurationText::secs(2),
            unhealthy_after: 3,
            healthy_after: 2,
        }
    }
}

/// Leaves a replica out after failures seen on requests: connect failures, 502, 503, 504.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct Ejection {
    /// So many in a row.
    pub after: u32,
    /// For so long; doubles each time, up to ten times as long.
    pub duration: DurationText,
}

impl Default for Ejection {
    fn default() -> Self {
        Self { after: 3, duration: DurationText::secs(10) }
    }
}

/// How long what may take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct Timeouts {
    /// Connecting to a replica.
    pub connect: DurationText,
    /// An ordinary request, to the end of its answer.
    pub request: DurationText,
    /// A message to an agent, an upload, a stream: whatever may take long.
    pub message: DurationText,
    /// Silence on a stream.
    pub stream_idle: DurationText,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: DurationText::secs(5),
            request: DurationText::secs(60),
            message: DurationText::secs(30 * 60),
            stream_idle: DurationText::secs(120),
        }
    }
}

/// Connections to each replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct Pool {
    /// So many at most.
    pub max_connections: u32,
    /// How long a request waits for one.
    pub max_wait: DurationText,
    /// How long an unused one is kept; uvicorn closes them after 5 s, so less than that.
    pub idle_timeout: DurationText,
}

impl Default for Pool {
    fn default() -> Self {
        Self { max_connections: 512, max_wait: DurationText::secs(10), idle_timeout: DurationText::secs(4) }
    }
}
