//! Whether the process may open as many files as its configuration allows connections.
//!
//! A gateway that runs out of descriptors refuses clients long before `max_connections` says so: told at the start, not
//! found out under load.

use crate::config::Settings;

/// Listeners, the admin listener's connections, health checks, Redis, logs, certificates being read.
const BESIDES: u64 = 128;

/// Logs a warning if the limit is too low. Where the limit cannot be read (not Linux), nothing is said.
pub(super) fn warn(settings: &Settings) {
    let Some(limit) = std::fs::read_to_string("/proc/self/limits").ok().and_then(|limits| soft_limit(&limits)) else {
        return;
    };
    let needed = needed(settings);
    if limit < needed {
        tracing::warn!(
            limit,
            needed,
            "fewer open files are allowed than the configured connections need: raise the limit (ulimit -n, \
             LimitNOFILE=) or lower max_connections"
        );
    }
}

/// The soft limit of open files, as /proc tells it.
fn soft_limit(limits: &str) -> Option<u64> {
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?;
    if soft == "unlimited" { Some(u64::MAX) } else { soft.parse().ok() }
}

/// What is open when all connections are that may be.
fn needed(settings: &Settings) -> u64 {
    let clients: u64 = settings.listeners.iter().map(|listener| u64::from(listener.limits.max_connections)).sum();
    let replicas = u64::try_from(settings.balance.servers.len()).unwrap_or(u64::MAX);
    let upstream = replicas.saturating_mul(u64::from(settings.upstream.pool.max_connections));
    clients.saturating_add(upstream).saturating_add(BESIDES)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_soft_limit_is_the_first_number() {
        let line =
            |soft: &str| format!("Max processes  1 2 processes\nMax open files            {soft}   524288  files\n");
        assert_eq!(soft_limit(&line("1024")), Some(1024));
        assert_eq!(soft_limit(&line("unlimited")), Some(u64::MAX));
        assert_eq!(soft_limit("Max processes 1 2 processes\n"), None);
    }

    #[test]
    fn both_sides_connections_need_a_file_each() {
        let text = "
listeners: [ { address: 127.0.0.1:0, max_connections: 1000 }, { address: 127.0.0.1:1, max_connections: 10 } ]
upstreams: { letta: { servers: [ { url: http://a:1 }, { url: http://b:1 } ], pool: { max_connections: 100 } } }
keys: [ { id: one, hash: \"sha256:0000000000000000000000000000000000000000000000000000000000000001\", scopes: [read] } ]
";
        let settings = crate::config::parse(text, Path::new("gateway.yaml"), &|_| None).unwrap();
        assert_eq!(needed(&settings), 1010 + 200 + BESIDES);
    }
}
