//! Where a request may carry its key: `Authorization: Bearer`, `X-API-Key`, the `X-BARE-PASSWORD: password …` of older
//! Letta clients, and, for git alone, the Basic password of the user `letta`.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};

use crate::error::Error;

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const X_BARE_PASSWORD: HeaderName = HeaderName::from_static("x-bare-password");

/// The one key text of a request. `git`: the request is one of a git client's.
pub(super) fn key_text(headers: &HeaderMap, git: bool) -> Result<Cow<'_, [u8]>, Error> {
    let authorization = headers.get_all(AUTHORIZATION).iter().filter_map(|value| {
        let value = value.as_bytes();
        match after(b"bearer", value) {
            Some(key) => Some(Cow::Borrowed(key)),
            None if git => after(b"basic", value).and_then(password).map(Cow::Owned),
            None => None,
        }
    });
    let api_key = headers.get_all(X_API_KEY).iter().map(|value| Cow::Borrowed(value.as_bytes().trim_ascii()));
    let bare = headers.get_all(X_BARE_PASSWORD).iter();
    let bare = bare.filter_map(|value| after(b"password", value.as_bytes())).map(Cow::Borrowed);

    let mut keys = authorization.chain(api_key).chain(bare).filter(|key| !key.is_empty());
    let key = keys.next().ok_or(Error::KeyMissing)?;
    // which of two keys counts would be a guess, and a guess is how one walks around the other's limits
    if keys.any(|other| other != key) {
        return Err(Error::KeyConflict);
    }
    Ok(key)
}

/// What follows the word `scheme` (in lower case here, in any case there) and some space.
fn after<'v>(scheme: &[u8], value: &'v [u8]) -> Option<&'v [u8]> {
    let (word, rest) = value.split_at_checked(scheme.len())?;
    (word.eq_ignore_ascii_case(scheme) && rest.first() == Some(&b' ')).then(|| rest.trim_ascii())
}

/// The password of the user `letta` (RFC 7617 §2).
fn password(encoded: &[u8]) -> Option<Vec<u8>> {
    let pair = STANDARD.decode(encoded).ok()?;
    pair.strip_prefix(b"letta:").map(<[u8]>::to_vec)
}
