//! The bindings: llama.h from the sys crate, our shim from bindgen; and the conversions every file here needs.

#![allow(non_camel_case_types, non_upper_case_globals, dead_code, clippy::all, clippy::pedantic)]

pub use llama_cpp_sys_2::*;

mod shim {
    include!(concat!(env!("OUT_DIR"), "/shim.rs"));
}
pub use shim::*;

use super::error::Error;
use std::ffi::{CStr, c_char};

/// A C string as text; empty for NULL.
///
/// # Safety
/// `text` is NULL or points to a NUL-terminated string that lives during the call.
pub unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not NULL, and the caller vouches for the rest.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Takes over a string that the shim allocated.
///
/// # Safety
/// `owned` is NULL or came out of the shim and was not freed.
pub unsafe fn take(owned: *mut c_char) -> String {
    // SAFETY: as the caller vouches; a shim string is NUL-terminated.
    let copy = unsafe { text(owned) };
    // SAFETY: allocated by the shim with malloc, and freed here only. NULL is allowed.
    unsafe { hearth_string_free(owned) };
    copy
}

/// Calls a shim function with a place for its error text.
pub fn call(body: impl FnOnce(*mut *mut c_char) -> i32) -> Result<(), Error> {
    let mut message = std::ptr::null_mut();
    let status = body(&raw mut message);
    // SAFETY: the shim left NULL or a string of its own there.
    let message = unsafe { take(message) };
    Error::from_status(status, message)
}
