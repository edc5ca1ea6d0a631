//! What comes together goes on together.
//!
//! Waking whoever sleeps at the other end of a socket costs the kernel more than a write does, a tenth of a request's
//! time. Where many requests are under way, each lets the others come as far as itself before it writes: the first of
//! them wakes the other end, and it is awake for the rest.

use std::future::poll_fn;
use std::task::Poll;

/// So many requests at once are a crowd: what one of them waits for the others is less than it saves.
const CROWD: i64 = 16;

/// Lets the others come up if there are many, those that the sockets have news for included. `under_way`: requests that
/// wait for the same other end.
pub async fn gather(under_way: i64) {
    if under_way >= CROWD {
        tokio::task::yield_now().await;
    }
}

/// The same, but the sockets are not looked at first. For a task that has been woken while it runs, as hyper wakes one
/// that takes the last of a body from a connection it drives itself: it is polled again anyway, and `yield_now` would have
/// it polled once more for nothing.
pub async fn gather_woken(under_way: i64) {
    if under_way < CROWD {
        return;
    }
    let mut has_waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, Mutex};

    use futures_util::FutureExt as _;
    use tokio::sync::oneshot;
    use tokio::task::yield_now;

    use super::*;

    #[test]
    fn a_few_wait_for_nobody() {
        assert!(gather(CROWD - 1).now_or_never().is_some() && gather_woken(CROWD - 1).now_or_never().is_some());
    }

    /// What comes of a task that waits by `wait` and one that is ready behind it.
    async fn order(wait: impl Future<Output = ()> + Send + 'static) -> Vec<&'static str> {
        let order = Arc::new(Mutex::new(Vec::new()));
        let push = |order: &Mutex<Vec<_>>, what| order.lock().unwrap().push(what);
        let (first, second) = (Arc::clone(&order), Arc::clone(&order));
        let waits = tokio::spawn(async move {
            push(&first, "waits");
            wait.await;
            push(&first, "goes on");
        });
        let ready = tokio::spawn(async move { push(&second, "comes up") });
        waits.await.unwrap();
        ready.await.unwrap();
        order.lock().unwrap().clone()
    }

    #[tokio::test]
    async fn many_let_those_come_up_that_are_ready() {
        assert_eq!(order(gather(CROWD)).await, ["waits", "comes up", "goes on"]);
        assert_eq!(order(gather_woken(CROWD)).await, ["waits", "comes up", "goes on"]);
    }

    #[tokio::test]
    async fn who_has_been_woken_already_is_polled_once_for_having_waited_and_not_twice() {
        let polls = Arc::new(AtomicU32::new(0));
        let (tell, told) = oneshot::channel();
        let mut work = Box::pin(async {
            poll_fn(|cx| {
                cx.waker().wake_by_ref();
                Poll::Ready(())
            })
            .await;
            gather_woken(CROWD).await;
            told.await
        });
        let counted = Arc::clone(&polls);
        let task = tokio::spawn(poll_fn(move |cx| {
            counted.fetch_add(1, Ordering::Relaxed);
            work.as_mut().poll(cx)
        }));
        for _ in 0..8 {
            yield_now().await;
        }
        assert_eq!(polls.load(Ordering::Relaxed), 2, "once, and once for having waited");
        tell.send(()).unwrap();
        task.await.unwrap().unwrap();
    }
}
