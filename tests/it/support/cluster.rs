//! A PostgreSQL server of a test's own, in a folder of its own, as a user that may nothing.

use super::free_address;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// Killed when it is dropped.
pub struct Cluster {
    bin: PathBuf,
    dir: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

/// Where the server's programs are; `None`: it is not installed.
fn programs() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin"))
        .chain(std::env::var_os("PATH").iter().flat_map(std::env::split_paths))
        .filter(|dir| ["initdb", "postgres", "psql"].iter().all(|name| dir.join(name).exists()))
        .collect();
    found.sort();
    found.pop()
}

impl Cluster {
    /// A fresh one that runs; `None` where PostgreSQL is not installed.
    pub fn start() -> Option<Self> {
        let bin = programs()?;
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("our folder");
        let cluster = Self { bin, dir, port: free_address().port(), child: None };
        let made = cluster
            .command("initdb")
            .args(["--auth=trust", "--username=hearth", "--no-sync", "--encoding=UTF8", "--locale=C"])
            .output()
            .expect("initdb runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut cluster = cluster;
        cluster.up();
        Some(cluster)
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// PostgreSQL refuses to run as root.
    fn command(&self, program: &str) -> Command {
        let path = self.bin.join(program);
        let is_root = rustix::process::getuid().is_root();
        let mut command = if is_root { Command::new("setpriv") } else { Command::new(&path) };
        if is_root {
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&path);
        }
        command.arg("-D").arg(self.data()).current_dir("/").stdin(Stdio::null());
        command
    }

    /// Starts it (again), and waits until it answers.
    pub fn up(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).expect("a log");
        let sockets = self.dir.path().to_str().expect("text").to_owned();
        let mut command = self.command("postgres");
        command.args(["-k", &sockets, "-h", "127.0.0.1", "-p", &self.port.to_string(), "-c", "max_connections=20"]);
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().expect("postgres runs"));
        let started = Instant::now();
        while self.query("SELECT 1").as_deref() != Some("1") {
            assert!(
                started.elapsed() < PATIENCE,
                "{}",
                fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// `kill -9` of the server and of everything that works for it.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap_or_default();
        let _ = child.kill();
        for pid in children.split_whitespace() {
            // They end by themselves too, once they see that their parent is gone.
            let _ = Command::new("kill").args(["-9", pid]).stderr(Stdio::null()).status();
        }
        child.wait().expect("it was ours");
    }

    pub fn url(&self) -> String {
        format!("postgres://hearth@127.0.0.1:{}/postgres", self.port)
    }

    /// The one value that this says; `None`: it failed.
    pub fn query(&self, text: &str) -> Option<String> {
        let output = Command::new(self.bin.join("psql"))
            .args(["-X", "-A", "-t", "-q", "-c", text, &self.url()])
            .output()
            .expect("psql runs");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill();
    }
}
