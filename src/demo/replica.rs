//! A stand-in that answers in Letta's shapes and says in every answer that it is not Letta.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, SERVER};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{Interval, interval};

/// The one agent the stand-ins have.
pub(super) const AGENT: &str = "agent-00000000-0000-4000-8000-00000000de30";
/// Bytes of a message at most.
const LONGEST: usize = 1024 * 1024;
/// Between two words of a stream.
const PACE: Duration = Duration::from_millis(150);

type Answer = Response<Reply>;

/// Serves until dropped; returns where.
pub(super) async fn start(name: &'static str) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(move |request| answer(name, request));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    Ok(address)
}

async fn answer(name: &'static str, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let path = request.uri().path().to_owned();
    let rest = path.strip_prefix("/v1/agents/").unwrap_or_default();
    let answer = match (request.method(), path.as_str()) {
        (&Method::GET, "/v1/health/") => {
            json(StatusCode::OK, &json!({ "version": "demo (not Letta)", "status": "ok" }))
        }
        (&Method::GET, "/v1/agents/") => json(StatusCode::OK, &json!([agent(name)])),
        (&Method::GET, _) if rest == AGENT => json(StatusCode::OK, &agent(name)),
        (&Method::POST, _) if rest.strip_prefix(AGENT).is_some_and(|end| end.starts_with("/messages")) => {
            let always = rest.ends_with("/stream");
            message(name, request, always).await
        }
        _ => json(StatusCode::NOT_FOUND, &json!({ "detail": "the demo replica (not Letta) has no such thing" })),
    };
    Ok(answer)
}

async fn message(name: &str, request: Request<Incoming>, always_stream: bool) -> Answer {
    let body = Limited::new(request.into_body(), LONGEST).collect().await.map(|body| body.to_bytes());
    let body: Value = body.ok().and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default();
    let said = body.get("input").and_then(Value::as_str).or_else(|| body.pointer("/messages/0/content")?.as_str());
    let Some(said) = said else {
        let detail = "demo replica (not Letta): send {\"input\": \"…\"} or {\"messages\": [{\"role\": \"user\", \"content\": \"…\"}]}";
        return json(StatusCode::UNPROCESSABLE_ENTITY, &json!({ "detail": detail }));
    };
    let text = format!("[demo replica {name}, not Letta] you said: {said}");
    let words = u64::try_from(text.split_whitespace().count()).unwrap_or(0);
    let usage = json!({ "message_type": "usage_statistics", "completion_tokens": words, "prompt_tokens": 1, "total_tokens": words + 1, "step_count": 1 });
    let stop = json!({ "message_type": "stop_reason", "stop_reason": "end_turn" });
    if !always_stream && body.get("streaming").and_then(Value::as_bool) != Some(true) {
        let messages = json!([assistant(&text)]);
        return json(StatusCode::OK, &json!({ "messages": messages, "stop_reason": stop, "usage": usage }));
    }
    let events =
        text.split_inclusive(' ').map(assistant).chain([stop, usage]).map(|event| format!("data: {event}\n\n"));
    let events: Vec<Bytes> = events.chain(["data: [DONE]\n\n".to_owned()]).map(Bytes::from).collect();
    let mut answer = Response::new(Reply::Events(interval(PACE), events.into_iter()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    answer
}

fn assistant(content: &str) -> Value {
    json!({ "id": "message-00000000-0000-4000-8000-00000000de30", "message_type": "assistant_message", "content": content })
}

fn agent(name: &str) -> Value {
    json!({ "id": AGENT, "name": "demo", "description": format!("answered by demo replica {name}, not by Letta") })
}

fn json(status: StatusCode, value: &Value) -> Answer {
    let mut answer = Response::new(Reply::Whole(Full::from(value.to_string())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer.headers_mut().insert(SERVER, HeaderValue::from_static("letta-gateway-demo"));
    answer
}

/// Whole, or an event at each tick.
enum Reply {
    Whole(Full<Bytes>),
    Events(Interval, std::vec::IntoIter<Bytes>),
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(whole) => Pin::new(whole).poll_frame(cx),
            Self::Events(ticks, events) => {
                ready!(ticks.poll_tick(cx));
                Poll::Ready(events.next().map(|event| Ok(Frame::data(event))))
            }
        }
    }
}
