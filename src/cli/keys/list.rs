//! `keys list`: the configured keys, what each may do, and which are revoked.

use std::collections::HashSet;
use std::io::{self, Write as _};
use std::time::UNIX_EPOCH;

use clap::Args;
use serde_json::{Value, json};

use super::super::{ConfigFile, Failure, print};
use super::table::table;
use super::{configured, shared, state, written};
use crate::auth::key::Settings;

#[derive(Debug, Args)]
pub(in crate::cli) struct List {
    /// Prints one JSON list
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigFile,
}

impl List {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { json, config } = self;
        let (settings, _) = configured(config)?;
        let revoked = shared::with(&settings, async |store| store.revoked().await);
        let revoked: HashSet<[u8; 32]> = match revoked {
            Ok(revoked) => revoked.unwrap_or_default().into_iter().collect(),
            Err(why) => {
                let _ = writeln!(io::stderr(), "warning: which keys are revoked cannot be told: {why}");
                HashSet::new()
            }
        };
        let keys = settings.keys.iter();
        if json {
            return print(&format!("{:#}\n", Value::Array(keys.map(|key| described(key, &revoked)).collect())));
        }
        let rows = keys.map(|key| {
            let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope.as_str()).collect();
            let (id, state, plan) = (key.id.clone(), state(key, &revoked).to_owned(), key.plan.clone());
            [id, state, plan, scopes.join(","), key.agents.join(",")]
        });
        print(&table(["id", "state", "plan", "scopes", "agents"], rows.collect()))
    }
}

fn described(key: &Settings, revoked: &HashSet<[u8; 32]>) -> Value {
    let Settings { id, digests, plan, scopes, agents, letta_user, allowed_ips, expires_at, disabled: _ } = key;
    let hash = |digest| json!({ "hash": written(digest), "revoked": revoked.contains(digest) });
    let seconds = expires_at.and_then(|end| end.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs());
    json!({
        "id": id,
        "state": state(key, revoked),
        "plan": plan,
        "scopes": scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>(),
        "agents": agents,
        "letta_user": letta_user,
        "allowed_ips": allowed_ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "expires_at_unix_seconds": seconds,
        "hashes": digests.iter().map(hash).collect::<Vec<_>>(),
    })
}
