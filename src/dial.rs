//! A TCP connection to a replica; and if there is none, whether that tells of the replica.
//!
//! A gateway without a descriptor or a port to spare cannot reach the healthiest of replicas. Held against them, its own
//! want would take one after another out of rotation just when every one is needed.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use rustix::io::Errno;
use tokio::net::{TcpStream, lookup_host};

use crate::error::Cause;

/// Why there is no connection.
#[derive(Debug)]
pub enum Failure {
    /// The replica, its name or the way to it.
    Replica(Cause),
    /// This process or machine has none left of `what`.
    Own { what: &'static str, cause: io::Error },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replica(cause) => cause.fmt(f),
            Self::Own { what, cause } => write!(f, "the gateway has no more {what}: {cause}"),
        }
    }
}

/// Connects to `authority` (`host:port`), to one of its addresses after the other.
pub async fn dial(authority: &str) -> Result<TcpStream, Failure> {
    let addresses = match lookup_host(authority).await {
        Ok(addresses) => addresses,
        Err(error) => return Err(unresolved(error)),
    };
    let (mut refused, mut wanting) = (None, None);
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(cause) => match short_of(&cause, address) {
                Some(what) => wanting = Some(Failure::Own { what, cause }),
                None => refused = Some(Failure::Replica(cause.into())),
            },
        }
    }
    // one address that refuses tells of the replica, whatever became of the others
    Err(refused.or(wanting).unwrap_or_else(|| Failure::Replica("the name has no address".into())))
}

/// The resolver does not tell for want of what it failed; a socket of our own does.
fn unresolved(error: io::Error) -> Failure {
    let wanting = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).err();
    match wanting.and_then(|cause| Some((short_of_sockets(&cause)?, cause))) {
        Some((what, cause)) => Failure::Own { what, cause },
        None => Failure::Replica(error.into()),
    }
}

/// What the gateway lacks, if that is why it could not connect to `address`.
fn short_of(error: &io::Error, address: SocketAddr) -> Option<&'static str> {
    match error.kind() {
        // so it is told too that this machine has no address of the family at all: then no datagram could go either
        io::ErrorKind::AddrNotAvailable => has_way_to(address).then_some("local ports"),
        _ => short_of_sockets(error),
    }
}

fn short_of_sockets(error: &io::Error) -> Option<&'static str> {
    match Errno::from_io_error(error)? {
        Errno::MFILE | Errno::NFILE => Some("open files"),
        Errno::NOBUFS | Errno::NOMEM => Some("socket memory"),
        _ => None,
    }
}

/// Sends nothing.
fn has_way_to(address: SocketAddr) -> bool {
    let any = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    UdpSocket::bind::<SocketAddr>(any).and_then(|socket| socket.connect(address)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_gateway_lacks_is_told_apart_from_what_a_replica_refuses() {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 8283));
        let found = |errno: Errno, address| short_of(&io::Error::from(errno), address);
        assert_eq!(found(Errno::MFILE, loopback), Some("open files"));
        assert_eq!(found(Errno::NFILE, loopback), Some("open files"));
        assert_eq!(found(Errno::NOBUFS, loopback), Some("socket memory"));
        assert_eq!(found(Errno::ADDRNOTAVAIL, loopback), Some("local ports"));
        for replicas in [Errno::CONNREFUSED, Errno::HOSTUNREACH, Errno::NETUNREACH, Errno::TIMEDOUT, Errno::CONNRESET] {
            assert_eq!(found(replicas, loopback), None, "{replicas:?}");
        }
        // no datagram goes there without leave
        assert_eq!(found(Errno::ADDRNOTAVAIL, (Ipv4Addr::BROADCAST, 1).into()), None);
    }

    #[tokio::test]
    async fn a_refusal_and_an_unknown_name_tell_of_the_replica() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        assert!(dial(&address).await.is_ok());
        drop(listener);
        assert!(matches!(dial(&address).await, Err(Failure::Replica(_))));
        assert!(matches!(dial("no-such-name.invalid:1").await, Err(Failure::Replica(_))));
    }
}
