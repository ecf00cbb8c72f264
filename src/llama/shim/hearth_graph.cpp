// What is changed in llama.cpp's graphs before and while they are computed.
#include "graph.h"

#include "ggml-backend.h"

#include <cstring>
#include <memory>

namespace hearth {

namespace {

// Source: ggml_custom_op_t, ggml.h.
void run_product(ggml_tensor * t, int, int n_threads, void * user) {
    const hearth_products * products = static_cast<const hearth_products *>(user);
    const ggml_tensor * weights = t->src[0];
    const ggml_tensor * rows = t->src[1];
    const hearth_product p = {
        /*.weights        =*/ static_cast<const float *>(weights->data),
        /*.rows           =*/ static_cast<const float *>(rows->data),
        /*.out            =*/ static_cast<float *>(t->data),
        /*.n_in           =*/ static_cast<size_t>(weights->ne[0]),
        /*.n_out          =*/ static_cast<size_t>(t->ne[0]),
        /*.n_rows         =*/ static_cast<size_t>(t->ne[1]),
        /*.weights_stride =*/ weights->nb[1] / weights->nb[0],
        /*.rows_stride    =*/ rows->nb[1] / rows->nb[0],
        /*.out_stride     =*/ t->nb[1] / t->nb[0],
    };
    products->multiply(&p, n_threads, products->user);
}

// As F16 holds it (IEEE 754, to nearest, ties to even). Not ggml's conversion there and back: that takes elements one by one.
// Without branches, so that a compiler makes vectors of it.
float as_f16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    const uint32_t size = bits & 0x7FFFFFFF;
    const uint32_t normal = (bits + 0xFFF + (bits >> 13 & 1)) & ~uint32_t(0x1FFF);
    // Below 2^-14 they are multiples of 2^-24, which is what a float between 1/2 and 1 counts in.
    const float shifted = (x + 0.75f) - 0.75f;
    uint32_t subnormal;
    memcpy(&subnormal, &shifted, sizeof(subnormal));
    uint32_t out = size < 0x38800000 ? subnormal : normal;
    out = size < 0x477FF000 ? out : (bits & 0x80000000) | 0x7F800000; // from 65520 on: infinite
    out = size > 0x7F800000 ? bits : out;                             // not a number
    memcpy(&x, &out, sizeof(x));
    return x;
}

// Rounds what a tensor of F32 shows, in place.
void round_to_f16(const ggml_tensor * t) {
    for (int64_t i3 = 0; i3 < t->ne[3]; i3++) {
        for (int64_t i2 = 0; i2 < t->ne[2]; i2++) {
            for (int64_t i1 = 0; i1 < t->ne[1]; i1++) {
                auto * row = reinterpret_cast<float *>(static_cast<char *>(t->data) + i1*t->nb[1] + i2*t->nb[2] + i3*t->nb[3]);
                for (int64_t i0 = 0; i0 < t->ne[0]; i0++) {
                    row[i0] = as_f16(row[i0]);
                }
            }
        }
    }
}

// The keys of the layer that is being computed.
thread_local const ggml_tensor * keys = nullptr;

bool is_matrix_on_host(const ggml_tensor * t) {
    const ggml_backend_buffer_t buffer = t->view_src ? t->view_src->buffer : t->buffer;
    return t->type == GGML_TYPE_F32 && t->ne[2] == 1 && t->ne[3] == 1 && t->nb[0] == sizeof(float) &&
           t->nb[1] % sizeof(float) == 0 && buffer && ggml_backend_buffer_is_host(buffer);
}

// A node that multiplies by a matrix of F32 does it by `products` from now on. Nothing else of the node changes: a graph that llama.cpp
// uses again stays as it is.
void change_product(ggml_tensor * t, const hearth_products * products) {
    if (t->op != GGML_OP_MUL_MAT || !is_matrix_on_host(t->src[0]) || !is_matrix_on_host(t->src[1]) || !is_matrix_on_host(t)) {
        return;
    }
    ggml_init_params p = { 2 * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true };
    std::unique_ptr<ggml_context, decltype(&ggml_free)> ctx(ggml_init(p), ggml_free);
    // The layout of an operation's parameters is ggml's own affair: made by it, and copied.
    const ggml_tensor * made = ggml_custom_4d(ctx.get(), GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0, run_product, GGML_N_TASKS_MAX,
                                              const_cast<hearth_products *>(products));
    t->op = made->op;
    memcpy(t->op_params, made->op_params, sizeof(t->op_params));
}

// A ggml_backend_sched_eval_callback: stops once a layer, where attention has its keys and is about to read its values
// (llm_graph_context::build_attn expands both, and build_attn_mha reads values through a view that is permuted).
bool round_keys_and_values(ggml_tensor * t, bool ask) {
    const auto rounds = [](const ggml_tensor * t) {
        const ggml_backend_buffer_t buffer = t->view_src ? t->view_src->buffer : t->buffer;
        return t->type == GGML_TYPE_F32 && t->nb[0] == sizeof(float) && ggml_backend_buffer_is_host(buffer);
    };
    const bool reads_values = t->op == GGML_OP_PERMUTE && strncmp(t->name, "Vcur", 4) == 0;
    if (ask) {
        if (t->op != GGML_OP_PERMUTE && strncmp(t->name, "Kcur", 4) == 0) {
            keys = t;
        }
        return reads_values;
    }
    if (reads_values && keys && rounds(keys) && rounds(t)) {
        round_to_f16(keys);
        round_to_f16(t);
    }
    keys = nullptr; // never those of a layer before, or of a graph that is gone
    return true;
}

} // namespace

bool change_products(ggml_tensor * t, bool ask, void * products) {
    if (ask && products) {
        change_product(t, static_cast<const hearth_products *>(products));
    }
    return !ask;
}

bool change_and_round(ggml_tensor * t, bool ask, void * products) {
    change_products(t, ask, products);
    return round_keys_and_values(t, ask);
}

} // namespace hearth
