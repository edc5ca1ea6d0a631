//! What is kept of an answer, and what it is kept from.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use smallvec::SmallVec;

use super::{Ended, Head};
use crate::packed::{pack, unpack};
use crate::telemetry::record::Exchange;

/// A head as it is kept.
pub(super) struct KeptHead {
    pub status: StatusCode,
    /// Packed.
    pub fields: Bytes,
    pub exchange: Exchange,
}

impl KeptHead {
    pub(super) fn of(head: &Head) -> Self {
        let mut fields = Vec::new();
        pack(&head.headers, &mut fields);
        Self { status: head.status, fields: Bytes::copy_from_slice(&fields), exchange: head.exchange.clone() }
    }

    pub(super) fn head(&self) -> Head {
        let headers = unpack(&self.fields);
        Head { status: self.status, headers, exchange: self.exchange.clone() }
    }
}

/// What is kept of an answer, piece by piece. Most answers are one, and that needs no memory of its own.
#[derive(Default)]
pub(super) struct Pieces {
    pub front: Option<Bytes>,
    /// Empty if there is no `front`.
    pub rest: VecDeque<Bytes>,
}

impl Pieces {
    pub(super) fn push(&mut self, piece: Bytes) {
        match self.front {
            None => self.front = Some(piece),
            Some(_) => self.rest.push_back(piece),
        }
    }

    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let next = self.rest.pop_front();
        std::mem::replace(&mut self.front, next)
    }

    pub(super) fn get(&self, at: usize) -> Option<&Bytes> {
        match at.checked_sub(1) {
            None => self.front.as_ref(),
            Some(at) => self.rest.get(at),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.front.iter().chain(&self.rest)
    }
}

/// All that was said, as it is kept.
pub(in crate::turn) struct KeptAnswer {
    /// The head's status and its fields, packed.
    pub head: Option<(StatusCode, Bytes)>,
    pub body: SmallVec<[Bytes; 1]>,
}

/// All that was said, to be kept.
pub(in crate::turn) struct Said<'a> {
    pub(super) head: Option<SaidHead<'a>>,
    pub(super) first: Option<&'a Bytes>,
    pub(super) rest: &'a VecDeque<Bytes>,
}

#[derive(Clone, Copy)]
pub(super) enum SaidHead<'a> {
    Kept(&'a KeptHead),
    AsCame(&'a Head),
}

impl Said<'_> {
    pub(in crate::turn) fn status(&self) -> Option<StatusCode> {
        self.head.map(|head| match head {
            SaidHead::Kept(head) => head.status,
            SaidHead::AsCame(head) => head.status,
        })
    }

    /// Packs the fields of the head into `bytes`.
    pub(in crate::turn) fn pack_head(&self, bytes: &mut Vec<u8>) {
        match self.head {
            Some(SaidHead::Kept(head)) => bytes.extend_from_slice(&head.fields),
            Some(SaidHead::AsCame(head)) => pack(&head.headers, bytes),
            None => {}
        }
    }

    pub(in crate::turn) fn body(&self) -> impl Iterator<Item = &Bytes> {
        self.first.into_iter().chain(self.rest)
    }
}

/// What is known of a log when it is packed.
pub(in crate::turn) struct Packed<Kept> {
    /// So many read it.
    pub followers: u32,
    /// Somebody has read it to its end.
    pub is_delivered: bool,
    /// None: it is not all there.
    pub answer: Option<Kept>,
    /// None: the answer is whole.
    pub broken: Option<Arc<Ended>>,
}
