//! Plans against what llama.cpp logged for the same files and settings.

use super::*;
use std::path::Path;

const MIB: u64 = 1 << 20;

fn plan(name: &str, ask: Ask) -> (ModelFile, Shape, Plan) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name);
    let file = ModelFile::open(&path).expect("a model of the tree");
    let shape = Shape::read(&file).expect("a model of the tree");
    let plan = Plan::new(&file, &shape, ask);
    (file, shape, plan)
}

fn kv(name: &str, ask: Ask) -> u64 {
    plan(name, ask).2.kv
}

#[test]
fn kv_caches_are_as_large_as_llama_cpp_makes_them() {
    let ask = Ask { n_ctx: 2048, ..Ask::default() };
    assert_eq!(kv("hearth-demo.gguf", ask), 6 * MIB);
    assert_eq!(kv("hearth-demo.gguf", Ask { unified: false, ..ask }), 6 * MIB);
    assert_eq!(kv("hearth-demo.gguf", Ask { n_workers: 3, ..ask }), 18 * MIB);
    assert_eq!(kv("tiny/tiny-qwen2moe.gguf", ask), MIB / 2);
    let q8_0 = CacheType { name: "q8_0", block_elements: 32, block_bytes: 34 };
    assert_eq!(kv("hearth-demo.gguf", Ask { cache_k: q8_0, cache_v: q8_0, ..ask }), 6 * MIB * 34 / 64);
}

#[test]
fn windowed_layers_keep_their_window() {
    let ask = Ask { n_ctx: 2048, n_ubatch: 128, ..Ask::default() };
    assert_eq!(kv("tiny/tiny-gemma2.gguf", ask), MIB / 2 + MIB / 8);
    assert_eq!(kv("tiny/tiny-gemma2.gguf", Ask { unified: false, ..ask }), MIB / 2 + MIB / 4);
    assert_eq!(kv("tiny/tiny-gemma2.gguf", Ask { swa_full: true, ..ask }), MIB);
    assert_eq!(kv("tiny/tiny-gemma4.gguf", ask), MIB / 2 + MIB / 8);
    assert_eq!(kv("tiny/tiny-gemma4-assistant.gguf", ask), 0, "its heads attend over the cells of the other");
}

#[test]
fn recurrent_layers_keep_a_state_for_each_slot() {
    let ask = Ask { n_ctx: 2048, unified: false, ..Ask::default() };
    let (_, _, mamba) = plan("tiny/tiny-mamba.gguf", ask);
    // R (3 x 128) and S (16 x 128) in F32, 2 layers, 4 slots.
    assert_eq!((mamba.kv, mamba.state), (0, (3 * 128 + 16 * 128) * 4 * 2 * 4));
    let (_, shape, jamba) = plan("tiny/tiny-jamba.gguf", ask);
    assert_eq!((jamba.kv, jamba.state), (MIB / 4, mamba.state));
    assert!(shape.is_recurrent());
}

#[test]
fn encoders_keep_nothing() {
    let (_, shape, bert) = plan("tiny/tiny-bert.gguf", Ask::default());
    assert!(shape.encoder);
    assert_eq!((bert.kv, bert.state), (0, 0));
}

/// Compute buffers in MiB from llama.cpp's log (outputs limited to 4 rows); the estimate may be above, not below.
#[test]
fn compute_estimates_are_near_what_llama_cpp_takes() {
    let base = Ask { n_ctx: 2048, n_outputs: 4, ..Ask::default() };
    for (name, ask, logged_kib) in [
        ("hearth-demo.gguf", base, 6666),
        ("hearth-demo.gguf", Ask { flash_attn: false, ..base }, 23_562),
        ("tiny/tiny-gemma2.gguf", Ask { n_ubatch: 128, ..base }, 932),
        ("tiny/tiny-qwen2moe.gguf", base, 3338),
        ("tiny/tiny-mamba.gguf", base, 1710),
        ("tiny/tiny-jamba.gguf", Ask { unified: false, ..base }, 2263),
    ] {
        let estimate = plan(name, ask).2.compute / 1024;
        assert!(estimate >= logged_kib, "{name}: {estimate} KiB estimated, {logged_kib} KiB taken");
        assert!(estimate < logged_kib * 3 / 2, "{name}: {estimate} KiB estimated, {logged_kib} KiB taken");
    }
}

#[test]
fn what_cannot_fit_is_refused_with_what_would() {
    let (file, shape, plan) = plan("hearth-demo.gguf", Ask { n_ctx: 1 << 20, ..Ask::default() });
    let memory = Memory { available: 600 * MIB, limited_by: "the machine" };
    let Err(FitError::TooLarge(refusal)) = plan.check(&file, &shape, memory) else { panic!("3 GiB fit in 600 MiB") };
    let n_ctx = refusal.n_ctx_fits.expect("some context fits");
    let again = |n_ctx| Plan::new(&file, &shape, Ask { n_ctx, ..plan.ask });
    assert!(again(n_ctx).check(&file, &shape, memory).is_ok());
    assert!(again(n_ctx + CTX_STEP).check(&file, &shape, memory).is_err());
    let text = refusal.to_string();
    assert!(text.contains("600.0 MiB available") && text.contains(&format!("--ctx-size {n_ctx} would fit")), "{text}");
}

#[test]
fn weights_that_do_not_fit_are_said_to_be_the_reason() {
    let (file, shape, plan) = plan("hearth-demo.gguf", Ask::default());
    let memory = Memory { available: 2 * MIB, limited_by: "the cgroup" };
    let text = plan.check(&file, &shape, memory).expect_err("nothing fits in 2 MiB").to_string();
    assert!(text.contains("the cgroup has 2.0 MiB") && text.contains("the weights alone"), "{text}");
}

#[test]
fn absurd_settings_saturate() {
    let (_, _, plan) = plan(
        "hearth-demo.gguf",
        Ask {
            n_ctx: u64::from(u32::MAX),
            n_workers: u64::from(u32::MAX),
            n_ubatch: u64::from(u32::MAX),
            ..Ask::default()
        },
    );
    assert!(plan.total() > 1 << 60);
}

#[test]
fn sizes_are_written_for_people() {
    assert_eq!(bytes(512), "512 B");
    assert_eq!(bytes(1536), "1.5 KiB");
    assert_eq!(bytes(12 << 30), "12.0 GiB");
    assert_eq!(bytes(u64::MAX), "16383.9 PiB");
}
