//! The service in a child process, restarted when it dies.
//!
//! **Invariant:** the child's death ends every request in flight at once with `Crashed`; nothing hangs, and nothing sent
//! to a dead child is lost silently: the sender's end is taken away before requests are ended.

use super::frame::{self, FromEngine, ToEngine};
use super::pulse::Watch;
use super::supervisor::Backoff;
use super::{Notice, Transport};
use crate::engine::config::EngineConfig;
use crate::engine::error::Failure;
use crate::engine::handle::EngineState;
use crate::engine::request::{Command, RequestId};
use crate::engine::router::Router;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::{mpsc, watch};

pub(super) struct Process {
    link: Arc<Link>,
}

/// What the handle and the supervising task share.
struct Link {
    config: EngineConfig,
    exe: PathBuf,
    args: Vec<String>,
    router: Arc<Router>,
    state: watch::Sender<EngineState>,
    /// Commands for the child that lives now; `None` while there is none.
    sender: Mutex<Option<mpsc::Sender<ToEngine>>>,
    n_restarts: AtomicU32,
    closing: watch::Sender<bool>,
}

/// How a child's life ended.
struct Death {
    reason: String,
    was_ready: bool,
    /// The child said itself that loading can't work.
    load_failed: bool,
}

impl Process {
    /// How long a child may take to leave when asked to.
    const LEAVE: Duration = Duration::from_secs(5);

    pub(super) fn open(
        config: EngineConfig,
        (exe, args): (PathBuf, Vec<String>),
        router: Arc<Router>,
        state: watch::Sender<EngineState>,
    ) -> Self {
        let link = Arc::new(Link {
            config,
            exe,
            args,
            router,
            state,
            sender: Mutex::new(None),
            n_restarts: AtomicU32::new(0),
            closing: watch::Sender::new(false),
        });
        tokio::spawn(supervise(Arc::clone(&link)));
        Self { link }
    }
}

impl Transport for Process {
    fn send(&self, id: RequestId, command: Command) -> Result<(), Failure> {
        let sender = self.link.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let restarting = || Failure::NotReady { reason: "the engine is restarting".into(), retry_after_s: 1 };
        match &*sender {
            Some(sender) => sender.try_send(ToEngine::Request(id, command)).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => {
                    Failure::Internal("the engine's command channel is full; this is a bug".into())
                }
                mpsc::error::TrySendError::Closed(_) => restarting(),
            }),
            None => Err(restarting()),
        }
    }

    fn close(&self) {
        self.link.closing.send_replace(true);
    }

    fn n_restarts(&self) -> u32 {
        self.link.n_restarts.load(Ordering::Relaxed)
    }
}

async fn supervise(link: Arc<Link>) {
    let mut backoff = Backoff::new(Instant::now());
    let mut closing = link.closing.subscribe();
    let mut has_served = false;
    loop {
        backoff.start(Instant::now());
        let death = link.live_and_die().await;
        link.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        if *closing.borrow() {
            break;
        }
        has_served |= death.was_ready;
        // A model that was loaded before may be again: after a crash, memory may come back late.
        if death.load_failed && !has_served {
            tracing::error!(reason = %death.reason, "the model can't be loaded");
            link.state.send_replace(EngineState::Failed { reason: death.reason.clone() });
            link.router.end_all(&Failure::Crashed { reason: death.reason }, false);
            let _ = closing.wait_for(|closing| *closing).await;
            break;
        }
        let n_restarts = link.n_restarts.fetch_add(1, Ordering::Relaxed) + 1;
        let retry_in = backoff.died(Instant::now(), death.was_ready);
        link.state.send_replace(EngineState::Restarting { reason: death.reason.clone(), n_restarts, retry_in });
        // After the state, so that whoever is told of the crash and asks why gets the answer.
        link.router.end_all(&Failure::Crashed { reason: death.reason.clone() }, death.was_ready);
        tracing::error!(reason = %death.reason, n_restarts, retry_in_ms = retry_in.as_millis(), "the engine died");
        tokio::select! {
            () = tokio::time::sleep(retry_in) => {}
            _ = closing.wait_for(|closing| *closing) => break,
        }
    }
    link.router.end_all(&Failure::ShuttingDown, false);
    link.state.send_replace(EngineState::Stopped);
}

impl Link {
    /// One child from start to end.
    async fn live_and_die(&self) -> Death {
        let spawned = tokio::process::Command::new(&self.exe)
            .arg("engine")
            .args(&self.args)
            // What else is in ours may be a secret, and a model that breaks out would find it.
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_handed_on)))
            // Ctrl-C on the front's terminal is for the front, which drains; a child in its group would die of it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A child must not outlive a front that was killed; it also leaves by itself when its stdin ends.
            .kill_on_drop(true)
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => return Death::before_ready(format!("{} can't be started: {error}", self.exe.display())),
        };
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Death::before_ready("the child has no pipes".into());
        };
        // Each request in flight sends at most itself and its cancel, and keeps its place until the engine has ended
        // it, so this never fills up while the engine keeps the protocol.
        let (sender, receiver) = mpsc::channel(2 * (self.router.n_places() as usize + 512) + 64);
        let configure = ToEngine::Configure(Box::new(self.config.clone()));
        let configured = sender.try_send(configure).is_ok();
        debug_assert!(configured, "the channel is empty");
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);

        let writer = tokio::spawn(write_frames(stdin, receiver));
        let mut closing = self.closing.subscribe();
        let mut life = Life { was_ready: false, load_failure: None };
        let broken = tokio::select! {
            result = self.read_frames(stdout, &mut life) => result.err(),
            _ = closing.wait_for(|closing| *closing) => None,
        };
        let asked_to_leave = *closing.borrow();
        if let Some(error) = &broken {
            tracing::error!(%error, "the engine's stream is broken");
        }
        let hung = broken.filter(|error| error.kind() == ErrorKind::TimedOut).map(|error| error.to_string());
        // Ends the child's stdin, which asks it to leave.
        writer.abort();
        let status = reap(&mut child, if asked_to_leave { Process::LEAVE } else { Duration::from_millis(200) }).await;
        Death {
            reason: life.load_failure.clone().or(hung).unwrap_or_else(|| describe(status)),
            was_ready: life.was_ready,
            load_failed: life.load_failure.is_some(),
        }
    }

    /// Until the child closes its stdout or can't load (`Ok`), or breaks the protocol. `TimedOut`: it hangs.
    async fn read_frames(&self, stdout: ChildStdout, life: &mut Life) -> std::io::Result<()> {
        let mut stdout = BufReader::with_capacity(64 << 10, stdout);
        let mut body = Vec::new();
        let mut watch = self.config.hang_timeout.map(|timeout| Watch::new(timeout, Instant::now()));
        loop {
            let mut header = [0; 4];
            match within(watch.as_ref(), stdout.read_exact(&mut header)).await {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
                other => other?,
            };
            if let Some(watch) = &mut watch {
                watch.heard(Instant::now());
            }
            body.resize(frame::length(header)?, 0);
            within(watch.as_ref(), stdout.read_exact(&mut body)).await?;
            match frame::decode(&body)? {
                FromEngine::Pulse { n_steps, is_busy } => {
                    let hangs = watch.as_mut().is_some_and(|watch| watch.pulse(n_steps, is_busy, Instant::now()));
                    if hangs {
                        return Err(hung("it got nowhere with its work"));
                    }
                }
                FromEngine::Events(events) => self.router.dispatch(events),
                FromEngine::Notice(notice) => self.notice(notice, life),
            }
            if life.load_failure.is_some() {
                return Ok(());
            }
            if body.capacity() > 1 << 20 {
                body = Vec::new();
            }
        }
    }

    fn notice(&self, notice: Notice, life: &mut Life) {
        match notice {
            Notice::Loading { progress } => {
                self.state.send_replace(EngineState::Loading { progress });
            }
            Notice::Ready(description) => {
                life.was_ready = true;
                self.state.send_replace(EngineState::Ready(Arc::new(*description)));
            }
            Notice::LoadFailed { reason } => life.load_failure = Some(reason),
        }
    }
}

/// What is read, in time.
async fn within<T>(watch: Option<&Watch>, read: impl Future<Output = std::io::Result<T>>) -> std::io::Result<T> {
    let Some(watch) = watch else { return read.await };
    let mut read = pin!(read);
    let until = watch.deadline();
    if let Ok(came) = tokio::time::timeout_at(until.into(), &mut read).await {
        return came;
    }
    match tokio::time::timeout(watch.grace(), read).await {
        Ok(came) => came,
        Err(_) => Err(hung("nothing was heard of it")),
    }
}

fn hung(what: &str) -> std::io::Error {
    std::io::Error::new(ErrorKind::TimedOut, format!("it hung: {what} for the time of --hang-timeout"))
}

/// Variables that an engine's process gets: what libraries, GPUs and their tools look for.
fn is_handed_on(name: &str) -> bool {
    const NAMES: [&str; 13] = [
        crate::llama::BACKENDS_VARIABLE,
        "PATH",
        "HOME",
        "USER",
        "LANG",
        "TZ",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "DYLD_LIBRARY_PATH",
        "RUST_BACKTRACE",
        "LLVM_PROFILE_FILE",
        "XDG_CACHE_HOME",
    ];
    const PREFIXES: [&str; 16] = [
        "LC_", "GGML_", "LLAMA_", "OMP_", "GOMP_", "KMP_", "CUDA_", "NVIDIA_", "NCCL_", "HIP_", "ROCR_", "ROCM_",
        "HSA_", "VK_", "GPU_", "MALLOC_",
    ];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// What is known of a living child.
struct Life {
    was_ready: bool,
    load_failure: Option<String>,
}

impl Death {
    fn before_ready(reason: String) -> Self {
        Self { reason, was_ready: false, load_failed: false }
    }
}

async fn write_frames(mut stdin: ChildStdin, mut receiver: mpsc::Receiver<ToEngine>) {
    let mut buffer = Vec::new();
    while let Some(message) = receiver.recv().await {
        buffer.clear();
        buffer = match frame::encode(&message, buffer) {
            Ok(buffer) => buffer,
            // Bodies are capped below a frame's limit, so this can't happen; closing the pipe ends all requests.
            Err(error) => {
                tracing::error!(%error, "a command can't be sent to the engine");
                return;
            }
        };
        // Commands that wait go out in one write.
        while buffer.len() < 64 << 10 {
            let Ok(message) = receiver.try_recv() else { break };
            let mark = buffer.len();
            match frame::encode(&message, std::mem::take(&mut buffer)) {
                Ok(longer) => buffer = longer,
                Err(error) => {
                    tracing::error!(%error, mark, "a command can't be sent to the engine");
                    return;
                }
            }
        }
        if stdin.write_all(&buffer).await.is_err() {
            return; // The child is gone; its reader sees the end of stdout and acts.
        }
        if buffer.capacity() > 1 << 20 {
            buffer = Vec::new();
        }
    }
}

/// Waits for the child for a while, then kills it.
async fn reap(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    if let Ok(Ok(status)) = tokio::time::timeout(patience, child.wait()).await {
        return Some(status);
    }
    // It closed its stdout but lives, or would not leave.
    if let Err(error) = child.start_kill() {
        tracing::warn!(%error, "the engine can't be killed");
    }
    child.wait().await.ok()
}

fn describe(status: Option<ExitStatus>) -> String {
    use std::os::unix::process::ExitStatusExt;
    let Some(status) = status else { return "it can't be waited for".into() };
    match (status.signal(), status.code()) {
        (Some(9), _) => "signal 9 (SIGKILL: killed from outside, or out of memory)".into(),
        (Some(11), _) => "signal 11 (SIGSEGV)".into(),
        (Some(6), _) => "signal 6 (SIGABRT: an assertion in llama.cpp)".into(),
        (Some(4), _) => "signal 4 (SIGILL: an instruction that this CPU lacks)".into(),
        (Some(signal), _) => format!("signal {signal}"),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => "unknown".into(),
    }
}
