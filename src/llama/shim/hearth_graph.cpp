// What is changed in llama.cpp's graphs before and while they are computed.
#include "graph.h"

#include "ggml-backend.h"

#include <cstdint>
#include <cstring>
#include <memory>

namespace hearth {

namespace {

// Rows of a stream from which ggml's attention works in tiles with sums in F32, too. Source: GGML_FA_TILE_Q, ggml-cpu/common.h.
constexpr int64_t ATTENTION_ROWS_MIN = 64;
// Where the scale is kept of an attention that was made a custom operation: its last parameter.
constexpr size_t ATTENTION_SCALE = GGML_MAX_OP_PARAMS / sizeof(int32_t) - 1;

// Source: ggml_custom_op_t, ggml.h.
void run_product(ggml_tensor * t, int, int n_threads, void * user) {
    const hearth_kernels * kernels = static_cast<const hearth_kernels *>(user);
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
    kernels->multiply(&p, n_threads, kernels->user);
}

float parameter(const ggml_tensor * t, size_t i) {
    float x;
    memcpy(&x, t->op_params + i, sizeof(x));
    return x;
}

// Source: ggml_custom_op_t, ggml.h. The scale is where ATTENTION_SCALE says: this operation's own parameters lie before it.
void run_attention(ggml_tensor * t, int, int n_threads, void * user) {
    const hearth_kernels * kernels = static_cast<const hearth_kernels *>(user);
    const ggml_tensor * q = t->src[0];
    const ggml_tensor * k = t->src[1];
    const ggml_tensor * v = t->src[2];
    const ggml_tensor * mask = t->src[3];
    const hearth_attention a = {
        /*.queries        =*/ static_cast<const float *>(q->data),
        /*.queries_row    =*/ q->nb[1] / q->nb[0],
        /*.queries_head   =*/ q->nb[2] / q->nb[0],
        /*.queries_stream =*/ q->nb[3] / q->nb[0],
        /*.keys           =*/ static_cast<const uint16_t *>(k->data),
        /*.keys_row       =*/ k->nb[1] / k->nb[0],
        /*.keys_head      =*/ k->nb[2] / k->nb[0],
        /*.keys_stream    =*/ k->nb[3] / k->nb[0],
        /*.values         =*/ static_cast<const uint16_t *>(v->data),
        /*.values_row     =*/ v->nb[1] / v->nb[0],
        /*.values_head    =*/ v->nb[2] / v->nb[0],
        /*.values_stream  =*/ v->nb[3] / v->nb[0],
        /*.mask           =*/ mask ? static_cast<const uint16_t *>(mask->data) : nullptr,
        /*.mask_row       =*/ mask ? mask->nb[1] / mask->nb[0] : 0,
        /*.mask_stream    =*/ mask && mask->ne[3] > 1 ? mask->nb[3] / mask->nb[0] : 0,
        /*.out            =*/ static_cast<float *>(t->data),
        /*.scale          =*/ parameter(t, ATTENTION_SCALE),
        /*.n_in           =*/ static_cast<size_t>(q->ne[0]),
        /*.n_out          =*/ static_cast<size_t>(v->ne[0]),
        /*.n_rows         =*/ static_cast<size_t>(q->ne[1]),
        /*.n_cells        =*/ static_cast<size_t>(k->ne[1]),
        /*.n_heads        =*/ static_cast<size_t>(q->ne[2]),
        /*.n_kv_heads     =*/ static_cast<size_t>(k->ne[2]),
        /*.n_streams      =*/ static_cast<size_t>(q->ne[3]),
    };
    kernels->attend(&a, n_threads, kernels->user);
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

// All of a kernel's reads and writes are of whole numbers, in memory that the CPU has.
bool is_on_host(const ggml_tensor * t, ggml_type type) {
    const ggml_backend_buffer_t buffer = t->view_src ? t->view_src->buffer : t->buffer;
    return t->type == type && t->nb[0] == ggml_type_size(type) && buffer && ggml_backend_buffer_is_host(buffer) &&
           reinterpret_cast<uintptr_t>(t->data) % ggml_type_size(type) == 0;
}

bool is_matrix(const ggml_tensor * t) {
    return is_on_host(t, GGML_TYPE_F32) && t->ne[2] == 1 && t->ne[3] == 1 && t->nb[1] % t->nb[0] == 0;
}

// A product that is read as it stands: with a hint its weights may stand for something that is computed in another way.
// Source: ggml_mul_mat_set_hint, ggml.c.
bool is_plain_product(const ggml_tensor * t) {
    return t->op_params[1] == GGML_HINT_NONE && is_matrix(t->src[0]) && is_matrix(t->src[1]) && is_matrix(t) &&
           t->src[0]->ne[0] == t->src[1]->ne[0] && t->ne[0] == t->src[0]->ne[1] && t->ne[1] == t->src[1]->ne[1];
}

// Attention without a bias of positions, a cap of scores, or sinks. Source: ggml_flash_attn_ext, ggml.c.
bool is_plain_attention(const ggml_tensor * t) {
    const ggml_tensor * q = t->src[0];
    const ggml_tensor * k = t->src[1];
    const ggml_tensor * v = t->src[2];
    const ggml_tensor * mask = t->src[3];
    const auto is_plain = [](const ggml_tensor * t, ggml_type type) {
        return is_on_host(t, type) && t->nb[1] % t->nb[0] == 0 && t->nb[2] % t->nb[0] == 0 && t->nb[3] % t->nb[0] == 0;
    };
    return parameter(t, 1) == 0.0f && parameter(t, 2) == 0.0f && !t->src[4] && is_plain(q, GGML_TYPE_F32) &&
           is_plain(k, GGML_TYPE_F16) && is_plain(v, GGML_TYPE_F16) && is_on_host(t, GGML_TYPE_F32) && ggml_is_contiguous(t) &&
           (!mask || (is_plain(mask, GGML_TYPE_F16) && mask->ne[0] >= k->ne[1] && mask->ne[1] >= q->ne[1] && mask->ne[2] == 1 &&
                      (mask->ne[3] == 1 || mask->ne[3] == q->ne[3]))) &&
           k->ne[0] == q->ne[0] && v->ne[1] >= k->ne[1] && k->ne[3] == q->ne[3] && v->ne[3] == q->ne[3] && v->ne[2] == k->ne[2] && q->ne[2] % k->ne[2] == 0;
}

// Whether a backend such as BLAS takes products from the CPU's: which nodes it has was settled before they are handed over here, and
// of a custom operation it would abort. Source: ggml_backend_blas_graph_compute, ggml-blas.cpp. Backends are loaded once, before this.
bool has_accelerator() {
    static const bool found = [] {
        for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
            if (ggml_backend_dev_type(ggml_backend_dev_get(i)) == GGML_BACKEND_DEVICE_TYPE_ACCEL) {
                return true;
            }
        }
        return false;
    }();
    return found;
}

// Nothing else of the node changes: a graph that llama.cpp uses again stays as it is.
void make_custom(ggml_tensor * t, ggml_custom_op_t run, const hearth_kernels * kernels) {
    ggml_init_params p = { 2 * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true };
    std::unique_ptr<ggml_context, decltype(&ggml_free)> ctx(ggml_init(p), ggml_free);
    // The layout of an operation's parameters is ggml's own affair: made by it, and copied.
    const ggml_tensor * made = ggml_custom_4d(ctx.get(), GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0, run, GGML_N_TASKS_MAX,
                                              const_cast<hearth_kernels *>(kernels));
    const float scale = parameter(t, 0);
    t->op = made->op;
    memcpy(t->op_params, made->op_params, sizeof(t->op_params));
    memcpy(t->op_params + ATTENTION_SCALE, &scale, sizeof(scale));
}

void change_node(ggml_tensor * t, const hearth_kernels * kernels) {
    if (kernels->multiply && t->op == GGML_OP_MUL_MAT && !has_accelerator() && is_plain_product(t)) {
        make_custom(t, run_product, kernels);
    } else if (kernels->attend && t->op == GGML_OP_FLASH_ATTN_EXT && t->src[0]->ne[1] >= ATTENTION_ROWS_MIN &&
               is_plain_attention(t)) {
        make_custom(t, run_attention, kernels);
    }
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

bool change_nodes(ggml_tensor * t, bool ask, void * kernels) {
    if (ask && kernels) {
        change_node(t, static_cast<const hearth_kernels *>(kernels));
    }
    return !ask;
}

bool change_and_round(ggml_tensor * t, bool ask, void * kernels) {
    change_nodes(t, ask, kernels);
    return round_keys_and_values(t, ask);
}

} // namespace hearth
