//! Every route of the Letta V1 server, with what the gateway must know of it.

use http::Method;

/// One route: a method and a path template.
#[derive(Debug)]
pub struct Route {
    /// Place in [`ROUTES`].
    pub index: u16,
    pub method: Method,
    /// In Letta's own slash form, e.g. `/v1/agents/{agent_id}/messages`.
    pub template: &'static str,
    pub scope: Scope,
    pub pace: Pace,
    pub subject: Subject,
    /// Set on the routes that send a message to an agent.
    pub sends: Option<Sends>,
}

/// What a key must be allowed to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// No key needed.
    Open,
    Read,
    Message,
    Modify,
    /// Runs code, or touches the whole server.
    Admin,
}

/// Which timeout holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Ordinary requests: `timeouts.request`.
    Ordinary,
    /// Message sends and whatever else may take long (uploads, streams, tools): `timeouts.message`.
    Long,
}

/// What the first path parameter names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    None,
    Agent,
    Conversation,
    Run,
    Other,
}

/// How a route sends a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sends {
    /// `POST /v1/agents/{id}/messages`: JSON, or SSE with `streaming: true`.
    Agent,
    /// `POST /v1/agents/{id}/messages/stream`: always SSE.
    AgentStream,
    /// `POST /v1/conversations/{id}/messages`: SSE unless `streaming: false`.
    Conversation,
    /// `POST /v1/chat/completions`: the OpenAI dialect.
    ChatCompletions,
}

/// All routes, in the order of their declaration in Letta.
pub static ROUTES: &[Route] = &[];

/// A path that met a route.
#[derive(Debug, Clone)]
pub struct Found {
    pub route: &'static Route,
    /// The first path parameter: the agent's, conversation's, run's … id.
    pub subject: Option<Box<str>>,
}

/// Why a path met none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotFound {
    Path,
    /// The methods the path takes, as an Allow header's value.
    Method { allow: String },
}

/// The route of `method` and `path`; the path in canonical `/v1/…` form with Letta's own trailing slash.
pub fn find(method: &Method, path: &str) -> Result<Found, NotFound> {
    let _ = (method, path);
    Err(NotFound::Path)
}
