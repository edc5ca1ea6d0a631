//! The one trait a pipeline step implements, and the only code that adapts it to tower.
//!
//! A step takes the request as the step above it left it (its type is the evidence of what was checked), adds to the
//! [`Record`], and either answers or hands its own request type to the next. Steps are futures of one another, not
//! boxes: a whole stack is one future, allocated once by the connection that serves it.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use futures_util::FutureExt as _;

use crate::body::Response;
use crate::error::Error;
use crate::telemetry::Record;

/// Answers requests of one type: a step with all that is below it.
pub trait Handle<Request>: Send + Sync {
    fn handle(&self, request: Request, record: &mut Record) -> impl Future<Output = Result<Response, Error>> + Send;
}

/// One step of the pipeline, above `Next`.
pub trait Step<Request, Next>: Send + Sync {
    fn call(
        &self,
        request: Request,
        record: &mut Record,
        next: &Next,
    ) -> impl Future<Output = Result<Response, Error>> + Send;
}

/// A step on what is below it.
pub struct Stacked<S, Next> {
    step: Arc<S>,
    next: Next,
}

impl<S, Next, Request> Handle<Request> for Stacked<S, Next>
where
    S: Step<Request, Next>,
    Next: Send + Sync,
    Request: Send,
{
    fn handle(&self, request: Request, record: &mut Record) -> impl Future<Output = Result<Response, Error>> + Send {
        self.step.call(request, record, &self.next)
    }
}

/// What is below a step that hands on requests in tasks of their own.
impl<H: Handle<Request>, Request> Handle<Request> for Arc<H> {
    fn handle(&self, request: Request, record: &mut Record) -> impl Future<Output = Result<Response, Error>> + Send {
        H::handle(self, request, record)
    }
}

/// Makes a step a [`tower::Layer`], so that `ServiceBuilder` stacks it in reading order.
pub struct Layer<S>(Arc<S>);

impl<S> Layer<S> {
    pub fn new(step: S) -> Self {
        Self(Arc::new(step))
    }

    /// A step that others look at too.
    pub fn shared(step: &Arc<S>) -> Self {
        Self(Arc::clone(step))
    }
}

impl<S, Next> tower::Layer<Next> for Layer<S> {
    type Service = Stacked<S, Next>;

    fn layer(&self, next: Next) -> Self::Service {
        Stacked { step: Arc::clone(&self.0), next }
    }
}

/// Makes `answer` a [`tower::Service`] that never fails and is always ready.
pub fn service<Request, Answer, Answered>(
    answer: Answer,
) -> impl tower::Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send
where
    Answer: Fn(Request) -> Answered + Clone + Send,
    Answered: Future<Output = Response> + Send,
    Request: Send,
{
    // mapped, not awaited in a block: that would hold the answer's future twice, once as it came and once as it runs
    tower::service_fn(move |request| answer(request).map(Ok::<_, Infallible>))
}
