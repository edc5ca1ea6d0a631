//! What one connection has done so far, in counters: written on the hot path, read by its watchdog.
//!
//! No clock is read and no lock taken here. All that happens on the socket happens in the connection's own task, so its
//! counters have one writer and are plain loads and stores; only [`Progress::ended`] and the bell are told by other tasks.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use tokio::time::Instant;

/// How long requests may still come that crossed the GOAWAY on their way.
const CROSSING: Duration = Duration::from_secs(1);

/// The counters of one connection, and the bell that calls its watchdog.
#[derive(Debug, Default)]
pub(super) struct Progress {
    reads: AtomicU32,
    writes: AtomicU32,
    owed: AtomicBool,
    begun: AtomicU32,
    ended: AtomicU32,
    head_open: AtomicBool,
    head_mark: AtomicU32,
    preface: AtomicBool,
    heard: AtomicBool,
    closing: AtomicBool,
    idle: AtomicBool,
    asleep: AtomicBool,
    called: AtomicBool,
    rung: AtomicBool,
    task: OnceLock<Waker>,
    /// When the client was told that the gateway drains.
    drained: OnceLock<Instant>,
}

/// The counters at one moment. They wrap; only whether they changed is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Reads that brought bytes of the protocol (after TLS).
    pub(super) reads: u32,
    /// Writes the socket took (under TLS).
    pub(super) writes: u32,
    /// The socket has not taken all it was given.
    pub(super) owed: bool,
    /// Requests handed to the service.
    pub(super) begun: u32,
    /// Requests whose response body is not over.
    pub(super) in_flight: u32,
    /// HTTP/2: a frame head or a header block has begun and is not complete.
    pub(super) head_open: bool,
    /// HTTP/2: changes whenever a frame head or a header block is complete.
    pub(super) head_mark: u32,
    /// HTTP/2: the client preface is complete.
    pub(super) preface: bool,
    /// Our side is closing the socket.
    pub(super) closing: bool,
}

impl Progress {
    pub(super) fn new() -> Arc<Self> {
        // called: the watchdog's first look sets its first alarm
        Arc::new(Self { called: AtomicBool::new(true), ..Self::default() })
    }

    pub(super) fn seen(&self) -> Seen {
        let begun = self.begun.load(Ordering::Relaxed);
        Seen {
            reads: self.reads.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            owed: self.owed.load(Ordering::Relaxed),
            begun,
            in_flight: begun.wrapping_sub(self.ended.load(Ordering::Acquire)),
            head_open: self.head_open.load(Ordering::Relaxed),
            head_mark: self.head_mark.load(Ordering::Relaxed),
            preface: self.preface.load(Ordering::Relaxed),
            closing: self.closing.load(Ordering::Relaxed),
        }
    }

    /// Bytes of the protocol were read.
    pub(super) fn read(&self) {
        bump(&self.reads);
        self.active();
    }

    /// Where the client's frames stand.
    pub(super) fn frames(&self, preface: bool, head_open: bool, head_mark: u32) {
        self.preface.store(preface, Ordering::Relaxed);
        self.head_open.store(head_open, Ordering::Relaxed);
        self.head_mark.store(head_mark, Ordering::Relaxed);
    }

    /// The socket took bytes.
    pub(super) fn wrote(&self) {
        bump(&self.writes);
        self.owed.store(false, Ordering::Relaxed);
        self.active();
    }

    /// The socket takes no more for now.
    pub(super) fn owes(&self) {
        self.owed.store(true, Ordering::Relaxed);
        self.active();
    }

    /// The client has sent something, be it half a TLS record.
    pub(super) fn hear(&self) {
        self.heard.store(true, Ordering::Relaxed);
    }

    pub(super) fn heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    /// Our side begins to close the socket.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        self.called.store(true, Ordering::Relaxed);
    }

    /// The connection is closed between requests: nothing of the client's can still be on its way.
    pub(super) fn close_idle(&self) {
        self.idle.store(true, Ordering::Relaxed);
    }

    pub(super) fn closed_idle(&self) -> bool {
        self.idle.load(Ordering::Relaxed)
    }

    /// The client is told now that the gateway drains.
    pub(super) fn drain(&self) {
        self.drained.get_or_init(Instant::now);
    }

    /// A request that begins now was begun by a client that knew, or would not hear, that it comes too late.
    pub(super) fn is_late(&self) -> bool {
        self.drained.get().is_some_and(|since| since.elapsed() >= CROSSING)
    }

    /// A request begins; over when the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> InFlight {
        bump(&self.begun);
        InFlight(Arc::clone(self))
    }

    /// A request is under way.
    pub(super) fn has_requests(&self) -> bool {
        self.begun.load(Ordering::Relaxed) != self.ended.load(Ordering::Relaxed)
    }

    fn ended(&self) {
        self.ended.fetch_add(1, Ordering::Release);
    }

    /// Calls a sleeping watchdog back: it is polled after the connection, in this same poll.
    fn active(&self) {
        if self.asleep.load(Ordering::Relaxed) {
            self.asleep.store(false, Ordering::Relaxed);
            self.called.store(true, Ordering::Relaxed);
        }
    }

    /// From here on any activity calls the watchdog.
    pub(super) fn fall_asleep(&self, asleep: bool) {
        self.asleep.store(asleep, Ordering::Relaxed);
    }

    /// Whether the watchdog was called since it was last asked.
    pub(super) fn called(&self) -> bool {
        self.called.load(Ordering::Relaxed) && self.called.swap(false, Ordering::Acquire)
    }

    /// Whether the bell has rung since this was last asked.
    pub(super) fn has_rung(&self) -> bool {
        self.rung.load(Ordering::Relaxed) && self.rung.swap(false, Ordering::Acquire)
    }

    /// The task to wake when the watchdog is called from outside of it. A connection lives in one task, whose waker
    /// never changes.
    pub(super) fn belongs_to(&self, task: &Waker) {
        self.task.get_or_init(|| task.clone());
    }
}

/// The bell: the watchdog's own waker, and the socket's while a request is under way. Timer and drain call the watchdog
/// only, so that it costs nothing when the socket wakes the task.
impl Wake for Progress {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.called.store(true, Ordering::Release);
        if let Some(task) = self.task.get() {
            task.wake_by_ref();
        }
    }
}

/// One request in flight; over when dropped.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Progress>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.ended();
    }
}

/// One more, by the only writer.
fn bump(counter: &AtomicU32) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}
