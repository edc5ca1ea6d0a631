//! What diagnostics promise.

use std::io::Read;

use super::*;

fn told(format: Format, colour: bool, events: impl FnOnce()) -> Vec<String> {
    let (mut reader, writer) = io::pipe().unwrap();
    let (layer, diagnostics) = Output::start(writer, format, colour).unwrap();
    tracing::subscriber::with_default(Registry::default().with(layer), events);
    drop(diagnostics);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn text_is_the_message_followed_by_its_fields() {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 8283));
    let lines = told(Format::Text, false, || {
        tracing::info!(%address, tls = false, "listening");
        tracing::warn!(why = "no such file", n = 3, empty = "", "reload failed");
        tracing::debug!("seen");
    });
    let after_time: Vec<_> = lines.iter().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(
        after_time,
        [
            "INFO listening address=127.0.0.1:8283 tls=false",
            r#"WARN reload failed why="no such file" n=3 empty="""#,
            "DEBUG seen target=letta_gateway::telemetry::diagnostics::tests",
        ]
    );
    assert!(lines[0].starts_with("20") && lines[0].contains("Z INFO "), "{}", lines[0]);
}

#[test]
fn json_is_one_object_a_line() {
    let lines = told(Format::Json, false, || tracing::error!(code = 7, ok = true, ts = "forged", "it \"broke\""));
    let line: Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(line["message"], "it \"broke\"");
    assert_eq!((&line["level"], &line["code"], &line["ok"]), (&"ERROR".into(), &7.into(), &true.into()));
    assert_ne!(line["ts"], "forged");
}

#[test]
fn no_value_begins_a_line_of_its_own_or_paints_the_terminal() {
    let bad = "x\n2026-11-24T03:05:19.042Z INFO forged\u{1b}[31m\u{9b}31m";
    for format in [Format::Text, Format::Json] {
        let lines = told(format, false, || tracing::info!(bad, %bad, "told {bad}"));
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(!lines[0].contains('\u{1b}'), "{lines:?}");
        assert!(format == Format::Json || !lines[0].contains(char::is_control), "{lines:?}");
    }
}

#[test]
fn an_error_is_told_with_its_causes() {
    let cause = crate::error::Error::BodyBroken("chunk size".into());
    let lines = told(Format::Text, false, || {
        tracing::error!(error = &cause as &(dyn std::error::Error + 'static), "failed");
    });
    assert!(lines[0].ends_with(r#"error="the request body broke off or is not well framed: chunk size""#), "{lines:?}");
}

#[test]
fn only_a_terminal_gets_colour() {
    let event = || tracing::warn!("seen");
    assert!(told(Format::Text, true, event)[0].contains("\u{1b}[33mWARN\u{1b}[0m seen"));
    assert!(!told(Format::Text, false, event)[0].contains('\u{1b}'));
}

#[test]
fn events_lost_are_counted_in_the_next_one() {
    let (reader, writer) = io::pipe().unwrap();
    let (layer, diagnostics) = Output::start(writer, Format::Text, false).unwrap();
    let dropped = Arc::clone(&layer.dropped);
    dropped.store(7, Ordering::Relaxed);
    tracing::subscriber::with_default(Registry::default().with(layer), || tracing::info!("back"));
    drop(diagnostics);
    let text = io::read_to_string(reader).unwrap();
    assert!(text.ends_with("INFO back dropped=7\n"), "{text}");
    assert_eq!(dropped.load(Ordering::Relaxed), 0);
}

#[test]
fn a_level_is_checked_before_it_is_used() {
    for level in ["info", "letta_gateway=debug", "warn,letta_gateway::balance=trace"] {
        assert!(check_level(level).is_ok(), "{level}");
    }
    assert!(check_level("letta_gateway=loud").is_err());
}
