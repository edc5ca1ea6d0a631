//! A deadline that is moved often and reached seldom.
//!
//! Moving it later touches no timer: the timer fires at the old deadline and is set again for the rest. On a connection
//! that is used again and again that is one timer per timeout, not two timer operations per request.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

pub(super) struct Alarm {
    deadline: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Alarm {
    pub(super) fn at(deadline: Instant) -> Self {
        Self { deadline, timer: Box::pin(sleep_until(deadline)) }
    }

    pub(super) fn move_to(&mut self, deadline: Instant) {
        self.deadline = deadline;
        if deadline < self.timer.deadline() {
            self.timer.as_mut().reset(deadline);
        }
    }

    /// Ready once the deadline is reached.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            if Instant::now() >= self.deadline {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(self.deadline);
        }
    }
}
