//! API keys, as they stand under `keys` and in a `keys_file`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::moment::Moment;
use crate::config::secret::Secret;

/// One API key; the file knows its SHA-256 only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct Key {
    /// Its name in logs and metrics.
    #[schemars(required)]
    pub id: Option<String>,
    /// sha256: and 64 hex digits, as `letta-gateway keys create` or `keys hash` prints it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<Secret>,
    /// In place of hash: one, or the two of a key that is being changed; either text opens.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2))]
    pub hashes: Option<Vec<Secret>>,
    /// The plan whose limits hold for it.
    pub plan: String,
    /// What it may do: read, message, modify, admin.
    #[schemars(required, length(min = 1))]
    pub scopes: Option<Vec<Scope>>,
    /// Which agents it reaches: ids, patterns of ids in which * stands for any text and ? for any one character, or "*"
    /// for all.
    #[schemars(length(min = 1))]
    pub agents: Vec<String>,
    /// The Letta user it acts as; left out: Letta's default user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub letta_user: Option<String>,
    /// Where it may come from: addresses, or networks like 10.0.0.0/8; empty: from anywhere.
    pub allowed_ips: Vec<String>,
    /// When it ends, e.g. 2027-01-31T00:00:00Z.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Moment>,
    /// Refuses it without forgetting it.
    pub disabled: bool,
}

/// The plan of a key that names none.
pub(in crate::config) const DEFAULT_PLAN: &str = "standard";
/// All of them.
pub(in crate::config) const ALL_AGENTS: &str = "*";

impl Default for Key {
    fn default() -> Self {
        Self {
            id: None,
            hash: None,
            hashes: None,
            plan: DEFAULT_PLAN.to_owned(),
            scopes: None,
            agents: vec![ALL_AGENTS.to_owned()],
            letta_user: None,
            allowed_ips: Vec::new(),
            expires_at: None,
            disabled: false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum Scope {
    Read,
    Message,
    Modify,
    Admin,
}
