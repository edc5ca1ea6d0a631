//! Whether a failed answer speaks of the replica, or of the model behind it.

use bytes::Bytes;
use http::StatusCode;

/// Words of answers that carry the failure of a model's provider or a tool server: Letta's own exception handlers
/// (`server/rest_api/app.py`) and `/generate`.
const OF_OTHERS: &[&[u8]] = &[b"\"llm_", b"\"mcp_", b"LLM provider", b"Background streaming requires Redis"];

/// True for a 502, 503 or 504 that tells of a replica out of order. `body`: the answer's, if it is whole already;
/// Letta's own error bodies are small.
pub fn is_replica_fault(status: StatusCode, body: Option<&Bytes>) -> bool {
    if !matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT) {
        return false;
    }
    body.is_none_or(|body| !OF_OTHERS.iter().any(|words| memchr::memmem::find(body, words).is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(status: u16, body: &'static str) -> bool {
        is_replica_fault(StatusCode::from_u16(status).unwrap(), Some(&Bytes::from_static(body.as_bytes())))
    }

    #[test]
    fn a_database_that_is_gone_is_the_replicas_fault() {
        assert!(fault(503, r#"{"detail":"The database is temporarily unavailable. Please try again later."}"#));
    }

    #[test]
    fn a_model_that_fails_is_not() {
        assert!(!fault(504, r#"{"error":{"type":"llm_timeout","message":"The LLM request timed out."}}"#));
        assert!(!fault(502, r#"{"error":{"type":"mcp_connection_error"}}"#));
        assert!(!fault(502, r#"{"detail":"LLM provider error: no"}"#));
        assert!(!fault(
            503,
            r#"{"detail":"INTERNAL_SERVER_ERROR: Background streaming requires Redis to be running."}"#
        ));
    }

    #[test]
    fn no_other_status_is() {
        for status in [400, 401, 404, 409, 422, 429, 500] {
            assert!(!fault(status, "{}"), "{status}");
        }
    }
}
