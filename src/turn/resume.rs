//! Resuming a stream: `POST /v1/runs/{run_id}/stream` and `POST /v1/conversations/{id}/stream`.
//!
//! A run that this key started here is answered from its log, foreground runs too, from `starting_after` on. Letta
//! numbers the events of background runs (`seq_id`, the first is 1); those of a foreground run have no number and are
//! counted: the first is 1. All else is Letta's to answer. Facts: `server/rest_api/routers/v1/{runs,conversations}.py`.

use bytes::Bytes;
use serde::Deserialize;

use super::{Index, marks};
use crate::letta::routes::{Route, Subject};

/// Bytes of a request to resume at most; a longer one is Letta's to answer.
pub(super) const LONGEST_REQUEST: usize = 16 * 1024;

/// What a client asks for.
#[derive(Debug, Default, Deserialize)]
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

/// Leaves out the events of a stream that its client has seen: those up to number `after`.
pub(super) struct Skip {
    after: u64,
    counted: u64,
    /// Letta numbers the events of this stream.
    has_numbers: bool,
}

impl Skip {
    pub(super) fn new(after: u64) -> Self {
        Self { after, counted: 0, has_numbers: false }
    }

    /// What of `events`, which are whole, the client has not seen.
    pub(super) fn unseen(&mut self, mut events: Bytes) -> Bytes {
        let mut seen = 0;
        let mut from = 0;
        while self.counted < self.after
            && let Some(rest) = events.get(from..)
            && let Some(length) = memchr::memmem::find(rest, b"\n\n")
        {
            let event = rest.get(..length).unwrap_or_default();
            from += length + 2;
            if self.is_seen(event) {
                seen = from;
            }
        }
        events.split_off(seen)
    }

    fn is_seen(&mut self, event: &[u8]) -> bool {
        #[derive(Deserialize)]
        struct Numbered {
            seq_id: Option<u64>,
        }
        let data = event.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"data:"));
        let Some(data) = data.map(<[u8]>::trim_ascii) else { return true };
        match serde_json::from_slice::<Numbered>(data) {
            Ok(Numbered { seq_id: Some(number) }) => {
                self.has_numbers = true;
                self.counted = number;
                number <= self.after
            }
            // the end has no number: it is behind all that have one
            _ if self.has_numbers || data == b"[DONE]" => {
                self.counted = self.after;
                false
            }
            _ => {
                self.counted += 1;
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unseen(after: u64, pieces: &[&'static str]) -> String {
        let mut skip = Skip::new(after);
        pieces
            .iter()
            .map(|piece| String::from_utf8(skip.unseen(Bytes::from_static(piece.as_bytes())).to_vec()).unwrap())
            .collect()
    }

    #[test]
    fn events_without_numbers_are_counted_from_one() {
        let stream =
            ["data: {\"a\":1}\n\ndata: {\"a\":2}\n\n", "data: {\"a\":3,\"seq_id\":null}\n\n", "data: [DONE]\n\n"];
        assert_eq!(unseen(0, &stream), stream.concat());
        assert_eq!(unseen(1, &stream), "data: {\"a\":2}\n\ndata: {\"a\":3,\"seq_id\":null}\n\ndata: [DONE]\n\n");
        assert_eq!(unseen(3, &stream), "data: [DONE]\n\n");
        assert_eq!(unseen(9, &stream), "data: [DONE]\n\n", "the end is for everybody");
    }

    #[test]
    fn numbers_of_lettas_own_count_and_the_end_without_one_is_never_left_out() {
        let stream = [
            "data: {\"seq_id\":1}\n\ndata: {\"seq_id\":2}\n\n",
            "data: {\"seq_id\":4}\n\ndata: {\"message_type\":\"stop_reason\"}\n\ndata: [DONE]\n\n",
        ];
        assert_eq!(unseen(0, &stream), stream.concat());
        assert_eq!(unseen(1, &stream), "data: {\"seq_id\":2}\n\n".to_owned() + stream[1]);
        assert_eq!(unseen(3, &stream), stream[1]);
        for after in [4, 5, 100] {
            assert_eq!(unseen(after, &stream), "data: {\"message_type\":\"stop_reason\"}\n\ndata: [DONE]\n\n");
        }
    }

    #[test]
    fn each_route_finds_its_turn_in_its_own_way() {
        let route = |path: &str| crate::letta::routes::find(&http::Method::POST, path).unwrap().route;
        let (run, conversation) = (route("/v1/runs/run-1/stream"), route("/v1/conversations/conv-1/stream"));
        let asked = |body: &str| Asked::read(body.as_bytes()).unwrap();
        assert!(is_resume(run) && is_resume(conversation) && !is_resume(route("/v1/conversations/conv-1/messages")));
        assert_eq!(asked("").index(run, "run-1", "k"), Some(marks::run("k", "run-1")));
        assert_ne!(asked("").index(run, "run-1", "k"), asked("").index(run, "run-1", "other"), "a run is its key's");
        assert_eq!(asked("{\"run_id\":\"run-1\"}").index(conversation, "conv-1", "k"), Some(marks::run("k", "run-1")));
        assert_eq!(asked("{}").index(conversation, "conv-1", "k"), Some(marks::newest("k", "conv-1")));
        assert_eq!(
            asked("{\"agent_id\":\"agent-1\"}").index(conversation, "default", "k"),
            Some(marks::newest("k", "agent-1"))
        );
        assert_eq!(asked("{\"otid\":\"x\"}").index(conversation, "conv-1", "k"), None);
        assert!(Asked::read(b"[").is_none());
    }
}
