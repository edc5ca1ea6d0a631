//! The message of one turn: sent as it was read, and packed for the next time.

use std::sync::Arc;

use bytes::Bytes;
use http::Method;

use super::Dispatch;
use crate::auth::Parts;
use crate::auth::key::Key;
use crate::body::RequestBody;
use crate::body::room::Held;
use crate::letta::routes::Route;
use crate::packed::PackedRequest;

/// A body of no more bytes is packed with its head: it may have come in a buffer that is larger.
const SHORT: usize = 4096;

/// The message, to be sent as often as it takes until Letta has it.
pub(super) struct Message {
    head: MessageHead,
    /// Empty once it is packed; a long one is not.
    body: Bytes,
    /// Its place in memory, as long as it is here.
    held: Option<Held>,
    route: &'static Route,
    subject: Option<Arc<str>>,
    pub key: Option<Arc<Key>>,
}

enum MessageHead {
    /// The request without its body, in the buffer it was read into.
    AsRead(Box<Parts>),
    Packed(PackedRequest),
    /// It has been answered, or is lost: nothing of it is wanted any more.
    Forgotten,
}

impl Message {
    /// `parts`: the request, its body taken.
    pub(super) fn new(parts: Box<Parts>, body: Bytes, held: Held) -> Self {
        let route = parts.route;
        let (subject, key) = (parts.subject.clone(), parts.key.clone());
        Self { head: MessageHead::AsRead(parts), body, held: Some(held), route, subject, key }
    }

    pub(super) fn forget(&mut self) {
        (self.head, self.body, self.held) = (MessageHead::Forgotten, Bytes::new(), None);
    }

    /// What is to wait must not keep the buffer its head was read into, which a short body may be in, too. Gives the
    /// request as it was read, if it is here still.
    pub(super) fn pack(&mut self) -> Option<Box<Parts>> {
        let mut parts = match std::mem::replace(&mut self.head, MessageHead::Forgotten) {
            MessageHead::AsRead(parts) => parts,
            head => {
                self.head = head;
                return None;
            }
        };
        let is_short = self.body.len() <= SHORT;
        let packed = PackedRequest::of(&parts.request, if is_short { &self.body } else { b"" });
        self.head = MessageHead::Packed(packed);
        let body = if is_short { std::mem::take(&mut self.body) } else { self.body.clone() };
        *parts.request.body_mut() = RequestBody::whole(body);
        Some(parts)
    }

    /// To be sent now; it stays here for the next time.
    pub(super) fn dispatch(&mut self) -> Dispatch {
        if let Some(parts) = self.pack() {
            return Dispatch { parts };
        }
        let request = match &self.head {
            MessageHead::Packed(packed) => {
                let body = if self.body.is_empty() { packed.body() } else { self.body.clone() };
                packed.unpack(Method::POST, RequestBody::whole(body))
            }
            // what has been answered is not sent again
            _ => http::Request::default(),
        };
        let (request, route) = (Box::new(request), self.route);
        Dispatch { parts: Box::new(Parts { request, route, subject: self.subject.clone(), key: self.key.clone() }) }
    }
}
