//! A request on its way from hyper to the service: counted as begun, with the client's address.

use std::cell::RefCell;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::future::{self, Either, FutureExt as _};
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use hyper::service::{HttpService, service_fn};

use super::outgoing::Outgoing;
use super::progress::Progress;
use super::streams::Streams;
use super::{Peer, Service, Unwanted};
use crate::body::{Body, Response};
use crate::boxed;

/// The service of one connection, as hyper calls it. `unwanted`: why none of its requests is wanted, if none is.
///
/// Calls are boxed. The future of the whole pipeline is several KiB; unboxed, hyper keeps room for it on every HTTP/1
/// connection, idle or streaming, and in the task of every HTTP/2 stream to its last byte. The box is gone when the
/// response's head is there, and costs some 40 ns.
pub(super) fn answering<S: Service>(
    service: S,
    peer: Peer,
    progress: Arc<Progress>,
    streams: Option<Streams>,
    unwanted: Option<Unwanted>,
) -> impl HttpService<Incoming, ResBody = Outgoing, Error = Infallible, Future: Send + 'static> + Send {
    let service = RefCell::new(service);
    service_fn(move |mut request: Request<Incoming>| {
        let late = streams.is_some() && progress.is_late();
        if let Some(unwanted) = if late { Some(Unwanted::Late) } else { unwanted } {
            request.extensions_mut().insert(unwanted);
        }
        // what is refused does not keep a connection alive that is to end
        let in_flight = (!late).then(|| progress.begin());
        let stream = streams.as_ref().map(Streams::open);
        let connect = request.method() == Method::CONNECT;
        call(&service, request, peer).map(move |response| {
            let mut response = response;
            // hyper opens a tunnel behind a successful CONNECT; nothing here carries one
            if connect && response.status().is_success() {
                *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            }
            Ok(response.map(|body| Outgoing::new(body, stream, in_flight)))
        })
    })
}

/// Calls `service`, which answers 503 if it is not ready: a request is shed, never parked.
fn call<S: Service>(
    service: &RefCell<S>,
    request: Request<Incoming>,
    peer: Peer,
) -> impl Future<Output = Response> + Send + 'static + use<S> {
    let shed = || {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        Either::Right(future::ready(response))
    };
    let Ok(mut service) = service.try_borrow_mut() else {
        return shed();
    };
    match service.poll_ready(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(())) => Either::Left(boxed::pin(|| service.call((request, peer))).map(|Ok(response)| response)),
        Poll::Pending => shed(),
    }
}
