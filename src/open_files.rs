//! As many open files as the configured connections need, or no more connections than there may be files.
//!
//! A gateway that runs out of descriptors in the middle of its work refuses clients and cannot reach replicas. So it
//! takes at the start all the system gives it, and what is still too much of its configuration is cut down and told.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Settings;

/// Listeners, the admin listener's connections, health checks, Redis, logs, certificates being read.
const BESIDES: u64 = 128;

/// Raises the limit of open files to what the system allows this process, and fits `settings` into it.
pub fn fit(settings: &mut Settings) {
    let limit = raised();
    let needed = needed(settings);
    if limit < needed {
        cut(settings, limit);
        let listeners: u64 = settings.listeners.iter().map(|listener| u64::from(listener.limits.max_connections)).sum();
        tracing::warn!(
            limit,
            needed,
            listeners,
            pool = settings.upstream.pool.max_connections,
            "fewer open files are allowed than the configured connections need, so fewer connections are taken: raise \
             the hard limit (ulimit -Hn, LimitNOFILE=, ulimits: nofile) or lower max_connections"
        );
    }
}

/// The limit once it is raised.
fn raised() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // the lower one is for programs of old that cannot count beyond 1024 files
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    (if raised.is_ok() { maximum } else { current }).unwrap_or(u64::MAX)
}

/// What is open when all connections are that may be.
fn needed(settings: &Settings) -> u64 {
    let (clients, upstream) = wanted(settings);
    clients.saturating_add(upstream).saturating_add(BESIDES)
}

/// Connections of clients and to replicas.
fn wanted(settings: &Settings) -> (u64, u64) {
    let clients = settings.listeners.iter().map(|listener| u64::from(listener.limits.max_connections)).sum();
    let replicas = u64::try_from(settings.balance.servers.len()).unwrap_or(u64::MAX);
    (clients, replicas.saturating_mul(u64::from(settings.upstream.pool.max_connections)))
}

/// Cuts all down in proportion, so that a client taken can still be served.
fn cut(settings: &mut Settings, limit: u64) {
    let (clients, upstream) = wanted(settings);
    let (room, wanted) = (limit.saturating_sub(BESIDES), clients.saturating_add(upstream).max(1));
    let share = |most: u32| {
        let share = u128::from(most) * u128::from(room) / u128::from(wanted);
        u32::try_from(share).unwrap_or(most).clamp(1, most.max(1))
    };
    for listener in &mut settings.listeners {
        listener.limits.max_connections = share(listener.limits.max_connections);
    }
    settings.upstream.pool.max_connections = share(settings.upstream.pool.max_connections);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn settings() -> Settings {
        let text = "
listeners: [ { address: 127.0.0.1:0, max_connections: 1000 }, { address: 127.0.0.1:1, max_connections: 10 } ]
upstreams: { letta: { servers: [ { url: http://a:1 }, { url: http://b:1 } ], pool: { max_connections: 100 } } }
keys: [ { id: one, hash: \"sha256:0000000000000000000000000000000000000000000000000000000000000001\", scopes: [read] } ]
";
        crate::config::parse(text, Path::new("gateway.yaml"), &|_| None).unwrap()
    }

    fn connections(settings: &Settings) -> (Vec<u32>, u32) {
        let listeners = settings.listeners.iter().map(|listener| listener.limits.max_connections).collect();
        (listeners, settings.upstream.pool.max_connections)
    }

    #[test]
    fn both_sides_connections_need_a_file_each() {
        assert_eq!(needed(&settings()), 1010 + 200 + BESIDES);
    }

    #[test]
    fn connections_that_no_file_is_left_for_are_cut_down_in_proportion() {
        for (limit, left) in [
            (BESIDES + 605, (vec![500, 5], 50)),
            (BESIDES + 121, (vec![100, 1], 10)),
            // too little for anything: it tries all the same
            (20, (vec![1, 1], 1)),
        ] {
            let mut settings = settings();
            cut(&mut settings, limit);
            assert_eq!(connections(&settings), left, "{limit}");
            assert!(limit < BESIDES || needed(&settings) <= limit);
        }
    }

    #[test]
    fn the_limit_is_raised_to_the_hard_one() {
        let hard = getrlimit(Resource::Nofile).maximum;
        assert_eq!(raised(), hard.unwrap_or(u64::MAX));
        assert_eq!(getrlimit(Resource::Nofile).current, hard);
    }
}
