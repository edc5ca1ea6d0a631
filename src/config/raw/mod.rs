//! The YAML file as it is written: every option, its default, and (in its doc comment) its line in the JSON Schema.
//!
//! Defaults stand here and nowhere else. What has no default is an `Option` that the schema calls required.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secret::Secret;
use super::units::{ByteSize, DurationText};
use super::workers::Workers;

mod key;
mod listener;
mod plan;
mod turns;
mod upstream;

pub(super) use key::{ALL_AGENTS, DEFAULT_PLAN, Key, Scope};
pub(super) use listener::{Certificate, Listener, Tls, TlsVersion};
pub(super) use plan::{Budget, Mode, Plan, PlanScope, Rate, Rates};
pub(super) use turns::{Dedupe, LaneBounds, OnDisconnect, OnStoreError, Turns};
pub(super) use upstream::{Balance, Ejection, HealthCheck, Pool, Server, Timeouts, Upstream};

/// Configuration of letta-gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Config {
    /// Where clients connect; at least one.
    #[schemars(length(min = 1))]
    pub listeners: Vec<Listener>,
    /// Metrics and health, apart from the clients' listeners.
    pub admin: Admin,
    /// The Letta replicas, under a name of your choice; exactly one group.
    pub upstreams: BTreeMap<String, Upstream>,
    /// The API keys; without one of them only Letta's health route answers.
    pub keys: Vec<Key>,
    /// A YAML file with a list of more keys, each as under keys; taken over when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys_file: Option<PathBuf>,
    /// What a key may use up, by the plan's name.
    pub plans: BTreeMap<String, Plan>,
    /// Where shared state is kept; in this process unless Redis is named.
    pub store: Store,
    /// Answers to repeated messages; off until agents are named.
    pub cache: Cache,
    /// Messages to agents: sent once, in order, whatever their clients do.
    pub turns: Turns,
    /// Browsers of other origins.
    pub cors: Cors,
    /// What is told on standard output and standard error.
    pub log: Log,
    /// How long requests and streams may go on after SIGTERM; what has no answer then is told so.
    pub drain: DurationText,
    /// Worker threads: auto (one for each CPU) or a number. Takes a restart.
    pub workers: Workers,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listeners: Vec::new(),
            admin: Admin::default(),
            upstreams: BTreeMap::new(),
            keys: Vec::new(),
            keys_file: None,
            plans: BTreeMap::from([(DEFAULT_PLAN.to_owned(), Plan::standard())]),
            store: Store::default(),
            cache: Cache::default(),
            turns: Turns::default(),
            cors: Cors::default(),
            log: Log::default(),
            drain: DurationText::secs(30),
            workers: Workers(None),
        }
    }
}

/// The admin listener: /metrics, /livez, /readyz.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Admin {
    /// IP address and port, or none for no admin listener. It asks for no key: keep it on loopback or a private network.
    /// Takes a restart.
    pub address: String,
}

impl Default for Admin {
    fn default() -> Self {
        Self { address: "127.0.0.1:9090".to_owned() }
    }
}

/// Where shared state is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Store {
    /// Left out: in this process, shared with no other gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<Redis>,
    /// What becomes of requests whose limits are counted in Redis while it does not answer: this gateway holds them to its
    /// share of what is left (local), refuses them (deny), or holds them to all of it (allow).
    pub on_error: OnError,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum OnError {
    #[default]
    Local,
    Deny,
    Allow,
}

/// Redis as the store of all gateways.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Redis {
    /// redis://[user:password@]host:port/database; redis+sentinel://…@host:port,…/master/database for the master that these
    /// Sentinels name; redis+cluster://…@host:port,… for a Redis Cluster by some of its nodes; rediss for redis: TLS. May be
    /// ${ENV} or file:/path.
    #[schemars(required)]
    pub url: Option<Secret>,
    /// For redis+sentinel://: who one is to the Sentinels, if they ask; the URL's user and password are for Redis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentinel_username: Option<String>,
    /// For redis+sentinel://: the Sentinels' own password; may be ${ENV} or file:/path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentinel_password: Option<Secret>,
    /// For one command; after it the request goes on without the store.
    pub timeout: DurationText,
    /// In front of every Redis key.
    pub prefix: String,
    /// PEM file of the authorities a rediss server's certificate is checked against; left out: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            url: None,
            sentinel_username: None,
            sentinel_password: None,
            timeout: DurationText::millis(50),
            prefix: "lgw:".to_owned(),
            ca_file: None,
        }
    }
}

/// Answers to repeated messages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Cache {
    /// The agents whose answers may be repeated: ids, patterns as in a key's agents, or "*" for all; empty: off.
    pub agents: Vec<String>,
    /// How long an answer may be repeated.
    pub ttl: DurationText,
    /// Size of one answer at most.
    pub max_entry: ByteSize,
    /// Size of all answers together; in Redis its own maxmemory holds instead.
    pub max_total: ByteSize,
    /// Who shares answers: each key has its own (key), or all keys share them (shared).
    pub scope: CacheScope,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            agents: Vec::new(),
            ttl: DurationText::secs(3600),
            max_entry: ByteSize::kib(256),
            max_total: ByteSize::mib(64),
            scope: CacheScope::Key,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum CacheScope {
    Key,
    Shared,
}

/// Browsers of other origins.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Cors {
    /// Origins that may read answers, e.g. https://app.example.com, or "*" alone; empty: none.
    pub origins: Vec<String>,
}

/// What is told on standard output and standard error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Log {
    /// error, warn, info, debug or trace; also by module, e.g. info,letta_gateway::balance=debug.
    pub level: String,
    /// Of diagnostics on standard error. Takes a restart.
    pub format: LogFormat,
    /// One JSON line a request on standard output. Takes a restart.
    pub access: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text, access: true }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum LogFormat {
    Text,
    Json,
}
