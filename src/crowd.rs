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

/// Lets those come up that can go on now: the sockets are not looked at for more of them. For whoever is to be polled again
/// anyway, as hyper's client has it whose answer came whole.
pub async fn gather_ready(under_way: i64) {
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
