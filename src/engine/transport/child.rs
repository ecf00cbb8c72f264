//! The other end of the pipes: `hearth engine`.

use super::frame::{self, FromEngine, ToEngine};
use super::{Notice, Sink};
use crate::engine::error::Failure;
use crate::engine::event::Event;
use crate::engine::request::RequestId;
use crate::engine::service::Service;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

/// Runs the service on this process's stdin and stdout until stdin ends. Logs go to stderr. The first frame is the
/// configuration.
pub fn run_child() -> ExitCode {
    // Of the two processes this one holds the memory, and is the one that can be started anew: where the kernel has to
    // kill one, it should be this. Where that can't be said, it is the larger one all the same.
    let _ = std::fs::write("/proc/self/oom_score_adj", "500");
    let mut input = io::BufReader::with_capacity(64 << 10, io::stdin().lock());
    let config = match read_frame(&mut input) {
        Ok(Some(ToEngine::Configure(config))) => *config,
        Ok(_) => {
            eprintln!("hearth engine is started by `hearth serve` and speaks frames on stdin and stdout");
            return ExitCode::from(2);
        }
        Err(error) => {
            eprintln!("hearth engine: the first frame can't be read: {error}");
            return ExitCode::from(2);
        }
    };
    let sink = match StdoutSink::take_stdout() {
        Ok(sink) => Arc::new(sink),
        Err(error) => {
            eprintln!("hearth engine: stdout can't be taken over: {error}");
            return ExitCode::from(2);
        }
    };
    let pause = config.hang_timeout.map(super::pulse::interval);
    let service = Arc::new(Service::start(config, Arc::clone(&sink) as Arc<dyn Sink>));
    if let Some(pause) = pause
        && let Err(error) = live(pause, Arc::clone(&service), sink)
    {
        tracing::error!(%error, "no thread for signs of life can be started");
        return ExitCode::from(3);
    }
    loop {
        match read_frame(&mut input) {
            Ok(Some(ToEngine::Request(id, command))) => {
                // A refusal was already told as the request's ending event.
                if let Err(failure) = service.submit(id, command) {
                    service.emit(vec![(id, Event::Failed(failure))]);
                }
            }
            Ok(Some(ToEngine::Configure(_))) => {
                tracing::error!("a second configuration came in");
                return ExitCode::from(3);
            }
            // The front is gone or wants us gone.
            Ok(None) => {
                service.stop();
                return ExitCode::SUCCESS;
            }
            Err(error) => {
                tracing::error!(%error, "the front's stream is broken");
                return ExitCode::from(3);
            }
        }
    }
}

/// Tells the front each `pause` that this process lives and how far it is, until the process ends.
fn live(pause: std::time::Duration, service: Arc<Service>, sink: Arc<StdoutSink>) -> io::Result<()> {
    let tell = move || {
        loop {
            std::thread::sleep(pause);
            let (n_steps, is_busy) = service.pulse();
            sink.write(&FromEngine::Pulse { n_steps, is_busy });
        }
    };
    std::thread::Builder::new().name("pulse".into()).spawn(tell).map(|_| ())
}

/// The next frame; `None` at a clean end.
fn read_frame(input: &mut impl Read) -> io::Result<Option<ToEngine>> {
    let mut header = [0; 4];
    match input.read_exact(&mut header) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let mut body = vec![0; frame::length(header)?];
    input.read_exact(&mut body)?;
    frame::decode(&body).map(Some)
}

/// Writes each batch of events as one frame with one system call.
struct StdoutSink {
    out: Mutex<(File, Vec<u8>)>,
}

impl StdoutSink {
    /// Moves the frames to a descriptor of their own and points stdout at stderr, so that nothing that C++ code may
    /// print can get between two frames.
    fn take_stdout() -> io::Result<Self> {
        let frames = io::stdout().as_fd().try_clone_to_owned()?;
        rustix::stdio::dup2_stdout(io::stderr().as_fd())?;
        Ok(Self { out: Mutex::new((File::from(frames), Vec::new())) })
    }

    fn write(&self, message: &FromEngine) {
        let message = &*fitting(message);
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, buffer) = &mut *out;
        buffer.clear();
        let written = frame::encode(message, std::mem::take(buffer)).and_then(|bytes| {
            *buffer = bytes;
            file.write_all(buffer)
        });
        if let Err(error) = written {
            // Nobody can be told anything any more. The front is gone, or restarts us.
            tracing::error!(%error, "the front can't be reached");
            std::process::exit(3);
        }
    }
}

/// `message`, or in its place a refusal for each request in it: an answer too large for a frame ends that request, not the
/// engine. Only batches of one large answer get near the limit.
fn fitting(message: &FromEngine) -> std::borrow::Cow<'_, FromEngine> {
    let FromEngine::Events(events) = message else { return std::borrow::Cow::Borrowed(message) };
    let is_large = |event: &Event| match event {
        Event::Text(text) => text.len() > frame::FRAME_BYTES_MAX / 2,
        Event::Tokens { tokens, pieces } => {
            tokens.len() * 5 + pieces.iter().map(|piece| piece.len() + 5).sum::<usize>() > frame::FRAME_BYTES_MAX / 2
        }
        _ => false,
    };
    if !events.iter().any(|(_, event)| is_large(event)) {
        return std::borrow::Cow::Borrowed(message);
    }
    let refused = Event::Failed(Failure::Internal("the answer is too large to be sent".into()));
    let events = events.iter().map(|(id, event)| (*id, if is_large(event) { refused.clone() } else { event.clone() }));
    std::borrow::Cow::Owned(FromEngine::Events(events.collect()))
}

impl Sink for StdoutSink {
    fn notice(&self, notice: Notice) {
        self.write(&FromEngine::Notice(notice));
    }

    fn emit(&self, events: Vec<(RequestId, Event)>) {
        self.write(&FromEngine::Events(events));
    }

    fn broken(&self, reason: &str) {
        tracing::error!(reason, "the engine can't go on");
        std::process::exit(4);
    }
}
