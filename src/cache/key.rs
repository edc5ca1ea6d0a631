//! What an answer is found by: SHA-256 over who may have it, the agent, and the message.

use http::HeaderName;
use http::Request;
use sha2::{Digest, Sha256};

use super::Scope;
use crate::letta::message::Canonical;
use crate::store::Key;

/// In front of what is hashed; raised when what follows changes its meaning.
const VERSION: &[u8] = b"cache 3";

/// Request headers that change Letta's answer to a message. The others that do are not a client's to set (who asks,
/// experiments) or matter to streams only (the version of the official client).
const TELLING: [HeaderName; 1] = [HeaderName::from_static("x-project-id")];

/// `asker`: the key's id and the Letta user it acts as, if that is not Letta's default one.
pub(super) fn key<B>(
    scope: Scope,
    (key_id, user): (&str, Option<&str>),
    agent: &str,
    request: &Request<B>,
    message: &Canonical,
) -> Key {
    let mut hash = Sha256::new();
    field(&mut hash, VERSION);
    match scope {
        Scope::Key => {
            field(&mut hash, b"key");
            field(&mut hash, key_id.as_bytes());
        }
        Scope::Shared => field(&mut hash, b"shared"),
    }
    // what one user may be told of an agent another may not, and a key's user may change
    field(&mut hash, user.unwrap_or_default().as_bytes());
    field(&mut hash, agent.as_bytes());
    field(&mut hash, request.uri().query().unwrap_or_default().as_bytes());
    for name in &TELLING {
        let mut values = request.headers().get_all(name).iter().peekable();
        if values.peek().is_some() {
            field(&mut hash, name.as_str().as_bytes());
            values.for_each(|value| field(&mut hash, value.as_bytes()));
        }
    }
    // closes the list of headers: no value is that long
    hash.update(u32::MAX.to_be_bytes());
    message.feed(&mut hash);
    hash.finalize().into()
}

/// The length in front of each field keeps two of them from being read as two others.
fn field(hash: &mut Sha256, bytes: &[u8]) {
    hash.update(u32::try_from(bytes.len()).unwrap_or(u32::MAX - 1).to_be_bytes());
    hash.update(bytes);
}
