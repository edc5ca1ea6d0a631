//! The fields of a message's head that belong to one connection only and end where that ends (RFC 9110 §7.6.1).

use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue};

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
