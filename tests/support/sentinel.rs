//! A master, a replica that follows it, and a Sentinel that makes the replica the master when the first one is gone.

use super::{RedisServer, directory, free_port, wait_until};

/// The name that the Sentinel knows the master by.
pub const MASTER: &str = "the-master";

pub struct Sentinel {
    /// The first is the master at first.
    pub servers: [RedisServer; 2],
    sentinel: RedisServer,
}

impl Sentinel {
    /// Running, the replica up to date and known to the Sentinel.
    pub fn start() -> Self {
        let it = Self::start_with("");
        wait_until("the Sentinel knows the replica", || {
            // its offset is told by the replica itself
            let known = it.sentinel.ask(&["SENTINEL", "REPLICAS", MASTER]);
            known.contains(&it.servers[1].port().to_string()) && known.contains("slave-repl-offset")
        });
        it
    }

    /// With these lines in the Sentinel's file more.
    pub fn start_with(lines: &str) -> Self {
        let alike = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"];
        let master = RedisServer::start_with(&alike);
        let port = master.port().to_string();
        let replica = RedisServer::start_with(&[&alike[..], &["--replicaof", "127.0.0.1", &port]].concat());
        // it keeps what it learns in its file
        let sentinel = RedisServer::start_as(directory(), free_port, |directory, own_port| {
            let file = directory.join("sentinel.conf");
            let text = format!(
                "port {own_port}\nbind 127.0.0.1\ndir {}\nsentinel monitor {MASTER} 127.0.0.1 {port} 1\n\
                 sentinel down-after-milliseconds {MASTER} 300\nsentinel failover-timeout {MASTER} 3000\n{lines}",
                directory.display()
            );
            std::fs::write(&file, text).expect("cannot write a file for the Sentinel");
            vec![file.display().to_string(), "--sentinel".to_owned()]
        });
        let it = Self { servers: [master, replica], sentinel };
        wait_until("the replica follows", || {
            it.servers[1].ask(&["INFO", "replication"]).contains("master_link_status:up")
        });
        it
    }

    /// For `store.redis.url`; `user` may be empty or end with `@`.
    pub fn url(&self, user: &str) -> String {
        format!("redis+sentinel://{user}{}/{MASTER}/0", self.sentinel.address())
    }

    /// Waits until the replica has become the master, and the Sentinel says so.
    pub fn failed_over(&self) {
        let port = self.servers[1].port().to_string();
        wait_until("the replica is the master", || {
            self.sentinel.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER]).contains(&port)
                && self.servers[1].ask(&["ROLE"]).starts_with("master")
        });
    }
}
