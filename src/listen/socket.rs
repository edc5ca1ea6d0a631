//! The listening socket: how it is made, and what every connection gets from it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpListener;

use super::tls::TlsError;

/// Connections the kernel holds for us until they are accepted; `net.core.somaxconn` bounds it too.
const BACKLOG: i32 = 4096;
/// A peer that vanished without a word is asked for after so long …
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
/// … every so often …
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// … and given up after so many unanswered probes.
const KEEPALIVE_PROBES: u32 = 3;

/// Opens the socket. `write_timeout`: how long the kernel keeps trying to bring bytes to a peer that confirms none.
pub(super) fn open(address: SocketAddr, write_timeout: Duration) -> Result<TcpListener, BindError> {
    listen(address, write_timeout).map_err(|error| BindError { address, cause: Cause::Socket(error) })
}

fn listen(address: SocketAddr, write_timeout: Duration) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // a restart must not wait for the connections of the process before it to leave TIME_WAIT
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `[::]` takes IPv4 as well, whatever the system's default is
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY);
    socket.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_PROBES))?;
    // accepted sockets inherit these; a closed connection's unsent bytes leave the kernel by this timeout too
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(write_timeout))?;
    #[cfg(not(target_os = "linux"))]
    let _ = write_timeout;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Sets what accepted sockets do not inherit everywhere: an event must leave when it is written, not when the last
/// one was confirmed.
pub(super) fn accepted(stream: &tokio::net::TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_tcp_nodelay(true)
}

/// Why a listener cannot be opened: its address, the problem, what to do.
#[derive(Debug)]
pub struct BindError {
    address: SocketAddr,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    Socket(io::Error),
    Tls(TlsError),
}

impl BindError {
    pub(super) fn tls(address: SocketAddr, error: TlsError) -> Self {
        Self { address, cause: Cause::Tls(error) }
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address;
        match &self.cause {
            Cause::Tls(error) => write!(f, "cannot listen on {address}: {error}"),
            Cause::Socket(error) => {
                write!(f, "cannot listen on {address}: {error}")?;
                match error.kind() {
                    io::ErrorKind::AddrInUse if address.ip().is_unspecified() => f.write_str(
                        ": another process has this port (`ss -ltnp` names it), or two listeners here do: [::] takes IPv4 too",
                    ),
                    io::ErrorKind::AddrInUse => {
                        f.write_str(": another process has this port (`ss -ltnp` names it): stop it or choose another")
                    }
                    io::ErrorKind::AddrNotAvailable => {
                        f.write_str(": no interface of this machine has this address: use 0.0.0.0 or [::] for all")
                    }
                    io::ErrorKind::PermissionDenied => {
                        f.write_str(": choose a port from 1024 up, or give the process CAP_NET_BIND_SERVICE")
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.cause {
            Cause::Socket(error) => Some(error),
            Cause::Tls(error) => Some(error),
        }
    }
}
