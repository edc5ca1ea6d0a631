//! One HTTP/1.1 connection to a replica, driven by the task that uses it.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::Response;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::unconstrained;
use tokio::time::{Instant, timeout};

use super::alarm::Alarm;
use crate::body::{Request, RequestBody};
use crate::dial::{Failure, dial};
use crate::error::Cause;
use crate::socket::OnePiece;
use crate::telemetry::metrics::{Gauged, UpstreamMetrics};

/// Bytes of an answer read ahead for a client that takes them slowly; also the most a response head may have.
const READ_BUFFER: usize = 16 * 1024;

type Io = TokioIo<OnePiece<TcpStream>>;
type Driver = Pin<Box<http1::Connection<Io, RequestBody>>>;

/// An open connection. Dropping it closes it.
pub(super) struct Connection {
    sender: http1::SendRequest<RequestBody>,
    /// None: it is closed. What it had not begun to write has been given back.
    driver: Option<Driver>,
    alarm: Alarm,
    /// When it was last given back.
    pub(super) parked: Instant,
    _open: Gauged,
}

/// Why there is no answer.
pub(super) enum Unanswered {
    /// Nothing of the request was written; here it is again.
    NotSent(Request, Cause),
    /// The replica closed the connection; it may have the request.
    Closed(Cause),
    /// The deadline passed.
    Late,
}

impl Connection {
    /// Dials `authority` within `patience`.
    pub(super) async fn open(authority: &str, patience: Duration, metrics: &UpstreamMetrics) -> Result<Self, Failure> {
        let replica = |cause: Cause| Failure::Replica(cause);
        let stream = timeout(patience, dial(authority)).await.map_err(|late| replica(late.into()))??;
        stream.set_nodelay(true).map_err(|error| replica(error.into()))?;
        let connection = http1::Builder::new().max_buf_size(READ_BUFFER).handshake(TokioIo::new(OnePiece(stream)));
        let (sender, driver) = connection.await.map_err(|error| replica(error.into()))?;
        let now = Instant::now();
        Ok(Self {
            sender,
            driver: Some(Box::pin(driver)),
            alarm: Alarm::at(now + patience),
            parked: now,
            _open: Gauged::new(&metrics.connections),
        })
    }

    /// Sends `request` and waits for the head of its answer until `deadline`.
    pub(super) fn exchange(
        &mut self,
        request: Request,
        deadline: Instant,
    ) -> impl Future<Output = Result<Response<Incoming>, Unanswered>> {
        let Self { sender, driver, alarm, .. } = self;
        alarm.move_to(deadline);
        async move {
            // asked whenever the driver has been, which alone delivers the answer or gives the request back: nobody is to be
            // woken for it. Unconstrained: with tokio's budget spent an answer would be left where it is, and who is woken
            // to ask again would be nobody
            let mut answer = pin!(unconstrained(sender.try_send_request(*request)));
            std::future::poll_fn(|cx| {
                drive(driver, cx);
                match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(Ok(response)) => return Poll::Ready(Ok(response)),
                    Poll::Ready(Err(mut failure)) => {
                        return Poll::Ready(Err(match failure.take_message() {
                            Some(request) => Unanswered::NotSent(Box::new(request), failure.into_error().into()),
                            None => Unanswered::Closed(failure.into_error().into()),
                        }));
                    }
                    Poll::Pending => {}
                }
                alarm.poll(cx).map(|()| Err(Unanswered::Late))
            })
            .await
        }
    }

    /// Lets the connection read and write.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) {
        drive(&mut self.driver, cx);
    }

    /// Sets the deadline that [`Connection::poll_late`] tells of.
    pub(super) fn expect_by(&mut self, deadline: Instant) {
        self.alarm.move_to(deadline);
    }

    /// Ready once the deadline has passed.
    pub(super) fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.alarm.poll(cx)
    }

    /// True if it can take a request now.
    pub(super) fn is_ready(&self) -> bool {
        self.driver.is_some() && self.sender.is_ready()
    }
}

fn drive(driver: &mut Option<Driver>, cx: &mut Context<'_>) {
    // its error also reaches whoever waits for the answer or its body
    if driver.as_mut().is_some_and(|open| open.as_mut().poll(cx).is_ready()) {
        *driver = None;
    }
}
