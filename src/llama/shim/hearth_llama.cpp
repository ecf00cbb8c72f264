#include "graph.h"
#include "guard.h"

#include "common.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "log.h"

#include <dlfcn.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <cstring>
#include <memory>
#include <vector>

using namespace hearth;

namespace {

ggml_backend_reg_t cpu_reg() {
    ggml_backend_dev_t dev = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (!dev) {
        throw std::runtime_error("no CPU backend");
    }
    return ggml_backend_dev_backend_reg(dev);
}

template <class F> F cpu_proc(const char * name) {
    // By address: with dynamic backends these symbols can't be linked.
    auto * proc = reinterpret_cast<F>(ggml_backend_reg_get_proc_address(cpu_reg(), name));
    if (!proc) {
        throw std::runtime_error(std::string("the CPU backend lacks ") + name);
    }
    return proc;
}

} // namespace

struct hearth_pool {
    ggml_threadpool_t decode = nullptr;
    ggml_threadpool_t batch = nullptr; // NULL: shared with decode
    ggml_backend_t errands = nullptr;  // what computes on `decode` beside the context; NULL before the first
};

namespace {

struct errand {
    void (*body)(void *);
    void * user;
};

void run_errand(ggml_tensor *, int, int, void * user) {
    const errand * e = static_cast<const errand *>(user);
    e->body(e->user);
}

} // namespace

extern "C" {

int32_t hearth_init(ggml_log_callback log, void * user, hearth_last_words said, const char * backends, char ** err) {
    return guard(err, [&] {
        llama_log_set(log, user);
        // common/ has a logger of its own that would write answers it can't parse to stderr.
        common_log_set_verbosity_thold(-1);
        last_words = said;
        ggml_set_abort_callback(on_abort);
        if (backends) {
            // Never ggml_backend_load_all: it would also load what lies in the current directory.
            ggml_backend_load_all_from_path(backends);
        }
        cpu_reg();
        llama_backend_init();
    });
}

void hearth_trim_heap(void) {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

int32_t hearth_cpu(char ** file, char ** features, char ** err) {
    return guard(err, [&] {
        const auto list = cpu_proc<ggml_backend_get_features_t>("ggml_backend_get_features");
        std::string names;
        for (const ggml_backend_feature * f = list(cpu_reg()); f->name; ++f) {
            names += names.empty() ? "" : " ";
            names += f->name;
            if (std::strcmp(f->value, "1") != 0) {
                names += std::string("=") + f->value;
            }
        }
        Dl_info info;
        if (!dladdr(reinterpret_cast<void *>(list), &info) || !info.dli_fname) {
            throw std::runtime_error("the CPU backend is in no file");
        }
        *file = dup(info.dli_fname);
        *features = dup(names.c_str());
    });
}

int32_t hearth_library_fault(const char * path, char ** fault, char ** err) {
    return guard(err, [&] {
        // As ggml does (ggml-backend-dl.cpp), and never closed: drivers don't take well to that.
        *fault = dlopen(path, RTLD_NOW | RTLD_LOCAL) ? nullptr : dup(dlerror());
    });
}

int32_t hearth_gpu(size_t index, hearth_device * gpu, bool * found, char ** err) {
    return guard(err, [&] {
        *found = false;
        for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
            ggml_backend_dev_t device = ggml_backend_dev_get(i);
            const auto type = ggml_backend_dev_type(device);
            if ((type != GGML_BACKEND_DEVICE_TYPE_GPU && type != GGML_BACKEND_DEVICE_TYPE_IGPU) || index-- > 0) {
                continue;
            }
            size_t free_bytes = 0, total_bytes = 0;
            ggml_backend_dev_memory(device, &free_bytes, &total_bytes);
            const char * description = ggml_backend_dev_description(device);
            gpu->name = dup(ggml_backend_dev_name(device));
            gpu->description = dup(description ? description : "");
            gpu->free_bytes = free_bytes;
            gpu->total_bytes = total_bytes;
            gpu->is_integrated = type == GGML_BACKEND_DEVICE_TYPE_IGPU;
            *found = true;
            return;
        }
    });
}

void hearth_string_free(char * text) {
    std::free(text);
}

int32_t hearth_model_load(const char * path, const hearth_model_params * params, llama_model ** out, char ** err) {
    return guard(err, [&] {
        llama_model_params p = llama_model_default_params();
        p.n_gpu_layers = params->n_gpu_layers;
        p.load_mode = params->use_mmap ? (params->use_mlock ? LLAMA_LOAD_MODE_MMAP_MLOCK : LLAMA_LOAD_MODE_MMAP)
                                       : (params->use_mlock ? LLAMA_LOAD_MODE_MLOCK : LLAMA_LOAD_MODE_NONE);
        p.vocab_only = params->vocab_only;
        p.load_mtp = params->load_mtp;
        p.progress_callback = params->progress;
        p.progress_callback_user_data = params->progress_user;
        *out = llama_model_load_from_file(path, p);
        if (!*out) {
            throw std::runtime_error("llama.cpp refused the file");
        }
    });
}

int32_t hearth_model_meta(const llama_model * model, const char * key, char ** text, char ** err) {
    return guard(err, [&] {
        *text = nullptr;
        std::vector<char> buf(256);
        int32_t n = llama_model_meta_val_str(model, key, buf.data(), buf.size());
        if (n < 0) {
            return;
        }
        if (static_cast<size_t>(n) >= buf.size()) {
            buf.resize(static_cast<size_t>(n) + 1);
            llama_model_meta_val_str(model, key, buf.data(), buf.size());
        }
        *text = dup(buf.data());
    });
}

int32_t hearth_model_add_adapter(llama_model * model, const char * path, llama_adapter_lora ** out, char ** err) {
    return guard(err, [&] {
        llama_adapter_lora * adapter = llama_adapter_lora_init(model, path);
        if (!adapter) {
            throw std::runtime_error("llama.cpp refused the adapter");
        }
        if (llama_adapter_get_alora_n_invocation_tokens(adapter) > 0) {
            llama_adapter_lora_free(adapter);
            throw std::runtime_error("adapters that begin at invocation tokens (aLoRA) are not supported");
        }
        *out = adapter;
    });
}

int32_t hearth_set_adapters(llama_context * ctx, llama_adapter_lora ** adapters, float * scales, size_t n, char ** err) {
    return guard(err, [&] {
        if (llama_set_adapters_lora(ctx, adapters, n, scales) != 0) {
            throw std::runtime_error("llama.cpp refused the adapters");
        }
    });
}

int32_t hearth_context_new(llama_model * model, const hearth_context_params * params, llama_context ** out, char ** err) {
    return guard(err, [&] {
        llama_context_params p = llama_context_default_params();
        p.n_ctx = params->n_ctx;
        p.n_batch = params->n_batch;
        p.n_ubatch = params->n_ubatch;
        p.n_seq_max = params->n_seq_max;
        p.n_outputs_max = params->n_outputs_max;
        p.n_threads = params->n_threads;
        p.n_threads_batch = params->n_threads_batch;
        p.flash_attn_type = static_cast<llama_flash_attn_type>(params->flash_attn);
        p.type_k = static_cast<ggml_type>(params->type_k);
        p.type_v = static_cast<ggml_type>(params->type_v);
        p.kv_unified = params->kv_unified;
        p.swa_full = params->swa_full;
        p.offload_kqv = params->offload_kqv;
        if (params->pooling >= 0) {
            p.embeddings = true;
            p.pooling_type = static_cast<enum llama_pooling_type>(params->pooling);
        }
        p.ctx_type = params->mtp ? LLAMA_CONTEXT_TYPE_MTP : LLAMA_CONTEXT_TYPE_DEFAULT;
        p.n_rs_seq = params->n_rs_seq;
        p.ctx_other = params->other;
        if (params->rounds_kv || params->kernels) {
            p.cb_eval = params->rounds_kv ? change_and_round : change_nodes;
            p.cb_eval_user_data = const_cast<hearth_kernels *>(params->kernels);
        }
        p.abort_callback = params->abort;
        p.abort_callback_data = params->abort_user;
        p.no_perf = true;
        *out = llama_init_from_model(model, p);
        if (!*out) {
            throw std::runtime_error("llama.cpp could not make a context");
        }
    });
}

int32_t hearth_pool_attach(llama_context * ctx, int32_t n_threads, int32_t n_threads_batch, uint32_t poll,
                           hearth_pool ** out, char ** err) {
    return guard(err, [&] {
        using new_fn = ggml_threadpool_t (*)(ggml_threadpool_params *);
        const auto make = cpu_proc<new_fn>("ggml_threadpool_new");
        auto pool = std::make_unique<hearth_pool>();
        const auto start = [&](int32_t n) {
            ggml_threadpool_params p = ggml_threadpool_params_default(n);
            p.poll = poll;
            ggml_threadpool_t made = make(&p);
            if (!made) {
                throw std::runtime_error("no thread pool could be made");
            }
            return made;
        };
        pool->decode = start(n_threads);
        if (n_threads_batch != n_threads) {
            pool->batch = start(n_threads_batch);
        }
        llama_attach_threadpool(ctx, pool->decode, pool->batch);
        *out = pool.release();
    });
}

int32_t hearth_pool_share(hearth_pool * pool, llama_context * ctx, char ** err) {
    return guard(err, [&] { llama_attach_threadpool(ctx, pool->decode, pool->batch); });
}

int32_t hearth_pool_run(hearth_pool * pool, int32_t n_threads, void (*body)(void *), void * user, char ** err) {
    return guard(err, [&] {
        if (!pool->errands) {
            pool->errands = ggml_backend_dev_init(ggml_backend_reg_dev_get(cpu_reg(), 0), nullptr);
            if (!pool->errands) {
                throw std::runtime_error("the CPU backend makes no second one");
            }
            cpu_proc<void (*)(ggml_backend_t, ggml_threadpool_t)>("ggml_backend_cpu_set_threadpool")(pool->errands, pool->decode);
        }
        cpu_proc<ggml_backend_set_n_threads_t>("ggml_backend_set_n_threads")(pool->errands, n_threads);
        // A graph of one node that computes nothing: the threads wait for graphs already.
        ggml_init_params p = { 2 * ggml_tensor_overhead() + ggml_graph_overhead_custom(2, false), nullptr, /*.no_alloc =*/ true };
        std::unique_ptr<ggml_context, decltype(&ggml_free)> ctx(ggml_init(p), ggml_free);
        errand e = { body, user };
        ggml_tensor * node = ggml_custom_4d(ctx.get(), GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0, run_errand, n_threads, &e);
        ggml_cgraph * graph = ggml_new_graph_custom(ctx.get(), 2, false);
        ggml_build_forward_expand(graph, node);
        const no_throw end_instead(true);
        if (ggml_backend_graph_compute(pool->errands, graph) != GGML_STATUS_SUCCESS) {
            throw std::runtime_error("the threads did not run");
        }
    });
}

void hearth_pool_free(hearth_pool * pool) {
    guard(nullptr, [&] {
        if (pool->errands) {
            ggml_backend_free(pool->errands);
        }
        using free_fn = void (*)(ggml_threadpool_t);
        const auto release = cpu_proc<free_fn>("ggml_threadpool_free");
        if (pool->batch) {
            release(pool->batch);
        }
        release(pool->decode);
    });
    delete pool;
}

int32_t hearth_decode(llama_context * ctx, const llama_batch * batch, int32_t * code, char ** err) {
    return guard(err, [&] {
        const no_throw end_instead(llama_n_threads(ctx) > 1 || llama_n_threads_batch(ctx) > 1);
        *code = llama_decode(ctx, *batch);
        // Errors and assertions of an asynchronous backend belong to this call, not to the next one.
        llama_synchronize(ctx);
    });
}

int32_t hearth_seq_rm(llama_context * ctx, int32_t seq, int32_t p0, int32_t p1, bool * removed, char ** err) {
    return guard(err, [&] { *removed = llama_memory_seq_rm(llama_get_memory(ctx), seq, p0, p1); });
}

int32_t hearth_seq_cp(llama_context * ctx, int32_t from, int32_t to, int32_t n, bool unified, bool * copied, char ** err) {
    return guard(err, [&] {
        llama_memory_t memory = llama_get_memory(ctx);
        const llama_pos end = llama_memory_seq_pos_max(memory, from) + 1;
        *copied = false;
        if (n <= 0 || n > end) {
            return;
        }
        if (unified) {
            llama_memory_seq_cp(memory, from, to, 0, n);
            *copied = llama_memory_seq_pos_max(memory, to) + 1 == n;
        } else {
            llama_memory_seq_cp(memory, from, to, -1, -1);
            *copied = n == end || llama_memory_seq_rm(memory, to, n, -1);
        }
        if (!*copied) {
            llama_memory_seq_rm(memory, to, -1, -1);
        }
    });
}

int32_t hearth_seq_size(llama_context * ctx, int32_t seq, size_t * n, char ** err) {
    return guard(err, [&] { *n = llama_state_seq_get_size(ctx, seq); });
}

int32_t hearth_seq_save(llama_context * ctx, int32_t seq, uint8_t * out, size_t cap, size_t * n, char ** err) {
    return guard(err, [&] { *n = llama_state_seq_get_data(ctx, out, cap, seq); });
}

int32_t hearth_seq_load(llama_context * ctx, int32_t seq, const uint8_t * data, size_t n, bool * loaded, char ** err) {
    return guard(err, [&] {
        *loaded = llama_state_seq_set_data(ctx, data, n, seq) == n;
        if (!*loaded) {
            llama_memory_seq_rm(llama_get_memory(ctx), seq, -1, -1);
        }
    });
}

int32_t hearth_tokenize(const llama_vocab * vocab, const char * text, size_t len, llama_token * out, size_t cap,
                        bool add_special, bool parse_special, size_t * n, char ** err) {
    return guard(err, [&] {
        if (len > INT32_MAX || cap > INT32_MAX) {
            throw std::invalid_argument("the text is too long to tokenize");
        }
        const int32_t count = llama_tokenize(vocab, text, static_cast<int32_t>(len), out, static_cast<int32_t>(cap),
                                             add_special, parse_special);
        if (count == INT32_MIN) {
            throw std::invalid_argument("the text has too many tokens");
        }
        *n = static_cast<size_t>(count < 0 ? -count : count);
    });
}

} // extern "C"
