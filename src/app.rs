//! Binds, runs, reloads, drains: the gateway as one thing that starts and stops.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{Admin, Readiness, StoreState};
use crate::auth::letta_user::Standing;
use crate::balance::{Endpoint, health};
use crate::config::{self, Fixed, Settings};
use crate::error::Cause;
use crate::listen::{self, Listener, Live, Peer, Stop};
use crate::open_files;
use crate::pipeline::Pipeline;
use crate::reload;
use crate::revoked;
use crate::step;
use crate::store::Health;
use crate::telemetry::access::AccessLog;
use crate::telemetry::diagnostics::Diagnostics;
use crate::telemetry::record::Sink;
use crate::users::{self, Asking};

/// Why the gateway could not start.
pub type StartError = Cause;

/// How often idle connections and gauges are looked after.
const UPKEEP: Duration = Duration::from_secs(1);
/// How long the last lines of the access log may take.
const LAST_LINES: Duration = Duration::from_secs(1);

/// A running gateway.
pub struct Gateway {
    shared: Arc<Shared>,
    listeners: Vec<Bound>,
    addresses: Vec<SocketAddr>,
    admin: Option<SocketAddr>,
    /// Ends the listeners and their connections.
    stop: Stop,
    /// Ends everything else.
    end: CancellationToken,
    tasks: TaskTracker,
}

/// A listener at work, by the address of its configuration.
struct Bound {
    configured: SocketAddr,
    live: Arc<Live>,
}

/// What requests, the admin listener and a reload share.
struct Shared {
    pipeline: ArcSwap<Pipeline>,
    sink: Sink,
    /// Ends the health checks of the current configuration.
    checks: ArcSwap<CancellationToken>,
    draining: AtomicBool,
    config_problem: ArcSwap<Option<String>>,
    /// What the process was started with and a reload cannot change.
    fixed: Fixed,
    pending_restart: ArcSwap<Vec<&'static str>>,
}

/// Runs the gateway of `settings` until SIGTERM or SIGINT, then drains it. `path` is watched for changes.
pub async fn run(settings: Settings, path: PathBuf, diagnostics: Diagnostics) -> Result<(), StartError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut changes = reload::watch(&settings, &path)?;
    let gateway = Gateway::start(&settings).await?;
    let mut current = settings;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = changes.next() => {
                if let Some(new) = gateway.reload(&path, &diagnostics).await {
                    changes.follow(&new, &path);
                    current = new;
                }
            }
        }
    }
    let in_flight = gateway.shared.sink.metrics.in_flight.get();
    tracing::info!(patience = ?current.drain, in_flight, hint = "Ctrl-C (SIGINT) ends at once what is in flight", "draining");
    tokio::select! {
        whole = gateway.drain(current.drain) => {
            if !whole {
                tracing::warn!("drain time is over; what was left was ended");
            }
        }
        _ = interrupt.recv() => {
            tracing::warn!("interrupted again; not waiting");
            gateway.drain(Duration::ZERO).await;
        }
    }
    tracing::info!("stopped");
    Ok(())
}

impl Gateway {
    /// Binds everything, then serves.
    pub async fn start(settings: &Settings) -> Result<Self, StartError> {
        let metrics = Arc::new(crate::telemetry::Metrics::new());
        let access = AccessLog::stdout(settings.log.access, Arc::clone(&metrics));
        let sink = Sink::new(Arc::clone(&metrics), access);
        Self::start_with(settings, sink).await
    }

    /// The same with a sink of the caller's.
    pub async fn start_with(settings: &Settings, sink: Sink) -> Result<Self, StartError> {
        let pipeline = Pipeline::build(settings, &sink, None)?;
        let mut bound = Vec::with_capacity(settings.listeners.len());
        for listener in &settings.listeners {
            bound.push((Listener::bind(listener, &sink.metrics)?, listener));
        }
        let admin = settings.admin.as_ref().map(Admin::bind).transpose()?;
        learn_revoked(&pipeline).await;
        look_up_users(&pipeline, settings).await?;

        let shared = Arc::new(Shared {
            pipeline: ArcSwap::from_pointee(pipeline),
            sink,
            checks: ArcSwap::from_pointee(CancellationToken::new()),
            draining: AtomicBool::new(false),
            config_problem: ArcSwap::from_pointee(None),
            fixed: Fixed::of(settings),
            pending_restart: ArcSwap::from_pointee(Vec::new()),
        });
        let mut gateway = Self {
            listeners: Vec::with_capacity(bound.len()),
            addresses: Vec::with_capacity(bound.len()),
            admin: admin.as_ref().map(Admin::local_address),
            stop: Stop::with(shared.sink.cutoff.clone()),
            end: CancellationToken::new(),
            tasks: TaskTracker::new(),
            shared,
        };
        gateway.watch_replicas(settings);
        gateway.upkeep();
        for (listener, listener_settings) in bound {
            let address = listener.local_address();
            tracing::info!(%address, tls = listener_settings.tls.is_some(), "listening");
            gateway.addresses.push(address);
            gateway.listeners.push(Bound { configured: listener_settings.address, live: listener.live() });
            gateway.serve(listener);
        }
        if let Some(admin) = admin {
            let shared = Arc::clone(&gateway.shared);
            let metrics = Arc::clone(&gateway.shared.sink.metrics);
            gateway.tasks.spawn(admin.serve(metrics, move || shared.readiness(), gateway.end.clone()));
        }
        Ok(gateway)
    }

    /// Where it listens, in the order of the configuration.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where /metrics is.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    fn serve(&self, listener: Listener) {
        let shared = Arc::clone(&self.shared);
        let service = step::service(move |(request, peer): (http::Request<hyper::body::Incoming>, Peer)| {
            // a request finishes with the configuration it began with
            let pipeline = shared.pipeline.load_full();
            let begun = pipeline.stack.begin(request, peer);
            async move { pipeline.stack.answer(begun).await }
        });
        self.tasks.spawn(listener.serve(service, self.stop.clone()));
    }

    /// Starts the health checks of the current pipeline, its look-ups of users and of revoked keys, and ends those of the one before.
    fn watch_replicas(&self, settings: &Settings) {
        let token = CancellationToken::new();
        self.shared.checks.swap(Arc::new(token.clone())).cancel();
        for endpoint in &self.shared.pipeline.load().endpoints {
            let checks = health::watch(Arc::clone(endpoint), settings.balance.health_check.clone());
            self.tasks.spawn(token.clone().run_until_cancelled_owned(checks));
        }
        let pipeline = self.shared.pipeline.load_full();
        let asking = asking(&pipeline, settings);
        if !asking.users.is_empty() {
            self.tasks.spawn(token.clone().run_until_cancelled_owned(asking.watch()));
        }
        if pipeline.is_store_shared {
            self.tasks.spawn(token.run_until_cancelled_owned(watch_revoked(pipeline)));
        }
    }

    /// Every second: closes idle connections to replicas, forgets turns whose window is over, keeps gauges true.
    fn upkeep(&self) {
        let shared = Arc::clone(&self.shared);
        let end = self.end.clone();
        let upkeep = async move {
            let mut ticks = tokio::time::interval(UPKEEP);
            loop {
                ticks.tick().await;
                let now = Instant::now();
                let pipeline = shared.pipeline.load_full();
                for pool in &pipeline.pools {
                    pool.close_idle(now);
                }
                for endpoint in &pipeline.endpoints {
                    endpoint.tell(now);
                }
                pipeline.turns.upkeep(now);
                pipeline.limits.upkeep();
            }
        };
        self.tasks.spawn(end.run_until_cancelled_owned(upkeep));
    }

    /// Reads the configuration again. A bad one is told and the old one stays.
    async fn reload(&self, path: &Path, diagnostics: &Diagnostics) -> Option<Settings> {
        let metrics = &self.shared.sink.metrics;
        match self.build(path, diagnostics).await {
            Ok((new, pipeline)) => {
                for warning in &new.warnings {
                    tracing::warn!(%warning, "configuration");
                }
                let pending = self.shared.fixed.changes(&Fixed::of(&new));
                for change in &pending {
                    let (what, running, configured) = (change.option, &change.running, &change.configured);
                    tracing::warn!(what, running, configured, "changed in the configuration, but takes a restart");
                }
                let pending = pending.iter().map(|change| change.option).collect();
                self.shared.pending_restart.store(Arc::new(pending));
                self.shared.pipeline.store(Arc::new(pipeline));
                self.watch_replicas(&new);
                let left: HashSet<&str> = new.keys.iter().map(|key| &*key.id).collect();
                metrics.retain(
                    |key| left.contains(key),
                    |upstream| new.balance.servers.iter().any(|left| left.authority == upstream),
                );
                self.shared.config_problem.store(Arc::new(None));
                metrics.reload("ok");
                tracing::info!(config = %path.display(), "configuration reloaded");
                Some(new)
            }
            Err(problem) => {
                metrics.reload("error");
                tracing::error!(config = %path.display(), %problem, "configuration not reloaded; the old one stays");
                self.shared.config_problem.store(Arc::new(Some(problem)));
                None
            }
        }
    }

    /// The configuration at `path` ready to be taken over; or why it cannot be, and then nothing has changed.
    async fn build(&self, path: &Path, diagnostics: &Diagnostics) -> Result<(Settings, Pipeline), String> {
        let (path, shared) = (path.to_owned(), Arc::clone(&self.shared));
        // many keys take a second, in which the thread would answer nobody
        let built = tokio::task::spawn_blocking(move || {
            let mut new = config::load(&path).map_err(|problems| problems.to_string())?;
            open_files::fit(&mut new);
            let previous = shared.pipeline.load_full();
            let pipeline = Pipeline::build(&new, &shared.sink, Some(&previous)).map_err(|error| error.to_string())?;
            Ok::<_, String>((new, pipeline))
        });
        let (new, pipeline) = built.await.map_err(|error| error.to_string())??;
        learn_revoked(&pipeline).await;
        look_up_users(&pipeline, &new).await.map_err(|error| error.to_string())?;
        diagnostics.reload(&new.log).map_err(|error| error.to_string())?;
        self.reload_listeners(&new.listeners).map_err(|error| error.to_string())?;
        Ok((new, pipeline))
    }

    /// Certificates and bounds of the listeners that stay where they are.
    fn reload_listeners(&self, listeners: &[listen::Settings]) -> Result<(), listen::TlsError> {
        // all or none: what one cannot load must not leave another changed
        for tls in listeners.iter().filter_map(|new| new.tls.as_ref()) {
            listen::TlsCertificates::load(tls)?;
        }
        for new in listeners {
            if let Some(bound) = self.listeners.iter().find(|bound| bound.configured == new.address) {
                bound.live.reload(new, &self.shared.sink.metrics)?;
            }
        }
        Ok(())
    }

    /// Takes no more connections, lets what is in flight end within `patience`, ends the rest. True if nothing was
    /// left to end.
    pub async fn drain(&self, patience: Duration) -> bool {
        self.shared.draining.store(true, Ordering::Relaxed);
        let until = Instant::now() + patience;
        let cut_off = self.stop.finish(patience).await;
        // turns whose clients have left
        let turns = Arc::clone(&self.shared.pipeline.load().turns);
        let all_over = timeout_at(until, turns.idle()).await.is_ok();
        self.end.cancel();
        self.shared.checks.load().cancel();
        self.tasks.close();
        let _ = timeout(LAST_LINES, self.tasks.wait()).await;
        self.shared.sink.access.close(LAST_LINES);
        cut_off == 0 && all_over
    }
}

/// Learns of revoked keys for as long as this configuration is in use.
async fn watch_revoked(pipeline: Arc<Pipeline>) {
    let mut reading = revoked::Reading::default();
    loop {
        // a store in trouble tells of itself elsewhere; what is known stays
        let _ = reading.learn(&pipeline.store, &pipeline.revocations).await;
        sleep(revoked::EVERY).await;
    }
}

fn asking(pipeline: &Pipeline, settings: &Settings) -> Asking {
    let (users, endpoints) = (Arc::clone(&pipeline.users), pipeline.endpoints.clone());
    Asking { users, endpoints, password: settings.upstream.password.clone() }
}

async fn learn_revoked(pipeline: &Pipeline) {
    if pipeline.is_store_shared {
        revoked::learn_all(&pipeline.store, &pipeline.revocations).await;
    }
}

/// An error if a replica says that a key would act as a user it does not know. If none can be asked, those keys wait.
async fn look_up_users(pipeline: &Pipeline, settings: &Settings) -> Result<(), Cause> {
    let asked = timeout(users::LONGEST, asking(pipeline, settings).once()).await;
    if let Err(why) = asked.unwrap_or_else(|_| Err("no answer in time".into())) {
        tracing::warn!(%why, "no replica can be asked for Letta's users: keys that act as one wait until it is known");
    }
    for key in &settings.keys {
        let user = key.letta_user.as_deref().and_then(|id| pipeline.users.get(id));
        if let Some(user) = user.filter(|user| user.standing() == Standing::Unknown) {
            let (key, user) = (&key.id, &user.id);
            return Err(format!("the key {key} acts as {user}, whom Letta does not know (it would take its default user): make that user, or mend letta_user").into());
        }
    }
    Ok(())
}

impl Shared {
    fn readiness(&self) -> Readiness {
        let pipeline = self.pipeline.load();
        let now = Instant::now();
        let those = |are: &dyn Fn(&Endpoint) -> bool| {
            pipeline.endpoints.iter().filter(|one| are(one)).map(|one| one.authority.to_string()).collect()
        };
        Readiness {
            draining: self.draining.load(Ordering::Relaxed),
            upstreams: pipeline.endpoints.len(),
            unhealthy: those(&|endpoint| !endpoint.is_available(now)),
            wrong_password: those(&|endpoint| endpoint.has_wrong_password()),
            store: match pipeline.store.health() {
                _ if !pipeline.is_store_shared => StoreState::InProcess,
                Health::Ok => StoreState::Ok,
                Health::Degraded(why) => StoreState::Degraded(why),
            },
            unverified_users: pipeline.users.unverified().map(|user| user.id.to_string()).collect(),
            config_problem: self.config_problem.load().as_ref().clone(),
            pending_restart: self.pending_restart.load().as_ref().clone(),
        }
    }
}
