//! `keys hash`: the hash of a key that somebody has already, read from standard input and never from an argument.

use std::io::{self, IsTerminal, Read, Write};

use clap::Args;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::super::{Failure, print};
use crate::auth::text;

/// More is no key.
const MOST_BYTES: u64 = 64 * 1024;

#[derive(Debug, Args)]
pub(in crate::cli) struct Hash {
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

impl Hash {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { json } = self;
        if io::stdin().is_terminal() {
            let _ = writeln!(io::stderr(), "type or paste the key, then Enter and Ctrl-D");
        }
        let hash = hash(&read_key(io::stdin().lock())?);
        print(&if json { format!("{}\n", json!({ "hash": hash })) } else { format!("{hash}\n") })
    }
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

/// As the configuration has it.
pub(super) fn hash(key: &str) -> String {
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
