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
mod tests;
