//! The Letta users that keys act as, and whether Letta knows them.
//!
//! Letta takes an unknown user for its default one and says nothing (`services/user_manager.py`). So a key that acts as a
//! user passes only while a replica has said that this user exists.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use http::HeaderValue;

use super::key::Settings;
use crate::error::Error;

/// One user; keys that act as the same one share it, and so do configurations.
pub struct LettaUser {
    pub id: Box<str>,
    /// What `user_id` is set to.
    pub header: HeaderValue,
    standing: AtomicU8,
}

/// What is known of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// No replica has been asked yet.
    Unasked,
    Known,
    Unknown,
}

impl LettaUser {
    /// `None`: no header can carry this id.
    fn new(id: &str) -> Option<Self> {
        let header = HeaderValue::from_str(id).ok()?;
        Some(Self { id: id.into(), header, standing: AtomicU8::new(Standing::Unasked as u8) })
    }

    pub fn standing(&self) -> Standing {
        match self.standing.load(Ordering::Relaxed) {
            known if known == Standing::Known as u8 => Standing::Known,
            unknown if unknown == Standing::Unknown as u8 => Standing::Unknown,
            _ => Standing::Unasked,
        }
    }

    /// What a replica has said; true if that is news.
    pub fn found(&self, is_known: bool) -> bool {
        let now = if is_known { Standing::Known } else { Standing::Unknown };
        self.standing.swap(now as u8, Ordering::Relaxed) != now as u8
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        match self.standing() {
            Standing::Known => Ok(()),
            Standing::Unasked => Err(Error::UserUnverified),
            Standing::Unknown => Err(Error::UserUnknown),
        }
    }
}

impl fmt::Debug for LettaUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LettaUser").field(&self.id).field(&self.standing()).finish()
    }
}

/// All users that keys act as.
#[derive(Debug, Default)]
pub struct LettaUsers(HashMap<Box<str>, Arc<LettaUser>>);

impl LettaUsers {
    /// The users of `keys`; what is known of those of `previous` stays known.
    pub fn new(keys: &[Settings], previous: Option<&Self>) -> Self {
        let mut users = HashMap::new();
        for id in keys.iter().filter_map(|key| key.letta_user.as_deref()) {
            if users.contains_key(id) {
                continue;
            }
            let kept = previous.and_then(|previous| previous.0.get(id)).map(Arc::clone);
            if let Some(user) = kept.or_else(|| LettaUser::new(id).map(Arc::new)) {
                users.insert(Box::from(id), user);
            }
        }
        Self(users)
    }

    pub fn get(&self, id: &str) -> Option<&Arc<LettaUser>> {
        self.0.get(id)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<LettaUser>> {
        self.0.values()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that no replica has vouched for.
    pub fn unverified(&self) -> impl Iterator<Item = &Arc<LettaUser>> {
        self.iter().filter(|user| user.standing() != Standing::Known)
    }
}
