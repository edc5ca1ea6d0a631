//! The built binary as somebody runs it: a file, signals, what it prints, how it ends.

use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Door, until};

/// A running gateway of its own.
pub(crate) struct Process {
    child: Mutex<Child>,
    folder: TempDir,
    access: Arc<Mutex<Vec<Value>>>,
    diagnostics: Arc<Mutex<Vec<Value>>>,
    /// Standard output is read on.
    read: Arc<AtomicBool>,
    door: Door,
}

impl Deref for Process {
    type Target = Door;

    fn deref(&self) -> &Door {
        &self.door
    }
}

/// The command with a clean environment.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_letta-gateway"));
    for name in ["LETTA_GATEWAY_CONFIG", "LETTA_GATEWAY_KEY_HASH", "LETTA_SERVER_PASSWORD", "RUST_LOG"] {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

impl Process {
    /// Runs the gateway of `yaml` until the test is over. Its diagnostics are JSON, so `yaml` must say nothing of `log`.
    pub(crate) async fn start(yaml: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gateway.yaml");
        std::fs::write(&path, with_log(yaml)).expect("written");
        let mut child = command(&["run", "--config", path.to_str().expect("UTF-8")])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let read = Arc::new(AtomicBool::new(true));
        let access = lines(child.stdout.take().expect("piped"), Arc::clone(&read));
        let diagnostics = lines(child.stderr.take().expect("piped"), Arc::new(AtomicBool::new(true)));
        let address = |message: &str| -> Option<SocketAddr> {
            let lines = diagnostics.lock().unwrap();
            let line = lines.iter().find(|line| line["message"] == message)?;
            line["address"].as_str()?.parse().ok()
        };
        until(&format!("the gateway listens: {yaml}"), || {
            let ended = child.try_wait().expect("waited");
            assert!(ended.is_none(), "{ended:?}: {:?}", diagnostics.lock().unwrap());
            address("listening").is_some() && address("admin listening").is_some()
        })
        .await;
        let door = Door::new(address("listening").unwrap(), address("admin listening").unwrap());
        Self { child: Mutex::new(child), folder, access, diagnostics, read, door }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.lock().unwrap().id()
    }

    /// Writes the configuration anew, as an editor does: beside it, then over it.
    pub(crate) fn write(&self, yaml: &str) {
        let new = self.folder.path().join("new");
        std::fs::write(&new, with_log(yaml)).expect("written");
        std::fs::rename(new, self.path()).expect("renamed");
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("gateway.yaml")
    }

    /// `HUP`, `TERM`, `INT`.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "cannot send {name}");
    }

    pub(crate) fn has_ended(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap().try_wait().expect("waited")
    }

    /// Waits for its end; the exit code.
    pub(crate) async fn exit_code(&self) -> Option<i32> {
        until("the gateway ends", || self.has_ended().is_some()).await;
        self.has_ended().expect("ended").code()
    }

    /// Closes the pipe that the access log goes to, as a log collector does that dies.
    pub(crate) fn stop_reading(&self) {
        self.read.store(false, Ordering::Relaxed);
    }

    /// The access-log lines so far, once there are `count`.
    pub(crate) async fn log(&self, count: usize) -> Vec<Value> {
        until("the access log has the lines", || self.access.lock().unwrap().len() >= count).await;
        self.access.lock().unwrap().clone()
    }

    /// The diagnostic that says `message`, once there is one after the first `after` lines.
    pub(crate) async fn says(&self, message: &str, after: usize) -> Value {
        let said = || self.said().get(after..)?.iter().find(|line| line["message"] == message).cloned();
        until(&format!("it says {message:?}"), || said().is_some()).await;
        said().expect("said")
    }

    /// All diagnostics so far.
    pub(crate) fn said(&self) -> Vec<Value> {
        self.diagnostics.lock().unwrap().clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn with_log(yaml: &str) -> String {
    format!("{yaml}\nlog: {{ format: json }}\n")
}

/// What is printed, line by line, as it comes, while `read` says so.
fn lines(output: impl Read + Send + 'static, read: Arc<AtomicBool>) -> Arc<Mutex<Vec<Value>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let taken = Arc::clone(&lines);
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
            taken.lock().unwrap().push(line);
            if !read.load(Ordering::Relaxed) {
                break;
            }
        }
    });
    lines
}
