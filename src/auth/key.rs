//! A configured API key: never its text, only its digest, and what it may do.

use std::fmt;
use std::sync::Arc;

use crate::letta::routes::Scope;
use crate::telemetry::metrics::KeyMetrics;

/// What the configuration says of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub id: String,
    /// SHA-256 of the whole key text.
    pub digest: [u8; 32],
    pub plan: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
}

/// A key that was checked.
pub struct Key {
    pub id: Arc<str>,
    pub plan: Arc<str>,
    pub scopes: Scopes,
    pub metrics: Arc<KeyMetrics>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).field("scopes", &self.scopes).finish_non_exhaustive()
    }
}

/// What a key may do: each scope is given by name, none brings another with it, but `admin` brings all. A key that
/// sends messages and looks at what came of them is `[read, message]`.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    pub fn allow(self, scope: Scope) -> bool {
        scope == Scope::Open || self.0 & (bit(scope) | bit(Scope::Admin)) != 0
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |all, scope| all | bit(scope)))
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [Scope::Read, Scope::Message, Scope::Modify, Scope::Admin];
        f.debug_set().entries(all.iter().filter(|scope| self.0 & bit(**scope) != 0)).finish()
    }
}

fn bit(scope: Scope) -> u8 {
    match scope {
        Scope::Open => 0,
        Scope::Read => 1,
        Scope::Message => 2,
        Scope::Modify => 4,
        Scope::Admin => 8,
    }
}
