//! Says when the configuration is to be read again: SIGHUP, or a changed file of those it was read from.
//!
//! Folders are watched, not files: editors write anew and rename, Kubernetes swaps a link two levels up. What counts
//! is the content, so a touched file or a busy folder asks for nothing. Where the kernel tells nothing (network file
//! systems, single files mounted into a container) a look every few seconds finds the change.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use sha2::{Digest, Sha256};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};

use crate::config::Settings;

/// How long files must be left alone before they are read: an editor may be at work still.
const QUIET: Duration = Duration::from_millis(300);
/// A folder that is never quiet does not put it off for longer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often is looked without having been told.
const LOOK: Duration = Duration::from_secs(5);

/// Watches the configuration at `path` and the files `settings` were read from.
pub fn watch(settings: &Settings, path: &Path) -> io::Result<Changes> {
    let hangup = signal(SignalKind::hangup())?;
    let stirred = Arc::new(Notify::new());
    let mut clock = interval_at(Instant::now() + LOOK, LOOK);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watcher = {
        let stirred = Arc::clone(&stirred);
        notify::recommended_watcher(move |event| {
            if is_change(&event) {
                stirred.notify_one();
            }
        })
    };
    let watcher = watcher
        .inspect_err(|error| tracing::warn!(%error, "no notice of changed files; looking every few seconds instead"))
        .ok();
    let mut changes = Changes {
        hangup,
        hung_up: false,
        watcher,
        folders: BTreeSet::new(),
        stirred,
        clock,
        settling: None,
        seen: Seen::new(),
    };
    changes.follow(settings, path);
    Ok(changes)
}

/// Tells of each change once. Dropped, it watches no more.
pub struct Changes {
    hangup: Signal,
    watcher: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
    /// Something happened in one of the folders.
    stirred: Arc<Notify>,
    clock: Interval,
    hung_up: bool,
    /// Set while folders are not quiet yet: when they will be, and when that is waited for no more.
    settling: Option<(Instant, Instant)>,
    seen: Seen,
}

/// What each file held when it was last looked at; None: it could not be read.
type Seen = BTreeMap<PathBuf, Option<[u8; 32]>>;

impl Changes {
    /// Waits until the configuration is to be read again. Cancel safe: a change is told by the next call then.
    pub async fn next(&mut self) {
        loop {
            if self.hung_up || self.settling.is_some_and(|(quiet, patience)| quiet.min(patience) <= Instant::now()) {
                let changed = self.look().await;
                if std::mem::take(&mut self.hung_up) || changed {
                    return;
                }
            }
            let quiet = self.settling.map(|(quiet, patience)| quiet.min(patience));
            tokio::select! {
                hangup = self.hangup.recv() => self.hung_up |= hangup.is_some(),
                () = sleep_until(quiet.unwrap_or_else(Instant::now)), if quiet.is_some() => {}
                () = self.stirred.notified() => {
                    let now = Instant::now();
                    let patience = self.settling.map_or(now + PATIENCE, |(_, patience)| patience);
                    self.settling = Some((now + QUIET, patience));
                }
                now = self.clock.tick() => self.settling = self.settling.or(Some((now, now))),
            }
        }
    }

    /// Goes on with the files of `settings`, which were read from `path` because of a change told.
    pub fn follow(&mut self, settings: &Settings, path: &Path) {
        let files: BTreeSet<PathBuf> = settings.files.iter().cloned().chain([path.to_owned()]).collect();
        self.watch_folders(files.iter().flat_map(|file| folders(file)).collect());
        // what is known stays as it was when the change was told: a change since then is another one
        self.seen = files
            .into_iter()
            .map(|file| {
                let content = self.seen.get(&file).copied().unwrap_or_else(|| content(&file));
                (file, content)
            })
            .collect();
    }

    fn watch_folders(&mut self, folders: BTreeSet<PathBuf>) {
        let Some(watcher) = &mut self.watcher else { return };
        for gone in self.folders.difference(&folders) {
            // a folder that is no more is watched no more
            let _ = watcher.unwatch(gone);
        }
        for new in folders.difference(&self.folders) {
            if let Err(error) = watcher.watch(new, RecursiveMode::NonRecursive) {
                tracing::warn!(folder = %new.display(), %error, "no notice of changes here; looking every few seconds");
            }
        }
        self.folders = folders;
    }

    /// Whether a file holds something else than when it was last looked at.
    async fn look(&mut self) -> bool {
        let files: Vec<PathBuf> = self.seen.keys().cloned().collect();
        let read = move || files.into_iter().map(|file| (file.clone(), content(&file))).collect();
        // files may lie on a disk far away
        let Ok(now) = tokio::task::spawn_blocking(read).await else { return false };
        self.settling = None;
        std::mem::replace(&mut self.seen, now) != self.seen
    }
}

/// Where a change of `file` shows: where its name is, and where what the name leads to is.
fn folders(file: &Path) -> impl Iterator<Item = PathBuf> {
    let folder = |path: &Path| match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Some(PathBuf::from(".")),
        parent => parent.map(Path::to_owned),
    };
    let target = std::fs::canonicalize(file).ok();
    [folder(file), target.as_deref().and_then(folder)].into_iter().flatten()
}

/// Reading is no change; neither is opening, which every look at the files does itself.
fn is_change(event: &notify::Result<Event>) -> bool {
    match event {
        Ok(event) => match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
            EventKind::Access(_) => false,
            EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Other => {
                true
            }
        },
        // events may have been lost
        Err(_) => true,
    }
}

/// Piece by piece: a file of keys may be large, and it is looked at every few seconds.
fn content(file: &Path) -> Option<[u8; 32]> {
    let mut file = File::open(file).ok()?;
    let mut digest = Sha256::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Some(digest.finalize().into()),
            Ok(length) => digest.update(piece.get(..length)?),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::time::timeout;

    use super::*;
    use crate::config;

    const YAML: &str = r#"
listeners: [ { address: "127.0.0.1:0" } ]
upstreams: { letta: { password: "file:password", servers: [ { url: "http://127.0.0.1:8284" } ] } }
keys: [ { id: one, hash: "sha256:0000000000000000000000000000000000000000000000000000000000000001", scopes: [read] } ]
"#;

    /// A folder with a configuration and its secret, watched.
    fn watched() -> (tempfile::TempDir, PathBuf, Changes) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.yaml");
        fs::write(&path, YAML).unwrap();
        fs::write(folder.path().join("password"), "one").unwrap();
        let changes = watch(&config::load(&path).unwrap(), &path).unwrap();
        (folder, path, changes)
    }

    async fn told(changes: &mut Changes) {
        timeout(Duration::from_secs(20), changes.next()).await.expect("a change is told");
    }

    #[tokio::test]
    async fn a_file_written_anew_or_renamed_over_is_told_once() {
        let (folder, path, mut changes) = watched();
        fs::write(&path, format!("{YAML}drain: 1s\n")).unwrap();
        told(&mut changes).await;
        fs::write(folder.path().join("new"), format!("{YAML}drain: 2s\n")).unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        told(&mut changes).await;
        assert!(!changes.look().await);
    }

    #[tokio::test]
    async fn a_secret_is_followed_like_the_configuration() {
        let (folder, _, mut changes) = watched();
        fs::write(folder.path().join("password"), "two").unwrap();
        told(&mut changes).await;
    }

    #[tokio::test]
    async fn a_link_swapped_two_levels_up_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (version, drain) in [("1", "1s"), ("2", "2s")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("gateway.yaml"), format!("{YAML}drain: {drain}\n")).unwrap();
            fs::write(at(version).join("password"), "one").unwrap();
        }
        std::os::unix::fs::symlink("1", at("..data")).unwrap();
        for file in ["gateway.yaml", "password"] {
            std::os::unix::fs::symlink(Path::new("..data").join(file), at(file)).unwrap();
        }
        let path = at("gateway.yaml");
        let mut changes = watch(&config::load(&path).unwrap(), &path).unwrap();
        std::os::unix::fs::symlink("2", at("new")).unwrap();
        fs::rename(at("new"), at("..data")).unwrap();
        told(&mut changes).await;
        assert_eq!(config::load(&path).unwrap().drain, Duration::from_secs(2));
    }

    #[tokio::test]
    async fn a_touched_file_and_a_busy_folder_ask_for_nothing() {
        let (folder, path, mut changes) = watched();
        fs::write(&path, YAML).unwrap();
        fs::write(folder.path().join("other"), "busy").unwrap();
        assert!(!changes.look().await);
    }

    #[tokio::test]
    async fn sighup_is_told_though_nothing_changed() {
        let (_folder, _, mut changes) = watched();
        let status = std::process::Command::new("kill").args(["-HUP", &std::process::id().to_string()]).status();
        assert!(status.unwrap().success());
        told(&mut changes).await;
    }

    #[tokio::test]
    async fn a_change_while_the_last_one_is_taken_over_is_told_too() {
        let (_folder, path, mut changes) = watched();
        fs::write(&path, format!("{YAML}drain: 1s\n")).unwrap();
        told(&mut changes).await;
        let settings = config::load(&path).unwrap();
        fs::write(&path, format!("{YAML}drain: 2s\n")).unwrap();
        changes.follow(&settings, &path);
        told(&mut changes).await;
    }

    #[tokio::test]
    async fn a_wait_given_up_loses_no_change() {
        let (_folder, path, mut changes) = watched();
        fs::write(&path, format!("{YAML}drain: 1s\n")).unwrap();
        for _ in 0..100 {
            // dropped at any moment, but never for good
            if timeout(Duration::from_millis(50), changes.next()).await.is_ok() {
                return;
            }
        }
        panic!("the change was lost");
    }
}
