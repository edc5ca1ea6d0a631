//! Conflicts (409) of Letta's that pass by themselves, and are waited out instead of told.
//!
//! Facts: `letta/server/rest_api/app.py`; both official clients send a message again after any 409, blindly.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;

/// How long a busy conversation is left alone between two questions.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(100);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A longer `Retry-After` of the database's is the client's to wait.
const LONGEST_DATABASE_WAIT: Duration = Duration::from_secs(10);

/// What a conflict means. The message was not executed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Conflict {
    /// Another run holds the conversation.
    Busy { run: Option<Box<str>> },
    /// Two transactions met.
    Database { pause: Duration },
}

/// The conflict of an answer, if waiting helps; all others (an approval that is waited for, …) are the client's.
pub(super) fn read(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Option<Conflict> {
    #[derive(Deserialize)]
    struct Answer {
        detail: String,
        run_id: Option<Box<str>>,
    }
    if status != StatusCode::CONFLICT {
        return None;
    }
    // the detail of a pending approval is an object
    let answer: Answer = serde_json::from_slice(body).ok()?;
    if answer.detail.contains("is currently being processed for this conversation") {
        return Some(Conflict::Busy { run: answer.run_id });
    }
    let pause: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    let pause = Duration::from_secs(pause);
    (pause <= LONGEST_DATABASE_WAIT).then_some(Conflict::Database { pause })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conflict(retry_after: Option<&str>, body: &str) -> Option<Conflict> {
        let headers = HeaderMap::from_iter(retry_after.map(|value| (RETRY_AFTER, value.parse().unwrap())));
        read(StatusCode::CONFLICT, &headers, body.as_bytes())
    }

    #[test]
    fn a_busy_conversation_names_the_run_that_holds_it() {
        let body = r#"{"detail":"CONFLICT: Cannot send a new message: Another request (run_id=run-1) is currently being processed for this conversation. Please wait for it to complete.","run_id":"run-1"}"#;
        assert_eq!(conflict(None, body), Some(Conflict::Busy { run: Some("run-1".into()) }));
        assert_eq!(read(StatusCode::OK, &HeaderMap::new(), body.as_bytes()), None);
    }

    #[test]
    fn a_database_that_asks_for_a_second_gets_it() {
        let body = r#"{"detail":"CONFLICT: block with id block-1 was updated by another transaction"}"#;
        assert_eq!(conflict(Some("1"), body), Some(Conflict::Database { pause: Duration::from_secs(1) }));
        assert_eq!(conflict(Some("3600"), body), None);
        assert_eq!(conflict(None, body), None, "nobody says that waiting helps");
    }

    #[test]
    fn an_approval_that_is_waited_for_is_the_clients() {
        let body = r#"{"detail":{"code":"PENDING_APPROVAL","message":"CONFLICT: is currently being processed for this conversation","pending_request_id":"message-1"}}"#;
        assert_eq!(conflict(Some("1"), body), None);
    }
}
