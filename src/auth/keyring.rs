//! The configured keys, found by digest. Nothing here grows with the keys clients make up.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::key::{Key, Settings};
use super::letta_user::LettaUsers;
use super::revocations::Revocations;
use crate::telemetry::Metrics;

/// A longer text is no key, and is not worth hashing.
const LONGEST_KEY: usize = 1024;

pub(super) struct Keyring {
    keys: HashMap<[u8; 32], Arc<Key>, BuildHasherDefault<FirstBytes>>,
}

impl Keyring {
    pub(super) fn new(keys: &[Settings], users: &LettaUsers, revocations: &Revocations, metrics: &Metrics) -> Self {
        let texts = keys.iter().flat_map(|settings| settings.digests.iter().map(move |digest| (digest, settings)));
        // one of two texts may be revoked
        let held = texts.map(|(digest, settings)| {
            let key = Key::new(settings, users, revocations.of(digest), metrics.key(&settings.id));
            (*digest, Arc::new(key))
        });
        Self { keys: held.collect() }
    }

    /// The key whose text this is. How long the look-up takes tells of digests only, and nobody can choose a digest.
    pub(super) fn find(&self, text: &[u8]) -> Option<&Arc<Key>> {
        if text.len() > LONGEST_KEY {
            return None;
        }
        let digest: [u8; 32] = Sha256::digest(text).into();
        self.keys.get(&digest)
    }
}

/// A digest is as good a hash as any: its first bytes are taken as they stand.
#[derive(Default)]
struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_ne_bytes(*first);
        }
    }

    // the length in front of an array
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}
