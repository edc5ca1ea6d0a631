//! The request headers Letta takes from whoever sends them: who is asking, for which organisation, at whose cost.
//!
//! A client of the gateway may set none of them; the gateway sets those that are needed in its own name.

use http::HeaderName;

/// Whether a client's header of this name is forwarded. Hop-by-hop headers (RFC 9110 §7.6.1) are another matter.
///
/// `_` and `-` count as the same, as somebody on the way may take one for the other. Refused are:
/// - credentials: `authorization`, `x-bare-password` (`middleware/check_password.py`), `x-api-key`, `anthropic-api-key`
///   (the pass-through to Anthropic takes them for a provider's key), `proxy-authorization`;
/// - who asks: `user_id` (`dependencies.py`: picks the actor, and an unknown one is the default user),
///   `x-organization-id` (also forwarded to the git server), `x-letta-agent-id` (pass-through to Anthropic: whose memory);
/// - what the replica logs as fact: `x-agent-id`, `x-run-id`, `run-id`, `x-template-id`, `x-base-template-id`,
///   `x-api-request-log-id` (stored with each step);
/// - what it does otherwise for them: `x-experimental-*`, `x-billing-*` (`dependencies.py`);
/// - where the request came from: `forwarded`, `x-forwarded-*` (uvicorn trusts them from a proxy), `x-real-ip`.
pub fn client_may_set(name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    match name {
        [b'x', b'-' | b'_', rest @ ..] => !refused_after_x(rest),
        [b'a', ..] => !same(name, b"authorization") && !same(name, b"anthropic-api-key"),
        [b'u', ..] => !same(name, b"user-id"),
        [b'p', ..] => !same(name, b"proxy-authorization"),
        [b'f', ..] => !same(name, b"forwarded"),
        [b'r', ..] => !same(name, b"run-id"),
        _ => true,
    }
}

/// `rest` of a name that begins with `x-`.
fn refused_after_x(rest: &[u8]) -> bool {
    let is = |name| same(rest, name);
    let begins = |start: &[u8]| rest.get(..start.len()).is_some_and(|beginning| same(beginning, start));
    match rest.first() {
        Some(b'a') => is(b"api-key") || is(b"agent-id") || is(b"api-request-log-id"),
        Some(b'b') => is(b"bare-password") || is(b"base-template-id") || begins(b"billing-"),
        Some(b'e') => begins(b"experimental-"),
        Some(b'f') => begins(b"forwarded-"),
        Some(b'l') => is(b"letta-agent-id"),
        Some(b'o') => is(b"organization-id"),
        Some(b'r') => is(b"run-id") || is(b"real-ip"),
        Some(b't') => is(b"template-id"),
        Some(b'u') => is(b"user-id"),
        _ => false,
    }
}

/// Names are in lower case by now (`HeaderName`).
fn same(name: &[u8], other: &[u8]) -> bool {
    name.len() == other.len()
        && name.iter().zip(other).all(|(one, other)| one == other || (*one, *other) == (b'_', b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(name: &str) -> bool {
        client_may_set(&name.parse().unwrap())
    }

    #[test]
    fn a_client_chooses_no_user_and_brings_no_credentials_to_letta() {
        let refused = [
            "Authorization",
            "X-BARE-PASSWORD",
            "X-API-Key",
            "anthropic-api-key",
            "proxy-authorization",
            "user_id",
            "User-Id",
            "USER_ID",
            "x-user-id",
            "x_user_id",
            "X-Organization-Id",
            "x_organization_id",
            "X-Agent-Id",
            "X-Letta-Agent-Id",
            "x-run-id",
            "run-id",
            "run_id",
            "x-template-id",
            "x-base-template-id",
            "x-billing-plan",
            "x_billing_cost_source",
            "x-experimental-message-async",
            "x-experimental-letta-v1-agent",
            "forwarded",
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-host",
            "x_forwarded_for",
            "x-real-ip",
            "x-api-request-log-id",
            "x-bare_password",
        ];
        for name in refused {
            assert!(!may(name), "{name}");
        }
    }

    #[test]
    fn what_letta_and_its_clients_need_is_forwarded() {
        let forwarded = [
            "accept",
            "accept-encoding",
            "user-agent",
            "content-type",
            "content-length",
            "cookie",
            "x-project",
            "x-project-id",
            "x-letta-source",
            "x-stainless-package-version",
            "x-stainless-retry-count",
            "traceparent",
            "x-request-id",
            "x-override-embedding-model",
            "range",
            "from",
            "pragma",
            "x-",
            "x",
            "user",
            "x-forwarded",
            "anthropic-version",
            "anthropic-beta",
            "x-a",
            "if-none-match",
        ];
        for name in forwarded {
            assert!(may(name), "{name}");
        }
    }
}
