//! What systemd is told, where it started this server: ready, stopping, still alive.
//!
//! The protocol is one datagram a message to the socket that `NOTIFY_SOCKET` names; without it nothing is sent.

#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Longest that a message may wait where the service manager does not read: it would hold up a thread that serves.
const PATIENCE: Duration = Duration::from_millis(200);

/// The service manager's ear.
pub(super) struct Notify {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// `WATCHDOG_USEC`: after this long without a sign of life the server is killed.
    watchdog: Option<Duration>,
}

impl Notify {
    /// `variable`: reads one of the process's environment.
    pub fn from(variable: impl Fn(&str) -> Option<String>) -> Self {
        let address = variable("NOTIFY_SOCKET").and_then(|path| match path.strip_prefix('@') {
            #[cfg(target_os = "linux")]
            Some(name) => SocketAddr::from_abstract_name(name).ok(),
            #[cfg(not(target_os = "linux"))]
            Some(_) => None,
            None => SocketAddr::from_pathname(path).ok(),
        });
        let socket = address.and_then(|address| {
            let socket = UnixDatagram::unbound().ok()?;
            socket.set_write_timeout(Some(PATIENCE)).ok()?;
            Some((socket, address))
        });
        let is_ours = variable("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let watchdog = variable("WATCHDOG_USEC").filter(|_| is_ours).and_then(|us| us.parse().ok());
        let watchdog = watchdog.filter(|us| *us > 0).map(Duration::from_micros);
        Self { socket, watchdog }
    }

    /// The listener is open; a model may still load.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// Signs of life at half the time allowed, from a task of the runtime that serves: one that hangs sends none.
    pub async fn live(&self, shutdown: CancellationToken) {
        let Some(limit) = self.watchdog.filter(|_| self.socket.is_some()) else {
            return shutdown.cancelled().await;
        };
        let mut beats = tokio::time::interval(limit / 2);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = beats.tick() => self.send("WATCHDOG=1"),
            }
        }
    }

    fn send(&self, message: &str) {
        let Some((socket, address)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(message.as_bytes(), address) {
            tracing::warn!(%error, message, "systemd could not be told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn systemd_is_told_what_it_asks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let ear = UnixDatagram::bind(&path).unwrap();
        ear.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let heard = || {
            let mut buffer = [0; 64];
            let n = ear.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..n]).into_owned()
        };
        let variable = |name: &str| match name {
            "NOTIFY_SOCKET" => Some(path.to_str().unwrap().to_owned()),
            "WATCHDOG_USEC" => Some("20000".to_owned()),
            _ => None,
        };
        let notify = Notify::from(variable);
        notify.ready();
        assert_eq!(heard(), "READY=1");
        let shutdown = CancellationToken::new();
        let living = notify.live(shutdown.clone());
        assert!(tokio::time::timeout(Duration::from_millis(50), living).await.is_err());
        assert_eq!(heard(), "WATCHDOG=1");
        // Another process's watchdog is not ours to calm.
        let other = Notify::from(|name| if name == "WATCHDOG_PID" { Some("1".to_owned()) } else { variable(name) });
        assert_eq!(other.watchdog, None);
        Notify::from(|_| None).ready();
    }

    #[test]
    fn a_manager_that_does_not_read_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let _ear = UnixDatagram::bind(&path).unwrap();
        let notify = Notify::from(|name| (name == "NOTIFY_SOCKET").then(|| path.to_str().unwrap().to_owned()));
        // Its queue is full at some point (net.unix.max_dgram_qlen, or the sender's buffer), which would be for ever.
        let waited = (0..20_000).find(|_| {
            let start = std::time::Instant::now();
            notify.ready();
            start.elapsed() >= PATIENCE / 2
        });
        assert!(waited.is_some(), "the queue never filled");
    }
}
