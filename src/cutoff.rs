//! The moment after which nothing in flight may go on: set once, at the end of the drain time.
//!
//! Asking costs one atomic load. A stream that waits for its replica is woken, so that it can say good-bye before its
//! connection is cut.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// The moment; clones are the same one.
#[derive(Clone, Default)]
pub struct Cutoff(Arc<Moment>);

#[derive(Default)]
struct Moment {
    is_over: AtomicBool,
    bell: Arc<Notify>,
}

impl Cutoff {
    pub fn new() -> Self {
        Self::default()
    }

    /// Now it is over.
    pub fn come(&self) {
        // before the bell: who listens too late for it sees this
        self.0.is_over.store(true, Ordering::SeqCst);
        self.0.bell.notify_waiters();
    }

    pub fn is_over(&self) -> bool {
        self.0.is_over.load(Ordering::SeqCst)
    }

    /// What comes of `work`; `None` if this is over before. `listens`: the task is woken then; else somebody else sees to
    /// it that it is polled.
    pub async fn before<T>(&self, listens: bool, mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        let mut ear = listens.then(|| self.ear());
        std::future::poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => {
                let is_over = ear.as_mut().map_or_else(|| self.is_over(), |ear| ear.poll(cx).is_ready());
                if is_over { Poll::Ready(None) } else { Poll::Pending }
            }
        })
        .await
    }

    /// To be polled by one task, mostly.
    pub fn ear(&self) -> Ear {
        Ear { cutoff: self.clone(), listening: None }
    }
}

impl fmt::Debug for Cutoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cutoff").field(&self.is_over()).finish()
    }
}

/// Waits for a [`Cutoff`] at the cost of two compares a poll.
pub struct Ear {
    cutoff: Cutoff,
    /// What is woken, and what wakes it.
    listening: Option<(Waker, Pin<Box<OwnedNotified>>)>,
}

impl Ear {
    /// Ready once it is over.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let is_heard = self.listening.as_ref().is_some_and(|(waker, _)| waker.will_wake(cx.waker()));
        if !is_heard {
            let mut bell = Box::pin(Arc::clone(&self.cutoff.0.bell).notified_owned());
            let _ = bell.as_mut().poll(cx);
            self.listening = Some((cx.waker().clone(), bell));
        }
        // asked after listening: it may have come in between
        if self.cutoff.is_over() { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test]
    async fn whoever_waits_is_woken_and_whoever_comes_late_need_not_wait() {
        let cutoff = Cutoff::new();
        let mut ear = cutoff.ear();
        let waiting = tokio::spawn(async move { std::future::poll_fn(|cx| ear.poll(cx)).await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished() && !cutoff.is_over());
        cutoff.come();
        waiting.await.unwrap();
        let mut late = cutoff.ear();
        std::future::poll_fn(|cx| late.poll(cx)).await;
        assert!(cutoff.is_over());
    }

    #[tokio::test]
    async fn what_is_done_before_counts_and_what_is_not_is_given_up() {
        let cutoff = Cutoff::new();
        assert_eq!(cutoff.before(true, pin!(async { 1 })).await, Some(1));
        let waiting = {
            let cutoff = cutoff.clone();
            tokio::spawn(async move { cutoff.before(true, pin!(std::future::pending::<()>())).await })
        };
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        cutoff.come();
        assert_eq!(waiting.await.unwrap(), None);
        assert_eq!(cutoff.before(false, pin!(std::future::pending::<()>())).await, None);
        assert_eq!(cutoff.before(false, pin!(async { 1 })).await, Some(1), "what is there is not thrown away");
    }
}
