#include "guard.h"

#include "common.h"
#include "gguf.h"
#include "speculative.h"

#include "../src/llama-ext.h" // llama_get_ctx_other, llama_model_*: where common/speculative gets them too

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

using namespace hearth;

namespace {

struct spec_deleter {
    void operator()(common_speculative * spec) const { common_speculative_free(spec); }
};

common_speculative_type type_of(int32_t kind) {
    switch (kind) {
        case HEARTH_DRAFT_SIMPLE: return COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE;
        case HEARTH_DRAFT_EAGLE3: return COMMON_SPECULATIVE_TYPE_DRAFT_EAGLE3;
        case HEARTH_DRAFT_MTP: return COMMON_SPECULATIVE_TYPE_DRAFT_MTP;
        case HEARTH_DRAFT_DFLASH: return COMMON_SPECULATIVE_TYPE_DRAFT_DFLASH;
        case HEARTH_DRAFT_DSPARK: return COMMON_SPECULATIVE_TYPE_DRAFT_DSPARK;
        default: throw std::invalid_argument("no such kind of drafts");
    }
}

// As common_speculative_are_compatible asks, but with the reason.
std::string difference(const llama_vocab * target, const llama_vocab * draft) {
    const int n_target = llama_vocab_n_tokens(target);
    const int n_draft = llama_vocab_n_tokens(draft);
    if (llama_vocab_type(target) != llama_vocab_type(draft)) {
        return "their tokenizers are of different kinds";
    }
    if (llama_vocab_get_add_bos(target) != llama_vocab_get_add_bos(draft) ||
        (llama_vocab_get_add_bos(target) && llama_vocab_bos(target) != llama_vocab_bos(draft))) {
        return "their texts begin with different tokens";
    }
    if (llama_vocab_get_add_eos(target) != llama_vocab_get_add_eos(draft) ||
        (llama_vocab_get_add_eos(target) && llama_vocab_eos(target) != llama_vocab_eos(draft))) {
        return "their texts end with different tokens";
    }
    if (std::abs(n_target - n_draft) > 128) {
        return "the model has " + std::to_string(n_target) + " tokens, the draft has " + std::to_string(n_draft);
    }
    for (int id = 5; id < std::min(n_target, n_draft); ++id) {
        if (std::strcmp(llama_vocab_get_text(target, id), llama_vocab_get_text(draft, id)) != 0) {
            return "token " + std::to_string(id) + " is another one";
        }
    }
    return "";
}

// A small context of a model, whose graphs are looked at before its own is made; of no use once llama.cpp asserted in it.
struct probe {
    std::unique_ptr<llama_context, decltype(&llama_free)> ctx{ nullptr, llama_free };

    explicit probe(llama_model * model) {
        llama_context_params p = llama_context_default_params();
        p.n_ctx = 256;
        p.n_batch = p.n_ubatch = N_ROWS;
        p.n_seq_max = p.n_outputs_max = 1;
        p.n_threads = p.n_threads_batch = 1;
        p.no_perf = true;
        ctx.reset(llama_init_from_model(model, p));
    }

    // What goes into a layer; that there is no such tensor is asserted on (llm_graph_result::set_outputs, llama-graph.cpp).
    bool gives_layer(int32_t layer) const {
        llama_set_embeddings_layer_inp(ctx.get(), static_cast<uint32_t>(layer), true);
        try {
            graph();
            return true;
        } catch (const assertion & e) {
            if (std::strstr(e.what(), "t_layer_inp")) {
                return false;
            }
            throw;
        }
    }

    // The state behind the last layer, of every row though one is wanted. Where a graph lacks it nothing is asserted on, and
    // heads would read what never was written (llama_context::decode). It has no name in some graphs, but it is an output.
    bool gives_last(int32_t width) const {
        llama_set_embeddings_nextn(ctx.get(), true, /*masked*/ false);
        ggml_cgraph * found = graph();
        for (int i = 0; i < ggml_graph_n_nodes(found); ++i) {
            const ggml_tensor * node = ggml_graph_node(found, i);
            if ((node->flags & GGML_TENSOR_FLAG_OUTPUT) && node->ne[0] == width && node->ne[1] == N_ROWS) {
                return true;
            }
        }
        return false;
    }

private:
    static constexpr int64_t N_ROWS = 2;

    ggml_cgraph * graph() const {
        ggml_cgraph * found = llama_graph_reserve(ctx.get(), N_ROWS, 1, 1);
        if (!found) {
            throw std::runtime_error("llama.cpp could not plan a graph");
        }
        return found;
    }
};

// Why a model's graphs don't hand out what heads read. `layers`: what they say they do; those of MTP the last state alone.
std::string unread(llama_model * target, const std::vector<int32_t> & layers, int32_t kind) {
    char architecture[64] = {};
    llama_model_meta_val_str(target, "general.architecture", architecture, sizeof(architecture));
    const auto lacks = [&](const std::string & what) {
        return std::string("heads of its kind (") + common_speculative_type_to_str(type_of(kind)) + ") read " + what +
               ", which llama.cpp does not hand out for models of the architecture " + architecture;
    };
    const int32_t n_layer = llama_model_n_layer(target);
    const bool reads_last = kind == HEARTH_DRAFT_MTP ||
                            (kind == HEARTH_DRAFT_EAGLE3 && std::count(layers.begin(), layers.end(), n_layer) > 0);
    const probe looked(target);
    if (!looked.ctx) {
        return ""; // why no context can be made is told by the one that is meant to be
    }
    const int32_t width = kind == HEARTH_DRAFT_MTP ? llama_model_n_embd_out(target) : llama_model_n_embd(target);
    if (reads_last && !looked.gives_last(width)) {
        return lacks("the state behind the last layer");
    }
    for (const int32_t layer : layers) {
        if (!(reads_last && layer == n_layer) && !looked.gives_layer(layer)) {
            return lacks("what goes into layer " + std::to_string(layer));
        }
    }
    return "";
}

// Why heads of a file can't read what a model's decodes leave behind. They take what they lack (embeddings, output) from the
// model, which nothing but assertions checks.
std::string misfit(llama_model * target, const llama_model * heads, int32_t kind) {
    const bool is_block = kind == HEARTH_DRAFT_DFLASH || kind == HEARTH_DRAFT_DSPARK;
    int64_t width = kind == HEARTH_DRAFT_MTP ? llama_model_n_embd_out(heads) : llama_model_n_embd(heads);
    if (kind == HEARTH_DRAFT_EAGLE3) {
        char text[32] = {};
        llama_model_meta_val_str(heads, "eagle3.target_hidden_size", text, sizeof(text));
        width = std::atoll(text);
    }
    const int64_t own = kind == HEARTH_DRAFT_MTP ? llama_model_n_embd_out(target) : llama_model_n_embd(target);
    if (width != own) {
        return "it is made for a model of width " + std::to_string(width) + ", and this one's is " + std::to_string(own);
    }
    const int32_t n_tokens = llama_vocab_n_tokens(llama_model_get_vocab(heads));
    const int32_t n_own = llama_vocab_n_tokens(llama_model_get_vocab(target));
    if (n_tokens != n_own) {
        return "it is made for a vocabulary of " + std::to_string(n_tokens) + " tokens, and the model's has " +
               std::to_string(n_own);
    }
    if (kind == HEARTH_DRAFT_MTP) {
        return unread(target, {}, kind);
    }
    if (is_block && llama_vocab_mask(llama_model_get_vocab(heads)) == LLAMA_TOKEN_NULL) {
        return "it names no mask token";
    }
    const int32_t * ids = llama_model_target_layer_ids(heads);
    const uint32_t n = llama_model_target_layer_ids_n(heads);
    if (n == 0) {
        return "it does not say which layers of the model it reads";
    }
    // What comes out of the last layer has the number behind it.
    for (uint32_t i = 0; i < n; ++i) {
        if (ids[i] < 0 || ids[i] > llama_model_n_layer(target)) {
            return "it reads layer " + std::to_string(ids[i]) + " of a model with " +
                   std::to_string(llama_model_n_layer(target));
        }
    }
    return unread(target, std::vector<int32_t>(ids, ids + n), kind);
}

// What common/speculative keeps of a sequence: a hidden state that it never forgets, though the sequence may be another's by
// now. So it is known here which position it is of.
struct kept_state {
    llama_pos first = -1; // of the rows that were taken in last
    int32_t n_rows = 0;
    llama_pos pos = -1;   // of the state; -1: it is of no row of this sequence
    llama_pos foreign = -1; // a cell that was made with another's state: no draft may see it
};

} // namespace

struct hearth_speculator {
    llama_context * target = nullptr;
    llama_context * draft = nullptr;
    common_params_speculative params;
    std::unique_ptr<common_speculative, spec_deleter> spec;
    std::vector<llama_tokens> results;
    std::vector<bool> has_drafted;
    std::vector<kept_state> kept;
    llama_tokens no_prompt; // only n-gram kinds read it
    // The heads attend over the target's cells and write none: what they would do to the memory llama.cpp leaves undone, and
    // they keep the state of the last position alone.
    bool shares_memory = false;

    bool is_eagle() const { return params.types[0] == COMMON_SPECULATIVE_TYPE_DRAFT_EAGLE3; }
    // Its heads pair a row with the hidden state of the one before, which common/speculative keeps from step to step.
    bool keeps_state() const { return is_eagle() || params.types[0] == COMMON_SPECULATIVE_TYPE_DRAFT_MTP; }
    // The heads of EAGLE3 write a position when they learn the next token, so they lag one behind.
    llama_pos lag() const { return is_eagle() ? 1 : 0; }

    size_t checked(llama_seq_id seq) const {
        if (seq < 0 || static_cast<size_t>(seq) >= results.size()) {
            throw std::invalid_argument("no such sequence");
        }
        return static_cast<size_t>(seq);
    }
};

static void forget(hearth_speculator & s, llama_seq_id seq) {
    llama_memory_seq_rm(llama_get_memory(s.draft), seq, -1, -1);
    s.kept[seq] = {};
}

// Before rows from `pos` on are taken in: the draft side of the sequence ends there, or is empty.
static void join(hearth_speculator & s, llama_seq_id seq, llama_pos pos) {
    llama_memory_t memory = llama_get_memory(s.draft);
    kept_state & kept = s.kept[seq];
    if (s.shares_memory) {
        kept.first = pos;
        kept.n_rows = 0;
        return;
    }
    const bool continues = !s.keeps_state() || (pos > 0 && kept.pos == pos - 1);
    const llama_pos end = llama_memory_seq_pos_max(memory, seq);
    // EAGLE3 can't make up the position that it lags behind without its state.
    const bool has_gap = end < pos - 1 - s.lag() || (s.is_eagle() && !continues);
    if (has_gap || (end >= pos - s.lag() && !llama_memory_seq_rm(memory, seq, pos - s.lag(), -1))) {
        llama_memory_seq_rm(memory, seq, -1, -1);
        kept.foreign = -1;
    }
    if (kept.foreign >= pos) {
        kept.foreign = -1;
    }
    if (!continues) {
        kept.foreign = pos - s.lag();
    }
    kept.first = pos;
    kept.n_rows = 0;
}

// The rows were taken in. A cell that was made with a foreign state goes as soon as others stand behind it, since a sequence
// may not end in a gap; what the heads wrote into those doesn't depend on it.
static void took(hearth_speculator & s, llama_seq_id seq) {
    llama_memory_t memory = llama_get_memory(s.draft);
    kept_state & kept = s.kept[seq];
    kept.pos = kept.first + kept.n_rows - 1;
    if (kept.foreign >= 0) {
        const bool is_last = llama_memory_seq_pos_max(memory, seq) == kept.foreign;
        if (!is_last || llama_memory_seq_pos_min(memory, seq) == kept.foreign) {
            llama_memory_seq_rm(memory, seq, kept.foreign, kept.foreign + 1);
            kept.foreign = -1;
        }
    }
}

// Whether the state that it would draft from is of the position before, and nothing that it would see another's.
static bool can_draft(const hearth_speculator & s, const hearth_draft_ask & ask) {
    const kept_state & kept = s.kept[ask.seq];
    return !s.keeps_state() || (kept.pos == ask.pos - 1 && kept.foreign < 0);
}

extern "C" {

int32_t hearth_draft_mismatch(llama_model * target, const llama_model * draft, int32_t kind, char ** text, char ** err) {
    return guard(err, [&] {
        std::string found;
        if (kind == HEARTH_DRAFT_SIMPLE) {
            found = difference(llama_model_get_vocab(target), llama_model_get_vocab(draft));
            found = found.empty() ? "" : "its vocabulary is not the model's: " + found;
        } else {
            found = misfit(target, draft, kind);
        }
        *text = found.empty() ? nullptr : dup(found);
    });
}

int32_t hearth_draft_kind(const char * path, int32_t * kind, char ** err) {
    return guard(err, [&] {
        gguf_init_params p = { /*.no_alloc =*/ true, /*.ctx =*/ nullptr };
        std::unique_ptr<gguf_context, decltype(&gguf_free)> file(gguf_init_from_file(path, p), gguf_free);
        if (!file) {
            throw std::invalid_argument("this is no GGUF file");
        }
        const auto text = [&](const std::string & key) -> std::string {
            const int64_t id = gguf_find_key(file.get(), key.c_str());
            return id >= 0 && gguf_get_kv_type(file.get(), id) == GGUF_TYPE_STRING ? gguf_get_val_str(file.get(), id) : "";
        };
        const std::string arch = text("general.architecture");
        const auto has = [&](const std::string & tensor) { return gguf_find_tensor(file.get(), tensor.c_str()) >= 0; };
        const int64_t n_id = gguf_find_key(file.get(), (arch + ".block_count").c_str());
        const bool is_counted = n_id >= 0 && gguf_get_kv_type(file.get(), n_id) == GGUF_TYPE_UINT32;
        const std::string last = "blk." + std::to_string(is_counted ? gguf_get_val_u32(file.get(), n_id) - 1 : 0);
        if (arch == "eagle3") {
            *kind = HEARTH_DRAFT_EAGLE3;
        } else if (arch == "gemma4-assistant") {
            *kind = HEARTH_DRAFT_MTP;
        } else if (arch == "dflash") {
            // Its Markov head tells DSpark from DFlash.
            *kind = has("markov_w1.weight") ? HEARTH_DRAFT_DSPARK : HEARTH_DRAFT_DFLASH;
        } else if (has(last + ".nextn.eh_proj.weight") && !has("blk.0.attn_norm.weight")) {
            // Heads without the model they belong to.
            *kind = HEARTH_DRAFT_MTP;
        } else {
            *kind = HEARTH_DRAFT_SIMPLE;
        }
    });
}

int32_t hearth_model_n_mtp(const llama_model * model, int32_t * n, char ** err) {
    return guard(err, [&] { *n = llama_model_n_layer_nextn(model); });
}

int32_t hearth_speculator_new(llama_context * target, llama_context * draft, const hearth_speculator_params * params,
                              hearth_speculator ** out, char ** err) {
    return guard(err, [&] {
        auto s = std::make_unique<hearth_speculator>();
        // As common/speculative tells it (is_mem_shared): other kinds take embeddings and output from the target there.
        s->shares_memory = params->kind == HEARTH_DRAFT_MTP && llama_get_ctx_other(draft) == target;
        s->target = target;
        s->draft = draft;
        s->params.types = { type_of(params->kind) };
        auto & p = s->params.draft;
        p.n_max = params->n_max;
        p.n_min = params->n_min;
        p.p_min = params->p_min;
        p.ctx_tgt = target;
        p.ctx_dft = draft;
        p.backend_sampling = false; // its samplers would need places in the graph for each sequence
        s->spec.reset(common_speculative_init(s->params, params->n_seq));
        if (!s->spec) {
            throw std::invalid_argument("llama.cpp made no drafts of it");
        }
        s->results.resize(params->n_seq);
        s->has_drafted.resize(params->n_seq);
        s->kept.resize(params->n_seq);
        *out = s.release();
    });
}

void hearth_speculator_free(hearth_speculator * speculator) {
    guard(nullptr, [&] { delete speculator; });
}

int32_t hearth_speculator_n_max(const hearth_speculator * s, int32_t * n, char ** err) {
    return guard(err, [&] { *n = common_speculative_n_max(s->spec.get()); });
}

int32_t hearth_speculator_process(hearth_speculator * s, const llama_batch * batch, bool * done, char ** err) {
    return guard(err, [&] {
        const no_throw end_instead(llama_n_threads(s->draft) > 1 || llama_n_threads_batch(s->draft) > 1);
        std::vector<llama_seq_id> seen;
        std::vector<bool> is_seen(s->results.size());
        common_batch rows;
        for (int32_t i = 0; i < batch->n_tokens; ++i) {
            const llama_seq_id seq = batch->seq_id[i][0];
            if (!is_seen[s->checked(seq)]) {
                is_seen[seq] = true;
                seen.push_back(seq);
                join(*s, seq, batch->pos[i]);
            }
            s->kept[seq].n_rows++;
            rows.add(batch->token[i], batch->pos[i], seq, false);
        }
        *done = common_speculative_process(s->spec.get(), rows);
        llama_synchronize(s->draft);
        for (const llama_seq_id seq : seen) {
            if (*done) {
                took(*s, seq);
            } else {
                forget(*s, seq);
            }
        }
    });
}

int32_t hearth_speculator_draft(hearth_speculator * s, const hearth_draft_ask * asks, size_t n, llama_token * out, size_t cap,
                                int32_t * n_out, char ** err) {
    return guard(err, [&] {
        const no_throw end_instead(llama_n_threads(s->draft) > 1 || llama_n_threads_batch(s->draft) > 1);
        for (size_t i = 0; i < n; ++i) {
            const hearth_draft_ask & ask = asks[i];
            llama_tokens & result = s->results[s->checked(ask.seq)];
            result.clear();
            auto & dp = common_speculative_get_draft_params(s->spec.get(), ask.seq);
            dp.drafting = can_draft(*s, ask);
            dp.n_max = ask.n_max;
            dp.pos0 = ask.pos;
            dp.id_last = ask.last;
            dp.prompt = &s->no_prompt;
            dp.result = &result;
            dp.result_q = nullptr;
        }
        common_speculative_draft(s->spec.get());
        llama_synchronize(s->draft);
        llama_memory_t memory = llama_get_memory(s->draft);
        for (size_t i = 0; i < n; ++i) {
            const hearth_draft_ask & ask = asks[i];
            const llama_tokens & result = s->results[ask.seq];
            const size_t count = std::min({ result.size(), cap, static_cast<size_t>(std::max(ask.n_max, 0)) });
            std::copy_n(result.begin(), count, out + i * cap);
            n_out[i] = static_cast<int32_t>(count);
            if (!result.empty()) {
                s->has_drafted[ask.seq] = true;
            } else if (!s->shares_memory && can_draft(*s, ask) &&
                       llama_memory_seq_pos_max(memory, ask.seq) < ask.pos - s->lag()) {
                // The newest token was not taken in: no draft is one thing, no room for it another.
                n_out[i] = -1;
            }
        }
    });
}

int32_t hearth_speculator_clear(hearth_speculator * s, int32_t seq, bool * held, char ** err) {
    return guard(err, [&] {
        const size_t at = s->checked(seq);
        *held = s->shares_memory ? s->kept[at].pos >= 0 : llama_memory_seq_pos_max(llama_get_memory(s->draft), seq) >= 0;
        forget(*s, seq);
    });
}

int32_t hearth_speculator_share(hearth_speculator * s, int32_t from, int32_t to, int32_t n, bool unified, bool * copied,
                                char ** err) {
    int32_t status = guard(err, [&] {
        const kept_state & donor = s->kept[s->checked(from)];
        forget(*s, static_cast<llama_seq_id>(s->checked(to)));
        // EAGLE3 would need the hidden state behind its last position, which only common/speculative has.
        *copied = !s->is_eagle() && (donor.foreign < 0 || donor.foreign >= n);
        if (s->shares_memory) {
            // It is there already, as far as the target holds it.
            llama_memory_t memory = llama_get_memory(s->draft);
            *copied = std::min(llama_memory_seq_pos_max(memory, from), llama_memory_seq_pos_max(memory, to)) + 1 >= n;
        }
    });
    const bool is_to_copy = status == HEARTH_OK && *copied && !s->shares_memory;
    return is_to_copy ? hearth_seq_cp(s->draft, from, to, n, unified, copied, err) : status;
}

int32_t hearth_speculator_accept(hearth_speculator * s, int32_t seq, uint16_t n, char ** err) {
    return guard(err, [&] {
        kept_state & kept = s->kept[s->checked(seq)];
        // Asserted on where it never drafted for the sequence.
        if (s->has_drafted[seq]) {
            common_speculative_accept(s->spec.get(), seq, n);
            kept.pos = kept.pos < 0 ? -1 : kept.first + std::min<int32_t>(n, kept.n_rows - 1);
        } else if (n + 1 < kept.n_rows) {
            kept.pos = -1;
        }
    });
}

} // extern "C"
