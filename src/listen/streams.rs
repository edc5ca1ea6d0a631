//! Runs the streams of one HTTP/2 connection, and resets those whose client takes nothing of them for too long.
//!
//! The connection itself may be as lively as can be: flow control is per stream (RFC 9113 §5.2), so the watchdog of
//! the socket never sees such a stall. The timer is made only when a stream stalls.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};
use tokio_util::task::TaskTracker;

use super::outgoing::Stream;
use super::reason::Reason;
use crate::telemetry::metrics::ListenerMetrics;

/// The streams of one connection: hyper's executor.
#[derive(Clone)]
pub(super) struct Streams(Arc<Inner>);

struct Inner {
    tasks: TaskTracker,
    timeout: Duration,
    metrics: Arc<ListenerMetrics>,
    /// hyper calls the service for a request and at once executes the stream's task: the one in between is here.
    next: Mutex<Option<Arc<Stream>>>,
}

impl Streams {
    pub(super) fn new(tasks: TaskTracker, timeout: Duration, metrics: Arc<ListenerMetrics>) -> Self {
        Self(Arc::new(Inner { tasks, timeout, metrics, next: Mutex::new(None) }))
    }

    /// A stream whose task is executed next.
    pub(super) fn open(&self) -> Arc<Stream> {
        let stream = Arc::new(Stream::default());
        *self.0.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&stream));
        stream
    }
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        let Some(stream) = self.0.next.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            self.0.tasks.spawn(async move {
                task.await;
            });
            return;
        };
        let this = self.clone();
        self.0.tasks.spawn(async move {
            let mut task = pin!(task);
            let mut stall = Stall { stream, timeout: this.0.timeout, alarm: None };
            let stalled = poll_fn(|cx| match task.as_mut().poll(cx) {
                Poll::Ready(_) => Poll::Ready(false),
                Poll::Pending => stall.poll(cx).map(|()| true),
            })
            .await;
            // the task is dropped here: a stream that has not ended is reset (CANCEL), and lets go of all it held
            if stalled {
                this.0.metrics.error(Reason::WriteTimeout.as_str());
            }
        });
    }
}

/// Ready when one stream has stalled too long.
struct Stall {
    stream: Arc<Stream>,
    timeout: Duration,
    /// The timer and the piece it was set for; kept for the next stall.
    alarm: Option<(Pin<Box<Sleep>>, u32)>,
}

impl Stall {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(piece) = self.stream.stalled_at() else {
            return Poll::Pending;
        };
        let (sleep, set_for) = self.alarm.get_or_insert_with(|| (Box::pin(tokio::time::sleep(self.timeout)), piece));
        if *set_for != piece {
            *set_for = piece;
            sleep.as_mut().reset(Instant::now() + self.timeout);
        }
        sleep.as_mut().poll(cx)
    }
}
