//! One timer a connection in place of one a request: decides from a connection's counters when it has overstayed.
//!
//! While bytes move it looks at them once a tick; when none do it sleeps until the nearest deadline, and the next byte
//! wakes it. So a busy connection pays for no timer and no clock, and an idle one for no tick. What it promises:
//! half a preface, a request head begun and not complete, silence between requests and a client that takes nothing
//! of what it is owed each end the connection after their own timeout, and trickling bytes extends none of them.

use std::time::Duration;

use tokio::time::Instant;

use super::ConnectionLimits;
use super::progress::Seen;
use super::reason::Reason;

/// How long a connection that was asked to end may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);
/// The longest tick.
const TICK: Duration = Duration::from_secs(1);
/// The longest sleep.
const NIGHT: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Look again at `at`. `asleep`: or at the next byte.
    Wait { at: Instant, asleep: bool },
    /// Nothing goes on any more: ask the connection to end.
    Retire,
    /// It was asked and has not ended: drop it.
    Gone,
    /// The client has overstayed: drop it.
    Cut(Reason),
}

/// The watchdog of one connection.
#[derive(Debug)]
pub(super) struct Watchdog {
    protocol: Protocol,
    handshake: Duration,
    header: Duration,
    idle: Duration,
    write: Duration,
    tick: Duration,
    last: Seen,
    /// Since when the HTTP/2 preface is awaited.
    began: Instant,
    /// Since when no request is in flight, and the reads until then.
    quiet: Option<(Instant, u32)>,
    /// Since when a request head is open, and which.
    head: Option<(Instant, u32)>,
    /// Since when the client has taken nothing of what it is owed.
    stalled: Option<Instant>,
    /// Since when our side has been closing the socket.
    closing: Option<Instant>,
    /// The connection was asked to end.
    retired: bool,
}

impl Watchdog {
    pub(super) fn new(protocol: Protocol, limits: &ConnectionLimits, now: Instant) -> Self {
        let ConnectionLimits { handshake_timeout, header_timeout, idle_timeout, write_timeout, .. } = *limits;
        let shortest = handshake_timeout.min(header_timeout).min(idle_timeout).min(write_timeout);
        Self {
            protocol,
            handshake: handshake_timeout,
            header: header_timeout,
            idle: idle_timeout,
            write: write_timeout,
            tick: (shortest / 4).clamp(Duration::from_millis(1), TICK),
            last: Seen::default(),
            began: now,
            quiet: Some((now, 0)),
            head: None,
            stalled: None,
            closing: None,
            retired: false,
        }
    }

    /// The connection has been asked to end once its requests are over.
    pub(super) fn retire(&mut self, now: Instant) {
        if !self.retired {
            self.retired = true;
            self.idle = self.idle.min(GOODBYE);
            self.quiet = self.quiet.map(|(_, reads)| (now, reads));
        }
    }

    /// No request is in flight as far as it is known.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet.is_some()
    }

    /// Judges what is `seen` at `now`.
    pub(super) fn look(&mut self, now: Instant, seen: Seen) -> Verdict {
        let moved = seen != self.last;
        self.follow_writes(now, &seen);
        self.follow_requests(now, &seen);
        self.follow_head(now, &seen);
        self.last = seen;

        let preface = (self.protocol == Protocol::Http2 && !seen.preface).then_some(self.began);
        // what begins on an HTTP/2 connection that is to end is not awaited: there is no end of beginning
        let awaited = self.head.is_some() && !(self.retired && self.protocol == Protocol::Http2);
        let quiet = self.quiet.map(|(since, _)| since).filter(|_| !awaited);
        let alarms = [
            (preface, self.handshake, Verdict::Cut(Reason::Preface)),
            (self.stalled, self.write, Verdict::Cut(Reason::WriteTimeout)),
            (self.head.map(|(since, _)| since), self.header, Verdict::Cut(Reason::HeaderTimeout)),
            (self.closing, GOODBYE, Verdict::Gone),
            (quiet, self.idle, if self.retired { Verdict::Gone } else { Verdict::Retire }),
        ];
        let mut next = now + NIGHT;
        for (since, timeout, verdict) in alarms {
            if let Some(since) = since {
                let deadline = since + timeout;
                if deadline <= now {
                    return verdict;
                }
                next = next.min(deadline);
            }
        }
        if moved {
            Verdict::Wait { at: next.min(now + self.tick), asleep: false }
        } else {
            Verdict::Wait { at: next, asleep: true }
        }
    }

    fn follow_writes(&mut self, now: Instant, seen: &Seen) {
        if !seen.owed {
            self.stalled = None;
        } else if self.stalled.is_none() || seen.writes != self.last.writes {
            self.stalled = Some(now);
        }
        if seen.closing {
            self.closing.get_or_insert(now);
        }
    }

    fn follow_requests(&mut self, now: Instant, seen: &Seen) {
        if seen.in_flight > 0 || seen.owed {
            self.quiet = None;
        } else if self.quiet.is_none() || seen.begun != self.last.begun {
            // requests came and went since the last look: quiet from now on, as far as it is known
            self.quiet = Some((now, seen.reads));
        }
    }

    fn follow_head(&mut self, now: Instant, seen: &Seen) {
        let open = match self.protocol {
            // between requests an HTTP/1 client sends nothing but the next head
            Protocol::Http1 => self.quiet.is_some_and(|(_, reads)| reads != seen.reads).then_some(seen.begun),
            Protocol::Http2 => (seen.preface && seen.head_open).then_some(seen.head_mark),
        };
        self.head = open.map(|which| match self.head {
            Some((since, same)) if same == which => (since, which),
            _ => (now, which),
        });
    }
}
