//! `healthcheck`: asks the admin listener, so that an image needs no curl.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use clap::Args;
use http::Uri;

use super::{ConfigFile, Failure, print};
use crate::config;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Where to ask, e.g. http://127.0.0.1:9090 or http://127.0.0.1:9090/readyz [default: the configuration's
    /// admin.address, and /livez]
    #[arg(long, value_name = "URL")]
    address: Option<Uri>,
    /// How long an answer may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout: u64,
    #[command(flatten)]
    config: ConfigFile,
}

impl Arguments {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { address, timeout, config } = self;
        let (address, path) = match address {
            Some(uri) => of_uri(&uri)?,
            None => (of_config(&config.path())?, "/livez".to_owned()),
        };
        let status = ask(address, &path, Duration::from_secs(timeout))
            .map_err(|error| Failure::Failed(format!("http://{address}{path} does not answer: {error}")))?;
        match status.split(' ').nth(1) {
            Some("200") => print("ok\n"),
            _ => Err(Failure::Failed(format!("http://{address}{path} answered: {status}"))),
        }
    }
}

fn of_uri(uri: &Uri) -> Result<(SocketAddr, String), Failure> {
    let failed = |why: &str| Failure::Failed(format!("--address {uri}: {why}; write http://host:port"));
    if uri.scheme_str().is_some_and(|scheme| scheme != "http") {
        return Err(failed("the admin listener speaks plain HTTP"));
    }
    let authority = uri.authority().filter(|authority| authority.port().is_some());
    let authority = authority.ok_or_else(|| failed("there is no host and port"))?;
    let address = authority.as_str().to_socket_addrs().map_err(|error| failed(&error.to_string()))?.next();
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    Ok((
        address.ok_or_else(|| failed("the host has no address"))?,
        if path == "/" { "/livez" } else { path }.to_owned(),
    ))
}

fn of_config(path: &Path) -> Result<SocketAddr, Failure> {
    let unknown = |why: String| {
        Failure::Failed(format!("{why}\nwhere to ask is not known; name the file with --config, or give --address"))
    };
    let address = config::admin_address(path).map_err(|problems| unknown(problems.to_string()))?;
    let mut address = address.ok_or_else(|| unknown(format!("{}: there is no admin listener", path.display())))?;
    // what listens everywhere is asked here
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    Ok(address)
}

/// The status line of the answer.
fn ask(address: SocketAddr, path: &str, patience: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: letta-gateway-healthcheck\r\nConnection: close\r\n\r\n"
    )?;
    let mut line = String::new();
    BufReader::new(std::io::Read::take(stream, 1024)).read_line(&mut line)?;
    if line.is_empty() {
        return Err(std::io::Error::other("the connection was closed without an answer"));
    }
    Ok(line.trim_end().to_owned())
}
