//! llama.cpp's log, routed into `tracing`, and its start.

use super::error::Error;
use super::{cpu, sys};
use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_void};
use std::sync::OnceLock;

/// Error lines remembered per thread, and the bytes of each: they explain the failure that follows them.
const ERRORS_MAX: usize = 4;
const LINE_BYTES_MAX: usize = 400;

thread_local! {
    /// A decode of this thread is being given up on request: what llama.cpp then calls an error is none.
    static INTERRUPTED: Cell<bool> = const { Cell::new(false) };
}

pub(super) fn set_interrupted(interrupted: bool) {
    INTERRUPTED.set(interrupted);
}

#[derive(Default)]
struct Lines {
    /// A line whose end has not come yet.
    open: String,
    level: sys::ggml_log_level,
    errors: Vec<String>,
}

thread_local! {
    static LINES: RefCell<Lines> = RefCell::default();
}

/// Starts llama.cpp's backends and takes over its log. Safe to call again: only the first call does anything.
/// Errors: ggml has no code for this CPU where it should be.
pub fn init() -> Result<(), Error> {
    static DONE: OnceLock<Result<(), Error>> = OnceLock::new();
    DONE.get_or_init(|| {
        let Some(dir) = cpu::folder()? else { return start(std::ptr::null()) };
        let path = cpu::as_c(&dir)?;
        start(path.as_ptr()).map_err(|error| match error {
            Error::Exception(_) => Error::Invalid(cpu::explain(&dir)),
            other => other,
        })
    })
    .clone()
}

fn start(backends: *const c_char) -> Result<(), Error> {
    // SAFETY: the callbacks are static functions that never unwind, and the first ignores its user pointer; `backends` is NULL
    // or a C string that lives during the call.
    sys::call(|err| unsafe {
        sys::hearth_init(Some(on_line), std::ptr::null_mut(), Some(on_last_words), backends, err)
    })
}

/// The last error lines logged on this thread, joined; forgets them.
pub(super) fn take_errors() -> String {
    LINES.with_borrow_mut(|lines| std::mem::take(&mut lines.errors)).join("; ")
}

unsafe extern "C" fn on_line(level: sys::ggml_log_level, text: *const c_char, _user: *mut c_void) {
    // A panic must not unwind into C++; logging is not worth ending the process for either.
    let _ = std::panic::catch_unwind(|| {
        // SAFETY: ggml passes a NUL-terminated string that lives during the call.
        let text = unsafe { sys::text(text) };
        LINES.with(|lines| {
            // A subscriber that logs through llama.cpp doesn't exist, but a second borrow must not panic.
            if let Ok(mut lines) = lines.try_borrow_mut() {
                lines.push(level, &text);
            }
        });
    });
}

/// The assertion that ends this process.
unsafe extern "C" fn on_last_words(text: *const c_char) {
    let _ = std::panic::catch_unwind(|| {
        // SAFETY: ggml passes a NUL-terminated string that lives during the call.
        let text = unsafe { sys::text(text) };
        tracing::error!(target: "llama", "{text}");
        // Where nobody logs, as in a test.
        if !tracing::dispatcher::has_been_set() {
            eprintln!("{text}");
        }
    });
}

impl Lines {
    /// Continuation parts (`GGML_LOG_LEVEL_CONT`) belong to the line before them.
    fn push(&mut self, level: sys::ggml_log_level, text: &str) {
        if level != sys::GGML_LOG_LEVEL_CONT {
            self.level = level;
        }
        self.open.push_str(text);
        if self.open.ends_with('\n') || self.open.len() > LINE_BYTES_MAX {
            let line = std::mem::take(&mut self.open);
            let line = line.trim_end();
            if !line.is_empty() {
                self.finish(line);
            }
        }
    }

    fn finish(&mut self, line: &str) {
        match self.level {
            sys::GGML_LOG_LEVEL_ERROR | sys::GGML_LOG_LEVEL_WARN if INTERRUPTED.get() => {
                tracing::trace!(target: "llama", "{line}");
            }
            sys::GGML_LOG_LEVEL_ERROR => {
                tracing::warn!(target: "llama", "{line}");
                if self.errors.len() >= ERRORS_MAX {
                    self.errors.remove(0);
                }
                let short: String = line.chars().take(LINE_BYTES_MAX).collect();
                self.errors.push(short);
            }
            sys::GGML_LOG_LEVEL_WARN => tracing::debug!(target: "llama", "{line}"),
            // llama.cpp tells hundreds of lines per load.
            _ => tracing::trace!(target: "llama", "{line}"),
        }
    }
}
