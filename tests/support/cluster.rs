//! A Redis Cluster of three primaries, and of replicas of theirs if it is to have any.

use std::net::{Ipv4Addr, TcpListener};

use super::{RedisServer, cli, directory, free_port, wait_until};

/// Nodes that have slots.
const PRIMARIES: usize = 3;

pub struct Cluster {
    /// The primaries first.
    pub nodes: Vec<RedisServer>,
}

impl Cluster {
    /// Three primaries that have all slots among them.
    pub fn start() -> Self {
        Self::start_with(0)
    }

    /// The same with as many `replicas`, each of one primary, in their order.
    pub fn start_with(replicas: usize) -> Self {
        let cluster = Self { nodes: (0..PRIMARIES + replicas).map(|_| node()).collect() };
        let (primaries, replicas) = cluster.nodes.split_at(PRIMARIES);
        let addresses: Vec<String> = primaries.iter().map(RedisServer::address).collect();
        let mut create = vec!["--cluster", "create"];
        create.extend(addresses.iter().map(String::as_str));
        create.push("--cluster-yes");
        let told = cli(&create);
        assert!(told.contains("[OK] All 16384 slots covered"), "{told}");
        all_know(primaries);
        for (primary, replica) in primaries.iter().zip(replicas) {
            replica.ask(&["CLUSTER", "MEET", "127.0.0.1", &primary.port().to_string()]);
            let id = primary.ask(&["CLUSTER", "MYID"]);
            wait_until("the replica follows", || {
                replica.ask(&["CLUSTER", "REPLICATE", id.trim()]);
                replica.ask(&["INFO", "replication"]).contains("master_link_status:up")
            });
        }
        cluster.is_whole();
        cluster
    }

    /// For `store.redis.url`: all primaries.
    pub fn url(&self) -> String {
        let addresses: Vec<String> = self.nodes[..PRIMARIES].iter().map(RedisServer::address).collect();
        format!("redis+cluster://{}", addresses.join(","))
    }

    /// The node that has `key`.
    pub fn of(&self, key: &str) -> &RedisServer {
        let has = |node: &&RedisServer| node.ask(&["EXISTS", key]).trim().parse::<u32>().is_ok();
        self.nodes[..PRIMARIES].iter().find(has).expect("a node has every slot")
    }

    /// Waits until every node that answers knows of all slots and of all others.
    pub fn is_whole(&self) {
        all_know(&self.nodes);
    }
}

fn all_know(nodes: &[RedisServer]) {
    let (size, known) = (format!("cluster_size:{PRIMARIES}\r"), format!("cluster_known_nodes:{}\r", nodes.len()));
    for node in nodes {
        wait_until("the cluster is whole", || {
            let told = node.ask(&["CLUSTER", "INFO"]);
            told.is_empty() || ["cluster_state:ok", &size, &known].iter().all(|part| told.contains(part))
        });
    }
}

fn node() -> RedisServer {
    let options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "500", "--repl-diskless-sync-delay", "0"];
    RedisServer::start_in(directory(), "--port", &options, port)
}

/// A port beside which the one that nodes talk to each other on is free, too.
fn port() -> u16 {
    loop {
        let port = free_port();
        if port.checked_add(10_000).is_some_and(|bus| TcpListener::bind((Ipv4Addr::LOCALHOST, bus)).is_ok()) {
            return port;
        }
    }
}
