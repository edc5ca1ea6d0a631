//! What of a message's head belongs to one connection only (RFC 9110 §7.6.1) and ends where that connection ends: some
//! of its fields, and the memory it was read into.

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

/// Takes off what belongs to one connection only: the names `Connection` lists, then the known ones.
pub fn end_hop(headers: &mut HeaderMap) {
    // most heads have none
    if !headers.keys().any(is_hop_by_hop) {
        return;
    }
    let usual = |value: &HeaderValue| value.is_empty() || value.as_bytes().eq_ignore_ascii_case(b"keep-alive");
    if !headers.get_all(CONNECTION).iter().all(usual) {
        let listed: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            // framing and routing are no client's to remove
            .filter(|name| !matches!(name.as_str(), "host" | "content-length" | "content-type"))
            .collect();
        for name in listed {
            headers.remove(name);
        }
    }
    let chunked = headers.contains_key(TRANSFER_ENCODING);
    if chunked {
        // RFC 9112 §6.3: the transfer coding wins over a length beside it
        headers.remove(CONTENT_LENGTH);
    }
    remove_all(headers, is_hop_by_hop);
}

/// Removes what `is_out`, one after the other: it is seldom more than one name, and then nothing is collected.
pub fn remove_all(headers: &mut HeaderMap, is_out: impl Fn(&HeaderName) -> bool) {
    while let Some(name) = headers.keys().find(|name| is_out(name)).cloned() {
        headers.remove(name);
    }
}

/// Gives the values of `headers` memory of their own. hyper's are parts of the buffer they were read into, 8 KiB that
/// stay as long as one of them does: what is kept for long must not keep that.
pub fn leave_buffer(headers: &mut HeaderMap) {
    let mut own = BytesMut::with_capacity(headers.values().map(HeaderValue::len).sum());
    for value in headers.values_mut() {
        own.extend_from_slice(value.as_bytes());
        // what was a value is one
        if let Ok(mut copy) = HeaderValue::from_maybe_shared(own.split().freeze()) {
            copy.set_sensitive(value.is_sensitive());
            *value = copy;
        }
    }
}

/// The same for a target in origin form.
pub fn own_target(uri: &Uri) -> Uri {
    let copy = Bytes::copy_from_slice(uri.path_and_query().map_or("/", PathAndQuery::as_str).as_bytes());
    Uri::from_maybe_shared(copy).unwrap_or_else(|_| uri.clone())
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-authentication-info"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_a_head_does_not_keep_the_buffer_it_was_read_into() {
        let buffer = Bytes::from(b"/v1/agents/agent-1/messages?q=1 secret first second ".repeat(100));
        let part = |range| HeaderValue::from_maybe_shared(buffer.slice(range)).unwrap();
        let mut headers = HeaderMap::new();
        let mut secret = part(32..38);
        secret.set_sensitive(true);
        headers.insert("authorization", secret);
        headers.insert("x-two", part(39..44));
        headers.append("x-two", part(45..51));
        headers.insert("x-empty", part(0..0));
        let target = Uri::from_maybe_shared(buffer.slice(0..31)).unwrap();
        let before = headers.clone();

        leave_buffer(&mut headers);
        assert_eq!(headers, before);
        assert!(headers["authorization"].is_sensitive() && !headers["x-two"].is_sensitive());
        let kept = own_target(&target);
        assert_eq!(kept, "/v1/agents/agent-1/messages?q=1");

        assert!(!buffer.is_unique());
        drop((before, target));
        assert!(buffer.is_unique(), "a part of it is still held");
        drop((headers, kept));
    }
}
