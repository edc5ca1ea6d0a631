//! What the gateway itself asks of Letta about a turn: what became of its run, and to cancel it.
//!
//! Facts: `letta/server/rest_api/routers/v1/{runs,agents}.py`, `letta/schemas/enums.py` (`RunStatus`).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::Dispatch;
use super::marks::Target;
use crate::auth::Parts;
use crate::auth::key::Key;
use crate::body::RequestBody;
use crate::letta::reply::Usage;
use crate::letta::routes;
use crate::step::Handle;
use crate::telemetry::{Record, Timestamp};

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How far the clocks of Letta, Redis and the gateway may be apart.
const CLOCKS_APART: Duration = Duration::from_secs(5);
/// Characters of a time down to its second.
const SECOND: usize = "2026-01-01T00:00:00".len();
/// Bytes of an answer at most.
const LONGEST: usize = 256 * 1024;

/// A run, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Run {
    pub id: Box<str>,
    pub agent_id: Option<Box<str>>,
    pub status: Status,
    /// ISO 8601, UTC.
    #[serde(default)]
    created_at: Option<Box<str>>,
}

impl Run {
    /// To the second, which is all that two clocks can be held to.
    fn is_younger_than(&self, since: &str) -> bool {
        self.created_at.as_deref().and_then(|at| at.get(..SECOND)) >= since.get(..SECOND)
    }
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
    pub key: Option<Arc<Key>>,
}

impl<B: Handle<Dispatch>> Inquiry<B> {
    /// The run `id`; none, if Letta knows none. An error: Letta could not be asked.
    pub(super) async fn run(&self, id: &str, record: &Record) -> Result<Option<Run>, ()> {
        match self.ask(Method::GET, &format!("/v1/runs/{id}"), Bytes::new(), record).await {
            Some((StatusCode::OK, body)) => serde_json::from_slice(&body).map(Some).map_err(drop),
            Some((StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY, _)) => Ok(None),
            _ => Err(()),
        }
    }

    /// The runs of `target` that Letta takes for active and that began at `since` or later, the newest first. `None`:
    /// Letta could not be asked.
    pub(super) async fn active(&self, target: &Target, since: SystemTime, record: &Record) -> Option<Vec<Run>> {
        let of = match target {
            Target::Agent(id) => format!("agent_id={id}"),
            Target::Conversation(id) => format!("conversation_id={id}"),
        };
        let target = format!("/v1/runs/?{of}&active=true&limit=10");
        let (status, body) = self.ask(Method::GET, &target, Bytes::new(), record).await?;
        if status != StatusCode::OK {
            return None;
        }
        let mut runs: Vec<Run> = serde_json::from_slice(&body).ok()?;
        let mut since_text = Timestamp::new();
        let since = since_text.format(since.checked_sub(CLOCKS_APART).unwrap_or(since));
        runs.retain(|run| run.is_younger_than(since));
        Some(runs)
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
        let usage = self.ask(Method::GET, &format!("/v1/runs/{id}/usage"), Bytes::new(), record).await;
        let Tokens { prompt_tokens, completion_tokens, total_tokens } = told(usage)?;
        let metrics = self.ask(Method::GET, &format!("/v1/runs/{id}/metrics"), Bytes::new(), record).await;
        let metrics: Option<Metrics> = told(metrics);
        let step_count = metrics.and_then(|metrics| metrics.num_steps).unwrap_or(0);
        Some(Usage { prompt_tokens, completion_tokens, total_tokens, step_count })
    }

    /// Cancels that very run. True if Letta took it.
    pub(super) async fn cancel(&self, run: &Run, record: &Record) -> bool {
        let Some(agent) = &run.agent_id else { return false };
        let body = serde_json::json!({ "run_ids": [&run.id] }).to_string();
        let path = format!("/v1/agents/{agent}/messages/cancel");
        let answer = self.ask(Method::POST, &path, body.into(), record).await;
        answer.is_some_and(|(status, answer)| {
            status == StatusCode::OK && memchr::memmem::find(&answer, b"\"cancelled\"").is_some()
        })
    }

    /// Status and body of an answer.
    async fn ask(&self, method: Method, path: &str, body: Bytes, record: &Record) -> Option<(StatusCode, Bytes)> {
        let mut request = Box::new(http::Request::new(RequestBody::whole(body)));
        *request.uri_mut() = path.parse().ok()?;
        let bare = path.split('?').next().unwrap_or(path);
        let found = routes::find(&method, bare).ok()?;
        let (route, subject) = (found.route, found.subject.map(Arc::from));
        if method == Method::POST {
            let json = HeaderValue::from_static("application/json");
            request.headers_mut().insert(http::header::CONTENT_TYPE, json);
        }
        *request.method_mut() = method;
        let parts = Box::new(Parts { request, route, subject, key: self.key.clone() });
        let mut record = record.apart();
        let asked = async {
            let response = self.below.handle(Dispatch { parts }, &mut record).await.ok()?;
            let status = response.status();
            Some((status, Limited::new(response.into_body(), LONGEST).collect().await.ok()?.to_bytes()))
        };
        timeout(PATIENCE, asked).await.ok()?
    }
}

/// What a good answer tells.
fn told<T: DeserializeOwned>(answer: Option<(StatusCode, Bytes)>) -> Option<T> {
    let (_, body) = answer.filter(|(status, _)| *status == StatusCode::OK)?;
    serde_json::from_slice(&body).ok()
}
