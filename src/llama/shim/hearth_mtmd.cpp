#include "guard.h"

#include "mtmd.h"

#include <memory>
#include <string>

using namespace hearth;

struct hearth_projector {
    mtmd_context * ctx = nullptr;
    int32_t n_threads = 1;
    size_t n_embd = 0;
    ~hearth_projector() { mtmd_free(ctx); }
};

namespace {

struct bitmap_deleter {
    void operator()(mtmd_bitmap * bitmap) const { mtmd_bitmap_free(bitmap); }
};

// The bitmap as begin tokens, chunks and end tokens, in the model's own order.
void split(const hearth_projector * p, mtmd_bitmap * raw, mtmd_input_chunks ** out) {
    const std::unique_ptr<mtmd_bitmap, bitmap_deleter> bitmap(raw);
    if (!bitmap) {
        throw std::bad_alloc();
    }
    mtmd_input_part part{};
    part.bitmap = bitmap.get();
    const mtmd_input_part * parts[] = { &part };
    mtmd_input_chunks * chunks = mtmd_input_chunks_init();
    // Not through RAII: it is handed out on success only.
    const int32_t status = mtmd_tokenize_from_parts(p->ctx, chunks, parts, 1, false);
    if (status != 0) {
        mtmd_input_chunks_free(chunks);
        throw std::invalid_argument("the projector can't take it");
    }
    *out = chunks;
}

} // namespace

extern "C" {

int32_t hearth_projector_new(const char * path, const llama_model * model, const hearth_projector_params * params,
                             hearth_projector ** out, char ** err) {
    return guard(err, [&] {
        // mtmd has a logger of its own.
        ggml_log_callback log = nullptr;
        void * user = nullptr;
        llama_log_get(&log, &user);
        mtmd_log_set(log, user);
        mtmd_context_params p = mtmd_context_params_default();
        p.use_gpu = params->use_gpu;
        p.print_timings = false;
        p.n_threads = params->n_threads;
        p.warmup = params->warmup;
        auto projector = std::make_unique<hearth_projector>();
        projector->ctx = mtmd_init_from_file(path, model, p);
        if (!projector->ctx) {
            throw std::runtime_error("llama.cpp refused the projector");
        }
        projector->n_threads = params->n_threads;
        projector->n_embd = static_cast<size_t>(llama_model_n_embd_inp(model));
        *out = projector.release();
    });
}

void hearth_projector_free(hearth_projector * projector) {
    delete projector;
}

void hearth_projector_info(const hearth_projector * p, hearth_projector_facts * facts) {
    facts->vision = mtmd_support_vision(p->ctx);
    facts->audio = mtmd_support_audio(p->ctx);
    facts->mrope = mtmd_decode_use_mrope(p->ctx);
    facts->sample_rate = mtmd_get_audio_sample_rate(p->ctx);
    facts->n_embd = p->n_embd;
}

int32_t hearth_projector_split_image(const hearth_projector * p, uint32_t nx, uint32_t ny, const uint8_t * rgb,
                                     struct mtmd_input_chunks ** out, char ** err) {
    return guard(err, [&] { split(p, mtmd_bitmap_init(nx, ny, rgb), out); });
}

int32_t hearth_projector_split_audio(const hearth_projector * p, const float * samples, size_t n,
                                     struct mtmd_input_chunks ** out, char ** err) {
    return guard(err, [&] { split(p, mtmd_bitmap_init_from_audio(n, samples), out); });
}

bool hearth_chunk_is_non_causal(const hearth_projector * p, const struct mtmd_input_chunk * chunk) {
    return mtmd_decode_use_non_causal(p->ctx, chunk);
}

int32_t hearth_projector_encode(hearth_projector * p, const struct mtmd_input_chunk * chunk, float * out, size_t n,
                                char ** err) {
    return guard(err, [&] {
        if (n != p->n_embd * mtmd_input_chunk_get_n_tokens(chunk)) {
            throw std::invalid_argument("the output has not the chunk's size");
        }
        const no_throw end_instead(p->n_threads > 1);
        if (mtmd_encode_chunk(p->ctx, chunk) != 0) {
            throw std::runtime_error("the projector failed");
        }
        std::memcpy(out, mtmd_get_output_embd(p->ctx), n * sizeof(float));
    });
}

} // extern "C"
