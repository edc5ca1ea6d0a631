//! The first minute: two replicas that are not Letta, a self-made certificate, and the gateway in front with the
//! embedded store. Needs neither Docker nor Redis nor Letta.

mod replica;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::app::{Gateway, StartError};
use crate::config;
use crate::telemetry::Metrics;
use crate::telemetry::access::AccessLog;
use crate::telemetry::record::Sink;

/// Runs until interrupted.
pub async fn run() -> Result<(), StartError> {
    let replicas = [replica::start("A").await?, replica::start("B").await?];
    let folder = Folder::make()?;
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    let cert = folder.write("cert.pem", made.cert.pem().as_bytes())?;
    folder.write("key.pem", made.signing_key.serialize_pem().as_bytes())?;

    let mut secret = [0; 24];
    getrandom::fill(&mut secret).map_err(|error| error.to_string())?;
    let key = format!("demo_{}", hex::encode(secret));
    let yaml = configuration(replicas, &key);
    let path = folder.write("gateway.yaml", yaml.as_bytes())?;
    let settings = config::load(&path).map_err(|problems| problems.to_string())?;

    let metrics = Arc::new(Metrics::new());
    let access = AccessLog::to(Summary(std::io::stdout()), Arc::clone(&metrics));
    let gateway = Gateway::start_with(&settings, Sink::new(metrics, access)).await?;
    let (Some(plain), Some(tls)) = (gateway.addresses().first(), gateway.addresses().get(1)) else {
        return Err("the demo has two listeners".into());
    };
    let admin = gateway.admin_address().map(|address| format!("http://{address}/metrics")).unwrap_or_default();
    let messages = format!("v1/agents/{}/messages", replica::AGENT);
    writeln!(
        std::io::stdout(),
        "letta-gateway demo: the gateway in front of two demo replicas. The replicas are NOT Letta; they answer in its shapes.

key      {key}
config   {config}
metrics  {admin}

A message, answered as JSON:
  curl -s http://{plain}/{messages} -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -d '{{\"input\": \"hello\"}}'

The same, streamed word by word, over TLS:
  curl -sN --cacert {cert} https://localhost:{port}/{messages}/stream -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -d '{{\"input\": \"hello stream\"}}'

A repeated message, answered from the cache (see Cache-Status and Age; run it twice):
  curl -si http://{plain}/{messages} -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -d '{{\"input\": \"what is cached?\"}}'

One line a request follows. Ctrl-C ends the demo.
",
        config = path.display(),
        cert = cert.display(),
        port = tls.port(),
    )?;
    interrupted().await?;
    writeln!(std::io::stdout(), "the demo ends")?;
    gateway.drain(settings.drain).await;
    Ok(())
}

async fn interrupted() -> std::io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

/// The same YAML anybody would write.
fn configuration(replicas: [SocketAddr; 2], key: &str) -> String {
    let [a, b] = replicas;
    format!(
        "listeners:
  - address: {plain}
  - address: {tls}
    tls: {{ cert_file: cert.pem, key_file: key.pem }}
admin: {{ address: {admin} }}
upstreams:
  letta:
    servers: [ {{ url: http://{a} }}, {{ url: http://{b} }} ]
keys:
  - {{ id: demo, hash: \"sha256:{hash}\", plan: demo, scopes: [read, message, modify] }}
plans:
  demo: {{ rate: {{ requests: 60, per: 1m, burst: 20 }}, in_flight: 8 }}
cache: {{ agents: [\"*\"], ttl: 1h }}
drain: 2s
",
        plain = free(8283),
        tls = free(8443),
        admin = free(9090),
        hash = hex::encode(Sha256::digest(key)),
    )
}

/// The usual port if nothing listens there, else any.
fn free(port: u16) -> SocketAddr {
    let usual = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    if TcpListener::bind(usual).is_ok() { usual } else { SocketAddr::from((Ipv4Addr::LOCALHOST, 0)) }
}

/// A folder of this demo's own; gone when it ends.
struct Folder(PathBuf);

impl Folder {
    fn make() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("letta-gateway-demo-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        let mut builder = std::fs::DirBuilder::new();
        // the certificate's key is in it
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&path)?;
        Ok(Self(path))
    }

    fn write(&self, name: &str, content: &[u8]) -> std::io::Result<PathBuf> {
        let path = self.0.join(name);
        std::fs::write(&path, content)?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Writes each access-log line as one for people.
struct Summary<W>(W);

#[derive(Deserialize)]
struct Line<'a> {
    method: &'a str,
    status: u16,
    #[serde(default)]
    route: Option<&'a str>,
    #[serde(default)]
    upstream: Option<&'a str>,
    #[serde(default)]
    cache: Option<&'a str>,
    #[serde(default)]
    reason: Option<&'a str>,
    duration_ms: f64,
    #[serde(default)]
    overhead_ms: Option<f64>,
}

impl<W: Write> Write for Summary<W> {
    fn write(&mut self, lines: &[u8]) -> std::io::Result<usize> {
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let Ok(line) = serde_json::from_slice::<Line<'_>>(line) else { continue };
            let by = match (line.cache, line.upstream, line.reason) {
                (Some("hit"), _, _) => "from the cache".to_owned(),
                (_, _, Some(reason)) => format!("by the gateway: {reason}"),
                (_, Some(upstream), None) => format!("by replica {upstream}"),
                (_, None, None) => "by the gateway".to_owned(),
            };
            let overhead = line.overhead_ms.map_or_else(String::new, |ms| format!(", gateway {ms:.2} ms"));
            writeln!(
                self.0,
                "{} {} -> {} {by}, {:.1} ms{overhead}",
                line.method,
                line.route.unwrap_or("(no route)"),
                line.status,
                line.duration_ms,
            )?;
        }
        Ok(lines.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}
