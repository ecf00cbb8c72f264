//! What a context holds of its sequences.

use super::context::Context;
use super::error::Error;
use super::sys;

impl Context {
    /// Rows that a recurrent state can go back: as asked for, or 0 where the architecture can't.
    pub fn n_rs_seq(&mut self) -> u32 {
        // SAFETY: a plain getter.
        unsafe { sys::llama_n_rs_seq(self.as_ptr()) }
    }

    /// Forgets positions `from..` of a sequence; `false` when this memory can't (nothing changed then).
    /// Source: llama_memory_seq_rm, llama.h.
    pub fn seq_rm(&mut self, seq: i32, from: i32) -> Result<bool, Error> {
        let mut removed = false;
        // SAFETY: the context lives; the shim catches what is thrown for a bad sequence.
        sys::call(|err| unsafe { sys::hearth_seq_rm(self.as_ptr(), seq, from, -1, &raw mut removed, err) })?;
        Ok(removed)
    }

    /// The smallest position a sequence holds in all parts of its memory; negative when it holds nothing.
    /// Source: llama_memory_seq_pos_min, llama.h.
    pub fn seq_pos_min(&mut self, seq: i32) -> i32 {
        // SAFETY: `seq` is below n_seq_max, which the caller made the context with.
        unsafe { sys::llama_memory_seq_pos_min(sys::llama_get_memory(self.as_ptr()), seq) }
    }

    /// The largest position a sequence holds in all parts of its memory; negative when it holds nothing.
    /// Source: llama_memory_seq_pos_max, llama.h.
    pub fn seq_pos_max(&mut self, seq: i32) -> i32 {
        // SAFETY: `seq` is below n_seq_max, which the caller made the context with.
        unsafe { sys::llama_memory_seq_pos_max(sys::llama_get_memory(self.as_ptr()), seq) }
    }
}
