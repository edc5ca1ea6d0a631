//! Every route of the Letta V1 server, with what the gateway must know of it.
//!
//! A path is looked up per method: `POST /v1/tools/mcp/servers/test` must not hide `PATCH /v1/tools/mcp/servers/{name}`
//! of a server that is called `test`. Where two templates of one method meet, the more literal one wins.

pub mod reach;
mod table;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use http::Method;

/// One route: a method and a path template.
#[derive(Debug)]
pub struct Route {
    /// Place in [`ROUTES`].
    pub index: u16,
    pub method: Method,
    /// In Letta's own slash form, e.g. `/v1/agents/{agent_id}/messages`; `{*path}` takes any number of segments.
    pub template: &'static str,
    pub scope: Scope,
    pub pace: Pace,
    pub subject: Subject,
    /// Set on the routes that send a message to an agent.
    pub sends: Option<Sends>,
    /// Set on the routes whose body may hold what is not every key's to choose.
    pub watched: Option<Watched>,
}

impl Route {
    /// A request makes an agent or its model work: a message that is answered, one that is answered later, a batch of
    /// them, or a prompt.
    pub fn starts_turns(&self) -> bool {
        self.sends.is_some()
            || self.method == Method::POST
                && (self.template == "/v1/messages/batches"
                    || ["/messages/async", "/generate"].iter().any(|end| self.template.ends_with(end)))
    }

    /// Letta's own slash form; `None` where the slash belongs to the last parameter.
    pub fn ends_in_slash(&self) -> Option<bool> {
        if self.template.ends_with("*path}") || self.template.ends_with("*endpoint}") {
            return None;
        }
        Some(self.template.ends_with('/'))
    }
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

impl Scope {
    /// The word of the configuration and of refusals.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::Message => "message",
            Self::Modify => "modify",
            Self::Admin => "admin",
        }
    }
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

impl Subject {
    fn of(template: &str) -> Self {
        match template.split_once('{').and_then(|(_, rest)| rest.split_once('}')) {
            None => Self::None,
            Some(("agent_id", _)) => Self::Agent,
            Some(("conversation_id", _)) => Self::Conversation,
            Some(("run_id", _)) => Self::Run,
            Some((name, _)) if name.starts_with('*') => Self::None,
            Some(_) => Self::Other,
        }
    }
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

impl Sends {
    pub const ALL: [Self; 4] = [Self::Agent, Self::AgentStream, Self::Conversation, Self::ChatCompletions];
}

/// What is looked for in a body before Letta may have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// The Letta user who asks.
    User,
    /// Addresses that Letta calls: a callback's, a model's, an embedding's.
    Addresses,
}

/// All routes, in the order of their declaration in Letta.
pub static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(|| {
    let route = |(index, row): (u16, &table::Row)| Route {
        index,
        method: row.method.clone(),
        template: row.template,
        scope: row.scope,
        pace: row.pace,
        subject: Subject::of(row.template),
        sends: row.sends,
        watched: row.watched,
    };
    (0..).zip(table::TABLE).map(route).collect()
});

/// A path that met a route.
#[derive(Debug, Clone, Copy)]
pub struct Found<'p> {
    pub route: &'static Route,
    /// The first path parameter as it stands in the path: the agent's, conversation's, run's … id.
    pub subject: Option<&'p str>,
}

/// Why a path met none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotFound {
    Path,
    /// The methods the path takes, as an Allow header's value.
    Method {
        allow: String,
    },
}

/// The route of `method` and `path`; the path in `/v1/…` form, with or without a slash at its end.
/// HEAD is what GET is where Letta has no HEAD route of its own.
pub fn find<'p>(method: &Method, path: &'p str) -> Result<Found<'p>, NotFound> {
    let path = unslashed(path);
    if let Some(found) = lookup(method, path) {
        return Ok(found);
    }
    if method == Method::HEAD
        && let Some(found) = lookup(&Method::GET, path)
    {
        return Ok(found);
    }
    let mut allow = String::new();
    for (method, tree) in TREES.iter() {
        if tree.at(path).is_ok() {
            if !allow.is_empty() {
                allow.push_str(", ");
            }
            allow.push_str(method.as_str());
        }
    }
    Err(if allow.is_empty() { NotFound::Path } else { NotFound::Method { allow } })
}

type Tree = matchit::Router<&'static Route>;

/// The templates of each method, without the slash at their end; the methods in use most come first.
static TREES: LazyLock<Vec<(Method, Tree)>> = LazyLock::new(|| {
    let methods =
        [Method::POST, Method::GET, Method::PATCH, Method::DELETE, Method::PUT, Method::HEAD, Method::OPTIONS];
    methods
        .into_iter()
        .map(|method| {
            let mut tree = Tree::new();
            for route in ROUTES.iter().filter(|route| route.method == method) {
                #[expect(clippy::expect_used, reason = "the table is a constant; a test makes the trees")]
                tree.insert(unslashed(route.template), route).expect("templates of one method differ");
            }
            (method, tree)
        })
        .collect()
});

fn lookup<'p>(method: &Method, path: &'p str) -> Option<Found<'p>> {
    let (_, tree) = TREES.iter().find(|(of, _)| of == method)?;
    let found = tree.at(path).ok()?;
    let subject = match found.value.subject {
        Subject::None => None,
        _ => found.params.iter().next().map(|(_, value)| value),
    };
    Some(Found { route: found.value, subject })
}

fn unslashed(path: &str) -> &str {
    match path.strip_suffix('/') {
        None | Some("") => path,
        Some(short) => short,
    }
}
