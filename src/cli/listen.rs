//! The sockets of a server: its own, or those that systemd holds for it.

use crate::http::HttpConfig;
use anyhow::{Context as _, Result};
use listenfd::ListenFd;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// On every address, all with the same port: where any free one was asked for, the first address's. Sockets passed on by
/// systemd (`LISTEN_FDS`) are taken instead, and `http` says then where they are.
pub(super) async fn listen(http: &mut HttpConfig) -> Result<Vec<TcpListener>> {
    let passed = passed().context("a socket that systemd passed on")?;
    if !passed.is_empty() {
        let addresses: Vec<SocketAddr> = passed.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
        http.port = addresses[0].port();
        http.hosts = addresses.iter().map(SocketAddr::ip).collect();
        http.hands_over = true;
        return Ok(passed);
    }
    let mut listeners = Vec::with_capacity(http.hosts.len());
    for host in &http.hosts {
        let address = SocketAddr::new(*host, http.port);
        let listener = TcpListener::bind(address).await.with_context(|| format!("{address} can't be listened on"))?;
        http.port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(listeners)
}

fn passed() -> Result<Vec<TcpListener>> {
    let mut sockets = ListenFd::from_env();
    let mut listeners = Vec::with_capacity(sockets.len());
    for idx in 0..sockets.len() {
        if let Some(listener) = sockets.take_tcp_listener(idx)? {
            listener.set_nonblocking(true)?;
            listeners.push(TcpListener::from_std(listener)?);
        }
    }
    Ok(listeners)
}

/// Lets this process have as many files open as its connections may need, if the system allows it.
pub(super) fn allow_files(connections_max: usize) {
    /// Models, pipes, stores, logs.
    const OTHERS: u64 = 256;
    let wanted = connections_max as u64 + OTHERS;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|now| now >= wanted) {
        return;
    }
    let current = limit.maximum.map_or(wanted, |most| most.min(wanted));
    let is_set = setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum: limit.maximum }).is_ok();
    if !is_set || current < wanted {
        tracing::warn!(files = current, "this system allows fewer open files than connections; the rest will wait");
    }
}
