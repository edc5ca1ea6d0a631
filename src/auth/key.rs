//! A configured API key: never its text, only its digest.

use std::sync::Arc;

use crate::letta::routes::Scope;

/// What the configuration says of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub id: String,
    /// SHA-256 of the whole key text.
    pub digest: [u8; 32],
    pub plan: String,
    /// What it may do; `Admin` covers all, `Modify` covers `Read` and so on only if listed.
    pub scopes: Vec<Scope>,
}

/// A key that was checked.
#[derive(Debug)]
pub struct Key {
    pub id: Arc<str>,
    pub plan: Arc<str>,
    pub scopes: Vec<Scope>,
}
