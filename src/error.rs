//! Why the gateway answers in Letta's place: one flat enum, every property of an answer an exhaustive match.
//!
//! A response from Letta, 4xx and 5xx included, is never an [`Error`]: it passes byte for byte. `Display` is what a
//! client may read; the cause is `source()` and goes to the log only.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};

/// The cause of an error, for the log only.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// An answer the gateway gives itself.
#[derive(Debug)]
pub enum Error {
    /// The request target or method cannot be served as it stands; the text names the part and the fix.
    BadTarget(&'static str),
    /// Host is missing, repeated, invalid or contradicts the target (RFC 9112 §3.2).
    BadHost(&'static str),
    /// The message framing is refused, e.g. a transfer coding other than `chunked` (RFC 9112 §6.1).
    BadFraming(&'static str),
    /// The request came without TLS to a listener that wants it.
    PlainHttp,
    /// A request header has a value that cannot be used; the text names it.
    BadHeader(&'static str),
    /// The request body broke off or was not well framed.
    BodyBroken(Cause),
    /// The request body is larger than `limit` bytes.
    BodyTooLarge { limit: u64 },
    /// The body of a request that has to be looked at is not what the route takes; the text says what it takes.
    BadBody(&'static str),
    /// The client took too long over its body.
    BodyTimeout,
    /// The client went away before the answer (nobody reads this answer; the log does).
    ClientLeft,
    /// No route of Letta's has this path.
    NoSuchRoute,
    /// The path exists, the method does not; `allow` is the Allow header's value.
    MethodNotAllowed { allow: String },
    /// No key came with the request.
    KeyMissing,
    /// The key is not one of the configured ones.
    KeyUnknown,
    /// The key's checksum does not fit: it was not copied whole.
    KeyMistyped,
    /// The key is switched off in the configuration.
    KeyDisabled,
    /// The key's time is over.
    KeyExpired,
    /// The key was revoked.
    KeyRevoked,
    /// The key may not be used from the client's address.
    ClientAddressRefused,
    /// The key acts as a Letta user of whom no replica could be asked yet.
    UserUnverified,
    /// The key acts as a Letta user that Letta does not know: it would take the default user.
    UserUnknown,
    /// The request names an agent, or something of an agent's, that the key does not reach.
    AgentRefused,
    /// The key reaches some agents only, and the request more than can be told apart; the text says what.
    ReachRefused { why: &'static str },
    /// Letta did not say in time whose something is that the request names.
    OwnerUnknown,
    /// Two different keys came with one request.
    KeyConflict,
    /// The browser's origin may not use the gateway.
    OriginRefused,
    /// The key's scopes do not cover the route.
    ScopeMissing { needed: &'static str },
    /// The body gives an address for Letta to call, which is an admin's to give; `field` is the address's name.
    AddressRefused { field: &'static str },
    /// A limit of the key's plan refused the request.
    Limited(Box<Refusal>),
    /// What the key may use up is counted in a store that does not answer, and then nothing is to pass.
    LimitsUnknown,
    /// As many requests without a key are in flight as may be, `most`.
    KeylessFull { most: u32 },
    /// The client wants a kept answer or none (`only-if-cached`, RFC 9111 §5.2.1.7), and there is none.
    NotKept,
    /// No replica is configured or left to try.
    NoUpstream,
    /// No connection to a replica could be made; nothing of the request was sent.
    UpstreamConnect { upstream: String, cause: Cause },
    /// Every connection to the replica is in use and none came free in time; nothing was sent.
    UpstreamBusy { upstream: String },
    /// The replica wants another password than the gateway's; it has looked at nothing else of the request.
    UpstreamPassword { upstream: String },
    /// The replica broke the connection. `sent`: the request may have reached it.
    UpstreamClosed { upstream: String, sent: bool, cause: Cause },
    /// The replica did not answer within `after`; it may be at work on the request still.
    UpstreamTimeout { upstream: String, after: Duration },
    /// A turn that may have started did not come to its end here; what became of it at Letta, as far as it is known.
    TurnLost { run: Option<Box<str>>, fate: Fate, error: Box<Error> },
    /// The agent's lane is full: `waiting` sends wait for their turn already.
    LaneFull { waiting: u32 },
    /// The agent's lane did not come free within `waited`; nothing was sent.
    LaneTimeout { waited: Duration },
    /// The same Idempotency-Key came with another request.
    KeyReused,
    /// The turn that this send repeats is known, its answer is not kept any more.
    AnswerNotKept { run: Option<Box<str>> },
    /// A replica broke off an event stream; the client was told so by an event and the stream has ended well for it.
    StreamBroken(Box<Error>),
    /// The store that tells the gateways of each other's turns cannot be reached; nothing was sent.
    StoreDown,
    /// The gateway is going down and takes no new requests.
    Draining,
    /// The gateway went down before the answer was there; a replica may have the request.
    CutOff,
    /// A bound of the gateway itself is reached (`what` names it).
    Overloaded { what: &'static str },
    /// No connection to a replica could be opened for want of the gateway's own; nothing was sent (`what` names it).
    Exhausted { what: &'static str, cause: Cause },
    /// A bug; the cause is in the log under the request's id.
    Internal(Cause),
}

/// What a refused limit tells the client.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// What kind of limit refused.
    pub window: Window,
    /// The window's name, e.g. `rate_1d`: one of those the plan has.
    pub name: Arc<str>,
    /// Whose requests it counts.
    pub whose: Whose,
    /// How long until a request may pass (rounded up to whole seconds in `Retry-After`).
    pub retry_after: Duration,
    /// The window's size, in requests or what the budget counts.
    pub limit: u64,
    /// What is left of it now.
    pub remaining: u64,
    /// How long until the window is whole again.
    pub reset: Duration,
    /// All windows of the plan, as `RateLimit-Policy` tells them.
    pub policy: HeaderValue,
}

/// The kinds of limits a plan has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Window {
    Rate,
    InFlight,
    /// Of what turns cost.
    Budget,
}

/// Who counts as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Whose {
    Key,
    /// The key at the agent that the request names, or at none.
    Agent,
    /// All keys of the plan: the client may have asked for little itself.
    Plan,
}

impl Whose {
    /// `error.scope`, as the configuration has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Agent => "agent",
            Self::Plan => "plan",
        }
    }

    /// What follows the window's name in a message.
    fn text(self) -> &'static str {
        match self {
            Self::Key => "",
            Self::Agent => " at one agent",
            Self::Plan => " of the plan, whose keys count together",
        }
    }
}

/// What became of a run whose stream or answer was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// No run of the turn's could be found, or nobody could be asked.
    Unknown,
    /// It goes on, or nobody has noticed that it does not.
    Running,
    /// It came to its end; what was said is in the agent's history.
    Completed,
    Failed,
    Cancelled,
    /// Its replica is gone; the gateway has cancelled it, so that it blocks nobody.
    Freed,
}

impl Fate {
    fn text(self) -> &'static str {
        match self {
            Self::Unknown => "what became of it could not be learned",
            Self::Running => "it was still running at Letta",
            Self::Completed => "it completed at Letta: the answer is in the agent's history",
            Self::Failed => "it failed at Letta",
            Self::Cancelled => "it was cancelled at Letta",
            Self::Freed => "it ended with its replica and was cancelled",
        }
    }
}

/// Whose doing it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    Client,
    Policy,
    Upstream,
    Gateway,
}

impl Error {
    /// Metric label, log field and `error.type` alike: a closed set, the side in front.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::BadTarget(_) => "client_bad_target",
            Self::BadHost(_) => "client_bad_host",
            Self::BadFraming(_) => "client_bad_framing",
            Self::PlainHttp => "client_plain_http",
            Self::BadHeader(_) => "client_bad_header",
            Self::BodyBroken(_) => "client_body_broken",
            Self::BodyTooLarge { .. } => "client_body_too_large",
            Self::BadBody(_) => "client_bad_body",
            Self::BodyTimeout => "client_body_timeout",
            Self::ClientLeft => "client_left",
            Self::NoSuchRoute => "client_no_such_route",
            Self::MethodNotAllowed { .. } => "client_method_not_allowed",
            Self::KeyMissing => "policy_key_missing",
            Self::KeyUnknown => "policy_key_unknown",
            Self::KeyMistyped => "policy_key_mistyped",
            Self::KeyDisabled => "policy_key_disabled",
            Self::KeyExpired => "policy_key_expired",
            Self::KeyRevoked => "policy_key_revoked",
            Self::AgentRefused => "policy_agent",
            Self::ReachRefused { .. } => "policy_reach",
            Self::OwnerUnknown => "gateway_owner_unknown",
            Self::UserUnverified => "gateway_user_unverified",
            Self::UserUnknown => "policy_user_unknown",
            Self::ClientAddressRefused => "policy_client_address",
            Self::KeyConflict => "policy_key_conflict",
            Self::OriginRefused => "policy_origin",
            Self::ScopeMissing { .. } => "policy_scope_missing",
            Self::AddressRefused { .. } => "policy_address",
            Self::Limited(refusal) => match refusal.window {
                Window::Rate => "policy_rate_limited",
                Window::InFlight => "policy_in_flight_limited",
                Window::Budget => "policy_budget_spent",
            },
            Self::LimitsUnknown => "gateway_limits_unknown",
            Self::NotKept => "client_only_if_cached",
            Self::NoUpstream => "upstream_none",
            Self::UpstreamConnect { .. } => "upstream_connect",
            Self::UpstreamBusy { .. } => "upstream_busy",
            Self::UpstreamPassword { .. } => "upstream_password",
            Self::UpstreamClosed { .. } => "upstream_closed",
            Self::UpstreamTimeout { .. } => "upstream_timeout",
            Self::TurnLost { error, .. } => error.reason(),
            Self::KeylessFull { .. } => "policy_keyless_limited",
            Self::LaneFull { .. } => "policy_lane_full",
            Self::LaneTimeout { .. } => "policy_lane_timeout",
            Self::KeyReused => "client_idempotency_key_reused",
            Self::AnswerNotKept { .. } => "gateway_answer_not_kept",
            // a stream that never began at a replica
            Self::StreamBroken(error) if error.never_sent() || error.side() != Side::Upstream => error.reason(),
            Self::StreamBroken(_) => "upstream_stream_broken",
            Self::StoreDown => "gateway_store_down",
            Self::Draining | Self::CutOff => "gateway_draining",
            Self::Overloaded { .. } => "gateway_overloaded",
            Self::Exhausted { .. } => "gateway_exhausted",
            Self::Internal(_) => "gateway_internal",
        }
    }

    /// Whose doing it is; the first word of [`Error::reason`].
    pub fn side(&self) -> Side {
        match self {
            Self::BadTarget(_)
            | Self::BadHost(_)
            | Self::BadFraming(_)
            | Self::PlainHttp
            | Self::BadHeader(_)
            | Self::BodyBroken(_)
            | Self::BodyTooLarge { .. }
            | Self::BadBody(_)
            | Self::BodyTimeout
            | Self::ClientLeft
            | Self::NoSuchRoute
            | Self::MethodNotAllowed { .. }
            | Self::KeyReused
            | Self::NotKept => Side::Client,
            Self::KeyMissing
            | Self::KeyUnknown
            | Self::KeyMistyped
            | Self::KeyDisabled
            | Self::KeyExpired
            | Self::KeyRevoked
            | Self::ClientAddressRefused
            | Self::UserUnknown
            | Self::AgentRefused
            | Self::ReachRefused { .. }
            | Self::KeyConflict
            | Self::OriginRefused
            | Self::ScopeMissing { .. }
            | Self::AddressRefused { .. }
            | Self::KeylessFull { .. }
            | Self::LaneFull { .. }
            | Self::LaneTimeout { .. }
            | Self::Limited(_) => Side::Policy,
            Self::NoUpstream
            | Self::UpstreamConnect { .. }
            | Self::UpstreamBusy { .. }
            | Self::UpstreamPassword { .. }
            | Self::UpstreamClosed { .. }
            | Self::UpstreamTimeout { .. } => Side::Upstream,
            Self::TurnLost { error, .. } | Self::StreamBroken(error) => error.side(),
            Self::AnswerNotKept { .. }
            | Self::UserUnverified
            | Self::OwnerUnknown
            | Self::StoreDown
            | Self::LimitsUnknown
            | Self::Draining
            | Self::CutOff
            | Self::Overloaded { .. }
            | Self::Exhausted { .. }
            | Self::Internal(_) => Side::Gateway,
        }
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadTarget(_)
            | Self::BadHost(_)
            | Self::BadFraming(_)
            | Self::PlainHttp
            | Self::BadHeader(_)
            | Self::BadBody(_)
            | Self::BodyBroken(_) => StatusCode::BAD_REQUEST,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            // nginx's 499 has no name in RFC 9110; it is seen in the log alone
            Self::ClientLeft => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            Self::NoSuchRoute => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::KeyMissing
            | Self::KeyUnknown
            | Self::KeyMistyped
            | Self::KeyDisabled
            | Self::KeyExpired
            | Self::KeyRevoked => StatusCode::UNAUTHORIZED,
            Self::KeyConflict => StatusCode::BAD_REQUEST,
            Self::OriginRefused
            | Self::ScopeMissing { .. }
            | Self::AddressRefused { .. }
            | Self::ClientAddressRefused
            | Self::AgentRefused
            | Self::ReachRefused { .. }
            | Self::UserUnknown => StatusCode::FORBIDDEN,
            Self::Limited(_) | Self::KeylessFull { .. } | Self::LaneFull { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::KeyReused => StatusCode::CONFLICT,
            Self::AnswerNotKept { .. } => StatusCode::GONE,
            Self::TurnLost { error, .. } => error.status(),
            Self::UpstreamPassword { .. } | Self::UpstreamClosed { .. } | Self::StreamBroken(_) => {
                StatusCode::BAD_GATEWAY
            }
            Self::UpstreamTimeout { .. } | Self::NotKept => StatusCode::GATEWAY_TIMEOUT,
            Self::NoUpstream
            | Self::UpstreamConnect { .. }
            | Self::UpstreamBusy { .. }
            | Self::OwnerUnknown
            | Self::UserUnverified
            | Self::LaneTimeout { .. }
            | Self::StoreDown
            | Self::LimitsUnknown
            | Self::Draining
            | Self::CutOff
            | Self::Overloaded { .. }
            | Self::Exhausted { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// True if the request cannot have reached a replica, so that sending it again doubles nothing.
    pub fn never_sent(&self) -> bool {
        match self {
            Self::UpstreamClosed { sent, .. } => !sent,
            Self::UpstreamTimeout { .. }
            | Self::StreamBroken(_)
            | Self::TurnLost { .. }
            | Self::AnswerNotKept { .. }
            | Self::CutOff => false,
            Self::NoUpstream
            | Self::UpstreamConnect { .. }
            | Self::UpstreamBusy { .. }
            | Self::UpstreamPassword { .. } => true,
            // refused before any replica was asked, except for a body that broke on its way there
            Self::BodyBroken(_) | Self::BodyTooLarge { .. } | Self::BodyTimeout | Self::ClientLeft => false,
            Self::BadTarget(_)
            | Self::BadHost(_)
            | Self::BadFraming(_)
            | Self::PlainHttp
            | Self::BadHeader(_)
            | Self::BadBody(_)
            | Self::NoSuchRoute
            | Self::MethodNotAllowed { .. }
            | Self::KeyMissing
            | Self::KeyUnknown
            | Self::KeyMistyped
            | Self::KeyDisabled
            | Self::KeyExpired
            | Self::KeyRevoked
            | Self::ClientAddressRefused
            | Self::UserUnverified
            | Self::OwnerUnknown
            | Self::AgentRefused
            | Self::ReachRefused { .. }
            | Self::UserUnknown
            | Self::KeyConflict
            | Self::OriginRefused
            | Self::ScopeMissing { .. }
            | Self::AddressRefused { .. }
            | Self::Limited(_)
            | Self::KeylessFull { .. }
            | Self::LaneFull { .. }
            | Self::LaneTimeout { .. }
            | Self::KeyReused
            | Self::NotKept
            | Self::StoreDown
            | Self::LimitsUnknown
            | Self::Draining
            | Self::Overloaded { .. }
            | Self::Exhausted { .. } => true,
            Self::Internal(_) => false,
        }
    }
}

impl Error {
    /// The same once more, for another client of the same turn. A cause is only its text then.
    pub fn again(&self) -> Self {
        let text = |cause: &Cause| Cause::from(cause.to_string());
        match self {
            Self::BadTarget(what) => Self::BadTarget(what),
            Self::BadHost(what) => Self::BadHost(what),
            Self::BadFraming(what) => Self::BadFraming(what),
            Self::PlainHttp => Self::PlainHttp,
            Self::BadHeader(what) => Self::BadHeader(what),
            Self::BadBody(what) => Self::BadBody(what),
            Self::AddressRefused { field } => Self::AddressRefused { field },
            Self::BodyBroken(cause) => Self::BodyBroken(text(cause)),
            Self::BodyTooLarge { limit } => Self::BodyTooLarge { limit: *limit },
            Self::BodyTimeout => Self::BodyTimeout,
            Self::ClientLeft => Self::ClientLeft,
            Self::NoSuchRoute => Self::NoSuchRoute,
            Self::MethodNotAllowed { allow } => Self::MethodNotAllowed { allow: allow.clone() },
            Self::KeyMissing => Self::KeyMissing,
            Self::KeyUnknown => Self::KeyUnknown,
            Self::KeyMistyped => Self::KeyMistyped,
            Self::KeyDisabled => Self::KeyDisabled,
            Self::KeyExpired => Self::KeyExpired,
            Self::KeyRevoked => Self::KeyRevoked,
            Self::UserUnverified => Self::UserUnverified,
            Self::AgentRefused => Self::AgentRefused,
            Self::ReachRefused { why } => Self::ReachRefused { why },
            Self::OwnerUnknown => Self::OwnerUnknown,
            Self::UserUnknown => Self::UserUnknown,
            Self::ClientAddressRefused => Self::ClientAddressRefused,
            Self::KeyConflict => Self::KeyConflict,
            Self::OriginRefused => Self::OriginRefused,
            Self::ScopeMissing { needed } => Self::ScopeMissing { needed },
            Self::Limited(refusal) => Self::Limited(refusal.clone()),
            Self::LimitsUnknown => Self::LimitsUnknown,
            Self::NotKept => Self::NotKept,
            Self::NoUpstream => Self::NoUpstream,
            Self::UpstreamConnect { upstream, cause } => {
                Self::UpstreamConnect { upstream: upstream.clone(), cause: text(cause) }
            }
            Self::UpstreamBusy { upstream } => Self::UpstreamBusy { upstream: upstream.clone() },
            Self::UpstreamPassword { upstream } => Self::UpstreamPassword { upstream: upstream.clone() },
            Self::UpstreamClosed { upstream, sent, cause } => {
                Self::UpstreamClosed { upstream: upstream.clone(), sent: *sent, cause: text(cause) }
            }
            Self::UpstreamTimeout { upstream, after } => {
                Self::UpstreamTimeout { upstream: upstream.clone(), after: *after }
            }
            Self::TurnLost { run, fate, error } => {
                Self::TurnLost { run: run.clone(), fate: *fate, error: Box::new(error.again()) }
            }
            Self::KeylessFull { most } => Self::KeylessFull { most: *most },
            Self::LaneFull { waiting } => Self::LaneFull { waiting: *waiting },
            Self::LaneTimeout { waited } => Self::LaneTimeout { waited: *waited },
            Self::KeyReused => Self::KeyReused,
            Self::AnswerNotKept { run } => Self::AnswerNotKept { run: run.clone() },
            Self::StreamBroken(error) => Self::StreamBroken(Box::new(error.again())),
            Self::StoreDown => Self::StoreDown,
            Self::Draining => Self::Draining,
            Self::CutOff => Self::CutOff,
            Self::Overloaded { what } => Self::Overloaded { what },
            Self::Exhausted { what, cause } => Self::Exhausted { what, cause: text(cause) },
            Self::Internal(cause) => Self::Internal(text(cause)),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadTarget(what)
            | Self::BadHost(what)
            | Self::BadFraming(what)
            | Self::BadHeader(what)
            | Self::BadBody(what) => f.write_str(what),
            Self::PlainHttp => f.write_str(
                "this port takes HTTPS only: use https://; what was sent, an API key too, was not encrypted on its way",
            ),
            Self::BodyBroken(_) => f.write_str("the request body broke off or is not well framed"),
            Self::BodyTooLarge { limit } => write!(f, "the request body is larger than {limit} bytes"),
            Self::BodyTimeout => f.write_str("the request body did not arrive in time"),
            Self::ClientLeft => f.write_str("the client closed the connection before the answer"),
            Self::NoSuchRoute => f.write_str("Not Found: Letta has no such route"),
            Self::MethodNotAllowed { allow } => {
                write!(f, "Method Not Allowed: this path takes {allow}")
            }
            Self::KeyMissing => f.write_str("no API key: send `Authorization: Bearer <key>`, with the word Bearer in front of it"),
            Self::KeyUnknown => f.write_str("the API key is not known to this gateway"),
            Self::KeyMistyped => f.write_str(
                "the API key was not copied whole: its checksum does not fit; compare it with the one you were given",
            ),
            Self::KeyDisabled => f.write_str("the API key is switched off: ask whoever gave it to you"),
            Self::KeyRevoked => f.write_str("the API key was revoked: ask for a new one"),
            Self::KeyExpired => f.write_str("the API key has expired: ask for a new one"),
            Self::ClientAddressRefused => f.write_str("the API key may not be used from this address"),
            Self::AgentRefused => f.write_str("the API key does not reach this agent, or whose it is cannot be told"),
            Self::ReachRefused { why } => {
                write!(f, "the API key is limited to some agents and cannot be used for this: {why}")
            }
            Self::OwnerUnknown => {
                f.write_str("Letta did not say in time whose it is that the request names; it was not sent: try again")
            }
            Self::UserUnverified => {
                f.write_str("no Letta replica could be asked yet for the user this API key acts as: try again soon")
            }
            Self::UserUnknown => f.write_str("Letta does not know the user this API key acts as"),
            Self::KeyConflict => f.write_str("two different API keys in one request: send one"),
            Self::OriginRefused => f.write_str("this origin may not use the gateway from a browser"),
            Self::ScopeMissing { needed } => {
                write!(f, "the API key may not use this route: it needs the scope `{needed}`")
            }
            Self::AddressRefused { field } => {
                write!(
                    f,
                    "the API key may not set `{field}`, for Letta would call that address: leave it out, or use a key with the scope `admin`"
                )
            }
            Self::Limited(refusal) => {
                let Refusal { window, name, whose, retry_after, limit, .. } = &**refusal;
                let (whose, seconds) = (whose.text(), whole_seconds(*retry_after));
                match window {
                    Window::Rate => write!(f, "too many requests ({name}{whose}): try again in {seconds} s"),
                    Window::Budget => {
                        write!(f, "nothing is left of the budget ({name}{whose}): try again in {seconds} s")
                    }
                    Window::InFlight => write!(
                        f,
                        "too many requests at once ({name}{whose}): {limit} may be in flight; wait for one to end"
                    ),
                }
            }
            Self::LimitsUnknown => f.write_str("the gateway cannot reach where it counts requests; try again later"),
            Self::NotKept => f.write_str("no kept answer will do, and the request asks for no other (only-if-cached)"),
            Self::NoUpstream => f.write_str("no Letta replica can take the request now"),
            Self::UpstreamConnect { .. } => {
                f.write_str("the Letta replica cannot be reached; the request was not sent")
            }
            Self::UpstreamBusy { .. } => {
                f.write_str("every connection to the Letta replica is in use; the request was not sent")
            }
            Self::UpstreamPassword { .. } => f.write_str(
                "Letta refuses the gateway's own password, whatever the API key: whoever runs the gateway must set upstreams.letta.password to Letta's LETTA_SERVER_PASSWORD",
            ),
            Self::UpstreamClosed { sent: false, .. } => {
                f.write_str("the Letta replica closed the connection; the request was not sent")
            }
            Self::UpstreamClosed { sent: true, .. } => f.write_str(
                "the Letta replica closed the connection before its answer was whole; it may have executed the request",
            ),
            Self::UpstreamTimeout { after, .. } => write!(
                f,
                "the Letta replica said nothing for {} s; it may be at work on the request still",
                after.as_secs_f64()
            ),
            Self::TurnLost { run, fate, error } => {
                write!(f, "{error}. The turn")?;
                if let Some(run) = run {
                    write!(f, " is {run} and")?;
                }
                write!(f, " was not sent again: {}", fate.text())
            }
            Self::KeylessFull { most } => {
                write!(f, "too many requests without an API key at once: {most} may be in flight in all")
            }
            Self::LaneFull { waiting } => {
                write!(f, "the agent is at work and {waiting} messages wait for it already: send this one later")
            }
            Self::LaneTimeout { waited } => write!(
                f,
                "the agent was at work on other messages for {} s; this one was not sent",
                whole_seconds(*waited)
            ),
            Self::KeyReused => {
                f.write_str("this Idempotency-Key came with another request before: use a new one for each message")
            }
            Self::AnswerNotKept { run } => {
                f.write_str("this message was sent before and its answer is not kept")?;
                run.as_ref().map_or(Ok(()), |run| write!(f, "; its run is {run}"))
            }
            Self::StreamBroken(_) => f.write_str("the replica broke off the event stream"),
            Self::StoreDown => f.write_str("the store that gateways share cannot be reached; the message was not sent"),
            Self::Draining => f.write_str("the gateway is shutting down"),
            Self::CutOff => f.write_str("the gateway shut down before the answer was there: the request may have been executed"),
            Self::Overloaded { what } => write!(f, "the gateway is at its limit of {what}"),
            Self::Exhausted { what, .. } => write!(f, "the gateway has no more {what}; the request was not sent"),
            Self::Internal(_) => f.write_str("the gateway failed; its log has the cause under this request's id"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::BodyBroken(cause)
            | Self::UpstreamConnect { cause, .. }
            | Self::UpstreamClosed { cause, .. }
            | Self::Exhausted { cause, .. }
            | Self::Internal(cause) => Some(&**cause),
            Self::StreamBroken(error) | Self::TurnLost { error, .. } => std::error::Error::source(&**error),
            _ => None,
        }
    }
}

/// Seconds for `Retry-After`: rounded up, at least 1 (a client told 0 comes back at once).
pub fn whole_seconds(wait: Duration) -> u64 {
    let up = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    up.max(1)
}
