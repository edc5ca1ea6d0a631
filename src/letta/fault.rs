//! Whether a failed answer speaks of the replica, or of what stands behind it.
//!
//! Letta answers 502, 503 and 504 for models, tool servers and requests that a healthy replica cannot serve, always as
//! JSON in shapes of its own (`server/rest_api/app.py`, `/generate`). Whoever writes a message may choose a model that
//! fails, so such an answer counts against nobody; what stands in front of Letta and cannot reach it writes none.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use memchr::memmem;

/// An answer that carries one of these is Letta's own, whatever it tells of: `detail` is in all of its exception
/// handlers, `error_type` in the errors of its streams, the types in those of models and tool servers. A replica whose
/// readiness is `degraded` stays so for the life of its process, though it is well again.
const LETTAS_OWN: &[&[u8]] = &[b"\"detail\"", b"\"error_type\"", b"\"llm_", b"\"mcp_", b"\"status\":\"degraded\""];

/// Letta's own too, but it tells of a replica that has no database.
const NO_DATABASE: &[u8] = b"{\"detail\":\"The database is temporarily unavailable";
/// What SQLAlchemy's `OperationalError` reads like, between these two: `(sqlite3.OperationalError) …`.
const DATABASE_ERROR: (&[u8], &[u8]) = (b"{\"detail\":\"(", b".OperationalError)");

/// True for a status whose answer's body is worth reading, for it may tell of the replica or of how it is asked.
pub fn is_to_be_judged(status: StatusCode) -> bool {
    status == StatusCode::UNAUTHORIZED || may_be_replica_fault(status)
}

fn may_be_replica_fault(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

/// All that Letta says to a wrong password, before it looks at anything else (`middleware/check_password.py`). A model
/// that refuses Letta's key is told of in other words.
const WRONG_PASSWORD: &[u8] = b"{\"detail\":\"Unauthorized\"}";

/// True if Letta refuses the password that the gateway sends. `opening`: the first bytes of the answer's body.
pub fn is_wrong_password(status: StatusCode, opening: Option<&[u8]>) -> bool {
    status == StatusCode::UNAUTHORIZED && opening.is_some_and(|body| body.trim_ascii() == WRONG_PASSWORD)
}

/// True for JSON, the only thing Letta writes of its failures.
pub fn is_json(headers: &HeaderMap) -> bool {
    const JSON: &[u8] = b"application/json";
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        let essence = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
        essence.trim_ascii().eq_ignore_ascii_case(JSON)
    })
}

/// True for a 502, 503 or 504 that tells of a replica out of order. `opening`: the first bytes of its body; None if
/// none has come yet, and then JSON gets the benefit of the doubt: the health checks see a replica that is really ill.
pub fn is_replica_fault(status: StatusCode, headers: &HeaderMap, opening: Option<&[u8]>) -> bool {
    if !may_be_replica_fault(status) {
        return false;
    }
    if !is_json(headers) {
        return true;
    }
    opening.is_some_and(|body| tells_of_the_database(body) || !is_lettas_own(body))
}

fn is_lettas_own(body: &[u8]) -> bool {
    LETTAS_OWN.iter().any(|mark| memmem::find(body, mark).is_some())
}

/// At the beginning only: further in, the words may be a model's.
fn tells_of_the_database(body: &[u8]) -> bool {
    let (from, to) = DATABASE_ERROR;
    let class = body.strip_prefix(from).and_then(|rest| rest.split_inclusive(|byte| *byte == b')').next());
    body.starts_with(NO_DATABASE) || class.is_some_and(|class| class.ends_with(to))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn judged(status: u16, content_type: &'static str, opening: Option<&str>) -> bool {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        is_replica_fault(StatusCode::from_u16(status).unwrap(), &headers, opening.map(str::as_bytes))
    }

    fn fault(status: u16, body: &str) -> bool {
        judged(status, "application/json", Some(body))
    }

    #[test]
    fn a_wrong_password_is_told_from_a_models_wrong_key() {
        let refused =
            |status, body: &str| is_wrong_password(StatusCode::from_u16(status).unwrap(), Some(body.as_bytes()));
        assert!(refused(401, r#"{"detail":"Unauthorized"}"#));
        assert!(!refused(401, r#"{"detail":"Unauthorized: the model's key"}"#));
        assert!(!refused(401, r#"{"error":{"type":"llm_authentication","message":"Unauthorized","detail":null}}"#));
        assert!(!refused(403, r#"{"detail":"Unauthorized"}"#) && !refused(401, ""));
        assert!(!is_wrong_password(StatusCode::UNAUTHORIZED, None));
    }

    #[test]
    fn a_database_that_is_gone_is_the_replicas_fault() {
        assert!(fault(503, r#"{"detail":"The database is temporarily unavailable. Please try again later."}"#));
        assert!(fault(503, r#"{"detail":"(sqlite3.OperationalError) database is locked\n[SQL: SELECT 1]"}"#));
        assert!(fault(503, r#"{"detail":"(sqlalchemy.dialects.postgresql.asyncpg.OperationalError) <class 'x'>"}"#));
    }

    #[test]
    fn a_model_that_fails_is_not() {
        assert!(!fault(504, r#"{"error":{"type":"llm_timeout","message":"The LLM request timed out."}}"#));
        assert!(!fault(502, r#"{"error":{"type":"mcp_connection_error"}}"#));
        assert!(!fault(502, r#"{"detail":"LLM provider error: no"}"#));
        assert!(!fault(502, r#"{"detail":"Failed to process LLM response: no"}"#));
        assert!(!fault(503, r#"{"detail":"INTERNAL_SERVER_ERROR: the provider is overloaded"}"#));
        assert!(!fault(
            503,
            r#"{"detail":"INTERNAL_SERVER_ERROR: Background streaming requires Redis to be running."}"#
        ));
    }

    #[test]
    fn a_model_that_speaks_of_databases_is_not() {
        assert!(!fault(502, r#"{"detail":"LLM provider error: The database is temporarily unavailable"}"#));
        assert!(!fault(502, r#"{"detail":"LLM provider error: (sqlite3.OperationalError) no"}"#));
        assert!(!fault(502, r#"{"detail":"(a model) writes (sqlite3.OperationalError)"}"#));
    }

    #[test]
    fn an_error_in_a_shape_of_lettas_is_not_though_nobody_knows_it() {
        assert!(!fault(502, r#"{"trace_id":"1","detail":"something new"}"#));
        assert!(!fault(502, "{\n  \"error_type\": \"internal_error\"\n}"));
        assert!(!fault(503, r#"{"version":"0.16.8","status":"degraded"}"#));
        assert!(!fault(504, r#"{"detail":"cut off in the mid"#));
    }

    #[test]
    fn what_is_not_lettas_is_the_replicas_fault() {
        assert!(judged(502, "text/html", Some("<html>502 Bad Gateway: \"detail\"</html>")));
        assert!(judged(503, "text/plain", None));
        assert!(fault(503, ""));
        assert!(fault(503, r#"{"message":"no healthy upstream"}"#));
        assert!(is_replica_fault(StatusCode::BAD_GATEWAY, &HeaderMap::new(), Some(b"")));
    }

    #[test]
    fn json_that_has_not_come_has_the_benefit_of_the_doubt() {
        assert!(!judged(503, "application/json; charset=utf-8", None));
    }

    #[test]
    fn no_other_status_is() {
        for status in [400, 401, 404, 409, 422, 429, 500] {
            assert!(!fault(status, ""), "{status}");
        }
    }
}
