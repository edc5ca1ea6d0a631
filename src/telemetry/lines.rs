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
/// So many bytes end a rest early.
const PLENTY: usize = MOST / 4;
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
mod tests {
    use std::io::Read;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn counted(writer: impl Write + Send + 'static) -> (Lines, Arc<AtomicU64>) {
        let dropped = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&dropped);
        let lines = Lines::start("lines", writer, move |lines| {
            told.fetch_add(lines, Ordering::SeqCst);
        });
        (lines.unwrap(), dropped)
    }

    fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < until, "{what}: not within {PATIENCE:?}");
            thread::yield_now();
        }
    }

    #[test]
    fn every_line_is_written_in_order_before_close_returns() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (lines, dropped) = counted(writer);
        let expected: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        for n in 0..1000 {
            lines.push(format!("line {n}\n").as_bytes());
        }
        assert!(lines.close(PATIENCE));
        drop(lines);
        let mut seen = String::new();
        reader.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, expected);
        assert_eq!(dropped.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_line_is_written_without_waiting_for_more() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (lines, _) = counted(writer);
        for _ in 0..3 {
            lines.push(b"one\n");
            let mut seen = [0; 4];
            reader.read_exact(&mut seen).unwrap();
            assert_eq!(&seen, b"one\n");
        }
    }

    #[test]
    fn a_stuck_reader_stalls_nobody_and_lines_beyond_the_bound_are_counted() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (lines, dropped) = counted(writer);
        let line = [vec![b'x'; 1023], vec![b'\n']].concat();
        // nobody reads: a pipe holds 64 KiB, one batch hangs in `write`, one more may wait
        let pushed = 4 * MOST / line.len();
        for _ in 0..pushed {
            lines.push(&line);
        }
        let lost = dropped.load(Ordering::SeqCst);
        assert!(lost > 0, "nothing was dropped");
        assert!(!lines.close(Duration::from_millis(1)), "closed although the reader is stuck");
        let drained = thread::spawn(move || {
            let mut seen = Vec::new();
            reader.read_to_end(&mut seen).map(|_| seen.len())
        });
        assert!(lines.close(PATIENCE));
        drop(lines);
        assert_eq!(drained.join().unwrap().unwrap(), (pushed - usize::try_from(lost).unwrap()) * line.len());
    }

    #[test]
    fn a_reader_that_left_ends_the_log_quietly() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let (lines, dropped) = counted(writer);
        lines.push(b"a\nb\n");
        wait_until("the thread ends", || dropped.load(Ordering::SeqCst) == 2);
        lines.push(b"c\n");
        assert_eq!(dropped.load(Ordering::SeqCst), 3);
        assert!(lines.close(PATIENCE));
    }

    #[test]
    fn a_failing_write_costs_its_lines_and_not_the_next() {
        struct FullOnce(bool, io::PipeWriter);
        impl Write for FullOnce {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                if std::mem::replace(&mut self.0, false) {
                    return Err(ErrorKind::StorageFull.into());
                }
                self.1.write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                self.1.flush()
            }
        }
        let (mut reader, writer) = io::pipe().unwrap();
        let (lines, dropped) = counted(FullOnce(true, writer));
        lines.push(b"lost\n");
        wait_until("the first line is lost", || dropped.load(Ordering::SeqCst) == 1);
        lines.push(b"kept\n");
        assert!(lines.close(PATIENCE));
        drop(lines);
        let mut seen = String::new();
        reader.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "kept\n");
    }

    #[test]
    fn lines_after_close_are_counted_as_dropped() {
        let (lines, dropped) = counted(io::sink());
        assert!(lines.close(PATIENCE));
        lines.push(b"late\n");
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
    }
}
