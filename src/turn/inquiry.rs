//! What the gateway itself asks of Letta about a turn: what became of its run, and to cancel it.
//!
//! Facts: `letta/server/rest_api/routers/v1/{runs,agents}.py`, `letta/schemas/enums.py` (`RunStatus`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;
use tokio::time::timeout;

use super::Dispatch;
use super::marks::Target;
use crate::auth::Parts;
use crate::auth::key::Key;
use crate::body::RequestBody;
use crate::letta::reply::Usage;
use crate::letta::routes;
use crate::listen::Peer;
use crate::step::Handle;
use crate::telemetry::Record;

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an answer at most.
const LONGEST: usize = 256 * 1024;

/// A run, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Run {
    pub id: Box<str>,
    pub agent_id: Option<Box<str>>,
    pub status: Status,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    Created,
    Running,
    Completed,
    Failed,
    Cancelled,
    #[serde(other)]
    Unknown,
}

impl Status {
    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// Asks Letta in the name of one turn.
pub(super) struct Inquiry<B> {
    pub below: Arc<B>,
    pub peer: Peer,
    pub key: Option<Arc<Key>>,
}

impl<B: Handle<Dispatch>> Inquiry<B> {
    /// The run `id`, if anybody knows it.
    pub(super) async fn run(&self, id: &str, record: &Record) -> Option<Run> {
        let body = self.ask(Method::GET, &format!("/v1/runs/{id}"), Bytes::new(), record).await?;
        serde_json::from_slice(&body).ok()
    }

    /// The runs of `target` that Letta takes for active, the newest first.
    pub(super) async fn active(&self, target: &Target, record: &Record) -> Option<Vec<Run>> {
        let of = match target {
            Target::Agent(id) => format!("agent_id={id}"),
            Target::Conversation(id) => format!("conversation_id={id}"),
        };
        let body = self.ask(Method::GET, &format!("/v1/runs/?{of}&active=true&limit=10"), Bytes::new(), record).await?;
        serde_json::from_slice(&body).ok()
    }

    /// What the run `id` has cost so far.
    pub(super) async fn usage(&self, id: &str, record: &Record) -> Option<Usage> {
        /// Letta counts steps elsewhere.
        #[derive(Deserialize)]
        struct Tokens {
            prompt_tokens: u64,
            completion_tokens: u64,
            total_tokens: u64,
        }
        #[derive(Deserialize)]
        struct Metrics {
            num_steps: Option<u64>,
        }
        let body = self.ask(Method::GET, &format!("/v1/runs/{id}/usage"), Bytes::new(), record).await?;
        let Tokens { prompt_tokens, completion_tokens, total_tokens } = serde_json::from_slice(&body).ok()?;
        let body = self.ask(Method::GET, &format!("/v1/runs/{id}/metrics"), Bytes::new(), record).await;
        let metrics: Option<Metrics> = body.and_then(|body| serde_json::from_slice(&body).ok());
        let step_count = metrics.and_then(|metrics| metrics.num_steps).unwrap_or(0);
        Some(Usage { prompt_tokens, completion_tokens, total_tokens, step_count })
    }

    /// Cancels that very run. True if Letta took it.
    pub(super) async fn cancel(&self, run: &Run, record: &Record) -> bool {
        let Some(agent) = &run.agent_id else { return false };
        let body = serde_json::json!({ "run_ids": [&run.id] }).to_string();
        let path = format!("/v1/agents/{agent}/messages/cancel");
        let answer = self.ask(Method::POST, &path, body.into(), record).await;
        answer.is_some_and(|answer| memchr::memmem::find(&answer, b"\"cancelled\"").is_some())
    }

    /// The body of a good answer.
    async fn ask(&self, method: Method, path: &str, body: Bytes, record: &Record) -> Option<Bytes> {
        let mut request = Box::new(http::Request::new(RequestBody::whole(body)));
        *request.uri_mut() = path.parse().ok()?;
        let bare = path.split('?').next().unwrap_or(path);
        let found = routes::find(&method, bare).ok()?;
        let (route, subject) = (found.route, found.subject.map(Box::from));
        if method == Method::POST {
            let json = HeaderValue::from_static("application/json");
            request.headers_mut().insert(http::header::CONTENT_TYPE, json);
        }
        *request.method_mut() = method;
        let parts = Parts { request, peer: self.peer, route, subject, key: self.key.clone() };
        let mut record = record.apart();
        let asked = async {
            let response = self.below.handle(Dispatch { parts }, &mut record).await.ok()?;
            if response.status() != StatusCode::OK {
                return None;
            }
            Some(Limited::new(response.into_body(), LONGEST).collect().await.ok()?.to_bytes())
        };
        timeout(PATIENCE, asked).await.ok()?
    }
}
