//! `keys revoke`: tells all gateways through the shared store, which remembers it.

use clap::Args;
use serde_json::json;

use super::super::{ConfigFile, Failure, print};
use super::{configured, find, shared, written};

#[derive(Debug, Args)]
pub(in crate::cli) struct Revoke {
    /// The key's id
    id: String,
    /// Only this one of its two hashes: the text that is known to others
    #[arg(long, value_name = "HASH")]
    hash: Option<String>,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigFile,
}

impl Revoke {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { id, hash, json, config } = self;
        let (settings, path) = configured(config)?;
        let key = find(&settings, &id, &path)?;
        let meant = |digest: &&[u8; 32]| hash.as_ref().is_none_or(|hash| written(digest) == *hash);
        let digests: Vec<[u8; 32]> = key.digests.iter().filter(meant).copied().collect();
        if digests.is_empty() {
            return Err(Failure::Failed(format!(
                "the key \"{id}\" has no such hash; keys list --json tells which it has"
            )));
        }
        let told = shared::with(&settings, async |store| store.revoke(&digests).await);
        let told = told.map_err(|why| {
            Failure::Failed(format!(
                "{why}, nothing was done; until it is back, write disabled: true in the key: the file is taken over while \
                 gateways run"
            ))
        })?;
        if told.is_none() {
            let path = path.display();
            return Err(Failure::Failed(format!(
                "{path}: there is no store.redis to tell other gateways by; write disabled: true in the key, or take it out: \
                 the file is taken over while the gateway runs"
            )));
        }
        if json {
            let hashes: Vec<String> = digests.iter().map(written).collect();
            return print(&format!("{}\n", json!({ "id": id, "revoked": hashes })));
        }
        print(&format!(
            "revoked {id}: every gateway refuses it from now on, and that cannot be taken back (keys rotate makes its client \
             a new one); take it out of the configuration as well\n"
        ))
    }
}
