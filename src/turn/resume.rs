//! Resuming a stream: `POST /v1/runs/{run_id}/stream` and `POST /v1/conversations/{id}/stream`.
//!
//! A run that this key started here is answered from its log, foreground runs too, from `starting_after` on. Letta
//! numbers the events of background runs (`seq_id`, the first is 1); those of a foreground run have no number and are
//! counted: the first is 1. All else is Letta's to answer. Facts: `server/rest_api/routers/v1/{runs,conversations}.py`.

use bytes::Bytes;
use serde::Deserialize;

use super::registry::Registry;
use super::turn::Turn;
use super::{Index, marks};
use crate::letta::routes::{Route, Subject};
use std::sync::Arc;

/// Bytes of a request to resume at most; a longer one is Letta's to answer.
pub(super) const LONGEST_REQUEST: usize = 16 * 1024;

/// What a client asks for.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    pub starting_after: Option<u64>,
    /// On a conversation: which run.
    #[serde(default)]
    pub run_id: Option<Box<str>>,
    #[serde(default)]
    pub otid: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    pub agent_id: Option<Box<str>>,
}

impl Asked {
    /// `None`: Letta will say what is wrong with it.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        if body.trim_ascii().is_empty() {
            return Some(Self::default());
        }
        serde_json::from_slice(body).ok()
    }

    /// What the turn is found by.
    pub(super) fn index(&self, route: &Route, subject: &str, key: &str) -> Option<Index> {
        match route.subject {
            Subject::Run => Some(marks::run(key, subject)),
            // which run an otid names only Letta knows
            Subject::Conversation if self.otid.is_some() => None,
            Subject::Conversation => Some(match &self.run_id {
                Some(run) => marks::run(key, run),
                None if subject == "default" => marks::newest(key, self.agent_id.as_deref()?),
                None => marks::newest(key, subject),
            }),
            Subject::None | Subject::Agent | Subject::Other => None,
        }
    }
}

/// True for the routes that resume a stream.
pub(super) fn is_resume(route: &Route) -> bool {
    matches!(route.template, "/v1/runs/{run_id}/stream" | "/v1/conversations/{conversation_id}/stream")
}

/// The turn to resume, if its log can answer.
pub(super) fn find(registry: &Registry, index: &Index) -> Option<Arc<Turn>> {
    registry.find(index).filter(|turn| turn.streams)
}

/// Bytes of `log` up to the end of event `after`; what comes behind is what the client has not seen.
pub(super) fn bytes_up_to(log: &[Bytes], after: u64) -> u64 {
    #[derive(Deserialize)]
    struct Event {
        #[serde(default)]
        seq_id: Option<u64>,
    }
    let (mut bytes, mut skipped, mut count) = (0_u64, 0_u64, 0_u64);
    let whole: Vec<u8> = log.concat();
    let mut rest = whole.as_slice();
    while let Some(end) = memchr::memmem::find(rest, b"\n\n") {
        let (event, behind) = rest.split_at(end + 2);
        rest = behind;
        bytes += event.len() as u64;
        let Some(data) = event.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"data:")) else {
            continue;
        };
        count += 1;
        let data = data.trim_ascii();
        let number = match serde_json::from_slice::<Event>(data) {
            Ok(Event { seq_id: Some(number) }) => number,
            // the end of a background run has no number: whoever has seen its last event has not seen its end
            _ if data == b"[DONE]" => break,
            _ if skipped_has_numbers(&whole) => u64::MAX,
            _ => count,
        };
        if number <= after {
            skipped = bytes;
        }
    }
    skipped
}

/// The stream's events carry numbers of Letta's own.
fn skipped_has_numbers(log: &[u8]) -> bool {
    let first = log.get(..log.len().min(1024)).unwrap_or(log);
    memchr::memmem::find(first, b"\"seq_id\":1").is_some()
}
