//! Diagnostics: `tracing` events on standard error, apart from the access log.
//!
//! One event is one line, whatever its fields hold. A reader of standard error that is slow or stuck costs events (how
//! many is told by the field `dropped` of the next one), never a request.
//!
//! As text: `2026-11-24T03:05:19.042Z INFO listening address=127.0.0.1:8283 tls=false`.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;

use super::lines::Lines;
use super::timestamp::Timestamp;
use crate::error::Cause;

/// What the configuration says of logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// An `EnvFilter` directive, e.g. `info` or `letta_gateway=debug`.
    pub level: String,
    pub format: Format,
    /// One JSON line a request on standard output.
    pub access: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

/// Checks `Settings::level`; the error says what is wrong with it.
pub fn check_level(level: &str) -> Result<(), Cause> {
    EnvFilter::builder().parse(level).map(|_| ()).map_err(Cause::from)
}

/// Sends events to standard error from now on. `RUST_LOG`, where set and valid, overrules `Settings::level`.
///
/// Fails if somebody in this process did so before, or if the level cannot be read.
pub fn init(settings: &Settings) -> Result<Diagnostics, Cause> {
    let stderr = io::stderr();
    let colour = settings.format == Format::Text && stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (layer, mut diagnostics) = Output::start(stderr, settings.format, colour)?;
    let (filter, reload) = reload::Layer::new(filter(&settings.level)?);
    diagnostics.reload = Some(reload);
    tracing::subscriber::set_global_default(Registry::default().with(layer.with_filter(filter)))?;
    Ok(diagnostics)
}

fn filter(level: &str) -> Result<EnvFilter, Cause> {
    match std::env::var("RUST_LOG").ok().filter(|directives| !directives.is_empty()) {
        Some(directives) => EnvFilter::builder().parse(&directives).or_else(|_| EnvFilter::builder().parse(level)),
        None => EnvFilter::builder().parse(level),
    }
    .map_err(Cause::from)
}

/// The running diagnostics. Dropped, it waits up to a second until the last events are written.
pub struct Diagnostics {
    lines: Lines,
    reload: Option<reload::Handle<EnvFilter, Registry>>,
}

impl Diagnostics {
    /// Takes over the level of a new configuration; the format stays.
    pub fn reload(&self, settings: &Settings) -> Result<(), Cause> {
        let filter = filter(&settings.level)?;
        self.reload.as_ref().map_or(Ok(()), |reload| reload.reload(filter)).map_err(Cause::from)
    }
}

impl Drop for Diagnostics {
    fn drop(&mut self) {
        self.lines.close(Duration::from_secs(1));
    }
}

/// Formats events and hands them on.
struct Output {
    lines: Lines,
    format: Format,
    colour: bool,
    dropped: Arc<AtomicU64>,
}

impl Output {
    fn start(writer: impl Write + Send + 'static, format: Format, colour: bool) -> io::Result<(Self, Diagnostics)> {
        let dropped = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&dropped);
        let lines = Lines::start("diagnostics", writer, move |lines| {
            told.fetch_add(lines, Ordering::Relaxed);
        })?;
        let diagnostics = Diagnostics { lines: lines.clone(), reload: None };
        Ok((Self { lines, format, colour, dropped }, diagnostics))
    }
}

impl<S: Subscriber> Layer<S> for Output {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            fields.add("dropped", dropped.into());
        }
        let level = *event.metadata().level();
        if level > Level::INFO {
            fields.add("target", event.metadata().target().into());
        }
        let mut timestamp = Timestamp::new();
        let ts = timestamp.format(SystemTime::now());
        let mut line = match self.format {
            Format::Text => text(ts, level, &fields, self.colour),
            Format::Json => json(ts, level, fields),
        };
        line.push('\n');
        self.lines.push(line.as_bytes());
    }
}

/// The fields of one event.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl Fields {
    fn add(&mut self, name: &'static str, value: Value) {
        match (name, value) {
            ("message", Value::String(message)) => self.message = message,
            (name, value) => self.others.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field.name(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field.name(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field.name(), value.into());
    }

    /// The error with all its causes: what a client is not told stands here.
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut chain = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            chain = format!("{chain}: {error}");
            cause = error.source();
        }
        self.add(field.name(), chain.into());
    }
}

/// `2026-11-24T03:05:19.042Z INFO message name=value name="a value"`
fn text(ts: &str, level: Level, fields: &Fields, colour: bool) -> String {
    let mut line = String::with_capacity(160);
    line.push_str(ts);
    line.push(' ');
    let paint = match level {
        _ if !colour => None,
        Level::ERROR => Some("31"),
        Level::WARN => Some("33"),
        Level::INFO => Some("32"),
        _ => Some("2"),
    };
    match paint {
        Some(code) => line.extend(["\u{1b}[", code, "m", level.as_str(), "\u{1b}[0m"]),
        None => line.push_str(level.as_str()),
    }
    line.push(' ');
    if fields.message.contains(char::is_control) {
        line.extend(fields.message.escape_debug());
    } else {
        line.push_str(&fields.message);
    }
    for (name, value) in &fields.others {
        line.extend([" ", name, "="]);
        match value {
            Value::String(bare) if is_plain(bare) => line.push_str(bare),
            // quoted and escaped, so that it has one end and no control character
            Value::String(text) => line.push_str(&format!("{text:?}")),
            number => line.push_str(&number.to_string()),
        }
    }
    line
}

/// Can stand in a line of text without quotes.
fn is_plain(value: &str) -> bool {
    !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '='))
}

fn json(ts: &str, level: Level, fields: Fields) -> String {
    let mut line = Map::new();
    line.insert("ts".to_owned(), ts.into());
    line.insert("level".to_owned(), level.as_str().into());
    line.insert("message".to_owned(), fields.message.into());
    for (name, value) in fields.others {
        line.entry(name).or_insert(value);
    }
    Value::Object(line).to_string()
}

#[cfg(test)]
mod tests {
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
        assert!(
            lines[0].ends_with(r#"error="the request body broke off or is not well framed: chunk size""#),
            "{lines:?}"
        );
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
}
