//! A gateway that has no descriptor left: it is told as the gateway's want, costs no replica its place, and passes.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail loudly")]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

const KEY_HASH: &str = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"; // of `key`
/// How long something may take; reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers every request with `{}` and closes, as long as the test runs.
fn replica() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            while stream.read_line(&mut line).is_ok_and(|read| read > 2) {
                line.clear();
            }
            let _ = stream.get_mut().write_all(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}",
            );
        }
    });
    address
}

struct Gateway {
    process: Child,
    /// What it logs, line by line.
    log: Receiver<String>,
    listening: SocketAddr,
    admin: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Gateway {
    /// `limits`: `-S` and `-H` of ulimit.
    fn start(limits: &str, max_connections: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("gateway.yaml");
        let text = format!(
            "listeners: [ {{ address: 127.0.0.1:0, max_connections: {max_connections} }} ]\nadmin: {{ address: 127.0.0.1:0 }}\nupstreams: {{ letta: {{ servers: [ {{ url: http://{} }}, {{ url: http://{} }} ], pool: {{ max_connections: 10 }}, ejection: {{ after: 1 }}, health_check: {{ interval: 20ms, unhealthy_after: 1 }} }} }}\nkeys: [ {{ id: one, hash: \"sha256:{KEY_HASH}\", plan: wide, scopes: [read] }} ]\nplans: {{ wide: {{ in_flight: 1000 }} }}\n",
            replica(),
            replica()
        );
        std::fs::write(&config, text).unwrap();
        let script = format!("ulimit {limits}; exec \"$0\" run --config \"$1\"");
        let mut process = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_letta-gateway")])
            .arg(&config)
            .env_remove("RUST_LOG")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (lines, log) = channel();
        let stderr = BufReader::new(process.stderr.take().unwrap());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut gateway = Self { process, log, listening: nowhere, admin: nowhere, _folder: folder };
        let address = |line: &str| line.split(&['"', '=', ' ', ','][..]).find_map(|word| word.parse().ok()).unwrap();
        gateway.listening = address(&gateway.says(" listening"));
        gateway.admin = address(&gateway.says("admin listening"));
        gateway
    }

    /// The next line of the log that has `words`.
    fn says(&self, words: &str) -> String {
        let mut so_far = String::new();
        loop {
            let Ok(line) = self.log.recv_timeout(PATIENCE) else { panic!("never said: {words}\n{so_far}") };
            if line.contains(words) {
                return line;
            }
            writeln!(so_far, "{line}").unwrap();
        }
    }

    /// Sets the soft limit of open files.
    fn allow(&self, files: Option<u64>) {
        let limit = Rlimit { current: files, maximum: hard() };
        prlimit(Some(Pid::from_child(&self.process)), Resource::Nofile, limit).unwrap();
    }

    fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// The sum of the series whose name and labels have `words`.
    fn metric(&self, words: &[&str]) -> f64 {
        let has = |line: &&str| !line.starts_with('#') && words.iter().all(|word| line.contains(word));
        self.metrics().lines().filter(has).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn hard() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

/// One request on a connection that stays open; status and body.
fn ask(stream: &mut BufReader<TcpStream>) -> (u16, String) {
    stream.get_mut().write_all(b"GET /v1/agents/ HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key\r\n\r\n").unwrap();
    let (mut status, mut length) = (0, 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
            status = rest[..3].parse().unwrap();
        } else if let Some(rest) = line.strip_prefix("content-length: ") {
            length = rest.trim().parse().unwrap();
        } else if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (status, String::from_utf8(body).unwrap())
}

#[test]
fn a_gateway_out_of_files_says_so_ejects_nobody_and_does_not_spin() {
    let gateway = Gateway::start("-Sn 1024", 100);
    let stream = TcpStream::connect(gateway.listening).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut client = BufReader::new(stream);
    assert_eq!(ask(&mut client), (200, "{}".to_owned()));

    // no descriptor from here on
    gateway.allow(Some(3));
    for _ in 0..5 {
        let (status, body) = ask(&mut client);
        assert_eq!(status, 503, "{body}");
        assert!(body.contains("\"gateway_exhausted\"") && body.contains("open files"), "{body}");
    }
    gateway.says("health checks cannot be made");
    let _waiting: Vec<_> = (0..50).map(|_| TcpStream::connect(gateway.listening).unwrap()).collect();
    gateway.says("cannot accept connections");

    gateway.allow(hard());
    assert_eq!(ask(&mut client), (200, "{}".to_owned()));
    assert_eq!(gateway.metric(&["upstream_ejections_total"]), 0.0, "{}", gateway.metrics());
    assert_eq!(gateway.metric(&["upstream_connect_failures_total"]), 0.0);
    assert_eq!(gateway.metric(&["upstream_healthy"]), 2.0);
    let refused = gateway.metric(&["connection_errors_total", "reason=\"io\""]);
    assert!((1.0..100.0).contains(&refused), "the kernel was asked {refused} times in vain");
}

#[test]
fn the_limit_is_raised_as_far_as_it_goes() {
    let gateway = Gateway::start("-Sn 64", 100);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", gateway.process.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let hard = hard().unwrap().to_string();
    assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), [hard.as_str(), hard.as_str()]);
}

#[test]
fn a_limit_that_cannot_be_raised_far_enough_takes_fewer_connections() {
    let gateway = Gateway::start("-n 188", 100);
    // 60 files for 100 clients and 20 connections to replicas
    let mut clients: Vec<_> = (0..50)
        .map(|_| {
            let stream = TcpStream::connect(gateway.listening).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            BufReader::new(stream)
        })
        .collect();
    for client in &mut clients {
        assert_eq!(ask(client).0, 200);
    }
    let mut refused = TcpStream::connect(gateway.listening).unwrap();
    assert_eq!(refused.read(&mut [0; 1]).unwrap_or(0), 0);
    assert_eq!(gateway.metric(&["connection_errors_total", "reason=\"full\""]), 1.0);
}
