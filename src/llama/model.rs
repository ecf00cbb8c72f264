//! Weights and vocabulary.

use super::error::Error;
use super::specials::Specials;
use super::{gpu, sys};
use std::ffi::{CString, c_void};
use std::path::Path;
use std::ptr::NonNull;

/// A loaded model. Constant after the load, so it may be used from many threads.
#[derive(Debug)]
pub struct Model {
    raw: NonNull<sys::llama_model>,
    /// LoRA adapters; llama.cpp frees them with the model.
    adapters: Vec<NonNull<sys::llama_adapter_lora>>,
    pub(super) specials: Specials,
}

// SAFETY: llama.cpp's model and vocabulary are read-only once loaded (checked with four threads in reference work; the
// server of llama.cpp relies on it too). What mutates them is not called here.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

/// How to load.
#[derive(Debug, Clone, Copy)]
pub struct ModelParams {
    /// Layers on the GPU; negative: all.
    pub n_gpu_layers: i32,
    pub use_mmap: bool,
    pub use_mlock: bool,
    /// No weights: the model can do nothing but tokenise.
    pub vocab_only: bool,
    /// With the heads that draft, where the file has some.
    pub load_mtp: bool,
}

/// What the vocabulary says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VocabFlags {
    pub n_tokens: u32,
    pub bos: Option<i32>,
    pub eos: Option<i32>,
    pub add_bos: bool,
    pub add_eos: bool,
    pub sep: Option<i32>,
    pub add_sep: bool,
}

/// Tokens of fill-in-the-middle. Source: llama_vocab_fim_*, llama.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InfillTokens {
    pub prefix: i32,
    pub suffix: i32,
    pub middle: i32,
    /// The name of the repository comes behind it.
    pub repo: Option<i32>,
    /// The name of a file comes behind it.
    pub file: Option<i32>,
}

impl Model {
    /// Reads a GGUF file; `progress` gets 0.0..=1.0.
    ///
    /// Errors: what llama.cpp logged when it refused the file.
    /// Source: llama_model_load_from_file, llama.h.
    pub fn load(path: &Path, params: ModelParams, mut progress: impl FnMut(f32)) -> Result<Self, Error> {
        let is_mapped = params.use_mmap && !params.use_mlock;
        let file = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let path = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| Error::Invalid("the path holds a NUL byte".into()))?;
        let mut progress: &mut dyn FnMut(f32) = &mut progress;
        let params = sys::hearth_model_params {
            n_gpu_layers: params.n_gpu_layers,
            use_mmap: params.use_mmap,
            use_mlock: params.use_mlock,
            vocab_only: params.vocab_only,
            load_mtp: params.load_mtp,
            progress: Some(on_progress),
            progress_user: (&raw mut progress).cast(),
        };
        let _opening = gpu::opening();
        let mut raw = std::ptr::null_mut();
        // SAFETY: the path is a C string and `params` (with `progress` behind it) outlive the call, which is when the
        // callback is used.
        sys::call(|err| unsafe { sys::hearth_model_load(path.as_ptr(), &raw const params, &raw mut raw, err) })?;
        let raw = NonNull::new(raw).ok_or_else(|| Error::Exception("no model and no error".into()))?;
        if is_mapped {
            forget_pages(&file);
        }
        Ok(Self::of(raw))
    }

    /// A vocabulary without its model. Errors: as for `load`.
    pub fn load_vocab(path: &Path) -> Result<Self, Error> {
        let params =
            ModelParams { n_gpu_layers: 0, use_mmap: false, use_mlock: false, vocab_only: true, load_mtp: false };
        Self::load(path, params, |_| {})
    }

    fn of(raw: NonNull<sys::llama_model>) -> Self {
        // SAFETY: the model lives; its vocabulary lives as long.
        let specials = unsafe { Specials::of(sys::llama_model_get_vocab(raw.as_ptr())) };
        Self { raw, adapters: Vec::new(), specials }
    }

    /// Loads a LoRA adapter and gives it the next index. Contexts size their graphs by the adapters there are, so this
    /// comes before the first context.
    ///
    /// Errors: what llama.cpp logged: another architecture, tensors that don't fit, a broken file.
    /// Source: llama_adapter_lora_init, llama.h.
    pub fn add_adapter(&mut self, path: &Path) -> Result<(), Error> {
        let path = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| Error::Invalid("the path holds a NUL byte".into()))?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the model lives and `&mut self` keeps everybody else from it; the path is a C string.
        sys::call(|err| unsafe { sys::hearth_model_add_adapter(self.as_ptr(), path.as_ptr(), &raw mut raw, err) })?;
        self.adapters.push(NonNull::new(raw).ok_or_else(|| Error::Exception("no adapter and no error".into()))?);
        Ok(())
    }

    /// The adapter of this index; lives as long as the model.
    pub(super) fn adapter(&self, index: u32) -> Option<*mut sys::llama_adapter_lora> {
        self.adapters.get(index as usize).map(|adapter| adapter.as_ptr())
    }

    pub(super) fn as_ptr(&self) -> *mut sys::llama_model {
        self.raw.as_ptr()
    }

    fn vocab(&self) -> *const sys::llama_vocab {
        // SAFETY: the model lives; its vocabulary lives as long.
        unsafe { sys::llama_model_get_vocab(self.as_ptr()) }
    }

    pub fn vocab_flags(&self) -> VocabFlags {
        let vocab = self.vocab();
        let known = |token: i32| (token >= 0).then_some(token);
        // SAFETY: plain getters on a vocabulary that lives.
        unsafe {
            VocabFlags {
                n_tokens: u32::try_from(sys::llama_vocab_n_tokens(vocab)).unwrap_or(0),
                bos: known(sys::llama_vocab_bos(vocab)),
                eos: known(sys::llama_vocab_eos(vocab)),
                add_bos: sys::llama_vocab_get_add_bos(vocab),
                add_eos: sys::llama_vocab_get_add_eos(vocab),
                sep: known(sys::llama_vocab_sep(vocab)),
                add_sep: sys::llama_vocab_get_add_sep(vocab),
            }
        }
    }

    /// `None` where the vocabulary has no such tokens.
    pub fn infill_tokens(&self) -> Option<InfillTokens> {
        let vocab = self.vocab();
        let known = |token: i32| (token >= 0).then_some(token);
        // SAFETY: plain getters on a vocabulary that lives.
        unsafe {
            Some(InfillTokens {
                prefix: known(sys::llama_vocab_fim_pre(vocab))?,
                suffix: known(sys::llama_vocab_fim_suf(vocab))?,
                middle: known(sys::llama_vocab_fim_mid(vocab))?,
                repo: known(sys::llama_vocab_fim_rep(vocab)),
                file: known(sys::llama_vocab_fim_sep(vocab)),
            })
        }
    }

    /// Whether the token ends a generation. `token` must be in the vocabulary (else false).
    pub fn is_eog(&self, token: i32) -> bool {
        // SAFETY: llama.cpp checks the id against its set of ends.
        self.has(token) && unsafe { sys::llama_vocab_is_eog(self.vocab(), token) }
    }

    /// Whether the token is markup rather than text.
    pub fn is_control(&self, token: i32) -> bool {
        // SAFETY: the id is inside the vocabulary.
        self.has(token) && unsafe { sys::llama_vocab_is_control(self.vocab(), token) }
    }

    fn has(&self, token: i32) -> bool {
        u32::try_from(token).is_ok_and(|token| token < self.vocab_flags().n_tokens)
    }

    /// The token's exact bytes, special tokens included. Empty for ids outside the vocabulary.
    /// Source: llama_token_to_piece, llama.h.
    pub fn piece(&self, token: i32) -> Vec<u8> {
        if !self.has(token) {
            return Vec::new();
        }
        let mut buffer = vec![0u8; 64];
        for _ in 0..2 {
            let capacity = i32::try_from(buffer.len()).unwrap_or(i32::MAX);
            // SAFETY: the buffer has `capacity` writable bytes; the id is inside the vocabulary.
            let n = unsafe {
                sys::llama_token_to_piece(self.vocab(), token, buffer.as_mut_ptr().cast(), capacity, 0, true)
            };
            match usize::try_from(n) {
                Ok(n) => {
                    buffer.truncate(n);
                    return buffer;
                }
                // Minus the length it needs.
                Err(_) => buffer.resize(n.unsigned_abs() as usize, 0),
            }
        }
        Vec::new()
    }

    /// Text to token ids. Errors when the tokenizer itself fails.
    pub fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<i32>, Error> {
        let pieces = self.specials.pieces(text, parse_special);
        if pieces.len() <= 1 {
            return self.tokenize_piece(text, add_special, parse_special);
        }
        let ends = if add_special { self.tokenize_piece("", true, parse_special)? } else { Vec::new() };
        let (before, behind) = ends.split_at(ends.len().min(usize::from(self.begins())));
        let mut tokens = before.to_vec();
        for piece in pieces {
            tokens.extend(self.tokenize_piece(piece, false, parse_special)?);
        }
        tokens.extend_from_slice(behind);
        Ok(tokens)
    }

    /// Whether the first of the tokens that are added to a text stands before it.
    fn begins(&self) -> bool {
        // SAFETY: plain getters on a vocabulary that lives.
        unsafe {
            let vocab = self.vocab();
            sys::llama_vocab_get_add_bos(vocab) || sys::llama_vocab_type(vocab) == sys::LLAMA_VOCAB_TYPE_WPM
        }
    }

    pub(super) fn tokenize_piece(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<i32>, Error> {
        // A token has at least one byte; BOS and EOS may come on top. One pass is enough for nearly every text.
        let mut tokens = vec![0i32; text.len() / 2 + 16];
        loop {
            let mut n = 0usize;
            // SAFETY: text and buffer are described by their lengths; the vocabulary lives.
            sys::call(|err| unsafe {
                sys::hearth_tokenize(
                    self.vocab(),
                    text.as_ptr().cast(),
                    text.len(),
                    tokens.as_mut_ptr(),
                    tokens.len(),
                    add_special,
                    parse_special,
                    &raw mut n,
                    err,
                )
            })?;
            if n <= tokens.len() {
                tokens.truncate(n);
                return Ok(tokens);
            }
            tokens.resize(n, 0);
        }
    }

    /// The value of a metadata key as text.
    pub fn meta(&self, key: &str) -> Option<String> {
        let key = CString::new(key).ok()?;
        let mut text = std::ptr::null_mut();
        // SAFETY: key is a C string; the text that comes back is ours to free.
        sys::call(|err| unsafe { sys::hearth_model_meta(self.as_ptr(), key.as_ptr(), &raw mut text, err) }).ok()?;
        if text.is_null() {
            return None;
        }
        // SAFETY: allocated by the shim, taken once.
        Some(unsafe { sys::take(text) })
    }

    /// llama.cpp's one-line description, such as `llama 0.5B Q4_0`.
    pub fn desc(&self) -> String {
        let mut buffer = [0u8; 256];
        // SAFETY: the buffer has the size given, and the text is NUL-terminated within it.
        unsafe {
            sys::llama_model_desc(self.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len());
            sys::text(buffer.as_ptr().cast())
        }
    }

    pub fn n_params(&self) -> u64 {
        // SAFETY: a plain getter.
        unsafe { sys::llama_model_n_params(self.as_ptr()) }
    }

    /// Bytes of all tensors.
    pub fn size_bytes(&self) -> u64 {
        // SAFETY: a plain getter.
        unsafe { sys::llama_model_size(self.as_ptr()) }
    }

    pub fn n_embd(&self) -> u32 {
        // SAFETY: a plain getter.
        u32::try_from(unsafe { sys::llama_model_n_embd(self.as_ptr()) }).unwrap_or(0)
    }

    /// Numbers of a pooled vector.
    pub fn n_embd_out(&self) -> u32 {
        // SAFETY: a plain getter.
        u32::try_from(unsafe { sys::llama_model_n_embd_out(self.as_ptr()) }).unwrap_or(0)
    }

    /// Outputs of the classification head; 1 also where there is no head.
    pub fn n_cls_out(&self) -> u32 {
        // SAFETY: a plain getter.
        unsafe { sys::llama_model_n_cls_out(self.as_ptr()) }
    }

    /// Names of the classification head's outputs, where the file has them.
    pub fn labels(&self) -> Vec<String> {
        // SAFETY: the getter answers NULL past the last name; names live as long as the model.
        let label = |i| unsafe {
            let label = sys::llama_model_cls_label(self.as_ptr(), i);
            (!label.is_null()).then(|| sys::text(label))
        };
        (0..self.n_cls_out()).map_while(label).collect()
    }

    /// Whether one decode call makes vectors of its inputs: not where an encoder feeds a decoder, nor in diffusion.
    pub fn embeds(&self) -> bool {
        // SAFETY: plain getters.
        unsafe { !sys::llama_model_has_encoder(self.as_ptr()) && !sys::llama_model_is_diffusion(self.as_ptr()) }
    }

    pub fn n_layer(&self) -> u32 {
        // SAFETY: a plain getter.
        u32::try_from(unsafe { sys::llama_model_n_layer(self.as_ptr()) }).unwrap_or(0)
    }

    pub fn n_ctx_train(&self) -> u32 {
        // SAFETY: a plain getter.
        u32::try_from(unsafe { sys::llama_model_n_ctx_train(self.as_ptr()) }).unwrap_or(0)
    }

    /// Width of the sliding attention window; 0: none.
    pub fn n_swa(&self) -> u32 {
        // SAFETY: a plain getter.
        u32::try_from(unsafe { sys::llama_model_n_swa(self.as_ptr()) }).unwrap_or(0)
    }

    /// Part of the memory is a recurrent state, part KV cells. Source: llama_model_is_hybrid, llama.h.
    pub fn is_hybrid(&self) -> bool {
        // SAFETY: a plain getter.
        unsafe { sys::llama_model_is_hybrid(self.as_ptr()) }
    }

    /// Whether its whole memory is a recurrent state of fixed size per sequence, without KV cells.
    pub fn is_recurrent(&self) -> bool {
        // SAFETY: a plain getter.
        unsafe { sys::llama_model_is_recurrent(self.as_ptr()) }
    }

    /// Whether it predicts next tokens: it has a decoder, and its attention is causal.
    pub fn generates(&self) -> bool {
        // SAFETY: plain getters.
        let decodes = unsafe {
            sys::llama_model_has_decoder(self.as_ptr())
                && !sys::llama_model_has_encoder(self.as_ptr())
                && !sys::llama_model_is_diffusion(self.as_ptr())
        };
        let architecture = self.meta("general.architecture").unwrap_or_default();
        let is_causal = self.meta(&format!("{architecture}.attention.causal")).is_none_or(|value| value != "false");
        decodes && is_causal
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: the only owner; contexts hold an `Arc` of it and are gone.
        unsafe { sys::llama_model_free(self.as_ptr()) }
    }
}

/// Takes the pages of a mapped model file out of this process's resident set; those that are used come back at their
/// next use, from the page cache. The load has touched all of them, but tensors that the CPU backend repacked (most of a
/// Q4_0 model) are never read there again.
fn forget_pages(file: &Path) {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return }; // not Linux
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (Some(range), Some(access), Some(name)) = (fields.next(), fields.next(), fields.nth(3)) else { continue };
        if access.contains('w') || Path::new(name) != file {
            continue;
        }
        let ends: Vec<usize> = range.split('-').filter_map(|end| usize::from_str_radix(end, 16).ok()).collect();
        if let [start, end] = ends[..] {
            let address = std::ptr::without_provenance_mut(start);
            // SAFETY: a mapping of a file that this process can't write: dropping its pages loses nothing, since they
            // are read from the same file again. Nobody else maps model files here.
            let dropped = unsafe { rustix::mm::madvise(address, end - start, rustix::mm::Advice::LinuxDontNeed) };
            if let Err(error) = dropped {
                tracing::debug!(%error, "pages of the model file stay resident");
            }
        }
    }
}

unsafe extern "C" fn on_progress(progress: f32, user: *mut c_void) -> bool {
    // SAFETY: `user` is the `&mut &mut dyn FnMut(f32)` that `load` put there and keeps during the call; one thread calls.
    let callback = unsafe { &mut *user.cast::<&mut dyn FnMut(f32)>() };
    // A panic must not unwind into C++: it stops the load instead.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| callback(progress))).is_ok()
}
