//! The stack a request passes, top to bottom. Nothing else.

use std::sync::Arc;

use tower::ServiceBuilder;
use tower::layer::layer_fn;

use crate::auth::Auth;
use crate::auth::letta_user::LettaUsers;
use crate::auth::revocations::Revocations;
use crate::balance::{Balance, Endpoint};
use crate::cache::Cache;
use crate::config::Settings;
use crate::cors::{self, Cors};
use crate::error::Cause;
use crate::hygiene::Hygiene;
use crate::limits::Limits;
use crate::reach::Reacher;
use crate::record::Recorder;
use crate::retry::Retry;
use crate::route::Router;
use crate::step::{Layer, Stacked};
use crate::store::{self, Store};
use crate::telemetry::record::Sink;
use crate::turn::Turns;
use crate::upstream::{Pool, Upstream};

/// The whole stack as one type: a request's way through it is one future.
type Stack = Recorder<
    Stacked<
        Cors,
        Stacked<Router, Stacked<Auth, Stacked<Limits, Stacked<Reacher, Stacked<Cache, Stacked<Turns, Arc<Below>>>>>>>,
    >,
>;

/// What a turn goes through without its client.
type Below = Stacked<Hygiene, Stacked<Retry, Stacked<Balance, Upstream>>>;

/// One configuration at work, and what the next one takes over from it.
pub struct Pipeline {
    pub stack: Stack,
    /// Whom keys act as at Letta.
    pub users: Arc<LettaUsers>,
    pub revocations: Revocations,
    pub limits: Arc<Limits>,
    /// Remembers whose things are.
    pub reacher: Arc<Reacher>,
    pub turns: Arc<Turns>,
    pub store: Store,
    /// The store is Redis.
    pub is_store_shared: bool,
    pub endpoints: Vec<Arc<Endpoint>>,
    pub pools: Vec<Arc<Pool>>,
}

impl Pipeline {
    /// Builds the stack of `settings`. What is the same as in `previous` keeps its state: counts, connections, health.
    pub fn build(settings: &Settings, sink: &Sink, previous: Option<&Self>) -> Result<Self, Cause> {
        let metrics = &sink.metrics;
        let kept = store::Settings {
            redis: settings.redis.clone(),
            max_entry: settings.cache.max_entry,
            max_total: settings.cache.max_total,
        };
        let store = Store::new(kept, metrics, previous.map(|previous| &previous.store))?;
        let users = Arc::new(LettaUsers::new(&settings.keys, previous.map(|previous| &*previous.users)));
        let is_store_shared = settings.redis.is_some();
        let revocations =
            Revocations::new(&settings.keys, is_store_shared, previous.map(|previous| &previous.revocations));
        let limits = Limits::new(&settings.plans, &settings.keys, metrics, previous.map(|previous| &*previous.limits));
        let limits = Arc::new(limits.over(store.shared_limits(), settings.on_error, metrics));
        let balance = Balance::new(&settings.balance, metrics, previous.map(|previous| previous.endpoints.as_slice()));
        let endpoints = balance.endpoints().to_vec();
        let upstream = Upstream::new(
            &settings.upstream,
            &endpoints,
            &sink.cutoff,
            Arc::clone(metrics),
            previous.map(|previous| previous.pools.as_slice()),
        );
        let pools = upstream.pools().to_vec();

        let turns = Arc::new(Turns::new(
            &settings.turns,
            settings.upstream.max_body,
            settings.upstream.timeouts.request,
            &store,
            sink,
            previous.map(|previous| &*previous.turns),
        ));

        let reacher = Arc::new(Reacher::new(
            settings.upstream.max_body,
            settings.upstream.timeouts.request,
            previous.map(|previous| &*previous.reacher),
        ));

        let steps = ServiceBuilder::new()
            // a preflight carries no key and names no route of Letta's
            .layer(Layer::new(Cors::new(&settings.cors)))
            .layer(Layer::new(Router))
            .layer(Layer::new(Auth::new(&settings.keys, &users, &revocations, metrics)))
            // a cached answer counts too: limits protect the gateway as well as Letta
            .layer(Layer::shared(&limits))
            // above all that answers without Letta: what is kept is some agent's too
            .layer(Layer::shared(&reacher))
            .layer(Layer::new(Cache::new(
                &settings.cache,
                store.clone(),
                Arc::clone(metrics),
                settings.upstream.timeouts.request,
            )))
            // a kept answer starts no turn
            .layer(Layer::shared(&turns))
            // a turn outlives the request that started it
            .layer(layer_fn(Arc::new))
            // once, before the first attempt: no second one can go out unclean
            .layer(Layer::new(Hygiene::new(
                settings.upstream.password.as_deref(),
                settings.upstream.max_body,
                settings.upstream.timeouts.request,
            )?))
            // above the balancer, so that another attempt may go to another replica
            .layer(Layer::new(Retry::new(Arc::clone(metrics))))
            .layer(Layer::new(balance))
            .service(upstream);

        let stack = Recorder::new(sink.clone(), cors::response_headers, steps);
        Ok(Self { stack, users, revocations, limits, reacher, turns, store, is_store_shared, endpoints, pools })
    }
}
