//! Why a client connection ended badly: the closed set behind the metric label.

use std::io;

use super::io::ClientLeft;

/// Why a connection ended badly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The listener has as many connections as it may have.
    Full,
    /// The client's address has as many connections as one may have.
    AddressFull,
    /// The TLS handshake failed.
    TlsHandshake,
    /// The TLS handshake was not complete in time.
    TlsTimeout,
    /// The first bytes, or the HTTP/2 preface, were not complete in time.
    Preface,
    /// What came is not HTTP; hyper answered 400 or the HTTP/2 error.
    Parse,
    /// The request head is too large; hyper answered 431 or 414.
    TooLarge,
    /// A request head was not complete in time.
    HeaderTimeout,
    /// The client took nothing of what it is owed for too long.
    WriteTimeout,
    /// The client did not answer an HTTP/2 ping.
    PingTimeout,
    /// The client broke HTTP/2.
    Protocol,
    /// The client left in the middle of a request or its answer.
    Incomplete,
    /// The socket failed.
    Io,
    /// The gateway's drain was over before the connection was.
    DrainDeadline,
}

impl Reason {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::AddressFull => "address_full",
            Self::TlsHandshake => "tls_handshake",
            Self::TlsTimeout => "tls_timeout",
            Self::Preface => "preface",
            Self::Parse => "parse",
            Self::TooLarge => "too_large",
            Self::HeaderTimeout => "header_timeout",
            Self::WriteTimeout => "write_timeout",
            Self::PingTimeout => "ping_timeout",
            Self::Protocol => "protocol",
            Self::Incomplete => "incomplete",
            Self::Io => "io",
            Self::DrainDeadline => "drain_deadline",
        }
    }

    /// Of a connection that hyper gave up. None: no fault of the connection's, or nothing that went wrong.
    pub(super) fn of(error: &hyper::Error) -> Option<Self> {
        if error.is_user() || error.is_canceled() {
            // the answer broke off: the access log says why
            return None;
        }
        if error.is_parse_too_large() {
            return Some(Self::TooLarge);
        }
        if error.is_parse() {
            return Some(Self::Parse);
        }
        if error.is_incomplete_message() {
            return Some(Self::Incomplete);
        }
        if error.is_timeout() {
            return Some(Self::PingTimeout);
        }
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<h2::Error>() {
                return Self::of_http2(error);
            }
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return Self::of_io(error);
            }
            cause = error.source();
        }
        Some(Self::Io)
    }

    fn of_http2(error: &h2::Error) -> Option<Self> {
        if let Some(error) = error.get_io() {
            return Self::of_io(error);
        }
        // a client may end its connection with any code it likes
        (!error.is_remote() && error.reason() != Some(h2::Reason::NO_ERROR)).then_some(Self::Protocol)
    }

    fn of_io(error: &io::Error) -> Option<Self> {
        if error.get_ref().is_some_and(|error| error.is::<ClientLeft>()) {
            return Some(Self::Incomplete);
        }
        // a client that is gone when the goodbye is said
        (error.kind() != io::ErrorKind::NotConnected).then_some(Self::Io)
    }
}
