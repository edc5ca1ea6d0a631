use http::HeaderValue;
use proptest::prelude::*;

use super::*;

const PING: &str = r#"data: {"id":"ping-3089cc47","date":"2026-11-23T23:30:59+00:00","name":null,"message_type":"ping","otid":null,"sender_id":null,"step_id":null,"is_err":null,"seq_id":null,"run_id":"run-bfb403b8-dcef-4dc4-ae2f-6b7455226f7d"}"#;
const RUN: &str = "run-bfb403b8-dcef-4dc4-ae2f-6b7455226f7d";
const STOP: &str = r#"data: {"message_type":"stop_reason","stop_reason":"end_turn"}"#;
const TALK: &str = r#"data: {"id":"message-1","message_type":"assistant_message","content":"\"stop_reason\":\"error\" data: [DONE] event: error"}"#;

/// The scanner after all of `stream`, and where its last border was.
fn scan<'c>(chunks: impl IntoIterator<Item = &'c [u8]>) -> (Scanner, usize) {
    let (mut scanner, mut at, mut last) = (Scanner::new(), 0, 0);
    for chunk in chunks {
        let border = scanner.feed(chunk);
        assert!(border <= chunk.len());
        if border > 0 {
            last = at + border;
        }
        at += chunk.len();
        assert_eq!(scanner.at_border(), last == at, "at a border exactly if all bytes make whole events");
        assert!(scanner.line.len() <= LOOKED_AT);
    }
    (scanner, last)
}

fn seen(scanner: &Scanner) -> (bool, bool, bool, Option<StopReason>, Option<&str>) {
    (scanner.at_border(), scanner.is_done(), scanner.has_error(), scanner.stop_reason(), scanner.run_id())
}

#[test]
fn a_whole_turn_is_seen_to_its_end() {
    let stream = format!("{PING}\n\n{TALK}\n\n{STOP}\n\ndata: [DONE]\n\n");
    let (scanner, border) = scan([stream.as_bytes()]);
    assert_eq!(seen(&scanner), (true, true, false, Some(StopReason::EndTurn), Some(RUN)));
    assert_eq!(border, stream.len());
}

#[test]
fn what_an_agent_says_is_not_taken_for_the_streams_end() {
    let (scanner, _) = scan([format!("{TALK}\n\n").as_bytes()]);
    assert_eq!(seen(&scanner), (true, false, false, None, None));
}

#[test]
fn an_error_event_is_seen_and_so_is_the_second_reason() {
    let stream = format!(
        "{}\n\n{}\n\nevent: error\ndata: {{\"message_type\":\"error_message\"}}\n\n",
        STOP.replace("end_turn", "error"),
        r#"data: {"message_type": "stop_reason", "stop_reason": "llm_api_error"}"#,
    );
    let (scanner, _) = scan([stream.as_bytes()]);
    assert_eq!(seen(&scanner), (true, false, true, Some(StopReason::LlmApiError), None));
}

#[test]
fn a_border_is_where_an_event_ends() {
    for (chunk, border) in [
        ("", 0),
        ("data: a", 0),
        ("data: a\n", 0),
        ("data: a\n\n", 9),
        ("data: a\n\ndata: b\n", 9),
        ("data: a\r\n\r\n", 11),
        ("data: a\r\n\r\ndata", 11),
        ("data: a\r\r", 9),
        ("data: a\r\n\n", 10),
        ("data: a\n\r\n", 10),
        (": keepalive\n\n", 13),
        ("\n", 1),
    ] {
        assert_eq!(Scanner::new().feed(chunk.as_bytes()), border, "{chunk:?}");
    }
}

#[test]
fn a_line_feed_that_comes_after_its_carriage_return_belongs_to_the_event_before() {
    let (scanner, border) = scan([b"data: a\r\n\r".as_slice(), b"\n", b"data: b"]);
    assert_eq!((scanner.at_border(), border), (false, 11));
}

#[test]
fn a_line_of_any_length_is_passed_over_in_bounded_memory() {
    let long = format!("data: {}\n\n{STOP}\n\n", "x".repeat(1 << 20));
    let (scanner, border) = scan(long.as_bytes().chunks(1000));
    assert_eq!((border, scanner.stop_reason()), (long.len(), Some(StopReason::EndTurn)));
}

#[test]
fn an_event_stream_is_known_by_its_content_type() {
    let is = |value: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
        is_event_stream(&headers)
    };
    assert!(is("text/event-stream") && is("text/event-stream; charset=utf-8") && is("Text/Event-Stream;x"));
    assert!(!is("application/json") && !is("text/event-streams") && !is("text/event") && !is(""));
    assert!(!is_event_stream(&HeaderMap::new()));
}

#[test]
fn the_error_event_is_lettas_own_in_shape() {
    let bytes = error_event(Some("run-1"), "stream_incomplete", "the replica closed\nthe \"connection\"");
    let text = "event: error\ndata: {\"message_type\":\"error_message\",\"run_id\":\"run-1\",\
                \"error_type\":\"stream_incomplete\",\"message\":\"the replica closed\\nthe \\\"connection\\\"\",\
                \"detail\":null,\"seq_id\":null}\n\ndata: [DONE]\n\n";
    assert_eq!(bytes, text);
    let (scanner, border) = scan([&*bytes]);
    assert_eq!((border, scanner.has_error(), scanner.is_done()), (bytes.len(), true, true));
    assert!(String::from_utf8_lossy(&error_event(None, "e", "m")).contains("\"run_id\":null"));
}

/// Lines as they may come, each with the line ending that follows it.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        3 => Just(String::new()),
        1 => Just(PING.to_owned()),
        1 => Just(STOP.to_owned()),
        1 => Just(TALK.to_owned()),
        1 => Just("data: [DONE]".to_owned()),
        1 => Just("data:[DONE]".to_owned()),
        1 => Just("event: error".to_owned()),
        1 => Just(": comment".to_owned()),
        1 => (1020..1030_usize).prop_map(|length| "data: ".to_owned() + &"x".repeat(length - 6)),
        1 => "[ -~]{0,20}",
    ];
    let ending = prop_oneof![Just("\n"), Just("\r\n"), Just("\r")];
    let lines = prop::collection::vec((line, ending), 0..20);
    (lines, "[a-z]{0,3}").prop_map(|(lines, last)| {
        let mut stream: String = lines.into_iter().flat_map(|(line, ending)| [line, ending.to_owned()]).collect();
        stream.push_str(&last);
        stream.into_bytes()
    })
}

proptest! {
    #[test]
    fn any_chunking_yields_the_same(stream in streams(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12)) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let chunks = cuts.windows(2).map(|ends| &stream[ends[0]..ends[1]]);
        let (whole, whole_border) = scan([stream.as_slice()]);
        let (cut, cut_border) = scan(chunks);
        let (bytes, byte_border) = scan(stream.chunks(1));
        prop_assert_eq!(seen(&whole), seen(&cut));
        prop_assert_eq!(seen(&whole), seen(&bytes));
        prop_assert_eq!((whole_border, whole_border), (cut_border, byte_border));
    }

    /// The same, found the plain way: all of the text at once, one kind of line ending.
    #[test]
    fn the_plain_way_finds_the_same(stream in streams()) {
        let text = String::from_utf8(stream.clone()).unwrap().replace("\r\n", "\n").replace('\r', "\n");
        let (scanner, _) = scan([stream.as_slice()]);
        let whole_lines = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        prop_assert_eq!(scanner.is_done(), whole_lines.lines().any(|line| line == "data: [DONE]" || line == "data:[DONE]"));
        prop_assert_eq!(scanner.has_error(), whole_lines.lines().any(|line| line == "event: error"));
        prop_assert_eq!(scanner.run_id().is_some(), whole_lines.lines().any(|line| line == PING));
        prop_assert_eq!(scanner.at_border(), text.is_empty() || text == "\n" || text.ends_with("\n\n"));
    }
}
