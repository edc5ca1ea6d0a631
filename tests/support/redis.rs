//! A real `redis-server` of a test's own, on a free port of the loopback address, gone with the test.
//!
//! It can be killed, started again on the same port, stopped as a hung machine would be (SIGSTOP) and woken. Several of them
//! are a master with a replica and a Sentinel ([`sentinel`]), or a cluster ([`cluster`]).

pub mod cluster;
pub mod sentinel;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct RedisServer {
    child: Child,
    address: SocketAddr,
    arguments: Vec<String>,
    _directory: TempDir,
}

impl RedisServer {
    /// A server without password or TLS.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A server with these arguments more, e.g. `["--requirepass", "…"]`.
    pub fn start_with(arguments: &[&str]) -> Self {
        Self::start_in(directory(), "--port", arguments, free_port)
    }

    /// A server that speaks TLS only, with this certificate and key (PEM).
    pub fn start_tls(certificate: &str, key: &str) -> Self {
        let directory = directory();
        let [certificate, key] = [("cert.pem", certificate), ("key.pem", key)].map(|(name, pem)| {
            let path = directory.path().join(name);
            std::fs::write(&path, pem).expect("cannot write a PEM file for redis-server");
            path.display().to_string()
        });
        let tls = ["--port", "0", "--tls-auth-clients", "no", "--tls-cert-file", &certificate, "--tls-key-file", &key];
        Self::start_in(directory, "--tls-port", &tls, free_port)
    }

    fn start_in(directory: TempDir, port_option: &str, arguments: &[&str], port: fn() -> u16) -> Self {
        Self::start_as(directory, port, |directory, port| {
            let common = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"];
            let mut all: Vec<String> = common.into_iter().map(String::from).collect();
            all.extend([directory.display().to_string(), port_option.to_owned(), port.to_string()]);
            all.extend(arguments.iter().copied().map(String::from));
            all
        })
    }

    /// Whatever `redis-server` is with the arguments that are made of its directory and its port.
    fn start_as(directory: TempDir, port: fn() -> u16, arguments: impl Fn(&Path, u16) -> Vec<String>) -> Self {
        // the port was free a moment ago; should another process have been faster, the next one will be free
        for _ in 0..10 {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port()));
            let arguments = arguments(directory.path(), address.port());
            let mut child = spawn(&arguments);
            if ready(&mut child, address) {
                return Self { child, address, arguments, _directory: directory };
            }
        }
        panic!("redis-server does not start")
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn url(&self) -> String {
        format!("redis://{}/0", self.address)
    }

    /// Host and port.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// What `redis-cli` prints for a command; empty if the server does not answer.
    pub fn ask(&self, words: &[&str]) -> String {
        cli(&[&["-p", &self.port().to_string()], words].concat())
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().expect("cannot kill redis-server");
        self.child.wait().expect("cannot wait for redis-server");
    }

    /// Starts it again where it was, empty unless it was told to keep what it has.
    pub fn restart(&mut self) {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            self.child = spawn(&self.arguments);
            if ready(&mut self.child, self.address) {
                return;
            }
        }
        panic!("redis-server does not start again on {}", self.address)
    }

    /// Lets it hang: connections stay open and are even accepted, nothing is answered.
    pub fn hang(&self) {
        self.signal("-STOP");
    }

    pub fn wake(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "cannot send {signal} to redis-server");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("cannot find a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// What `redis-cli` prints; what it warns of is left out.
fn cli(words: &[&str]) -> String {
    let ran = Command::new("redis-cli").args(words).stdin(Stdio::null()).output();
    let ran = ran
        .unwrap_or_else(|error| panic!("this test needs redis-cli on the PATH (apt-get install redis-tools): {error}"));
    String::from_utf8_lossy(&ran.stdout).into_owned()
}

/// Waits until it is so.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < 2 * PATIENCE, "{what}: not within {:?}", 2 * PATIENCE);
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("cannot make a directory for redis-server")
}

fn spawn(arguments: &[String]) -> Child {
    Command::new("redis-server")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("this test needs redis-server on the PATH (apt-get install redis-server): {error}")
        })
}

/// True when it listens, false when it has ended.
fn ready(child: &mut Child, address: SocketAddr) -> bool {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if child.try_wait().expect("cannot wait for redis-server").is_some() {
            return false;
        }
        if TcpStream::connect(address).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let _ = child.kill();
    let _ = child.wait();
    false
}
