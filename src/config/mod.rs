//! YAML text -> settings owned by each part, or every problem with its line.
//!
//! [`load`] reads everything `run` needs before it binds, so what passes here starts. Nothing of a configuration is
//! taken over unless all of it is right.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{admin, auth, balance, cache, cors, limits, listen, store, telemetry, turn, upstream};

mod document;
mod expand;
mod fault;
mod fixed;
mod keys_file;
mod moment;
mod problem;
#[allow(rustdoc::bare_urls, rustdoc::broken_intra_doc_links, reason = "its comments are the JSON Schema's texts")]
mod raw;
mod read;
mod schema;
mod secret;
mod settings;
mod units;
mod workers;

#[cfg(test)]
mod tests;

pub use expand::Environment;
pub use fixed::{Change, Fixed};
pub use problem::{Place, Problem, Problems};
pub use schema::schema;
pub use settings::is_key_id;

/// The configuration with every option at its default and a line of why.
pub const DEFAULT: &str = include_str!("../../config/gateway.yaml");

/// A configuration that was checked whole.
#[derive(Clone, PartialEq)]
pub struct Settings {
    pub listeners: Vec<listen::Settings>,
    pub admin: Option<admin::Settings>,
    pub balance: balance::Settings,
    pub upstream: upstream::Settings,
    pub keys: Vec<auth::key::Settings>,
    pub plans: Vec<limits::Plan>,
    /// None: the store is in this process.
    pub redis: Option<store::RedisSettings>,
    /// What becomes of requests whose state is shared, without the shared store.
    pub on_error: store::OnError,
    pub cache: cache::Settings,
    pub turns: turn::Settings,
    pub cors: cors::Settings,
    pub log: telemetry::diagnostics::Settings,
    /// How long streams may go on after SIGTERM.
    pub drain: Duration,
    /// Worker threads; None: one per CPU.
    pub workers: Option<u16>,
    /// Every file that was read beside the configuration's own: certificates and their keys, secrets, API keys.
    pub files: Vec<PathBuf>,
    /// What is allowed but probably not meant.
    pub warnings: Vec<Problem>,
}

/// Reads the file at `path`, with `${…}` from this process's environment.
pub fn load(path: &Path) -> Result<Settings, Problems> {
    let text = read_text(path)?;
    parse(&text, path, &|name| std::env::var(name).ok())
}

fn read_text(path: &Path) -> Result<String, Problems> {
    let bytes = std::fs::read(path).map_err(|error| Problems::of_file(path, format!("cannot be read: {error}")))?;
    String::from_utf8(bytes).map_err(|_| Problems::of_file(path, "is not UTF-8 text; save it as such".to_owned()))
}

/// Reads `text` as the file at `path`, which other files are relative to.
pub fn parse(text: &str, path: &Path, env: Environment<'_>) -> Result<Settings, Problems> {
    let file = path.display().to_string();
    let (mut document, mut problems) =
        document::parse(text, &file, env).map_err(|problem| Problems::new(vec![problem]))?;
    let read = read::read(&mut document, &file);
    problems.extend(read.unknown_keys);
    problems.extend(read.misfits);
    let broken = document.broken();
    match read.value {
        Some(raw) if !broken.iter().any(|path| hides_others(path)) => {
            let known = settings::Known::new(file, document, broken, read.meant, problems);
            settings::check(raw, path, env, known)
        }
        _ => Err(Problems::new(problems)),
    }
}

/// Whether without what stands at `path` something else would be told wrongly: later ones of a list would have
/// another number, keys would name plans that are not there.
fn hides_others(path: &str) -> bool {
    let plan = path == "plans" || path.strip_prefix("plans.").is_some_and(|name| !name.contains('.'));
    let in_a_key = [".scopes[", ".hashes[", ".agents[", ".allowed_ips["].iter().any(|list| path.contains(list));
    plan || path.ends_with(']') && !in_a_key
}

/// The admin listener's address alone, whatever else is wrong with the file at `path`.
pub fn admin_address(path: &Path) -> Result<Option<SocketAddr>, Problems> {
    let (text, file) = (read_text(path)?, path.display().to_string());
    let env = |name: &str| std::env::var(name).ok();
    let (mut document, _) = document::parse(&text, &file, &env).map_err(|problem| Problems::new(vec![problem]))?;
    let admin = read::read::<raw::Config>(&mut document, &file).value.unwrap_or_default().admin;
    Ok(admin.address.parse().ok())
}
