//! The access log: one JSON line a request, on standard output.
//!
//! A line costs well under a microsecond and no allocation: it is formatted into a buffer of the thread, copied, and
//! written by a thread of the log's own. A reader that is slow or stuck costs lines (counted in `log_dropped`), never a
//! request. JSON escapes control characters, so nothing a client sends can begin a line of its own.

use std::cell::RefCell;
use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::Version;

use super::Metrics;
use super::lines::Lines;
use super::millis::Millis;
use super::record::{Record, Took};
use super::timestamp::Timestamp;
use crate::letta::reply::Usage;
use crate::letta::routes::Subject;

/// Bytes of any one text that a client can choose.
const LONGEST: usize = 256;

/// Takes finished records; never blocks and never holds more than its bound. Clones write to the same log.
#[derive(Clone)]
pub struct AccessLog {
    lines: Option<Lines>,
}

impl AccessLog {
    /// Writes lines to standard output; `enabled: false` writes none.
    pub fn stdout(enabled: bool, metrics: Arc<Metrics>) -> Self {
        if !enabled {
            return Self::off();
        }
        // a copy of the descriptor: `std::io::Stdout` would split the batch at its line feeds and lock it
        #[cfg(unix)]
        match std::os::fd::AsFd::as_fd(&std::io::stdout()).try_clone_to_owned() {
            Ok(descriptor) => Self::to(std::fs::File::from(descriptor), metrics),
            Err(error) => {
                tracing::error!(%error, "access log is off: standard output cannot be used");
                Self::off()
            }
        }
        #[cfg(not(unix))]
        Self::to(std::io::stdout(), metrics)
    }

    /// Writes lines to `writer`, on a thread of its own.
    pub fn to(writer: impl Write + Send + 'static, metrics: Arc<Metrics>) -> Self {
        match Lines::start("access-log", writer, move |lines| metrics.log_dropped.inc_by(lines)) {
            Ok(lines) => Self { lines: Some(lines) },
            Err(error) => {
                tracing::error!(%error, "access log is off: its thread does not start");
                Self::off()
            }
        }
    }

    /// Writes nothing.
    pub fn off() -> Self {
        Self { lines: None }
    }

    /// Tells of a request that is over.
    pub fn write(&self, record: &Record, took: &Took) {
        let Some(lines) = &self.lines else { return };
        SCRATCH.with_borrow_mut(|Scratch { timestamp, client, line }| {
            line.clear();
            let fields = Line::of(record, timestamp.format(SystemTime::now()), client.text(record.client), took);
            // a Vec takes what it is given, and these fields always serialize
            if fields.write(line).is_ok() {
                lines.push(line);
            }
        });
    }

    /// Writes what waits and ends the log; false if the reader did not take it within `patience`. Blocks the thread.
    pub fn close(&self, patience: Duration) -> bool {
        self.lines.as_ref().is_none_or(|lines| lines.close(patience))
    }
}

/// What a thread keeps between two lines. A line is bounded ([`LONGEST`], `Record::cause`), and so is its buffer.
struct Scratch {
    timestamp: Timestamp,
    client: LastClient,
    line: Vec<u8>,
}

/// The client of the line before, as text: one seldom comes alone.
struct LastClient {
    address: Option<IpAddr>,
    text: String,
}

impl LastClient {
    fn text(&mut self, address: IpAddr) -> &str {
        if self.address != Some(address) {
            (self.address, self.text) = (Some(address), address.to_string());
        }
        &self.text
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            timestamp: Timestamp::new(),
            client: LastClient { address: None, text: String::new() },
            line: Vec::new(),
        })
    };
}

/// A line's fields, in their order. A field without a value is left out.
struct Line<'a> {
    /// When the request was over.
    ts: &'a str,
    request_id: &'a str,
    client: &'a str,
    protocol: &'static str,
    method: &'a str,
    /// The route's template, e.g. `/v1/agents/{agent_id}/messages`; left out if the path met none.
    route: Option<&'static str>,
    /// What was asked for instead.
    path: Option<&'a str>,
    agent: Option<&'a str>,
    conversation: Option<&'a str>,
    run: Option<&'a str>,
    key: Option<&'a str>,
    /// The replica of the last attempt.
    upstream: Option<&'a str>,
    attempts: u8,
    /// 0: the client left before the answer.
    status: u16,
    reason: Option<&'static str>,
    cause: Option<&'a str>,
    cache: Option<&'static str>,
    took: &'a Took,
    bytes_in: u64,
    bytes_out: u64,
    /// What of a turn it was: started, joined, replayed or resumed.
    turn: Option<Turn>,
    ended_by: &'static str,
}

/// What a line tells of a turn. What is not known when the request ends is left out.
struct Turn {
    part: &'static str,
    queued: Duration,
    outcome: Option<&'static str>,
    first_event: Option<Duration>,
    longest_gap: Option<Duration>,
    usage: Option<Usage>,
}

impl Line<'_> {
    /// Writes the line as one JSON object. The names are constants and stand as they are; a text that JSON would have to
    /// escape goes through serde_json. A derived `Serialize` looks at each byte of twenty names on every request, and a
    /// float is searched for its shortest digits, which made the line the dearest part of a request after its system
    /// calls.
    fn write(&self, line: &mut Vec<u8>) -> serde_json::Result<()> {
        fn text(line: &mut Vec<u8>, name: &str, value: &str) -> serde_json::Result<()> {
            if needs_escape(value) {
                line.extend_from_slice(name.as_bytes());
                return serde_json::to_writer(line, value);
            }
            plain(line, name, value);
            Ok(())
        }
        fn optional(line: &mut Vec<u8>, name: &str, value: Option<&str>) -> serde_json::Result<()> {
            value.map_or(Ok(()), |value| text(line, name, value))
        }
        // These three are inlined: a name is then written without a call, and there are a dozen to a line.
        // A constant of the gateway's own needs no escape, nor has one any (a test looks at the routes).
        #[inline(always)]
        fn plain(line: &mut Vec<u8>, name: &str, value: &str) {
            line.extend_from_slice(name.as_bytes());
            line.push(b'"');
            line.extend_from_slice(value.as_bytes());
            line.push(b'"');
        }
        #[inline(always)]
        fn number(line: &mut Vec<u8>, name: &str, value: u64) {
            line.extend_from_slice(name.as_bytes());
            line.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
        }
        #[inline(always)]
        fn millis(line: &mut Vec<u8>, name: &str, value: Duration) {
            line.extend_from_slice(name.as_bytes());
            line.extend_from_slice(Millis::of(value).as_bytes());
        }
        plain(line, "{\"ts\":", self.ts);
        text(line, ",\"request_id\":", self.request_id)?;
        plain(line, ",\"client\":", self.client);
        plain(line, ",\"protocol\":", self.protocol);
        text(line, ",\"method\":", self.method)?;
        if let Some(route) = self.route {
            plain(line, ",\"route\":", route);
        }
        optional(line, ",\"path\":", self.path)?;
        optional(line, ",\"agent\":", self.agent)?;
        optional(line, ",\"conversation\":", self.conversation)?;
        optional(line, ",\"run\":", self.run)?;
        optional(line, ",\"key\":", self.key)?;
        optional(line, ",\"upstream\":", self.upstream)?;
        number(line, ",\"attempts\":", self.attempts.into());
        number(line, ",\"status\":", self.status.into());
        if let Some(reason) = self.reason {
            plain(line, ",\"reason\":", reason);
        }
        optional(line, ",\"cause\":", self.cause)?;
        if let Some(cache) = self.cache {
            plain(line, ",\"cache\":", cache);
        }
        millis(line, ",\"duration_ms\":", self.took.duration);
        let times = [
            (",\"ttfb_ms\":", self.took.to_first_byte),
            (",\"upstream_ms\":", self.took.upstream),
            (",\"overhead_ms\":", self.took.overhead),
        ];
        for (name, time) in times {
            time.inspect(|time| millis(line, name, *time));
        }
        number(line, ",\"bytes_in\":", self.bytes_in);
        number(line, ",\"bytes_out\":", self.bytes_out);
        if let Some(turn) = &self.turn {
            plain(line, ",\"turn\":", turn.part);
            millis(line, ",\"queue_ms\":", turn.queued);
            if let Some(outcome) = turn.outcome {
                plain(line, ",\"outcome\":", outcome);
            }
            turn.first_event.inspect(|time| millis(line, ",\"first_event_ms\":", *time));
            turn.longest_gap.inspect(|time| millis(line, ",\"longest_gap_ms\":", *time));
            if let Some(usage) = &turn.usage {
                number(line, ",\"prompt_tokens\":", usage.prompt_tokens);
                number(line, ",\"completion_tokens\":", usage.completion_tokens);
                number(line, ",\"steps\":", usage.step_count);
            }
        }
        plain(line, ",\"ended_by\":", self.ended_by);
        line.extend_from_slice(b"}\n");
        Ok(())
    }
}

impl<'a> Line<'a> {
    fn of(record: &'a Record, ts: &'a str, client: &'a str, took: &'a Took) -> Self {
        let subject = |of: Subject| {
            let subject = record.subject.as_deref().map(short);
            subject.filter(|_| record.route.is_some_and(|route| route.subject == of))
        };
        Self {
            ts,
            request_id: str::from_utf8(record.request_id.as_bytes()).map(short).unwrap_or_default(),
            client,
            protocol: match record.version {
                Version::HTTP_2 => "h2",
                Version::HTTP_10 => "h1.0",
                _ => "h1",
            },
            method: short(record.method.as_str()),
            route: record.route.map(|route| route.template),
            path: record.path.as_deref().map(short),
            agent: subject(Subject::Agent),
            conversation: subject(Subject::Conversation),
            run: subject(Subject::Run),
            key: record.key.as_ref().map(|key| &*key.id),
            upstream: record.upstream.as_ref().map(|upstream| &*upstream.id),
            attempts: record.attempts,
            status: record.status,
            reason: record.reason,
            cause: record.cause.as_deref(),
            cache: record.cache.map(|cache| cache.as_str()),
            took,
            bytes_in: record.request_bytes,
            bytes_out: record.response_bytes,
            turn: record.turn.as_ref().map(|(part, facts)| {
                let facts = facts.now();
                Turn {
                    part: part.as_str(),
                    queued: facts.queued,
                    outcome: facts.outcome.map(|outcome| outcome.as_str()),
                    first_event: facts.first_event,
                    longest_gap: facts.longest_gap,
                    usage: facts.usage,
                }
            }),
            ended_by: record.ended.map_or("client", |ended| ended.as_str()),
        }
    }
}

/// Whether JSON does not take `text` as it stands (RFC 8259 §7).
fn needs_escape(text: &str) -> bool {
    // every byte is looked at, without a branch: sixteen at once
    text.bytes().fold(false, |needs, byte| needs | (byte < b' ') | (byte == b'"') | (byte == b'\\'))
}

fn short(text: &str) -> &str {
    text.get(..text.floor_char_boundary(LONGEST)).unwrap_or(text)
}

#[cfg(test)]
mod tests;
