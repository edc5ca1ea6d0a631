//! `run`, `check` and `demo`: the same configuration, taken as far as each goes.

use std::io::{self, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use super::{Failure, load, print, version};
use crate::config::Settings;
use crate::pipeline::Pipeline;
use crate::telemetry::access::AccessLog;
use crate::telemetry::record::Sink;
use crate::telemetry::{Metrics, diagnostics};
use crate::{app, demo, listen, open_files};

/// How long work on other threads (a name being looked up) may keep a gateway that has ended.
const LAST_WORK: Duration = Duration::from_secs(1);

pub(super) fn run(path: PathBuf) -> Result<(), Failure> {
    let mut settings = load(&path)?;
    listen::install_crypto_provider();
    let diagnostics = diagnostics::init(&settings.log)?;
    for warning in &settings.warnings {
        tracing::warn!(%warning, "allowed, but probably not meant");
    }
    tracing::info!(version = version(), config = %path.display(), "starting: {}", summary(&settings));
    open_files::fit(&mut settings);
    let runtime = runtime(settings.workers)?;
    let result = runtime.block_on(app::run(settings, path, diagnostics));
    runtime.shutdown_timeout(LAST_WORK);
    Ok(result?)
}

pub(super) fn check(path: &Path) -> Result<(), Failure> {
    let settings = load(path)?;
    for warning in &settings.warnings {
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    // all that is made before anything is bound
    listen::install_crypto_provider();
    let metrics = Arc::new(Metrics::new());
    let sink = Sink::new(Arc::clone(&metrics), AccessLog::stdout(false, metrics));
    let runtime = runtime(Some(1))?;
    let built = runtime.block_on(async { Pipeline::build(&settings, &sink, None).map(drop) });
    runtime.shutdown_timeout(LAST_WORK);
    built.map_err(|why| Failure::Unfit(format!("{}: {why}", path.display())))?;
    print(&format!("ok: {}\n", summary(&settings)))
}

fn summary(settings: &Settings) -> String {
    let listeners = counted(settings.listeners.len(), "listener");
    let replicas = counted(settings.balance.servers.len(), "replica");
    let keys = counted(settings.keys.len(), "key");
    let store = if settings.redis.is_some() { "Redis" } else { "this process" };
    format!("{listeners}, {replicas}, {keys}, store in {store}")
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

pub(super) fn demo() -> Result<(), Failure> {
    listen::install_crypto_provider();
    // its own summary is on standard output; beside it only what goes wrong
    let log = diagnostics::Settings { level: "warn".to_owned(), format: diagnostics::Format::Text, access: false };
    let _diagnostics = diagnostics::init(&log)?;
    let runtime = runtime(None)?;
    let result = runtime.block_on(demo::run());
    runtime.shutdown_timeout(LAST_WORK);
    Ok(result?)
}

/// Tasks that one thread for everything polls between two looks at the sockets, as long as more of them wait to be polled.
/// Each look is a system call, and with tokio's 61 a few dozen busy clients had two where one finds as much.
const TASKS_BETWEEN_LOOKS: u32 = 256;

/// None: one thread for each CPU.
fn runtime(workers: Option<u16>) -> Result<Runtime, Failure> {
    let workers = workers.map_or_else(|| std::thread::available_parallelism().map_or(1, NonZero::get), usize::from);
    // on one CPU, work that changes threads is work lost
    let mut builder = if workers == 1 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    if workers > 1 {
        builder.worker_threads(workers);
    } else {
        builder.event_interval(TASKS_BETWEEN_LOOKS);
    }
    builder.enable_all();
    builder.build().map_err(|error| Failure::Failed(format!("the runtime cannot be started: {error}")))
}
