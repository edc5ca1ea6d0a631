//! What a send is found by when it comes again.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use super::{Dedupe, Index};
use crate::error::Error;
use crate::letta::message::Sending;
use crate::letta::repeat::{LONGEST_KEY, Repeat};
use crate::letta::routes::Sends;

/// Whose turn a send wants: the one that two sends must not share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Target {
    Agent(Arc<str>),
    Conversation(Arc<str>),
}

impl Target {
    /// `None` if neither path nor body names one: Letta will say so.
    pub(super) fn of(sends: Sends, subject: Option<&Arc<str>>, sending: &Sending<'_>) -> Option<Self> {
        let agent = |id: &Arc<str>| Some(Self::Agent(Arc::clone(id)));
        let named = || sending.agent.as_deref().map(|id| Self::Agent(id.into()));
        match (sends, subject) {
            (Sends::Agent | Sends::AgentStream, Some(id)) => agent(id),
            (Sends::ChatCompletions, _) => named(),
            (Sends::Conversation, Some(id)) if **id == *"default" => named(),
            (Sends::Conversation, Some(id)) if id.starts_with("agent-") => agent(id),
            (Sends::Conversation, Some(id)) => Some(Self::Conversation(Arc::clone(id))),
            (Sends::Agent | Sends::AgentStream | Sends::Conversation, None) => None,
        }
    }

    pub(super) fn id(&self) -> &str {
        match self {
            Self::Agent(id) | Self::Conversation(id) => id,
        }
    }

    /// What its lane is found by among all gateways.
    pub(super) fn lane(&self) -> Index {
        index(b"lane", &[self.id().as_bytes()])
    }
}

/// All that a send is found by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Marks {
    /// Key, target and message.
    pub message: Index,
    /// Key, target, message and the names of its sending.
    pub otid: Option<Index>,
    /// Key and `Idempotency-Key`.
    pub idempotency: Option<Index>,
}

impl Marks {
    pub(super) fn of(
        key: &str,
        sends: Sends,
        target: &Target,
        sending: &Sending<'_>,
        repeat: Repeat<'_>,
    ) -> Result<Self, Error> {
        if repeat.key.is_some_and(|key| key.len() > LONGEST_KEY) {
            return Err(Error::BadHeader("Idempotency-Key is longer than 256 bytes: a UUID will do"));
        }
        let key = key.as_bytes();
        let message = sending.digest(b"message", &[key, &[sends as u8], target.id().as_bytes()]);
        Ok(Self {
            message,
            otid: sending.otids.map(|otids| index(b"otid", &[&message, &otids])),
            idempotency: repeat.key.map(|name| index(b"idempotency", &[key, name])),
        })
    }

    /// What a turn claims among all gateways: what no other may have, and what it only is the latest to have.
    pub(super) fn claims(&self, dedupe: Dedupe, is_retry: bool) -> (Vec<Index>, Vec<Index>) {
        if dedupe == Dedupe::Off {
            return (Vec::new(), Vec::new());
        }
        let mut exclusive: Vec<Index> = self.otid.into_iter().chain(self.idempotency).collect();
        if dedupe == Dedupe::IdenticalInFlight {
            exclusive.push(self.running());
        }
        // a message that does not say that it is a repeat is a new one, whoever said the same before
        let mut latest = Vec::new();
        (if is_retry { &mut exclusive } else { &mut latest }).push(self.message);
        (exclusive, latest)
    }

    /// What a message is found by only as long as its turn runs.
    pub(super) fn running(&self) -> Index {
        index(b"running", &[&self.message])
    }

    pub(super) fn all(&self) -> impl Iterator<Item = Index> {
        [Some(self.message), self.otid, self.idempotency].into_iter().flatten()
    }
}

/// Beside what all turns of a key lie in the store of all gateways.
pub(super) fn tag(key: &str) -> Index {
    index(b"key", &[key.as_bytes()])
}

/// What the turn of `run` is found by, for the key that started it.
pub(super) fn run(key: &str, run: &str) -> Index {
    index(b"run", &[key.as_bytes(), run.as_bytes()])
}

/// What the newest turn of a conversation is found by, for the key that started it.
pub(super) fn newest(key: &str, target: &str) -> Index {
    index(b"newest", &[key.as_bytes(), target.as_bytes()])
}

/// No two lists of parts have one index: each part has its length in front.
fn index(of: &[u8], parts: &[&[u8]]) -> Index {
    let mut all: SmallVec<[u8; 256]> = SmallVec::from_slice(of);
    for part in parts {
        all.extend_from_slice(&(part.len() as u64).to_be_bytes());
        all.extend_from_slice(part);
    }
    Sha256::digest(&all).into()
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn message(key: &str, sends: Sends, agent: &str, body: &[u8]) -> Index {
        let target = Target::Agent(agent.into());
        let repeat = HeaderMap::new();
        Marks::of(key, sends, &target, &Sending::read(sends, body), Repeat::of(&repeat)).unwrap().message
    }

    #[test]
    fn a_message_is_found_by_its_key_its_route_its_target_and_what_it_says() {
        let (said, other) = (br#"{"input":"yes"}"#, br#"{"input":"no"}"#);
        let one = message("a", Sends::Agent, "agent-1", said);
        assert_eq!(message("a", Sends::Agent, "agent-1", br#"{ "input": "yes" }"#), one);
        for another in [
            message("b", Sends::Agent, "agent-1", said),
            message("a", Sends::AgentStream, "agent-1", said),
            message("a", Sends::Agent, "agent-2", said),
            message("a", Sends::Agent, "agent-1", other),
            message("a", Sends::Agent, "agent-1", b"yes"),
            message("aa", Sends::Agent, "gent-1", said),
        ] {
            assert_ne!(another, one);
        }
    }

    #[test]
    fn gateways_of_all_versions_find_a_message_by_one_index() {
        // one that changes is not found by gateways of before: count on `NOTE_VERSION` of `fleet/form.rs`
        let index = message("a", Sends::Agent, "agent-1", br#"{"input":"yes"}"#);
        assert_eq!(index[..8], [170, 142, 143, 184, 251, 102, 214, 63]);
    }
}
