//! A request's path, read once: checked byte by byte, brought to Letta's own form, met with a route.
//!
//! Promises that the string which met the route is the string that is forwarded, and that nobody behind the gateway can
//! read it in another way: Letta decodes a path once before it matches, so what decoding could turn into a separator or
//! a dot segment is refused, and what it could turn into a letter of a route is decoded here first.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use http::Method;

use crate::error::Error;
use crate::letta::LONGEST_ID;
use crate::letta::routes::{Found, NotFound, Route, Subject, find};

/// A path that met a route.
#[derive(Debug)]
pub(super) struct Target<'p> {
    pub(super) route: &'static Route,
    /// In Letta's own form; borrowed if the client's was that already.
    pub(super) path: Cow<'p, str>,
    pub(super) subject: Option<Arc<str>>,
}

/// The route of `path` under whichever of its names.
pub(super) fn read<'p>(method: &Method, path: &'p str) -> Result<Target<'p>, Error> {
    let path = decoded(path)?;
    let (path, route, subject) = if path.starts_with("/v1/") {
        let Found { route, subject } = find(method, &path).map_err(refusal)?;
        let subject = subject.map(Arc::from);
        (path, route, subject)
    } else {
        match find(method, &path) {
            // one of the few outside /v1, e.g. /docs
            Ok(Found { route, .. }) => (path, route, None),
            Err(NotFound::Path) => {
                let path = under_v1(&path);
                let Found { route, subject } = find(method, &path).map_err(refusal)?;
                let subject = subject.map(Arc::from);
                (Cow::Owned(path), route, subject)
            }
            Err(method) => return Err(refusal(method)),
        }
    };
    Ok(Target { route, path: slashed(path, route), subject: sane(route.subject, subject)? })
}

/// Checks each byte, and decodes what stands for itself (RFC 3986 §2.3), so that a route has one spelling.
fn decoded(path: &str) -> Result<Cow<'_, str>, Error> {
    if !path.starts_with('/') {
        return Err(Error::BadTarget("the path does not begin with a slash"));
    }
    check(path)?;
    if memchr::memchr(b'%', path.as_bytes()).is_none() {
        return Ok(Cow::Borrowed(path));
    }
    let mut written = String::with_capacity(path.len());
    let mut meant = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('%') {
        let byte = after.get(..2).and_then(hex_byte).ok_or(Error::BadTarget("the path is not well percent-encoded"))?;
        written.push_str(before);
        meant.extend_from_slice(before.as_bytes());
        rest = after.get(2..).unwrap_or_default();
        meant.push(byte);
        match byte {
            b'/' | b'\\' => return Err(Error::BadTarget("the path holds an encoded slash or backslash")),
            0..0x20 | 0x7f => return Err(Error::BadTarget("the path holds an encoded control character")),
            b'%' if rest.get(..2).and_then(hex_byte).is_some() => {
                return Err(Error::BadTarget("the path is percent-encoded twice"));
            }
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => written.push(char::from(byte)),
            // the spelling of the digits is one, too; a String takes whatever is written
            _ => drop(write!(written, "%{byte:02X}")),
        }
    }
    written.push_str(rest);
    if std::str::from_utf8(&meant).is_err() {
        return Err(Error::BadTarget("the path is not UTF-8 once decoded"));
    }
    check(&written)?;
    Ok(Cow::Owned(written))
}

/// One look at each byte; every request pays for this.
fn check(path: &str) -> Result<(), Error> {
    // all of it is looked at: a loop without a way out takes several bytes at once
    if path.bytes().fold(PATH, |of_all, byte| of_all & classes(byte)) == 0 {
        return Err(Error::BadTarget("the path holds a character that must be percent-encoded, or a backslash"));
    }
    let mut after_slashes = memchr::memchr_iter(b'/', path.as_bytes()).map(|at| path.as_bytes().get(at + 1));
    if !after_slashes.any(|after| matches!(after, Some(b'/' | b'.'))) {
        return Ok(());
    }
    if path.contains("//") {
        return Err(Error::BadTarget("the path holds an empty segment (`//`)"));
    }
    if path.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Err(Error::BadTarget("the path holds a dot segment"));
    }
    Ok(())
}

/// `pchar` of RFC 3986 §3.3, and what separates and encodes.
const PATH: u8 = 1;
/// What ids are made of.
const ID: u8 = 2;
const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        #[expect(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "evaluated by the compiler")]
        {
            classes[byte] = match byte as u8 {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => PATH | ID,
                b'/' | b'.' | b'~' | b'%' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' => PATH,
                b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@' => PATH,
                _ => 0,
            };
        }
        byte += 1;
    }
    classes
};

fn classes(byte: u8) -> u8 {
    CLASSES.get(usize::from(byte)).copied().unwrap_or(0)
}

fn hex_byte(digits: &str) -> Option<u8> {
    // from_str_radix would take a sign
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// `/latest/…`, `/api/v1/…`, `/api/…` and the bare `/agents/…` are other names of `/v1/…`.
fn under_v1(path: &str) -> String {
    let rest = below("/api", path).unwrap_or(path);
    let rest = below("/v1", rest).or_else(|| below("/latest", rest)).unwrap_or(rest);
    let mut canonical = String::with_capacity("/v1/".len() + rest.len());
    canonical.push_str("/v1");
    canonical.push_str(rest);
    canonical
}

/// What follows the folder `name`, its slash included.
fn below<'p>(name: &str, path: &'p str) -> Option<&'p str> {
    path.strip_prefix(name).filter(|rest| rest.starts_with('/'))
}

/// Letta answers the other slash form with a redirect to its own address, which a client cannot follow.
fn slashed<'p>(mut path: Cow<'p, str>, route: &Route) -> Cow<'p, str> {
    match (route.ends_in_slash(), path.ends_with('/')) {
        (Some(true), false) => path.to_mut().push('/'),
        (Some(false), true) => drop(path.to_mut().pop()),
        _ => {}
    }
    path
}

/// An id is logged, hashed and compared: what cannot be one of Letta's is refused where it names the thing acted on.
fn sane(kind: Subject, id: Option<Arc<str>>) -> Result<Option<Arc<str>>, Error> {
    let Some(id) = id else { return Ok(None) };
    if id.len() <= LONGEST_ID && id.bytes().fold(ID, |of_all, byte| of_all & classes(byte)) != 0 {
        return Ok(Some(id));
    }
    match kind {
        Subject::Agent | Subject::Conversation | Subject::Run => {
            Err(Error::BadTarget("the id in the path holds a character that no id of Letta's has, or is too long"))
        }
        // names of tools, folders and servers may be anything
        Subject::Other | Subject::None => Ok(None),
    }
}

fn refusal(why: NotFound) -> Error {
    match why {
        NotFound::Path => Error::NoSuchRoute,
        NotFound::Method { allow } => Error::MethodNotAllowed { allow },
    }
}
