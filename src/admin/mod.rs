//! The admin listener: /metrics, /livez, /readyz.

use std::net::SocketAddr;

/// What the configuration says of the admin listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub address: SocketAddr,
}
