//! API keys: each known by one digest, each with a plan that is there.

use std::collections::{BTreeMap, HashMap};

use super::Check;
use crate::auth::key;
use crate::config::problem::hint;
use crate::config::raw;
use crate::letta::routes::Scope;

const CREATE: &str = "letta-gateway keys create";

impl Check {
    pub(super) fn keys(&mut self, keys: Vec<raw::Key>, plans: &BTreeMap<String, raw::Plan>) -> Vec<key::Settings> {
        if keys.is_empty() {
            self.problem("keys", format_args!("there is none, so nobody could ask anything; make one with: {CREATE}"));
        }
        let mut settings = Vec::new();
        let (mut ids, mut digests) = (HashMap::new(), HashMap::new());
        for (index, key) in keys.into_iter().enumerate() {
            let path = format!("keys[{index}]");
            let raw::Key { id, hash, plan, scopes } = key;
            let id = self.required(&path, "id", id);
            let digest =
                self.required(&path, "hash", hash).and_then(|hash| self.digest(&format!("{path}.hash"), &hash));
            let scopes = self.required(&path, "scopes", scopes);
            if scopes.as_ref().is_some_and(Vec::is_empty) {
                self.problem(
                    &format!("{path}.scopes"),
                    "is empty, so the key could do nothing; write e.g. [read, message]",
                );
            }
            if let Some(id) = &id {
                self.key_id(&format!("{path}.id"), id);
                if let Some(other) = ids.insert(id.clone(), index) {
                    self.problem(
                        &format!("{path}.id"),
                        format_args!("\"{id}\" is the id of keys[{other}] too; each key has its own"),
                    );
                }
            }
            if let Some(other) = digest.and_then(|digest| digests.insert(digest, index)) {
                self.problem(
                    &format!("{path}.hash"),
                    format_args!("is the hash of keys[{other}] too; make another key with: {CREATE}"),
                );
            }
            if !plans.contains_key(&plan) {
                let known: Vec<&str> = plans.keys().map(String::as_str).collect();
                self.problem(
                    &format!("{path}.plan"),
                    format_args!("there is no plan \"{plan}\"{}", hint(&plan, &known)),
                );
            }
            if let (Some(id), Some(digest), Some(scopes)) = (id, digest, scopes) {
                settings.push(key::Settings { id, digest, plan, scopes: scopes.into_iter().map(scope).collect() });
            }
        }
        settings
    }

    fn key_id(&mut self, path: &str, id: &str) {
        if !is_key_id(id) {
            self.problem(path, "must be 1 to 64 letters, digits, \"-\", \"_\" or \".\"");
        }
    }

    fn digest(&mut self, path: &str, hash: &crate::config::secret::Secret) -> Option<[u8; 32]> {
        let text = self.secret(path, hash)?;
        let hex = text.trim().strip_prefix("sha256:").unwrap_or_default();
        let mut digest = [0; 32];
        if hex::decode_to_slice(hex, &mut digest).is_ok() {
            return Some(digest);
        }
        // whatever stands here may be the key itself: it is not shown
        let text = match () {
            () if text.starts_with("lgw_") || text.starts_with("sk-") => {
                "this is the key itself, and it belongs in no file; put its hash here, from: letta-gateway keys hash"
            }
            () if hex::decode_to_slice(text.trim(), &mut digest).is_ok() => {
                "write sha256: in front of the 64 hex digits"
            }
            () => "must be sha256: and 64 hex digits; letta-gateway keys hash makes it of a key",
        };
        self.problem(path, text);
        None
    }
}

/// Whether a key may have this id: it is a metric label and part of the key's text.
pub fn is_key_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn scope(scope: raw::Scope) -> Scope {
    match scope {
        raw::Scope::Read => Scope::Read,
        raw::Scope::Message => Scope::Message,
        raw::Scope::Modify => Scope::Modify,
        raw::Scope::Admin => Scope::Admin,
    }
}
