//! `run`, `check` and `demo`: the same configuration, taken as far as each goes.

use std::io::{self, Write};
use std::path::Path;

use super::{Failure, load, print};
use crate::config::Settings;

pub(super) fn check(path: &Path) -> Result<(), Failure> {
    let settings = load(path)?;
    for warning in &settings.warnings {
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    print(&summary(&settings))
}

fn summary(settings: &Settings) -> String {
    let listeners = counted(settings.listeners.len(), "listener");
    let replicas = counted(settings.balance.servers.len(), "replica");
    let keys = counted(settings.keys.len(), "key");
    let store = if settings.redis.is_some() { "Redis" } else { "this process" };
    format!("ok: {listeners}, {replicas}, {keys}, store in {store}\n")
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
