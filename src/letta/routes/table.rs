//! The table of routes: method, template, what a key needs, and what differs from an ordinary request.
//!
//! It is the whole surface of Letta 0.16.8 (`letta/server/rest_api/routers/v1/`, in the order of its declarations; the
//! `/latest` twins are the same routes). Default deny: what is not here is not forwarded. Scopes: reading is `Read`;
//! sending or cancelling messages is `Message`; other writing is `Modify`; whatever makes a replica run a caller's code,
//! call a caller's address, spend the server's own credentials or touch the whole server is `Admin`. `watched` routes do so
//! only for what their body says, and are held to it there.

use http::Method;

use super::Pace::{self, Long, Ordinary};
use super::Scope::{self, Admin, Message, Modify, Open, Read};
use super::{Sends, Watched};

/// A line of the table.
pub(super) struct Row {
    pub(super) method: Method,
    pub(super) template: &'static str,
    pub(super) scope: Scope,
    pub(super) pace: Pace,
    pub(super) sends: Option<Sends>,
    pub(super) watched: Option<Watched>,
}

macro_rules! table {
    ($($method:ident $template:literal $scope:ident $(, $pace:ident)? $(, sends $sends:ident)? $(, watched $watched:ident)?;)*) => {
        pub(super) static TABLE: &[Row] = &[$(Row {
            method: Method::$method,
            template: $template,
            scope: $scope,
            pace: table!(pace $($pace)?),
            sends: table!(sends $($sends)?),
            watched: table!(watched $($watched)?),
        }),*];
    };
    (pace) => { Ordinary };
    (pace $pace:ident) => { $pace };
    (sends) => { None };
    (sends $sends:ident) => { Some(Sends::$sends) };
    (watched) => { None };
    (watched $watched:ident) => { Some(Watched::$watched) };
}

table! {
    // The server's own pages
    GET     "/"                                                                Admin;
    GET     "/docs"                                                            Admin;
    GET     "/docs/oauth2-redirect"                                            Admin;
    GET     "/redoc"                                                           Admin;
    GET     "/openapi.json"                                                    Admin;
    // Agents
    GET     "/v1/agents/"                                                      Read;
    GET     "/v1/agents/count"                                                 Read;
    GET     "/v1/agents/{agent_id}/export"                                     Read;
    POST    "/v1/agents/{agent_id}/export"                                     Read;
    POST    "/v1/agents/import"                                                Admin, Long;
    GET     "/v1/agents/{agent_id}/context"                                    Read;
    POST    "/v1/agents/"                                                      Modify, Ordinary, watched Addresses;
    PATCH   "/v1/agents/{agent_id}"                                            Modify, Ordinary, watched Addresses;
    GET     "/v1/agents/{agent_id}/tools"                                      Read;
    PATCH   "/v1/agents/{agent_id}/tools/attach/{tool_id}"                     Modify;
    PATCH   "/v1/agents/{agent_id}/tools/detach/{tool_id}"                     Modify;
    PATCH   "/v1/agents/{agent_id}/tools/approval/{tool_name}"                 Modify;
    POST    "/v1/agents/{agent_id}/tools/{tool_name}/run"                      Admin, Long;
    PATCH   "/v1/agents/{agent_id}/sources/attach/{source_id}"                 Modify, Long;
    PATCH   "/v1/agents/{agent_id}/folders/attach/{folder_id}"                 Modify, Long;
    PATCH   "/v1/agents/{agent_id}/sources/detach/{source_id}"                 Modify;
    PATCH   "/v1/agents/{agent_id}/folders/detach/{folder_id}"                 Modify;
    PATCH   "/v1/agents/{agent_id}/files/close-all"                            Modify;
    PATCH   "/v1/agents/{agent_id}/files/{file_id}/open"                       Modify;
    PATCH   "/v1/agents/{agent_id}/files/{file_id}/close"                      Modify;
    GET     "/v1/agents/{agent_id}"                                            Read;
    DELETE  "/v1/agents/{agent_id}"                                            Modify;
    GET     "/v1/agents/{agent_id}/sources"                                    Read;
    GET     "/v1/agents/{agent_id}/folders"                                    Read;
    GET     "/v1/agents/{agent_id}/files"                                      Read;
    GET     "/v1/agents/{agent_id}/core-memory"                                Read;
    GET     "/v1/agents/{agent_id}/core-memory/blocks/{block_label}"           Read;
    GET     "/v1/agents/{agent_id}/core-memory/blocks"                         Read;
    PATCH   "/v1/agents/{agent_id}/core-memory/blocks/{block_label}"           Modify;
    POST    "/v1/agents/{agent_id}/recompile"                                  Modify;
    POST    "/v1/agents/{agent_id}/system-prompt/recompile"                    Modify;
    PATCH   "/v1/agents/{agent_id}/core-memory/blocks/attach/{block_id}"       Modify;
    PATCH   "/v1/agents/{agent_id}/core-memory/blocks/detach/{block_id}"       Modify;
    PATCH   "/v1/agents/{agent_id}/archives/attach/{archive_id}"               Modify;
    PATCH   "/v1/agents/{agent_id}/archives/detach/{archive_id}"               Modify;
    PATCH   "/v1/agents/{agent_id}/identities/attach/{identity_id}"            Modify;
    PATCH   "/v1/agents/{agent_id}/identities/detach/{identity_id}"            Modify;
    GET     "/v1/agents/{agent_id}/archival-memory"                            Read;
    POST    "/v1/agents/{agent_id}/archival-memory"                            Modify;
    GET     "/v1/agents/{agent_id}/archival-memory/search"                     Read;
    DELETE  "/v1/agents/{agent_id}/archival-memory/{memory_id}"                Modify;
    GET     "/v1/agents/{agent_id}/messages"                                   Read;
    PATCH   "/v1/agents/{agent_id}/messages/{message_id}"                      Modify;
    POST    "/v1/agents/{agent_id}/messages"                                   Message, Long, sends Agent;
    POST    "/v1/agents/{agent_id}/messages/stream"                            Message, Long, sends AgentStream;
    POST    "/v1/agents/{agent_id}/messages/cancel"                            Message;
    POST    "/v1/agents/{agent_id}/generate"                                   Message, Long;
    POST    "/v1/agents/messages/search"                                       Read;
    POST    "/v1/agents/{agent_id}/messages/async"                             Message, Ordinary, watched Addresses;
    PATCH   "/v1/agents/{agent_id}/reset-messages"                             Modify;
    GET     "/v1/agents/{agent_id}/groups"                                     Read;
    POST    "/v1/agents/{agent_id}/messages/preview-raw-payload"               Read;
    POST    "/v1/agents/{agent_id}/summarize"                                  Modify, Long;
    POST    "/v1/agents/{agent_id}/messages/capture"                           Modify;
    // Conversations
    POST    "/v1/conversations/"                                               Modify;
    GET     "/v1/conversations/"                                               Read;
    GET     "/v1/conversations/{conversation_id}"                              Read;
    PATCH   "/v1/conversations/{conversation_id}"                              Modify;
    POST    "/v1/conversations/{conversation_id}/fork"                         Modify;
    DELETE  "/v1/conversations/{conversation_id}"                              Modify;
    GET     "/v1/conversations/{conversation_id}/messages"                     Read;
    POST    "/v1/conversations/{conversation_id}/messages"                     Message, Long, sends Conversation;
    POST    "/v1/conversations/{conversation_id}/messages/preview-raw-payload" Read;
    POST    "/v1/conversations/{conversation_id}/stream"                       Read, Long;
    POST    "/v1/conversations/{conversation_id}/cancel"                       Message;
    POST    "/v1/conversations/{conversation_id}/recompile"                    Modify;
    POST    "/v1/conversations/{conversation_id}/compact"                      Modify, Long;
    // Messages and batches
    GET     "/v1/messages/"                                                    Read;
    POST    "/v1/messages/search"                                              Read;
    POST    "/v1/messages/batches"                                             Message, Long, watched Addresses;
    GET     "/v1/messages/batches/{batch_id}"                                  Read;
    GET     "/v1/messages/batches"                                             Read;
    GET     "/v1/messages/batches/{batch_id}/messages"                         Read;
    PATCH   "/v1/messages/batches/{batch_id}/cancel"                           Message;
    GET     "/v1/messages/{message_id}"                                        Read;
    // OpenAI's dialect
    POST    "/v1/chat/completions"                                             Message, Long, sends ChatCompletions, watched User;
    // Voice: always 410
    POST    "/v1/voice-beta/{agent_id}/chat/completions"                       Message;
    // Runs
    GET     "/v1/runs/"                                                        Read;
    GET     "/v1/runs/active"                                                  Read;
    GET     "/v1/runs/{run_id}"                                                Read;
    GET     "/v1/runs/{run_id}/messages"                                       Read;
    GET     "/v1/runs/{run_id}/usage"                                          Read;
    GET     "/v1/runs/{run_id}/metrics"                                        Read;
    GET     "/v1/runs/{run_id}/steps"                                          Read;
    GET     "/v1/runs/{run_id}/trace"                                          Read;
    DELETE  "/v1/runs/{run_id}"                                                Modify;
    POST    "/v1/runs/{run_id}/stream"                                         Read, Long;
    // Steps
    GET     "/v1/steps/"                                                       Read;
    GET     "/v1/steps/{step_id}"                                              Read;
    GET     "/v1/steps/{step_id}/metrics"                                      Read;
    GET     "/v1/steps/{step_id}/trace"                                        Read;
    PATCH   "/v1/steps/{step_id}/feedback"                                     Modify;
    GET     "/v1/steps/{step_id}/messages"                                     Read;
    PATCH   "/v1/steps/{step_id}/transaction/{transaction_id}"                 Modify;
    // Jobs
    GET     "/v1/jobs/"                                                        Read;
    GET     "/v1/jobs/active"                                                  Read;
    GET     "/v1/jobs/{job_id}"                                                Read;
    PATCH   "/v1/jobs/{job_id}/cancel"                                         Modify;
    DELETE  "/v1/jobs/{job_id}"                                                Modify;
    // Groups
    GET     "/v1/groups/"                                                      Read;
    GET     "/v1/groups/count"                                                 Read;
    GET     "/v1/groups/{group_id}"                                            Read;
    POST    "/v1/groups/"                                                      Modify;
    PATCH   "/v1/groups/{group_id}"                                            Modify;
    DELETE  "/v1/groups/{group_id}"                                            Modify;
    PATCH   "/v1/groups/{group_id}/messages/{message_id}"                      Modify;
    GET     "/v1/groups/{group_id}/messages"                                   Read;
    PATCH   "/v1/groups/{group_id}/reset-messages"                             Modify;
    PATCH   "/v1/groups/{group_id}/blocks/attach/{block_id}"                   Modify;
    PATCH   "/v1/groups/{group_id}/blocks/detach/{block_id}"                   Modify;
    // Blocks
    GET     "/v1/blocks/"                                                      Read;
    GET     "/v1/blocks/count"                                                 Read;
    POST    "/v1/blocks/"                                                      Modify;
    PATCH   "/v1/blocks/{block_id}"                                            Modify;
    DELETE  "/v1/blocks/{block_id}"                                            Modify;
    GET     "/v1/blocks/{block_id}"                                            Read;
    GET     "/v1/blocks/{block_id}/agents"                                     Read;
    PATCH   "/v1/blocks/{block_id}/identities/attach/{identity_id}"            Modify;
    PATCH   "/v1/blocks/{block_id}/identities/detach/{identity_id}"            Modify;
    // Archives
    POST    "/v1/archives/"                                                    Modify, Ordinary, watched Addresses;
    GET     "/v1/archives/"                                                    Read;
    GET     "/v1/archives/{archive_id}"                                        Read;
    PATCH   "/v1/archives/{archive_id}"                                        Modify;
    DELETE  "/v1/archives/{archive_id}"                                        Modify;
    GET     "/v1/archives/{archive_id}/agents"                                 Read;
    POST    "/v1/archives/{archive_id}/passages"                               Modify;
    POST    "/v1/archives/{archive_id}/passages/batch"                         Modify, Long;
    DELETE  "/v1/archives/{archive_id}/passages/{passage_id}"                  Modify;
    // Passages
    POST    "/v1/passages/search"                                              Read;
    // Folders
    GET     "/v1/folders/count"                                                Read;
    GET     "/v1/folders/{folder_id}"                                          Read;
    GET     "/v1/folders/name/{folder_name}"                                   Read;
    GET     "/v1/folders/metadata"                                             Read;
    GET     "/v1/folders/"                                                     Read;
    POST    "/v1/folders/"                                                     Modify, Ordinary, watched Addresses;
    PATCH   "/v1/folders/{folder_id}"                                          Modify, Ordinary, watched Addresses;
    DELETE  "/v1/folders/{folder_id}"                                          Modify;
    POST    "/v1/folders/{folder_id}/upload"                                   Modify, Long;
    GET     "/v1/folders/{folder_id}/agents"                                   Read;
    GET     "/v1/folders/{folder_id}/passages"                                 Read;
    GET     "/v1/folders/{folder_id}/files"                                    Read;
    GET     "/v1/folders/{folder_id}/files/{file_id}"                          Read;
    DELETE  "/v1/folders/{folder_id}/{file_id}"                                Modify;
    // Sources: the old name of folders
    GET     "/v1/sources/count"                                                Read;
    GET     "/v1/sources/{source_id}"                                          Read;
    GET     "/v1/sources/name/{source_name}"                                   Read;
    GET     "/v1/sources/metadata"                                             Read;
    GET     "/v1/sources/"                                                     Read;
    POST    "/v1/sources/"                                                     Modify, Ordinary, watched Addresses;
    PATCH   "/v1/sources/{source_id}"                                          Modify, Ordinary, watched Addresses;
    DELETE  "/v1/sources/{source_id}"                                          Modify;
    POST    "/v1/sources/{source_id}/upload"                                   Modify, Long;
    GET     "/v1/sources/{source_id}/agents"                                   Read;
    GET     "/v1/sources/{source_id}/passages"                                 Read;
    GET     "/v1/sources/{source_id}/files"                                    Read;
    GET     "/v1/sources/{source_id}/files/{file_id}"                          Read;
    DELETE  "/v1/sources/{source_id}/{file_id}"                                Modify;
    // Tools, and the older MCP routes; those that write a tool write code that replicas run
    DELETE  "/v1/tools/{tool_id}"                                              Admin;
    GET     "/v1/tools/count"                                                  Read;
    GET     "/v1/tools/{tool_id}"                                              Read;
    GET     "/v1/tools/"                                                       Read;
    POST    "/v1/tools/search"                                                 Read;
    POST    "/v1/tools/"                                                       Admin;
    PUT     "/v1/tools/"                                                       Admin;
    PATCH   "/v1/tools/{tool_id}"                                              Admin;
    POST    "/v1/tools/add-base-tools"                                         Admin;
    POST    "/v1/tools/run"                                                    Admin, Long;
    GET     "/v1/tools/mcp/servers"                                            Admin;
    GET     "/v1/tools/mcp/servers/{mcp_server_name}/tools"                    Admin, Long;
    POST    "/v1/tools/mcp/servers/{mcp_server_name}/resync"                   Admin, Long;
    POST    "/v1/tools/mcp/servers/{mcp_server_name}/{mcp_tool_name}"          Admin;
    PUT     "/v1/tools/mcp/servers"                                            Admin, Long;
    PATCH   "/v1/tools/mcp/servers/{mcp_server_name}"                          Admin;
    DELETE  "/v1/tools/mcp/servers/{mcp_server_name}"                          Admin;
    POST    "/v1/tools/mcp/servers/test"                                       Admin, Long;
    POST    "/v1/tools/mcp/servers/connect"                                    Admin, Long;
    POST    "/v1/tools/generate-schema"                                        Admin;
    POST    "/v1/tools/mcp/servers/{mcp_server_name}/tools/{tool_name}/execute" Admin, Long;
    GET     "/v1/tools/mcp/oauth/callback"                                     Open;
    POST    "/v1/tools/generate-tool"                                          Admin, Long;
    // MCP servers
    POST    "/v1/mcp-servers/"                                                 Admin, Long;
    GET     "/v1/mcp-servers/"                                                 Admin;
    GET     "/v1/mcp-servers/{mcp_server_id}"                                  Admin;
    DELETE  "/v1/mcp-servers/{mcp_server_id}"                                  Admin;
    PATCH   "/v1/mcp-servers/{mcp_server_id}"                                  Admin;
    GET     "/v1/mcp-servers/{mcp_server_id}/tools"                            Admin;
    GET     "/v1/mcp-servers/{mcp_server_id}/tools/{tool_id}"                  Admin;
    POST    "/v1/mcp-servers/{mcp_server_id}/tools/{tool_id}/run"              Admin, Long;
    PATCH   "/v1/mcp-servers/{mcp_server_id}/refresh"                          Admin, Long;
    GET     "/v1/mcp-servers/connect/{mcp_server_id}"                          Admin, Long;
    // Identities
    GET     "/v1/identities/"                                                  Read;
    GET     "/v1/identities/count"                                             Read;
    GET     "/v1/identities/{identity_id}"                                     Read;
    POST    "/v1/identities/"                                                  Modify;
    PUT     "/v1/identities/"                                                  Modify;
    PATCH   "/v1/identities/{identity_id}"                                     Modify;
    PUT     "/v1/identities/{identity_id}/properties"                          Modify;
    DELETE  "/v1/identities/{identity_id}"                                     Modify;
    GET     "/v1/identities/{identity_id}/agents"                              Read;
    GET     "/v1/identities/{identity_id}/blocks"                              Read;
    // Model providers and their keys
    GET     "/v1/providers/"                                                   Admin;
    GET     "/v1/providers/{provider_id}"                                      Admin;
    POST    "/v1/providers/"                                                   Admin;
    PATCH   "/v1/providers/{provider_id}"                                      Admin;
    POST    "/v1/providers/check"                                              Admin;
    POST    "/v1/providers/{provider_id}/check"                                Admin;
    PATCH   "/v1/providers/{provider_id}/refresh"                              Admin, Long;
    DELETE  "/v1/providers/{provider_id}"                                      Admin;
    // Models
    GET     "/v1/models/"                                                      Read;
    GET     "/v1/models/embedding"                                             Read;
    // Embeddings
    GET     "/v1/embeddings/total_storage_size"                                Read;
    // Tags
    GET     "/v1/tags/"                                                        Read;
    // Telemetry
    GET     "/v1/telemetry/{step_id}"                                          Read;
    // Sandboxes: where replicas run code, and with which secrets
    POST    "/v1/sandbox-config/"                                              Admin;
    POST    "/v1/sandbox-config/e2b/default"                                   Admin;
    POST    "/v1/sandbox-config/local/default"                                 Admin;
    POST    "/v1/sandbox-config/local"                                         Admin;
    PATCH   "/v1/sandbox-config/{sandbox_config_id}"                           Admin;
    DELETE  "/v1/sandbox-config/{sandbox_config_id}"                           Admin;
    GET     "/v1/sandbox-config/"                                              Admin;
    POST    "/v1/sandbox-config/local/recreate-venv"                           Admin, Long;
    POST    "/v1/sandbox-config/{sandbox_config_id}/environment-variable"      Admin;
    PATCH   "/v1/sandbox-config/environment-variable/{env_var_id}"             Admin;
    DELETE  "/v1/sandbox-config/environment-variable/{env_var_id}"             Admin;
    GET     "/v1/sandbox-config/{sandbox_config_id}/environment-variable"      Admin;
    // Health
    GET     "/v1/health/"                                                      Open;
    GET     "/v1/ready/"                                                       Open;
    // Pass-through to Anthropic with the server's own key
    POST    "/v1/anthropic/v1/messages"                                        Admin, Long;
    GET     "/v1/anthropic/v1/{*endpoint}"                                     Admin, Long;
    POST    "/v1/anthropic/v1/{*endpoint}"                                     Admin, Long;
    PUT     "/v1/anthropic/v1/{*endpoint}"                                     Admin, Long;
    DELETE  "/v1/anthropic/v1/{*endpoint}"                                     Admin, Long;
    PATCH   "/v1/anthropic/v1/{*endpoint}"                                     Admin, Long;
    // Pass-through to Z.ai with the server's own key
    POST    "/v1/zai/v1/messages"                                              Admin, Long;
    GET     "/v1/zai/v1/{*endpoint}"                                           Admin, Long;
    POST    "/v1/zai/v1/{*endpoint}"                                           Admin, Long;
    PUT     "/v1/zai/v1/{*endpoint}"                                           Admin, Long;
    DELETE  "/v1/zai/v1/{*endpoint}"                                           Admin, Long;
    PATCH   "/v1/zai/v1/{*endpoint}"                                           Admin, Long;
    // Git over HTTP, to the memory repositories
    GET     "/v1/git/{*path}"                                                  Admin, Long;
    POST    "/v1/git/{*path}"                                                  Admin, Long;
    PUT     "/v1/git/{*path}"                                                  Admin, Long;
    PATCH   "/v1/git/{*path}"                                                  Admin, Long;
    DELETE  "/v1/git/{*path}"                                                  Admin, Long;
    HEAD    "/v1/git/{*path}"                                                  Admin, Long;
    OPTIONS "/v1/git/{*path}"                                                  Admin, Long;
    // Letta's own inner routes
    GET     "/v1/_internal_agents/count"                                       Admin;
    PATCH   "/v1/_internal_agents/{agent_id}/core-memory/blocks/{block_label}" Admin;
    GET     "/v1/_internal_blocks/"                                            Admin;
    POST    "/v1/_internal_blocks/"                                            Admin;
    DELETE  "/v1/_internal_blocks/{block_id}"                                  Admin;
    GET     "/v1/_internal_blocks/{block_id}/agents"                           Admin;
    GET     "/v1/_internal_runs/"                                              Admin;
    POST    "/v1/_internal_search/cache-warm"                                  Admin;
    POST    "/v1/_internal_templates/groups"                                   Admin;
    POST    "/v1/_internal_templates/agents"                                   Admin;
    POST    "/v1/_internal_templates/blocks"                                   Admin;
    POST    "/v1/_internal_templates/blocks/batch"                             Admin;
    GET     "/v1/_internal_templates/deployment/{deployment_id}"               Admin;
    DELETE  "/v1/_internal_templates/deployment/{deployment_id}"               Admin, Long;
    // Users and organisations: the whole server
    GET     "/v1/admin/users/"                                                 Admin;
    POST    "/v1/admin/users/"                                                 Admin;
    PUT     "/v1/admin/users/"                                                 Admin;
    DELETE  "/v1/admin/users/"                                                 Admin;
    GET     "/v1/admin/orgs/"                                                  Admin;
    POST    "/v1/admin/orgs/"                                                  Admin;
    DELETE  "/v1/admin/orgs/"                                                  Admin;
    PATCH   "/v1/admin/orgs/"                                                  Admin;
}
