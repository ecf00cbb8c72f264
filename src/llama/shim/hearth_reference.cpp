// llama.cpp's own sampler. Nothing but tests asks for it, so that it is in no other binary.
#include "guard.h"
#include "sampling_params.h"

#include "sampling.h"

#include <memory>

using namespace hearth;

struct hearth_reference {
    common_params_sampling params;
    common_sampler_ptr ptr;
};

extern "C" {

int32_t hearth_reference_new(const llama_model * model, const hearth_sampler_params * params, hearth_reference ** out,
                             char ** err) {
    return guard(err, [&] {
        auto r = std::make_unique<hearth_reference>();
        r->params = sampling_params(params, llama_model_get_vocab(model));
        r->ptr.reset(common_sampler_init(model, r->params));
        *out = r.release();
    });
}

void hearth_reference_free(hearth_reference * reference) {
    delete reference;
}

int32_t hearth_reference_accept(hearth_reference * reference, const llama_token * tokens, size_t n, char ** err) {
    return guard(err, [&] {
        for (size_t i = 0; i < n; ++i) {
            common_sampler_accept(reference->ptr.get(), tokens[i], false);
        }
    });
}

int32_t hearth_reference_sample(hearth_reference * reference, llama_context * ctx, int32_t row, llama_token * token,
                                char ** err) {
    return guard(err, [&] {
        *token = common_sampler_sample(reference->ptr.get(), ctx, row);
        common_sampler_accept(reference->ptr.get(), *token, true);
    });
}

} // extern "C"
