//! One connection to Redis: to a server, or to all nodes of a cluster.

use std::io;

use ::redis::aio::MultiplexedConnection;
use ::redis::cluster_async::ClusterConnection;
use ::redis::cluster_routing::{MultipleNodeRoutingInfo, ResponsePolicy, RoutingInfo};
use ::redis::{Cmd, ErrorKind, RedisResult, ServerErrorKind, Value, cmd};

/// Clones share it; with the last one all that waits on it is dropped.
#[derive(Clone)]
pub(super) enum Connection {
    Server(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connection {
    /// Runs one command, at most once.
    pub(super) async fn ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Server(server) => command.query_async(server).await,
            Self::Cluster(cluster) => follow(cluster, command).await,
        }
    }

    /// Whether all there has to be is there, as far as `ask` does not tell: of a cluster, every primary.
    pub(super) async fn check(&mut self) -> RedisResult<()> {
        match self {
            Self::Server(_) => Ok(()),
            Self::Cluster(cluster) => every_primary(cluster).await,
        }
    }
}

/// Goes after a slot that has moved: a node that sends elsewhere has not run the command. While a slot is on its way
/// (`ASK`, `TRYAGAIN`) there is no node that runs a command with several keys, and nobody is followed.
async fn follow(cluster: &mut ClusterConnection, command: &Cmd) -> RedisResult<Value> {
    match command.query_async(cluster).await {
        Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::Moved) => {
            // the client looks where the slots are before it sends anything else
            command.query_async(cluster).await
        }
        replied => replied,
    }
}

/// A primary that hangs or is gone is not hidden by the others: all of them say how many they are.
async fn every_primary(cluster: &mut ClusterConnection) -> RedisResult<()> {
    let mut info = cmd("CLUSTER");
    info.arg("INFO");
    let primaries = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, Some(ResponsePolicy::Special)));
    let Value::Map(told) = cluster.route_command(info, primaries).await? else {
        return Err(io::Error::other("this is no cluster").into());
    };
    let size = format!("\r\ncluster_size:{}\r\n", told.len());
    let is_whole = |told: &Value| match told {
        Value::BulkString(told) => contains(told, b"cluster_state:ok\r\n") && contains(told, size.as_bytes()),
        _ => false,
    };
    if told.iter().all(|(_, told)| is_whole(told)) {
        return Ok(());
    }
    Err(io::Error::other("not every primary of the cluster answers").into())
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(text, part).is_some()
}
