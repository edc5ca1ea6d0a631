//! Which of the configured key texts are revoked: refused from that moment on, their streams ended.
//!
//! A revocation is of a text (by its digest), not of an id, and is never taken back: a key that was changed since goes on
//! with its new text.

use std::collections::HashMap;

use super::key::Settings;
use crate::cutoff::Cutoff;

/// A SHA-256 of a key text.
pub type Digest = [u8; 32];

/// By the digests of the configured keys; nothing here grows with what others revoke.
#[derive(Debug, Default)]
pub struct Revocations(HashMap<Digest, Cutoff>);

impl Revocations {
    /// Those of `keys`. What `previous` knows to be revoked stays so. `shared`: somebody can revoke a key while the
    /// gateway runs.
    pub fn new(keys: &[Settings], shared: bool, previous: Option<&Self>) -> Self {
        let digests = keys.iter().flat_map(|key| &key.digests);
        let cutoffs = digests.filter_map(|digest| {
            let kept = previous.and_then(|previous| previous.0.get(digest));
            let cutoff = kept.filter(|kept| shared || kept.is_over()).cloned();
            Some((*digest, cutoff.or_else(|| shared.then(Cutoff::new))?))
        });
        Self(cutoffs.collect())
    }

    /// The moment from which on this text opens nothing; `None`: it cannot come.
    pub(super) fn of(&self, digest: &Digest) -> Option<Cutoff> {
        self.0.get(digest).cloned()
    }

    /// Revokes what of `digests` is configured; how many of them were not revoked before.
    pub fn revoke(&self, digests: &[Digest]) -> usize {
        let new = digests.iter().filter_map(|digest| self.0.get(digest)).filter(|cutoff| !cutoff.is_over());
        new.inspect(|cutoff| cutoff.come()).count()
    }

    /// All that are known to be revoked.
    pub fn known(&self) -> impl Iterator<Item = &Digest> {
        self.0.iter().filter(|(_, cutoff)| cutoff.is_over()).map(|(digest, _)| digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(digests: &[Digest]) -> Vec<Settings> {
        digests.iter().map(|digest| Settings::new("key", *digest, "standard", &[])).collect()
    }

    #[test]
    fn what_is_revoked_stays_so_over_every_reload_and_nothing_else_is_kept() {
        let first = Revocations::new(&keys(&[[1; 32], [2; 32]]), true, None);
        assert_eq!((first.revoke(&[[1; 32], [9; 32]]), first.revoke(&[[1; 32]])), (1, 0));
        let cutoff = first.of(&[2; 32]).unwrap();
        let second = Revocations::new(&keys(&[[1; 32], [2; 32], [3; 32]]), true, Some(&first));
        assert!(second.of(&[1; 32]).unwrap().is_over() && !second.of(&[3; 32]).unwrap().is_over());
        // a stream that began before the reload is ended too
        second.revoke(&[[2; 32]]);
        assert!(cutoff.is_over());
        let alone = Revocations::new(&keys(&[[1; 32], [3; 32]]), false, Some(&second));
        assert_eq!(alone.known().collect::<Vec<_>>(), [&[1; 32]]);
        assert!(alone.of(&[3; 32]).is_none());
    }
}
