//! What of the agents each route touches, for a key that reaches some of them only.
//!
//! Default deny: a route that is not written down here is closed to such a key. Facts: the routers of Letta 0.16.8. What
//! is shared between agents (blocks, archives, folders, identities, groups) is closed, and so is what would lend it to an
//! agent; an agent's own view of them (`/v1/agents/{agent_id}/core-memory/…`) is open.

use http::Method;

use super::{Route, Scope};

/// What a route touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Nothing of any agent's.
    Nothing,
    /// The agent in its path.
    Agent,
    /// What belongs to an agent, in its path.
    Owned(Thing),
    /// The conversation in its path; `default` is that of the agent which is named there.
    Conversation(Place),
    /// The agents that its query and body name.
    Named,
    /// Many agents' things, each of which says whose it is.
    List(List),
    /// More than can be told apart; the text goes on after "a key that is limited to some agents cannot be used here: ".
    Closed(&'static str),
}

/// What belongs to one agent for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Thing {
    Conversation,
    Run,
    Step,
    Message,
}

/// Where a route reads the agent of `default` from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It takes no `default`.
    Nowhere,
    Query,
    Body,
}

/// A list and how it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct List {
    /// The field that says whose an item is.
    pub owner: &'static str,
    /// It takes `agent_id`.
    pub by_agent: bool,
    /// Items a page where the request does not say; None: it has no pages.
    pub page: Option<usize>,
}

const WHOLE_SERVER: &str = "it touches the whole server";
const ALL_AGENTS: &str = "it looks at all agents at once, and its answer does not say whose each part is";
const SHARED: &str = "what it touches may be shared with other agents";
const LENT: &str = "it would lend an agent what may be another one's";
const UNCHECKED: &str = "Letta does not look whether this belongs to the agent";
const NEW_AGENT: &str = "it makes an agent";
const NO_OWNER: &str = "it belongs to no one agent";

/// What `route` touches.
pub fn reach(route: &Route) -> Reach {
    match (route.scope, route.template.strip_prefix("/v1/").unwrap_or_default()) {
        (Scope::Open, _) => Reach::Nothing,
        (Scope::Admin, _) => Reach::Closed(WHOLE_SERVER),
        (Scope::Read, "models/" | "models/embedding") => Reach::Nothing,
        (Scope::Read, "tools/" | "tools/count" | "tools/{tool_id}" | "tools/search") => Reach::Nothing,
        (_, path) => of_agents(&route.method, path),
    }
}

fn of_agents(method: &Method, path: &str) -> Reach {
    let reads = *method == Method::GET;
    if let Some(below) = path.strip_prefix("agents/{agent_id}") {
        return below_an_agent(below);
    }
    match path {
        "agents/" if reads => Reach::List(List { owner: "id", by_agent: false, page: Some(50) }),
        "agents/" => Reach::Closed(NEW_AGENT),
        "voice-beta/{agent_id}/chat/completions" => Reach::Agent,
        "chat/completions" | "messages/batches" if !reads => Reach::Named,
        "conversations/" if reads => Reach::List(List { owner: "agent_id", by_agent: true, page: Some(50) }),
        "conversations/" => Reach::Named,
        "conversations/{conversation_id}" => Reach::Conversation(Place::Nowhere),
        "conversations/{conversation_id}/messages" if reads => Reach::Conversation(Place::Query),
        "conversations/{conversation_id}/fork" | "conversations/{conversation_id}/cancel" => {
            Reach::Conversation(Place::Query)
        }
        "conversations/{conversation_id}/messages"
        | "conversations/{conversation_id}/messages/preview-raw-payload"
        | "conversations/{conversation_id}/stream"
        | "conversations/{conversation_id}/recompile"
        | "conversations/{conversation_id}/compact" => Reach::Conversation(Place::Body),
        "messages/{message_id}" => Reach::Owned(Thing::Message),
        "runs/" => Reach::List(List { owner: "agent_id", by_agent: true, page: Some(100) }),
        "runs/active" => Reach::List(List { owner: "agent_id", by_agent: true, page: None }),
        "runs/{run_id}"
        | "runs/{run_id}/messages"
        | "runs/{run_id}/usage"
        | "runs/{run_id}/metrics"
        | "runs/{run_id}/steps"
        | "runs/{run_id}/trace"
        | "runs/{run_id}/stream" => Reach::Owned(Thing::Run),
        "steps/" => Reach::List(List { owner: "agent_id", by_agent: true, page: Some(50) }),
        "steps/{step_id}"
        | "steps/{step_id}/metrics"
        | "steps/{step_id}/trace"
        | "steps/{step_id}/feedback"
        | "steps/{step_id}/messages"
        | "steps/{step_id}/transaction/{transaction_id}"
        | "telemetry/{step_id}" => Reach::Owned(Thing::Step),
        _ if path.starts_with("jobs/") || path.starts_with("messages/batches") => Reach::Closed(NO_OWNER),
        _ if ["blocks/", "archives/", "folders/", "sources/", "identities/", "groups/"]
            .iter()
            .any(|shared| path.starts_with(shared)) =>
        {
            Reach::Closed(SHARED)
        }
        _ => Reach::Closed(ALL_AGENTS),
    }
}

fn below_an_agent(path: &str) -> Reach {
    match path {
        ""
        | "/export"
        | "/context"
        | "/tools"
        | "/tools/detach/{tool_id}"
        | "/tools/approval/{tool_name}"
        | "/sources"
        | "/sources/detach/{source_id}"
        | "/folders"
        | "/folders/detach/{folder_id}"
        | "/files"
        | "/files/close-all"
        | "/files/{file_id}/close"
        | "/core-memory"
        | "/core-memory/blocks"
        | "/core-memory/blocks/{block_label}"
        | "/core-memory/blocks/detach/{block_id}"
        | "/recompile"
        | "/system-prompt/recompile"
        | "/archives/detach/{archive_id}"
        | "/identities/detach/{identity_id}"
        | "/archival-memory"
        | "/archival-memory/search"
        | "/messages"
        | "/messages/stream"
        | "/messages/async"
        | "/messages/cancel"
        | "/messages/preview-raw-payload"
        | "/messages/capture"
        | "/generate"
        | "/reset-messages"
        | "/summarize" => Reach::Agent,
        "/groups" => Reach::Closed(SHARED),
        // a passage, a file, a message of any agent's is taken for this one's
        "/archival-memory/{memory_id}" | "/files/{file_id}/open" | "/messages/{message_id}" => Reach::Closed(UNCHECKED),
        _ => Reach::Closed(LENT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::letta::routes::ROUTES;

    fn of(method: &str, template: &str) -> Reach {
        reach(ROUTES.iter().find(|route| route.method == method && route.template == template).unwrap())
    }

    #[test]
    fn what_names_an_agent_in_its_path_is_checked_for_it_or_closed() {
        for route in ROUTES.iter().filter(|route| route.template.contains("{agent_id}")) {
            assert!(matches!(reach(route), Reach::Agent | Reach::Closed(_)), "{} {}", route.method, route.template);
        }
        for route in ROUTES.iter().filter(|route| route.template.contains("attach/")) {
            let closed = route.template.contains("detach/") || matches!(reach(route), Reach::Closed(_));
            assert!(closed, "{} {}", route.method, route.template);
        }
    }

    #[test]
    fn nothing_is_open_that_is_not_written_down() {
        let open = ROUTES.iter().filter(|route| reach(route) == Reach::Nothing);
        let open: Vec<_> = open.map(|route| (route.method.as_str(), route.template)).collect();
        assert_eq!(
            open,
            [
                ("GET", "/v1/tools/count"),
                ("GET", "/v1/tools/{tool_id}"),
                ("GET", "/v1/tools/"),
                ("POST", "/v1/tools/search"),
                ("GET", "/v1/tools/mcp/oauth/callback"),
                ("GET", "/v1/models/"),
                ("GET", "/v1/models/embedding"),
                ("GET", "/v1/health/"),
                ("GET", "/v1/ready/"),
            ]
        );
        for route in ROUTES.iter().filter(|route| route.scope == Scope::Admin) {
            assert_eq!(reach(route), Reach::Closed(WHOLE_SERVER), "{}", route.template);
        }
    }

    #[test]
    fn searches_counts_and_what_is_shared_are_closed() {
        for (method, template) in [
            ("GET", "/v1/agents/count"),
            ("POST", "/v1/agents/messages/search"),
            ("POST", "/v1/messages/search"),
            ("GET", "/v1/messages/"),
            ("POST", "/v1/passages/search"),
            ("GET", "/v1/tags/"),
            ("GET", "/v1/blocks/"),
            ("PATCH", "/v1/blocks/{block_id}"),
            ("GET", "/v1/archives/{archive_id}"),
            ("DELETE", "/v1/agents/{agent_id}/archival-memory/{memory_id}"),
            ("GET", "/v1/jobs/"),
            ("GET", "/v1/messages/batches"),
            ("PATCH", "/v1/messages/batches/{batch_id}/cancel"),
            ("GET", "/v1/embeddings/total_storage_size"),
        ] {
            assert!(matches!(of(method, template), Reach::Closed(_)), "{method} {template}");
        }
        assert_eq!(of("POST", "/v1/messages/batches"), Reach::Named);
        assert_eq!(of("GET", "/v1/telemetry/{step_id}"), Reach::Owned(Thing::Step));
    }
}
