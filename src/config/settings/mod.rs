//! Raw structs into each part's settings, with every rule one option has towards another.
//!
//! Each raw struct is taken apart whole, so an option that nobody reads does not build. Checks go on after a problem;
//! a value that was told to be wrong is replaced by any right one, for nothing is taken over then.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::{Bound, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::document::Document;
use super::expand::Environment;
use super::keys_file;
use super::problem::{Place, Problem, Problems, hint};
use super::secret::Secret;
use super::units::{ByteSize, DurationText};
use super::{Settings, raw};
use crate::letta::agents::can_be_an_agent;
use crate::{cache, cors, store, telemetry};

mod key;
mod keys;
mod listeners;
mod plans;
mod turns;
mod upstream;

pub use keys::is_key_id;

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";
const MILLISECOND: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What is known of the file already.
pub(super) struct Known {
    file: String,
    /// Where things stand; None: it could not be read.
    document: Option<Document>,
    /// The paths of what was told to be wrong, and counts as left out.
    broken: BTreeSet<String>,
    /// The paths that keys told to be unknown were probably meant for.
    meant: HashSet<String>,
    problems: Vec<Problem>,
}

impl Known {
    pub(super) fn new(
        file: String,
        document: Document,
        broken: Vec<String>,
        meant: Vec<String>,
        problems: Vec<Problem>,
    ) -> Self {
        let (broken, meant) = (broken.into_iter().collect(), meant.into_iter().collect());
        Self { file, document: Some(document), broken, meant, problems }
    }

    /// Of a file that is no YAML.
    pub(super) fn unread(file: String, problem: Problem) -> Self {
        Self { file, document: None, broken: BTreeSet::new(), meant: HashSet::new(), problems: vec![problem] }
    }

    fn place(&self, path: &str) -> Option<Place> {
        self.document.as_ref()?.place(path)
    }

    /// Whether `path`, what it stands in or something in it was told to be wrong.
    fn is_broken(&self, path: &str) -> bool {
        let within = self
            .broken
            .range::<str, _>((Bound::Included(path), Bound::Unbounded))
            .next()
            .is_some_and(|broken| broken.starts_with(path));
        let mut around = path.char_indices().filter(|(_, c)| matches!(c, '.' | '[')).map(|(end, _)| end);
        within || around.any(|end| path.get(..end).is_some_and(|around| self.broken.contains(around)))
    }
}

/// Checks `raw`, the content of the file at `path`; `env` is for the file of keys that it may name.
pub(super) fn check(raw: raw::Config, path: &Path, env: Environment<'_>, known: Known) -> Result<Settings, Problems> {
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    let mut check = Check { known, folder, warnings: Vec::new(), files: Vec::new() };
    let raw::Config {
        listeners,
        admin,
        upstreams,
        keys,
        keys_file,
        plans,
        store,
        cache,
        turns,
        cors,
        log,
        drain,
        workers,
    } = raw;
    let listeners = check.listeners(listeners);
    let admin = check.admin(admin, &listeners);
    let (balance, upstream) = check.upstreams(upstreams, &listeners);
    let more_keys = keys_file.map(|file| check.keys_file(file, env));
    let keys = check.keys(keys, more_keys.flatten(), &plans);
    let settings = Settings {
        listeners,
        admin,
        balance,
        upstream,
        keys,
        plans: check.plans(plans),
        on_error: on_error(store.on_error),
        redis: check.store(store),
        cache: check.cache(cache),
        turns: check.turns(turns),
        cors: check.cors(cors),
        log: check.log(log),
        drain: check.duration("drain", drain, Duration::ZERO..=DAY),
        workers: workers.0,
        files: check.files,
        warnings: check.warnings,
    };
    let Known { broken, problems, .. } = check.known;
    if problems.is_empty() && broken.is_empty() { Ok(settings) } else { Err(Problems::new(problems)) }
}

struct Check {
    known: Known,
    /// Where relative paths start.
    folder: PathBuf,
    warnings: Vec<Problem>,
    files: Vec<PathBuf>,
}

impl Check {
    fn store(&mut self, store: raw::Store) -> Option<store::RedisSettings> {
        // what becomes of errors has nothing to be checked
        let raw::Store { redis, on_error: _ } = store;
        let raw::Redis { url, sentinel_username, sentinel_password, timeout, prefix, ca_file } = redis?;
        let timeout = self.duration("store.redis.timeout", timeout, MILLISECOND..=Duration::from_secs(10));
        if prefix.len() > 64 || prefix.chars().any(|c| c.is_whitespace() || c.is_control()) {
            self.problem("store.redis.prefix", "must be at most 64 characters without spaces");
        }
        let ca_file = ca_file.and_then(|file| self.pem("store.redis.ca_file", file));
        // a file without a section is no error to whoever reads it, and then no server is trusted
        if ca_file
            .as_ref()
            .is_some_and(|file| std::fs::read_to_string(file).is_ok_and(|text| !text.contains(CERTIFICATE)))
        {
            self.problem(
                "store.redis.ca_file",
                format_args!("holds no certificate; it needs a \"{CERTIFICATE}\" section"),
            );
        }
        let url = self.required("store.redis", "url", url)?;
        let url = self.secret("store.redis.url", &url)?;
        let password = sentinel_password.and_then(|password| self.secret("store.redis.sentinel_password", &password));
        let sentinel = store::Credentials { username: sentinel_username, password };
        let settings = store::RedisSettings { url, sentinel, timeout, prefix, ca_file };
        if let Err(store::BadRedis { field, why }) = settings.check() {
            self.problem(&format!("store.redis.{field}"), why);
        }
        Some(settings)
    }

    fn cache(&mut self, cache: raw::Cache) -> cache::Settings {
        let raw::Cache { agents, ttl, max_entry, max_total, scope } = cache;
        for (index, agent) in agents.iter().enumerate() {
            let path = format!("cache.agents[{index}]");
            if agent.is_empty() || agent.chars().any(|c| c.is_whitespace() || c.is_control() || c == '/') {
                self.problem(&path, "is no agent id; write agent-… or \"*\" for all");
            } else if !can_be_an_agent(agent) {
                self.warn(&path, "does not start with \"agent-\" as Letta's agent ids do; no agent may ever match it");
            }
        }
        let entry = self.size("cache.max_entry", max_entry, 1..=u64::from(u32::MAX));
        let total = self.size("cache.max_total", max_total, 1..=1 << 40);
        if entry > total {
            self.problem(
                "cache.max_entry",
                format_args!("{max_entry} is more than cache.max_total ({max_total}); lower it"),
            );
        }
        let scope = match scope {
            raw::CacheScope::Key => cache::Scope::Key,
            raw::CacheScope::Shared => cache::Scope::Shared,
        };
        let ttl = self.duration("cache.ttl", ttl, Duration::from_secs(1)..=30 * DAY);
        cache::Settings { agents, ttl, max_entry: entry, max_total: total, scope }
    }

    fn cors(&mut self, cors: raw::Cors) -> cors::Settings {
        let raw::Cors { origins } = cors;
        for (index, origin) in origins.iter().enumerate() {
            let path = format!("cors.origins[{index}]");
            if origin == "*" && origins.len() > 1 {
                self.problem(&path, "\"*\" stands for all origins; let it stand alone or leave it out");
            } else if origin != "*" && !is_origin(origin) {
                self.problem(&path, format_args!("\"{origin}\" is no origin; write scheme://host or scheme://host:port, in lower case and without a path"));
            }
        }
        cors::Settings { origins }
    }

    fn log(&mut self, log: raw::Log) -> telemetry::diagnostics::Settings {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        let raw::Log { level, format, access } = log;
        // a filter takes any word for the name of a module
        let word = level.chars().all(|c| c.is_ascii_alphanumeric());
        if word && !LEVELS.contains(&level.to_ascii_lowercase().as_str()) {
            self.problem("log.level", format_args!("\"{level}\" is no level{}", hint(&level, &LEVELS)));
        } else if let Err(error) = telemetry::diagnostics::check_level(&level) {
            self.problem(
                "log.level",
                format_args!("is no filter: {error}; write e.g. info,letta_gateway::balance=debug"),
            );
        }
        let format = match format {
            raw::LogFormat::Text => telemetry::diagnostics::Format::Text,
            raw::LogFormat::Json => telemetry::diagnostics::Format::Json,
        };
        telemetry::diagnostics::Settings { level, format, access }
    }

    fn problem(&mut self, path: &str, text: impl fmt::Display) {
        // what is wrong because of something that was told is not told again
        if self.known.meant.contains(path) && self.known.place(path).is_none() || self.known.is_broken(path) {
            return;
        }
        let problem = self.told(path, text);
        self.known.problems.push(problem);
    }

    fn warn(&mut self, path: &str, text: impl fmt::Display) {
        let problem = self.told(path, text);
        self.warnings.push(problem);
    }

    /// At `path`, or where it would stand.
    fn told(&self, path: &str, text: impl fmt::Display) -> Problem {
        let mut nearest = path;
        let mut place = self.known.place(nearest);
        while !nearest.is_empty() && place.is_none() {
            nearest = nearest.rfind(['.', '[']).and_then(|end| nearest.get(..end)).unwrap_or_default();
            place = self.known.place(nearest);
        }
        let place = place.filter(|_| !nearest.is_empty());
        Problem { file: self.known.file.clone(), place, text: format!("{path}: {text}") }
    }

    fn required<T>(&mut self, path: &str, field: &str, value: Option<T>) -> Option<T> {
        if value.is_none() && !self.known.meant.contains(&format!("{path}.{field}")) {
            self.problem(path, format_args!("\"{field}\" is missing"));
        }
        value
    }

    fn count(&mut self, path: &str, value: u32, range: RangeInclusive<u32>) -> u32 {
        if !range.contains(&value) {
            self.problem(path, format_args!("{value} is out of range; write {} to {}", range.start(), range.end()));
        }
        value
    }

    fn duration(&mut self, path: &str, value: DurationText, range: RangeInclusive<Duration>) -> Duration {
        if !range.contains(&value.0) {
            let (least, most) = (DurationText(*range.start()), DurationText(*range.end()));
            self.problem(path, format_args!("{value} is out of range; write {least} to {most}"));
        }
        value.0
    }

    fn size(&mut self, path: &str, value: ByteSize, range: RangeInclusive<u64>) -> u64 {
        if !range.contains(&value.0) {
            let (least, most) = (ByteSize(*range.start()), ByteSize(*range.end()));
            self.problem(path, format_args!("{value} is out of range; write {least} to {most}"));
        }
        value.0
    }

    fn pem(&mut self, path: &str, file: PathBuf) -> Option<PathBuf> {
        let file = self.folder.join(file);
        self.files.push(file.clone());
        // a folder opens, but has no first byte
        match File::open(&file).and_then(|mut opened| opened.read(&mut [0])) {
            Ok(_) => Some(file),
            Err(error) => {
                self.problem(path, format_args!("the file {} cannot be read: {error}", file.display()));
                None
            }
        }
    }

    /// Its problems are told with its own name; None if it cannot be read at all.
    fn keys_file(&mut self, file: PathBuf, env: Environment<'_>) -> Option<keys_file::KeysFile> {
        let file = self.folder.join(file);
        self.files.push(file.clone());
        keys_file::read(&file, env).map_err(|why| self.problem("keys_file", why)).ok()
    }

    fn secret(&mut self, path: &str, secret: &Secret) -> Option<String> {
        self.files.extend(secret.file(&self.folder));
        secret.resolve(&self.folder).map_err(|why| self.problem(path, why)).ok()
    }
}

fn on_error(on_error: raw::OnError) -> store::OnError {
    match on_error {
        raw::OnError::Local => store::OnError::Local,
        raw::OnError::Deny => store::OnError::Deny,
        raw::OnError::Allow => store::OnError::Allow,
    }
}

/// A serialised origin (RFC 6454 §6.2) as a browser sends it.
fn is_origin(origin: &str) -> bool {
    let Some((scheme, host)) = origin.split_once("://") else { return false };
    let scheme_fits = !scheme.is_empty()
        && scheme.bytes().all(|b| b.is_ascii_lowercase() || b"+-.".contains(&b) || b.is_ascii_digit());
    let host_fits = !host.contains(['@', '/', '?', '#', '*'])
        && host == host.to_ascii_lowercase()
        && host
            .parse::<http::uri::Authority>()
            .is_ok_and(|authority| !authority.host().is_empty() && !host.ends_with(':'));
    scheme_fits && host_fits
}
