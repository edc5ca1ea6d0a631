//! What the access log promises.

use std::io::Read;

use http::{HeaderValue, Method};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::body::Watch;
use crate::error::Error;
use crate::letta::routes::{Pace, Route, Scope, Sends};
use crate::telemetry::metrics::CacheResult;
use crate::telemetry::record::Sink;

static SEND: Route = Route {
    index: 0,
    method: Method::POST,
    template: "/v1/agents/{agent_id}/messages",
    scope: Scope::Message,
    pace: Pace::Long,
    subject: Subject::Agent,
    sends: Some(Sends::Agent),
    watched: None,
};

/// The lines written for records that `make` made and dropped.
fn lines(make: impl FnOnce(&dyn Fn(&[u8]) -> Record, &Metrics)) -> Vec<Value> {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let metrics = Arc::new(Metrics::new());
    let access = AccessLog::to(writer, Arc::clone(&metrics));
    let sink = Sink::new(Arc::clone(&metrics), access.clone());
    let record = |id: &[u8]| {
        let id = HeaderValue::from_bytes(id).unwrap();
        Record::new(sink.clone(), id, IpAddr::from([192, 0, 2, 7]), Method::POST, Version::HTTP_2)
    };
    make(&record, &metrics);
    assert!(access.close(Duration::from_secs(10)));
    drop((sink, access));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_line_tells_the_whole_story_of_a_request() {
    let start = Instant::now();
    let at = |millis| Some(start + Duration::from_millis(millis));
    let mut told = lines(|record, metrics| {
        let mut record = record(b"req-1");
        record.route = Some(&SEND);
        record.subject = Some("agent-1".into());
        record.key = Some(metrics.key("team-a"));
        record.upstream = Some(metrics.upstream("letta-1:8283"));
        (record.attempts, record.status, record.cache) = (1, 200, Some(CacheResult::Miss));
        (record.sent, record.answered, record.responded) = (at(1), at(11), at(12));
        (record.request_bytes, record.response_bytes) = (100, 2000);
        record.end(Ok(()));
    });
    let mut line = told.remove(0);
    assert_eq!(line["ts"].take().as_str().unwrap().len(), "2026-11-24T03:05:19.042Z".len());
    let expected = json!({
        "ts": null, "request_id": "req-1", "client": "192.0.2.7", "protocol": "h2", "method": "POST",
        "route": "/v1/agents/{agent_id}/messages", "agent": "agent-1", "key": "team-a",
        "upstream": "letta-1:8283", "attempts": 1, "status": 200, "cache": "miss", "duration_ms": 0.0,
        "ttfb_ms": 12.0, "upstream_ms": 10.0, "overhead_ms": 2.0, "bytes_in": 100, "bytes_out": 2000,
        "ended_by": "complete",
    });
    assert_eq!(line, expected);
    assert!(told.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_refused_request_tells_why_and_a_client_that_left_has_no_status() {
    let told = lines(|record, _| {
        let mut refused = record(b"refused");
        refused.status = 400;
        refused.failed(&Error::BodyBroken("chunk size\n{\"ts\":\"forged\"}".into()));
        drop(refused);
        drop(record(b"left"));
    });
    assert_eq!(told.len(), 2, "a cause with a line feed began a line of its own");
    assert_eq!((&told[0]["reason"], &told[0]["ended_by"]), (&json!("client_body_broken"), &json!("gateway")));
    assert_eq!(told[0]["cause"], "chunk size\n{\"ts\":\"forged\"}");
    assert_eq!((&told[1]["status"], &told[1]["ended_by"]), (&json!(0), &json!("client")));
    assert_eq!((told[1].get("route"), told[1].get("upstream_ms")), (None, None));
}

#[tokio::test]
async fn no_text_of_a_client_makes_a_line_long_or_breaks_it() {
    let told = lines(|record, _| {
        let mut long = record(&[b'a'; 5000]);
        long.route = Some(&SEND);
        long.subject = Some("\u{1b}[31m\r\n\u{fc}".repeat(2000).into());
        drop((long, record(b"not UTF-8: \xff")));
    });
    assert_eq!(told[0]["request_id"].as_str().map(str::len), Some(LONGEST));
    assert!(told[0]["agent"].as_str().is_some_and(|agent| agent.len() <= LONGEST && agent.contains('\r')));
    assert_eq!(told[1]["request_id"], "");
}

#[test]
fn a_log_that_is_off_takes_records_and_closes_at_once() {
    let metrics = Arc::new(Metrics::new());
    let access = AccessLog::stdout(false, Arc::clone(&metrics));
    let sink = Sink::new(metrics, access.clone());
    let id = HeaderValue::from_static("x");
    drop(Record::new(sink, id, IpAddr::from([127, 0, 0, 1]), Method::GET, Version::HTTP_11));
    assert!(access.close(Duration::ZERO));
}

#[test]
fn no_route_has_what_json_escapes() {
    for route in crate::letta::routes::ROUTES.iter() {
        assert_eq!(serde_json::to_string(route.template).unwrap(), format!("\"{}\"", route.template));
    }
}
