//! `keys`: makes, changes, revokes, lists and hashes API keys, and shows what they have used. A key's text is shown once and stands in no file and no
//! argument; the configuration stays whose it is: these commands print what to put there.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Subcommand;

use super::{ConfigFile, Failure, load};
use crate::auth::key;
use crate::config::Settings;

mod create;
mod hash;
mod list;
mod revoke;
mod rotate;
mod shared;
mod table;
mod usage;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Makes a key: prints it once, with the line to paste into the configuration.
    Create(create::Create),
    /// Makes another text for a key: both open until you take the old hash off.
    Rotate(rotate::Rotate),
    /// Refuses a key at every gateway within a second, its streams included.
    ///
    /// Takes a shared store (store.redis). Take the key out of the configuration as well: a revocation holds as long as
    /// Redis or one running gateway remembers it, and a gateway that starts while the store is away knows of none.
    Revoke(revoke::Revoke),
    /// Lists the configured keys and what each may do.
    List(list::List),
    /// Shows how the limits of keys stand now at all gateways together: used, limit, remaining, and when it resets.
    ///
    /// Takes a shared store (store.redis), of which it reads only. Without one each gateway counts for itself: see its
    /// /metrics.
    Usage(usage::Usage),
    /// Prints the hash of a key that is read from standard input.
    ///
    /// A line end after the key does not count. Example: printf %s "$KEY" | letta-gateway keys hash
    Hash(hash::Hash),
}

impl Command {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Create(create) => create.run(),
            Self::Rotate(rotate) => rotate.run(),
            Self::Revoke(revoke) => revoke.run(),
            Self::List(list) => list.run(),
            Self::Usage(usage) => usage.run(),
            Self::Hash(hash) => hash.run(),
        }
    }
}

/// The configuration and where it stands.
fn configured(file: ConfigFile) -> Result<(Settings, PathBuf), Failure> {
    let path = file.path();
    Ok((load(&path)?, path))
}

/// The key `id` of the configuration at `path`.
fn find<'s>(settings: &'s Settings, id: &str, path: &Path) -> Result<&'s key::Settings, Failure> {
    let unknown =
        || Failure::Failed(format!("{}: there is no key \"{id}\"; keys list tells which there are", path.display()));
    settings.keys.iter().find(|key| key.id == id).ok_or_else(unknown)
}

/// One word for whether it opens anything.
fn state(key: &key::Settings, revoked: &HashSet<[u8; 32]>) -> &'static str {
    match () {
        () if key.digests.iter().all(|digest| revoked.contains(digest)) => "revoked",
        () if key.disabled => "disabled",
        () if key.expires_at.is_some_and(|end| end <= SystemTime::now()) => "expired",
        () => "active",
    }
}

/// A digest as the configuration has it.
fn written(digest: &[u8; 32]) -> String {
    format!("sha256:{}", hex::encode(digest))
}
