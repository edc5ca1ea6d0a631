//! `keys create` and `keys hash`: the gateway's file knows a key's SHA-256, the key itself is shown once.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Read, Write};

use clap::builder::{NonEmptyStringValueParser, TypedValueParser};
use clap::{Args, Subcommand};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Failure, print};
use crate::auth::text;
use crate::config::is_key_id;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Makes a key: prints it once, with the line to paste into the configuration.
    Create(Create),
    /// Prints the hash of a key that is read from standard input.
    ///
    /// A line end after the key does not count. Example: printf %s "$KEY" | letta-gateway keys hash
    Hash {
        /// Prints one JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Its name in logs and metrics [default: key- and 6 random digits]
    #[arg(long, value_parser = key_id)]
    id: Option<String>,
    /// The plan whose limits hold for it
    #[arg(long, default_value = "standard")]
    plan: String,
    /// What it may do: read, message, modify, admin
    #[arg(long, value_delimiter = ',', default_value = "read,message", value_parser = scope())]
    scopes: Vec<String>,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

const SCOPES: [&str; 4] = ["read", "message", "modify", "admin"];

/// More is no key.
const MOST_BYTES: u64 = 64 * 1024;

impl Command {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Create(create) => create.run(),
            Self::Hash { json } => {
                if io::stdin().is_terminal() {
                    let _ = writeln!(io::stderr(), "type or paste the key, then Enter and Ctrl-D");
                }
                let hash = hash(&read_key(io::stdin().lock())?);
                print(&if json { format!("{}\n", json!({ "hash": hash })) } else { format!("{hash}\n") })
            }
        }
    }
}

impl Create {
    fn run(self) -> Result<(), Failure> {
        let Self { id, plan, scopes, json } = self;
        let id = match id {
            Some(id) => id,
            None => format!("key-{}", hex::encode(random::<3>()?)),
        };
        let key = text::written(&id, &random()?);
        let hash = hash(&key);
        if json {
            return print(&format!(
                "{}\n",
                json!({ "id": id, "key": key, "hash": hash, "plan": plan, "scopes": scopes })
            ));
        }
        let mut text = String::from("# The key. It is shown this once: keep it where you keep passwords.\n");
        // JSON text is YAML text, so a name like 1.5 or null stays a name
        let _ = write!(
            text,
            "{key}\n\n# For the configuration, under keys:\n  - {{ id: {}, hash: \"{hash}\", plan: {}, scopes: [{}] }}\n",
            json!(id),
            json!(plan),
            scopes.join(", "),
        );
        print(&text)
    }
}

fn random<const BYTES: usize>() -> Result<[u8; BYTES], Failure> {
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

fn read_key(input: impl Read) -> Result<String, Failure> {
    let failed = |text: &str| Failure::Failed(format!("standard input: {text}"));
    let mut text = String::new();
    input.take(MOST_BYTES + 1).read_to_string(&mut text).map_err(|error| failed(&error.to_string()))?;
    let key = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    match () {
        () if key.is_empty() => Err(failed("there is no key; write e.g. printf %s \"$KEY\" | letta-gateway keys hash")),
        () if text.len() as u64 > MOST_BYTES => Err(failed("this is too long for a key")),
        // a header cannot carry it, so no client could ever send it
        () if !key.bytes().all(|b| b.is_ascii_graphic()) => {
            Err(failed("a key has visible ASCII characters only, no spaces or line ends; give one key alone"))
        }
        () if text::is_mistyped(key.as_bytes()) => {
            Err(failed("this key was not copied whole: its checksum does not fit, so the gateway would refuse it"))
        }
        () => Ok(key.to_owned()),
    }
}

fn hash(key: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_end_after_the_key_does_not_count() {
        for text in ["key", "key\n", "key\r\n"] {
            assert_eq!(read_key(text.as_bytes()).unwrap(), "key");
        }
    }

    #[test]
    fn what_no_client_could_send_is_no_key() {
        for text in ["", "\n", "two keys", "one\ntwo\n", "key\n\n", "schl\u{fc}ssel"] {
            assert!(read_key(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(read_key("k".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn a_key_that_the_gateway_would_refuse_is_not_hashed() {
        let key = text::written("team-a", &[1; 32]);
        assert_eq!(read_key(key.as_bytes()).unwrap(), key);
        assert!(read_key(key.replace("0101", "0110").as_bytes()).is_err());
    }

    #[test]
    fn the_hash_is_sha_256_of_the_whole_key() {
        assert_eq!(hash("abc"), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
