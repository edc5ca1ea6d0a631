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
    let mut found: Option<Cow<'_, [u8]>> = None;
    // one pass over the few there are, not three look-ups
    for (name, value) in headers {
        let value = value.as_bytes();
        let key = if *name == AUTHORIZATION {
            match after(b"bearer", value) {
                Some(key) => Some(Cow::Borrowed(key)),
                None if git => after(b"basic", value).and_then(password).map(Cow::Owned),
                None => None,
            }
        } else if *name == X_API_KEY {
            Some(Cow::Borrowed(value.trim_ascii()))
        } else if *name == X_BARE_PASSWORD {
            after(b"password", value).map(Cow::Borrowed)
        } else {
            None
        };
        let Some(key) = key.filter(|key| !key.is_empty()) else { continue };
        // which of two keys counts would be a guess, and a guess is how one walks around the other's limits
        if found.as_ref().is_some_and(|found| *found != key) {
            return Err(Error::KeyConflict);
        }
        found = Some(key);
    }
    found.ok_or(Error::KeyMissing)
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
