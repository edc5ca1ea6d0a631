//! The log of one turn: what the replica answered, in pieces, and who reads it where.
//!
//! Until it has grown over its bound the whole answer is kept, whoever reads how slowly, and can be given again. From
//! then on only what its readers have not read is kept, and the replica is read no faster than the slowest of them.

mod kept;
mod reading;
mod telling;
mod writing;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use smallvec::SmallVec;

use super::past::Number;
use crate::error::Error;
use crate::telemetry::record::Exchange;
pub(super) use kept::{KeptAnswer, Packed, Said};
use kept::{KeptHead, Pieces, SaidHead};
pub(super) use reading::Left;
pub(super) use telling::News;

/// Bytes of the first buffer pieces are written to; each next one is twice as large, up to [`LARGEST_BUFFER`].
const FIRST_BUFFER: usize = 512;
const LARGEST_BUFFER: usize = 32 * 1024;

/// The head of the answer, as every follower gets it.
#[derive(Clone)]
pub(super) struct Head {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub exchange: Exchange,
}

/// How the answer ended.
pub(super) enum Ended {
    Whole,
    /// Without a head: this is the answer. With one: it breaks off here.
    Failed(Error),
    /// The last piece has told the client of it.
    Told(Error),
}

impl Ended {
    fn again(&self) -> Self {
        match self {
            Self::Whole => Self::Whole,
            Self::Failed(error) => Self::Failed(error.again()),
            Self::Told(error) => Self::Told(error.again()),
        }
    }
}

/// A whole answer, as it came.
pub(super) struct Whole {
    pub head: Head,
    pub body: Bytes,
}

/// What a log ends with.
pub(super) enum Ending {
    /// All is in it.
    Logged(Ended),
    /// The whole answer.
    Whole {
        answer: Box<Whole>,
        /// Other gateways are told of it from the log, its head, too.
        is_known_to_all: bool,
    },
}

/// How far the turn is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Letta has not begun with it: it ends with its last follower.
    Waiting {
        ahead: u32,
    },
    /// It may be in Letta's hands.
    Sent,
    Over,
}

pub(super) struct Log {
    state: Mutex<State>,
    /// Bytes that are kept whole at most.
    max: u64,
    /// There is a head, or none will come: whoever drives the turn asks whenever it is polled.
    has_head: AtomicBool,
}

struct State {
    phase: Phase,
    head: Option<KeptHead>,
    /// The head as it came, for the first who asks: it need not be made again. Nobody else asks where there is no other.
    fresh: Option<Box<Head>>,
    pieces: Pieces,
    /// Number of the first piece that is still there.
    first: usize,
    /// Bytes appended in all.
    bytes: u64,
    buffer: BytesMut,
    /// All that was appended is still there.
    is_whole: bool,
    ended: Option<Ended>,
    /// Bytes after which the answer has said all, if that is known: those its head promised, or those up to a stream's
    /// own end.
    told_at: Option<u64>,
    readers: SmallVec<[Option<Reader>; 1]>,
    /// Somebody has read it to its end.
    is_delivered: bool,
    /// Its last reader left before Letta began with it, and it ends with that one. Nobody enters any more.
    is_given_up: bool,
    /// Where it is packed. Nobody enters any more but the one whom a copy was made for.
    number: Option<Number>,
    /// The engine, if it waits for its readers.
    engine: Option<Waker>,
    /// Who tells other gateways of it, if that one waits for more.
    teller: Option<Waker>,
}

struct Reader {
    next: usize,
    read: u64,
    /// Its task works on the turn: it can be given a whole answer by hand.
    drives: bool,
    waker: Option<Waker>,
}

impl State {
    fn followers(&self) -> usize {
        self.readers.iter().flatten().count()
    }

    fn is_left(&self) -> bool {
        self.followers() == 0
    }

    /// Nobody follows, and nobody has got all of it.
    fn is_abandoned(&self) -> bool {
        self.is_left() && !self.is_delivered
    }

    /// `reader` has all that will be said.
    fn is_told(&self, reader: &Reader) -> bool {
        self.told_at.is_some_and(|told| reader.read >= told)
    }

    fn wake_readers(&mut self) {
        if let Some(waker) = self.teller.take() {
            waker.wake();
        }
        for reader in self.readers.iter_mut().flatten() {
            if let Some(waker) = reader.waker.take() {
                waker.wake();
            }
        }
    }

    fn wake_engine(&mut self) {
        if let Some(waker) = self.engine.take() {
            waker.wake();
        }
    }

    /// Lets go of what every reader has read.
    fn trim(&mut self) {
        if self.is_whole {
            return;
        }
        let needed = self.readers.iter().flatten().map(|reader| reader.next).min().unwrap_or(usize::MAX);
        while self.first < needed && self.pieces.pop().is_some() {
            self.first += 1;
        }
    }

    /// Lets go of the head as it came if nobody follows, and of all of it if nobody can any more.
    fn let_head_go(&mut self) {
        if !self.is_left() {
            return;
        }
        if self.head.is_some() || self.ended.is_some() {
            self.fresh = None;
        }
        // what is told of a log that lost its beginning is that, and no head
        if !self.is_whole
            && self.first > 0
            && let Some(head) = &mut self.head
        {
            head.fields = Bytes::new();
        }
    }

    fn fill(&mut self, Whole { head, body }: Whole, is_known_to_all: bool, max: u64) {
        self.head = is_known_to_all.then(|| KeptHead::of(&head));
        self.fresh = Some(Box::new(head));
        self.told_at = Some(body.len() as u64);
        if !body.is_empty() {
            self.bytes = body.len() as u64;
            self.pieces.push(body);
            self.is_whole &= self.bytes <= max;
            self.trim();
        }
    }

    /// Its only reader drives the turn.
    fn is_only_driven(&self) -> bool {
        self.followers() == 1 && self.readers.iter().flatten().all(|reader| reader.drives)
    }

    /// There will be no more.
    fn end(&mut self, ended: Ended) {
        self.phase = Phase::Over;
        self.ended.get_or_insert(ended);
        self.buffer = BytesMut::new();
        self.wake_readers();
    }

    fn head(&self) -> Option<Result<Head, Error>> {
        match (&self.head, &self.ended) {
            (Some(head), _) => Some(Ok(head.head())),
            (None, Some(Ended::Failed(error) | Ended::Told(error))) => Some(Err(error.again())),
            (None, Some(Ended::Whole)) => Some(Err(Error::Internal("a turn ended without an answer".into()))),
            (None, None) => None,
        }
    }

    fn written(&mut self, data: &[u8]) -> Bytes {
        if self.buffer.capacity() < data.len() {
            let grown = usize::try_from(self.bytes).unwrap_or(LARGEST_BUFFER).clamp(FIRST_BUFFER, LARGEST_BUFFER);
            self.buffer = BytesMut::with_capacity(grown.max(data.len()));
        }
        self.buffer.extend_from_slice(data);
        self.buffer.split().freeze()
    }
}

impl Log {
    pub(super) fn new(max: usize) -> Self {
        let state = State {
            phase: Phase::Waiting { ahead: 0 },
            head: None,
            fresh: None,
            pieces: Pieces::default(),
            first: 0,
            bytes: 0,
            buffer: BytesMut::new(),
            is_whole: true,
            ended: None,
            told_at: None,
            readers: SmallVec::new(),
            is_delivered: false,
            is_given_up: false,
            number: None,
            engine: None,
            teller: None,
        };
        Self { state: Mutex::new(state), max: max as u64, has_head: AtomicBool::new(false) }
    }

    /// A log that was packed as `number`, to be read again.
    pub(super) fn again(
        number: Number,
        answer: Option<KeptAnswer>,
        broken: Option<&Ended>,
        is_delivered: bool,
        max: usize,
        exchange: &Exchange,
    ) -> Self {
        let log = Self::new(max);
        let mut state = log.lock_with_head();
        state.phase = Phase::Over;
        state.number = Some(number);
        state.is_whole = answer.is_some();
        // who comes too late must not find a beginning
        state.first = usize::from(answer.is_none());
        if let Some(KeptAnswer { head, body }) = answer {
            state.head = head.map(|(status, fields)| KeptHead { status, fields, exchange: exchange.clone() });
            for piece in body {
                state.bytes += piece.len() as u64;
                state.pieces.push(piece);
            }
        }
        // one that broke off has not said all
        state.told_at = broken.is_none().then_some(state.bytes);
        state.ended = Some(broken.map_or(Ended::Whole, Ended::again));
        state.is_delivered = is_delivered;
        drop(state);
        log
    }

    /// Ends the log of a turn that is found as `number` from now on, and has all that was said kept by `keep`, if it is
    /// all there. A whole answer is given back where the only one who follows drives the turn: that one gets it by hand,
    /// and has left.
    pub(super) fn pack<Kept>(
        &self,
        ending: Ending,
        number: Number,
        keep: impl FnOnce(Said<'_>) -> Option<Kept>,
    ) -> (Packed<Kept>, Option<Box<Whole>>) {
        let mut state = self.lock_with_head();
        let state = &mut *state;
        state.number = Some(number);
        let (ended, given) = match ending {
            Ending::Logged(ended) => (ended, None),
            Ending::Whole { answer, is_known_to_all: false } if state.is_only_driven() => {
                state.is_whole &= answer.body.len() as u64 <= self.max;
                state.readers.clear();
                state.is_delivered = true;
                (Ended::Whole, Some(answer))
            }
            Ending::Whole { answer, is_known_to_all } => {
                state.fill(*answer, is_known_to_all, self.max);
                (Ended::Whole, None)
            }
        };
        state.end(ended);
        let broken = match &state.ended {
            Some(Ended::Whole) | None => None,
            Some(ended) => Some(Arc::new(ended.again())),
        };
        let (head, first) = match given.as_deref() {
            Some(Whole { head, body }) => (Some(SaidHead::AsCame(head)), Some(body)),
            None => {
                let fresh = state.fresh.as_deref().map(SaidHead::AsCame);
                (state.head.as_ref().map(SaidHead::Kept).or(fresh), state.pieces.front.as_ref())
            }
        };
        let said = Said { head, first, rest: &state.pieces.rest };
        let answer = if state.is_whole { keep(said) } else { None };
        state.let_head_go();
        let followers = u32::try_from(state.followers()).unwrap_or(u32::MAX);
        (Packed { followers, is_delivered: state.is_delivered, answer, broken }, given)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For what gives it a head, or an end.
    fn lock_with_head(&self) -> MutexGuard<'_, State> {
        let state = self.lock();
        self.has_head.store(true, Ordering::Release);
        state
    }

    pub(super) fn phase(&self) -> Phase {
        self.lock().phase
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.lock().phase = phase;
    }

    /// Where it is packed, if it is.
    pub(super) fn number(&self) -> Option<Number> {
        self.lock().number
    }

    /// Bytes that are kept whole at most.
    pub(super) fn max(&self) -> usize {
        usize::try_from(self.max).unwrap_or(usize::MAX)
    }
}
