//! The shared store, for a command that asks or tells it something.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::time::{Instant, sleep};

use crate::config::Settings;
use crate::listen;
use crate::store::{self, Health, Store};
use crate::telemetry::Metrics;

/// How long the store may take to be there.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

/// Runs `with` on the store of `settings`, once it is there; `None`: the store is in each process. A text if it cannot be
/// reached.
pub(super) fn with<T>(
    settings: &Settings,
    with: impl AsyncFnOnce(Store) -> Result<T, store::StoreError>,
) -> Result<Option<T>, String> {
    let Some(redis) = &settings.redis else { return Ok(None) };
    listen::install_crypto_provider();
    let store = store::Settings { redis: Some(redis.clone()), max_entry: 1, max_total: 1 };
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("the runtime cannot be started: {error}"))?;
    let done = runtime.block_on(async {
        let store = Store::new(store, &Arc::new(Metrics::new()), None).map_err(|why| why.to_string())?;
        let started = Instant::now();
        while store.health() != Health::Ok && started.elapsed() < PATIENCE {
            sleep(PAUSE).await;
        }
        with(store).await.map_err(|why| why.to_string())
    });
    done.map(Some).map_err(|why: String| format!("store.redis: {why}"))
}
