//! Event streams as they pass: where events end, and whether the stream has said how it ends.
//!
//! The scanner copies nothing but the beginning of a line that two chunks share, and holds no more than that; how the
//! stream is cut into chunks makes no difference to what it sees. Letta writes `data: {json}`, LF alone and no `id:` or
//! `retry:` line (which the official Python client cannot read), and neither does the gateway.

mod cutter;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::LazyLock;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use memchr::memmem::Finder;
use serde::{Deserialize, Serialize};

use super::reply::{StopReason, Usage};

pub use cutter::Cutter;

/// Bytes of a line that are looked at: Letta's pings, ends and errors are shorter; a longer line is content.
const LOOKED_AT: usize = 1024;
/// Bytes of a run's id: `run-` and a UUID, with room.
const LONGEST_RUN_ID: usize = 64;

/// True if the answer is an event stream.
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    const EVENT_STREAM: &[u8] = b"text/event-stream";
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        let value = value.as_bytes();
        let after = value.get(EVENT_STREAM.len());
        value.get(..EVENT_STREAM.len()).is_some_and(|start| start.eq_ignore_ascii_case(EVENT_STREAM))
            && matches!(after, None | Some(b';' | b' '))
    })
}

/// Follows one event stream.
#[derive(Debug)]
pub struct Scanner {
    /// The beginning of the line that the last chunk left unfinished.
    line: Vec<u8>,
    /// Bytes of that line so far, the ones not kept included.
    line_length: usize,
    /// The last byte was CR: an LF now belongs to it.
    after_cr: bool,
    at_border: bool,
    done: bool,
    error: bool,
    stop_reason: Option<StopReason>,
    usage: Option<Usage>,
    run_id: Option<Box<str>>,
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}

impl Scanner {
    pub fn new() -> Self {
        Self {
            line: Vec::new(),
            line_length: 0,
            after_cr: false,
            at_border: true,
            done: false,
            error: false,
            stop_reason: None,
            usage: None,
            run_id: None,
        }
    }

    /// Looks at the next bytes of the stream. How many of them, from the first on, make whole events together with what
    /// came before; 0 if no event ends in them.
    pub fn feed(&mut self, chunk: &[u8]) -> usize {
        let mut border = 0;
        let mut rest = chunk;
        while let Some(first) = rest.first() {
            if std::mem::take(&mut self.after_cr) && *first == b'\n' {
                rest = rest.get(1..).unwrap_or_default();
                if self.at_border {
                    border = chunk.len() - rest.len();
                }
                continue;
            }
            let Some(end) = memchr::memchr2(b'\n', b'\r', rest) else {
                self.keep(rest);
                self.at_border = false;
                break;
            };
            let (line, ending) = rest.split_at(end);
            self.after_cr = ending.first() == Some(&b'\r');
            rest = ending.get(1..).unwrap_or_default();
            self.at_border = self.line_length == 0 && line.is_empty();
            if self.at_border {
                border = chunk.len() - rest.len();
            } else {
                self.end_line(line);
            }
        }
        border
    }

    /// The stream stands between two events.
    pub fn at_border(&self) -> bool {
        self.at_border
    }

    /// `[DONE]` was seen.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// An `event: error` was seen.
    pub fn has_error(&self) -> bool {
        self.error
    }

    /// The last reason seen; a stream may give two (the agent's, then the server's).
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.stop_reason
    }

    /// What the turn cost, once Letta has said so.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// The run the stream tells of; Letta's first ping names it.
    pub fn run_id(&self) -> Option<&str> {
        self.run_id.as_deref()
    }

    fn keep(&mut self, part: &[u8]) {
        let room = LOOKED_AT.saturating_sub(self.line.len());
        self.line.extend_from_slice(part.get(..room).unwrap_or(part));
        self.line_length = self.line_length.saturating_add(part.len());
    }

    fn end_line(&mut self, last_part: &[u8]) {
        if self.line_length == 0 {
            if last_part.len() <= LOOKED_AT {
                self.look_at(last_part);
            }
            return;
        }
        self.keep(last_part);
        let mut line = std::mem::take(&mut self.line);
        if self.line_length <= LOOKED_AT {
            self.look_at(&line);
        }
        line.clear();
        self.line = line;
        self.line_length = 0;
    }

    fn look_at(&mut self, line: &[u8]) {
        if let Some(data) = field(line, b"data:") {
            if data == b"[DONE]" {
                self.done = true;
            } else {
                self.look_at_data(data);
            }
        } else if field(line, b"event:") == Some(b"error") {
            self.error = true;
        }
    }

    fn look_at_data(&mut self, data: &[u8]) {
        static STOP_REASON: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"stop_reason\""));
        static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"usage_statistics\""));
        static RUN_ID: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"run_id\""));
        #[derive(Deserialize)]
        struct Event<'a> {
            #[serde(borrow)]
            message_type: Option<Cow<'a, str>>,
            #[serde(default)]
            stop_reason: Option<StopReason>,
            #[serde(borrow, default)]
            run_id: Option<Cow<'a, str>>,
        }
        let may_name_the_run = self.run_id.is_none() && RUN_ID.find(data).is_some();
        if USAGE.find(data).is_some() {
            self.look_at_usage(data);
        }
        if !may_name_the_run && STOP_REASON.find(data).is_none() {
            return;
        }
        let Ok(event) = serde_json::from_slice::<Event<'_>>(data) else { return };
        if event.message_type.as_deref() == Some("stop_reason") && event.stop_reason.is_some() {
            self.stop_reason = event.stop_reason;
        }
        if may_name_the_run && let Some(id) = event.run_id.filter(|id| id.len() <= LONGEST_RUN_ID) {
            self.run_id = Some(id.into());
        }
    }
}

impl Scanner {
    fn look_at_usage(&mut self, data: &[u8]) {
        #[derive(Deserialize)]
        struct Event<'a> {
            #[serde(borrow)]
            message_type: Cow<'a, str>,
            #[serde(flatten)]
            usage: Usage,
        }
        if let Ok(event) = serde_json::from_slice::<Event<'_>>(data)
            && event.message_type == "usage_statistics"
        {
            self.usage = Some(event.usage);
        }
    }
}

/// What follows `name`, and one space, in a line.
fn field<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let value = line.strip_prefix(name)?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

/// The same in the OpenAI dialect.
pub fn openai_error(kind: &str, message: &str) -> Bytes {
    let json = serde_json::json!({ "error": { "message": message, "type": kind } });
    Bytes::from(format!("data: {json}\n\ndata: [DONE]\n\n"))
}

/// The end of a stream that Letta could not end itself: an error event in its own shape, then `[DONE]`. Belongs behind a
/// border between events.
pub fn error_event(run_id: Option<&str>, error_type: &str, message: &str) -> Bytes {
    // the order is Letta's (`LettaErrorMessage`)
    #[derive(Serialize)]
    struct ErrorMessage<'a> {
        message_type: &'static str,
        run_id: Option<&'a str>,
        error_type: &'a str,
        message: &'a str,
        detail: Option<&'a str>,
        seq_id: Option<u64>,
    }
    let error = ErrorMessage { message_type: "error_message", run_id, error_type, message, detail: None, seq_id: None };
    let json = serde_json::to_string(&error).unwrap_or_default();
    Bytes::from(format!("event: error\ndata: {json}\n\ndata: [DONE]\n\n"))
}
