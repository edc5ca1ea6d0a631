//! Turns that were over one after the other. They are found by what is in here, and forgotten together.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use http::StatusCode;
use prefetch_index::prefetch_index;
use tokio::time::Instant;

use crate::letta::reply::Usage;
use crate::letta::routes::Sends;
use crate::store::TurnId;
use crate::telemetry::metrics::UpstreamMetrics;
use crate::telemetry::record::Exchange;
use crate::telemetry::turn::{Facts, Outcome, Part};
use crate::turn::log::{Ended, Packed};
use crate::turn::shared::Turn;
use crate::turn::{Index, beginning};

/// No place: there is none, or none any more.
const NONE: u16 = u16::MAX;
/// Keys and replicas that are looked through for the one of the next turn; more of them are named twice.
const LOOKED_THROUGH: usize = 8;
/// Turns that are put in the table at once. Their places in it are in no cache, and to wait for all together is shorter
/// than to wait for each of them.
pub(super) const TABLED_AT_ONCE: usize = 32;
/// Bytes of how a turn failed, about.
const FAILURE: usize = 2 * size_of::<Ended>() + 128;

/// What a turn in its place is found by. Nothing in here has to be let go of: tens of thousands of turns later it is in
/// no cache any more, and reading it only for that would cost as much as all else that a gateway does for a turn.
///
/// It fills a line of the cache, as [`Told`] does: a line can be called for by its turn's place.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Placed {
    pub message: Index,
    pub began: Instant,
    /// So many follow it.
    pub followers: u32,
    /// In the list of the chapter.
    more: u16,
    /// The one with the same message before it, once it is in the table.
    older: u16,
    /// Somebody has got all of its answer.
    pub is_delivered: bool,
    pub streams: bool,
}

/// What is told of a turn when it is given again.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Told {
    /// From its beginning.
    sent: Since,
    answered: Since,
    /// Where its answer is on the tape; [`NO_ANSWER`] if it is not.
    at: u64,
    fields: u32,
    body: u32,
    /// Prompt, completion, total and steps.
    usage: Option<[u32; 4]>,
    status: Option<StatusCode>,
    /// In the lists of the chapter.
    key: u16,
    upstream: u16,
    outcome: Option<Outcome>,
    attempts: u8,
    pub sends: Sends,
}

const NO_ANSWER: u64 = u64::MAX;

impl Told {
    pub(super) fn answer(&self) -> Option<Answer> {
        let Self { at, fields, body, status, .. } = *self;
        (at != NO_ANSWER).then_some(Answer { status, at, fields, body })
    }
}

/// Nanoseconds from the beginning of a turn, if there are any to be told.
#[derive(Clone, Copy)]
struct Since(u64);

impl Since {
    fn of(moment: Option<Instant>, began: Instant) -> Self {
        let nanos = |moment: Instant| moment.saturating_duration_since(began).as_nanos().try_into().ok();
        Self(moment.and_then(nanos).unwrap_or(u64::MAX))
    }

    fn after(self, began: Instant) -> Option<Instant> {
        if self.0 == u64::MAX { None } else { began.checked_add(Duration::from_nanos(self.0)) }
    }
}

/// Four billion of them are told of a turn that took more.
fn narrow(usage: Usage) -> [u32; 4] {
    let Usage { prompt_tokens, completion_tokens, total_tokens, step_count } = usage;
    [prompt_tokens, completion_tokens, total_tokens, step_count].map(|count| count.try_into().unwrap_or(u32::MAX))
}

fn wide(usage: [u32; 4]) -> Usage {
    let [prompt_tokens, completion_tokens, total_tokens, step_count] = usage.map(u64::from);
    Usage { prompt_tokens, completion_tokens, total_tokens, step_count }
}

impl Placed {
    /// Nobody follows it, and nobody has got all of its answer.
    pub(super) fn is_abandoned(&self) -> bool {
        self.followers == 0 && !self.is_delivered
    }
}

/// Where an answer is on the tape: the fields of its head, and behind them its body.
#[derive(Clone, Copy)]
pub(super) struct Answer {
    pub status: Option<StatusCode>,
    pub at: u64,
    pub fields: u32,
    pub body: u32,
}

impl Answer {
    pub(super) fn bytes(self) -> u64 {
        u64::from(self.fields) + u64::from(self.body)
    }
}

/// What not every turn has.
#[derive(Clone, Default)]
pub(in crate::turn) struct More {
    pub id: TurnId,
    pub otid: Option<Index>,
    pub idempotency: Option<Index>,
    /// What the newest turn of its target is found by.
    pub newest: Option<Index>,
    /// What its run is found by, and its run.
    pub by_run: Option<Index>,
    pub run: Option<Box<str>>,
    pub followed: Option<Part>,
    /// How it is kept for all gateways, if it is: bytes at most, and for how long.
    pub among_all: Option<(usize, Duration)>,
    /// Those have been told of it, as far as they can be.
    pub is_told: bool,
    pub queued: Duration,
    pub first_event: Option<Duration>,
    pub longest_gap: Option<Duration>,
    /// None: its answer is whole.
    pub broken: Option<Arc<Ended>>,
}

impl More {
    /// `None`: a message that names neither itself nor its run, waited for nothing, is no stream, did not break off and
    /// was sent by a gateway that shares nothing, has nothing of it.
    fn of(turn: &Turn, facts: &Facts, broken: Option<Arc<Ended>>) -> Option<Self> {
        let marks = &turn.marks;
        let (is_known_to_all, run) = (turn.is_known_to_all(), turn.run());
        let is_plain = marks.otid.is_none() && marks.idempotency.is_none() && run.is_none() && broken.is_none();
        if is_plain && !turn.streams && !is_known_to_all && turn.is_ours() && facts.queued.is_zero() {
            return None;
        }
        Some(Self {
            id: turn.id,
            otid: marks.otid,
            idempotency: marks.idempotency,
            newest: (turn.streams || is_known_to_all).then(|| turn.newest()),
            by_run: turn.by_run(),
            run: run.map(Box::from),
            followed: turn.followed(),
            among_all: is_known_to_all.then(|| (turn.log.max(), turn.window)),
            is_told: false,
            queued: facts.queued,
            first_event: facts.first_event,
            longest_gap: facts.longest_gap,
            broken,
        })
    }

    /// What the turn is found by here beside its message.
    fn names(&self) -> impl Iterator<Item = Index> {
        [self.otid, self.idempotency, self.by_run].into_iter().flatten()
    }

    /// Bytes that are elsewhere.
    fn heap(&self) -> usize {
        self.run.as_ref().map_or(0, |run| run.len()) + self.broken.as_ref().map_or(0, |_| FAILURE)
    }
}

/// The turns of some time.
pub(super) struct Chapter {
    /// When its first turn was over.
    pub began: Instant,
    /// When its last was.
    pub until: Instant,
    pub turns: Vec<Placed>,
    told: Vec<Told>,
    pub more: Vec<More>,
    keys: Vec<Arc<str>>,
    upstreams: Vec<Arc<UpstreamMetrics>>,
    /// The latest by the beginning of each index. That is random: two alike are as rare as two equal indexes.
    latest: HashMap<u64, u16, RandomState>,
    /// So many turns are in the table. Those behind them have no names, and are looked through for a message.
    tabled: usize,
    /// Where its answers end on the tape.
    pub end: u64,
    /// Bytes of those that somebody follows.
    pub followed: u64,
    /// So many are streams.
    pub streams: usize,
    /// Bytes that are in none of the lists.
    heap: usize,
}

/// The place of `one` in `list`, at its end if it is not among the last of it.
fn place_in<T: ?Sized>(list: &mut Vec<Arc<T>>, one: &Arc<T>) -> u16 {
    let mut last = list.iter().enumerate().rev().take(LOOKED_THROUGH);
    let place = last.find(|(_, other)| Arc::ptr_eq(other, one)).map(|(place, _)| place);
    let place = place.unwrap_or_else(|| {
        list.push(Arc::clone(one));
        list.len() - 1
    });
    u16::try_from(place).unwrap_or(NONE)
}

/// Gives back room that is a quarter of what is in `list` or more.
fn shrink<T>(list: &mut Vec<T>) {
    if list.capacity() > list.len() * 5 / 4 {
        list.shrink_to_fit();
    }
}

fn listed<T>(list: &[T], place: u16) -> Option<&T> {
    list.get(usize::from(place))
}

impl Chapter {
    /// One with room for as many as `before` has, about.
    pub(super) fn like(before: Option<&Self>, began: Instant) -> Self {
        let room = |of: fn(&Self) -> usize| before.map_or(0, |before| of(before) * 9 / 8);
        let found_by = room(|before| before.latest.len());
        Self {
            turns: Vec::with_capacity(room(|before| before.turns.len())),
            told: Vec::with_capacity(room(|before| before.told.len())),
            more: Vec::with_capacity(room(|before| before.more.len())),
            latest: HashMap::with_capacity_and_hasher(found_by, RandomState::default()),
            ..Self::new(began)
        }
    }

    fn new(began: Instant) -> Self {
        Self {
            began,
            until: began,
            turns: Vec::new(),
            told: Vec::new(),
            more: Vec::new(),
            keys: Vec::new(),
            upstreams: Vec::new(),
            latest: HashMap::default(),
            tabled: 0,
            end: 0,
            followed: 0,
            streams: 0,
            heap: 0,
        }
    }

    /// Nothing is added any more. Lists grow to twice what they had, so up to half of them is idle.
    pub(super) fn close(&mut self) {
        self.table();
        shrink(&mut self.turns);
        shrink(&mut self.told);
        shrink(&mut self.more);
        if self.latest.capacity() > 4 * self.latest.len() {
            self.latest.shrink_to_fit();
        }
    }

    /// One that has nothing yet, in the memory of this one.
    pub(super) fn emptied(self) -> Self {
        let Self { mut turns, mut told, mut more, mut keys, mut upstreams, mut latest, .. } = self;
        turns.clear();
        told.clear();
        more.clear();
        keys.clear();
        upstreams.clear();
        latest.clear();
        Self { turns, told, more, keys, upstreams, latest, ..Self::new(self.began) }
    }

    /// Bytes of all of it but its answers.
    pub(super) fn rest(&self) -> u64 {
        let lists = self.turns.capacity() * size_of::<Placed>()
            + self.told.capacity() * size_of::<Told>()
            + self.more.capacity() * size_of::<More>()
            + self.keys.capacity() * size_of::<Arc<str>>()
            + self.upstreams.capacity() * size_of::<Arc<UpstreamMetrics>>();
        // a seventh of a table's room is not for use
        let table = self.latest.capacity() * 8 / 7 * (size_of::<(u64, u16)>() + 1);
        (size_of::<Self>() + lists + table + self.heap) as u64
    }

    /// Bytes of what its turns take of that, about.
    pub(super) fn used(&self) -> u64 {
        let turns = self.turns.len() * (size_of::<Placed>() + size_of::<Told>());
        let lists = turns + self.more.len() * size_of::<More>();
        (lists + self.latest.len() * 2 * size_of::<(u64, u16)>() + self.heap) as u64
    }

    /// Takes up `turn`, which was over at `over`.
    pub(super) fn push(&mut self, turn: &Turn, over: Instant, packed: Packed<Answer>) {
        turn.facts.look(|facts, exchange| self.put(turn, facts, exchange, over, packed));
    }

    fn put(&mut self, turn: &Turn, facts: &Facts, exchange: &Exchange, over: Instant, packed: Packed<Answer>) {
        let Packed { followers, is_delivered, answer, broken } = packed;
        let mut has_names = false;
        let more = match More::of(turn, facts, broken) {
            None => NONE,
            Some(more) => {
                has_names = more.names().next().is_some();
                self.heap += more.heap();
                self.more.push(more);
                u16::try_from(self.more.len() - 1).unwrap_or(NONE)
            }
        };
        if followers > 0 {
            self.followed += answer.map_or(0, Answer::bytes);
        }
        self.streams += usize::from(turn.streams);
        if self.turns.is_empty() {
            self.began = over;
        }
        self.until = self.until.max(over);
        let key = place_in(&mut self.keys, &turn.key);
        let upstream = exchange.upstream.as_ref().map_or(NONE, |upstream| place_in(&mut self.upstreams, upstream));
        let (message, began, streams) = (turn.marks.message, turn.began, turn.streams);
        self.turns.push(Placed { message, began, followers, more, older: NONE, is_delivered, streams });
        if has_names || self.turns.len() - self.tabled >= TABLED_AT_ONCE {
            self.table();
        }
        let Answer { status, at, fields, body } =
            answer.unwrap_or(Answer { status: None, at: NO_ANSWER, fields: 0, body: 0 });
        self.told.push(Told {
            sent: Since::of(exchange.sent, began),
            answered: Since::of(exchange.answered, began),
            at,
            fields,
            body,
            usage: facts.usage.map(narrow),
            status,
            key,
            upstream,
            outcome: facts.outcome,
            attempts: exchange.attempts,
            sends: turn.sends,
        });
        // the memory of the next one is in no cache, and whoever writes to it would wait
        prefetch_index(&self.turns, self.turns.len());
        prefetch_index(&self.told, self.told.len());
    }

    /// Puts in the table what is not there yet.
    fn table(&mut self) {
        let Self { turns, more, latest, tabled, .. } = self;
        for (place, placed) in turns.iter_mut().enumerate().skip(*tabled) {
            let place = u16::try_from(place).unwrap_or(NONE);
            placed.older = latest.insert(beginning(&placed.message), place).unwrap_or(NONE);
            for name in listed(more, placed.more).into_iter().flat_map(More::names) {
                latest.insert(beginning(&name), place);
            }
        }
        *tabled = turns.len();
    }

    pub(super) fn turn(&self, place: u16) -> Option<&Placed> {
        listed(&self.turns, place)
    }

    pub(super) fn more(&self, placed: &Placed) -> Option<&More> {
        listed(&self.more, placed.more)
    }

    pub(super) fn more_mut(&mut self, place: u16) -> Option<&mut More> {
        let more = self.turn(place)?.more;
        self.more.get_mut(usize::from(more))
    }

    pub(super) fn told(&self, place: u16) -> Option<&Told> {
        listed(&self.told, place)
    }

    pub(super) fn key(&self, told: &Told) -> Option<&Arc<str>> {
        listed(&self.keys, told.key)
    }

    pub(super) fn facts(&self, placed: &Placed, told: &Told) -> (Facts, Exchange) {
        let Told { outcome, usage, attempts, sent, answered, .. } = *told;
        let mut facts = Facts { outcome, usage: usage.map(wide), ..Facts::default() };
        let (sent, answered) = (sent.after(placed.began), answered.after(placed.began));
        if let Some(more) = self.more(placed) {
            (facts.queued, facts.first_event, facts.longest_gap) = (more.queued, more.first_event, more.longest_gap);
        }
        let upstream = listed(&self.upstreams, told.upstream).cloned();
        (facts, Exchange { upstream, attempts, sent, answered })
    }

    /// Bytes of the answer of the turn there.
    fn answer_bytes(&self, place: u16) -> u64 {
        self.told(place).and_then(Told::answer).map_or(0, Answer::bytes)
    }

    /// One more follows the turn there. The bytes that are followed now and were not before.
    pub(super) fn entered(&mut self, place: u16) -> u64 {
        let Some(placed) = self.turns.get_mut(usize::from(place)) else { return 0 };
        placed.followers += 1;
        let is_first = placed.followers == 1;
        let more = if is_first { self.answer_bytes(place) } else { 0 };
        self.followed += more;
        more
    }

    /// One who followed the turn there does so no more. The bytes that nobody follows any more.
    pub(super) fn left(&mut self, place: u16, has_all: bool) -> u64 {
        let Some(placed) = self.turns.get_mut(usize::from(place)) else { return 0 };
        placed.is_delivered |= has_all;
        let was_last = placed.followers == 1;
        placed.followers = placed.followers.saturating_sub(1);
        let less = if was_last { self.answer_bytes(place) } else { 0 };
        self.followed -= less;
        less
    }

    /// The place of the latest turn with this name.
    pub(super) fn find(&self, name: &Index) -> Option<u16> {
        let place = *self.latest.get(&beginning(name))?;
        let more = self.more(self.turn(place)?)?;
        more.names().any(|other| other == *name).then_some(place)
    }

    /// The places of the turns with this message, the latest first.
    pub(super) fn alike<'a>(&'a self, message: &'a Index) -> impl Iterator<Item = u16> + 'a {
        let behind = self.turns.iter().enumerate().skip(self.tabled).rev();
        let behind = behind.filter(|(_, placed)| placed.message == *message);
        let behind = behind.filter_map(|(place, _)| u16::try_from(place).ok());
        let latest = self.latest.get(&beginning(message)).copied();
        let places = std::iter::successors(latest, |place| self.turn(*place).map(|placed| placed.older));
        let tabled = places.take_while(|place| self.turn(*place).is_some_and(|placed| placed.message == *message));
        behind.chain(tabled)
    }
}
