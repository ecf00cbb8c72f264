//! The KV cache and the forward pass.

use super::error::Error;
use super::kernels::{KernelChoice, Kernels};
use super::model::Model;
use super::speculator::Speculator;
use super::team::Team;
use super::{gpu, log, sys};
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

/// Element types of a KV cache. Source: enum ggml_type, ggml.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvElement {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
    Iq4Nl,
    Q5_0,
    Q5_1,
}

impl KvElement {
    fn raw(self) -> i32 {
        let raw = match self {
            KvElement::F32 => sys::GGML_TYPE_F32,
            KvElement::F16 => sys::GGML_TYPE_F16,
            KvElement::Bf16 => sys::GGML_TYPE_BF16,
            KvElement::Q8_0 => sys::GGML_TYPE_Q8_0,
            KvElement::Q4_0 => sys::GGML_TYPE_Q4_0,
            KvElement::Q4_1 => sys::GGML_TYPE_Q4_1,
            KvElement::Iq4Nl => sys::GGML_TYPE_IQ4_NL,
            KvElement::Q5_0 => sys::GGML_TYPE_Q5_0,
            KvElement::Q5_1 => sys::GGML_TYPE_Q5_1,
        };
        raw.cast_signed()
    }
}

/// How the vectors of a sequence's tokens become one. Source: enum llama_pooling_type, llama.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolingType {
    /// None: a vector for each output row.
    Rows,
    Mean,
    Cls,
    Last,
    /// The classification head's outputs.
    Rank,
}

impl PoolingType {
    fn raw(self) -> i32 {
        match self {
            PoolingType::Rows => sys::LLAMA_POOLING_TYPE_NONE,
            PoolingType::Mean => sys::LLAMA_POOLING_TYPE_MEAN,
            PoolingType::Cls => sys::LLAMA_POOLING_TYPE_CLS,
            PoolingType::Last => sys::LLAMA_POOLING_TYPE_LAST,
            PoolingType::Rank => sys::LLAMA_POOLING_TYPE_RANK,
        }
    }
}

/// Shape of a context. Source: llama_context_params, llama.h.
#[derive(Debug, Clone, Copy)]
pub struct ContextParams {
    pub n_ctx: u32,
    pub n_batch: u32,
    pub n_ubatch: u32,
    pub n_seq_max: u32,
    /// Most output rows in one decode; the compute buffer holds a row of n_vocab f32 for each.
    pub n_outputs_max: u32,
    pub n_threads: u32,
    pub n_threads_batch: u32,
    /// `None`: llama.cpp decides.
    pub flash_attn: Option<bool>,
    pub type_k: KvElement,
    pub type_v: KvElement,
    pub kv_unified: bool,
    pub swa_full: bool,
    pub offload_kqv: bool,
    /// Vectors instead of logits. llama.cpp asserts unless `n_seq_max` divides `n_ubatch`, and, where attention is not
    /// causal, on more than `n_ubatch` rows.
    pub pooling: Option<PoolingType>,
    /// How long threads spin for work between graphs, 0..=100.
    pub poll: u32,
    /// The model's heads for drafts run, not the model itself.
    pub mtp: bool,
    /// Rows that a recurrent state can go back, where the architecture can.
    pub n_rs_seq: u32,
    /// Keys and values that no cache keeps are rounded to F16 before attention, as flash attention rounds them, so that a
    /// context without it agrees with one that has it. On a CPU, for models whose encoders attend without a bias of their own.
    pub rounds_kv: bool,
    /// What is computed by [`super::kernels`], where the CPU is one of their kinds; `None`: nothing.
    pub kernels: Option<KernelChoice>,
}

/// Rows of one decode: tokens with their places.
#[derive(Debug, Default)]
pub struct Batch {
    tokens: Vec<i32>,
    positions: Vec<i32>,
    n_seq_ids: Vec<i32>,
    seq_ids: Vec<i32>,
    outputs: Vec<i8>,
}

impl Batch {
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.n_seq_ids.clear();
        self.seq_ids.clear();
        self.outputs.clear();
    }

    pub fn push(&mut self, token: i32, position: i32, seq: i32, output: bool) {
        self.tokens.push(token);
        self.positions.push(position);
        self.n_seq_ids.push(1);
        self.seq_ids.push(seq);
        self.outputs.push(i8::from(output));
    }

    pub fn n_rows(&self) -> usize {
        self.tokens.len()
    }

    /// As llama.cpp wants it; valid during the call.
    pub(super) fn with_raw<T>(&mut self, body: impl FnOnce(&sys::llama_batch) -> T) -> T {
        // Pointers to each row's sequence id; built anew, since the vector may have moved.
        let base = self.seq_ids.as_mut_ptr();
        // SAFETY: `row` stays below the length of `seq_ids`.
        let mut seq_ids: Vec<*mut i32> = (0..self.n_rows()).map(|row| unsafe { base.add(row) }).collect();
        body(&sys::llama_batch {
            n_tokens: i32::try_from(self.n_rows()).unwrap_or(i32::MAX),
            token: self.tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: self.positions.as_mut_ptr(),
            n_seq_id: self.n_seq_ids.as_mut_ptr(),
            seq_id: seq_ids.as_mut_ptr(),
            logits: self.outputs.as_mut_ptr(),
        })
    }
}

/// Rows of embeddings of one sequence: what a projector made of an image or sound.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddingRows<'a> {
    /// n × n_embd_inp f32.
    pub rows: &'a [f32],
    /// One number for each row, or four with M-RoPE: first all rows' first numbers, then their second ones and so on.
    pub positions: &'a [i32],
    pub seq: i32,
    /// Logits of the last row are wanted.
    pub output_last: bool,
    /// Every row sees every other.
    pub is_non_causal: bool,
}

/// How a decode ended. Source: llama_decode, llama.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoded {
    Done,
    /// No free KV cells for the batch; nothing changed.
    NoKvSlot,
    /// The interrupt said so; finished ubatches stay in the memory.
    Aborted,
    /// The batch was refused before anything was computed.
    InvalidBatch,
    /// The computation failed; what the memory holds is unknown.
    Failed(i32),
}

/// A context; belongs to one thread at a time.
pub struct Context {
    raw: NonNull<sys::llama_context>,
    pool: Option<Arc<Pool>>,
    /// What drafts for it; freed before it.
    speculator: Option<Speculator>,
    /// llama.cpp holds a pointer to it: boxed, and dropped after the context.
    _interrupt: Box<Interrupt>,
    /// As with the interrupt.
    _kernels: Option<Kernels>,
    model: Arc<Model>,
    params: ContextParams,
    n_vocab: usize,
    /// Numbers of a vector, pooled or not.
    n_pooled: usize,
}

type Interrupt = Arc<dyn Fn() -> bool + Send + Sync>;

// SAFETY: a context has no thread-local state; `&mut self` on everything that computes keeps it to one thread at a time.
unsafe impl Send for Context {}

impl Context {
    /// Allocates the KV cache and compute buffers. `interrupt` is asked about once per graph node on CPU backends.
    ///
    /// Errors: what llama.cpp logged, such as a cache type that needs flash attention.
    /// Source: llama_init_from_model, llama.h.
    pub fn new(model: &Arc<Model>, params: ContextParams, interrupt: Interrupt) -> Result<Self, Error> {
        let mut context = Self::open(model, params, interrupt, std::ptr::null_mut())?;
        context.attach_pool()?;
        Ok(context)
    }

    /// A context that will draft for this one; it uses the same threads.
    pub fn beside(&mut self, model: &Arc<Model>, params: ContextParams) -> Result<Self, Error> {
        let other = self.as_ptr();
        // Short, and its result is only a draft.
        let mut context = Self::open(model, params, Arc::new(|| false), other)?;
        self.share_pool(&mut context)?;
        Ok(context)
    }

    /// A context of its own that uses the same threads: a second pool would still spin while this one computes. The caller
    /// lets only one of the two compute at a time.
    pub fn on_same_threads(&self, params: ContextParams, interrupt: Interrupt) -> Result<Self, Error> {
        let mut context = Self::open(&self.model, params, interrupt, std::ptr::null_mut())?;
        self.share_pool(&mut context)?;
        Ok(context)
    }

    fn share_pool(&self, with: &mut Self) -> Result<(), Error> {
        if let Some(pool) = &self.pool {
            // SAFETY: the pool is kept by the other context too; the two never compute at once, since one owner has both.
            sys::call(|err| unsafe { sys::hearth_pool_share(pool.0.as_ptr(), with.raw.as_ptr(), err) })?;
            with.pool = Some(Arc::clone(pool));
        }
        Ok(())
    }

    /// `other`: the context that it drafts for, or NULL.
    fn open(
        model: &Arc<Model>,
        params: ContextParams,
        interrupt: Interrupt,
        other: *mut sys::llama_context,
    ) -> Result<Self, Error> {
        let interrupt = Box::new(interrupt);
        let user: *const Interrupt = &raw const *interrupt;
        let kernels = params.kernels.and_then(Kernels::new);
        let signed = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
        let raw_params = sys::hearth_context_params {
            n_ctx: params.n_ctx,
            n_batch: params.n_batch,
            n_ubatch: params.n_ubatch,
            n_seq_max: params.n_seq_max,
            n_outputs_max: params.n_outputs_max,
            n_threads: signed(params.n_threads),
            n_threads_batch: signed(params.n_threads_batch),
            flash_attn: params.flash_attn.map_or(-1, i32::from),
            type_k: params.type_k.raw(),
            type_v: params.type_v.raw(),
            kv_unified: params.kv_unified,
            swa_full: params.swa_full,
            offload_kqv: params.offload_kqv,
            pooling: params.pooling.map_or(-1, PoolingType::raw),
            mtp: params.mtp,
            n_rs_seq: params.n_rs_seq,
            rounds_kv: params.rounds_kv,
            kernels: kernels.as_ref().map_or(std::ptr::null(), Kernels::as_ptr),
            other,
            abort: Some(on_abort_query),
            abort_user: user.cast_mut().cast(),
        };
        let _opening = gpu::opening();
        let mut raw = std::ptr::null_mut();
        // SAFETY: the model lives (this context keeps it); `raw_params` outlives the call, and the interrupt the context.
        sys::call(|err| unsafe { sys::hearth_context_new(model.as_ptr(), &raw const raw_params, &raw mut raw, err) })?;
        let raw = NonNull::new(raw).ok_or_else(|| Error::Exception("no context and no error".into()))?;
        let n_vocab = model.vocab_flags().n_tokens as usize;
        let n_pooled = match params.pooling {
            None => 0,
            Some(PoolingType::Rank) => model.n_cls_out() as usize,
            Some(_) => model.n_embd_out() as usize,
        };
        Ok(Self {
            raw,
            pool: None,
            speculator: None,
            _interrupt: interrupt,
            _kernels: kernels,
            model: Arc::clone(model),
            params,
            n_vocab,
            n_pooled,
        })
    }

    /// Without a pool of its own ggml starts threads anew for every graph.
    fn attach_pool(&mut self) -> Result<(), Error> {
        if self.params.n_threads <= 1 && self.params.n_threads_batch <= 1 {
            return Ok(());
        }
        let signed = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
        let (n, n_batch) = (signed(self.params.n_threads), signed(self.params.n_threads_batch));
        let poll = self.params.poll;
        let mut pool = std::ptr::null_mut();
        // SAFETY: the context lives; the pool is freed after it (see Drop).
        sys::call(|err| unsafe { sys::hearth_pool_attach(self.raw.as_ptr(), n, n_batch, poll, &raw mut pool, err) })?;
        self.pool = NonNull::new(pool).map(|pool| Arc::new(Pool(pool)));
        Ok(())
    }

    pub(super) fn speculator(&self) -> Option<&Speculator> {
        self.speculator.as_ref()
    }

    pub(super) fn speculator_mut(&mut self) -> Option<&mut Speculator> {
        self.speculator.as_mut()
    }

    pub(super) fn set_speculator(&mut self, speculator: Speculator) {
        self.speculator = Some(speculator);
    }

    pub(super) fn as_ptr(&mut self) -> *mut sys::llama_context {
        self.raw.as_ptr()
    }

    /// KV cells in all (llama.cpp rounds what was asked for).
    pub fn n_ctx(&self) -> u32 {
        // SAFETY: a plain getter.
        unsafe { sys::llama_n_ctx(self.raw.as_ptr()) }
    }

    /// Most positions of one sequence.
    pub fn n_ctx_seq(&self) -> u32 {
        // SAFETY: a plain getter.
        unsafe { sys::llama_n_ctx_seq(self.raw.as_ptr()) }
    }

    pub fn n_batch(&self) -> u32 {
        // SAFETY: a plain getter.
        unsafe { sys::llama_n_batch(self.raw.as_ptr()) }
    }

    /// The LoRA adapters (index and scale) of the decodes from here on, in place of those before. Costs nothing when they
    /// are the same; a change makes llama.cpp plan its graphs anew.
    ///
    /// Errors: an index that the model does not have.
    /// Source: llama_set_adapters_lora, llama.h.
    pub fn set_adapters(&mut self, adapters: &[(u32, f32)]) -> Result<(), Error> {
        let known = |index: u32| {
            self.model.adapter(index).ok_or_else(|| Error::Invalid(format!("there is no LoRA adapter {index}")))
        };
        let mut raw = adapters.iter().map(|(index, _)| known(*index)).collect::<Result<Vec<_>, _>>()?;
        let mut scales: Vec<f32> = adapters.iter().map(|(_, scale)| *scale).collect();
        // SAFETY: context and model live; both arrays have `raw.len()` elements, which llama.cpp copies.
        sys::call(|err| unsafe {
            sys::hearth_set_adapters(self.as_ptr(), raw.as_mut_ptr(), scales.as_mut_ptr(), raw.len(), err)
        })
    }

    /// One forward pass over `batch`; the KV cache grows by its rows.
    ///
    /// Shapes: 1..=n_batch rows in; one row of n_vocab f32 logits per output row, addressed by its row in the batch.
    /// Errors: `Assertion`, `Exception`: the context must be thrown away.
    /// Source: llama_decode, llama.h.
    pub fn decode(&mut self, batch: &mut Batch) -> Result<Decoded, Error> {
        // llama.cpp asserts on more than n_batch rows, and has no use for none.
        if batch.n_rows() == 0 || batch.n_rows() > self.n_batch() as usize {
            return Ok(Decoded::InvalidBatch);
        }
        batch.with_raw(|raw| self.decode_raw(raw))
    }

    /// One forward pass over embeddings; the KV cache grows by their rows.
    ///
    /// Shapes: 1..=n_batch rows in, at most n_ubatch where they are not causal (else `InvalidBatch`).
    /// Errors: as `decode`. Source: llama_decode, llama.h.
    pub fn decode_embeddings(&mut self, rows: EmbeddingRows<'_>) -> Result<Decoded, Error> {
        // SAFETY: plain getters on a model that lives.
        let (n_embd, kind) = unsafe {
            (sys::llama_model_n_embd_inp(self.model.as_ptr()), sys::llama_model_rope_type(self.model.as_ptr()))
        };
        let n_numbers = if matches!(kind, sys::LLAMA_ROPE_TYPE_MROPE | sys::LLAMA_ROPE_TYPE_IMROPE) { 4 } else { 1 };
        let n = rows.rows.len() / usize::try_from(n_embd).unwrap_or(0).max(1);
        let fits = n > 0
            && rows.rows.len() == n * usize::try_from(n_embd).unwrap_or(0)
            && rows.positions.len() == n * n_numbers
            && n <= self.n_batch() as usize
            && (!rows.is_non_causal || n <= self.params.n_ubatch as usize);
        if !fits {
            return Ok(Decoded::InvalidBatch);
        }
        let n = i32::try_from(n).map_err(|_| Error::Invalid("the batch has too many rows".into()))?;
        let mut seq = rows.seq;
        let mut seq_ids: Vec<*mut i32> = (0..n).map(|_| &raw mut seq).collect();
        let mut n_seq_ids: Vec<i32> = (0..n).map(|_| 1).collect();
        let mut outputs: Vec<i8> = (0..n).map(|row| i8::from(rows.output_last && row + 1 == n)).collect();
        let raw = sys::llama_batch {
            n_tokens: n,
            token: std::ptr::null_mut(),
            // llama.cpp only reads these two.
            embd: rows.rows.as_ptr().cast_mut(),
            pos: rows.positions.as_ptr().cast_mut(),
            n_seq_id: n_seq_ids.as_mut_ptr(),
            seq_id: seq_ids.as_mut_ptr(),
            logits: outputs.as_mut_ptr(),
        };
        if rows.is_non_causal {
            // SAFETY: a plain setter.
            unsafe { sys::llama_set_causal_attn(self.raw.as_ptr(), false) };
        }
        let decoded = self.decode_raw(&raw);
        if rows.is_non_causal {
            // SAFETY: a plain setter.
            unsafe { sys::llama_set_causal_attn(self.raw.as_ptr(), true) };
        }
        decoded
    }

    /// The arrays of `raw` have n_tokens elements and live during the call.
    fn decode_raw(&mut self, raw: &sys::llama_batch) -> Result<Decoded, Error> {
        let mut code = 0;
        log::set_interrupted(false);
        // SAFETY: as both callers see to: every array has the elements that llama.cpp reads and outlives the call.
        sys::call(|err| unsafe { sys::hearth_decode(self.raw.as_ptr(), raw, &raw mut code, err) })?;
        log::set_interrupted(false);
        Ok(match code {
            0 => Decoded::Done,
            1 => Decoded::NoKvSlot,
            2 => Decoded::Aborted,
            -1 => Decoded::InvalidBatch,
            other => Decoded::Failed(other),
        })
    }

    /// The logits of the last decode's row `row`; `None` when that row was not an output.
    /// Shape: n_vocab f32. Source: llama_get_logits_ith, llama.h.
    pub fn logits(&mut self, row: i32) -> Option<&[f32]> {
        // SAFETY: llama.cpp checks the row and answers NULL for one without logits.
        let logits = unsafe { sys::llama_get_logits_ith(self.raw.as_ptr(), row) };
        if logits.is_null() {
            return None;
        }
        // SAFETY: it points to n_vocab floats that stay until the next decode, which needs `&mut self`.
        Some(unsafe { std::slice::from_raw_parts(logits, self.n_vocab) })
    }

    /// As `logits`, of several rows at once, and the threads of a decode, which have nothing to do until the next.
    pub fn rows(&mut self, rows: impl Iterator<Item = i32>) -> (Vec<Option<&[f32]>>, Team<'_>) {
        let row = |row| {
            // SAFETY: as in `logits`; asking for one row moves no other.
            let logits = unsafe { sys::llama_get_logits_ith(self.raw.as_ptr(), row) };
            // SAFETY: it points to n_vocab floats that stay until the next decode, which needs `&mut self`.
            (!logits.is_null()).then(|| unsafe { std::slice::from_raw_parts(logits, self.n_vocab) })
        };
        (rows.map(row).collect(), Team::of(self.pool.as_ref().map(|pool| pool.0)))
    }

    /// As `logits`, to be changed before a sampler sees them in the context.
    #[cfg(test)]
    pub fn logits_mut(&mut self, row: i32) -> Option<&mut [f32]> {
        // SAFETY: llama.cpp checks the row and answers NULL for one without logits.
        let logits = unsafe { sys::llama_get_logits_ith(self.raw.as_ptr(), row) };
        if logits.is_null() {
            return None;
        }
        // SAFETY: it points to n_vocab floats of the context's own output buffer, which nobody else reads meanwhile.
        Some(unsafe { std::slice::from_raw_parts_mut(logits, self.n_vocab) })
    }

    /// Whether all sequences draw their cells from one pool.
    pub(super) fn is_unified(&self) -> bool {
        self.params.kv_unified
    }

    /// Lets sequence `to`, which must be empty, hold the first `n` positions of `from`; `false` when this memory can't.
    /// Source: llama_memory_seq_cp, llama.h.
    pub fn seq_cp(&mut self, from: i32, to: i32, n: i32) -> Result<bool, Error> {
        let mut copied = false;
        // SAFETY: the context lives; the shim catches what is thrown.
        sys::call(|err| unsafe {
            sys::hearth_seq_cp(self.raw.as_ptr(), from, to, n, self.params.kv_unified, &raw mut copied, err)
        })?;
        Ok(copied)
    }

    /// A copy of what a sequence holds, at most `most` bytes; `None` when it would be more, or can't be made.
    /// Source: llama_state_seq_get_data, llama.h.
    pub fn seq_save(&mut self, seq: i32, most: usize) -> Result<Option<Vec<u8>>, Error> {
        let mut n = 0;
        // SAFETY: the context lives; the shim catches what is thrown.
        sys::call(|err| unsafe { sys::hearth_seq_size(self.raw.as_ptr(), seq, &raw mut n, err) })?;
        if n == 0 || n > most {
            return Ok(None);
        }
        let mut data = vec![0; n];
        // SAFETY: as above; the buffer is described by its length.
        sys::call(|err| unsafe {
            sys::hearth_seq_save(self.raw.as_ptr(), seq, data.as_mut_ptr(), data.len(), &raw mut n, err)
        })?;
        data.truncate(n);
        Ok((n > 0).then_some(data))
    }

    /// Lets sequence `seq`, which must be empty, hold what `seq_save` copied; `false` when there is no room.
    /// Source: llama_state_seq_set_data, llama.h.
    pub fn seq_load(&mut self, seq: i32, data: &[u8]) -> Result<bool, Error> {
        let mut loaded = false;
        // SAFETY: the context lives; the data is described by its length and was made by `seq_save`.
        sys::call(|err| unsafe {
            sys::hearth_seq_load(self.raw.as_ptr(), seq, data.as_ptr(), data.len(), &raw mut loaded, err)
        })?;
        Ok(loaded)
    }

    /// The pooled vector of a sequence that the last decode had rows of; `None` for another one.
    /// Shape: n_embd_out f32, or n_cls_out with `PoolingType::Rank`. Source: llama_get_embeddings_seq, llama.h.
    pub fn pooled(&mut self, seq: i32) -> Option<&[f32]> {
        // SAFETY: llama.cpp looks the sequence up and answers NULL for one without a vector.
        let vector = unsafe { sys::llama_get_embeddings_seq(self.raw.as_ptr(), seq) };
        if vector.is_null() || self.n_pooled == 0 {
            return None;
        }
        // SAFETY: it points to n_pooled floats that stay until the next decode, which needs `&mut self`.
        Some(unsafe { std::slice::from_raw_parts(vector, self.n_pooled) })
    }

    /// The vector of an output row of the last decode, where rows are not pooled; `None` for another row.
    /// Shape: n_embd_out f32. Source: llama_get_embeddings_ith, llama.h.
    pub fn row_embedding(&mut self, row: i32) -> Option<&[f32]> {
        if self.params.pooling != Some(PoolingType::Rows) {
            return None;
        }
        // SAFETY: llama.cpp answers NULL for a row that is no output of the last decode.
        let vector = unsafe { sys::llama_get_embeddings_ith(self.raw.as_ptr(), row) };
        if vector.is_null() {
            return None;
        }
        // SAFETY: it points to n_pooled floats that stay until the next decode, which needs `&mut self`.
        Some(unsafe { std::slice::from_raw_parts(vector, self.n_pooled) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // It holds a pointer to this context.
        self.speculator = None;
        // SAFETY: the only owner; the pool is still attached and outlives the context.
        unsafe { sys::llama_free(self.raw.as_ptr()) };
    }
}

/// Threads of contexts, which keep it as long as they live.
struct Pool(NonNull<sys::hearth_pool>);

// SAFETY: it is only freed through this handle, by whichever thread drops the last context that used it.
unsafe impl Send for Pool {}
// SAFETY: a shared reference gives out nothing but the pointer for attaching it.
unsafe impl Sync for Pool {}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: made by the shim, freed once, and the contexts that used it are gone: each frees itself before it lets
        // go of the pool.
        unsafe { sys::hearth_pool_free(self.0.as_ptr()) };
    }
}

unsafe extern "C" fn on_abort_query(user: *mut c_void) -> bool {
    // SAFETY: `user` is the context's boxed interrupt, which outlives the context.
    let interrupt = unsafe { &*user.cast_const().cast::<Interrupt>() };
    // A panic must not unwind into C; it ends the decode instead.
    let is_over = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| interrupt())).unwrap_or(true);
    if is_over {
        log::set_interrupted(true);
    }
    is_over
}
