#include "hearth_llama.h"

#include "chat-auto-parser.h"
#include "chat.h"
#include "common.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "json.h"
#include "log.h"
#include "sampling.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using json = common_json;

// Thrown by the abort callback, so that an assertion on the calling thread becomes an error.
struct assertion : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Depth of guarded calls on this thread: only below one of them may the abort callback throw.
thread_local int guard_depth = 0;

void on_abort(const char * message) {
    if (guard_depth > 0) {
        throw assertion(message ? message : "GGML_ABORT");
    }
    // Returning lets ggml abort the process, which is right: nobody could catch.
}

char * dup(const std::string & text) {
    char * copy = static_cast<char *>(std::malloc(text.size() + 1));
    if (!copy) {
        throw std::bad_alloc();
    }
    std::memcpy(copy, text.c_str(), text.size() + 1);
    return copy;
}

void put_error(char ** err, const char * what) noexcept {
    if (!err) {
        return;
    }
    const size_t n = std::strlen(what);
    *err = static_cast<char *>(std::malloc(n + 1));
    if (*err) {
        std::memcpy(*err, what, n + 1);
    }
}

struct depth {
    depth() { ++guard_depth; }
    ~depth() { --guard_depth; }
};

template <class F> int32_t guard(char ** err, F && body) noexcept {
    if (err) {
        *err = nullptr;
    }
    const depth d;
    try {
        body();
        return HEARTH_OK;
    } catch (const assertion & e) {
        put_error(err, e.what());
        return HEARTH_ASSERT;
    } catch (const std::invalid_argument & e) {
        put_error(err, e.what());
        return HEARTH_INVALID;
    } catch (const common_json_error & e) {
        put_error(err, e.what());
        return HEARTH_INVALID;
    } catch (const std::exception & e) {
        put_error(err, e.what());
        return HEARTH_EXCEPTION;
    } catch (...) {
        put_error(err, "an unknown C++ exception");
        return HEARTH_EXCEPTION;
    }
}

template <class F> F cpu_proc(const char * name) {
    ggml_backend_dev_t dev = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (!dev) {
        throw std::runtime_error("no CPU backend");
    }
    // By address: with dynamic backends these symbols can't be linked.
    auto * proc = reinterpret_cast<F>(ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), name));
    if (!proc) {
        throw std::runtime_error(std::string("the CPU backend lacks ") + name);
    }
    return proc;
}

std::string token_text(const llama_vocab * vocab, llama_token token) {
    return token == LLAMA_TOKEN_NULL ? "" : common_token_to_piece(vocab, token, true);
}

} // namespace

// What a template answers besides the prompt: the same for all chats with the same options.
struct chat_plan {
    std::vector<std::string> stops;
    std::vector<std::string> preserved;
    std::string thinking_start;
    std::vector<std::string> thinking_ends;
    bool thinking_opened = false;
    std::string generation_prompt;
    // Rendering directly gave the same prompt as common/chat did, so the analysis needn't run again.
    bool direct = false;
};

struct hearth_templates {
    common_chat_templates_ptr ptr;
    // The same template, for rendering without analysing it anew.
    std::unique_ptr<common_chat_template> tmpl;
    std::mutex mutex;
    // Plans by the options that make them; emptied when PLANS_MAX are in.
    std::map<std::string, chat_plan> plans;
    // The format is "thinking between tags, then text" or plain text: no parser is needed to read an answer without tools.
    bool is_simple = false;
    bool supports_thinking = false;
    bool add_bos = false;
    bool add_eos = false;
};

struct hearth_parser {
    common_chat_parser_params params;
};

struct hearth_sampler {
    common_params_sampling params;
    common_sampler_ptr ptr;
};

struct hearth_pool {
    ggml_threadpool_t decode = nullptr;
    ggml_threadpool_t batch = nullptr; // NULL: shared with decode
};

namespace {

constexpr size_t PLANS_MAX = 64;

common_chat_templates_inputs inputs_of(const hearth_templates * t, const json & b) {
    common_chat_templates_inputs in;
    in.messages = common_chat_msgs_parse_oaicompat(b.at("messages"));
    in.add_generation_prompt = b.at("add_generation_prompt").get<bool>();
    if (b.at("continue_final_message").get<bool>()) {
        in.continue_final_message = COMMON_CHAT_CONTINUATION_CONTENT;
    }
    in.reasoning_format = b.at("reasoning").get<bool>() ? COMMON_REASONING_FORMAT_AUTO : COMMON_REASONING_FORMAT_NONE;
    in.enable_thinking = b.at("enable_thinking").get<bool>();
    in.add_bos = t->add_bos;
    in.add_eos = t->add_eos;
    for (auto e : b.at("kwargs").items()) {
        in.chat_template_kwargs[e.key()] = e.value().get<std::string>();
    }
    return in;
}

std::unique_ptr<hearth_parser> parser_of(const common_chat_params & p, const common_chat_templates_inputs & in) {
    auto parser = std::make_unique<hearth_parser>();
    parser->params = common_chat_parser_params(p);
    parser->params.reasoning_format = in.reasoning_format;
    parser->params.parse_tool_calls = false;
    parser->params.is_continuation = in.continue_final_message != COMMON_CHAT_CONTINUATION_NONE;
    if (!p.parser.empty()) {
        parser->params.parser.load(p.parser);
    }
    return parser;
}

// Whether the prompt ends inside the thinking tags.
bool thinking_opened(const common_chat_params & p) {
    if (p.thinking_start_tag.empty()) {
        return false;
    }
    const size_t start = p.generation_prompt.rfind(p.thinking_start_tag);
    if (start == std::string::npos) {
        return false;
    }
    for (const auto & end : p.thinking_end_tags) {
        const size_t at = end.empty() ? std::string::npos : p.generation_prompt.rfind(end);
        if (at != std::string::npos && at > start) {
            return false;
        }
    }
    return true;
}

chat_plan plan_of(const common_chat_params & p) {
    return { p.additional_stops, p.preserved_tokens, p.thinking_start_tag, p.thinking_end_tags, thinking_opened(p),
             p.generation_prompt, false };
}

// Whether none of common/chat's repairs of messages (chat.cpp, "workaround") would touch these.
bool needs_no_repair(const hearth_templates * t, const common_chat_templates_inputs & in) {
    if (!t->tmpl || in.continue_final_message != COMMON_CHAT_CONTINUATION_NONE) {
        return false;
    }
    const chat_template_caps caps = t->tmpl->original_caps();
    if (!caps.supports_string_content || !caps.supports_system_role) {
        return false;
    }
    for (const auto & m : in.messages) {
        if (!m.tool_calls.empty() || !m.content_parts.empty() || !m.tool_call_id.empty()) {
            return false;
        }
    }
    return true;
}

std::string render_directly(const hearth_templates * t, const common_chat_templates_inputs & in) {
    autoparser::generation_params p;
    p.messages = json::array();
    for (const auto & m : in.messages) {
        p.messages.push_back(m.to_json_oaicompat(false));
    }
    p.add_generation_prompt = in.add_generation_prompt;
    p.enable_thinking = in.enable_thinking;
    p.add_bos = in.add_bos;
    p.add_eos = in.add_eos;
    // The same two variables as common_chat_extra_context.
    const std::time_t now = std::time(nullptr);
    std::tm local{};
    localtime_r(&now, &local);
    char text[64];
    p.extra_context = json::object();
    std::strftime(text, sizeof text, "%b %d %Y", &local);
    p.extra_context["datetime"] = std::string(text);
    std::strftime(text, sizeof text, "%d %b %Y", &local);
    p.extra_context["date_string"] = std::string(text);
    for (const auto & kv : in.chat_template_kwargs) {
        p.extra_context[kv.first] = json::parse(kv.second);
    }
    return common_chat_template_direct_apply(*t->tmpl, p);
}

std::string plan_key(const common_chat_templates_inputs & in) {
    json key = json::array();
    key.push_back(in.add_generation_prompt);
    key.push_back(in.enable_thinking);
    key.push_back(static_cast<int>(in.reasoning_format));
    for (const auto & kv : in.chat_template_kwargs) {
        key.push_back(kv.first);
        key.push_back(kv.second);
    }
    return key.dump_safe();
}

// The prompt and its plan. common/chat analyses the template again for every chat (milliseconds), although only the
// prompt depends on the messages: where rendering directly is known to give the same prompt, that is all that is done.
chat_plan render_simple(hearth_templates * t, const common_chat_templates_inputs & in, std::string & prompt) {
    const bool plain = needs_no_repair(t, in);
    const std::string key = plan_key(in);
    if (plain) {
        chat_plan known;
        {
            const std::lock_guard<std::mutex> lock(t->mutex);
            const auto found = t->plans.find(key);
            if (found != t->plans.end()) {
                known = found->second;
            }
        }
        if (known.direct) {
            prompt = render_directly(t, in);
            const std::string & tail = known.generation_prompt;
            if (!in.add_generation_prompt ||
                (prompt.size() >= tail.size() && prompt.compare(prompt.size() - tail.size(), tail.size(), tail) == 0)) {
                return known;
            }
        }
    }
    const common_chat_params p = common_chat_templates_apply(t->ptr.get(), in);
    prompt = p.prompt;
    chat_plan plan = plan_of(p);
    if (plain) {
        plan.direct = render_directly(t, in) == p.prompt;
        const std::lock_guard<std::mutex> lock(t->mutex);
        if (t->plans.size() >= PLANS_MAX) {
            t->plans.clear();
        }
        t->plans[key] = plan;
    }
    return plan;
}

// Asks the template's own parser to read a plain answer: when it comes back as it is, tags are all there is to the format.
bool reads_plainly(const hearth_templates * t) {
    common_chat_templates_inputs in;
    common_chat_msg msg;
    msg.role = "user";
    msg.content = "hi";
    in.messages = { msg };
    in.reasoning_format = COMMON_REASONING_FORMAT_AUTO;
    in.add_bos = t->add_bos;
    in.add_eos = t->add_eos;
    try {
        const common_chat_params p = common_chat_templates_apply(t->ptr.get(), in);
        std::string probe = "probe\ntext";
        if (thinking_opened(p)) {
            if (p.thinking_end_tags.empty()) {
                return false;
            }
            probe = "thought" + p.thinking_end_tags[0] + probe;
        }
        const auto parser = parser_of(p, in);
        const common_chat_msg read = common_chat_parse(probe, false, parser->params);
        return read.content == "probe\ntext";
    } catch (const std::exception &) {
        return false;
    }
}

} // namespace

extern "C" {

int32_t hearth_init(ggml_log_callback log, void * user, char ** err) {
    return guard(err, [&] {
        llama_log_set(log, user);
        // common/ has a logger of its own that would write answers it can't parse to stderr.
        common_log_set_verbosity_thold(-1);
        ggml_set_abort_callback(on_abort);
        ggml_backend_load_all(); // needed with dynamic backends, harmless without
        llama_backend_init();
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

void hearth_pool_free(hearth_pool * pool) {
    guard(nullptr, [&] {
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
        *code = llama_decode(ctx, *batch);
        // Errors and assertions of an asynchronous backend belong to this call, not to the next one.
        llama_synchronize(ctx);
    });
}

int32_t hearth_seq_rm(llama_context * ctx, int32_t seq, int32_t p0, int32_t p1, bool * removed, char ** err) {
    return guard(err, [&] { *removed = llama_memory_seq_rm(llama_get_memory(ctx), seq, p0, p1); });
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

int32_t hearth_templates_new(const llama_model * model, const char * override, hearth_templates ** out, char ** err) {
    return guard(err, [&] {
        const llama_vocab * vocab = llama_model_get_vocab(model);
        const char * own = llama_model_chat_template(model, nullptr);
        const char * source = override ? override : own;
        auto t = std::make_unique<hearth_templates>();
        if (source && std::strcmp(source, "chatml") != 0) {
            // common_chat_templates_init reports a bad template without its reason; compiling it first tells.
            t->tmpl = std::make_unique<common_chat_template>(source, token_text(vocab, llama_vocab_bos(vocab)),
                                                             token_text(vocab, llama_vocab_eos(vocab)));
        }
        t->ptr = common_chat_templates_init(model, override ? override : "");
        t->add_bos = llama_vocab_get_add_bos(vocab);
        t->add_eos = llama_vocab_get_add_eos(vocab);
        t->supports_thinking = common_chat_templates_support_enable_thinking(t->ptr.get());
        t->is_simple = reads_plainly(t.get());
        *out = t.release();
    });
}

void hearth_templates_free(hearth_templates * templates) {
    delete templates;
}

int32_t hearth_templates_info(const hearth_templates * t, char ** out, char ** err) {
    return guard(err, [&] {
        json j = json::object();
        j["source"] = common_chat_templates_source(t->ptr.get());
        j["supports_thinking"] = t->supports_thinking;
        j["is_explicit"] = common_chat_templates_was_explicit(t->ptr.get());
        *out = dup(j.dump_safe());
    });
}

int32_t hearth_chat_render(hearth_templates * t, const char * request, char ** out, hearth_parser ** parser, char ** err) {
    return guard(err, [&] {
        *parser = nullptr;
        const json b = json::parse(request);
        const common_chat_templates_inputs in = inputs_of(t, b);
        json j = json::object();
        chat_plan plan;
        std::unique_ptr<hearth_parser> owned;
        if (t->is_simple) {
            std::string prompt;
            plan = render_simple(t, in, prompt);
            j["prompt"] = prompt;
        } else {
            const common_chat_params p = common_chat_templates_apply(t->ptr.get(), in);
            plan = plan_of(p);
            owned = parser_of(p, in);
            j["prompt"] = p.prompt;
        }
        j["stops"] = plan.stops;
        j["preserved"] = plan.preserved;
        j["thinking_start"] = plan.thinking_start;
        j["thinking_ends"] = plan.thinking_ends;
        j["thinking_opened"] = plan.thinking_opened;
        *out = dup(j.dump_safe());
        *parser = owned.release();
    });
}

void hearth_parser_free(hearth_parser * parser) {
    delete parser;
}

int32_t hearth_parser_parse(const hearth_parser * parser, const char * text, size_t len, bool is_partial, char ** out,
                            char ** err) {
    return guard(err, [&] {
        const common_chat_msg msg = common_chat_parse(std::string(text, len), is_partial, parser->params);
        json j = json::object();
        j["content"] = msg.content;
        j["reasoning"] = msg.reasoning_content;
        *out = dup(j.dump_safe());
    });
}

int32_t hearth_sampler_new(const llama_model * model, const hearth_sampler_params * params, hearth_sampler ** out,
                           char ** err) {
    return guard(err, [&] {
        const llama_vocab * vocab = llama_model_get_vocab(model);
        auto s = std::make_unique<hearth_sampler>();
        common_params_sampling & p = s->params;
        p.seed = params->seed;
        p.min_keep = params->min_keep;
        p.top_k = params->top_k;
        p.top_p = params->top_p;
        p.min_p = params->min_p;
        p.typ_p = params->typical_p;
        p.top_n_sigma = params->top_n_sigma;
        p.xtc_probability = params->xtc_probability;
        p.xtc_threshold = params->xtc_threshold;
        p.temp = params->temperature;
        p.dynatemp_range = params->dynatemp_range;
        p.dynatemp_exponent = params->dynatemp_exponent;
        p.penalty_last_n = params->penalty_last_n;
        p.penalty_repeat = params->penalty_repeat;
        p.penalty_freq = params->penalty_frequency;
        p.penalty_present = params->penalty_presence;
        p.dry_multiplier = params->dry_multiplier;
        p.dry_base = params->dry_base;
        p.dry_allowed_length = params->dry_allowed_length;
        p.dry_penalty_last_n = params->dry_penalty_last_n;
        p.mirostat = params->mirostat;
        p.mirostat_tau = params->mirostat_tau;
        p.mirostat_eta = params->mirostat_eta;
        p.ignore_eos = params->ignore_eos;
        p.no_perf = true;
        p.dry_sequence_breakers.assign(params->dry_breakers, params->dry_breakers + params->n_dry_breakers);
        p.samplers = common_sampler_types_from_names(
            std::vector<std::string>(params->samplers, params->samplers + params->n_samplers));
        p.logit_bias.assign(params->logit_bias, params->logit_bias + params->n_logit_bias);
        if (p.ignore_eos) {
            for (llama_token id = 0; id < llama_vocab_n_tokens(vocab); ++id) {
                if (llama_vocab_is_eog(vocab, id)) {
                    p.logit_bias.push_back({ id, -INFINITY });
                }
            }
        }
        s->ptr.reset(common_sampler_init(model, p));
        if (!s->ptr) {
            throw std::runtime_error("no sampler could be made");
        }
        *out = s.release();
    });
}

void hearth_sampler_free(hearth_sampler * sampler) {
    delete sampler;
}

int32_t hearth_sampler_accept(hearth_sampler * sampler, const llama_token * tokens, size_t n, char ** err) {
    return guard(err, [&] {
        for (size_t i = 0; i < n; ++i) {
            common_sampler_accept(sampler->ptr.get(), tokens[i], false);
        }
    });
}

int32_t hearth_sampler_sample(hearth_sampler * sampler, llama_context * ctx, int32_t row, llama_token * token, char ** err) {
    return guard(err, [&] {
        *token = common_sampler_sample(sampler->ptr.get(), ctx, row);
        common_sampler_accept(sampler->ptr.get(), *token, true);
    });
}

} // extern "C"
