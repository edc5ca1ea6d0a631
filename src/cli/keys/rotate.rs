//! `keys rotate`: another text for a key that is configured; both open until the old hash is taken off.

use clap::Args;
use serde_json::json;

use super::super::{ConfigFile, Failure, print};
use super::create::random;
use super::hash::hash;
use super::{configured, find, written};
use crate::auth::text;

#[derive(Debug, Args)]
pub(in crate::cli) struct Rotate {
    /// The key's id
    id: String,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigFile,
}

impl Rotate {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { id, json, config } = self;
        let (settings, path) = configured(config)?;
        let [old] = find(&settings, &id, &path)?.digests[..] else {
            let told =
                "is being changed already: take its older hash off first, or its clients would lose the text they use";
            return Err(Failure::Failed(format!("{}: the key \"{id}\" {told}", path.display())));
        };
        let key = text::written(&id, &random()?);
        let hashes = [hash(&key), written(&old)];
        if json {
            return print(&format!("{}\n", json!({ "id": id, "key": key, "hashes": hashes })));
        }
        let [new, old] = hashes;
        print(&format!(
            "# The new text of the key {id}. It is shown this once: keep it where you keep passwords.\n{key}\n\n\
             # For the configuration, in place of the key's hash; take the second off when no client uses the old text.\n\
             hashes: [\"{new}\", \"{old}\"]\n"
        ))
    }
}
