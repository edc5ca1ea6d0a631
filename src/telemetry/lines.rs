//! Lines on their way to a slow writer: a bounded buffer, and one thread that empties it.
//!
//! Whoever has a line to write pays a copy under a short lock and never waits: if the writer is stuck (a full pipe, a
//! stopped terminal) lines are dropped and counted once [`MOST`] bytes wait. The thread writes the first line at once
//! and then gathers for [`REST`], so that a busy gateway makes few system calls and an idle one wakes nobody.

use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that may wait for the writer.
pub(super) const MOST: usize = 1 << 20;
/// So many bytes end a rest early. Few enough that what is written to is in the cache still: more of them would drive
/// what requests need out of it.
const PLENTY: usize = MOST / 16;
/// How long lines are gathered between two writes.
const REST: Duration = Duration::from_millis(50);
/// How long a writer that would block is left alone; only a descriptor somebody else made non-blocking ever does.
const WOULD_BLOCK: Duration = Duration::from_millis(10);

/// Takes lines; clones write to the same writer.
#[derive(Clone)]
pub(super) struct Lines(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// The thread waits here for lines.
    work: Condvar,
    /// [`Lines::close`] waits here for the thread.
    done: Condvar,
    dropped: Box<dyn Fn(u64) + Send + Sync>,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// The thread sleeps until somebody wakes it.
    asleep: bool,
    closing: bool,
    /// The thread is gone, its last line written; or the reader is.
    ended: bool,
}

impl Lines {
    /// Starts the thread called `name`; `dropped` is told of lines that were lost.
    pub(super) fn start(
        name: &str,
        mut writer: impl Write + Send + 'static,
        dropped: impl Fn(u64) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
            dropped: Box::new(dropped),
        });
        let lines = Self(Arc::clone(&shared));
        // detached: `close` waits for its end, and a process that exits does not wait for a stuck reader
        thread::Builder::new().name(name.to_owned()).spawn(move || shared.run(&mut writer))?;
        Ok(lines)
    }

    /// Takes one whole line, its line feed included.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.0.lock();
        if state.ended || state.closing || state.waiting.len() + line.len() > MOST {
            drop(state);
            (self.0.dropped)(1);
            return;
        }
        let before = state.waiting.len();
        state.waiting.extend_from_slice(line);
        let wake = state.asleep || (before < PLENTY && state.waiting.len() >= PLENTY);
        state.asleep = false;
        drop(state);
        if wake {
            self.0.work.notify_one();
        }
    }

    /// Writes what waits and ends the thread; false if that took longer than `patience`. Blocks: not for a runtime's
    /// thread. Lines that come later are dropped and counted.
    pub(super) fn close(&self, patience: Duration) -> bool {
        let mut state = self.0.lock();
        state.closing = true;
        self.0.work.notify_one();
        let until = Instant::now() + patience;
        while !state.ended {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.0.done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, writer: &mut impl Write) {
        let mut batch = Vec::new();
        let mut state = self.lock();
        loop {
            while state.waiting.is_empty() && !state.closing {
                state.asleep = true;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.asleep = false;
            if state.waiting.is_empty() {
                break;
            }
            std::mem::swap(&mut state.waiting, &mut batch);
            drop(state);
            let reader_left = self.write(writer, &batch);
            batch.clear();
            state = self.lock();
            if reader_left {
                break;
            }
            let rest =
                self.work.wait_timeout_while(state, REST, |state| !state.closing && state.waiting.len() < PLENTY);
            state = rest.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.ended = true;
        let lost = count(&std::mem::take(&mut state.waiting));
        drop(state);
        self.lost(lost);
        self.done.notify_all();
    }

    /// True if nobody reads any more. Any other failure (a full disk) costs these lines and not the ones to come.
    fn write(&self, writer: &mut impl Write, mut batch: &[u8]) -> bool {
        while !batch.is_empty() {
            match writer.write(batch) {
                Ok(written @ 1..) => batch = batch.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(WOULD_BLOCK),
                failed => {
                    self.lost(count(batch));
                    return matches!(failed, Err(error) if error.kind() == ErrorKind::BrokenPipe);
                }
            }
        }
        let _ = writer.flush();
        false
    }

    fn lost(&self, lines: u64) {
        if lines > 0 {
            (self.dropped)(lines);
        }
    }
}

fn count(lines: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', lines).count() as u64
}

#[cfg(test)]
mod tests;
