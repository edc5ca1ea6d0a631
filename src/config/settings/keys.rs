//! API keys: each known by one digest or two of its own, wherever it stands, each with a plan that is there.

use std::collections::BTreeMap;
use std::path::Path;

use super::Check;
use super::key::{List, Seen, Whose};
use crate::auth::key;
use crate::config::keys_file::KeysFile;
use crate::config::raw;
use crate::config::secret::Secret;

pub(super) const CREATE: &str = "letta-gateway keys create";

impl Check {
    pub(super) fn keys(
        &mut self,
        keys: Vec<raw::Key>,
        file: Option<KeysFile>,
        plans: &BTreeMap<String, raw::Plan>,
    ) -> Vec<key::Settings> {
        if keys.is_empty() && file.as_ref().is_none_or(|file| file.keys.as_ref().is_some_and(Vec::is_empty)) {
            self.problem("keys", format_args!("there is none, so nobody could ask anything; make one with: {CREATE}"));
        }
        let mut seen = Seen::new(self.known.file.clone());
        let mut settings = self.key_list(List::Configuration, keys, plans, &mut seen);
        if let Some(KeysFile { keys, known }) = file {
            // told with the file's own places; what it names is relative to it
            let folder = Path::new(&known.file).parent().unwrap_or(Path::new("")).to_owned();
            let main = (std::mem::replace(&mut self.known, known), std::mem::replace(&mut self.folder, folder));
            settings.extend(self.key_list(List::KeysFile, keys.unwrap_or_default(), plans, &mut seen));
            self.folder = main.1;
            let told = std::mem::replace(&mut self.known, main.0);
            self.known.problems.extend(told.problems);
        }
        settings
    }

    fn key_list(
        &mut self,
        list: List,
        keys: Vec<raw::Key>,
        plans: &BTreeMap<String, raw::Plan>,
        seen: &mut Seen,
    ) -> Vec<key::Settings> {
        let keys = keys.into_iter().enumerate();
        keys.filter_map(|(index, key)| self.key(Whose { list, index }, key, plans, seen)).collect()
    }

    pub(super) fn digest(&mut self, path: &str, hash: &Secret) -> Option<[u8; 32]> {
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
