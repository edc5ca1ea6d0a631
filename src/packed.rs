//! The fields of a head in one piece of memory, for those that are kept.
//!
//! A map of as few fields as a head has is five times as large and a dozen allocations, and hyper's values are parts of
//! the buffer they were read into: 8 KiB that stay as long as one of them does.

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

/// Beside each field: the length of its name, and that of its value with a bit that marks it as sensitive.
const SENSITIVE: u32 = 1 << 31;
/// Fields of a head and those that are added on its way, about.
const USUAL: usize = 16;
/// Bytes of the target and the fields of most requests.
const ROOM: usize = 448;

/// Writes the fields of `headers` behind what is in `bytes`. Those longer than a listener takes are left out.
pub fn pack(headers: &HeaderMap, bytes: &mut Vec<u8>) {
    for (name, value) in headers {
        let name = name.as_str().as_bytes();
        let lengths = (u16::try_from(name.len()), u32::try_from(value.len()));
        let (Ok(name_length), Ok(value_length @ ..SENSITIVE)) = lengths else { continue };
        let mark = if value.is_sensitive() { SENSITIVE } else { 0 };
        let ([a, b], [c, d, e, f]) = (name_length.to_le_bytes(), (value_length | mark).to_le_bytes());
        bytes.extend_from_slice(&[a, b, c, d, e, f]);
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(value.as_bytes());
    }
}

/// The fields that were packed. Their values are parts of `packed`.
pub fn unpack(packed: &Bytes) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(USUAL);
    for (name, value) in (Fields { packed, at: 0 }) {
        headers.append(name, value);
    }
    headers
}

/// A request's target and fields, without its method, and its body if that is short.
pub struct PackedRequest {
    /// So many bytes of target.
    target: usize,
    /// So many bytes of fields, and behind them the body.
    fields: usize,
    bytes: Vec<u8>,
}

impl PackedRequest {
    /// `body`: the request's, to be kept with it.
    pub fn of<B>(request: &http::Request<B>, body: &[u8]) -> Self {
        let target = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
        let mut bytes = Vec::with_capacity(ROOM + body.len());
        bytes.extend_from_slice(target.as_bytes());
        pack(request.headers(), &mut bytes);
        let (target, fields) = (target.len(), bytes.len() - target.len());
        bytes.extend_from_slice(body);
        Self { target, fields, bytes }
    }

    /// The request with `body`.
    pub fn unpack<B>(&self, method: Method, body: B) -> http::Request<B> {
        let packed = Bytes::copy_from_slice(&self.bytes);
        let mut request = http::Request::new(body);
        *request.method_mut() = method;
        // what was a target is one
        *request.uri_mut() = Uri::from_maybe_shared(packed.slice(..self.target)).unwrap_or_default();
        *request.headers_mut() = unpack(&packed.slice(self.target..self.target + self.fields));
        request
    }

    /// The body that was kept with it.
    pub fn body(&self) -> Bytes {
        Bytes::copy_from_slice(self.bytes.get(self.target + self.fields..).unwrap_or_default())
    }
}

struct Fields<'a> {
    packed: &'a Bytes,
    at: usize,
}

impl Fields<'_> {
    fn take(&mut self, length: usize) -> Option<Bytes> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.packed.len())?;
        let part = self.packed.slice(self.at..end);
        self.at = end;
        Some(part)
    }

    fn number<const N: usize>(&mut self) -> Option<[u8; N]> {
        let number = self.packed.get(self.at..)?.first_chunk().copied()?;
        self.at += N;
        Some(number)
    }
}

impl Iterator for Fields<'_> {
    type Item = (HeaderName, HeaderValue);

    fn next(&mut self) -> Option<Self::Item> {
        let name_length = u16::from_le_bytes(self.number()?);
        let value_length = u32::from_le_bytes(self.number()?);
        let name = HeaderName::from_bytes(&self.take(name_length.into())?).ok()?;
        let value = self.take(usize::try_from(value_length & !SENSITIVE).ok()?)?;
        let mut value = HeaderValue::from_maybe_shared(value).ok()?;
        value.set_sensitive(value_length & SENSITIVE != 0);
        Some((name, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(headers: &HeaderMap) -> Bytes {
        let mut bytes = Vec::new();
        pack(headers, &mut bytes);
        Bytes::from(bytes)
    }

    #[test]
    fn what_is_unpacked_is_what_was_packed_in_its_order() {
        let mut headers = HeaderMap::new();
        let mut secret = HeaderValue::from_static("Bearer secret");
        secret.set_sensitive(true);
        headers.insert("authorization", secret);
        headers.append("x-two", HeaderValue::from_static("first"));
        headers.append("x-two", HeaderValue::from_static("second"));
        headers.insert("x-empty", HeaderValue::from_static(""));
        headers.insert("x-bytes", HeaderValue::from_bytes(&[b'\t', 0x80, 0xff]).unwrap());
        headers.insert("x-long", HeaderValue::from_bytes(&vec![b'l'; 100_000]).unwrap());

        let unpacked = unpack(&packed(&headers));
        assert_eq!(unpacked, headers);
        let both = |name| unpacked.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
        assert_eq!(both("x-two"), [&b"first"[..], b"second"]);
        assert!(unpacked["authorization"].is_sensitive() && !unpacked["x-two"].is_sensitive());
        assert_eq!(unpack(&packed(&HeaderMap::new())), HeaderMap::new());
    }

    #[test]
    fn what_is_packed_does_not_keep_the_buffer_it_was_read_into() {
        let buffer = Bytes::from(b"a value in the middle of a head ".repeat(100));
        let mut headers = HeaderMap::new();
        headers.insert("x-part", HeaderValue::from_maybe_shared(buffer.slice(2..7)).unwrap());
        let packed = packed(&headers);
        assert!(!buffer.is_unique());
        drop(headers);
        assert!(buffer.is_unique(), "a part of it is still held");
        assert_eq!(unpack(&packed)["x-part"], "value");
    }

    #[test]
    fn what_is_cut_short_ends_there() {
        let mut headers = HeaderMap::new();
        headers.insert("x-a", HeaderValue::from_static("1"));
        headers.insert("x-b", HeaderValue::from_static("2"));
        let whole = packed(&headers);
        for length in 0..whole.len() {
            let unpacked = unpack(&whole.slice(..length));
            assert_eq!(unpacked.len(), usize::from(length >= whole.len() / 2), "{length}");
        }
    }
}
