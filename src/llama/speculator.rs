//! A context that drafts for another: a smaller model, or heads that read what the model's own decodes left behind.

use super::context::Batch;
use super::error::Error;
use super::model::Model;
use super::{Context, gpu, sys};
use std::ffi::CString;
use std::path::Path;
use std::ptr::NonNull;

/// How drafts are made. Source: enum common_speculative_type, common.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DraftKind {
    /// A smaller model of the same vocabulary. It reads tokens only.
    Simple,
    Eagle3,
    /// Heads of the model itself (multi-token prediction).
    Mtp,
    Dflash,
    Dspark,
}

impl DraftKind {
    fn raw(self) -> i32 {
        let raw = match self {
            DraftKind::Simple => sys::HEARTH_DRAFT_SIMPLE,
            DraftKind::Eagle3 => sys::HEARTH_DRAFT_EAGLE3,
            DraftKind::Mtp => sys::HEARTH_DRAFT_MTP,
            DraftKind::Dflash => sys::HEARTH_DRAFT_DFLASH,
            DraftKind::Dspark => sys::HEARTH_DRAFT_DSPARK,
        };
        raw.cast_signed()
    }

    /// Whether it must take in every decode of its target.
    pub fn follows(self) -> bool {
        self != DraftKind::Simple
    }

    /// What a file is for, by its metadata. Errors: it is no GGUF file.
    pub fn of_file(path: &Path) -> Result<Self, Error> {
        let path = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| Error::Invalid("the path holds a NUL byte".into()))?;
        let mut kind = 0;
        // SAFETY: the path is a C string that outlives the call.
        sys::call(|err| unsafe { sys::hearth_draft_kind(path.as_ptr(), &raw mut kind, err) })?;
        let kinds = [Self::Simple, Self::Eagle3, Self::Mtp, Self::Dflash, Self::Dspark];
        Ok(kinds.into_iter().find(|one| one.raw() == kind).unwrap_or(Self::Simple))
    }
}

/// What a draft is to be like.
#[derive(Debug, Clone, Copy)]
pub struct DraftParams {
    pub kind: DraftKind,
    /// Most tokens of one draft.
    pub n_max: u32,
    /// Shorter drafts come back empty.
    pub n_min: u32,
    /// A draft ends before a token that is less probable.
    pub p_min: f32,
}

/// A draft that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct DraftAsk {
    pub seq: i32,
    /// Position of `last`.
    pub pos: i32,
    /// The newest token, which no context has computed.
    pub last: i32,
    pub n_max: u32,
}

impl Model {
    /// Why `draft` can't make drafts of that kind for this model, as a clause. A context of the two must not be made then. For
    /// heads a small context of this model is made, to see whether its graphs hand out what they read.
    pub fn draft_mismatch(&self, draft: &Model, kind: DraftKind) -> Result<Option<String>, Error> {
        let _opening = gpu::opening();
        let mut text = std::ptr::null_mut();
        // SAFETY: both models live.
        sys::call(|err| unsafe {
            sys::hearth_draft_mismatch(self.as_ptr(), draft.as_ptr(), kind.raw(), &raw mut text, err)
        })?;
        // SAFETY: NULL, or a string of the shim.
        Ok((!text.is_null()).then(|| unsafe { sys::take(text) }))
    }

    /// Heads for drafts that were loaded with it.
    pub fn n_mtp(&self) -> Result<u32, Error> {
        let mut n = 0;
        // SAFETY: the model lives.
        sys::call(|err| unsafe { sys::hearth_model_n_mtp(self.as_ptr(), &raw mut n, err) })?;
        Ok(u32::try_from(n).unwrap_or(0))
    }
}

/// The draft's context and what llama.cpp keeps about the two. Lives within the context that it drafts for, which frees
/// it first.
pub(super) struct Speculator {
    raw: NonNull<sys::hearth_speculator>,
    /// Dropped after `raw`, which holds a pointer to it.
    draft: Box<Context>,
    n_max: u32,
}

// SAFETY: as for Context, within which it lives.
unsafe impl Send for Speculator {}

impl Drop for Speculator {
    fn drop(&mut self) {
        // SAFETY: the only owner; both contexts still live.
        unsafe { sys::hearth_speculator_free(self.raw.as_ptr()) };
    }
}

impl Context {
    /// Lets `draft` draft for this context. Both have the same number of sequences; a context of a model's own heads was
    /// made with `ContextParams::mtp`.
    ///
    /// Errors: `Invalid` when the two don't go together.
    /// Source: common_speculative_init, common/speculative.h.
    pub fn speculate(&mut self, draft: Context, params: DraftParams, n_seqs: u32) -> Result<(), Error> {
        let mut draft = Box::new(draft);
        let signed = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
        let raw_params = sys::hearth_speculator_params {
            kind: params.kind.raw(),
            n_seq: n_seqs,
            n_max: signed(params.n_max),
            n_min: signed(params.n_min),
            p_min: params.p_min,
        };
        let (target, other) = (self.as_ptr(), draft.as_ptr());
        let mut raw = std::ptr::null_mut();
        // SAFETY: both contexts live, and outlive what is made here: this one frees it first, the other is kept with it.
        sys::call(|err| unsafe {
            sys::hearth_speculator_new(target, other, &raw const raw_params, &raw mut raw, err)
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| Error::Exception("no drafts and no error".into()))?;
        let mut n_max = 0;
        let mut speculator = Speculator { raw, draft, n_max: 0 };
        // SAFETY: it was just made.
        sys::call(|err| unsafe { sys::hearth_speculator_n_max(raw.as_ptr(), &raw mut n_max, err) })?;
        speculator.n_max = u32::try_from(n_max).unwrap_or(0);
        self.set_speculator(speculator);
        Ok(())
    }

    /// Most tokens of one draft; 0 without anything that drafts.
    pub fn n_draft_max(&self) -> u32 {
        self.speculator().map_or(0, |speculator| speculator.n_max)
    }

    /// The draft's context takes in rows: of its own choice for `DraftKind::Simple`, else exactly those of the last decode.
    /// A sequence of it that ends elsewhere is cut to the first row's position, or starts there anew. `false`: it could
    /// not, and these sequences of it are empty.
    ///
    /// Shapes: 1..=n_batch rows, those of a sequence together. Source: common_speculative_process, common/speculative.h.
    pub fn draft_process(&mut self, batch: &mut Batch) -> Result<bool, Error> {
        let n_batch = self.n_batch() as usize;
        let Some(raw) = self.speculator().map(|speculator| speculator.raw) else { return Ok(false) };
        if batch.n_rows() == 0 || batch.n_rows() > n_batch {
            return Ok(false);
        }
        let mut done = false;
        batch.with_raw(|batch| {
            // SAFETY: the speculator and its contexts live; the batch's arrays have as many elements as it says.
            sys::call(|err| unsafe { sys::hearth_speculator_process(raw.as_ptr(), batch, &raw mut done, err) })
        })?;
        Ok(done)
    }

    /// Drafts for several sequences in one go, in the order of `asks`; empty where there is none, `None` where the draft's
    /// context has no room for the newest token.
    /// Source: common_speculative_draft, common/speculative.h.
    pub fn draft(&mut self, asks: &[DraftAsk]) -> Result<Vec<Option<Vec<i32>>>, Error> {
        let Some(raw) = self.speculator().map(|speculator| speculator.raw) else { return Ok(Vec::new()) };
        let cap = asks.iter().map(|ask| ask.n_max).max().unwrap_or(0) as usize;
        if cap == 0 {
            return Ok(vec![Some(Vec::new()); asks.len()]);
        }
        let raw_ask = |ask: &DraftAsk| sys::hearth_draft_ask {
            seq: ask.seq,
            pos: ask.pos,
            n_max: i32::try_from(ask.n_max).unwrap_or(i32::MAX),
            last: ask.last,
        };
        let raw_asks: Vec<_> = asks.iter().map(raw_ask).collect();
        let (mut tokens, mut counts) = (vec![0; cap * asks.len()], vec![0; asks.len()]);
        // SAFETY: the speculator and its contexts live; `tokens` has `cap` places for each ask, `counts` one.
        sys::call(|err| unsafe {
            let (out, n_out) = (tokens.as_mut_ptr(), counts.as_mut_ptr());
            sys::hearth_speculator_draft(raw.as_ptr(), raw_asks.as_ptr(), raw_asks.len(), out, cap, n_out, err)
        })?;
        let n = |count: &i32| Some(usize::try_from(*count).ok()?.min(cap));
        Ok(tokens.chunks(cap).zip(&counts).map(|(tokens, count)| Some(tokens[..n(count)?].to_vec())).collect())
    }

    /// Of the rows behind the newest token of a sequence the first `n` were kept.
    /// Source: common_speculative_accept, common/speculative.h.
    pub fn draft_accept(&mut self, seq: i32, n: u16) -> Result<(), Error> {
        let Some(raw) = self.speculator().map(|speculator| speculator.raw) else { return Ok(()) };
        // SAFETY: the speculator lives; the shim checks the sequence.
        sys::call(|err| unsafe { sys::hearth_speculator_accept(raw.as_ptr(), seq, n, err) })
    }

    /// The draft's context forgets positions `from..` of a sequence; `false` when it can't.
    pub fn draft_forget(&mut self, seq: i32, from: i32) -> Result<bool, Error> {
        self.drafting().map_or(Ok(false), |draft| draft.seq_rm(seq, from))
    }

    /// The draft's context forgets a sequence. `false`: it held nothing of it.
    pub fn draft_clear(&mut self, seq: i32) -> Result<bool, Error> {
        let Some(raw) = self.speculator().map(|speculator| speculator.raw) else { return Ok(false) };
        let mut held = false;
        // SAFETY: the speculator and its contexts live; the shim checks the sequence.
        sys::call(|err| unsafe { sys::hearth_speculator_clear(raw.as_ptr(), seq, &raw mut held, err) })?;
        Ok(held)
    }

    /// The draft's context holds the first `n` positions of `from` for `to`, and nothing else of it. `false`: nothing at all.
    pub fn draft_share(&mut self, from: i32, to: i32, n: i32) -> Result<bool, Error> {
        let Some((raw, unified)) = self.speculator().map(|one| (one.raw, one.draft.is_unified())) else {
            return Ok(false);
        };
        let mut copied = false;
        // SAFETY: the speculator and its contexts live; the shim checks the sequences.
        sys::call(|err| unsafe {
            sys::hearth_speculator_share(raw.as_ptr(), from, to, n, unified, &raw mut copied, err)
        })?;
        Ok(copied)
    }

    fn drafting(&mut self) -> Option<&mut Context> {
        self.speculator_mut().map(|speculator| &mut *speculator.draft)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::context::{ContextParams, KvElement};
    use super::super::model::ModelParams;
    use super::*;
    use std::sync::Arc;

    pub fn model(name: &str) -> Arc<Model> {
        super::super::init().expect("llama.cpp");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("models/{name}.gguf"));
        let params =
            ModelParams { n_gpu_layers: 0, use_mmap: true, use_mlock: false, vocab_only: false, load_mtp: true };
        Arc::new(Model::load(&path, params, |_| {}).expect("a model"))
    }

    pub fn params() -> ContextParams {
        ContextParams {
            n_ctx: 512,
            n_batch: 128,
            n_ubatch: 128,
            n_seq_max: 2,
            n_outputs_max: 16,
            n_threads: 1,
            n_threads_batch: 1,
            flash_attn: None,
            type_k: KvElement::F16,
            type_v: KvElement::F16,
            kv_unified: true,
            swa_full: true,
            offload_kqv: true,
            pooling: None,
            poll: 0,
            mtp: false,
            n_rs_seq: 0,
            rounds_kv: false,
            kernels: None,
        }
    }

    /// Whose heads attend over its cells, so that the state of the last position is all they need.
    const GEMMA4: &str = "tiny/tiny-gemma4";
    /// Models, the heads that draft for them and of which kind those are.
    const HEADS: [(&str, &str, DraftKind); 9] = [
        ("tiny/tiny-glm4moe", "tiny/tiny-glm4moe", DraftKind::Mtp),
        ("tiny/tiny-qwen35-mtp", "tiny/tiny-qwen35-mtp", DraftKind::Mtp),
        (GEMMA4, "tiny/tiny-gemma4-assistant", DraftKind::Mtp),
        ("tiny/tiny-lfm2", "tiny/tiny-eagle3-lfm2", DraftKind::Eagle3),
        ("tiny/tiny-qwen35", "tiny/tiny-dflash-qwen35", DraftKind::Dflash),
        ("stories260K", "tiny/tiny-eagle3", DraftKind::Eagle3),
        ("stories260K", "tiny/tiny-dflash", DraftKind::Dflash),
        ("stories260K", "tiny/tiny-dflash2", DraftKind::Dflash),
        ("stories260K", "tiny/tiny-dspark", DraftKind::Dspark),
    ];

    /// Two sequences that heads draft for, whose recurrent states, if any, can be taken back by some rows.
    fn context_for(model: &Arc<Model>, draft: &Arc<Model>, kind: DraftKind) -> Context {
        let params = ContextParams { n_rs_seq: 12, ..params() };
        let mut context = Context::new(model, params, Arc::new(|| false)).expect("a context");
        let beside = ContextParams { mtp: kind == DraftKind::Mtp, n_rs_seq: 0, ..params };
        let beside = context.beside(draft, beside).expect("a context beside it");
        context.speculate(beside, DraftParams { kind, n_max: 3, n_min: 0, p_min: 0.0 }, 2).expect("drafts");
        context
    }

    /// Tokens at positions `from..`, which the heads take in too.
    fn step(context: &mut Context, seq: i32, from: i32, tokens: std::ops::Range<i32>) -> bool {
        context.seq_rm(seq, from).expect("a sequence");
        let mut batch = Batch::default();
        let last = tokens.end - 1;
        for (pos, token) in (from..).zip(tokens) {
            batch.push(token, pos, seq, token == last);
        }
        assert_eq!(context.decode(&mut batch).expect("a decode"), super::super::Decoded::Done);
        context.draft_process(&mut batch).expect("heads")
    }

    fn draft(context: &mut Context, pos: i32) -> Option<Vec<i32>> {
        let mut drafts = context.draft(&[DraftAsk { seq: 0, pos, last: 77, n_max: 3 }]).expect("drafts");
        drafts.pop().expect("one for each")
    }

    #[test]
    fn what_heads_read_and_llama_cpp_does_not_hand_out_is_told() {
        let of = |target: &Arc<Model>, heads: &str, kind| target.draft_mismatch(&model(heads), kind).expect("models");
        let gemma2 = model("tiny/tiny-gemma2");
        for (heads, kind, name, what) in [
            ("tiny/tiny-eagle3-lfm2", DraftKind::Eagle3, "draft-eagle3", "what goes into layer 0"),
            ("tiny/tiny-dflash-qwen35", DraftKind::Dflash, "draft-dflash", "what goes into layer 1"),
            ("tiny/tiny-qwen35-mtp", DraftKind::Mtp, "draft-mtp", "the state behind the last layer"),
        ] {
            let why = of(&gemma2, heads, kind).expect("a reason");
            assert!(why.contains(name) && why.contains(what) && why.contains("gemma2"), "{why}");
        }
        for (target, heads, kind) in HEADS {
            assert_eq!(of(&model(target), heads, kind), None, "{target} with {heads}");
        }
    }

    #[test]
    fn heads_begin_anew_wherever_they_left_off_and_keep_nothing_of_another() {
        for (name, heads, kind) in HEADS {
            let target = model(name);
            let heads = if heads == name { Arc::clone(&target) } else { model(heads) };
            let mut fresh = context_for(&target, &heads, kind);
            assert!(step(&mut fresh, 0, 0, 60..80));
            let expected = draft(&mut fresh, 20);
            assert_eq!(expected.as_ref().map(Vec::len), Some(3));

            let mut used = context_for(&target, &heads, kind);
            assert!(step(&mut used, 0, 0, 100..140));
            assert!(draft(&mut used, 40).is_some());
            // Somebody else's, after what was there is gone.
            assert!(used.draft_clear(0).expect("a sequence") && !used.draft_clear(0).expect("a sequence"));
            assert!(step(&mut used, 0, 0, 60..80));
            assert_eq!(draft(&mut used, 20), expected, "as in a new context");

            // Back into the middle, and on from there.
            assert!(step(&mut used, 0, 10, 70..75) && step(&mut used, 0, 15, 75..80));
            assert_eq!(draft(&mut used, 20).map(|draft| draft.len()), Some(3));
            // One row in the middle, behind which heads know no state: not in this step, but in the next.
            assert!(step(&mut used, 0, 17, 77..78));
            let n = draft(&mut used, 18).expect("room").len();
            assert!(n == 0 || kind != DraftKind::Mtp || name == GEMMA4, "{n}");
            assert!(step(&mut used, 0, 18, 78..79));
            assert_eq!(draft(&mut used, 19).map(|draft| draft.len()), Some(3));
            // A gap, and another position than what was told of last.
            assert!(step(&mut used, 0, 19, 79..99) && step(&mut used, 0, 39, 99..100));
            assert_eq!(draft(&mut used, 40).map(|draft| draft.len()), Some(3));
            assert_eq!(draft(&mut used, 33), Some(Vec::new()), "its state is of another position");
        }
    }

    #[test]
    fn of_a_wrong_draft_heads_keep_nothing() {
        for (name, heads, kind) in HEADS {
            let (target, heads) = (model(name), model(heads));
            let mut tried = context_for(&target, &heads, kind);
            assert!(step(&mut tried, 0, 0, 60..80));
            assert_eq!(draft(&mut tried, 20).map(|draft| draft.len()), Some(3));
            // The newest token and a draft, of which only the newest token is kept.
            assert!(step(&mut tried, 0, 20, 77..81));
            tried.draft_accept(0, 0).expect("heads");
            assert!(step(&mut tried, 0, 21, 90..91));

            let mut plain = context_for(&target, &heads, kind);
            assert!(
                step(&mut plain, 0, 0, 60..80) && step(&mut plain, 0, 20, 77..78) && step(&mut plain, 0, 21, 90..91)
            );
            assert_eq!(draft(&mut tried, 22), draft(&mut plain, 22), "{name} with {kind:?}");
        }
    }

    #[test]
    fn heads_share_what_they_hold_where_they_can() {
        for (target, heads, kind) in HEADS {
            let (target, heads) = (model(target), model(heads));
            let mut used = context_for(&target, &heads, kind);
            assert!(step(&mut used, 1, 0, 60..80));
            if kind == DraftKind::Eagle3 {
                // It lacks the state behind what it would share.
                assert!(!used.draft_share(1, 0, 10).expect("no copy"));
                continue;
            }
            used.seq_cp(1, 0, 20).expect("a copy");
            assert!(used.draft_share(1, 0, 20).expect("a copy"), "{kind:?}");
            assert!(step(&mut used, 0, 20, 80..83));
            let shared = draft(&mut used, 23);
            assert_eq!(shared.as_ref().map(Vec::len), Some(3));
            assert!(!used.draft_share(1, 0, 21).expect("no copy"), "the other holds fewer");
            // As if it had taken all of it in itself.
            let mut alone = context_for(&target, &heads, kind);
            assert!(step(&mut alone, 0, 0, 60..80) && step(&mut alone, 0, 20, 80..83));
            assert_eq!(draft(&mut alone, 23), shared, "{kind:?}");
        }
    }

    #[test]
    fn a_full_draft_says_so() {
        let model = model("stories260K");
        let mut used = context_for(&model, &model, DraftKind::Simple);
        let feed = |used: &mut Context, seq: i32, n: i32| {
            for from in (0..n).step_by(128) {
                let mut batch = Batch::default();
                (from..n.min(from + 128)).for_each(|pos| batch.push(60 + pos % 400, pos, seq, false));
                if !used.draft_process(&mut batch).expect("a model") {
                    return false;
                }
            }
            true
        };
        assert!(feed(&mut used, 1, 506) && feed(&mut used, 0, 5));
        assert_eq!(draft(&mut used, 5).map(|draft| draft.len()), Some(1), "one cell was left");
        assert!(!feed(&mut used, 0, 9), "a cell too few");
        assert_eq!(draft(&mut used, 0).map(|draft| draft.len()), Some(3), "what failed was forgotten");
        assert!(feed(&mut used, 0, 6));
        assert_eq!(draft(&mut used, 6), None);
        assert!(used.draft_clear(1).expect("a sequence"));
        assert_eq!(draft(&mut used, 6).map(|draft| draft.len()), Some(3));
    }
}
