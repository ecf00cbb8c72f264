//! Images and sound as rows of embeddings: llama.cpp's `mtmd`.

use super::error::Error;
use super::model::Model;
use super::{gpu, sys};
use std::ffi::CString;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// A loaded projector. Splitting is safe from any thread; encodings take turns.
#[derive(Debug)]
pub struct Projector {
    raw: NonNull<sys::hearth_projector>,
    _model: Arc<Model>,
    encoding: Mutex<()>,
    facts: ProjectorFacts,
}

// SAFETY: no thread-local state; what mutates it (`encode`) holds the mutex, and mtmd_tokenize is documented to be
// thread-safe on a shared context (mtmd.h).
unsafe impl Send for Projector {}
// SAFETY: as above.
unsafe impl Sync for Projector {}

/// What a projector takes and gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProjectorFacts {
    pub vision: bool,
    pub audio: bool,
    /// The text model counts positions in several dimensions (M-RoPE).
    pub mrope: bool,
    /// Samples of a second of sound; `None` without audio.
    pub sample_rate: Option<u32>,
    /// Numbers of one row.
    pub n_embd: usize,
}

/// A part of an image or sound: text tokens around it, or something to encode.
#[derive(Debug)]
pub enum Piece {
    Text(Vec<i32>),
    Media(Chunk),
}

/// Preprocessed pixels or frames that become `n_tokens` rows.
#[derive(Debug)]
pub struct Chunk {
    raw: NonNull<sys::mtmd_input_chunk>,
    pub n_tokens: usize,
    /// Positions that it takes of the text model: `n_tokens`, fewer with M-RoPE.
    pub n_pos: usize,
    /// The text model must see the whole chunk at once, each row every other.
    pub is_non_causal: bool,
    /// Of an image with M-RoPE: (time, row, column) of each token, relative to the chunk's first position. Empty where the
    /// positions just count on.
    pub grid: Vec<[i32; 3]>,
}

// SAFETY: plain data after its making, owned by this value alone.
unsafe impl Send for Chunk {}
// SAFETY: only read through `&`.
unsafe impl Sync for Chunk {}

impl Projector {
    /// Reads an mmproj file for `model`.
    ///
    /// Errors: what llama.cpp logged, such as a projector of another model. Source: mtmd_init_from_file, mtmd.h.
    pub fn load(path: &Path, model: &Arc<Model>, n_threads: u32, use_gpu: bool) -> Result<Self, Error> {
        let path = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| Error::Invalid("the path holds a NUL byte".into()))?;
        let n_threads = i32::try_from(n_threads).unwrap_or(i32::MAX);
        // Without a warm-up the first image pays for the allocation of the graph; it is small beside the encoding.
        let params = sys::hearth_projector_params { n_threads, use_gpu, warmup: false };
        let _opening = gpu::opening();
        let mut raw = std::ptr::null_mut();
        // SAFETY: the path is a C string; the model lives as long as the projector.
        sys::call(|err| unsafe {
            sys::hearth_projector_new(path.as_ptr(), model.as_ptr(), &raw const params, &raw mut raw, err)
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| Error::Exception("no projector and no error".into()))?;
        let mut facts =
            sys::hearth_projector_facts { vision: false, audio: false, mrope: false, sample_rate: -1, n_embd: 0 };
        // SAFETY: the projector lives; `facts` is writable.
        unsafe { sys::hearth_projector_info(raw.as_ptr(), &raw mut facts) };
        let facts = ProjectorFacts {
            vision: facts.vision,
            audio: facts.audio,
            mrope: facts.mrope,
            sample_rate: u32::try_from(facts.sample_rate).ok().filter(|rate| facts.audio && *rate > 0),
            n_embd: facts.n_embd,
        };
        Ok(Self { raw, _model: Arc::clone(model), encoding: Mutex::new(()), facts })
    }

    pub fn facts(&self) -> ProjectorFacts {
        self.facts
    }

    /// Resizes and cuts an image as the model wants it. Shape: `rgb` has 3 × width × height bytes, row by row.
    ///
    /// Errors: `Invalid`: the image can't be used. Source: mtmd_tokenize, mtmd.h.
    pub fn split_image(&self, width: u32, height: u32, rgb: &[u8]) -> Result<Vec<Piece>, Error> {
        if !self.facts.vision {
            return Err(Error::Invalid("the projector takes no images".into()));
        }
        if width == 0 || height == 0 || rgb.len() as u64 != 3 * u64::from(width) * u64::from(height) {
            return Err(Error::Invalid("the image's size and its pixels differ".into()));
        }
        let mut chunks = std::ptr::null_mut();
        // SAFETY: the pixels are 3 * width * height bytes, as checked; mtmd copies them.
        sys::call(|err| unsafe {
            sys::hearth_projector_split_image(self.raw.as_ptr(), width, height, rgb.as_ptr(), &raw mut chunks, err)
        })?;
        self.pieces(chunks)
    }

    /// The same for mono sound at `sample_rate`.
    pub fn split_audio(&self, samples: &[f32]) -> Result<Vec<Piece>, Error> {
        if !self.facts.audio {
            return Err(Error::Invalid("the projector takes no sound".into()));
        }
        // mtmd asserts more than one.
        if samples.len() < 2 {
            return Err(Error::Invalid("the sound is empty".into()));
        }
        let mut chunks = std::ptr::null_mut();
        // SAFETY: the samples are described by their length; mtmd copies them.
        sys::call(|err| unsafe {
            sys::hearth_projector_split_audio(self.raw.as_ptr(), samples.as_ptr(), samples.len(), &raw mut chunks, err)
        })?;
        self.pieces(chunks)
    }

    fn pieces(&self, chunks: *mut sys::mtmd_input_chunks) -> Result<Vec<Piece>, Error> {
        let chunks = Chunks(NonNull::new(chunks).ok_or_else(|| Error::Exception("no chunks and no error".into()))?);
        // SAFETY: the list lives until `chunks` drops.
        let n = unsafe { sys::mtmd_input_chunks_size(chunks.0.as_ptr()) };
        (0..n)
            .map(|index| {
                // SAFETY: the index is below the list's size; the element lives as long as the list.
                let raw = unsafe { sys::mtmd_input_chunks_get(chunks.0.as_ptr(), index) };
                self.piece(raw)
            })
            .collect()
    }

    fn piece(&self, raw: *const sys::mtmd_input_chunk) -> Result<Piece, Error> {
        // SAFETY: `raw` is an element of a list that the caller keeps.
        let kind = unsafe { sys::mtmd_input_chunk_get_type(raw) };
        if kind == sys::MTMD_INPUT_CHUNK_TYPE_TEXT {
            let mut n = 0usize;
            // SAFETY: as above; `n` is writable.
            let tokens = unsafe { sys::mtmd_input_chunk_get_tokens_text(raw, &raw mut n) };
            if tokens.is_null() || n == 0 {
                return Ok(Piece::Text(Vec::new()));
            }
            // SAFETY: mtmd says that there are `n`.
            return Ok(Piece::Text(unsafe { std::slice::from_raw_parts(tokens, n) }.to_vec()));
        }
        // SAFETY: as above. The copy is ours.
        let owned = unsafe { sys::mtmd_input_chunk_copy(raw) };
        let owned = NonNull::new(owned).ok_or_else(|| Error::Exception("the chunk can't be copied".into()))?;
        // SAFETY: as above; a plain getter.
        let n_tokens = unsafe { sys::mtmd_input_chunk_get_n_tokens(raw) };
        // SAFETY: as above; a plain getter.
        let n_pos = usize::try_from(unsafe { sys::mtmd_input_chunk_get_n_pos(raw) }).unwrap_or(0);
        // SAFETY: both live.
        let is_non_causal = unsafe { sys::hearth_chunk_is_non_causal(self.raw.as_ptr(), raw) };
        let grid = if self.facts.mrope { grid_of(raw, n_tokens) } else { Vec::new() };
        let chunk = Chunk { raw: owned, n_tokens, n_pos, is_non_causal, grid };
        if n_tokens == 0 || n_pos == 0 {
            return Err(Error::Exception("a chunk without tokens".into()));
        }
        Ok(Piece::Media(chunk))
    }

    /// The chunk's rows. Shape: n_tokens × n_embd f32, row by row. Takes as long as a prompt of some hundred tokens.
    ///
    /// Errors: what llama.cpp logged. Source: mtmd_encode_chunk, mtmd.h.
    pub fn encode(&self, chunk: &Chunk) -> Result<Vec<f32>, Error> {
        let _turn = self.encoding.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rows = vec![0f32; chunk.n_tokens * self.facts.n_embd];
        // SAFETY: projector and chunk live; the output has the length that is told; the mutex keeps others out.
        sys::call(|err| unsafe {
            sys::hearth_projector_encode(self.raw.as_ptr(), chunk.raw.as_ptr(), rows.as_mut_ptr(), rows.len(), err)
        })?;
        Ok(rows)
    }
}

impl Drop for Projector {
    fn drop(&mut self) {
        // SAFETY: the only owner.
        unsafe { sys::hearth_projector_free(self.raw.as_ptr()) }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: our copy, freed once.
        unsafe { sys::mtmd_input_chunk_free(self.raw.as_ptr()) }
    }
}

/// A list of chunks on its way from the shim.
struct Chunks(NonNull<sys::mtmd_input_chunks>);

impl Drop for Chunks {
    fn drop(&mut self) {
        // SAFETY: handed out by the shim, freed once.
        unsafe { sys::mtmd_input_chunks_free(self.0.as_ptr()) }
    }
}

/// Places of an image's tokens relative to its first; empty for sound.
/// Source: decode_embd_batch::set_position_mrope_2d, mtmd-helper-common.h.
fn grid_of(raw: *const sys::mtmd_input_chunk, n_tokens: usize) -> Vec<[i32; 3]> {
    let number = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    // SAFETY: `raw` lives; NULL for chunks of sound.
    let image = unsafe { sys::mtmd_input_chunk_get_tokens_image(raw) };
    if image.is_null() {
        return Vec::new();
    }
    (0..n_tokens)
        .map(|index| {
            // SAFETY: the image's tokens live with the chunk; `index` is below their number.
            let pos = unsafe { sys::mtmd_image_tokens_get_decoder_pos(image, 0, index) };
            [number(pos.t), number(pos.y), number(pos.x)]
        })
        .collect()
}
