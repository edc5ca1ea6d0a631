//! `keys create`: the gateway's file knows a key's SHA-256, the key itself is shown once.

use std::fmt::Write as _;
use std::path::Path;

use clap::Args;
use clap::builder::{NonEmptyStringValueParser, TypedValueParser};
use serde_json::json;

use super::super::{Failure, print};
use super::hash::hash;
use crate::auth::text;
use crate::config::{self, Problems, is_key_id};

#[derive(Debug, Args)]
pub(in crate::cli) struct Create {
    /// Its name in logs and metrics [default: key- and 6 random hex digits]
    #[arg(long, value_parser = key_id)]
    id: Option<String>,
    /// The plan whose limits hold for it
    #[arg(long, default_value = "standard")]
    plan: String,
    /// What it may do: read, message, modify, admin
    #[arg(long, value_delimiter = ',', default_value = "read,message", value_parser = scope())]
    scopes: Vec<String>,
    /// Which agents it reaches: ids, or patterns with * and ? [default: all]
    #[arg(long, value_delimiter = ',', value_name = "AGENTS")]
    agents: Vec<String>,
    /// The Letta user it acts as [default: Letta's default user]
    #[arg(long, value_name = "USER_ID")]
    letta_user: Option<String>,
    /// Where it may come from: addresses and networks [default: anywhere]
    #[arg(long, value_delimiter = ',', value_name = "NETWORKS")]
    allowed_ips: Vec<String>,
    /// When it ends, e.g. 2027-01-31T00:00:00Z [default: never]
    #[arg(long, value_name = "MOMENT")]
    expires_at: Option<String>,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

const SCOPES: [&str; 4] = ["read", "message", "modify", "admin"];

impl Create {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { id, plan, scopes, agents, letta_user, allowed_ips, expires_at, json } = self;
        let id = match id {
            Some(id) => id,
            None => format!("key-{}", hex::encode(random::<3>()?)),
        };
        let key = text::written(&id, &random()?);
        let hash = hash(&key);
        let mut options = json!({ "id": id, "hash": hash, "plan": plan, "scopes": scopes });
        if let Some(options) = options.as_object_mut() {
            let lists = [("agents", agents), ("allowed_ips", allowed_ips)];
            options.extend(
                lists.into_iter().filter(|(_, list)| !list.is_empty()).map(|(name, list)| (name.into(), list.into())),
            );
            let texts = [("letta_user", letta_user), ("expires_at", expires_at)];
            options.extend(texts.into_iter().filter_map(|(name, text)| Some((name.into(), text?.into()))));
        }
        fits(&line(&options), &plan)?;
        if json {
            if let Some(options) = options.as_object_mut() {
                options.insert("key".to_owned(), key.into());
            }
            return print(&format!("{options}\n"));
        }
        let mut text = String::from("# The key. It is shown this once: keep it where you keep passwords.\n");
        let _ = write!(text, "{key}\n\n# For the configuration, under keys:\n  - {}\n", line(&options));
        print(&text)
    }
}

/// Whether the configuration takes the key as it is to stand there: it is told before anybody has it.
fn fits(line: &str, plan: &str) -> Result<(), Failure> {
    let plan = serde_json::Value::from(plan);
    let yaml = format!(
        "listeners: [ {{ address: 127.0.0.1:0 }} ]\nupstreams: {{ letta: {{ servers: [ {{ url: http://127.0.0.1:1 }} ] }} }}\nplans: {{ {plan}: {{ in_flight: 1 }} }}\nkeys:\n  - {line}\n"
    );
    let told = |problems: Problems| {
        let lines: Vec<String> =
            problems.iter().map(|problem| problem.text.trim_start_matches("keys[0].").to_owned()).collect();
        Failure::Failed(format!("no key was made: {}", lines.join("; ")))
    };
    config::parse(&yaml, Path::new("key"), &|_| None).map(drop).map_err(told)
}

/// The options as one line of YAML. JSON text is YAML text, so that a name like 1.5 or null stays a name.
fn line(options: &serde_json::Value) -> String {
    const ORDER: [&str; 8] = ["id", "hash", "plan", "scopes", "agents", "letta_user", "allowed_ips", "expires_at"];
    let written = ORDER.iter().filter_map(|name| Some(format!("{name}: {}", options.get(name)?)));
    format!("{{ {} }}", written.collect::<Vec<_>>().join(", "))
}

pub(super) fn random<const BYTES: usize>() -> Result<[u8; BYTES], Failure> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::Failed(format!("the system gives no random bytes: {error}")))?;
    Ok(bytes)
}

/// A scope's name; spaces around it are from the list it stood in.
fn scope() -> impl TypedValueParser<Value = String> {
    NonEmptyStringValueParser::new().map(|text| text.trim().to_owned()).try_map(|text| {
        if SCOPES.contains(&text.as_str()) { Ok(text) } else { Err(format!("known are {}", SCOPES.join(", "))) }
    })
}

fn key_id(text: &str) -> Result<String, &'static str> {
    if is_key_id(text) { Ok(text.to_owned()) } else { Err("1 to 64 letters, digits, \"-\", \"_\" or \".\"") }
}
