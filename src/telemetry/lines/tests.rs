//! What the writer of lines promises.

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
    // refused at once, or counted by the thread on its way out
    lines.push(b"c\n");
    assert!(lines.close(PATIENCE));
    wait_until("the line after it is counted too", || dropped.load(Ordering::SeqCst) == 3);
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
