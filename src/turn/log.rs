//! The log of one turn: what the replica answered, in pieces, and who reads it where.
//!
//! Until it has grown over its bound the whole answer is kept, whoever reads how slowly, and can be given again. From
//! then on only what its readers have not read is kept, and the replica is read no faster than the slowest of them.

mod kept;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use smallvec::SmallVec;

use super::past::Number;
use crate::error::Error;
use crate::telemetry::record::Exchange;
pub(super) use kept::{KeptAnswer, Packed, Said};
use kept::{KeptHead, Pieces, SaidHead};

/// Bytes a reader may be behind once the log is over its bound.
const MOST_BEHIND: u64 = 64 * 1024;
/// Bytes of the first buffer pieces are written to; each next one is twice as large, up to [`LARGEST_BUFFER`].
const FIRST_BUFFER: usize = 512;
const LARGEST_BUFFER: usize = 32 * 1024;
/// Bytes that are told to other gateways at once, about.
const TOLD_AT_ONCE: usize = 256 * 1024;

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

/// What the last word of a reader says.
pub(super) struct Left {
    /// Nobody follows a turn any more that is in Letta's hands.
    pub is_detached: bool,
    /// Where the turn is packed, if it is, and whether somebody has all of it.
    pub packed: Option<(Number, bool)>,
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

/// What has come to a log since it was last asked.
pub(super) enum News {
    /// The next pieces, the head in front of the first one.
    Pieces(Option<Head>, Vec<Bytes>),
    /// The next piece is not kept any more.
    Trimmed,
    /// There are no more, and there will not be.
    Over,
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

    // --- the engine's side ---

    /// `length`: the answer's, if it is known.
    pub(super) fn begin(&self, head: Head, length: Option<u64>) {
        let mut state = self.lock_with_head();
        state.head = Some(KeptHead::of(&head));
        state.fresh = (!state.is_left()).then(|| Box::new(head));
        state.told_at = length;
        state.wake_readers();
    }

    pub(super) fn append(&self, data: &[u8]) {
        let mut state = self.lock();
        let piece = state.written(data);
        state.bytes += data.len() as u64;
        state.pieces.push(piece);
        if state.bytes > self.max {
            state.is_whole = false;
            state.trim();
        }
        state.wake_readers();
    }

    /// The whole answer at once. `is_known_to_all`: other gateways are told of it, so its head is asked for again.
    pub(super) fn fill(&self, answer: Whole, is_known_to_all: bool) {
        let mut state = self.lock_with_head();
        state.fill(answer, is_known_to_all, self.max);
        state.wake_readers();
    }

    pub(super) fn end(&self, ended: Ended) {
        let mut state = self.lock_with_head();
        state.end(ended);
    }

    /// What comes now adds nothing: the stream has said how it ends.
    pub(super) fn tell_end(&self) {
        let mut state = self.lock();
        let bytes = state.bytes;
        state.told_at.get_or_insert(bytes);
    }

    /// Nothing of it is for giving again.
    pub(super) fn keep_nothing(&self) {
        let mut state = self.lock();
        state.is_whole = false;
        state.trim();
        state.let_head_go();
    }

    /// Ready when more may be appended.
    pub(super) async fn has_room(&self) {
        self.until(|state| {
            state.is_whole || state.readers.iter().flatten().all(|reader| state.bytes - reader.read <= MOST_BEHIND)
        })
        .await;
    }

    /// Ready when nobody follows that might want more of it.
    pub(super) async fn all_left(&self) {
        self.until(|state| state.is_abandoned()).await;
    }

    /// The same for a turn that ends with its last follower: who would enter from then on begins another.
    pub(super) async fn given_up(&self) {
        self.until(|state| {
            state.is_given_up |= state.is_abandoned();
            state.is_given_up
        })
        .await;
    }

    async fn until(&self, is_so: impl Fn(&mut State) -> bool) {
        std::future::poll_fn(|cx| {
            let mut state = self.lock();
            if is_so(&mut state) {
                return Poll::Ready(());
            }
            state.engine = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    // --- for those who tell other gateways of it ---

    /// What comes after the first `told` pieces, the head counted as one.
    pub(super) async fn news(&self, told: u64) -> News {
        std::future::poll_fn(|cx| {
            let mut state = self.lock();
            let told = usize::try_from(told).unwrap_or(usize::MAX);
            let head = state.head.as_ref().filter(|_| told == 0).map(KeptHead::head);
            let at = told.saturating_sub(1);
            if let Some(at) = at.checked_sub(state.first) {
                let mut bytes = 0;
                let is_within = |piece: &&Bytes| {
                    let is_first = bytes == 0;
                    bytes += piece.len();
                    is_first || bytes <= TOLD_AT_ONCE
                };
                let has_head = told > 0 || head.is_some();
                let pieces: Vec<Bytes> =
                    state.pieces.iter().skip(at).take_while(is_within).filter(|_| has_head).cloned().collect();
                if head.is_some() || !pieces.is_empty() {
                    return Poll::Ready(News::Pieces(head, pieces));
                }
            } else {
                return Poll::Ready(News::Trimmed);
            }
            if state.ended.is_some() {
                return Poll::Ready(News::Over);
            }
            state.teller = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Ready when there will be no more.
    pub(super) async fn over(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.lock();
            if state.ended.is_some() {
                return Poll::Ready(());
            }
            state.teller = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// What `tell` makes of its end; `None` before that.
    pub(super) fn ended<T>(&self, tell: impl FnOnce(&Ended) -> Option<T>) -> Option<T> {
        self.lock().ended.as_ref().and_then(tell)
    }

    // --- the followers' side ---

    /// A reader from the first piece on; `None` if that is not there any more.
    pub(super) fn enter(&self) -> Option<usize> {
        self.enter_as(false)
    }

    /// The reader whose task works on the turn.
    pub(super) fn enter_driving(&self) -> Option<usize> {
        self.enter_as(true)
    }

    /// The turn has a task of its own now.
    pub(super) fn is_driven_no_more(&self) {
        self.lock().readers.iter_mut().flatten().for_each(|reader| reader.drives = false);
    }

    fn enter_as(&self, drives: bool) -> Option<usize> {
        let mut state = self.lock();
        if !state.is_whole || state.is_given_up {
            return None;
        }
        let reader = Some(Reader { next: 0, read: 0, drives, waker: None });
        if let Some(place) = state.readers.iter().position(Option::is_none) {
            if let Some(free) = state.readers.get_mut(place) {
                *free = reader;
            }
            return Some(place);
        }
        state.readers.push(reader);
        Some(state.readers.len() - 1)
    }

    pub(super) fn leave(&self, place: usize) -> Left {
        let mut state = self.lock();
        let left = state.readers.get_mut(place).and_then(Option::take);
        let is_over = state.ended.is_some();
        if left.is_some_and(|reader| state.is_told(&reader) || is_over && reader.read == state.bytes) {
            state.is_delivered = true;
        }
        state.trim();
        state.let_head_go();
        state.wake_engine();
        Left {
            is_detached: state.phase == Phase::Sent && state.is_abandoned(),
            packed: state.number.map(|number| (number, state.is_delivered)),
        }
    }

    /// Nobody follows it, and nobody has got all of it.
    pub(super) fn is_abandoned(&self) -> bool {
        self.lock().is_abandoned()
    }

    /// It ends without having been sent.
    pub(super) fn is_given_up(&self) -> bool {
        self.lock().is_given_up
    }

    pub(super) fn has_head(&self) -> bool {
        self.has_head.load(Ordering::Acquire)
    }

    /// Whoever has read so far has lost nothing by leaving.
    pub(super) fn is_told(&self, place: usize) -> bool {
        let state = self.lock();
        let reader = state.readers.get(place).and_then(Option::as_ref);
        reader.is_some_and(|reader| state.is_told(reader))
    }

    /// The status of the head, if there is one.
    pub(super) fn status(&self) -> Option<StatusCode> {
        let state = self.lock();
        state.fresh.as_ref().map(|head| head.status).or(state.head.as_ref().map(|head| head.status))
    }

    /// To be asked once by each reader: who is the last takes the head as it came.
    pub(super) fn poll_head(&self, place: usize, cx: &Context<'_>) -> Poll<Result<Head, Error>> {
        let mut state = self.lock();
        if let Some(fresh) = state.fresh.take() {
            let is_last = state.number.is_some() && state.followers() <= 1;
            if state.head.is_none() && !is_last {
                state.head = Some(KeptHead::of(&fresh));
            }
            return Poll::Ready(Ok(*fresh));
        }
        match state.head() {
            Some(head) => Poll::Ready(head),
            None => {
                register(&mut state, place, cx);
                Poll::Pending
            }
        }
    }

    pub(super) fn poll_piece(&self, place: usize, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(reader) = state.readers.get_mut(place).and_then(Option::as_mut) else { return Poll::Ready(None) };
        let piece = reader.next.checked_sub(state.first).and_then(|at| state.pieces.get(at)).cloned();
        if let Some(piece) = piece {
            reader.next += 1;
            reader.read += piece.len() as u64;
            if !state.is_whole {
                state.trim();
                state.wake_engine();
            }
            return Poll::Ready(Some(Ok(piece)));
        }
        match &state.ended {
            Some(Ended::Whole) => Poll::Ready(None),
            Some(Ended::Failed(error)) => Poll::Ready(Some(Err(error.again()))),
            Some(Ended::Told(error)) => Poll::Ready(Some(Err(Error::StreamBroken(Box::new(error.again()))))),
            None => {
                register(state, place, cx);
                Poll::Pending
            }
        }
    }

    /// The whole answer in one piece, if it is over and there is no more than that.
    pub(super) fn whole(&self, place: usize) -> Option<Bytes> {
        let mut state = self.lock();
        let state = &mut *state;
        let reader = state.readers.get_mut(place).and_then(Option::as_mut)?;
        if !matches!(state.ended, Some(Ended::Whole)) || state.first != 0 || state.pieces.get(1).is_some() {
            return None;
        }
        let whole = state.pieces.get(0).cloned();
        (reader.next, reader.read) = (usize::from(whole.is_some()), state.bytes);
        Some(whole.unwrap_or_default())
    }
}

fn register(state: &mut State, place: usize, cx: &Context<'_>) {
    if let Some(Some(reader)) = state.readers.get_mut(place) {
        match &mut reader.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }
}
