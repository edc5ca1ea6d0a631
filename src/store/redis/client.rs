//! Makes connections to Redis, wherever it is.
//!
//! Each connection begins with a look at who is to be spoken to: the Sentinels are asked anew which server is the master,
//! a cluster which node has which slots. So whoever drops a connection that no longer serves finds what does.

use std::time::Duration;

use ::redis::cluster::{ClusterClient, ClusterConfig};
use ::redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use ::redis::{
    AsyncConnectionConfig, Client as ServerClient, ConnectionAddr, ConnectionInfo, RedisError, RedisResult,
    TlsCertificates, TlsMode,
};
use tokio::time::timeout;

use super::address::Address;
use super::connection::Connection;
use super::{BadUrl, LONGEST_BUDGET, told};
use crate::store::{Credentials, RedisSettings};

/// Time budget of a connection to a server: name, TCP, TLS, AUTH.
const CONNECT_BUDGET: Duration = Duration::from_secs(1);
/// The same for one node of a cluster: the others are waited for, too.
const NODE_BUDGET: Duration = Duration::from_millis(500);
/// Time budget of the look at who is to be spoken to: one that hangs is waited for before others are heard.
const LOOK_BUDGET: Duration = Duration::from_secs(3);

#[derive(Clone)]
pub(super) struct Client {
    address: Address,
    /// For the Sentinels, who have their own.
    sentinel: Credentials,
    /// PEM.
    authorities: Option<Vec<u8>>,
    /// What the longest wait for a reply is.
    longest_budget: Duration,
}

impl Client {
    pub(super) fn new(settings: &RedisSettings) -> Result<Self, BadUrl> {
        let address = Address::read(&settings.url)?;
        let read = |file: &std::path::PathBuf| {
            std::fs::read(file).map_err(|error| BadUrl(format!("cannot read the ca_file {}: {error}", file.display())))
        };
        let authorities = settings.ca_file.as_ref().map(read).transpose()?;
        let longest_budget = settings.timeout.max(LONGEST_BUDGET);
        let client = Self { address, sentinel: settings.sentinel.clone(), authorities, longest_budget };
        // what can be wrong with it is wrong now
        client.check().map_err(|error| BadUrl(format!("cannot use this Redis: {}", error.category())))?;
        Ok(client)
    }

    fn check(&self) -> RedisResult<()> {
        match &self.address {
            Address::Server(server) => self.server(server.clone()).map(drop),
            Address::Sentinel { master, sentinels } => self.sentinel(master, sentinels).map(drop),
            Address::Cluster(nodes) => self.cluster(nodes).map(drop),
        }
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// A connection on which as many as `most` commands may wait, and to which server; it may not be asked yet.
    pub(super) async fn connect(&self, most: usize) -> Result<(Connection, String), String> {
        match &self.address {
            Address::Server(server) => one(self.server(server.clone()).map_err(|error| told(&error))?, most).await,
            Address::Sentinel { master, sentinels } => {
                let mut client = self.sentinel(master, sentinels).map_err(|error| told(&error))?;
                let (server, _) = within(LOOK_BUDGET, "no Sentinel names a master in time", async {
                    client.async_get_client().await.map(|server| (server, ()))
                })
                .await?;
                one(server, most).await
            }
            Address::Cluster(nodes) => {
                let client = self.cluster(nodes).map_err(|error| told(&error))?;
                let config =
                    ClusterConfig::new().set_connection_timeout(NODE_BUDGET).set_response_timeout(self.longest_budget);
                let connecting = client.get_async_connection_with_config(config);
                let connection = within(LOOK_BUDGET, "no cluster in time", connecting).await?;
                Ok((Connection::Cluster(connection), self.address.to_string()))
            }
        }
    }

    fn server(&self, server: ConnectionInfo) -> RedisResult<ServerClient> {
        match self.certificates() {
            None => ServerClient::open(server),
            Some(certificates) => ServerClient::build_with_tls(server, certificates),
        }
    }

    fn sentinel(&self, master: &str, sentinels: &[ConnectionInfo]) -> RedisResult<SentinelClient> {
        let addresses: Vec<_> = sentinels.iter().map(|sentinel| sentinel.addr().clone()).collect();
        let mut builder = SentinelClientBuilder::new(addresses, master, SentinelServerType::Master)?;
        if let Some(said) = sentinels.first() {
            if let ConnectionAddr::TcpTls { insecure, .. } = said.addr() {
                let mode = if *insecure { TlsMode::Insecure } else { TlsMode::Secure };
                builder = builder.set_client_to_redis_tls_mode(mode).set_client_to_sentinel_tls_mode(mode);
            }
            let said = said.redis_settings();
            builder = builder.set_client_to_redis_db(said.db()).set_client_to_redis_protocol(said.protocol());
            if let Some(name) = said.username() {
                builder = builder.set_client_to_redis_username(name);
            }
            if let Some(password) = said.password() {
                builder = builder.set_client_to_redis_password(password);
            }
        }
        let Credentials { username, password } = &self.sentinel;
        if let Some(name) = username {
            builder = builder.set_client_to_sentinel_username(name);
        }
        if let Some(password) = password {
            builder = builder.set_client_to_sentinel_password(password);
        }
        if let (Some(redis), Some(sentinel)) = (self.certificates(), self.certificates()) {
            builder = builder.set_client_to_redis_certificates(redis).set_client_to_sentinel_certificates(sentinel);
        }
        builder.build()
    }

    /// Without its retries: a command whose connection broke may have been run, and whoever waits for it has no time.
    fn cluster(&self, nodes: &[ConnectionInfo]) -> RedisResult<ClusterClient> {
        let builder = ClusterClient::builder(nodes.iter().cloned()).retries(0).overall_response_timeout(None);
        match self.certificates() {
            None => builder.build(),
            Some(certificates) => builder.certs(certificates).build(),
        }
    }

    fn certificates(&self) -> Option<TlsCertificates> {
        let authorities = self.authorities.clone()?;
        Some(TlsCertificates { client_tls: None, root_cert: Some(authorities) })
    }
}

async fn one(server: ServerClient, most: usize) -> Result<(Connection, String), String> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None)
        .set_pipeline_buffer_size(most);
    let connecting = server.get_multiplexed_async_connection_with_config(&config);
    let connection = within(CONNECT_BUDGET, "no connection in time", connecting).await?;
    Ok((Connection::Server(connection), server.get_connection_info().addr().to_string()))
}

async fn within<T>(
    budget: Duration,
    late: &str,
    future: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, String> {
    timeout(budget, future).await.map_err(|_| late.to_owned())?.map_err(|error| told(&error))
}
