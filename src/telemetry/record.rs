//! What is known of one request, gathered on its way and told once: a count, some observations, an access-log line.
//!
//! A record tells its story when it is dropped, so that no way out of the pipeline (an answer, an error, a client that
//! left, a panic) goes untold.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Version};
use tokio::time::Instant;

use super::access::AccessLog;
use super::metrics::{CacheResult, KeyMetrics, Metrics, UpstreamMetrics};
use super::turn::{Part, SharedFacts};
use crate::body::Watch;
use crate::cutoff::Cutoff;
use crate::error::{Error, Side};
use crate::letta::routes::Route;

/// Where finished records go.
#[derive(Clone)]
pub struct Sink {
    pub metrics: Arc<Metrics>,
    pub access: AccessLog,
    /// What is still open once this has come was ended by the gateway.
    pub cutoff: Cutoff,
}

impl Sink {
    pub fn new(metrics: Arc<Metrics>, access: AccessLog) -> Self {
        Self { metrics, access, cutoff: Cutoff::new() }
    }
}

/// Who ended the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The response went out whole.
    Complete,
    /// The client left first.
    Client,
    /// The gateway answered in Letta's place or broke off.
    Gateway,
    /// The replica broke off.
    Upstream,
}

impl Ended {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Client => "client",
            Self::Gateway => "gateway",
            Self::Upstream => "upstream",
        }
    }
}

/// The facts of one request.
pub struct Record {
    sink: Arc<Sink>,
    pub started: Instant,
    pub request_id: HeaderValue,
    pub client: IpAddr,
    /// The client came by TLS.
    pub is_tls: bool,
    pub method: Method,
    pub version: Version,
    pub route: Option<&'static Route>,
    /// The path as it was asked for, if it met no route; without its query, which may hold secrets.
    pub path: Option<Box<str>>,
    /// The agent, conversation, run … the path names.
    pub subject: Option<Arc<str>>,
    pub key: Option<Arc<KeyMetrics>>,
    pub upstream: Option<Arc<UpstreamMetrics>>,
    pub attempts: u8,
    /// 0 until there is an answer.
    pub status: u16,
    pub reason: Option<&'static str>,
    /// The chain of causes of an error, for the log.
    pub cause: Option<String>,
    pub cache: Option<CacheResult>,
    /// When the last attempt's request was handed to a connection.
    pub sent: Option<Instant>,
    /// When the replica's response head came.
    pub answered: Option<Instant>,
    /// When the response head was handed to the client's connection.
    pub responded: Option<Instant>,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub ended: Option<Ended>,
    /// The `Origin` that may read the answer (CORS).
    pub origin: Option<HeaderValue>,
    /// The turn it is a part of.
    pub turn: Option<(Part, SharedFacts)>,
    /// How long it waited for its agent's lane.
    pub queued: Duration,
    /// Tells nothing when it is dropped: its facts are told by another.
    is_silent: bool,
}

/// What is known of the exchange with a replica.
#[derive(Clone, Default)]
pub struct Exchange {
    pub upstream: Option<Arc<UpstreamMetrics>>,
    pub attempts: u8,
    pub sent: Option<Instant>,
    pub answered: Option<Instant>,
}

impl Record {
    pub fn new(
        sink: impl Into<Arc<Sink>>,
        request_id: HeaderValue,
        client: IpAddr,
        method: Method,
        version: Version,
    ) -> Self {
        let sink = sink.into();
        sink.metrics.in_flight.inc();
        Self {
            sink,
            started: Instant::now(),
            request_id,
            client,
            is_tls: false,
            method,
            version,
            route: None,
            path: None,
            subject: None,
            key: None,
            upstream: None,
            attempts: 0,
            status: 0,
            reason: None,
            cause: None,
            cache: None,
            sent: None,
            answered: None,
            responded: None,
            request_bytes: 0,
            response_bytes: 0,
            ended: None,
            origin: None,
            turn: None,
            queued: Duration::ZERO,
            is_silent: false,
        }
    }

    /// One for an exchange with Letta that may outlive this request. It tells nothing by itself, and has what the steps
    /// below look at alone.
    pub fn apart(&self) -> Self {
        Self {
            sink: Arc::clone(&self.sink),
            started: self.started,
            request_id: self.request_id.clone(),
            client: self.client,
            is_tls: self.is_tls,
            method: self.method.clone(),
            version: self.version,
            route: self.route,
            path: None,
            subject: None,
            key: None,
            upstream: None,
            attempts: 0,
            status: 0,
            reason: None,
            cause: None,
            cache: None,
            sent: None,
            answered: None,
            responded: None,
            request_bytes: 0,
            response_bytes: 0,
            ended: None,
            origin: None,
            turn: None,
            queued: Duration::ZERO,
            is_silent: true,
        }
    }

    /// The request goes to this replica now.
    pub fn goes_to(&mut self, upstream: &Arc<UpstreamMetrics>) {
        if let Some((_, turn)) = &self.turn {
            turn.goes_to(upstream);
        }
        self.upstream = Some(Arc::clone(upstream));
    }

    pub fn exchange(&self) -> Exchange {
        let Self { upstream, attempts, sent, answered, .. } = self;
        Exchange { upstream: upstream.clone(), attempts: *attempts, sent: *sent, answered: *answered }
    }

    /// Takes over what another record saw of the exchange with a replica.
    pub fn adopt(&mut self, exchange: Exchange) {
        let Exchange { upstream, attempts, sent, answered } = exchange;
        (self.upstream, self.attempts, self.sent, self.answered) = (upstream, attempts, sent, answered);
    }

    /// Takes over what is known by now of the turn, which may have had no head yet when the response's went out.
    fn learn_of_turn(&mut self) {
        let Some((part, turn)) = &self.turn else { return };
        if self.sent.is_some() && self.upstream.is_some() {
            // its response began with the turn's head and has taken over all that was known then
            return;
        }
        let (facts, exchange) = turn.all();
        let upstream = self.upstream.take().or_else(|| exchange.upstream.clone());
        if *part == Part::Started {
            self.queued = facts.queued;
            if self.sent.is_none() && exchange.sent.is_some() {
                self.adopt(exchange);
            }
        }
        self.upstream = upstream;
    }

    /// Notes an error of the gateway's own: its reason, its chain of causes, whose doing it was.
    pub fn failed(&mut self, error: &Error) {
        self.reason = Some(error.reason());
        self.sink.metrics.error(error.reason());
        let mut cause = std::error::Error::source(error);
        if cause.is_some() {
            let mut chain = String::new();
            while let Some(error) = cause {
                if !chain.is_empty() {
                    chain.push_str(": ");
                }
                chain.push_str(&error.to_string());
                cause = error.source();
            }
            chain.truncate(chain.floor_char_boundary(512));
            self.cause = Some(chain);
        }
        self.ended = Some(match error.side() {
            Side::Client | Side::Policy | Side::Gateway => Ended::Gateway,
            Side::Upstream => Ended::Upstream,
        });
        if matches!(error, Error::ClientLeft) {
            self.ended = Some(Ended::Client);
        }
    }

    /// The gateway's own share: until the request was with the replica, and from its answer until the client's.
    /// The whole time for an answer that no replica was asked for. None without an answer, and for a request that was
    /// tried again: its failed attempts' waiting is not the gateway's doing and cannot be told from it.
    pub fn overhead(&self) -> Option<Duration> {
        let responded = self.responded.filter(|_| self.attempts <= 1)?;
        Some(match (self.sent, self.answered) {
            (Some(sent), Some(answered)) => {
                sent.saturating_duration_since(self.started).saturating_sub(self.queued)
                    + responded.saturating_duration_since(answered)
            }
            (Some(sent), None) => sent.saturating_duration_since(self.started).saturating_sub(self.queued),
            (None, _) => responded.saturating_duration_since(self.started).saturating_sub(self.queued),
        })
    }
}

/// How long a request took, and its parts.
pub struct Took {
    /// From the request's head to the response's last byte.
    pub duration: Duration,
    /// From the request's head to the response's head.
    pub to_first_byte: Option<Duration>,
    /// The gateway's own share of that; see [`Record::overhead`].
    pub overhead: Option<Duration>,
    /// How long the replica took to the head of its response, or was waited for in vain.
    pub upstream: Option<Duration>,
}

impl Watch for Record {
    fn data(&mut self, bytes: usize) {
        self.response_bytes += bytes as u64;
    }

    fn end(&mut self, result: Result<(), &Error>) {
        match result {
            Ok(()) => {
                self.ended.get_or_insert(Ended::Complete);
            }
            Err(error) => self.failed(error),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.is_silent {
            return;
        }
        self.learn_of_turn();
        if self.ended.is_none() && self.sink.cutoff.is_over() {
            self.failed(&Error::Draining);
        }
        let metrics = &self.sink.metrics;
        let now = Instant::now();
        metrics.in_flight.dec();
        self.ended.get_or_insert(Ended::Client);
        let route = metrics.route(self.route);
        if let Some(requests) = route.requests(self.status) {
            requests.inc();
        }
        let took = Took {
            duration: now.saturating_duration_since(self.started),
            to_first_byte: self.responded.map(|responded| responded.saturating_duration_since(self.started)),
            overhead: self.overhead(),
            upstream: self.sent.map(|sent| {
                let until = self.answered.or(self.responded).unwrap_or(now);
                until.saturating_duration_since(sent)
            }),
        };
        route.duration.observe(took.duration);
        if let Some(to_first_byte) = took.to_first_byte {
            route.time_to_first_byte.observe(to_first_byte);
        }
        if let Some(overhead) = took.overhead {
            metrics.overhead.observe(overhead);
        }
        if let Some(requests) = self.key.as_ref().and_then(|key| key.requests(self.status)) {
            requests.inc();
        }
        if let (Some(upstream), Some(took), Some(_)) = (&self.upstream, took.upstream, self.answered) {
            upstream.response.observe(took);
        }
        if self.request_bytes > 0 {
            metrics.request_bytes.inc_by(self.request_bytes);
        }
        metrics.response_bytes.inc_by(self.response_bytes);
        self.sink.access.write(self, &took);
    }
}
