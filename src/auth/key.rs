//! A configured API key: never its text, only its digests, what it may do, and when and from where.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use super::letta_user::{LettaUser, LettaUsers};
use super::network::Network;
use crate::cutoff::{Cutoff, Ear};
use crate::error::Error;
use crate::letta::agents::Agents;
use crate::letta::routes::Scope;
use crate::telemetry::metrics::KeyMetrics;

/// What the configuration says of one key.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    pub id: String,
    /// SHA-256 of the whole key text; of both texts while a key is being changed.
    pub digests: Vec<[u8; 32]>,
    pub plan: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Which agents it reaches: ids, patterns of ids with `*` and `?`, or `*` alone.
    pub agents: Vec<String>,
    /// The Letta user it acts as; None: Letta's default user.
    pub letta_user: Option<String>,
    /// Where it may come from; empty: from anywhere.
    pub allowed_ips: Vec<Network>,
    /// None: it does not end.
    pub expires_at: Option<SystemTime>,
    pub disabled: bool,
}

impl fmt::Debug for Settings {
    /// Without the digests: of a key that somebody made up, they would let others try what it might be.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("id", &self.id).field("scopes", &self.scopes).finish_non_exhaustive()
    }
}

impl Settings {
    /// A key that is open to all agents, from anywhere, without end.
    pub fn new(id: &str, digest: [u8; 32], plan: &str, scopes: &[Scope]) -> Self {
        Self {
            id: id.to_owned(),
            digests: vec![digest],
            plan: plan.to_owned(),
            scopes: scopes.to_vec(),
            agents: vec!["*".to_owned()],
            letta_user: None,
            allowed_ips: Vec::new(),
            expires_at: None,
            disabled: false,
        }
    }
}

/// A key that was checked.
pub struct Key {
    pub id: Arc<str>,
    pub plan: Arc<str>,
    pub scopes: Scopes,
    pub metrics: Arc<KeyMetrics>,
    /// Whom it acts as at Letta; None: the default user.
    pub letta_user: Option<Arc<LettaUser>>,
    /// The agents it reaches.
    pub agents: Agents,
    allowed_ips: Box<[Network]>,
    expires_at: Option<SystemTime>,
    disabled: bool,
    /// The moment from which on its text opens nothing; None: it cannot come.
    revoked: Option<Cutoff>,
}

impl Key {
    /// `users`: those of all keys.
    pub(super) fn new(
        settings: &Settings,
        users: &LettaUsers,
        revoked: Option<Cutoff>,
        metrics: Arc<KeyMetrics>,
    ) -> Self {
        let Settings { id, digests: _, plan, scopes, agents, letta_user, allowed_ips, expires_at, disabled } = settings;
        Self {
            id: id.as_str().into(),
            plan: plan.as_str().into(),
            scopes: scopes.iter().copied().collect(),
            metrics,
            agents: Agents::new(agents.iter().map(String::as_str)),
            letta_user: letta_user.as_deref().and_then(|id| users.get(id)).map(Arc::clone),
            allowed_ips: allowed_ips.as_slice().into(),
            expires_at: *expires_at,
            disabled: *disabled,
            revoked,
        }
    }

    /// Refuses it once it is revoked. Asked again when something is about to be sent: a message may have waited.
    pub fn check_revoked(&self) -> Result<(), Error> {
        match &self.revoked {
            Some(revoked) if revoked.is_over() => Err(Error::KeyRevoked),
            _ => Ok(()),
        }
    }

    /// Hears it when it is revoked.
    pub(super) fn ear(&self) -> Option<Ear> {
        self.revoked.as_ref().map(Cutoff::ear)
    }

    /// It shares Letta with others whom it is not to see.
    pub fn is_tenant(&self) -> bool {
        self.letta_user.is_some() || !self.agents.are_all()
    }

    /// Whether it may be used at all, at `now` (asked for if it matters), by a client at `address`.
    pub(super) fn check(&self, now: impl FnOnce() -> SystemTime, address: IpAddr) -> Result<(), Error> {
        self.check_revoked()?;
        if self.disabled {
            return Err(Error::KeyDisabled);
        }
        if self.expires_at.is_some_and(|end| end <= now()) {
            return Err(Error::KeyExpired);
        }
        if !self.allowed_ips.is_empty() && !self.allowed_ips.iter().any(|network| network.has(address)) {
            return Err(Error::ClientAddressRefused);
        }
        self.letta_user.as_ref().map_or(Ok(()), |user| user.check())
    }
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
