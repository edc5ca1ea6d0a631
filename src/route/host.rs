//! Which host a request is for: exactly one, well formed, and the same wherever it is named (RFC 9112 §3.2,
//! RFC 9113 §8.3.1).

use http::header::HOST;
use http::uri::{Scheme, Uri};
use http::{HeaderMap, HeaderValue, Version};

use crate::error::Error;

/// Checks Host against the target's authority. Gives the Host header to add where only the target names the host.
pub(super) fn check(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<Option<HeaderValue>, Error> {
    if uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
        return Err(Error::BadTarget("the target's scheme is neither http nor https"));
    }
    let authority = uri.authority().map(|authority| authority.as_str());
    if authority.is_some_and(|authority| !is_host(authority.as_bytes())) {
        return Err(Error::BadHost("the target's host is not valid"));
    }
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Error::BadHost("more than one Host header"));
    }
    let Some(host) = host else {
        return match (authority, version) {
            (_, Version::HTTP_11) => Err(Error::BadHost("no Host header")),
            // HTTP/2 names the host in `:authority`
            (Some(authority), _) => {
                HeaderValue::from_str(authority).map(Some).map_err(|_| Error::BadHost("the target's host is not valid"))
            }
            // HTTP/1.0 need not name one, but Letta is asked in HTTP/1.1 and refuses a request without
            (None, Version::HTTP_09 | Version::HTTP_10) => Ok(Some(HeaderValue::from_static("letta"))),
            (None, _) => Err(Error::BadHost("neither `:authority` nor Host")),
        };
    };
    if !is_host(host.as_bytes()) {
        return Err(Error::BadHost("the Host header is empty or not valid"));
    }
    if let Some(authority) = authority {
        let port = if uri.scheme() == Some(&Scheme::HTTPS) { b":443".as_slice() } else { b":80" };
        let [one, other] = [authority.as_bytes(), host.as_bytes()].map(|host| host.strip_suffix(port).unwrap_or(host));
        if !one.eq_ignore_ascii_case(other) {
            return Err(Error::BadHost("the Host header and the target name different hosts"));
        }
    }
    Ok(None)
}

/// `host[:port]`: a name, an IPv4 address or a bracketed IPv6 address; no user, no percent-encoding.
fn is_host(host: &[u8]) -> bool {
    let (name, port) = match host.strip_prefix(b"[") {
        Some(rest) => {
            let Some(end) = memchr::memchr(b']', rest) else { return false };
            let (address, after) = rest.split_at(end);
            if !address.iter().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.')) {
                return false;
            }
            (address, after.strip_prefix(b"]").unwrap_or_default())
        }
        None => {
            let end = memchr::memchr(b':', host).unwrap_or(host.len());
            let (name, port) = host.split_at(end);
            if !name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')) {
                return false;
            }
            (name, port)
        }
    };
    let port_is_one = match port {
        [] => true,
        [b':', digits @ ..] => matches!(digits.len(), 1..=5) && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    matches!(name.len(), 1..=255) && port_is_one
}
