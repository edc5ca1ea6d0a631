//! Revoked keys in Redis: one set of digests that only grows, read by every gateway several times a second.

use ::redis::{Value, cmd};

use super::Redis;
use crate::store::{Key, StoreError};

/// Digests that are read at most: more than anybody revokes, and no more than a gateway can hold.
const MOST: i64 = 1_000_000;

impl Redis {
    /// How many keys are revoked.
    pub(in crate::store) async fn revocations(&self) -> Result<u64, StoreError> {
        match self.link.run(cmd("SCARD").arg(self.revoked_key()), self.timeout).await? {
            Value::Int(count @ 0..=MOST) => Ok(count.unsigned_abs()),
            _ => Err(self.misread()),
        }
    }

    pub(in crate::store) async fn revoked(&self) -> Result<Vec<Key>, StoreError> {
        match self.link.run(cmd("SMEMBERS").arg(self.revoked_key()), super::WRITE_BUDGET).await? {
            Value::Array(members) | Value::Set(members) => Ok(members.iter().filter_map(digest).collect()),
            _ => Err(self.misread()),
        }
    }

    pub(in crate::store) async fn revoke(&self, digests: &[Key]) -> Result<(), StoreError> {
        let mut command = cmd("SADD");
        command.arg(self.revoked_key());
        for digest in digests {
            command.arg(hex::encode(digest));
        }
        self.link.run(&command, super::WRITE_BUDGET).await.map(drop)
    }

    fn revoked_key(&self) -> String {
        format!("{}revoked", self.settings.prefix)
    }

    pub(super) fn misread(&self) -> StoreError {
        self.metrics.redis_error("reply");
        StoreError::Reply
    }
}

/// What is no digest is nobody's key.
fn digest(member: &Value) -> Option<Key> {
    let Value::BulkString(hex) = member else { return None };
    let mut digest = Key::default();
    hex::decode_to_slice(hex, &mut digest).ok().map(|()| digest)
}
